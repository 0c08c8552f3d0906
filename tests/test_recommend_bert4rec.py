"BERT4Rec: what is hidden, what may look where, and that it learns."
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from recx.recommend.batches import held_out, training_windows
from recx.recommend.bert4rec import LAST_ONLY, BERT4Rec, cloze
from recx.recommend.fusion import make_table
from recx.recommend.nextitem import Recommender, answer, batch_loss
from recx.recommend.ranking import hr, target_ranks


def ring(users=60, items=30, length=12):
    "Everybody walks round the same ring."
    return np.repeat(np.arange(users), length), (np.tile(np.arange(length), users) + np.repeat(np.arange(users)*7, length)) % items, np.tile([0]*(length - 2) + [1, 2], users)


def fitted(loss, steps=150, seed=0):
    torch.manual_seed(seed)
    model = Recommender(make_table('id', 30, 16), BERT4Rec(16, 8, rate=.1, mask_share=.3))
    windows, rng = training_windows(*ring(), 8), np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=.01)
    for _ in range(steps):
        value, _ = batch_loss(model, windows, rng.permutation(len(windows))[:60], np.arange(30), dict(loss=loss, negatives=16, gbce_t=.75, gate_balance=0.), rng)
        optimiser.zero_grad(); value.backward(); optimiser.step()
    return model


@pytest.mark.parametrize('loss', ['ce', 'sampled-softmax'])
def test_the_ring_is_learned(loss):
    held = held_out(*ring(), 2, 8)
    assert hr(target_ranks(*answer(fitted(loss), held), held), 1) > .9


def test_the_same_seed_gives_the_same_weights():
    a, b = (fitted('ce', 5).state_dict() for _ in range(2))
    assert all(torch.equal(a[k], b[k]) for k in a)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.floats(.01, .95), st.integers(0, 2**31))
def test_every_row_hides_something_and_never_the_filling(lengths, share, seed):
    lengths = np.array(lengths)
    hidden = cloze(lengths, share, np.random.default_rng(seed))
    assert hidden.shape == (len(lengths), lengths.max()) and hidden.any(1).all()
    assert not hidden[np.arange(lengths.max()) >= lengths[:, None]].any()


def test_shares_are_as_asked():
    hidden = cloze(np.full(20_000, 10), .4, np.random.default_rng(0))
    at_random = .4 + .6**10/10
    expected = np.r_[np.full(9, (1 - LAST_ONLY)*at_random), LAST_ONLY + (1 - LAST_ONLY)*at_random]
    assert np.abs(hidden.mean(0) - expected).max() < .015
    alone = hidden[:, 9] & (hidden.sum(1) == 1)
    assert alone.mean() > LAST_ONLY - .015


def test_what_is_hidden_is_not_among_the_inputs_and_is_the_target():
    torch.manual_seed(0)
    items, lengths = torch.arange(40).view(4, 10), torch.tensor([10, 7, 2, 3])
    inputs, left, at, target = BERT4Rec(8, 10, mask_share=.5).spread(items, lengths, np.random.default_rng(0))
    assert torch.equal(left, lengths) and (inputs.flatten()[at] == -1).all() and torch.equal(items.flatten()[at], target)
    assert not set(target.tolist()) & set(inputs.flatten().tolist()) and int((inputs == -1).sum()) == len(at)


def test_the_target_does_not_leak_into_its_own_guess():
    torch.manual_seed(0)
    model = Recommender(make_table('id', 12, 8), BERT4Rec(8, 6))
    inputs, lengths = torch.tensor([[3, -1, 5, 7]]), torch.tensor([4])
    rows = torch.randn(12, 8)
    changed = rows.clone(); changed[9] = 5.   # the hidden item's row; whichever it is, nobody reads it
    assert torch.equal(model.backbone(model.embed(inputs, rows), lengths), model.backbone(model.embed(inputs, changed), lengths))
    changed[7] = torch.randn(8)               # an event after the gap is read
    assert not torch.allclose(model.backbone(model.embed(inputs, rows), lengths)[0, 1], model.backbone(model.embed(inputs, changed), lengths)[0, 1], atol=1e-3)


def test_the_query_is_the_output_at_a_mask_behind_the_history():
    torch.manual_seed(0)
    model, x = BERT4Rec(8, 6, blocks=2, heads=2), torch.randn(2, 6, 8)
    queries = model.query(x, torch.tensor([6, 2]))
    for row, n in ((0, 6), (1, 2)):
        alone = model(torch.cat([x[row, :n], model.mask[None]])[None], torch.tensor([n + 1]))[0, n]
        assert torch.allclose(queries[row], alone, atol=1e-5)


def test_the_mask_is_learned():
    model = Recommender(make_table('id', 30, 16), BERT4Rec(16, 8))
    loss, _ = batch_loss(model, training_windows(*ring(), 8), np.arange(10), np.arange(30), dict(loss='ce', negatives=1, gbce_t=.75, gate_balance=0.), np.random.default_rng(0))
    loss.backward()
    assert model.backbone.gap.grad.abs().max() > 0 and 'backbone.gap' in model.state_dict()


@pytest.mark.parametrize('share', [0., 1., -.1, float('nan')])
def test_shares_that_hide_nothing_or_everything_are_refused(share):
    with pytest.raises(ValueError, match='mask_share='): BERT4Rec(8, mask_share=share)
