"Ranks against a naive sort, ties and masks included; and what an indifferent model gets."
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from recx.recommend.batches import held_out, token_batches, training_windows, user_bounds
from recx.recommend.ranking import exposure, hr, mrr, ndcg, target_ranks


def random_log(rng, users, items, longest=12):
    lengths = rng.integers(1, longest, users)
    user = np.repeat(np.arange(users), lengths)
    item = rng.integers(0, items, len(user))
    last = np.cumsum(lengths) - 1
    split = np.zeros(len(user), int)
    split[last[lengths >= 3]] = 2
    split[last[lengths >= 3] - 1] = 1
    return user, item, split


def naive_rank(scores, target, seen):
    order = [i for i in range(len(scores)) if i == target or i not in seen]
    places = [p for p, i in enumerate(sorted(order, key=lambda i: -scores[i]), 1) if scores[i] == scores[target]]
    return sum(places)/len(places)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), items=st.integers(3, 90), which=st.sampled_from([1, 2]), block=st.sampled_from([1, 7, 256]))
def test_ranks_equal_a_naive_sort(seed, items, which, block):
    rng = np.random.default_rng(seed)
    user, item, split = random_log(rng, 25, items)
    held = held_out(user, item, split, which)
    if not len(held): return
    queries, table = (torch.from_numpy(rng.integers(-2, 3, (n, 4)).astype(np.float32)) for n in (len(held), items))   # small integers: exact, many ties
    ranks = target_ranks(queries, table, held, block)
    for i, row in enumerate(held.row):
        scores = (queries[i] @ table.T).tolist()
        seen = set(item[(user == user[row]) & (np.arange(len(user)) < row)].tolist()) - {int(item[row])}
        assert ranks[i] == naive_rank(scores, int(item[row]), seen)


@settings(max_examples=60, deadline=None)
@given(items=st.integers(2, 700), events=st.integers(1, 300), size=st.sampled_from([1, 8, 50, 64]), seed=st.integers(0, 1000))
def test_equal_items_tie_at_any_shape(items, events, size, seed):
    rng = np.random.default_rng(seed)
    held = held_out(np.repeat(np.arange(events), 2), np.zeros(2*events, int), np.tile([0, 1], events), 1)
    queries = torch.from_numpy(rng.normal(size=(events, size)).astype(np.float32))
    table = torch.from_numpy(rng.normal(size=(1, size)).astype(np.float32)).repeat(items, 1)
    assert (target_ranks(queries, table, held) == (items + 1)/2).all()


def test_a_returning_user_can_find_the_item_again():
    held = held_out(np.zeros(4, int), np.array([3, 1, 3, 3]), np.array([0, 0, 1, 2]), 2)
    assert set(held.seen(0, 1)[1].tolist()) == {1}
    table = torch.tensor([[0.], [9.], [1.], [5.]])
    assert target_ranks(torch.ones(1, 1), table, held).tolist() == [1.]


def test_the_validation_event_is_seen_at_test_and_the_test_event_a_candidate_at_validation():
    user, item, split = np.zeros(5, int), np.array([0, 1, 2, 3, 4]), np.array([0, 0, 0, 1, 2])
    table = torch.tensor([[0.], [0.], [0.], [1.], [2.]])
    assert target_ranks(torch.ones(1, 1), table, held_out(user, item, split, 1)).tolist() == [2.]
    assert target_ranks(torch.ones(1, 1), table, held_out(user, item, split, 2)).tolist() == [1.]


def test_scores_that_are_no_numbers_have_no_rank():
    held = held_out(np.zeros(2, int), np.zeros(2, int), np.array([0, 1]), 1)
    with pytest.raises(FloatingPointError, match='learning_rate'): target_ranks(torch.ones(1, 2), torch.full((3, 2), float('inf')), held)


def test_exposure_counts_the_unseen_top():
    rng = np.random.default_rng(3)
    user, item, split = random_log(rng, 60, 40)
    held = held_out(user, item, split, 2)
    queries, table = (torch.from_numpy(rng.normal(size=(n, 8)).astype(np.float32)) for n in (len(held), 40))
    counts = np.zeros(40, int)
    for i in range(len(held)):
        scores = (queries[i] @ table.T).numpy().copy()
        scores[held.seen(i, i + 1)[1]] = -np.inf
        counts[np.argsort(-scores)[:10]] += 1
    assert (exposure(queries, table, held, 10) == counts).all()


def test_metrics_by_hand():
    ranks = np.array([1, 3, 10.5, 200])
    assert hr(ranks, 10) == .5 and np.isclose(ndcg(ranks, 10), (1 + .5)/4) and np.isclose(mrr(ranks, 10), (1 + 1/3)/4)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), length=st.integers(1, 9))
def test_each_training_event_but_the_first_is_a_target_once(seed, length):
    user, item, split = random_log(np.random.default_rng(seed), 20, 30, 40)
    if not any((split[user == u] == 0).sum() > 1 for u in range(20)): return
    w = training_windows(user, item, split, length)
    targets = np.concatenate([np.arange(a + 1, b) for a, b in zip(w.start, w.stop)])
    first, _ = user_bounds(user)
    assert sorted(targets) == sorted(set(np.flatnonzero(split == 0)) - set(first))
    assert (w.lengths <= length + 1).all() and (w.lengths >= 2).all() and (user[w.start] == user[w.stop - 1]).all()


def test_batches_hold_every_row_once_and_keep_the_budget():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        lengths = rng.integers(1, 60, 500)
        batches = token_batches(lengths, 100, rng)
        assert sorted(np.concatenate(batches)) == list(range(500))
        assert all(len(b)*lengths[b].max() <= 100 or len(b) == 1 for b in batches)
