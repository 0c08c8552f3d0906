"Corrections: the definitions, SciPy, properties, and the error rates that they promise."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from recx.evidence.multiplicity import adjust, benjamini_hochberg, family_size, holm
from recx.evidence.tests import paired_t

ps = st.lists(st.one_of(st.floats(0, 1), st.just(float('nan'))), max_size=25)


def stepped_down(p, alpha):
    "Holm as it is defined: reject from the smallest on, stop at the first failure."
    rejected, m = np.zeros(len(p), bool), len(p)
    for i, j in enumerate(np.argsort(p, kind='stable')):
        if p[j] > alpha/(m - i): break
        rejected[j] = True
    return rejected


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=20), st.sampled_from([.01, .05, .2]))
def test_holm_rejects_what_the_step_down_rejects(p, alpha):
    p = np.array(p)
    if np.abs(np.sort(p)*np.arange(len(p), 0, -1) - alpha).min() > 1e-9: assert np.array_equal(holm(p) <= alpha, stepped_down(p, alpha))


@settings(max_examples=80, deadline=None)
@given(ps, st.randoms())
def test_properties_of_both(p, random):
    "Never below p, never above 1, NaN stays NaN, monotone in p, and the order of the list decides nothing; Holm is never below BH, Bonferroni never below Holm."
    p = np.array(p, float)
    tested, order = np.isfinite(p), np.array(random.sample(range(len(p)), len(p)), int)
    for method in (holm, benjamini_hochberg):
        q = method(p)
        assert np.array_equal(np.isnan(q), ~tested) and (q[tested] >= p[tested] - 1e-12).all() and (q[tested] <= 1).all()
        assert (np.diff(q[tested][np.argsort(p[tested], kind='stable')]) >= -1e-12).all()
        assert np.allclose(method(p[order]), q[order], equal_nan=True)
    assert (holm(p)[tested] >= benjamini_hochberg(p)[tested] - 1e-12).all() and (holm(p)[tested] <= np.minimum(1, p[tested]*family_size(p)) + 1e-12).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=25))
def test_bh_is_scipys(p): assert np.allclose(benjamini_hochberg(p), stats.false_discovery_control(p))


def test_holm_by_hand(): assert np.allclose(holm([.01, .04, .03, .005]), [.03, .06, .06, .02])


def test_what_could_not_be_tested_takes_nothing_from_the_others():
    p = [.01, float('nan'), .02, float('nan')]
    assert np.allclose(holm(p)[[0, 2]], holm([.01, .02])) and np.allclose(benjamini_hochberg(p)[[0, 2]], benjamini_hochberg([.01, .02])) and family_size(p) == 2


def test_family_and_exploration_do_not_share_their_correction():
    p, declared = np.array([.01, .02, .03, .04]), np.array([True, False, True, False])
    assert np.allclose(adjust(p, declared)[declared], holm(p[declared])) and np.allclose(adjust(p, ~declared)[declared], benjamini_hochberg(p[declared]))


@pytest.mark.parametrize('bad', [-.1, 1.1, float('inf')])
def test_what_is_no_p_value_is_refused(bad):
    with pytest.raises(ValueError, match='p='): holm([.5, bad])


def test_holm_keeps_the_family_wise_error_where_uncorrected_tests_do_not():
    "Ten comparisons with one baseline, so dependent, and no effect in any: 2,000 studies."
    rng = np.random.default_rng(0)
    base, arms = rng.normal(0, 1, (40, 1, 2000)), rng.normal(0, 1, (40, 10, 2000))
    p = paired_t((arms - base).reshape(40, -1)).p.reshape(10, 2000).T
    family = np.array([holm(row).min() for row in p])
    assert np.mean(p.min(axis=1) < .05) > .2 and np.mean(family < .05) < .05 + .012


def test_bh_keeps_the_false_discovery_rate():
    "Twenty comparisons, five with an effect: the share of false claims among the claims, over 1,000 studies."
    rng, true = np.random.default_rng(1), np.arange(20) < 5
    p = paired_t(rng.normal(0, 1, (30, 1000, 20)).reshape(30, -1) + np.tile(true*.8, 1000)).p.reshape(1000, 20)
    claims = np.array([benjamini_hochberg(row) < .05 for row in p])
    false = (claims & ~true).sum(axis=1)/np.maximum(1, claims.sum(axis=1))
    assert false.mean() < .05 and claims[:, true].mean() > .8
