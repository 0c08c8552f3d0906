"User vectors per layer: the update against the full computation, against a slow second implementation, and bad input."
from types import SimpleNamespace
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from recx.extract.tastes import load_tastes, no_tastes, read_tastes, save_tastes, start_tastes, taste_vectors, update_tastes
from recx.extract.vectors import UnknownIds, Vectors
from recx.text.texts import NO_TEXT, text_hash

ITEMS, USERS, LAYERS, DAY = [f'i{i}' for i in range(6)], [f'u{u}' for u in range(4)], ['L1', 'L3'], 86_400


def item_vectors(seed=0, items=ITEMS, layers=LAYERS, unknown=(('i5', 'L3'),), **origin):
    rows = pd.DataFrame([dict(id=i, layer=l, text_hash=text_hash(NO_TEXT if (i, l) in unknown else f'{i} {l}')) for l in layers for i in items])
    same = dict(kind='item', source='attributes', model='minilm', tuning='frozen', pooling='mean', prompt_version='p@1', generated_at='') | origin
    values = {(i, l): np.random.default_rng([seed, n, m]).standard_normal(5) for m, l in enumerate(LAYERS + ['']) for n, i in enumerate(ITEMS + ['new'])}
    return Vectors(rows.assign(**same), np.stack([values[i, l] for i, l in zip(rows.id, rows.layer)]))


def slowly(events, vectors, users, half_life, unit, by_value):
    "The formula, event by event, with users without events at the mean of the others."
    out = {}
    for layer in LAYERS:
        rows = vectors.rows[vectors.rows.layer == layer]
        known, at = set(rows.id[rows.text_hash != text_hash(NO_TEXT)]), dict(zip(rows.id, rows.index))
        tastes = {}
        for u in users:
            mine = [e for e in events if e[0] == u and e[1] in known]
            now = max((e[2] for e in mine), default=0)
            w = [(e[3] if by_value else 1)*2.**(-(now - e[2])/(half_life*unit)) if half_life else float(e[3] if by_value else 1) for e in mine]
            if mine: tastes[u] = sum(x*vectors.matrix[at[e[1]]].astype(float) for x, e in zip(w, mine))/sum(w)
        if not tastes: return None
        out |= {(u, layer): tastes.get(u, np.mean(list(tastes.values()), axis=0)) for u in users}
    return np.stack([out[u, l] for l in LAYERS for u in users])


def table(events): return pd.DataFrame(events, columns=['user', 'item', 'time', 'value']).astype(dict(time='int64', value=float))


event = st.tuples(st.sampled_from(USERS), st.sampled_from(ITEMS), st.integers(-10**9, 2*10**9), st.sampled_from([.5, 1., 3., 5.]))
near = st.tuples(st.sampled_from(USERS), st.sampled_from(ITEMS), st.integers(0, 40), st.sampled_from([.5, 1., 3., 5.]))


@settings(max_examples=40, deadline=None)
@given(st.data(), st.lists(st.one_of(event, near), min_size=1, max_size=40), st.sampled_from([0, .5, 7., 365., 1e5]), st.booleans(), st.sampled_from(['seconds', 'position', 'relative']))
def test_update_equals_full(data, events, half_life, by_value, kind):
    "Random order, random batches (empty ones too): the same as all at once, and as the formula written out."
    vectors, order = item_vectors(), data.draw(st.permutations(range(len(events))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(events)), max_size=5)))
    empty = no_tastes(USERS, vectors, half_life, by_value, kind)
    full, state = update_tastes(empty, table(events), vectors), empty
    for a, b in zip([0, *cuts], [*cuts, len(events)]): state = update_tastes(state, table([events[i] for i in order[a:b]]), vectors)
    wanted = slowly(events, vectors, USERS, half_life, 1 if kind == 'position' else DAY, by_value)
    if wanted is None:
        with pytest.raises(ValueError, match='not one user'): read_tastes(full)
        return
    assert np.abs(read_tastes(state).matrix - read_tastes(full).matrix).max() < 1e-6
    assert np.abs(read_tastes(full).matrix - wanted).max() < 1e-6
    assert (state.last == full.last).all() and (state.counts == full.counts).all()
    assert (read_tastes(state).rows.source == read_tastes(full).rows.source).all()


def test_many_small_batches_do_not_drift(tmp_path):
    "Two hundred batches, stored and read between them, and users and items that appear on the way."
    rng, vectors = np.random.default_rng(0), item_vectors()
    events = [(f'u{rng.integers(40)}', ITEMS[rng.integers(6)], int(rng.integers(0, 10**8)), 1.) for _ in range(2000)]
    state = no_tastes([], vectors, 20)
    for a in range(0, 2000, 10):
        state = update_tastes(state, table(events[a:a + 10]), vectors)
        if a % 500 == 0: state = load_tastes(save_tastes(state, tmp_path))
    full = read_tastes(update_tastes(no_tastes(state.users, vectors, 20), table(events), vectors))
    assert np.abs(read_tastes(state).matrix - full.matrix).max() < 1e-6


def test_new_items_join():
    before, after = item_vectors(), item_vectors(items=ITEMS + ['new'], prompt_version='p@2')
    state = update_tastes(no_tastes(['a'], before, 0), table([('a', 'i0', 0, 1), ('a', 'i1', 0, 1)]), before)
    state = update_tastes(state, table([('a', 'new', 5, 1)]), after)
    tastes = read_tastes(state)
    assert np.allclose(tastes.align(['a'], 'user', 'L1'), after.align(['i0', 'i1', 'new'], layer='L1').mean(0), atol=1e-6)
    assert 'p@1+p@2' in tastes.rows.prompt_version[0]


