"InfoNCE against a loop, both sides alike, and a model that serves without the text it was aligned with."
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from recx.recommend.alignment import Contrast, Reconstruct, anchors, info_nce
from recx.recommend.fusion import make_table, unit_scale
from recx.recommend.graph import Graph, LightGCN
from recx.recommend.mf import everybody
from recx.recommend.topk import Pairs, batch_loss

ALIGN = dict(align_weight=1., align_temperature=.2, align_mask=.15)
SETTINGS = dict(loss='bpr', negatives=1, gbce_t=.75, gate_balance=0., l2=0.)


def drawn(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 12), size=st.integers(1, 6), temperature=st.floats(.05, 5), seed=st.integers(0, 999))
def test_info_nce_against_a_loop(n, size, temperature, seed):
    a, b, total = drawn(n, size, seed=seed), drawn(n, size, seed=seed + 1), 0.
    for x in range(n):
        cosines = [float(torch.dot(a[x].double(), b[y].double())/(a[x].double().norm()*b[y].double().norm())) for y in range(n)]
        total -= np.log(np.exp(cosines[x]/temperature)/sum(np.exp(c/temperature) for c in cosines))
    assert info_nce(a, b, temperature).item() == pytest.approx(total/n, rel=1e-3, abs=1e-4)


def test_contrast_is_the_loss_of_projections_and_reconstruction_that_of_embeddings():
    text, rows = unit_scale(drawn(20, 6).numpy()), drawn(20, 4)
    con, gen = Contrast(text, 4, .5, .3), Reconstruct(text, 4, .5, .3, share=.2)
    torch.testing.assert_close(con.penalty(rows, None, None), .5*info_nce(rows, con.net(text*6**.5), .3))
    codes = torch.tensor([3, 9, 11])
    torch.testing.assert_close(gen.penalty(rows[codes], codes, None), .5*info_nce(gen.net(rows[codes]), text[codes], .3))
    assert [tuple(l.weight.shape) for l in (con.net[0], con.net[2], gen.net[0], gen.net[2])] == [(5, 6), (4, 5), (5, 4), (6, 5)]   # (in + out)//2 in between


def test_an_item_met_twice_is_no_competitor_of_itself():
    text, rows = unit_scale(drawn(20, 6).numpy()), drawn(20, 4)
    con, codes = Contrast(text, 4, 1., .3), torch.tensor([3, 9, 3, 11, 9])
    torch.testing.assert_close(con.penalty(rows[codes], codes, None), con.penalty(rows[[3, 9, 11]], torch.tensor([3, 9, 11]), None))


def test_nobody_to_be_told_from_costs_nothing():
    con = Contrast(unit_scale(drawn(20, 6).numpy()), 4, 1., .3)
    for codes in ([], [5], [5, 5]): assert con.penalty(drawn(len(codes), 4), torch.tensor(codes, dtype=torch.int64), None) == 0


def test_too_many_anchors_are_sampled():
    codes = torch.arange(50).repeat(3)
    some = anchors(codes, np.random.default_rng(0), 20)
    assert len(some) == 20 == len(set(codes[some].tolist())) and not torch.equal(some, anchors(codes, np.random.default_rng(1), 20))


def test_hidden_nodes_are_the_share_asked_for_and_change_from_step_to_step():
    gen, rows, rng = Reconstruct(unit_scale(drawn(200, 6).numpy()), 4, 1., .3, share=.1), drawn(200, 4), np.random.default_rng(0)
    (masked, first), (_, second) = gen.mask(rows, rng), gen.mask(rows, rng)
    assert len(first) == 20 and not torch.equal(first, second)
    assert ((masked != rows).any(1).nonzero()[:, 0] == first).all() and (masked[first] == gen.token).all()
    assert len(gen.mask(rows[:3], rng)[1]) == 2   # one alone could not be told from anybody


def graph_model(fusion, seed=0):
    torch.manual_seed(seed)
    rng = np.random.default_rng(0)
    user, item = np.repeat(np.arange(30), 6), np.concatenate([rng.choice(20, 6, replace=False) + 20*(u % 2) for u in range(30)])
    texts = drawn(30, 10, seed=5).numpy(), drawn(40, 12, seed=6).numpy()
    tables = make_table(fusion, 30, 8, texts[0], align=ALIGN), make_table(fusion, 40, 8, texts[1], align=ALIGN)
    return LightGCN(*tables, Graph(user, item, 30, 40)), Pairs(user, item)


@pytest.mark.parametrize('fusion', ['align-con', 'align-gen'])
class TestGraph:
    def test_alignment_on_both_sides_falls_in_training(self, fusion):
        model, pairs = graph_model(fusion)
        rng, optimiser, losses = np.random.default_rng(0), torch.optim.Adam(model.parameters(), .02), []
        for _ in range(60):
            loss, _ = batch_loss(model, pairs, np.arange(len(pairs)), SETTINGS, rng)
            optimiser.zero_grad(); loss.backward(); optimiser.step(); losses.append(loss.item())
        assert np.mean(losses[-5:]) < .85*np.mean(losses[:5])
        for side in (model.users, model.items):
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in side.aligner.parameters())

    def test_serving_needs_no_text(self, fusion):
        model, _ = graph_model(fusion)
        before = [t.clone() for t in everybody(model)]
        served = {k: v for k, v in model.state_dict().items() if 'aligner' not in k}
        del model.users.aligner, model.items.aligner
        assert all('aligner' not in k and 'vectors' not in k for k in model.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(before, everybody(model)))
        plain, _ = graph_model('id', seed=9)
        plain.load_state_dict(served)
        assert all(torch.equal(a, b) for a, b in zip(before, everybody(plain)))

    def test_evaluation_hides_nothing(self, fusion):
        model, _ = graph_model(fusion)
        assert all(torch.equal(a, b) for a, b in zip(everybody(model), everybody(model)))

    def test_weight_zero_is_the_model_without_alignment(self, fusion):
        model, pairs = graph_model(fusion)
        for side in (model.users, model.items): side.aligner.weight = 0.
        rows = model.users()
        assert model.users.penalty(rows, None, np.random.default_rng(0)) == 0


def test_text_shapes_what_the_graph_learns():
    "Users of like profiles end up nearer to each other with alignment than without."
    groups = torch.randint(0, 3, (30,), generator=torch.Generator().manual_seed(0))
    profile = torch.eye(3)[groups] + .1*drawn(30, 3)
    def nearness(weight):
        torch.manual_seed(0)
        table = make_table('align-con', 30, 8, profile.numpy(), align=ALIGN | dict(align_weight=weight))
        rng = np.random.default_rng(0)
        user, item = np.repeat(np.arange(30), 6), rng.integers(0, 40, 180)
        model, pairs = LightGCN(table, make_table('id', 40, 8), Graph(user, item, 30, 40)), Pairs(user, item)
        optimiser = torch.optim.Adam(model.parameters(), .02)
        for _ in range(60):
            loss, _ = batch_loss(model, pairs, np.arange(len(pairs)), SETTINGS, rng)
            optimiser.zero_grad(); loss.backward(); optimiser.step()
        unit = torch.nn.functional.normalize(everybody(model)[0], dim=1)
        cosine, same = unit @ unit.T, groups[:, None] == groups
        return (cosine[same & ~torch.eye(30, dtype=bool)].mean() - cosine[~same].mean()).item()
    assert nearness(1.) > nearness(0.) + .2
