"Bootstrap: the fast pass is the plain bootstrap, strata are ratios within, and intervals cover."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from recx.evidence.bootstrap import atoms_of, counts, crossed_interval, percentile, resample, seed_weights, user_interval


def weights_of(n, seeds, draws, seed):
    "The counts and seed weights that `resample` uses in its first block."
    rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(1)[0])
    w = counts(n, draws, rng).astype(float)
    return w, seed_weights(seeds, draws, rng).astype(float) if seeds > 1 else None


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(1, 4), st.integers(1, 3), st.integers(0, 5), st.integers(0, 1000))
def test_the_pass_is_the_plain_bootstrap(n, S, C, n_strata, seed):
    rng = np.random.default_rng(seed)
    values = rng.random((n, S, C))*(rng.random((n, 1, 1)) < .5)
    strata = [np.arange(n)] + [np.flatnonzero(rng.random(n) < .4) for _ in range(n_strata)]
    w, v = weights_of(n, S, 20, seed)
    for rows, got in zip(strata, resample(values, np.arange(n), strata, n, 20, seed)):
        drawn = w[rows].sum(axis=0)
        with np.errstate(invalid='ignore'):
            means = np.einsum('usc,ub->bsc', values[rows], w[rows])/drawn[:, None, None]
        assert np.allclose(got.users, means.mean(axis=1), atol=1e-6, equal_nan=True)
        assert np.isnan(got.crossed).all() if S == 1 else np.allclose(got.crossed, np.einsum('bsc,bs->bc', means, v), atol=1e-6, equal_nan=True)


def test_a_user_with_several_rows_is_drawn_as_one():
    "Two strata with rows of their own for the same users: the same counts apply to both."
    values = np.random.default_rng(0).random((20, 1, 1))
    both = np.concatenate([values, values])
    a, b = resample(both, np.r_[np.arange(20), np.arange(20)], [np.arange(20), np.arange(20, 40)], 20, 50)
    assert np.allclose(a.users, b.users)


def test_rows_of_zeros_count_in_the_denominator():
    values = np.zeros((50, 1, 1)); values[:10] = 1
    got = resample(values, np.arange(50), [np.arange(50), np.arange(5, 50)], 50, 400)
    assert got[0].users.mean() == pytest.approx(.2, abs=.01) and got[1].users.mean() == pytest.approx(5/45, abs=.01)


def test_all_zeros_and_nobody_in_a_stratum():
    got = resample(np.zeros((4, 2, 3)), np.arange(4), [np.arange(4), np.array([], int)], 4, 30)
    assert (got[0].users == 0).all() and np.isnan(got[1].users).all() and all(np.isnan(end).all() for end in percentile(got[1].users))


def test_resamples_without_the_stratum_are_left_out_of_the_quantiles():
    low, high = percentile(np.array([[np.nan, 1.], [2., 1.], [2., 3.]]), .5)
    assert low[0] == high[0] == 2 and low[1] == 1


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 6), st.integers(0, 100))
def test_atoms_restore_the_strata(n, k, seed):
    rng = np.random.default_rng(seed)
    strata = [np.flatnonzero(rng.random(n) < .5) for _ in range(k)]
    atom, holds = atoms_of(strata, n)
    assert all(np.array_equal(np.flatnonzero(holds[i][atom]), rows) for i, rows in enumerate(strata))


def test_the_same_seed_gives_the_same_draws_and_another_does_not():
    d = np.random.default_rng(0).normal(0, 1, (60, 3))
    assert np.array_equal(user_interval(d, 500, seed=4), user_interval(d, 500, seed=4)) and not np.array_equal(user_interval(d, 500, seed=4), user_interval(d, 500, seed=5))


def test_crossed_interval_is_wider_where_seeds_disagree():
    rng = np.random.default_rng(0)
    d = rng.normal(0, .1, (300, 1)) + np.array([-.05, 0, .02, .05, .1, -.02])
    (low, high), (l, h) = crossed_interval(d, 2000), [end[0] for end in user_interval(d.mean(axis=1), 2000)]
    assert high - low > 2*(h - l) and low < d.mean() < high


def test_mean_and_spread_are_those_of_theory():
    d = np.random.default_rng(0).normal(.3, 1, 1000)
    draws = resample(d[:, None, None], np.arange(1000), [np.arange(1000)], 1000, 4000)[0].users[:, 0]
    assert draws.mean() == pytest.approx(d.mean(), abs=3*d.std()/np.sqrt(1000*4000)) and draws.std() == pytest.approx(d.std()/np.sqrt(1000), rel=.05)


def test_interval_within_a_stratum_covers():
    rng = np.random.default_rng(0)
    d = rng.normal(0, 1, (400, 600))
    rows = np.arange(150)
    low, high = percentile(resample(d[:, None], np.arange(400), [rows], 400, 1000)[0].users)
    assert abs(np.mean((low <= 0) & (0 <= high)) - .95) < .035


@pytest.mark.parametrize('draws', [0, -5])
def test_no_draws_are_refused(draws):
    with pytest.raises(ValueError, match='draws='): user_interval([.1, .2], draws)
