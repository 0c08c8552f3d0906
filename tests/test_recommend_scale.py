"What long logs and long tables need: steps row by row that are those of the whole table, no copies of the log, and the best of many without a sort."
import tracemalloc
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from recx.data.dataset import Dataset
from recx.data.parameters import declared
from recx.recommend import rows, stage
from recx.recommend.batches import held_out, training_windows
from recx.recommend.fusion import Ids
from recx.recommend.given import Given
from recx.recommend.ranking import TILE, best_of, places
from recx.recommend.rows import Optimisers, RowAdam, long_tables
from recx.recommend.topk import Pairs
from recx.recommend.train import train

PARAMS = declared(vars(stage)) | dict(embedding_size=8, epochs=4, patience=4, batch_size=64, batch_tokens=128, negatives=16, max_length=6, dropout=.1, learning_rate=.01, train_threads=1)


def log(users=120, items=80, each=9, seed=0):
    rng = np.random.default_rng(seed)
    user, item = np.repeat(np.arange(users), each), np.concatenate([rng.choice(items//2, each, replace=False) + items//2*(u % 2) for u in range(users)])
    events = pd.DataFrame(dict(user=[f'u{u:03}' for u in user], item=[f'i{i:03}' for i in item], time=np.tile(np.arange(each), users), value=np.where(item % 3, 1., 0.), split=np.tile(['train']*(each - 2) + ['valid', 'test'], users)))
    return Dataset(pd.DataFrame(dict(item=[f'i{i:03}' for i in range(items)])), pd.DataFrame(dict(user=[f'u{u:03}' for u in range(users)])), events, dict(name='log', has_values=True))


@pytest.fixture
def row_by_row(monkeypatch):
    monkeypatch.setattr(rows, 'MANY_ROWS', 1)


# The optimiser -----------------------------------------------------------------------------------------------------------

def trained(backbone, **changes):
    params = PARAMS | dict(backbone=backbone, positive_above=.5, click_fields='', deep='8') | changes
    task = stage.TASKS[backbone](log(), params)
    torch.manual_seed(0)
    model = task.model(Given())
    return model, *train(model, task, params)


@pytest.mark.parametrize('backbone, changes', [('mf', {}), ('mf', dict(weight_decay=.1)), ('mf', dict(loss='bpr', negatives=2, l2=.01)), ('mf', dict(loss='ce')), ('sasrec', {}), ('bert4rec', {}), ('deepfm', {})])
def test_training_row_by_row_is_training_as_usual(backbone, changes, monkeypatch):
    usual, curve, _ = trained(backbone, **changes)
    monkeypatch.setattr(rows, 'MANY_ROWS', 1)
    assert len(long_tables(usual)) > 0
    lazy, again, _ = trained(backbone, **changes)
    assert np.allclose(curve.loss, again.loss, rtol=1e-4) and np.allclose(curve.valid, again.valid, atol=.02)
    for a, b in zip(*([part.weight.detach() for part in model.modules() if isinstance(part, Ids)] for model in (usual, lazy))):
        assert (a - b).abs().max() < 1e-3 and (a - b).abs().mean() < 1e-4 < .01 < a.std()
    assert not any(module._forward_hooks for module in lazy.modules()) and all(p.requires_grad for p in lazy.parameters())


def test_a_graph_is_trained_as_a_whole(row_by_row):
    model, _, _ = trained('lightgcn', epochs=1)
    assert long_tables(model) == []


def test_taken_up_again_row_by_row(row_by_row, tmp_path):
    class Killed(Exception): pass
    params = PARAMS | dict(backbone='mf')
    def fresh(stop):
        task = stage.TASKS['mf'](log(), params)
        torch.manual_seed(0)
        model, epochs, losses = task.model(Given()), [], task.losses
        def counted(*given):
            epochs.append(1)
            if len(epochs) > stop: raise Killed
            yield from losses(*given)
        task.losses = counted
        return model, task
    whole, task = fresh(9)
    train(whole, task, params)
    model, task = fresh(2)
    with pytest.raises(Killed): train(model, task, params, tmp_path/'last.pt', every=1)
    model, task = fresh(9)
    train(model, task, params, tmp_path/'last.pt', every=1)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters()))


def test_rows_asked_for_twice_and_in_any_shape():
    def moved(optimiser_of):
        torch.manual_seed(0)
        ids = Ids(50, 4)
        optimiser, weight = optimiser_of(ids), torch.randn(4)
        for step in range(30):
            rng = np.random.default_rng(step)
            asked = [torch.from_numpy(rng.integers(0, 50, shape)) for shape in ((7,), (3, 2), (5,))]
            loss = sum((ids(codes) @ weight - 1).square().sum() for codes in asked[:2])
            with torch.no_grad(): ids(asked[2])   # a look without a gradient is no step
            ids(asked[2])                         # nor is one that nothing came of
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return ids, optimiser
    usual, _ = moved(lambda ids: torch.optim.AdamW(ids.parameters(), lr=.01, weight_decay=.01))
    lazy, optimiser = moved(lambda ids: RowAdam(ids, .01, .01))
    assert lazy.weight.grad is None
    optimiser.settle()
    assert torch.allclose(usual.weight, lazy.weight, atol=1e-5)


def test_a_row_that_is_never_asked_for_only_decays():
    ids = Ids(4, 3)
    start, optimiser = ids.weight.detach().clone(), Optimisers(ids, .1, .5)
    optimiser.parts = optimiser.tables = [RowAdam(ids, .1, .5)]
    for _ in range(700):
        ids(torch.tensor([0])).sum().backward()
        optimiser.step()
    optimiser.settle()
    assert torch.allclose(ids.weight[1:], start[1:]*(1 - .1*.5)**700, atol=1e-12) and not torch.equal(ids.weight[0], start[0])


# The log -----------------------------------------------------------------------------------------------------------------

def long_log(users=20_000, each=25):
    rng = np.random.default_rng(0)
    return np.repeat(np.arange(users, dtype=np.int32), each), rng.integers(0, 1000, users*each).astype(np.int32), np.tile(np.array([0]*(each - 2) + [1, 2], np.int8), users)


def peak_of(job):
    tracemalloc.start()
    made = job()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return made, peak


def test_held_out_events_hold_no_copy_of_the_log():
    user, item, split = long_log()
    held, peak = peak_of(lambda: held_out(user, item, split, 2))
    assert held.windows.items is item and len(held) == 20_000
    assert peak < 8*len(user)   # a list of all that was seen would be 480,000 pairs, and the keys to sort it by as many again
    windows, _ = peak_of(lambda: training_windows(user, item, split))
    assert windows.items is item and windows.pad(np.array([0]))[0].dtype == torch.int64


def test_pairs_against_sets_and_their_size():
    user, item, split = long_log(2000)
    train = split == 0
    pairs, peak = peak_of(lambda: Pairs(user[train], item[train]))
    assert set(zip(pairs.user.tolist(), pairs.item.tolist())) == set(zip(user[train].tolist(), item[train].tolist()))
    assert len(pairs) == len(set(zip(user[train].tolist(), item[train].tolist()))) and peak < 80*train.sum() and 'gaps' not in vars(pairs)
    met = {u: set() for u in range(2000)}
    for u, i in zip(pairs.user.tolist(), pairs.item.tolist()): met[u].add(i)
    drawn = pairs.unmet(pairs.user[:500], 8, np.random.default_rng(0))
    assert all(not set(row) & met[u] for u, row in zip(pairs.user[:500].tolist(), drawn.tolist()))


# Scores ------------------------------------------------------------------------------------------------------------------

@settings(max_examples=30, deadline=None)
@given(tiles=st.integers(0, 60), rest=st.integers(1, TILE - 1), k=st.integers(1, 12), seed=st.integers(0, 999), levels=st.sampled_from([5, 10**6]))
def test_the_best_of_many_against_a_sort(tiles, rest, k, seed, levels):
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.integers(0, levels, (3, tiles*TILE + rest)).astype(np.float32))
    scores[0, rng.random(scores.shape[1]) < .9] = float('-inf')
    k = min(k, scores.shape[1])
    values, items = best_of(scores, k)
    assert torch.equal(values, scores.topk(k, dim=1).values) and torch.equal(scores.gather(1, items), values)
    assert all(len(set(row)) == k for row in items.tolist())


def test_places_by_row_and_all_at_once():
    rng = np.random.default_rng(0)
    scores, number = torch.from_numpy(rng.integers(0, 9, (6, 40)).astype(np.float32)), np.array([0, 0, 1, 3, 5, 5, 5])
    own = torch.from_numpy(rng.integers(0, 9, 7).astype(np.float32))
    above, level = places(scores, number, own)
    rows_of = scores.numpy()[number]
    assert (above == (rows_of > own.numpy()[:, None]).sum(1)).all() and (level == (rows_of == own.numpy()[:, None]).sum(1)).all()
