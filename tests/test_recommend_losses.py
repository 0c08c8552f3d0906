"Losses against slow implementations in 64 bits, values and gradients."
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from recx.recommend import losses
from recx.recommend.losses import draw_negatives, gbce_beta, next_item_loss


@pytest.fixture(params=['float32', 'native'])
def precision(request, monkeypatch):
    if request.param == 'float32': monkeypatch.setattr(losses, 'score_dtype', lambda device: torch.float32)
    exact = losses.score_dtype(torch.device('cpu')) is torch.float32
    return 2e-5 if exact else .03


def slow(loss, q, t, target, negative, beta):
    "One position after another, in 64 bits."
    total = 0.
    for i in range(len(q)):
        s = t @ q[i]
        competitors = [j for j in (range(len(t)) if loss == 'ce' else negative[i].tolist() if loss in ('bce', 'bpr') else negative.tolist()) if j != target[i]]
        if loss == 'bpr': total = total - sum(torch.log(torch.sigmoid(s[target[i]] - s[j])) for j in competitors)/negative.shape[1]
        elif loss in ('ce', 'sampled-softmax'): total = total + torch.logsumexp(s[[target[i].item(), *competitors]], 0) - s[target[i]]
        else: total = total - torch.log(torch.sigmoid(s[target[i]])**(beta if loss == 'gbce' else 1)) - torch.log(1 - torch.sigmoid(s[competitors])).sum()
    return total/len(q)


@pytest.mark.parametrize('loss', losses.LOSSES)
def test_values_and_gradients(loss, precision):
    rng, n, items = np.random.default_rng(1), 37, 23
    q0, t0 = (torch.from_numpy(rng.normal(size=(k, 6))) for k in (n, items))
    target = torch.from_numpy(rng.integers(0, items, n))
    negative = torch.from_numpy(draw_negatives(loss, items, n, 9, rng))
    beta = gbce_beta(9, items, .75)
    results = []
    for make, dtype in ((slow, torch.float64), (next_item_loss, torch.float32)):
        q, t = (x.to(dtype).clone().requires_grad_() for x in (q0, t0))
        value = make(loss, q, t, target, negative, beta)
        value.backward()
        results.append((value.detach().double(), q.grad.double(), t.grad.double()))
    for a, b in zip(*results): assert (a - b).abs().max() <= precision*(1 + a.abs().max())


def test_gbce_stays_finite_where_the_power_does_not():
    q, t = torch.tensor([[1.]], requires_grad=True), torch.tensor([[-300.], [300.]])
    value = next_item_loss('gbce', q, t, torch.tensor([0]), torch.tensor([1]), gbce_beta(1, 2, .75))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(q.grad).all() and value > 500


def test_beta_is_the_published_one():
    for k, items, t in ((256, 3417, .75), (1, 100, .5), (16, 50, 1.)):
        alpha = k/(items - 1)
        assert np.isclose(gbce_beta(k, items, t), alpha*(t*(1 - 1/alpha) + 1/alpha))
        assert np.isclose(gbce_beta(k, items, t), t*(alpha - 1) + 1)


def test_large_batches_are_cut_into_chunks_without_a_seam(precision):
    rng = np.random.default_rng(0)
    q, t = (torch.from_numpy(rng.normal(size=(k, 8)).astype(np.float32)) for k in (2500, 40))
    target = torch.from_numpy(rng.integers(0, 40, 2500))
    assert abs(next_item_loss('ce', q, t, target, torch.empty(0, dtype=torch.long)) - F.cross_entropy(q @ t.T, target)) < .02


def test_a_shared_sample_holds_no_item_twice_and_never_more_than_there_are():
    rng = np.random.default_rng(0)
    for k in (1, 10, 50, 500):
        drawn = draw_negatives('sampled-softmax', 50, 7, k, rng)
        assert len(set(drawn.tolist())) == len(drawn) == min(k, 50)
