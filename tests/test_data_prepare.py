"Properties of core, order and splits against slow and obvious implementations; strata; the stage's own contract."
import json
from collections import Counter
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from recx.data import stage
from recx.data.dataset import Dataset, Raw
from recx.data.parameters import declared
from recx.data.prepare import core, filtered, nonempty_core, prepare, sequence_order, split_last, split_ratio, split_time, tied_users, unrepeated
from recx.data.strata import ITEM_BINS, USER_BINS, binned, head_by_items, head_by_share, popularity_order
from recx.data.toy import make_toy

PARAMS = declared(vars(stage))
logs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 5)), min_size=1, max_size=60)
many = settings(max_examples=40, deadline=None)


def raw_of(rows, kind='seconds', value=1.):
    events = pd.DataFrame([(f'u{u}', f'i{i}', t, value) for u, i, t in rows], columns=['user', 'item', 'time', 'value'])
    items = pd.DataFrame(dict(item=[f'i{i}' for i in range(8)], title=[f'title {i}' for i in range(8)]))
    return Raw(items, pd.DataFrame(dict(user=[]), dtype=str), events, dict(name='made', text_columns=['title'], time_kind=kind, has_values=True))


def prepared(rows, kind='seconds', **changes): return prepare(raw_of(rows, kind), PARAMS | dict(on_duplicates='keep', min_history=0) | changes)


# Core ------------------------------------------------------------------------------------------------------------------

def slow_core(rows, k):
    "Peel one user or item at a time."
    rows = list(rows)
    while True:
        for place in (0, 1):
            counts = Counter(r[place] for r in rows)
            bad = next((x for x, n in counts.items() if n < k), None)
            if bad is not None: rows = [r for r in rows if r[place] != bad]; break
        else: return rows


@many
@given(logs, st.integers(0, 6))
def test_core_is_what_peeling_one_by_one_leaves(rows, k):
    user, item = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    kept = [r for r, keep in zip(rows, core(user, item, k)) if keep]
    assert kept == slow_core(rows, k)
    assert core(user, item, k + 1).sum() <= len(kept)


@many
@given(logs, st.integers(2, 40))
def test_error_names_the_largest_core(rows, k):
    user, item = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    if core(user, item, k).any(): return
    with pytest.raises(ValueError, match='the largest core of these data is kcore=') as e: nonempty_core(user, item, k)
    largest = int(str(e.value).rsplit('=', 1)[1])
    assert core(user, item, largest).any() and not core(user, item, largest + 1).any()


# Order -----------------------------------------------------------------------------------------------------------------

@many
@given(logs, st.integers(0, 99))
def test_shuffling_moves_events_only_within_runs_of_equal_time(rows, seed):
    user, time = np.array([r[0] for r in rows]), np.array([r[2] for r in rows])
    file, shuffled = sequence_order(user, time), sequence_order(user, time, 'shuffle', seed)
    assert sorted(shuffled) == list(range(len(rows)))
    assert (user[file] == user[shuffled]).all() and (time[file] == time[shuffled]).all()
    assert [rows[i] for i in file] == [r for u in sorted(set(user)) for r in sorted((r for r in rows if r[0] == u), key=lambda r: r[2])]
    assert (shuffled == sequence_order(user, time, 'shuffle', seed)).all()


def test_shuffle_reaches_every_order_of_a_tie():
    user, time = np.zeros(3, int), np.array([1, 1, 1])
    orders = Counter(tuple(sequence_order(user, time, 'shuffle', s).tolist()) for s in range(600))
    assert len(orders) == 6 and min(orders.values()) > 60


@many
@given(logs)
def test_rows_stand_by_user_then_time_and_nothing_is_lost(rows):
    data = prepared(rows)
    user, item, split = data.codes()
    assert Counter(zip(data.events.user, data.events.item, data.events.time)) == Counter((f'u{u}', f'i{i}', t) for u, i, t in rows)
    assert (np.diff(user) >= 0).all() and list(dict.fromkeys(data.events.user)) == data.user_ids.tolist() == list(dict.fromkeys(f'u{r[0]}' for r in rows))


# Splits ----------------------------------------------------------------------------------------------------------------

@many
@given(logs)
def test_leave_one_out(rows):
    data = prepared(rows)
    for user, events in data.events.groupby('user', sort=False):
        n = len(events)
        assert events.split.tolist() == (['train']*n if n < 3 else ['train']*(n - 2) + ['valid', 'test'])
    assert data.card['users_only_train'] == sum(n < 3 for n in Counter(r[0] for r in rows).values())


@many
@given(logs, st.floats(.05, .4), st.floats(.05, .4))
def test_ratio(rows, valid, test):
    for user, events in prepared(rows, split_by='ratio', valid_share=valid, test_share=test).events.groupby('user'):
        n, counts = len(events), Counter(events.split)
        assert events.split.tolist() == ['train']*counts['train'] + ['valid']*counts['valid'] + ['test']*counts['test']
        if n < 3: assert counts['train'] == n
        else: assert counts['train'] >= 1 and counts['valid'] >= 1 and counts['test'] == min(max(1, int(n*test + 1e-9)), n - 2)


