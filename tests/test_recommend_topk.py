"Collaborative models: negatives, what is learned, who is ranked, what fuses, and that a graph holds training events only."
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from recx.adapt.experts import ALL_ADAPTERS
from recx.data.dataset import Dataset
from recx.data.parameters import declared
from recx.recommend import stage
from recx.recommend.batches import held_out
from recx.recommend.given import Given
from recx.recommend.losses import LOSSES
from recx.recommend.mf import everybody
from recx.recommend.ranking import hr, ndcg
from recx.recommend.topk import Pairs, TopK, batch_loss, kept
from recx.recommend.train import train

PARAMS = declared(vars(stage)) | dict(backbone='mf', embedding_size=16, null_size=8, adapter_hidden=8, experts=2, list_size=5)
SETTINGS = dict(loss='sampled-softmax', negatives=16, gbce_t=.75, gate_balance=.01, l2=0., learning_rate=.01, weight_decay=0., batch_size=64, epochs=25, patience=25, validate_every=5, seed=0)
BACKBONES = ('mf', 'lightgcn')


def named(user, item, split, users=None, items=None):
    "A log of codes as a data set; more users and items than have events, where asked for."
    events = pd.DataFrame(dict(user=[f'u{u:03}' for u in user], item=[f'i{i:03}' for i in item], time=np.arange(len(user)), value=1., split=np.array(['train', 'valid', 'test'])[split]))
    return Dataset(pd.DataFrame(dict(item=[f'i{i:03}' for i in range(items or max(item) + 1)])), pd.DataFrame(dict(user=[f'u{u:03}' for u in range(users or max(user) + 1)])), events, dict(name='log'))


def halves(users=40, items=20, length=9):
    "Even users meet even items, odd users odd ones."
    rng = np.random.default_rng(0)
    item = np.concatenate([rng.permutation(items//2)[:length]*2 + u % 2 for u in range(users)])
    return np.repeat(np.arange(users), length), item, np.tile([0]*(length - 2) + [1, 2], users)


def vectors(n, size=12, seed=0): return np.random.default_rng(seed).normal(size=(n, size)).astype(np.float32)


def fresh(task, given=None, seed=0):
    torch.manual_seed(seed)
    return task.model(given or Given())


def steps(task, model, settings, n=3, seed=0):
    "A few steps of training."
    optimiser, rng = torch.optim.AdamW(model.parameters(), lr=.01), np.random.default_rng(seed)
    for _, (loss, _) in zip(range(n), task.losses(model, settings, rng)):
        optimiser.zero_grad(); loss.backward(); optimiser.step()
    return model, float(loss.detach())


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), min_size=1, max_size=40), st.integers(0, 2**31))
def test_no_negative_was_met(events, seed):
    user, item = map(np.array, zip(*events))
    pairs = Pairs(user, item)
    met, known = {u: set(item[user == u]) for u in range(6)}, set(item)
    for u, drawn in zip(pairs.user, pairs.unmet(pairs.user, 20, np.random.default_rng(seed))):
        assert set(drawn.tolist()) <= known
        assert len(met[u]) == len(known) or not met[u] & set(drawn.tolist())


def test_negatives_are_uniform_over_what_is_left():
    pairs = Pairs(np.array([0, 0, 0, *[1]*7]), np.array([0, 3, 9, 1, 2, 4, 5, 6, 7, 8]))
    counts = np.bincount(pairs.unmet(np.zeros(1, int), 70_000, np.random.default_rng(0))[0], minlength=10)
    assert (counts[[0, 3, 9]] == 0).all() and np.abs(counts[[1, 2, 4, 5, 6, 7, 8]]/10_000 - 1).max() < .05


@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize('backbone', BACKBONES)
def test_the_checkerboard_is_learned(backbone, loss):
    task = TopK(named(*halves()), PARAMS | dict(backbone=backbone))
    model = fresh(task)
    train(model, task, SETTINGS | dict(loss=loss, negatives=2 if loss in ('bpr', 'bce') else 16, epochs=100 if loss == 'gbce' else 25))   # gbce lingers where all scores are near 0
    ranks = task.results(model)['per_user']['rank'].to_numpy()
    assert hr(ranks, 3) > .95   # three items of the right colour at most are left