def test_an_old_taste_does_not_vanish():
    "Somebody who was away for a century keeps a taste; it gives way to the first new event."
    vectors = item_vectors()
    state = update_tastes(no_tastes(['a'], vectors, 1), table([('a', 'i0', 0, 1)]), vectors)
    assert np.allclose(read_tastes(state).align(['a'], 'user', 'L1'), vectors.align(['i0'], layer='L1'))
    state = update_tastes(state, table([('a', 'i1', 100*365*DAY, 1)]), vectors)
    assert np.allclose(read_tastes(state).align(['a'], 'user', 'L1'), vectors.align(['i1'], layer='L1'))


def test_the_state_is_not_changed():
    vectors = item_vectors()
    state = update_tastes(no_tastes(USERS, vectors, 1), table([('u0', 'i0', 0, 1)]), vectors)
    sums = state.sums.copy()
    update_tastes(state, table([('u0', 'i1', 9, 1), ('z', 'i1', 9, 1)]), vectors)
    assert (state.sums == sums).all() and len(state.users) == 4


def test_held_out_events_stay_out():
    "A data set whose held-out events are of another item: its direction is in nobody's taste."
    vectors = Vectors(item_vectors().rows, np.tile(np.eye(6, dtype=np.float32), (2, 1)))
    events = pd.DataFrame(dict(user=['a', 'a', 'a', 'b', 'b'], item=['i0', 'i1', 'i4', 'i0', 'i4'], time=[0, 1, 2, 0, 1], value=1., split=['train', 'valid', 'test', 'train', 'test']))
    tastes = taste_vectors(SimpleNamespace(events=events, user_ids=np.array(['a', 'b', 'c'], dtype=object), card=dict(time_kind='position')), vectors, 3)
    assert (tastes.matrix[:, [1, 4]] == 0).all() and (tastes.matrix[:, 0] == 1).all()
    assert tastes.rows.source.tolist() == ['tastes', 'tastes', 'mean of tastes']*2


def test_layerless_items():
    vectors = item_vectors(layers=[''], unknown=())
    tastes = read_tastes(update_tastes(no_tastes(['a', 'b'], vectors, 1), table([('a', 'i2', 0, 1)]), vectors))
    assert np.allclose(tastes.align(['a', 'b'], 'user'), vectors.align(['i2'])) and (tastes.rows.layer == '').all()


LOG = table([('u0', 'i0', 0, 1.), ('u1', 'i1', 5, 2.)])
BAD_EVENTS = [
    (LOG.drop(columns='item'), "column 'item'"), (LOG.assign(item=['i0', 'none']), "'none'"), (LOG.assign(time=[.5, 1]), 'whole seconds'), (LOG.assign(time=[1, np.nan]), 'none missing'),
    (LOG.assign(value=[0, 1.]), 'above 0'), (LOG.assign(value=[np.nan, 1.]), 'above 0'), (LOG.assign(value=[np.inf, 1.]), 'above 0'), (LOG.assign(user=['a', None]), 'lack a user'),
    (LOG.assign(split=['train', 'valid']), '1 of 2 are held out'),
]


@pytest.mark.parametrize('events, said', BAD_EVENTS)
def test_bad_events(events, said):
    with pytest.raises(ValueError, match=said): update_tastes(no_tastes(USERS, item_vectors(), 1, by_value=True), events, item_vectors())


BAD_VECTORS = [(item_vectors(seed=1), 'another vector'), (item_vectors(layers=['L1']), 'layers'), (item_vectors(items=['new'], tuning='cpt'), 'cpt'), (item_vectors(items=['new'], model='bge'), 'bge'),
               (Vectors(item_vectors().rows, item_vectors().matrix[:, :3]), 'size 3')]


@pytest.mark.parametrize('vectors, said', BAD_VECTORS)
def test_other_vectors_are_refused(vectors, said):
    state = update_tastes(no_tastes(USERS, item_vectors(), 1), LOG, item_vectors())
    with pytest.raises(ValueError, match=said): update_tastes(state, LOG.assign(item='new'), vectors)


@pytest.mark.parametrize('half_life', [-1, float('nan'), float('inf')])
def test_bad_half_life(half_life):
    with pytest.raises(ValueError, match='half_life'): no_tastes(USERS, item_vectors(), half_life)


def test_missing_layer_of_an_item():
    vectors = item_vectors()
    partial = Vectors(vectors.rows.iloc[:-6], vectors.matrix[:-6])
    short = Vectors(vectors.rows.drop(index=7), np.delete(vectors.matrix, 7, 0)) # i1 has no L3
    assert partial.rows.layer.nunique() == 1
    with pytest.raises(UnknownIds, match="layer 'L3'.*'i1'"): update_tastes(no_tastes(USERS, short, 1), LOG, short)


def test_users_only():
    users = item_vectors(kind='user')
    with pytest.raises(ValueError, match="kind 'item'"): no_tastes(USERS, users, 1)


def test_toy(tmp_path):
    "The data set of the smoke runs, with a time split of its own training events."
    from recx.data.dataset import Dataset
    from recx.data.stage import small
    data = Dataset.load(small(tmp_path/'data'))
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(dict(id=data.item_ids, kind='item', layer='', text_hash=[text_hash(i) for i in data.item_ids], source='flatten', model='m', tuning='frozen', pooling='mean', prompt_version='1', generated_at=''))
    vectors = Vectors(rows, rng.standard_normal((len(rows), 8)))
    train = data.events[data.events.split == 'train']
    early = train.time < train.time.median()
    state = update_tastes(no_tastes(data.user_ids, vectors, 30), train[early], vectors)
    assert np.abs(read_tastes(update_tastes(state, train[~early], vectors)).matrix - taste_vectors(data, vectors, 30).matrix).max() < 1e-6
    assert (start_tastes(data, vectors, 30).counts[0] == data.user_counts).all()