@many
@given(st.lists(st.integers(0, 50), min_size=3, max_size=80), st.floats(.05, .4), st.floats(.05, .4))
def test_time_split_never_parts_a_second_and_never_looks_back(times, valid, test):
    times = np.array(times)
    try: split = split_time(times, valid, test)
    except ValueError as e:
        assert 'share one time' in str(e)
        return
    for t in set(times.tolist()): assert len(set(split[times == t].tolist())) == 1
    assert times[split == 0].max() < times[split == 1].min() <= times[split == 1].max() < times[split == 2].min()
    assert (split == 2).sum() >= int(len(times)*test)


@many
@given(logs)
def test_tied_users(rows):
    data = prepared(rows)
    pairs = [(e.time[e.split == 'valid'].iloc[-1], e.time[e.split == 'test'].iloc[0]) for _, e in data.events.groupby('user') if (e.split == 'test').any()]
    assert (data.card['tied_users'], data.card['tied_of']) == (sum(a == b for a, b in pairs), len(pairs))


def test_without_times_ties_are_unknown_and_not_zero():
    rows = [(0, i, i) for i in range(4)]
    assert prepared(rows, 'position').card['valid_test_tie_share'] is None
    assert prepared(rows).card['valid_test_tie_share'] == 0


@pytest.mark.parametrize('kind, said', [('position', 'only the order of the events'), ('relative', 'seconds since the first event')])
def test_split_by_time_needs_a_common_clock(kind, said):
    with pytest.raises(ValueError, match=f"split_by='time': the source gives {said}"): prepared([(0, i, i) for i in range(4)], kind, split_by='time')


def test_shuffling_needs_times():
    with pytest.raises(ValueError, match="ties='shuffle': made has only the order"): prepared([(0, i, i) for i in range(4)], 'position', ties='shuffle')


# Filters ---------------------------------------------------------------------------------------------------------------

def test_longest_history_keeps_the_last_events():
    data = prepared([(u, i, i) for u in range(2) for i in range(6)], max_history=3)
    assert data.events.item.tolist() == ['i3', 'i4', 'i5']*2 and data.item_ids.tolist() == ['i3', 'i4', 'i5'] and data.card['steps'][-1]['dropped'] == 6


def test_least_history_is_counted_after_the_core():
    data = prepared([(0, 0, 0), (0, 1, 1), (0, 2, 2), (1, 0, 0), (1, 1, 1)], min_history=3)
    assert data.user_ids.tolist() == ['u0'] and data.card['steps'][-1] == dict(step='min_history=3', dropped=2, events=3)


def test_values_below_the_least_go_first():
    raw = raw_of([(0, i, i) for i in range(6)])
    raw.events['value'] = [1., 5., 5., 2., 4., 5.]
    assert prepare(raw, PARAMS | dict(min_value=4.)).events.item.tolist() == ['i1', 'i2', 'i4', 'i5']
    with pytest.raises(ValueError, match='min_value=9: no event is left of 6'): prepare(raw, PARAMS | dict(min_value=9.))
    raw.about['has_values'] = False
    with pytest.raises(ValueError, match='has no values to compare with'): prepare(raw, PARAMS | dict(min_value=4.))


def test_repeats_and_unknown_items_are_asked_about_then_obeyed():
    rows = [(0, 0, 0), (0, 0, 0), (0, 1, 1), (0, 2, 2)]
    with pytest.raises(ValueError, match="on_duplicates='error': 1 events repeat .*'u0' with item 'i0' .row 2"): prepared(rows, on_duplicates='error')
    assert len(prepared(rows, on_duplicates='first').events) == 3 and len(prepared(rows).events) == 4
    rows = [(0, 0, 0), (0, 99, 1), (0, 1, 2), (0, 2, 3)]
    with pytest.raises(ValueError, match="on_unresolved='error': 1 events name 1 items .*'i99'"): prepared(rows)
    assert prepared(rows, on_unresolved='drop').card['steps'][1] == dict(step='on_unresolved=drop', dropped=1, events=3)


def test_an_item_met_first_in_test_stays_and_is_cold():
    rows = [(u, i, i) for u in range(3) for i in (0, 1, 2)] + [(0, 7, 9)]
    data = prepared(rows)
    strata = data.item_strata.set_index('item')
    assert strata.loc['i7', ['train_count', 'cold', 'share80', 'top20', 'bin']].tolist() == [0, True, 'tail', 'tail', '0']
    assert not data.train_items[data.item_ids.tolist().index('i7')]


def test_whole_catalogue_or_items_with_events():
    rows = [(0, i, i) for i in range(4)]
    assert prepared(rows).item_ids.tolist() == ['i0', 'i1', 'i2', 'i3'] and len(prepared(rows, catalogue='all').items) == 8


def test_users_of_the_table_come_first_and_in_its_order():
    raw = raw_of([(u, i, i) for u in (3, 1, 2) for i in range(3)])
    raw.users = pd.DataFrame(dict(user=['u9', 'u2', 'u1'], age=['9', '2', '1']))
    data = prepare(raw, PARAMS)
    assert data.user_ids.tolist() == ['u2', 'u1', 'u3'] and data.users.age.fillna('').tolist() == ['2', '1', '']
    assert list(dict.fromkeys(data.events.user)) == ['u2', 'u1', 'u3']


