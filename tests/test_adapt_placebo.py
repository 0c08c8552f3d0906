"What placebos keep and what they destroy, for any shape."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import spearmanr
from recx.adapt.placebo import PLACEBOS, make_placebo

FALSE = [p for p in PLACEBOS if p != 'none']


def cloud(n, d, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(d) + rng.standard_normal((n, d)) @ rng.standard_normal((d, d))/d**.5).astype(np.float32)


def as_set(m): return sorted(map(bytes, m))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(['shuffled', 'popularity']), st.integers(2, 120), st.integers(1, 9), st.integers(0, 50))
def test_rows_are_kept_and_no_item_keeps_its_own(name, n, d, seed):
    x = cloud(n, d, seed)
    y = make_placebo(name, x, seed, popularity=np.random.default_rng(seed).integers(0, 5, n))
    assert as_set(x) == as_set(y) and y.dtype == np.float32
    assert not (x == y).all(1).any()


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 120), st.integers(1, 30), st.integers(0, 50))
def test_gaussian_keeps_mean_and_covariance(n, d, seed):
    x = cloud(n, d, seed).astype(np.float64)
    y = make_placebo('gaussian', x, seed).astype(np.float64)
    scale = np.abs(x).max()
    np.testing.assert_allclose(y.mean(0), x.mean(0), atol=1e-5*scale)
    np.testing.assert_allclose(np.cov(y.T, ddof=0), np.cov(x.T, ddof=0), atol=1e-4*scale**2)


def test_gaussian_is_gaussian_and_unrelated():
    rng = np.random.default_rng(0)
    x = (rng.integers(0, 2, (4000, 6))*2 - 1 + .1*rng.standard_normal((4000, 6))).astype(np.float32)  # two-humped coordinates
    y = make_placebo('gaussian', x, 1).astype(np.float64)
    z = (y - y.mean(0))/y.std(0)
    assert (np.abs((z**4).mean(0) - 3) < .3).all() and ((x**4).mean(0)/(x**2).mean(0)**2 < 1.2).all()
    assert np.abs(np.corrcoef(x[:, 0], y[:, 0])[0, 1]) < .06


def test_gaussian_signs_are_free():
    "QR fixes signs by convention; over seeds the first row must fall on either side."
    x = cloud(50, 1)
    above = np.mean([make_placebo('gaussian', x, s)[0, 0] > x.mean() for s in range(200)])
    assert .35 < above < .65


@pytest.mark.parametrize('x', [np.repeat(cloud(30, 4), 2, axis=1), cloud(5, 40), np.concatenate([cloud(30, 4), np.ones((30, 3))], axis=1)])
def test_gaussian_of_singular_covariance(x):
    y = make_placebo('gaussian', x, 0).astype(np.float64)
    assert np.isfinite(y).all()
    np.testing.assert_allclose(np.cov(y.T, ddof=0), np.cov(x.T, ddof=0), atol=1e-4)


def test_gaussian_of_constant_vectors_is_constant():
    assert (make_placebo('gaussian', np.full((6, 3), 2.), 0) == 2).all()


@pytest.mark.parametrize('n', [200, 1682, 12_101])
def test_popularity_of_the_donor_is_kept(n):
    rng = np.random.default_rng(n)
    popularity = (rng.pareto(1., n)*3).astype(int)
    x = np.stack([popularity, np.arange(n)], axis=1).astype(np.float32)
    kept = make_placebo('popularity', x, 0, popularity)
    assert spearmanr(popularity, kept[:, 0]).statistic > .95
    assert abs(spearmanr(popularity, make_placebo('shuffled', x, 0)[:, 0]).statistic) < .25
    assert abs(spearmanr(np.arange(n), kept[:, 1]).statistic) < .25


@pytest.mark.parametrize('name', FALSE)
def test_seeds(name):
    x, popularity = cloud(90, 5), np.arange(90)
    make = lambda seed: make_placebo(name, x, seed, popularity)
    before = x.copy()
    assert (make(3) == make(3)).all() and (make(3) != make(4)).any()
    assert (x == before).all()


def test_all_donors_are_equally_likely():
    n, draws = 5, 4000
    got = np.stack([make_placebo('shuffled', np.arange(n)[:, None], s)[:, 0].astype(int) for s in range(draws)])
    share = np.stack([np.bincount(got[:, i], minlength=n)/draws for i in range(n)])
    np.testing.assert_allclose(share[~np.eye(n, dtype=bool)], 1/(n - 1), atol=.04)


@pytest.mark.parametrize('name', FALSE)
@pytest.mark.parametrize('bad', [np.ones((1, 3)), np.ones(5), np.full((4, 3), np.nan), np.array([[1, np.inf], [0, 0]])])
def test_bad_vectors(name, bad):
    with pytest.raises(ValueError, match=f'placebo={name!r}'): make_placebo(name, bad, 0, np.ones(len(bad)))


@pytest.mark.parametrize('popularity', [None, [1, 2], [[1]*4], [1, 2, 3, -1], [1, 2, 3, np.nan]])
def test_bad_popularity(popularity):
    with pytest.raises(ValueError, match='popularity'): make_placebo('popularity', cloud(4, 2), 0, popularity)
