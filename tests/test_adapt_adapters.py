"What every adapter must do, whatever it is made of; and the mixture against a loop over its experts."
import copy

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F
from recx.adapt.adapters import ADAPTERS, check_adapter, imbalance, make_adapter, mix

KINDS = dict(linear=dict(name='linear'), mlp=dict(name='mlp', hidden=24), dense=dict(name='moe', hidden=12, experts=4), top2=dict(name='moe', hidden=12, experts=8, top_k=2), top1=dict(name='moe', hidden=12, experts=4, top_k=1),
             noisy=dict(name='moe', hidden=12, experts=8, top_k=2, noise=1.), noisy_dense=dict(name='moe', hidden=12, experts=4, noise=1.), linear_experts=dict(name='moe', hidden=0, experts=4), two=dict(name='moe', hidden=8, experts=2), sixteen=dict(name='moe', hidden=8, experts=16, top_k=4))


def rows(n=300, size=20, seed=0): return torch.randn(n, size, generator=torch.Generator().manual_seed(seed))/size**.5


def make(kind, seed=0, in_size=20, out_size=10):
    torch.manual_seed(seed)
    return make_adapter(in_size=in_size, out_size=out_size, **KINDS[kind])


@pytest.mark.parametrize('kind', KINDS)
class TestAdapter:
    def test_shape_and_kind(self, kind):
        for n in (0, 1, 7): assert make(kind).eval()(rows(n)).shape == (n, 10)
        assert make(kind)(rows()).dtype == torch.float32

    def test_starts_at_unit_norm(self, kind):
        norms = [make(kind, seed, 64, 64).eval()(rows(500, 64)).square().sum(1).mean().sqrt().item() for seed in range(5)]
        assert .8 < sum(norms)/5 < 1.25, norms

    def test_gradient_reaches_every_parameter_and_the_input(self, kind):
        adapter, x = make(kind), rows().requires_grad_()
        adapter(x).square().sum().backward()
        for name, p in [*adapter.named_parameters(), ('input', x)]: assert p.grad is not None and p.grad.abs().sum() > 0, name

    def test_same_seed_same_numbers(self, kind):
        def trained(seed):
            adapter = make(kind, seed)
            optimiser = torch.optim.Adam(adapter.parameters(), lr=1e-2)
            for _ in range(3):
                optimiser.zero_grad()
                (adapter(rows())[:, 0].mean() + adapter.aux_loss()).backward()
                optimiser.step()
            return adapter.eval()(rows())
        assert torch.equal(trained(1), trained(1)) and not torch.equal(trained(1), trained(2))

    def test_evaluation_has_no_noise_and_owes_nothing(self, kind):
        adapter = make(kind)
        assert adapter.aux_loss() == 0
        adapter(rows())
        adapter.eval()
        assert torch.equal(adapter(rows()), adapter(rows())) and adapter.aux_loss() == 0

    def test_aux_loss_only_for_mixtures(self, kind):
        adapter = make(kind)
        adapter(rows())
        assert adapter.aux_loss().shape == ()
        assert (adapter.aux_loss() != 0) == (KINDS[kind]['name'] == 'moe')

    @pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
    def test_refuses_numbers_that_are_none(self, kind, bad):
        x = rows()
        x[7, 3] = bad
        with pytest.raises(ValueError, match='NaN or infinity'): make(kind)(x)

    def test_refuses_another_width(self, kind):
        for x in (rows(3, 21), rows(3)[0], rows(3)[None]):
            with pytest.raises(ValueError, match=r'\(items, 20\)'): make(kind)(x)

    def test_rows_do_not_see_each_other(self, kind):
        adapter = make(kind).eval()
        torch.testing.assert_close(adapter(rows())[[5, 3]], adapter(rows()[[5, 3]]), atol=1e-5, rtol=1e-4)

    def test_copy_and_state(self, kind):
        adapter = make(kind)
        adapter(rows())
        twin = copy.deepcopy(adapter)
        assert twin.aux_loss() == 0
        other = make(kind, seed=9)
        other.load_state_dict(adapter.state_dict())
        assert torch.equal(twin.eval()(rows()), other.eval()(rows()))

    def test_learns(self, kind):
        torch.manual_seed(0)
        target, adapter = rows() @ torch.randn(20, 10)*.3, make(kind)
        optimiser, losses = torch.optim.Adam(adapter.parameters(), lr=1e-2), []
        for _ in range(60):
            losses.append(F.mse_loss(adapter(rows()), target))
            optimiser.zero_grad()
            losses[-1].backward()
            optimiser.step()
        assert losses[-1] < .5*losses[0]


def by_loop(moe, x):
    "One expert after the other."
    x, out = x*moe.in_size**.5, 0
    gates = mix(x @ moe.gate, moe.top_k)
    for e in range(gates.shape[1]):
        hidden = x if moe.linear else F.gelu(x @ moe.weight1[e] + moe.bias1[e])
        out = out + gates[:, e:e + 1]*(hidden @ moe.weight2[e] + moe.bias2[e])
    return out


