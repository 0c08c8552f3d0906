"Items and users held out of training: against a slow rule per event, and what every reader of split codes makes of them."
import json
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from recx.data import stage
from recx.data.card import make_card, show
from recx.data.dataset import Dataset, Raw
from recx.data.parameters import declared
from recx.data.prepare import drawn, prepare
from recx.data.toy import make_toy
from recx.recommend.batches import held_out, training_windows

PARAMS = declared(vars(stage)) | dict(cold_items=0., cold_users=0., cold_seed=0)
logs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 5)), min_size=1, max_size=60)
splits = st.sampled_from([dict(), dict(split_by='ratio', valid_share=.2, test_share=.2), dict(split_by='ratio', valid_share=.4, test_share=.4), dict(split_by='time', valid_share=.2, test_share=.2)])


def raw_of(rows):
    events = pd.DataFrame([(f'u{u}', f'i{i}', t, 1.) for u, i, t in rows], columns=['user', 'item', 'time', 'value'])
    items = pd.DataFrame(dict(item=[f'i{i}' for i in range(8)], title=[f'title {i}' for i in range(8)]))
    return Raw(items, pd.DataFrame(dict(user=[]), dtype=str), events, dict(name='made', text_columns=['title'], time_kind='seconds', has_values=True))


def prepared(raw, **changes): return prepare(raw, PARAMS | dict(on_duplicates='keep', min_history=0) | changes)


def toy(**changes): return prepare(make_toy(), PARAMS | changes)


@settings(max_examples=60, deadline=None)
@given(logs, splits, st.floats(0, .9), st.floats(0, .9), st.integers(0, 9))
def test_against_a_rule_applied_event_by_event(rows, split, share_items, share_users, seed):
    apart = dict(cold_items=share_items, cold_users=share_users, cold_seed=seed)
    try: warm = prepared(raw_of(rows), **split)
    except ValueError: return
    try: cold = prepared(raw_of(rows), **split, **apart)
    except ValueError as e:
        assert 'no training event is left; hold out less' in str(e)
        return
    assert cold.item_ids.tolist() == warm.item_ids.tolist() and cold.user_ids.tolist() == warm.user_ids.tolist()
    out_items = set(warm.item_ids[drawn(np.arange(len(warm.items)), share_items, np.random.default_rng([seed, 0]))])
    tested = np.flatnonzero([(warm.events[warm.events.user == u].split == 'test').any() for u in warm.user_ids])
    out_users = set(warm.user_ids[drawn(tested, share_users, np.random.default_rng([seed, 1]))])
    expected = []
    for user, events in warm.events.groupby('user', sort=False):
        for n, (item, time, split) in enumerate(zip(events.item, events.time, events.split)):
            if item in out_items and (split == 'train' or (split == 'valid' and n < len(events) - 1)): continue
            expected.append((user, item, time, 'history' if split == 'train' and user in out_users else split))
    assert list(cold.events[['user', 'item', 'time', 'split']].itertuples(index=False, name=None)) == expected
    assert (cold.card['held_items'], cold.card['held_users']) == (len(out_items), len(out_users))
    assert cold.card['users_only_train'] == sum(not cold.events[cold.events.user == u].split.isin(['valid', 'test']).any() for u in cold.user_ids)


def test_nobody_learns_from_or_sees_a_held_out_item():
    cold = toy(cold_items=.2, cold_users=.1, cold_seed=3)
    held = set(cold.item_ids[drawn(np.arange(len(cold.items)), .2, np.random.default_rng([3, 0]))])
    assert not cold.train_items[np.isin(cold.item_ids, list(held))].any()
    user, item, split = cold.codes()
    learned = {cold.item_ids[i] for w in [training_windows(user, item, split)] for a, b in zip(w.start, w.stop) for i in w.items[a:b]}
    assert not learned & held
    for which in (1, 2):
        h = held_out(user, item, split, which)
        seen = {cold.item_ids[i] for a, b in zip(h.windows.start, h.windows.stop) for i in h.windows.items[a:b]}
        assert len(seen) > 100 and not seen & held
    assert len(held & set(cold.item_ids[held_out(user, item, split, 2).target])) > 10   # and yet they are asked for


def test_held_out_users_are_answered_from_their_history_and_never_trained_on():
    warm, cold = toy(), toy(cold_users=.2, cold_seed=1)
    users = set(cold.events[cold.events.split == 'history'].user)
    assert len(users) == 60 and not users & set(cold.events[cold.events.split == 'train'].user)
    user, item, split = cold.codes()
    windows = training_windows(user, item, split)
    assert not users & set(cold.user_ids[user[windows.start]])
    was, now = held_out(*warm.codes(), 2), held_out(user, item, split, 2)
    assert (was.target == now.target).all() and all((a == b).all() for a, b in zip(was.seen(0, len(was)), now.seen(0, len(now)))) and (was.windows.start == now.windows.start).all()
    strata = cold.user_strata.set_index('user')
    assert (strata.loc[sorted(users), 'train_count'] == 0).all() and (strata.loc[sorted(users), 'history'] == '0').all()
    assert cold.item_counts.sum() == (split == 0).sum() < warm.item_counts.sum()


def test_no_validation_event_under_leave_one_out_asks_for_a_held_out_item():
    warm, cold = toy(), toy(cold_items=.3)
    held = set(warm.item_ids[drawn(np.arange(len(warm.items)), .3, np.random.default_rng([0, 0]))])
    assert not held & set(cold.events[cold.events.split == 'valid'].item)
    asked = cold.events[(cold.events.split == 'test') & cold.events.item.isin(held)]
    assert len(asked) > 20 and cold.card['held_items'] == len(held)


def test_each_draw_has_its_own_seed():
    users = lambda data: set(data.events[data.events.split == 'history'].user)
    assert users(toy(cold_users=.1)) == users(toy(cold_users=.1, cold_items=.05)) != users(toy(cold_users=.1, cold_seed=1))
    a, b, c = (toy(cold_items=.1, cold_seed=s).events for s in (0, 0, 1))
    assert a.equals(b) and not a.equals(c)


def test_card_counts_both_and_is_read_back(tmp_path):
    raw, params = make_toy(), PARAMS | dict(cold_items=.1, cold_users=.1)
    data = prepare(raw, params)
    data.card = make_card(raw, data, params, {})
    back = Dataset.load(data.save(tmp_path))
    assert back.events.equals(data.events) and json.loads((tmp_path/'card.json').read_text()) == data.card
    card = data.card
    assert card['train'] + card['valid'] + card['test'] + card['history'] == card['events'] and card['cold_users'] == card['held_users'] == 30
    assert card['cold_test_events'] == data.events[data.events.split == 'test'].item.isin(data.item_ids[~data.train_items]).sum() > 0
    said = show(card)
    assert '20 items are kept out of training altogether' in said and '30 users are kept out' in said and 'visible history of held-out users' in said and 'events by cold_items=0.1' in said
    assert 'kept out' not in show(make_card(raw, prepare(raw, PARAMS), PARAMS, {}))


def test_nothing_left_to_learn_from_is_refused():
    with pytest.raises(ValueError, match='cold_items=0.0, cold_users=0.9: no training event is left'): prepared(raw_of([(0, i, i) for i in range(4)]), cold_users=.9)


def test_half_in_training_is_refused(tmp_path):
    cold = toy(cold_users=.1)
    at = cold.events.index[cold.events.split == 'history'][0]
    cold.events.loc[at, 'split'] = 'train'
    with pytest.raises(ValueError, match='1 users have train and history events'): cold.save(tmp_path)
