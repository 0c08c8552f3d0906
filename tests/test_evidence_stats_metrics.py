"Metrics from ranks: each decided edge case by its name, a slow second implementation, and properties."
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from recx.evidence.metrics import KINDS, Events, check_ranks, exposure_metrics, gini, parse_metric, per_user

events = st.lists(st.tuples(st.integers(0, 5), st.integers(2, 120).map(lambda r: r/2)), min_size=1, max_size=30)   # (user, rank), halves are mean ranks
cutoff = st.integers(1, 60)


def slowly(kind, k, ranks):
    "One user, from the definitions."
    hits = sorted(r for r in ranks if r <= k)
    if kind == 'hr': return float(bool(hits))
    if kind == 'recall': return len(hits)/len(ranks)
    if kind == 'mrr': return 1/hits[0] if hits else 0.
    if kind == 'map': return sum(min(1., j/r) for j, r in enumerate(hits, 1))/min(k, len(ranks))
    return sum(1/math.log2(1 + r) for r in hits)/sum(1/math.log2(1 + i) for i in range(1, min(k, len(ranks)) + 1))


@settings(max_examples=60, deadline=None)
@given(events, cutoff)
def test_agrees_with_the_definitions(rows, k):
    users, ranks = np.array([u for u, _ in rows]), np.array([r for _, r in rows])
    for kind in KINDS:
        got = per_user(f'{kind}@{k}', ranks, users, 6)
        for u in range(6):
            own = ranks[users == u]
            assert math.isnan(got[u]) if not len(own) else got[u] == pytest.approx(slowly(kind, k, own))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=30, unique=True), st.integers(1, 60), st.randoms())
def test_bounds_and_order_of_rows(ranks, k, random):
    "Distinct whole ranks of one user: within [0, 1]; recall and MRR never above HR; the order of the rows decides nothing."
    shuffled = list(ranks); random.shuffle(shuffled)
    value = {kind: per_user(f'{kind}@{k}', ranks, [0]*len(ranks), 1)[0] for kind in KINDS}
    assert all(0 <= v <= 1 + 1e-12 for v in value.values()) and value['recall'] <= value['hr'] and value['mrr'] <= value['hr']
    assert all(per_user(f'{kind}@{k}', shuffled, [0]*len(ranks), 1)[0] == pytest.approx(v) for kind, v in value.items())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.integers(1, 500), cutoff, cutoff)
def test_monotone_in_rank_and_in_cutoff(a, b, k, l):
    (a, b), (k, l) = sorted((a, b)), sorted((k, l))
    for kind in KINDS:
        better, worse = (per_user(f'{kind}@{k}', [r], [0], 1)[0] for r in (a, b))
        assert better >= worse and per_user(f'{kind}@{l}', [b], [0], 1)[0] >= worse


def test_one_event_recall_is_hit_rate_and_mrr_below_ndcg_below_hr():
    ranks, users = np.arange(1, 101), np.arange(100)
    v = {kind: per_user(f'{kind}@10', ranks, users, 100) for kind in KINDS}
    assert (v['recall'] == v['hr']).all() and (v['map'] == v['mrr']).all() and (v['mrr'] <= v['ndcg']).all() and (v['ndcg'] <= v['hr']).all()


def test_no_held_out_event_is_nan_not_zero():
    assert np.isnan(per_user('hr@10', [3.], [1], 3)[[0, 2]]).all()


def test_tie_at_the_border_is_no_hit():
    assert per_user('hr@10', [10.5], [0], 1)[0] == 0 and per_user('ndcg@10', [10.], [0], 1)[0] == pytest.approx(1/math.log2(11))


def test_cutoff_beyond_the_catalogue_is_an_error():
    with pytest.raises(ValueError, match='cutoffs=20: larger than the catalogue of 10'): per_user('hr@20', [1.], [0], 1, n_items=10)


@pytest.mark.parametrize('rank', [0, .5, -1, float('nan'), float('inf'), 11])
def test_what_is_no_rank_is_an_error(rank):
    with pytest.raises(ValueError, match='rank='): check_ranks(np.array([1., rank, 2.]), 10)


@pytest.mark.parametrize('name', ['ndcg', 'ndcg@', '@10', 'auc@10', 'ndcg@010', 'ndcg@10 ', 'ndcg@1.5'])
def test_a_metric_without_its_cutoff_is_an_error(name):
    with pytest.raises(ValueError, match='metric='): parse_metric(name)


def test_average_precision_of_the_textbook():
    "Relevant documents at places 1, 3 and 6 of a list (Manning et al., 2008, ch. 8): precisions 1, 2/3, 1/2."
    assert per_user('map@10', [6., 1., 3.], [0, 0, 0], 1)[0] == pytest.approx((1 + 2/3 + 1/2)/3)
    assert per_user('map@2', [6., 1., 3.], [0, 0, 0], 1)[0] == pytest.approx(1/2)


def test_two_events_in_one_place_have_no_precision_above_one(): assert per_user('map@10', [1., 1.], [0, 0], 1)[0] == 1


@pytest.mark.parametrize('name', ['auc', 'gauc', 'logloss'])
def test_a_metric_of_probabilities_takes_no_ranks(name):
    with pytest.raises(ValueError, match='takes probabilities'): per_user(name, [1., 2.], [0, 1], 2)


def test_arms_and_seeds_are_kept_as_axes():
    ranks = np.random.default_rng(0).integers(1, 50, (4, 3, 30))
    users = np.repeat(np.arange(10), 3)
    got = Events(users).values('ndcg@10', ranks)
    assert got.shape == (4, 3, 10) and np.allclose(got[2, 1], Events(users).values('ndcg@10', ranks[2, 1]))


def test_means_agree_with_those_of_the_recommender():
    ranking = pytest.importorskip('recx.recommend.ranking')
    ranks = np.random.default_rng(0).integers(1, 60, 500)/1.
    for name in ('hr', 'ndcg', 'mrr'):
        assert per_user(f'{name}@10', ranks, np.arange(500), 500).mean() == pytest.approx(getattr(ranking, name)(ranks, 10))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40).filter(any), st.integers(1, 50))
def test_gini_bounds_scale_and_order(counts, factor):
    g = gini(counts)
    assert -1e-12 <= g < 1 and g == pytest.approx(gini(counts[::-1])) and g == pytest.approx(gini([factor*c for c in counts]), abs=1e-9)


def test_nothing_recommended_has_no_gini_and_no_popularity():
    shown = exposure_metrics(pd.DataFrame(dict(item=[], count=[])), pd.DataFrame(dict(item=['a', 'b'], train_count=[1, 2])))
    assert shown['coverage'] == 0 and math.isnan(shown['gini']) and math.isnan(shown['average_popularity'])
