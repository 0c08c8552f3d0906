"LightGCN's propagation against powers of the dense adjacency matrix; its graph against a loop."
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from recx.recommend.fusion import make_table
from recx.recommend.graph import Graph, LightGCN, Propagation
from recx.recommend.mf import everybody


def dense(user, item, n_users, n_items):
    "The normalised adjacency matrix, edge by edge (He et al. 2020, eq. 6 and 7)."
    a = np.zeros((n_users + n_items,)*2)
    for u, i in set(zip(user, item)): a[u, n_users + i] = a[n_users + i, u] = 1
    degree = a.sum(1)
    scale = np.array([d**-.5 if d else 0. for d in degree])
    return torch.from_numpy(scale[:, None]*a*scale)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 25), st.integers(1, 4), st.integers(0, 2**31))
def test_propagation_is_the_mean_of_matrix_powers(n_users, n_items, edges, layers, seed):
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, n_users, edges), rng.integers(0, n_items, edges)
    graph = Graph(user, item, n_users, n_items)
    a = dense(user.tolist(), item.tolist(), n_users, n_items)
    x, weight = (torch.from_numpy(rng.normal(size=(n_users + n_items, 3))) for _ in range(2))
    slow_x, fast_x = x.clone().requires_grad_(), x.float().requires_grad_()
    slow = sum(torch.linalg.matrix_power(a, k) @ slow_x for k in range(layers + 1))/(layers + 1)
    fast = torch.cat(Propagation.apply(fast_x[:n_users], fast_x[n_users:], *graph.matrices(), layers))
    (slow*weight).sum().backward(); (fast*weight.float()).sum().backward()
    assert torch.allclose(fast.double(), slow, atol=1e-5) and torch.allclose(fast_x.grad.double(), slow_x.grad, atol=1e-5)


def model_of(graph, **given):
    torch.manual_seed(0)
    return LightGCN(make_table('id', graph.n_users, 8), make_table('id', graph.n_items, 8), graph, **given)


def test_a_node_without_edges_keeps_its_direction_and_stays_finite():
    model = model_of(Graph(np.array([0, 1]), np.array([0, 0]), 3, 2), layers=3)
    start, (users, items) = model.start(None, None), everybody(model)
    assert torch.allclose(users[2], start[0][2]/4) and torch.allclose(items[1], start[1][1]/4) and torch.isfinite(users).all()


def test_no_edge_at_all():
    users, items = everybody(model_of(Graph(np.empty(0, int), np.empty(0, int), 2, 3), layers=2))
    assert torch.isfinite(users).all() and torch.isfinite(items).all()


def test_dropped_edges_are_dropped_both_ways_and_the_rest_keeps_the_expectation():
    rng = np.random.default_rng(0)
    graph = Graph(rng.integers(0, 40, 400), rng.integers(0, 30, 400), 40, 30)
    whole = graph.matrices()[0].to_dense()
    drawn = [graph.matrices(.25, np.random.default_rng(s)) for s in range(300)]
    there, back = drawn[0]
    assert torch.equal(there.to_dense().T, back.to_dense())
    kept = (there.to_dense() != 0).sum()/(whole != 0).sum()
    assert .65 < kept < .85 and torch.allclose(there.to_dense()[there.to_dense() != 0], whole[there.to_dense() != 0]/.75)
    mean = sum(m[0].to_dense() for m in drawn)/300
    assert abs(float(mean.sum()/whole.sum()) - 1) < .01
    assert torch.equal(graph.matrices(.25, None)[0].to_dense(), whole)   # evaluation drops nothing


def test_each_batch_leaves_out_other_edges():
    "Within an epoch, which has one generator, every batch draws anew."
    rng = np.random.default_rng(0)
    model = model_of(Graph(rng.integers(0, 9, 40), rng.integers(0, 8, 40), 9, 8), edge_dropout=.5)
    rows, epoch = model.start(None, None), np.random.default_rng(1)
    made = [model.propagate(*rows, epoch)[0] for _ in range(3)]
    assert not torch.equal(made[0], made[1]) and not torch.equal(made[1], made[2])


def test_evaluation_is_without_dropout_and_leaves_the_mode():
    rng = np.random.default_rng(0)
    model = model_of(Graph(rng.integers(0, 9, 40), rng.integers(0, 8, 40), 9, 8), edge_dropout=.5)
    for training in (True, False):
        model.train(training)
        assert torch.equal(everybody(model)[0], everybody(model)[0]) and model.training is training


def test_a_checkpoint_holds_the_edges_and_gives_the_same_answers():
    rng = np.random.default_rng(0)
    graph = Graph(rng.integers(0, 9, 40), rng.integers(0, 8, 40), 9, 8)
    model, other = model_of(graph), LightGCN(make_table('id', 9, 8), make_table('id', 8, 8), graph)
    other.load_state_dict(model.state_dict())
    assert 'graph.edges' in model.state_dict() and all(torch.equal(a, b) for a, b in zip(everybody(model), everybody(other)))


def test_the_order_and_repetition_of_edges_do_not_matter():
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 9, 40), rng.integers(0, 8, 40)
    order = rng.permutation(80)
    a, b = Graph(user, item, 9, 8), Graph(np.r_[user, user][order], np.r_[item, item][order], 9, 8)
    assert torch.equal(a.matrices()[0].to_dense(), b.matrices()[0].to_dense())


def test_training_moves_rows_of_both_sides_through_the_graph():
    "A pair's loss has a gradient for the rows of neighbours that are in no pair of the batch."
    model = model_of(Graph(np.array([0, 1, 1]), np.array([0, 0, 1]), 2, 2), layers=2)
    users, items = model.propagate(*model.start(None, None))
    (users[0] @ items[0]).backward()
    assert model.items.parts[0].weight.grad[1].abs().max() > 0 and model.users.parts[0].weight.grad[1].abs().max() > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no accelerator')
def test_the_accelerator_gives_the_same_rows():
    rng = np.random.default_rng(0)
    model = model_of(Graph(rng.integers(0, 90, 400), rng.integers(0, 80, 400), 90, 80))
    here = everybody(model)
    assert all(torch.allclose(a, b.cpu(), atol=1e-5) for a, b in zip(here, everybody(model.to('cuda'))))
