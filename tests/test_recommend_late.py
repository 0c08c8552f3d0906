"A mixture of two models ranks as their log-probabilities do, by a weight that test events have no part in."
from types import SimpleNamespace
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from recx.data.dataset import Dataset
from recx.recommend.batches import held_out
from recx.recommend.given import Given
from recx.recommend.instances import auc
from recx.recommend.late import GRID, Late, LateClicks, joined, mixed_odds, weigh
from recx.recommend.ranking import ndcg, target_ranks
from recx.recommend.topk import kept
from recx.recommend.train import train
from recx.recommend.stage import load_model
from recx.run.engine import ensure
from recx.run.stages import chain
from recx.run.store import folder_of

USERS, ITEMS, SIZE = 60, 150, 12
USER = np.repeat(np.arange(USERS), 6)
ITEM = np.concatenate([np.random.default_rng(u).choice(ITEMS, 6, replace=False) for u in range(USERS)])
SPLIT = np.tile([0]*4 + [1, 2], USERS)
DATA = Dataset(pd.DataFrame(dict(item=[f'i{i}' for i in range(ITEMS)])), pd.DataFrame(dict(user=[f'u{u}' for u in range(USERS)])), pd.DataFrame(dict(user=[f'u{u}' for u in USER], item=[f'i{i}' for i in ITEM], split=np.array(['train', 'valid', 'test'])[SPLIT])), {})
SETTINGS = dict(learning_rate=.01, weight_decay=0., epochs=3, patience=1, validate_every=1, seed=0, list_size=5)


def drawn(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Half(nn.Module):
    "A stand-in for a trained model: it sees some coordinates of what is wanted."
    def __init__(self, columns, noise):
        super().__init__()
        self.table = nn.Parameter(drawn(ITEMS, SIZE)[:, columns])
        self.columns, self.noise = columns, noise


class HalfTask:
    def __init__(self, seed, skip=()):
        self.params = dict(seed=seed)
        self.parts = {name: kept(h, ~np.isin(USER[h.row], skip)) for which, name in ((1, 'valid'), (2, 'test')) for h in [held_out(USER, ITEM, SPLIT, which)]}

    def answer(self, model, held):
        whole = (drawn(ITEMS, SIZE) + 0)[torch.from_numpy(ITEM[held.row].astype(int))] + model.noise*drawn(len(USER), SIZE, seed=3)[held.row]
        return whole[:, model.columns], model.table


def pair(noise=(1.2, 1.2), skip=()):
    return Given(models=dict(first=(HalfTask(0), Half(slice(0, 6), noise[0])), second=(HalfTask(1, skip), Half(slice(6, 12), noise[1]))))


def mixed(noise=(1.2, 1.2), skip=()):
    task = Late(DATA, SETTINGS)
    model = task.model(pair(noise, skip))
    return task, model, *train(model, task, SETTINGS)


@settings(max_examples=20, deadline=None)
@given(weight=st.sampled_from(GRID), sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)), scale=st.floats(.1, 10), seed=st.integers(0, 99))
def test_joined_ranks_as_the_mixture_of_log_probabilities(weight, sizes, scale, seed):
    first, second = ((drawn(4, d, seed=seed + d).double()*scale, drawn(9, d, seed=seed + 7*d).double()) for d in sizes)
    naive = (1 - weight)*torch.log(torch.softmax(first[0] @ first[1].T, 1)) + weight*torch.log(torch.softmax(second[0] @ second[1].T, 1))
    queries, table = joined(first, second, weight)
    scores = queries @ table.T
    assert torch.allclose(scores - scores.mean(1, keepdim=True), naive - naive.mean(1, keepdim=True), atol=1e-8)


def test_the_mixture_is_at_least_as_good_on_validation_as_either():
    task, model, curve, stopped = mixed()
    alone = [ndcg(target_ranks(*answer, held), 10) for answer, held in zip(task.answers(model, 'valid'), task.parts['valid'])]
    assert stopped == 'nothing to train' and curve.valid[0] > max(alone) and 0 < model.weight < 1
    assert task.validate(model) == curve.valid[0]


@pytest.mark.parametrize('noise, low, high', [((.3, 8.), 0, .35), ((8., .3), .65, 1)])
def test_the_weight_goes_to_the_better_model(noise, low, high):
    assert low <= mixed(noise)[1].weight <= high


