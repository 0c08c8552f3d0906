"GRU4Rec: learns an order, cannot see ahead, and is the same again by seed."
import numpy as np
import pytest
import torch
from recx.recommend.batches import held_out, training_windows
from recx.recommend.fusion import make_table
from recx.recommend.gru4rec import GRU4Rec
from recx.recommend.nextitem import Recommender, answer, batch_loss
from recx.recommend.ranking import hr, target_ranks

SETTINGS = dict(loss='ce', negatives=16, gbce_t=.75, gate_balance=0.)


def ring(users=60, items=30, length=12):
    "Everybody walks round the same ring."
    return np.repeat(np.arange(users), length), (np.tile(np.arange(length), users) + np.repeat(np.arange(users)*7, length)) % items, np.tile([0]*(length - 2) + [1, 2], users)


def fitted(seed=0, steps=60, **given):
    torch.manual_seed(seed)
    model = Recommender(make_table('id', 30, 16), GRU4Rec(16, 8, rate=.1, **given))
    windows, rng = training_windows(*ring(), 8), np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=.01)
    for _ in range(steps):
        loss, _ = batch_loss(model, windows, rng.permutation(len(windows))[:60], np.arange(30), SETTINGS, rng)
        optimiser.zero_grad(); loss.backward(); optimiser.step()
    return model


@pytest.mark.parametrize('blocks', [1, 2])
def test_the_ring_is_learned(blocks):
    held = held_out(*ring(), 2, 8)
    assert hr(target_ranks(*answer(fitted(blocks=blocks), held), held), 1) > .9


def test_the_same_seed_gives_the_same_weights_and_another_one_does_not():
    a, b, c = (fitted(seed, 5).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(a['table.parts.0.weight'], c['table.parts.0.weight'])


def test_what_comes_later_and_what_is_filled_in_have_no_influence():
    torch.manual_seed(0)
    model, x = GRU4Rec(8, 9, blocks=2), torch.randn(3, 9, 8)
    lengths, changed = torch.tensor([9, 4, 1]), x.clone()
    changed[1, 4:], changed[2, 1:] = torch.randn(5, 8), torch.randn(8, 8)
    assert torch.allclose(model.query(x, lengths), model.query(changed, lengths), atol=1e-6)
    assert not torch.allclose(model.query(x, lengths)[0], model.query(x, torch.tensor([8, 4, 1]))[0], atol=1e-3)


def test_dropout_needs_a_generator_and_is_repeated_by_its_seed():
    torch.manual_seed(0)
    model, x, lengths = GRU4Rec(8, 5, rate=.5), torch.randn(2, 5, 8), torch.tensor([5, 5])
    drawn = [model(x, lengths, np.random.default_rng(s)) for s in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2]) and torch.equal(model(x, lengths), model(x, lengths))


def test_options_without_effect_are_refused():
    with pytest.raises(ValueError, match='heads=4.*use heads=1'): GRU4Rec(8, heads=4)
    with pytest.raises(ValueError, match='max_length=5'): GRU4Rec(8, 5)(torch.randn(1, 6, 8), torch.tensor([6]))
