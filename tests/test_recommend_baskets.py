"Held-out weeks: one history for a basket, what was seen masked or not, through every ranking task; and what has no time has no order."
import itertools
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from recx.data.dataset import Dataset
from recx.data.parameters import declared
from recx.recommend import stage
from recx.recommend.batches import held_out, protocol
from recx.recommend.clicks import Clicks
from recx.recommend.given import Given
from recx.recommend.late import Late
from recx.recommend.nextitem import NextItem
from recx.recommend.ranking import exposure, target_ranks
from recx.recommend.rerank import Rerank, lists_of
from recx.recommend.simple import Simple
from recx.recommend.topk import TopK

PARAMS = declared(vars(stage)) | dict(embedding_size=8, epochs=2, batch_size=64, batch_tokens=256, negatives=16, max_length=6, list_size=5, list_length=8, dropout=.1, click_fields='', seen_items='auto', train_threads=1)


def shop(users=40, items=30, seed=0, **card):
    "Customers with up to six purchases, then a validation and a test week; many buy again what they have."
    rng, rows = np.random.default_rng(seed), []
    for u in range(users):
        for split, most in ((0, 6), (1, 3), (2, 4)):
            rows += [(u, i, split) for i in rng.integers(0, items, rng.integers(1 if split == 0 else 0, most + 1))]
    user, item, split = np.array(rows).T
    events = pd.DataFrame(dict(user=[f'u{u:02}' for u in user], item=[f'i{i:02}' for i in item], time=np.arange(len(user)), value=np.where(item % 3, 1., 0.), split=np.array(['train', 'valid', 'test'])[split]))
    return Dataset(pd.DataFrame(dict(item=[f'i{i:02}' for i in range(items)])), pd.DataFrame(dict(user=[f'u{u:02}' for u in range(users)])), events, dict(name='shop', baskets=True, time_kind='seconds', has_values=True) | card)


def naive(user, item, split, which, max_length, baskets, seen):
    "Row → history, seen items: by looking at the user's events one after the other."
    out = {}
    for row in np.flatnonzero(split == which):
        own = np.flatnonzero(user == user[row])
        before = [i for i in own if i < row and not (baskets and split[i] == which)]
        if before: out[int(row)] = item[before[-max_length:]].tolist(), set(item[before].tolist()) - {int(item[row])} if seen else set()
    return out


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), which=st.sampled_from([1, 2]), max_length=st.sampled_from([1, 3, 50]), baskets=st.booleans(), seen=st.booleans())
def test_histories_and_seen_items_against_a_loop(seed, which, max_length, baskets, seen):
    user, item, split = shop(8, 9, seed).codes()
    held, slow = held_out(user, item, split, which, max_length, baskets, seen), naive(user, item, split, which, max_length, baskets, seen)
    assert held.row.tolist() == list(slow)
    for i, (history, met) in enumerate(slow.values()):
        assert item[held.windows.start[i]:held.windows.stop[i]].tolist() == history
        assert set(held.seen(i, i + 1)[1].tolist()) == met
    event, seen_items = held.seen(0, len(held))
    assert all(set(seen_items[event == i].tolist()) == met for i, (_, met) in enumerate(slow.values()))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), block=st.sampled_from([1, 2, 7, 256]), baskets=st.booleans(), seen=st.booleans())
def test_ranks_lists_and_exposure_against_a_sort(seed, block, baskets, seen):
    user, item, split = shop(12, 9, seed).codes()
    held = held_out(user, item, split, 2, 50, baskets, seen)
    if not len(held): return
    rng = np.random.default_rng(seed)
    alike = rng.integers(-2, 3, (len(held), 3)).astype(np.float32)[held.history]   # one query for each history; small integers: exact, many ties
    queries, table = torch.from_numpy(alike), torch.from_numpy(rng.integers(-2, 3, (9, 3)).astype(np.float32))
    ranks, scores = target_ranks(queries, table, held, block), alike @ table.numpy().T
    lists = lists_of(queries, table, held, 9, block)[0]
    for i, (_, met) in enumerate(naive(user, item, split, 2, 50, baskets, seen).values()):
        own, others = scores[i, held.target[i]], [scores[i, j] for j in range(9) if j not in met and j != held.target[i]]
        assert ranks[i] == 1 + sum(s > own for s in others) + sum(s == own for s in others)/2
        assert set(lists[i][lists[i] >= 0].tolist()) == set(range(9)) - met
    if not seen: assert exposure(queries, table, held, 4).sum() == 4*len(np.unique(held.windows.stop))   # a list for each history


def answers(task, seed=0):
    "Per-user ranks of a task's untrained model."
    torch.manual_seed(seed)
    return task.results(task.model(Given()))['per_user']


RANKING = dict(sasrec=NextItem, gru4rec=NextItem, bert4rec=NextItem, mf=TopK, lightgcn=TopK, popularity=Simple, **{'item-knn': Simple, 'last-item': Simple})


