"The instruments that test the instruments: shares, null worlds, the crossed test, planted partitions, confidences."
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from recx.evidence.calibration import Spread, below, calibrated, foretold, kept_by, p_values, parts_of, ranked_worlds, recovery, share_of, stated_for, tier_maps
from recx.evidence.tests import crossed_t, noncentrality, paired_t, power_of


@given(st.integers(1, 300), st.data())
@settings(max_examples=60)
def test_a_share_of_independent_studies_has_the_exact_interval(n, data):
    hits = data.draw(st.integers(0, n))
    got, exact = share_of(np.arange(n) < hits), stats.binomtest(hits, n).proportion_ci(method='exact')
    assert got.share == pytest.approx(hits/n)
    # the variance between studies is estimated with one degree of freedom less, so that n counts as n − 1
    assert got.low <= exact.low + 1e-9 and got.high >= exact.high - 1e-9
    assert got.low == pytest.approx(exact.low, abs=.5/n) and got.high == pytest.approx(exact.high, abs=.5/n)


def test_the_interval_covers_shares_of_dependent_comparisons():
    "Ten comparisons with a shared baseline, 60 studies: of 300 such sets the interval of the share covers .05 nineteen times out of twenty, which one that takes them for independent does not."
    rng, covers, naive = np.random.default_rng(0), 0, 0
    for _ in range(300):
        z = rng.normal(size=(60, 1))*.7**.5 + rng.normal(size=(60, 10))*.3**.5
        hits = np.abs(z) > 1.96
        covers += share_of(hits).agrees(.05)
        naive += share_of(hits.ravel()).agrees(.05)
    assert covers >= 275 and naive < 260


def test_untested_comparisons_count_for_nothing():
    hits = np.array([[1., np.nan], [0., 0.], [np.nan, np.nan]])
    assert share_of(hits)[:1] + share_of(hits)[3:] == (pytest.approx(1/3), 2, 3)
    table = below(dict(users=np.array([[.01, np.nan], [np.nan, np.nan], [.9, .04]])))
    assert table.set_index('what').studies.to_dict() == {'one comparison': 2, 'any of the family': 2, 'any, after Holm': 2}
    assert table.set_index('what').share.to_dict() == pytest.approx({'one comparison': 2/3, 'any of the family': 1., 'any, after Holm': .5})


@pytest.mark.parametrize('spread, right, wrong', [(Spread(), ('seeds', 'users'), ()), (Spread(seed=.12), ('seeds',), ('users',)), (Spread(user=.9), ('users',), ('seeds',))])
def test_each_test_keeps_its_level_where_what_it_takes_for_given_does_not_vary(spread, right, wrong):
    table = below(p_values(ranked_worlds(1000, 120, 3, (0, 0, 0), spread, np.random.default_rng(11)))).set_index(['test', 'what'])
    for what in ('one comparison', 'any, after Holm'):
        for test in right: assert .03 < table.share[test, what] < .07
        for test in wrong: assert table.share[test, what] > .09 and table.off[test, what] == 'too often'
        assert table.share['all three', what] < .055 and table.off['all three', what] != 'too often'
        assert table.share['crossed', what] < max(table.share[test, what] for test in (*wrong, 'seeds')) + .02