# Strata ----------------------------------------------------------------------------------------------------------------

@many
@given(st.lists(st.integers(0, 40), min_size=1, max_size=40), st.floats(.1, .95))
def test_head_by_share_is_the_smallest_set(counts, share):
    counts = np.array(counts)
    ids = np.array([f'i{i}' for i in range(len(counts))])
    head = head_by_share(counts, ids, share) == 'head'
    total = counts.sum()
    assert counts[head].sum() >= share*total - 1e-6
    if head.any(): assert counts[head].sum() - counts[head].min() < share*total and counts[head].min() >= counts[~head].max(initial=0)
    again = np.random.default_rng(0).permutation(len(counts))
    assert (head_by_share(counts[again], ids[again], share) == head_by_share(counts, ids, share)[again]).all()


@many
@given(st.lists(st.integers(0, 40), min_size=1, max_size=40))
def test_bins_hold_what_they_say(counts):
    labels = binned(np.array(counts), ITEM_BINS)
    for n, label in zip(counts, labels):
        low, *high = label.rstrip('+').split('–')
        assert int(low) <= n and n <= (int(high[0]) if high else 10**9 if label.endswith('+') else int(low))
    assert (head_by_items(np.array(counts), np.arange(len(counts))) == 'head').sum() == -(-sum(n > 0 for n in counts)//5)


def test_strata_do_not_see_validation_and_test():
    data = prepare(make_toy(), PARAMS)
    hidden = Dataset(data.items, data.users, data.events.assign(item=np.where(data.events.split == 'train', data.events.item, data.item_ids[0])), data.card)
    assert data.item_strata.equals(hidden.item_strata) and data.user_strata.equals(hidden.user_strata)
    assert set(data.item_strata.bin) <= set(ITEM_BINS) and set(data.user_strata.history) <= set(USER_BINS)


# Stage -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('change, said', [
    (dict(dataset='ml-100'), "did you mean 'ml-100k'"), (dict(dataset='parquet:'), 'nothing behind the colon'), (dict(dataset='amazon-2018'), "dataset='amazon-2018'"), (dict(dataset_path='x'), 'the toy is generated'),
    (dict(dataset='amazon-2018:X', catalogue='all'), "catalogue='all'"), (dict(ties='files'), "did you mean 'file'"), (dict(split_by='random'), 'split_by'), (dict(max_history=2), 'max_history=2'), (dict(kcore=-1), 'kcore=-1'),
    (dict(kcore=2.5), 'declared as int'), (dict(min_value=float('nan')), 'min_value'), (dict(valid_share=.5, test_share=.5), 'valid_share . test_share'), (dict(test_share=0.), 'test_share'), (dict(on_duplicates='last'), 'on_duplicates'),
    (dict(on_unresolved='ask'), 'on_unresolved'), (dict(toy_users=5), 'toy_users'), (dict(toy_items=5), 'toy_items'), (dict(toy_seed=-1), 'toy_seed')])
def test_check_refuses(change, said):
    with pytest.raises(ValueError, match=said): stage.check(PARAMS | change)


def test_same_seed_same_bytes(tmp_path):
    a, b, c = (stage.small(tmp_path/n, ties='shuffle', toy_seed=s) for n, s in (('a', 0), ('b', 0), ('c', 1)))
    assert all((a/p.name).read_bytes() == p.read_bytes() for p in b.iterdir())
    assert (a/'events.parquet').read_bytes() != (c/'events.parquet').read_bytes()


@pytest.mark.parametrize('change', [dict(), dict(split_by='time'), dict(split_by='ratio'), dict(kcore=5, max_history=10), dict(catalogue='all', ties='shuffle', ties_seed=3), dict(toy_users=20, toy_items=40)])
def test_stage_writes_what_load_reads(tmp_path, change):
    data = Dataset.load(stage.small(tmp_path/'data', **change))
    card = json.loads((tmp_path/'data'/'card.json').read_text())
    assert card == data.card and card['train'] + card['valid'] + card['test'] == card['events'] == len(data.events)
    assert {p.name for p in (tmp_path/'data').iterdir()} == {'items.parquet', 'users.parquet', 'events.parquet', 'item_strata.parquet', 'user_strata.parquet', 'card.json'}
    assert pd.read_parquet(tmp_path/'data'/'item_strata.parquet').item.tolist() == data.item_ids.tolist()


def test_toy_has_signal_a_long_tail_and_cold_items():
    data = prepare(make_toy(), PARAMS)
    counts = np.sort(data.item_counts)[::-1]
    assert counts[:20].sum() > .3*counts.sum() and data.card.get('tied_users') > 0 and (data.item_counts == 0).sum() >= 3
    genre = data.items.set_index('item').genres.str[0]
    top = data.events[data.events.split == 'train'].assign(genre=data.events.item.map(genre)).groupby('user').genre.agg(lambda g: g.value_counts(normalize=True).iloc[0])
    assert top.mean() > .35   # ten genres: chance is far lower
