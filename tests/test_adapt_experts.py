"Hybrid experts against a loop, weights of layers against their definition, and what planted preferences for layers are worth."
import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from recx.adapt.adapters import MLPAdapter
from recx.adapt.experts import ALL_ADAPTERS, HybridAdapter, LayerAdapter, check_experts, make_adapters
from recx.recommend.fusion import make_table

PARAMS = dict(adapter='hea', adapter_hidden=12, experts=4, expert_top_k=0, gate_noise=0., shared_experts=2, own_experts=3, final_relu=False, user_gate=False)
LAYERS = dict(L1=slice(0, 8), L2=slice(8, 16), L3=slice(16, 24))


def rows(n=50, size=24, seed=0): return torch.randn(n, size, generator=torch.Generator().manual_seed(seed))/size**.5


def parcel(items=24, users=8): return SimpleNamespace(items=np.zeros((9, items)), users=np.zeros((4, users)), layers={k: slice(i*items//3, (i + 1)*items//3) for i, k in enumerate(LAYERS)}, user_layers={'': slice(0, users)})


def pair(out=10, **changes):
    torch.manual_seed(0)
    makers = make_adapters(PARAMS | changes, parcel())
    return makers['item'](24, out), makers['user'](8, out)


def mlp(experts, k, x):
    "Expert k on its own, one row after the other."
    made = []
    for row in x:
        y = torch.clamp(row @ experts.weight1[k] + experts.bias1[k], min=0) @ experts.weight2[k] + experts.bias2[k]
        made.append(torch.clamp(y, min=0) if experts.final_relu else y)
    return torch.stack(made)


@settings(max_examples=15, deadline=None)
@given(shared=st.integers(1, 3), own=st.integers(1, 3), final=st.booleans(), layers=st.integers(1, 3), seed=st.integers(0, 99))
def test_hybrid_experts_against_a_loop(shared, own, final, layers, seed):
    torch.manual_seed(seed)
    spans = {f'L{l}': slice(l*5, l*5 + 5) for l in range(layers)}
    lender = HybridAdapter({'': slice(0, 5)}, 4, 6, own, shared, final)
    adapter, x = HybridAdapter(spans, 4, 6, own, shared, final, lender), rows(7, 5*layers, seed)
    with torch.no_grad():
        nn.init.normal_(adapter.gate_bias)
        assert final or adapter.factor == pytest.approx(layers**-.5)
        total = torch.zeros(7, 4)
        for l in range(layers):
            one = x[:, l*5:l*5 + 5]*(5*layers)**.5
            logits = one @ adapter.gate[l] + adapter.gate_bias[l]
            for i in range(7):
                g = torch.exp(logits[i])/torch.exp(logits[i]).sum()
                for k in range(shared): total[i] += g[k]*mlp(lender.shared, k, one[i:i + 1])[0]
                for k in range(own): total[i] += g[shared + k]*mlp(adapter.own[l], k, one[i:i + 1])[0]
        torch.testing.assert_close(adapter(x), total*adapter.factor, atol=1e-5, rtol=1e-4)


class TestHybrid:
    def test_both_sides_train_the_same_shared_experts(self):
        item, user = pair()
        user(rows(size=8)).square().sum().backward()
        assert item.shared.weight1.grad.abs().sum() > 0 and item.own[0].weight1.grad is None

    def test_each_weight_is_stored_once_and_comes_back(self, tmp_path):
        both = nn.ModuleList(pair())
        save_file({k: v.contiguous() for k, v in both.state_dict().items()}, tmp_path/'m.safetensors')   # refuses tensors that share memory
        other = nn.ModuleList(pair())
        with torch.no_grad():
            for p in other.parameters(): p.add_(1)
        other.load_state_dict(load_file(tmp_path/'m.safetensors'))
        assert torch.equal(other[1](rows(size=8)), both[1](rows(size=8)))

    def test_a_copy_is_whole(self):
        both = nn.ModuleList(pair())
        twin = copy.deepcopy(both)
        assert twin[1].borrowed[0] is twin[0].shared and twin[1].borrowed[0] is not both[0].shared

    def test_final_relu_makes_outputs_positive(self):
        for side, x in zip(pair(final_relu=True), (rows(), rows(size=8))): assert (side(x) >= 0).all()
        assert (pair()[0](rows()) < 0).any()

    @pytest.mark.parametrize('final', [False, True])
    def test_starts_at_unit_norm(self, final):
        norms = []
        for seed in range(6):
            torch.manual_seed(seed)
            norms.append(HybridAdapter(LAYERS, 64, 32, 5, 2, final)(rows(500, seed=seed)).square().sum(1).mean().sqrt().item())
        assert .75 < np.mean(norms) < 1.3, norms

    def test_gates_sum_to_one_in_each_layer(self):
        gates = pair()[0].gates(rows())
        assert gates.shape == (50, 15)
        torch.testing.assert_close(gates.unflatten(1, (3, 5)).sum(2), torch.ones(50, 3))
        assert len(pair()[0].names) == 15 == len(set(pair()[0].names))

    def test_refuses(self):
        with pytest.raises(ValueError, match='different widths'): make_adapters(PARAMS, parcel(users=9))
        makers = make_adapters(PARAMS, parcel())
        makers['item'](24, 8)
        with pytest.raises(ValueError, match='8 coordinates for one side and 16'): makers['user'](8, 16)
        with pytest.raises(ValueError, match='NaN'): makers['user'](8, 8)(rows(size=8)*torch.nan)
        with pytest.raises(ValueError, match='takes'): pair()[0](rows(size=8))


class TestLayers:
    def test_against_its_definition(self):
        torch.manual_seed(0)
        adapter, x = LayerAdapter(LAYERS, 6, hidden=0), rows()
        alpha = ((x*24**.5) @ adapter.gate).softmax(1)
        by_hand = sum(alpha[:, [l]]*(x[:, s]*24**.5 @ e.weight) for l, (s, e) in enumerate(zip(LAYERS.values(), adapter.experts)))*3**.5
        torch.testing.assert_close(adapter(x), by_hand, atol=1e-5, rtol=1e-4)

    def test_user_gate_starts_as_none(self):
        plain, gated = (LayerAdapter(LAYERS, 6, user_gate=g) for g in (False, True))
        gated.load_state_dict(plain.state_dict() | dict(user_gate=gated.user_gate.data))
        torch.testing.assert_close(gated(rows()).unflatten(1, (3, 6)).sum(1), plain(rows()))

    def test_gradient_reaches_every_parameter(self):
        adapter = LayerAdapter(LAYERS, 6, user_gate=True)
        nn.init.normal_(adapter.user_gate)
        q = rows(50, 6)
        ((q[:, None]*adapter(rows()).unflatten(1, (3, 6))).sum(2)*adapter.user_gates(q)).sum(1).square().sum().backward()
        for name, p in adapter.named_parameters(): assert p.grad is not None and p.grad.abs().sum() > 0, name

    def test_one_layer_is_refused(self):
        given = parcel(); given.layers = {'': slice(0, 24)}
        with pytest.raises(ValueError, match='no layers to weigh'): make_adapters(PARAMS | dict(adapter='layer-moe'), given)['item'](24, 8)

    def test_users_never_weigh_their_own_layers(self):
        given = parcel(users=24); given.user_layers = LAYERS
        makers = make_adapters(PARAMS | dict(adapter='layer-moe', user_gate=True), given)
        assert makers['user'](24, 8).views == 1 and makers['item'](24, 8).views == 3


@pytest.mark.parametrize('name', ALL_ADAPTERS)
def test_every_adapter_starts_from_the_seed_and_meets_new_rows(name):
    def made(seed):
        torch.manual_seed(seed)
        return make_adapters(PARAMS | dict(adapter=name), parcel())['item'](24, 8).eval()
    assert torch.equal(made(3)(rows()), made(3)(rows())) and not torch.equal(made(3)(rows()), made(4)(rows()))
    assert made(0)(rows(0)).shape == (0, 8) and made(0).aux_loss() == 0
    with pytest.raises(ValueError, match='NaN'): made(0)(rows()*torch.nan)


@pytest.mark.parametrize('change, said', [(dict(adapter='heaa'), "did you mean 'hea'"), (dict(own_experts=0), 'own_experts=0'), (dict(shared_experts=0), 'shared_experts=0'), (dict(adapter_hidden=0), 'adapter_hidden=0'),
                                          (dict(user_gate=True), 'use adapter=layer-moe'), (dict(adapter='moe', expert_top_k=9), 'expert_top_k=9'), (dict(adapter='layer-moe', adapter_hidden=-1), 'adapter_hidden=-1')])
def test_parameters_that_cannot_be_used(change, said):
    with pytest.raises(ValueError, match=said): check_experts(PARAMS | change)


# ---- a preference for layers is planted: users in one case, items in the other

USERS, ITEMS, SIZE, WIDTH = 120, 200, 6, 8


def planted(by, seed=0):
    "Layers of items, and scores that come from one layer: the user's own, or the item's own (which its vectors tell)."
    rng = np.random.default_rng(seed)
    layers, taste = rng.normal(size=(3, ITEMS, WIDTH)), rng.normal(size=(USERS, SIZE))
    maps, kind = rng.normal(size=(3, WIDTH, SIZE))/WIDTH**.5, rng.integers(0, 3, USERS if by == 'user' else ITEMS)
    if by == 'item': layers[:, :, 0] = 3*(kind == np.arange(3)[:, None])
    scores = np.stack([taste @ (x @ m).T for x, m in zip(layers, maps)])
    chosen = scores[kind, np.arange(USERS)] if by == 'user' else scores[kind, :, np.arange(ITEMS)].T
    return np.concatenate(layers, 1).astype(np.float32), torch.from_numpy((chosen/chosen.std()).astype(np.float32)), torch.from_numpy(rng.random((USERS, ITEMS)) < .3 if by == 'user' else np.tile(np.arange(ITEMS) < 120, (USERS, 1)))


def unseen_r2(by, adapter, steps=400):
    "Users with a free vector each, items by the adapter; fitted on three tenths of the pairs, or on 120 of the items, judged on the others."
    vectors, scores, seen = planted(by)
    torch.manual_seed(1)
    table, users = make_table('replace', ITEMS, SIZE, vectors, adapter), nn.Parameter(torch.randn(USERS, SIZE))
    optimiser = torch.optim.Adam([users, *table.parameters()], .02)
    for _ in range(steps):
        made = table.match(users) @ table().T
        loss = (made - scores)[seen].square().mean()
        optimiser.zero_grad(); loss.backward(); optimiser.step()
    weights = sum(p.numel() for p in table.parameters())
    return 1 - ((made - scores)[~seen].square().mean()/scores[~seen].var()).item(), weights, table, users


@pytest.mark.parametrize('by', ['user', 'item'])
def test_weighing_layers_beats_concat_of_the_same_size(by):
    layers = {f'L{l + 1}': slice(l*WIDTH, (l + 1)*WIDTH) for l in range(3)}
    weighed, weights, table, users = unseen_r2(by, lambda i, o: LayerAdapter(layers, o, hidden=12, user_gate=by == 'user'))
    concat, same, *_ = unseen_r2(by, lambda i, o: MLPAdapter(i, o, hidden=20))
    assert .8 < weights/same < 1.2, (weights, same)
    assert weighed > concat + .1, (weighed, concat)
    rng = np.random.default_rng(0)
    rng.normal(size=(3, ITEMS, WIDTH)); rng.normal(size=(USERS, SIZE)); rng.normal(size=(3, WIDTH, SIZE))
    kind = rng.integers(0, 3, USERS if by == 'user' else ITEMS)
    gates = table.user_gates(table.match(users)) if by == 'user' else torch.from_numpy(table.gates()[1])
    assert (gates.argmax(1).numpy() == kind).mean() > .6   # and the gate says which layer it is