@pytest.mark.parametrize('experts', [2, 4, 8, 16])
@pytest.mark.parametrize('top_k', [0, 1, 2])
@pytest.mark.parametrize('hidden', [0, 6])
def test_stacked_experts_are_the_loop(experts, top_k, hidden):
    torch.manual_seed(experts)
    moe = make_adapter('moe', 20, 10, hidden=hidden, experts=experts, top_k=top_k).double()
    for p in moe.parameters(): p.data.normal_()
    x = rows().double()
    got, want = moe(x), by_loop(moe, x)
    torch.testing.assert_close(got, want)
    for a, b in zip(torch.autograd.grad(got.square().sum(), list(moe.parameters())), torch.autograd.grad(want.square().sum(), list(moe.parameters()))): torch.testing.assert_close(a, b)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 16).flatmap(lambda e: st.tuples(st.just(e), st.integers(0, e))), st.integers(1, 40), st.integers(0, 99), st.sampled_from([1e-6, 1., 100.]))
def test_gates_are_a_mixture(sizes, n, seed, spread):
    experts, k = sizes
    logits = torch.randn(n, experts, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)*spread
    gates = mix(logits, k)
    assert (gates >= 0).all() and ((gates > 0).sum(1) <= (k or experts)).all()
    if k == 1: torch.testing.assert_close(gates.sum(1), logits.softmax(1).max(1).values)
    else: torch.testing.assert_close(gates.sum(1), torch.ones(n, dtype=torch.float64))
    assert (gates.argmax(1) == logits.argmax(1)).all()
    assert -1 <= imbalance(logits, gates if k else None) <= experts - 1 + 1e-9


def test_ties_keep_k_experts():
    assert (mix(torch.zeros(5, 8), 3) > 0).sum(1).tolist() == [3]*5


def test_dense_imbalance_is_the_importance_loss():
    logits = torch.randn(50, 6, dtype=torch.float64)
    importance = logits.softmax(1).sum(0)
    torch.testing.assert_close(imbalance(logits), importance.var(unbiased=False)/importance.mean()**2)  # squared coefficient of variation


def test_switch_imbalance_by_hand():
    logits = torch.log(torch.tensor([[.7, .3], [.6, .4], [.2, .8], [.9, .1]]))
    # three of four items go to the first expert, whose mean probability is .6: 2 (.75·.6 + .25·.4) − 1
    assert imbalance(logits, mix(logits, 1)).item() == pytest.approx(.1, abs=1e-6)


def test_gates_are_what_evaluation_uses():
    moe = make('noisy').train()
    assert torch.equal(moe.gates(rows()), moe.gates(rows()))
    assert ((moe.gates(rows()) > 0).sum(1) == 2).all()
    with pytest.raises(ValueError, match='NaN'): moe.gates(rows()*float('nan'))


def test_noise_changes_training_only():
    moe = make('noisy')
    assert not torch.equal(moe(rows()), moe(rows()))
    assert not hasattr(make('dense'), 'gate_noise')


def test_top_k_of_all_experts_is_dense():
    torch.manual_seed(0); full = make_adapter('moe', 20, 10, experts=4, top_k=4)
    torch.manual_seed(0); dense = make_adapter('moe', 20, 10, experts=4)
    assert torch.equal(full(rows()), dense(rows())) and torch.equal(full.aux_loss(), dense.aux_loss())


@pytest.mark.parametrize('change,match', [
    (dict(adapter='hea'), 'adapter='), (dict(adapter='mlp', adapter_hidden=0), 'adapter_hidden=0'), (dict(adapter_hidden=-1), 'adapter_hidden=-1'), (dict(experts=1), 'experts=1.*2, 4, 8 or 16'), (dict(experts=3000), 'experts=3000'),
    (dict(expert_top_k=9), r'expert_top_k=9: must be between 0 and 8'), (dict(expert_top_k=-1), 'expert_top_k=-1'), (dict(gate_noise=-.1), 'gate_noise'), (dict(gate_noise=float('nan')), 'gate_noise')])
def test_check_names_the_parameter(change, match):
    fine = dict(adapter='moe', adapter_hidden=8, experts=8, expert_top_k=2, gate_noise=1.)
    check_adapter(**fine)
    with pytest.raises(ValueError, match=match): check_adapter(**fine | change)


@pytest.mark.parametrize('sizes', [(0, 4), (4, 0), (-1, 4)])
def test_sizes(sizes):
    for name in ADAPTERS:
        with pytest.raises(ValueError, match='size='): make_adapter(name, *sizes)


@pytest.mark.parametrize('name, hidden, linear', [('linear', 24, True), ('mlp', 24, False), ('mlp', 1, False), ('moe', 0, False)])
def test_only_the_linear_adapter_is_a_linear_map(name, hidden, linear):
    "An affine map of a sum is the sum of the maps, but for the map of nothing."
    torch.manual_seed(0)
    adapter, a, b = make_adapter(name, 20, 10, hidden=hidden).eval(), rows(seed=1), rows(seed=2)
    with torch.no_grad(): bend = adapter(a + b) - adapter(a) - adapter(b) + adapter(torch.zeros_like(a))
    assert (bend.abs().max() < 1e-5) == linear and (linear or bend.square().sum(1).mean() > .01)


def test_no_more_experts_than_the_vectors_have_coordinates():
    make_adapter('moe', 8, 32, experts=8)
    with pytest.raises(ValueError, match='experts=9: more than the 8 coordinates of the vectors.*use at most 8, or a larger reduce_size'): make_adapter('moe', 8, 32, experts=9)
    make_adapter('mlp', 8, 32, experts=9)   # which has none
