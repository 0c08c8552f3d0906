"Re-rankers against slow second implementations, and the behaviour that every backbone owes: learns, repeats itself, round-trips, bears a cold item, refuses NaN."
from types import SimpleNamespace
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from recx.data import stage as data_stage
from recx.data.dataset import Dataset
from recx.data.parameters import declared
from recx.data.prepare import prepare
from recx.data.toy import make_toy
from recx.recommend.batches import HeldOut, Windows, held_out
from recx.recommend.given import Given
from recx.recommend.lists import DLCM, LIST_BACKBONES, PRM
from recx.recommend.nextitem import NextItem
from recx.recommend.rerank import Rerank, held_back, lists_of, make_lists, new_ranks, new_scores, standardised
from recx.recommend.ranking import hr
from recx.recommend import stage
from recx.recommend.topk import TopK
from recx.recommend.train import train

DATA = declared(vars(data_stage)) | dict(cold_items=0., cold_users=0., cold_seed=0)
PARAMS = dict(backbone='prm', first_stage='mf', hold_back=2, list_length=10, list_size=5, fusion='replace', user_fusion='id', adapter='linear', adapter_hidden=8, adapter_gain=1., experts=2, expert_top_k=0, gate_noise=0., user_gate=False, final_relu=False,
              shared_experts=1, own_experts=2, embedding_size=16, null_size=8, blocks=1, heads=1, dropout=.1, max_length=50, scoring='dot', temperature=.1, graph_layers=2, edge_dropout=0., align_weight=.1, align_temperature=.2, align_mask=.1)
SETTINGS = dict(gate_balance=.01, learning_rate=.01, weight_decay=0., batch_size=64, batch_tokens=512, epochs=40, patience=8, validate_every=2, seed=0, loss='sampled-softmax', negatives=64, gbce_t=.75, l2=0.)
backbones = pytest.mark.parametrize('backbone', LIST_BACKBONES)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def planted(n_users=150, n_items=50, seed=0):
    "Users take, of the ten items that the first stage likes best, the one with the most of the first coordinate of the vectors."
    rng = np.random.default_rng(seed)
    texts, tastes, films = (rng.normal(size=(n, 8)).astype(np.float32) for n in (n_items, n_users, n_items))
    chosen = np.stack([rng.choice(n_items, 2, replace=False) for _ in range(n_users)])
    for _ in range(4):
        liked = tastes @ films.T
        np.put_along_axis(liked, chosen, -np.inf, 1)
        ten = np.argsort(-liked, axis=1)[:, :10]
        chosen = np.c_[chosen, ten[np.arange(n_users), texts[:, 0][ten].argmax(1)]]
    return planted_from(chosen, texts, tastes, films)


def planted_from(chosen, texts, tastes, films):
    name = lambda kind, codes: np.array([f'{kind}{c}' for c in np.ravel(codes)], dtype=object)
    users = name('u', range(len(chosen)))
    data = Dataset(pd.DataFrame(dict(item=name('i', range(len(films))))), pd.DataFrame(dict(user=users)),
                   pd.DataFrame(dict(user=np.repeat(users, 6), item=name('i', chosen), time=np.tile(np.arange(6), len(chosen)), value=1., split=np.tile(['train']*4 + ['valid', 'test'], len(chosen)))), dict(name='planted'))
    codes = data.codes()
    first = SimpleNamespace(params=dict(backbone='mf', hold_back=2, max_length=50), parts={part: held_out(*codes, which) for which, part in ((1, 'valid'), (2, 'test'))},
                            answer=lambda model, held: (torch.from_numpy(tastes)[torch.from_numpy(codes[0][held.row].astype(np.int64))], torch.from_numpy(films)))
    return data, Given(items=texts, users=tastes, layers={'': slice(0, 8)}, user_layers={'': slice(0, 8)}, models=dict(first=(first, None))), chosen


def fitted(data, parcel, seed=0, epochs=40, **changes):
    task = Rerank(data, PARAMS | changes)
    torch.manual_seed(seed)
    model = task.model(parcel)
    curve, _ = train(model, task, SETTINGS | dict(seed=seed, epochs=epochs))
    return task, model, curve


# Backbones -------------------------------------------------------------------------------------------------------------