def test_test_events_have_no_part_in_the_weight():
    task, model, *_ = mixed()
    chosen, other = float(model.weight), Late(DATA, SETTINGS)
    swapped = other.model(pair())
    other.parts['test'] = [kept(h, np.arange(len(h)) < 3) for h in other.parts['test']]
    other.validate(swapped)
    assert float(swapped.weight) == chosen
    other.parts['valid'] = other.parts['test']
    other.validate(swapped)
    assert weigh(*other.answers(swapped, 'valid'), other.parts['valid'][0])['ndcg@10'].max() == pytest.approx(other.validate(swapped))


def test_results_are_the_ranks_of_the_mixture():
    task, model, curve, _ = mixed()
    results = task.results(model)
    test = results['per_user'].query("split == 'test'")
    direct = target_ranks(*joined(*task.answers(model, 'test'), float(model.weight)), task.parts['test'][0])
    np.testing.assert_array_equal(test['rank'], direct)
    assert results['exposure']['count'].sum() == USERS*SETTINGS['list_size'] and results['late']['ndcg@10'].max() == curve.valid[0]


def test_the_weight_comes_back_with_the_checkpoint():
    task, model, *_ = mixed()
    other = Late(DATA, SETTINGS)
    fresh = other.model(pair((5., 5.)))
    fresh.load_state_dict(model.state_dict())
    assert fresh.weight == model.weight and not any(p.requires_grad for p in fresh.parameters())


def test_events_that_one_model_cannot_rank_are_left_out_for_both():
    task, model, *_ = mixed(skip=(0, 7))
    users = set(task.results(model)['per_user'].user)
    assert len(users) == USERS - 2 and not users & {'u0', 'u7'}
    first, second = task.parts['test']
    assert (first.row == second.row).all() and (first.target == second.target).all()


@pytest.mark.parametrize('change, said', [(lambda m: m.pop('first'), "'first' is missing"), (lambda m: m.pop('second'), "'second' is missing"), (lambda m: m.update(second=m['first']), 'another seed'), (lambda m: m.update(second=(object(), None)), 'dot products')])
def test_refuses(change, said):
    given = pair()
    change(given.models)
    with pytest.raises(ValueError, match=said): Late(DATA, SETTINGS).model(given)


def test_the_control_through_the_stage(tmp_path):
    "Two models of ids, other seeds: trained, mixed, stored, and loaded with the same ranks."
    from recx.recommend import stage
    ids = [stage.small(tmp_path/f'id{seed}', epochs=1, seed=seed) for seed in (0, 1)]
    params, out = stage.declared(vars(stage)) | dict(fusion='late', late_of='id', epochs=1), tmp_path/'late'
    out.mkdir()
    stage.run(params, dict(data=tmp_path/'data', first=ids[0], second=ids[1]), out)
    data = Dataset.load(tmp_path/'data')
    task, model = stage.load_model(out, data, {name: stage.load_model(folder, data) for name, folder in zip(('first', 'second'), ids)})
    stored = pd.read_parquet(out/'per_user.parquet')
    np.testing.assert_array_equal(task.results(model)['per_user']['rank'], stored['rank'])
    valid = [pd.read_parquet(folder/'per_user.parquet').query("split == 'valid'")['rank'].to_numpy() for folder in (out, *ids)]
    assert ndcg(valid[0], 10) >= max(ndcg(v, 10) for v in valid[1:])


# ---- clicks

class TellerTask:
    "A stand-in for a click model: it knows the labels, behind noise of its own."
    def __init__(self, seed, noise, flip_test=False, label=None):
        rng = np.random.default_rng(7)
        asked = dict(user=np.arange(600) % 50, item=np.arange(600) % ITEMS, label=rng.integers(0, 2, 600) if label is None else label, split=np.repeat([0, 1, 2], 200))
        self.made, self.params = SimpleNamespace(**asked), dict(seed=seed, click_negatives=0)
        self.parts = {name: np.flatnonzero(asked['split'] == code) for code, name in enumerate(('train', 'valid', 'test'))}
        logit = 2*asked['label'] - 1 + noise*np.random.default_rng([8, seed]).normal(size=600)
        self.said = 1/(1 + np.exp(-np.where(flip_test & (asked['split'] == 2), -logit, logit)))

    def scores(self, model, name): return self.said[self.parts[name]]