@given(st.integers(2, 40), st.integers(2, 8), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_the_crossed_test_is_the_two_way_layout_and_never_surer_than_either_alone(users, seeds, seed):
    rng = np.random.default_rng(seed)
    d = rng.normal(.1, 1, (users, seeds)) + rng.normal(0, rng.random()*2, (users, 1)) + rng.normal(0, rng.random()*2, (1, seeds))
    crossed, alone = crossed_t(d), [paired_t(d.mean(axis)) for axis in (0, 1)]
    assert abs(crossed.t[0]) <= min(abs(a.t[0]) for a in alone) + 1e-9
    parts = parts_of(d)
    variance = parts['user']/users + parts['seed']/seeds + parts['rest']/users/seeds
    least = max((d.mean()/a.t[0])**2 for a in alone)
    assert (d.mean()/crossed.t[0])**2 == pytest.approx(max(variance, least), rel=1e-6)
    assert min(users, seeds) - 1 <= crossed.df[0] + 1e-9
    assert crossed_t(-d).p[0] == pytest.approx(crossed.p[0]) and crossed_t(d[rng.permutation(users)][:, rng.permutation(seeds)]).p[0] == pytest.approx(crossed.p[0])


def test_the_crossed_test_of_many_columns_is_that_of_each():
    d = np.random.default_rng(0).normal(size=(30, 4, 5))
    d[:, :, 3] = 0
    got = crossed_t(d)
    for j in range(5): np.testing.assert_allclose([part[j] for part in got], [part[0] for part in crossed_t(d[:, :, j])], equal_nan=True)
    assert np.isnan(got.p[3]) and np.isfinite(got.p[[0, 1, 2, 4]]).all()


@given(st.floats(0, 6), st.integers(1, 200), st.floats(.001, .2))
@settings(max_examples=60)
def test_power_is_that_of_the_noncentral_t(shift, df, alpha):
    edge = stats.t.isf(alpha/2, df)
    exact = stats.nct.sf(edge, df, shift) + stats.nct.cdf(-edge, df, shift)
    if np.isfinite(exact): assert power_of(shift, df, alpha) == pytest.approx(exact, abs=2e-3)


def test_power_and_its_inverse():
    for df in (2, 5, 100):
        for wanted in (.5, .8, .95): assert power_of(noncentrality(df, .05, wanted), df) == pytest.approx(wanted, abs=1e-6)


def test_power_rises_as_foretold_with_what_is_planted():
    shares, told = [], []
    for effect in (0., .08, .16, .3):
        gains = [ranked_worlds(n, 200, 4, (0, effect), Spread(), np.random.default_rng([seed, n])) for seed, n in ((1, 80), (2, 400))]
        d = [(g[1] - g[0]).astype(float) for g in gains]
        pilot = pd.DataFrame(dict(diff=d[0].mean((0, 1)), dz_seed=d[0].mean((0, 1))/d[0].mean(0).std(0, ddof=1), dz_user=d[0].mean((0, 1))/d[0].mean(1).std(0, ddof=1), n_users=200, n_seeds=4))
        told.append(foretold(pilot)); shares.append({test: (p[:, 0] < .05).mean() for test, p in p_values(gains[1]).items()})
    for test in ('seeds', 'users'):
        assert np.all(np.diff([s[test] for s in shares]) > 0)
        assert np.allclose([s[test] for s in shares], [t[test] for t in told], atol=.13)


def test_recovery_is_chance_for_chance_and_one_for_the_truth():
    rng = np.random.default_rng(0)
    planted = rng.integers(0, 3, 150)
    assert recovery((planted + 1) % 3, planted, rng, 99)[:1] == (1.,)
    false = [recovery(rng.permutation(planted), planted, rng, 39).p <= .05 for _ in range(80)]
    assert share_of(false).low <= .05 and np.mean(false) < .13
    with pytest.raises(ValueError, match='one of each per user'): recovery(planted, planted[:-1], rng)


def test_calibrated_confidence_claims_what_is_true():
    rng = np.random.default_rng(0)
    chance = rng.random(6000)
    right, stated = rng.random(6000) < chance, 1 - .25*(1 - chance)
    learnt = calibrated(stated[:1500], right[:1500])
    for threshold in (.3, .5, .7, .9):
        kept = stated[1500:] >= stated_for(learnt, threshold)
        assert learnt.predict(stated[1500:][kept]).min() >= threshold - .02
        assert learnt.predict(stated[1500:][kept]).mean() == pytest.approx(right[1500:][kept].mean(), abs=.04)
        assert stated[1500:][kept].mean() > right[1500:][kept].mean()
    for wrong in (([], []), ([.5], [1]), ([.5, .6], [1])):
        with pytest.raises(ValueError, match='stated'): calibrated(*wrong)


def asked_tiers(questions, seed=0):
    "Three tiers that are right in 70, 85 and 95 % of their answers and keep seven tenths of their doubt to themselves."
    rng = np.random.default_rng(seed)
    chance = 1 - 2*(1 - np.array([[.7], [.85], [.95]]))*rng.random(questions)
    return 1 - .3*(1 - chance), rng.random(chance.shape) < chance


@pytest.mark.parametrize('threshold', [.5, .7, .8])
def test_what_is_claimed_of_an_escalation_is_true_if_every_tier_was_asked_for_the_whole_pilot(threshold):
    "Over twenty pilots. Learnt from what a climb leaves with each tier, which is what it was sure of, the claim is too high at any of these thresholds."
    off = dict(whole=[], left=[])
    for seed in range(20):
        stated, right = asked_tiers(4000, seed)
        pilot, others = np.s_[:, :400], np.s_[:, 400:]
        left = kept_by(stated[pilot], .999)
        as_left = [calibrated(c[mine], r[mine]) if mine.sum() > 1 else None for c, r, mine in zip(stated[pilot], right[pilot], (left >= 0, left == 1, left == 2))]
        for way, maps in dict(whole=tier_maps(stated[pilot], right[pilot]), left=as_left).items():
            kept = kept_by(stated[others], stated_for(maps[0], threshold))
            at = kept, np.arange(len(kept))
            off[way].append(np.stack([m.predict(c) if m else c for m, c in zip(maps, stated[others])])[at].mean() - right[others][at].mean())
    assert abs(np.mean(off['whole'])) < .012 and np.abs(off['whole']).max() < .07
    assert np.mean(off['left']) > .03


def test_a_pilot_that_some_tier_was_not_wholly_asked_for_is_refused():
    stated, right = asked_tiers(300)
    left = np.where(kept_by(stated, .999) == np.arange(3)[:, None], stated, np.nan)   # what an escalation leaves with each tier
    with pytest.raises(ValueError, match='put the whole pilot to every tier'): tier_maps(left, right)
    with pytest.raises(ValueError, match='tier 1 has 299 judged answers to 300'): tier_maps(stated, np.where(np.arange(300) == np.array([[-1], [7], [-1]]), np.nan, right))
    for wrong in ((stated, right[:2]), (stated[0], right[0])):
        with pytest.raises(ValueError, match='tiers × questions'): tier_maps(*wrong)


@given(st.integers(1, 4), st.integers(1, 12), st.floats(0, 1.01), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_an_escalation_replayed_asks_the_next_tier_when_in_doubt(tiers, questions, threshold, seed):
    stated = np.random.default_rng(seed).random((tiers, questions)).round(1)
    def climb(column):
        for tier, sure in enumerate(column):
            if sure >= threshold: break
        return tier
    assert kept_by(stated, threshold).tolist() == [climb(column) for column in stated.T]


def test_parts_and_pilots_refuse_what_says_nothing():
    with pytest.raises(ValueError, match='two at least'): parts_of(np.zeros((5, 1)))
    with pytest.raises(ValueError, match='pilot'): foretold(pd.DataFrame(dict(diff=[.1], dz_seed=[1.], dz_user=[.1], n_users=[100], n_seeds=[3])))