@pytest.mark.parametrize('backbone', BACKBONES)
def test_the_same_seed_gives_the_same_weights_and_another_one_does_not(backbone):
    task = TopK(named(*halves()), PARAMS | dict(backbone=backbone, edge_dropout=.2))
    a, b, c = (steps(task, fresh(task, seed=s), SETTINGS, seed=s)[0].state_dict() for s in (0, 0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(a['users.parts.0.weight'], c['users.parts.0.weight'])


@pytest.mark.parametrize('whole', [False, True])
def test_the_loss_of_a_batch_by_hand(whole):
    "BPR with L2, pair by pair (Rendle et al. 2009; He et al. 2020, eq. 15), on the rows at the start and after propagation."
    task = TopK(named(*halves()), PARAMS | dict(backbone='lightgcn' if whole else 'mf'))
    model, which, changed = fresh(task), np.arange(0, 200, 7), SETTINGS | dict(loss='bpr', negatives=3, l2=.1)
    loss, n = batch_loss(model, task.pairs, which, changed, np.random.default_rng(5))
    negative = task.pairs.unmet(task.pairs.user[which], 3, np.random.default_rng(5))
    start_u, start_i = (x.detach() for x in model.start(None, None))
    u, i = everybody(model)
    total = 0.
    for p, drawn in zip(which, negative):
        user, item = task.pairs.user[p], task.pairs.item[p]
        total += sum(-torch.log(torch.sigmoid(u[user] @ i[item] - u[user] @ i[j])) for j in drawn)/3
        total += .1/2*(start_u[user].square().sum() + start_i[item].square().sum() + sum(start_i[j].square().sum() for j in drawn))
    assert n == len(which) and torch.allclose(loss.detach(), total/len(which), atol=1e-5)


def test_rows_that_are_made_for_a_batch_are_those_of_the_whole():
    data, given = named(*halves()), Given(items=vectors(20), users=vectors(40), layers={'': slice(0, 12)}, user_layers={'': slice(0, 12)})
    task = TopK(data, PARAMS | dict(fusion='concat', user_fusion='add', adapter='mlp'))
    model, which = fresh(task, given), np.arange(9)
    loss, _ = batch_loss(model, task.pairs, which, SETTINGS | dict(loss='ce'), np.random.default_rng(0))
    users, items = everybody(model)
    slow = torch.nn.functional.cross_entropy(users[task.pairs.user[which]] @ items.T, torch.from_numpy(task.pairs.item[which]))
    assert abs(float(loss.detach()) - float(slow)) < .02


@pytest.mark.parametrize('backbone', BACKBONES)
@pytest.mark.parametrize('fusion', [f for f in TopK.fusions if f not in ('id', 'late')])
def test_every_way_in_for_both_sides(backbone, fusion):
    given = Given(items=vectors(20, 16), users=vectors(40, 16, 1), layers={'': slice(0, 16)}, user_layers={'': slice(0, 16)})
    params = PARAMS | dict(backbone=backbone, fusion=fusion, user_fusion=fusion)
    if fusion == 'align-gen' and backbone == 'mf':
        with pytest.raises(ValueError, match="or backbone=lightgcn"): TopK(named(*halves()), params)
        return
    task = TopK(named(*halves()), params)
    model, loss = steps(task, fresh(task, given), SETTINGS | {k: params[k] for k in ('align_weight',)}, n=20)
    assert np.isfinite(loss) and all(p.grad is not None for p in model.parameters())
    other = fresh(task, given, 1)
    other.load_state_dict(model.state_dict())
    assert torch.equal(task.answer(model, task.parts['test'])[0], task.answer(other, task.parts['test'])[0])


@pytest.mark.parametrize('adapter', ALL_ADAPTERS)
def test_every_adapter_and_its_gates(adapter):
    layers = dict(L1=slice(0, 6), L2=slice(6, 12))
    given = Given(items=vectors(20), users=vectors(40, 12, 1), layers=layers, user_layers=layers)
    task = TopK(named(*halves()), PARAMS | dict(fusion='replace', user_fusion='add', adapter=adapter))
    model, _ = steps(task, fresh(task, given), SETTINGS)
    found = task.results(model)
    assert ('gates' in found) == ('gates_user' in found) == (adapter in ('moe', 'hea', 'layer-moe'))
    if 'gates' in found:
        assert found['gates'].columns[0] == 'item' and found['gates_user'].columns[0] == 'user' and len(found['gates']) == 20 and len(found['gates_user']) == 40


def test_users_weigh_the_layers_of_items():
    given = Given(items=vectors(20), layers=dict(L1=slice(0, 6), L2=slice(6, 12)))
    task = TopK(named(*halves()), PARAMS | dict(fusion='replace', adapter='layer-moe', user_gate=True))
    model, _ = steps(task, fresh(task, given), SETTINGS, n=10)
    weights = task.results(model)['gates_user']
    assert list(weights.columns) == ['user', 'L1', 'L2'] and np.allclose(weights[['L1', 'L2']].sum(axis=1), 1, atol=1e-4)
    with pytest.raises(ValueError, match='user_gate=True'): TopK(task.dataset, task.params | dict(backbone='lightgcn'))


def test_an_alignment_adds_to_the_loss_and_asks_for_vectors():
    data, given = named(*halves()), Given(items=vectors(20), users=vectors(40), layers={'': slice(0, 12)}, user_layers={'': slice(0, 12)})
    losses = {}
    for weight in (0., 1.):
        task = TopK(data, PARAMS | dict(backbone='lightgcn', fusion='align-con', user_fusion='align-con', align_weight=weight))
        losses[weight] = float(batch_loss(fresh(task, given), task.pairs, np.arange(64), SETTINGS, np.random.default_rng(0))[0].detach())
    assert losses[1.] > losses[0.] + 1
    with pytest.raises(ValueError, match='needs a vector for each'): fresh(task)


def test_only_training_events_are_pairs_and_edges():
    user, item, split = halves()
    task = TopK(named(user, item, split), PARAMS | dict(backbone='lightgcn', hold_back=1))
    edges = set(map(tuple, fresh(task).graph.edges.T.tolist()))
    train = set(zip(user[split == 0].tolist(), item[split == 0].tolist()))
    last = {(u, item[(user == u) & (split == 0)][-1]) for u in range(40)}
    assert edges == train - last and len(task.pairs) == len(edges)


def test_users_without_training_events_are_left_out_and_counted():
    user, item, split = halves()
    user, item, split = (np.r_[a, b] for a, b in zip((user, item, split), ([40, 40], [3, 5], [1, 2])))
    task = TopK(named(user, item, split), PARAMS)
    per_user = task.results(fresh(task))['per_user']
    assert task.unknown == dict(valid=0, test=1)   # the first event of a user is nobody's to rank
    assert 'u040' not in set(per_user.user) and len(per_user) == 80


def test_a_cold_item_is_ranked_and_seen_items_are_no_candidates():
    "Item 20 occurs in the test part only; validation items are left out of the test ranking."
    user, item, split = halves()
    item = item.copy(); item[np.flatnonzero(split == 2)[0]] = 20
    task = TopK(named(user, item, split), PARAMS | dict(backbone='lightgcn'))
    out = task.results(fresh(task))['per_user']
    assert np.isfinite(out['rank']).all()
    held = task.parts['test']
    for i in range(len(held)):
        seen = set(held.seen(i, i + 1)[1].tolist())
        assert seen == set(item[(user == i) & (split < 2)].tolist())
        assert out[out.split == 'test']['rank'].iloc[i] <= 21 - len(seen)


def test_repeated_events_are_one_pair():
    data = named(np.array([0, 0, 0, 0, 0]), np.array([1, 1, 2, 3, 0]), np.array([0, 0, 0, 1, 2]), users=3, items=5)
    assert len(TopK(data, PARAMS).pairs) == 2


def test_kept_keeps_each_event_with_what_it_has_seen():
    held = held_out(*halves(), 2)
    keep = np.random.default_rng(0).random(len(held)) < .4
    some = kept(held, keep)
    assert (some.row == held.row[keep]).all() and (some.windows.lengths == held.windows.lengths[keep]).all()
    for i, j in enumerate(np.flatnonzero(keep)): assert (some.seen(i, i + 1)[1] == held.seen(j, j + 1)[1]).all()
    assert len(kept(held, np.zeros(len(held), bool))) == 0 and len(kept(held, np.zeros(len(held), bool)).seen(0, 0)[1]) == 0


def test_validation_uses_the_validation_part_only():
    user, item, split = halves()
    changed = item.copy(); changed[split == 2] = (item[split == 2] + 7) % 20
    one, other = (TopK(named(user, i, split, items=20), PARAMS) for i in (item, changed))
    assert one.validate(fresh(one)) == other.validate(fresh(other)) == ndcg(one.results(fresh(one))['per_user'].query("split == 'valid'")['rank'].to_numpy(), 10)


def test_vectors_with_nan_are_refused():
    broken = vectors(20); broken[3, 2] = np.nan
    task = TopK(named(*halves()), PARAMS | dict(fusion='replace'))
    with pytest.raises(ValueError, match='NaN'): fresh(task, Given(items=broken, layers={'': slice(0, 12)}))


def test_lightgcn_beats_what_needs_no_training_on_movielens(real_data, tmp_path, monkeypatch):
    "MovieLens-100K, leave-one-out, full ranking: NDCG@10 on validation and test, against popularity and item-kNN."
    from recx.data import stage as data_stage
    from recx.recommend.simple import Simple
    monkeypatch.setenv('RECX_DATA', str(real_data))
    data = Dataset.load(data_stage.small(tmp_path/'data', dataset='ml-100k'))
    score = lambda task, model: task.results(model)['per_user'].groupby('split')['rank'].agg(lambda ranks: ndcg(ranks.to_numpy(), 10))
    task = TopK(data, PARAMS | dict(backbone='lightgcn', embedding_size=64, scoring='cosine', temperature=.15))
    model = fresh(task)
    train(model, task, SETTINGS | dict(negatives=256, learning_rate=.005, batch_size=2048, epochs=16, validate_every=4))
    for name in ('popularity', 'item-knn'):
        simple = Simple(data, PARAMS | dict(backbone=name))
        assert (score(task, model) > score(simple, simple.model(Given()))).all()