def test_dlcm_against_a_loop_over_lists_and_places():
    torch.manual_seed(0)
    model, sizes = DLCM(6, 7), [7, 4, 1]
    nn.init.normal_(model.value)
    x, real = torch.randn(3, 7, 6), torch.arange(7) < torch.tensor(sizes)[:, None]
    cell = nn.GRUCell(6, 6)
    cell.load_state_dict({name: getattr(model.gru, f'{name}_l0') for name in ('weight_ih', 'weight_hh', 'bias_ih', 'bias_hh')})
    with torch.no_grad():
        made = model(x, real)
        for row, n in enumerate(sizes):
            state, outputs = torch.zeros(1, 6), {}
            for i in reversed(range(n)):
                state = cell(x[row, i][None], state)
                outputs[i] = state[0]
            for i in range(n):
                phi = 0.
                for k in range(model.hidden):
                    column = [torch.tanh(model.context.weight[a*model.hidden + k] @ state[0] + model.context.bias[a*model.hidden + k]) for a in range(6)]
                    phi += model.value[k]*sum(outputs[i][a]*column[a] for a in range(6))
                assert abs(made[row, i] - phi) < 1e-5


@pytest.mark.parametrize('heads', [1, 2])
def test_prm_against_torchs_encoder_layer(heads):
    torch.manual_seed(0)
    model, size = PRM(8, 6, blocks=1, heads=heads), 8
    nn.init.normal_(model.score.weight)
    slow = nn.TransformerEncoderLayer(size, heads, size, 0., 'relu', batch_first=True)
    block = model.blocks[0]
    slow.load_state_dict({'self_attn.in_proj_weight': block.qkv.weight, 'self_attn.in_proj_bias': block.qkv.bias, 'self_attn.out_proj.weight': block.mix.weight, 'self_attn.out_proj.bias': block.mix.bias,
                          'linear1.weight': block.inner.weight, 'linear1.bias': block.inner.bias, 'linear2.weight': block.outer.weight, 'linear2.bias': block.outer.bias,
                          'norm1.weight': block.norm1.weight, 'norm1.bias': block.norm1.bias, 'norm2.weight': block.norm2.weight, 'norm2.bias': block.norm2.bias})
    x, real = torch.randn(4, 6, size), torch.arange(6) < torch.tensor([[6], [4], [2], [1]])
    with torch.no_grad(): expected = model.score(slow.train()(x + model.place, src_key_padding_mask=~real))[..., 0]   # its way without short cuts
    assert torch.allclose(model(x, real)[real].detach(), expected[real], atol=1e-5)


@backbones
def test_untrained_it_leaves_every_list_as_it_is(backbone):
    model = LIST_BACKBONES[backbone](8, 5)
    assert float(model(torch.randn(3, 5, 8), torch.ones(3, 5, dtype=torch.bool)).detach().abs().max()) == 0
    loss = model(torch.randn(3, 5, 8), torch.ones(3, 5, dtype=torch.bool)).square().sum() + model(torch.randn(3, 5, 8), torch.ones(3, 5, dtype=torch.bool))[0, 0]
    loss.backward()
    last = model.value if backbone == 'dlcm' else model.score.weight
    assert float(last.grad.abs().sum()) > 0   # and it can leave that state


def after(seen, target):
    "Held-out events, each after the events that it is given."
    stop = np.cumsum([len(s) for s in seen])
    first = np.r_[0, stop[:-1]]
    return HeldOut(Windows(np.concatenate(seen).astype(np.int64), first, stop), np.arange(len(target)), target, first)


# Lists -----------------------------------------------------------------------------------------------------------------

@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(1, 12), st.integers(0, 99))
def test_lists_against_a_sort(length, events, seed):
    rng = np.random.default_rng(seed)
    queries, table = rng.normal(size=(events, 3)).astype(np.float32), rng.normal(size=(9, 3)).astype(np.float32)
    target = rng.integers(0, 9, events)
    seen = [np.setdiff1d(rng.choice(9, rng.integers(0, 9), replace=False), [t]) for t in target]
    held = after(seen, target)
    items, scores = lists_of(torch.from_numpy(queries), torch.from_numpy(table), held, length, block=5)
    for row, (query, out) in enumerate(zip(queries, seen)):
        order = [i for i in np.argsort(-(table @ query), kind='stable') if i not in out][:length]
        assert items[row, :len(order)].tolist() == order and (items[row, len(order):] == -1).all()
        assert np.allclose(scores[row, :len(order)], (table @ query)[order], atol=1e-5) and np.isneginf(scores[row, len(order):]).all()