def told(noise=(1.2, 1.2), **more):
    task = LateClicks(DATA, SETTINGS)
    model = task.model(Given(models={name: (TellerTask(k, noise[k], **more), nn.Linear(1, 1)) for k, name in enumerate(('first', 'second'))}))
    return task, model, *train(model, task, SETTINGS)


@settings(max_examples=40, deadline=None)
@given(weight=st.sampled_from(GRID), one=st.floats(1e-6, 1 - 1e-6), other=st.floats(1e-6, 1 - 1e-6))
def test_mixed_odds_are_the_mixture_of_both_log_probabilities(weight, one, other):
    yes, no = ((1 - weight)*np.log(p) + weight*np.log(q) for p, q in ((one, other), (1 - one, 1 - other)))
    assert np.isclose(mixed_odds(one, other, weight), np.exp(yes)/(np.exp(yes) + np.exp(no)), atol=1e-9)


def test_mixed_clicks_are_at_least_as_good_on_validation_as_either():
    task, model, curve, stopped = told()
    label = task.made.label[task.tasks[0].parts['valid']]
    assert stopped == 'nothing to train' and curve.valid[0] > max(auc(label, s) for s in task.answers(model, 'valid')) and 0 < model.weight < 1
    found = task.results(model)
    valid = found['per_user'].query("split == 'valid'")
    assert np.isclose(auc(valid.label.to_numpy(), valid.probability.to_numpy()), curve.valid[0]) and len(found['per_user']) == 400 and found['late'].auc.max() == curve.valid[0]


@pytest.mark.parametrize('noise, low, high', [((.3, 8.), 0, .35), ((8., .3), .65, 1)])
def test_the_weight_of_clicks_goes_to_the_better_model(noise, low, high): assert low <= told(noise)[1].weight <= high


def test_test_labels_have_no_part_in_the_weight_of_clicks(): assert float(told()[1].weight) == float(told(flip_test=True)[1].weight)


def test_click_models_that_were_asked_other_questions_are_not_mixed():
    models = dict(first=(TellerTask(0, 1.), nn.Linear(1, 1)), second=(TellerTask(1, 1., label=np.r_[np.ones(300, int), np.zeros(300, int)]), nn.Linear(1, 1)))
    with pytest.raises(ValueError, match='different instances'): LateClicks(DATA, SETTINGS).model(Given(models=models))
    with pytest.raises(ValueError, match='tells no probabilities'): LateClicks(DATA, SETTINGS).model(pair())


@pytest.mark.parametrize('change', [dict(late_of='id'), dict(late_of='add'), dict(late_of='add', placebo='shuffled'), dict(late_of='id', user_fusion='replace', describe_users='template'), dict(late_of='id', dataset='sim-fashion', sim_users=60, sim_items=150, sim_events=900, on_duplicates='units', positive_above=0., click_negatives=1)], ids=lambda change: ' '.join(map(str, change.values())))
def test_click_models_are_mixed_from_end_to_end(change, store):
    node = chain(dict(dataset='toy', backbone='fm', fusion='late', positive_above=3., epochs=1, embedding_size=8, reduce='pca', reduce_size=8) | change)
    folder = ensure(node, 'inline')
    said = pd.read_parquet(folder/'per_user.parquet')
    alone = [pd.read_parquet(folder_of(node.inputs[name])/'per_user.parquet') for name in ('first', 'second')]
    late = pd.read_parquet(folder/'late.parquet')
    weight = late.weight[late.auc.idxmax()]
    np.testing.assert_allclose(said.probability, mixed_odds(*(a.probability.to_numpy() for a in alone), weight), atol=1e-6)
    valid = said.split == 'valid'
    assert auc(said.label[valid].to_numpy(), said.probability[valid].to_numpy()) >= max(auc(a.label[valid].to_numpy(), a.probability[valid].to_numpy()) for a in alone) - 1e-9
    data = Dataset.load(folder_of(node.inputs['data']))
    task, model = load_model(folder, data, {name: load_model(folder_of(node.inputs[name]), data) for name in ('first', 'second')})
    np.testing.assert_allclose(task.results(model)['per_user'].probability, said.probability, atol=1e-6)
