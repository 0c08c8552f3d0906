"The click networks against loops and closed forms, on random weights."
import itertools
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from recx.recommend.cross import CIN, DCN, DCNv2, MAPS, XDeepFM
from recx.recommend.factorise import Deep, DeepFM, FM, pair_products
from recx.recommend.fields import AutoInt, Bilinear, FiBiNET, FieldAttention, Squeeze
from recx.recommend.interest import AUGRU, DIEN, DIN, Relevance

FIELDS, SIZE = 5, 4


@pytest.fixture(autouse=True)
def same_start(): torch.manual_seed(0)


def block(n=3): return torch.randn(n, FIELDS, SIZE)


def shaken(model):
    "Random biases too, so that a forgotten one shows."
    with torch.no_grad():
        for p in model.parameters(): p.add_(torch.randn_like(p)*.3)
    return model


def close(a, b, atol=1e-4): assert torch.allclose(a, b, atol=atol, rtol=1e-4), (a, b)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 7), st.integers(1, 6), st.integers(0, 2**31))
def test_sum_of_pairs_is_the_fm_identity(fields, size, seed):
    x = torch.randn(4, fields, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    pairs = sum((x[:, i]*x[:, j] for i, j in itertools.combinations(range(fields), 2)), torch.zeros(4, size, dtype=torch.float64))
    assert torch.allclose(pair_products(x), pairs, atol=1e-10)


def test_fm_by_hand():
    model, x = shaken(FM(FIELDS, SIZE)), block()
    u = model.first.weight.view(FIELDS, SIZE)
    for n in range(len(x)):
        by_hand = model.first.bias[0] + sum(u[f] @ x[n, f] for f in range(FIELDS)) + sum(x[n, i] @ x[n, j] for i, j in itertools.combinations(range(FIELDS), 2))
        close(model(x)[n], by_hand)


def test_deep_by_hand():
    model, x = shaken(Deep(6, (7, 3))), torch.randn(2, 6)
    h = torch.clamp(x @ model.layers[0].weight.T + model.layers[0].bias, min=0)
    h = torch.clamp(h @ model.layers[1].weight.T + model.layers[1].bias, min=0)
    close(model(x), (h @ model.out.weight.T + model.out.bias)[:, 0])
    deepfm, x = shaken(DeepFM(FIELDS, SIZE, (7,))), block()
    close(deepfm(x), FM.forward(deepfm, x) + deepfm.deep(x.flatten(1)))


def test_cross_by_hand():
    model, x = shaken(DCN(FIELDS, SIZE, (6,), layers=3)), block()
    rows = []
    for x0 in x.flatten(1):
        xl = x0
        for w, b in zip(model.cross.weight, model.cross.bias): xl = torch.outer(x0, xl) @ w + b + xl   # equation 3 as printed: x₀ x_lᵀ w
        rows.append(xl)
    close(model.cross(x.flatten(1)), torch.stack(rows))
    close(model(x), model.out(torch.stack(rows))[:, 0] + model.deep(x.flatten(1)))


def test_matrix_cross_by_hand():
    model, x = shaken(DCNv2(FIELDS, SIZE, (6,), layers=2)), block()
    for n, x0 in enumerate(x.flatten(1)):
        xl = x0
        for inner in model.cross.layers: xl = torch.stack([x0[d]*(inner.weight[d] @ xl + inner.bias[d]) + xl[d] for d in range(len(x0))])
        close(model.cross(x.flatten(1))[n], xl)


def test_a_matrix_of_equal_rows_crosses_like_a_vector():
    "DCNv2 with W = 1 wᵀ is DCN without its bias."
    vector, matrix, x = DCN(FIELDS, SIZE, layers=2), DCNv2(FIELDS, SIZE, layers=2), block().flatten(1)
    with torch.no_grad():
        vector.cross.bias.zero_()
        for w, inner in zip(vector.cross.weight, matrix.cross.layers): inner.weight.copy_(w.expand_as(inner.weight)); inner.bias.zero_()
    close(vector.cross(x), matrix.cross(x))


def test_cin_by_loop_over_two_layers():
    model, x = shaken(CIN(FIELDS, 2)), block(2)
    for n in range(2):
        before, sums = x[n], []
        for inner in model.layers:
            w = inner.weight.view(MAPS, len(before), FIELDS)
            now = torch.zeros(MAPS, SIZE)
            for h, i, j in itertools.product(range(MAPS), range(len(before)), range(FIELDS)): now[h] += w[h, i, j].detach()*before[i].detach()*x[n, j]
            sums.append(now.sum(1)); before = now
        close(model(x)[n].detach(), torch.cat(sums), atol=1e-3)


def test_xdeepfm_is_the_sum_of_its_parts():
    model, x = shaken(XDeepFM(FIELDS, SIZE, (6,), layers=2)), block()
    close(model(x), (model.first(x.flatten(1)) + model.out(model.cin(x)))[:, 0] + model.deep(x.flatten(1)))


@pytest.mark.parametrize('heads', [1, 2, 4])
def test_attention_between_fields_by_loop(heads):
    model, x, d = shaken(FieldAttention(SIZE, heads)), block(2), SIZE//heads
    for n, m in itertools.product(range(2), range(FIELDS)):
        parts = []
        for h in range(heads):
            span = slice(h*d, (h + 1)*d)
            q, k, v = (part.weight[span] for part in (model.query, model.key, model.value))
            scores = torch.stack([(q @ x[n, m]) @ (k @ x[n, o]) for o in range(FIELDS)])
            weight = torch.exp(scores)/torch.exp(scores).sum()
            parts.append(sum(weight[o]*(v @ x[n, o]) for o in range(FIELDS)))
        close(model(x)[n, m], torch.relu(torch.cat(parts) + model.residual.weight @ x[n, m]))


def test_autoint_stacks_its_layers():
    model, x = shaken(AutoInt(FIELDS, SIZE, (6,), layers=2, heads=2)), block()
    close(model(x), model.out(model.layers[1](model.layers[0](x)).flatten(1))[:, 0] + model.deep(x.flatten(1)))


def test_squeeze_and_bilinear_by_loop():
    squeeze, bilinear, x = shaken(Squeeze(FIELDS)), shaken(Bilinear(FIELDS, SIZE)), block(2)
    for n in range(2):
        z = torch.stack([x[n, f].mean() for f in range(FIELDS)])
        a = torch.relu(squeeze.up.weight @ torch.relu(squeeze.down.weight @ z))
        close(squeeze(x)[n], torch.stack([a[f]*x[n, f] for f in range(FIELDS)]))
        close(bilinear(x)[n], torch.stack([(x[n, i] @ bilinear.weight[i])*x[n, j] for i, j in itertools.combinations(range(FIELDS), 2)]))
    model = shaken(FiBiNET(FIELDS, SIZE, (6,)))
    products = torch.cat([model.plain(x), model.weighted(model.squeeze(x))], 1).flatten(1)
    close(model(x), model.first(x.flatten(1))[:, 0] + model.deep(products))


def liked(n=3, h=4, width=8):
    lengths = torch.tensor([4, 1, 0])[:n]
    return torch.randn(n, h, width), (torch.arange(h) < lengths[:, None]).float(), torch.randn(n, width), lengths


def test_din_by_hand():
    model, x, (history, mask, target, lengths) = shaken(DIN(FIELDS, SIZE, (6,), item_fields=2)), block(), liked()
    r = model.relevance
    for n in range(3):
        interest = torch.zeros(8)
        for j in range(lengths[n]):
            e, v = history[n, j], target[n]
            inner = r.liked.weight @ e + r.liked.bias + r.asked.weight @ v + r.both.weight @ (e*v)
            inner = torch.where(inner > 0, inner, r.bend.weight*inner)
            interest = interest + (r.out.weight[0] @ inner + r.out.bias[0])*e
        logit, extra = model(x, history, mask, target)
        close(logit[n], model.deep(torch.cat([x[n].flatten(), interest])[None])[0]); assert extra == 0


def test_the_difference_of_two_items_adds_nothing_to_the_attention():
    "A layer over (e, v, e − v, e∘v), as the authors wrote it, is one of the three maps with changed weights."
    model, (history, _, target, _) = shaken(Relevance(8)), liked()
    w = torch.randn(36, 32)
    with torch.no_grad(): model.liked.weight.copy_(w[:, :8] + w[:, 16:24]); model.asked.weight.copy_(w[:, 8:16] - w[:, 16:24]); model.both.weight.copy_(w[:, 24:])
    asked = target[:, None].expand_as(history)
    close(model(history, target), model.out(model.bend(torch.cat([history, asked, history - asked, history*asked], 2) @ w.T + model.liked.bias))[:, :, 0], atol=1e-3)


def test_augru_by_loop():
    model, (history, mask, _, _) = shaken(AUGRU(8)), liked()
    attention = torch.rand(3, 4)*mask
    for n in range(3):
        state = torch.zeros(8)
        for t in range(4):
            gu, gr, gn = (model.inputs.weight @ history[n, t] + model.inputs.bias).chunk(3)
            su, sr, sn = (model.states.weight @ state).chunk(3)
            u = torch.sigmoid(gu + su)*attention[n, t]
            state = (1 - u)*state + u*torch.tanh(gn + torch.sigmoid(gr + sr)*sn)
        close(model(history, attention)[n], state)


def test_dien_by_hand():
    model, x, (history, mask, target, lengths) = shaken(DIEN(FIELDS, SIZE, (6,), item_fields=2)), block(), liked()
    others = torch.randn_like(history)
    logit, extra = model(x, history, mask, target, others=others)
    loss, count = 0., 0
    for n in range(3):
        interest = torch.zeros(8)
        if lengths[n]:
            states = model.extract(history[n:n + 1, :lengths[n]])[0][0]
            a = torch.softmax(states @ model.match.weight.T @ target[n], 0)
            interest = model.evolve(history.new_tensor(states.detach().numpy())[None], a[None])[0]
            for t in range(lengths[n] - 1):
                told = lambda e: torch.sigmoid(states[t] @ e)
                loss, count = loss - torch.log(told(history[n, t + 1])) - torch.log(1 - told(others[n, t + 1])), count + 1
        close(logit[n], model.deep(torch.cat([x[n].flatten(), interest])[None])[0])
    close(extra, loss/count)


@pytest.mark.parametrize('kind', [DIN, DIEN])
def test_an_empty_history_is_no_history(kind):
    "No NaN, and no trace of what stands in the filling."
    model, x, (history, _, target, _) = shaken(kind(FIELDS, SIZE, (6,), item_fields=2)), block(), liked()
    nothing = torch.zeros(3, 4)
    logit, extra = model(x, history, nothing, target, others=torch.randn_like(history))
    assert torch.isfinite(logit).all() and extra == 0
    assert torch.equal(logit, model(x, torch.randn_like(history), nothing, target)[0])


@pytest.mark.parametrize('model', [DeepFM(FIELDS, SIZE, rate=.5), DCN(FIELDS, SIZE, rate=.5), DCNv2(FIELDS, SIZE, rate=.5), XDeepFM(FIELDS, SIZE, rate=.5), AutoInt(FIELDS, SIZE, rate=.5), FiBiNET(FIELDS, SIZE, rate=.5)], ids=lambda m: type(m).__name__)
def test_dropout_needs_a_generator(model):
    x, drawn = block(), [np.random.default_rng(s) for s in (0, 0, 1)]
    assert torch.equal(model(x), model(x))
    a, b, c = (model(x, rng) for rng in drawn)
    assert torch.equal(a, b) and not torch.equal(a, c)