def test_ranks_against_the_whole_order_written_out():
    rng = np.random.default_rng(0)
    queries, table, target, n = torch.randn(80, 4), torch.randn(30, 4), rng.integers(0, 30, 80), 8
    seen = [np.setdiff1d(rng.choice(30, 10, replace=False), [t]) for t in target]
    held = after(seen, target)
    lists = make_lists(lambda h: (queries, table), held, np.arange(80), n)
    fresh = rng.normal(size=(80, n)).astype(np.float32)
    ranks = new_ranks(fresh, lists)
    for e in range(80):
        first = [i for i in np.argsort(-(queries[e] @ table.T).numpy(), kind='stable') if i not in seen[e]]
        again = [first[i] for i in np.argsort(-fresh[e])] + first[n:]
        assert ranks[e] == again.index(target[e]) + 1
    assert (new_ranks(lists.score, lists) == lists.rank).all()   # by the old scores, everything stays where it was


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=8), st.sampled_from([.5, 1., 3.]), st.integers(-9, 9))
def test_standardised_does_not_know_the_scale(scores, factor, shift):
    row = np.r_[np.array(scores, float), -np.inf][None]
    x = standardised(row)[0]
    assert np.allclose(x, standardised(row*factor + shift)[0], atol=1e-4) and x[-1] == 0
    if len(set(scores)) > 1: assert np.isclose(x[:-1].mean(), 0, atol=1e-5) and np.isclose(x[:-1].std(), 1, atol=1e-4)
    else: assert not x.any()


# The task --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('backbone, fusion', [*(('prm', fusion) for fusion in Rerank.fusions), ('dlcm', 'id'), ('dlcm', 'replace')])
def test_learns_what_the_first_stage_misses(backbone, fusion):
    data, parcel, _ = planted()
    adapted = fusion in ('replace', 'nullspace')
    task, model, curve = fitted(data, parcel, backbone=backbone, fusion=fusion, **(dict(embedding_size=8, null_size=2) if fusion in ('init', 'nullspace') else {}))
    assert hr(task.ranks(model, 'test'), 1) > (.55 if adapted else .3) > .25 > hr(task.lists['test'].rank, 1)
    assert np.isfinite(curve.loss).all() and curve.valid.max() == pytest.approx(task.validate(model))


def test_same_seed_same_weights_and_another_seed_others():
    data, parcel, _ = planted()
    weights = [torch.cat([p.detach().flatten() for p in fitted(data, parcel, seed=s, epochs=4)[1].parameters()]) for s in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@backbones
def test_checkpoint_round_trip(backbone):
    data, parcel, _ = planted()
    task, model, _ = fitted(data, parcel, epochs=4, backbone=backbone, user_fusion='add')
    again = Rerank(data, PARAMS | dict(backbone=backbone, user_fusion='add'))
    noise = Given(np.random.default_rng(9).normal(size=parcel.items.shape).astype(np.float32), np.random.default_rng(8).normal(size=parcel.users.shape).astype(np.float32), parcel.layers, parcel.user_layers, parcel.models)
    other = again.model(noise)   # another start, and other vectors: all that is needed is in the state
    other.load_state_dict(model.state_dict())
    assert (again.ranks(other, 'test') == task.ranks(model, 'test')).all()


def test_vectors_of_users_are_read():
    data, parcel, _ = planted()
    task, model, _ = fitted(data, parcel, epochs=4, user_fusion='replace')
    before = new_scores(model, task.lists['test'])
    model.users.parts[0].vectors.zero_()
    assert np.abs(before - new_scores(model, task.lists['test'])).max() > 1e-3


def test_gates_of_both_sides():
    data, parcel, _ = planted()
    for adapter, columns in (('moe', ['expert_0', 'expert_1']), ('linear', None)):
        task = Rerank(data, PARAMS | dict(adapter=adapter, user_fusion='replace'))
        made = task.results(task.model(parcel))
        if columns is None: assert not {'gates', 'gates_user'} & set(made)
        else: assert list(made['gates']) == ['item', *columns] and list(made['gates_user']) == ['user', *columns] and (len(made['gates']), len(made['gates_user'])) == (50, 150)


def test_nan_vectors_are_refused():
    data, parcel, _ = planted()
    parcel.items[3] = np.nan
    with pytest.raises((ValueError, FloatingPointError)): fitted(data, parcel)


def test_weights_do_not_know_the_test_events():
    data, parcel, chosen = planted()
    texts, (first, _) = parcel.items, parcel.models['first']
    other = chosen.copy()
    other[:, 5] = np.random.default_rng(1).permutation(other[:, 5])
    queries, films = first.answer(None, SimpleNamespace(row=np.arange(0, 900, 6)))
    elsewhere, again, _ = planted_from(other, texts, queries.numpy(), films.numpy())
    a, b = fitted(data, parcel, epochs=8)[1], fitted(elsewhere, again, epochs=8)[1]
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))


