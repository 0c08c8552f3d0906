"A mixture of two models ranks as their log-probabilities do, by a weight that test events have no part in."
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from recx.data.dataset import Dataset
from recx.recommend.batches import held_out
from recx.recommend.given import Given
from recx.recommend.late import GRID, Late, joined, weigh
from recx.recommend.ranking import ndcg, target_ranks
from recx.recommend.topk import kept
from recx.recommend.train import train

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
