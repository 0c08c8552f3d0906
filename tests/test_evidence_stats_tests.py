"Paired tests: parity with SciPy, edge cases by name, and simulation of what they promise."
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from recx.evidence.tests import EXACT, flip_random, mde, noncentrality, paired_t, sign_flip, smallest_flip_p, wilcoxon, wins_ties_losses


def sparse(rng, n, worlds, gain=0.):
    "NDCG differences under the null (or with a gain): most are zero, the rest lie on both sides alike."
    size = 1/np.log2(1 + rng.integers(1, 11, (n, worlds)))
    return (rng.random((n, worlds)) < .15)*size*np.where(rng.random((n, worlds)) < .5 + gain, 1, -1)


def test_known_answer_of_five_seeds():
    d = np.array([.30, .31, .32, .33, .34]) - np.array([.28, .30, .29, .31, .32])
    test = paired_t(d)
    assert d.mean() == pytest.approx(.020) and round(test.t[0], 2) == 6.32 and round(test.p[0], 4) == .0032 and test.df[0] == 4


def test_parity_with_scipy_ttest_rel():
    a, b = np.random.default_rng(0).random((2, 50, 7))
    ours, theirs = paired_t(a - b), stats.ttest_rel(a, b)
    assert np.allclose(ours.t, theirs.statistic) and np.allclose(ours.p, theirs.pvalue) and np.allclose(ours.dz*math.sqrt(50), ours.t)


def test_one_unit_has_no_test():
    assert all(np.isnan(v).all() for v in paired_t([.3])) and np.isnan(mde([.3])).all()


def test_identical_arms_have_no_p():
    d = np.zeros(100)
    assert np.isnan(paired_t(d).p[0]) and np.isnan(sign_flip(d)[0]) and np.isnan(wilcoxon(d)[0]) and np.isnan(mde(d)[0])


@pytest.mark.parametrize('value', [.1, 1/3, 1e-3, -.7])
def test_constant_difference_has_no_p(value):
    assert np.isnan(paired_t(np.full(7, value)).p[0]) and np.isnan(mde(np.full(7, value))[0])


def test_small_but_real_variance_is_tested():
    assert np.isfinite(paired_t(1e-6*np.array([1., 2, 4])).p[0])


def test_nan_differences_are_refused():
    with pytest.raises(ValueError, match='not finite'): paired_t([1., math.nan])


def test_no_units_have_no_test():
    assert np.isnan(paired_t(np.empty((0, 2))).p).all() and np.isnan(sign_flip(np.empty((0, 2)))).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=8).filter(any))
def test_exact_flips_agree_with_scipy(d):
    d = np.array(d, float)
    theirs = stats.permutation_test((d,), lambda x, axis: x.sum(axis), permutation_type='samples', n_resamples=np.inf, vectorized=True).pvalue
    if (d != 0).all(): assert sign_flip(d)[0] == pytest.approx(theirs)
    assert smallest_flip_p((d != 0).sum()) - 1e-12 <= sign_flip(d)[0] <= 1


def test_five_seeds_cannot_reach_five_per_cent_by_flips():
    assert sign_flip([1., 2, 3, 4, 5])[0] == .0625 and sign_flip([1., 2, 3, 4, 5, 6])[0] == .03125
    assert stats.wilcoxon([1., 2, 3, 4, 5]).pvalue == .0625


def test_random_flips_agree_with_exact_ones_and_are_never_zero():
    d = np.random.default_rng(3).normal(.4, 1, (EXACT, 5))
    assert np.allclose(flip_random(d, 50_000, 0), sign_flip(d), atol=.01)
    assert flip_random(np.ones((60, 1)), 999, 0)[0] == 1/1000


def test_flips_do_not_depend_on_their_neighbours_nor_on_the_sign():
    d = sparse(np.random.default_rng(0), 500, 4, .05)
    assert np.allclose(sign_flip(d, 2000)[:1], sign_flip(d[:, :1], 2000), atol=.001) and np.allclose(sign_flip(-d, 2000), sign_flip(d, 2000), atol=.001)   # as far as single precision goes


def test_wilcoxon_keeps_zeros_in_the_ranking():
    d = np.r_[np.zeros(50), np.arange(1, 21), -np.arange(1, 8)].astype(float)
    assert wilcoxon(d)[0] == pytest.approx(stats.wilcoxon(d, zero_method='pratt', method='asymptotic').pvalue)


def test_wins_ties_losses_add_up():
    d = sparse(np.random.default_rng(0), 300, 3)
    assert (np.array(wins_ties_losses(d)).sum(axis=0) == 300).all()


@pytest.mark.parametrize('n', [3, 6, 40, 2000])
def test_power_at_the_minimum_detectable_effect(n):
    d = np.random.default_rng(n).normal(0, 1, (n, 1))
    rng = np.random.default_rng(1)
    sd = d.std(ddof=1)
    worlds = 4000
    means, sds = rng.normal(mde(d)[0], sd/math.sqrt(n), worlds), sd*np.sqrt(rng.chisquare(n - 1, worlds)/(n - 1))   # mean and sd of a normal sample, without drawing it
    assert abs(np.mean(2*stats.t.sf(np.abs(means/sds*math.sqrt(n)), n - 1) < .05) - .8) < .03


@pytest.mark.parametrize('df', [1, 2, 5, 37, 500, 22_362, 10**6])
def test_noncentrality_rises_with_power_and_falls_with_alpha(df):
    assert noncentrality(df, .05, .9) > noncentrality(df, .05, .8) > noncentrality(df, .1, .8) > 0


# What a test promises: under the null it rejects in alpha of the worlds. 4,000 worlds: a standard error of .0034.

@pytest.mark.parametrize('n', [3, 5, 6, 200, 1000])
def test_type_one_error_of_the_t_test(n):
    rng = np.random.default_rng(n)
    d = rng.normal(0, 1, (n, 4000)) if n < 10 else sparse(rng, n, 4000)
    assert abs(np.mean(paired_t(d).p < .05) - .05) < .014


def test_type_one_error_of_the_sign_flips():
    rejected = [sign_flip(sparse(np.random.default_rng(i), 150, 100), flips=999, seed=i) < .05 for i in range(30)]   # worlds of a batch share their flips
    assert .03 < np.mean(rejected) < .07


def test_power_rises_with_the_effect_and_with_users():
    power = {(n, gain): np.mean(paired_t(sparse(np.random.default_rng(0), n, 500, gain)).p < .05) for n in (300, 1200) for gain in (0, .05, .1, .2)}
    for n in (300, 1200): assert power[n, 0] < .09 and power[n, .05] < power[n, .1] < power[n, .2]
    assert all(power[300, g] < power[1200, g] for g in (.05, .1)) and power[1200, .2] > .9


def test_pooling_users_and_seeds_would_reject_far_too_often():
    "Why U×S rows are never pooled: the users' own differences are shared by the seeds."
    rng = np.random.default_rng(0)
    worlds, n, S = 1000, 80, 6
    d = rng.normal(0, 1, (n, 1, worlds)) + rng.normal(0, .3, (n, S, worlds))
    pooled, per_user = np.mean(paired_t(d.reshape(n*S, worlds)).p < .05), np.mean(paired_t(d.mean(axis=1)).p < .05)
    assert pooled > .3 and abs(per_user - .05) < .025