@pytest.mark.parametrize('backbone', RANKING)
def test_every_ranking_task_follows_the_card(backbone):
    data, kind = shop(), RANKING[backbone]
    user, item, split = data.codes()
    for card, seen_items, rule in ((dict(), 'auto', (True, False)), (dict(), 'masked', (True, True)), (dict(baskets=False), 'auto', (False, True)), (dict(baskets=False), 'candidates', (False, False)), (dict(), 'candidates', (True, False))):
        task = kind(Dataset(data.items, data.users, data.events, data.card | card), PARAMS | dict(backbone=backbone, seen_items=seen_items))
        for which, name in ((1, 'valid'), (2, 'test')):
            part = task.parts[name]
            slow = naive(user, item, split, which, task.parts[name].windows.lengths.max(), *rule)
            assert set(part.row.tolist()) <= set(slow) and len(part) > 10
            for i, row in enumerate(part.row.tolist()): assert (item[part.windows.start[i]:part.windows.stop[i]].tolist(), set(part.seen(i, i + 1)[1].tolist())) == slow[row]
    per_user = {rule: answers(kind(data, PARAMS | dict(backbone=backbone, seen_items=rule))) for rule in ('candidates', 'masked', 'auto')}
    assert (per_user['candidates']['rank'] == per_user['auto']['rank']).all()
    assert (per_user['candidates']['rank'] >= per_user['masked']['rank']).all() and (per_user['candidates']['rank'] > per_user['masked']['rank']).any()


def test_late_fusion_and_reranking_follow_too():
    data = shop()
    for seen_items in ('masked', 'candidates'):
        params = PARAMS | dict(seen_items=seen_items)
        models = {}
        for seed, name in enumerate(('first', 'second')):
            torch.manual_seed(seed)
            task = TopK(data, params | dict(backbone='mf', seed=seed, hold_back=1))
            models[name] = task, task.model(Given())
        late = Late(data, params | dict(fusion='late'))
        mixed = late.model(Given(models=models))
        late.validate(mixed)
        per_user = late.results(mixed)['per_user']
        assert len(per_user) == sum(len(task.parts[part]) for part in ('valid', 'test'))
        rerank = Rerank(data, params | dict(backbone='prm', first_stage='mf', hold_back=1))
        model = rerank.model(Given(models=models))
        back = rerank.held['back']
        assert len(back) and (np.diff(back.first < back.windows.stop, prepend=seen_items == 'masked') == 0).all()
        assert (rerank.ranks(model, 'test') == rerank.lists['test'].rank).all()   # untrained, it repeats the first stage
        lists = rerank.lists['test']
        seen = rerank.held['test'].seen(0, len(lists))
        assert bool(len(seen[0])) == (seen_items == 'masked') and not set(zip(*seen)) & {(e, i) for e, row in enumerate(lists.items) for i in row.tolist()}
    other = Rerank(data, PARAMS | dict(seen_items='masked', backbone='prm', first_stage='mf', hold_back=1))
    with pytest.raises(ValueError, match='seen_items=candidates; give a recommend artefact .*seen_items=masked'): other.model(Given(models=models))


@pytest.mark.parametrize('backbone', ['sasrec', 'gru4rec', 'bert4rec', 'last-item', 'din', 'dien', 'prm'])
def test_what_reads_order_refuses_a_log_without_time(backbone):
    data, kind = shop(time_kind='none', baskets=False), stage.TASKS[backbone]
    with pytest.raises(ValueError, match='shop has no event times.*use mf, lightgcn'): kind(data, PARAMS | dict(backbone=backbone, hold_back=1, positive_above=.5))


@pytest.mark.parametrize('backbone', ['mf', 'lightgcn', 'popularity', 'item-knn'])
def test_a_log_without_time_is_ranked_from_the_training_part(backbone):
    data = shop(time_kind='none', baskets=False)
    user, item, split = data.codes()
    assert protocol(data.card, PARAMS) == dict(baskets=True, seen=True)   # no event of a part is before another one
    part = RANKING[backbone](data, PARAMS | dict(backbone=backbone)).parts['valid']
    for i in range(len(part)): assert set(part.seen(i, i + 1)[1].tolist()) == set(item[(user == user[part.row[i]]) & (split == 0)].tolist()) - {int(part.target[i])}


def test_a_click_model_of_a_log_without_time_reads_no_history():
    data = shop(60, time_kind='none', baskets=False)
    data.events = data.events.drop_duplicates(['user', 'item'])   # a song is asked about once
    task = Clicks(data, PARAMS | dict(backbone='deepfm', deep='8', positive_above=.5))
    assert (task.made.history(np.arange(len(task.made)), 5) == -1).all()
    timed = Clicks(shop(60), PARAMS | dict(backbone='deepfm', deep='8', positive_above=.5))
    assert (timed.made.history(np.arange(len(timed.made)), 5) >= 0).any()
    place = data.events.split.map(dict(train=0, valid=1, test=2))
    shuffled = data.events.assign(place=place).sample(frac=1, random_state=0).sort_values(['user', 'place'], kind='stable').drop(columns='place')
    again = Clicks(Dataset(data.items, data.users, shuffled.assign(time=0), data.card), PARAMS | dict(backbone='deepfm', deep='8', positive_above=.5))
    key = lambda made: sorted(zip(made.user.tolist(), made.item.tolist(), made.label.tolist(), made.split.tolist()))
    assert key(again.made) == key(task.made)   # the order of the file says nothing
    assert list(itertools.islice(task.losses(task.model(Given()), PARAMS, np.random.default_rng(0)), 1))