@pytest.mark.parametrize('first_class, backbone', [(NextItem, 'sasrec'), (TopK, 'mf')])
def test_on_a_trained_first_stage(first_class, backbone):
    data = prepare(make_toy(), DATA | dict(cold_users=.1, cold_items=.05))
    params = PARAMS | dict(backbone=backbone, fusion='id', hold_back=2, list_size=10)
    task = first_class(data, params)
    torch.manual_seed(0)
    model = task.model(Given())
    train(model, task, SETTINGS | dict(epochs=4, patience=4, validate_every=1))
    first = task.results(model.eval())
    again = Rerank(data, PARAMS | dict(first_stage=backbone, fusion='id', list_size=10))
    second = again.model(Given(models=dict(first=(task, model))))
    made = again.results(second)
    pd.testing.assert_frame_equal(made['per_user'], first['per_user'])   # untrained: the same rows, the same ranks
    assert made['exposure'].equals(first['exposure'])
    train(second, again, SETTINGS | dict(epochs=3, validate_every=1))
    made = again.results(second)
    assert made['per_user'][['user', 'item', 'split']].equals(first['per_user'][['user', 'item', 'split']])
    outside = first['per_user']['rank'] > 10
    assert (made['per_user']['rank'][outside] == first['per_user']['rank'][outside]).all() and (made['per_user']['rank'][~outside] <= 10).all()
    assert made['lists'].part.tolist() == ['back', 'valid', 'test'] and made['exposure']['count'].sum() == first['exposure']['count'].sum()


def test_held_back_events_are_nobodys_training_events():
    data = prepare(make_toy(), DATA | dict(cold_users=.2))
    user, item, split = data.codes()
    for n in (1, 3):
        held = held_back(data, dict(hold_back=n), 50)
        windows = NextItem(data, PARAMS | dict(backbone='sasrec', fusion='id', hold_back=n)).windows
        taught = {i for a, b in zip(windows.start, windows.stop) for i in range(a, b)}
        assert len(held) and not taught & set(held.row) and (split[held.row] == 0).all() and (held.windows.stop == held.row).all()
        assert np.bincount(user[held.row]).max() == n   # and none of a user who is held out altogether: their past has another split


@pytest.mark.parametrize('change, said', [(dict(hold_back=0), 'use hold_back=1 or more for both'), (dict(list_size=20), 'list_size=20'), (dict(user_gate=True, adapter='layer-moe'), "backbone='prm' has no query"), (dict(fusion='cross-attention', adapter='hea'), "fusion='cross-attention'"), (dict(first_stage='sasrec'), 'trained with backbone=mf'),
                                          (dict(hold_back=1), 'trained with hold_back=2'), (dict(list_length=51), 'list_length=51: more than the 50 items'), (dict(heads=3), 'heads=3')])
def test_refusals(change, said):
    data, parcel, _ = planted()
    with pytest.raises(ValueError, match=said): Rerank(data, PARAMS | change).model(parcel)


def test_without_a_first_stage_or_one_that_ranks_nothing():
    data, parcel, _ = planted()
    with pytest.raises(ValueError, match="needs the input 'first'.*backbone=mf, hold_back=2"): Rerank(data, PARAMS).model(Given(items=parcel.items, layers=parcel.layers))
    first, _ = parcel.models['first']
    clicks = SimpleNamespace(params=first.params)
    with pytest.raises(ValueError, match='ranks no catalogue'): Rerank(data, PARAMS).model(Given(items=parcel.items, layers=parcel.layers, models=dict(first=(clicks, None))))


def test_lists_without_a_target_teach_nothing():
    data, parcel, chosen = planted()
    first, _ = parcel.models['first']
    worst = SimpleNamespace(params=first.params, parts=first.parts, answer=lambda model, held: (lambda q, t: (-q, t))(*first.answer(model, held)))   # the worst on top
    with pytest.raises(ValueError, match='none of the 300 lists of held-back events has its target in it'): Rerank(data, PARAMS).model(Given(items=parcel.items, layers=parcel.layers, models=dict(first=(worst, None))))


# The stage -------------------------------------------------------------------------------------------------------------

def test_through_the_stage_and_back(tmp_path):
    folder, params = data_stage.small(tmp_path/'data'), declared(vars(stage)) | dict(hold_back=2, epochs=3, embedding_size=16)
    def run(name, inputs, **changes):
        stage.check(params | changes)
        (tmp_path/name).mkdir()
        return stage.run(params | changes, dict(data=folder) | inputs, tmp_path/name)
    first = run('first', {})
    second = run('second', dict(first=first), backbone='dlcm', dropout=.1)
    a, b = (pd.read_parquet(f/'per_user.parquet') for f in (first, second))
    assert a[['user', 'item', 'split']].equals(b[['user', 'item', 'split']]) and (second/'lists.parquet').exists()
    data = Dataset.load(folder)
    task, model = stage.load_model(second, data, stage.rests_on(dict(first=first), data))
    assert (task.results(model)['per_user']['rank'].to_numpy() == b['rank'].to_numpy()).all()
    with pytest.raises(ValueError, match="needs the input 'first'"): run('third', {}, backbone='dlcm')
