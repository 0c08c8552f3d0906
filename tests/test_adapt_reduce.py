"Reductions against plain linear algebra, under made-up shapes, and under bad input."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from recx.adapt.reduce import REDUCTIONS, RIDGE, Reduction, check_reduce, fit_reduce


def cloud(n=120, d=16, seed=0, rank=None):
    "Rows with a common part and an uneven spectrum, of a given rank."
    rng = np.random.default_rng(seed)
    rank = rank or d
    return (rng.standard_normal(d)*2 + rng.standard_normal((n, rank)) @ (rng.standard_normal((rank, d))/np.arange(1, rank + 1)[:, None])).astype(np.float32)


def rms(m): return np.sqrt(np.square(m, dtype=np.float64).sum(1).mean())


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(REDUCTIONS), st.integers(6, 60), st.sampled_from([4, 8, 12]), st.integers(0, 9), st.floats(1e-3, 1e3))
def test_unit_scale_width_and_bytes(name, n, d, seed, factor):
    x = cloud(n, d, seed)*factor
    size = min(3, n - 1)
    fit = lambda: fit_reduce(name, x, size, parts=2, codes=3, seed=seed)
    y = fit().apply(x)
    assert y.dtype == np.float32 and y.shape == (n, size if name in ('pca', 'whiten') else d)
    assert rms(y) == pytest.approx(1, rel=1e-5)
    assert (fit().apply(x) == y).all()


@pytest.mark.parametrize('shape', [(200, 16), (12, 40)])
def test_pca_is_the_truncated_svd(shape):
    x = cloud(*shape).astype(np.float64)
    fit = fit_reduce('pca', x, 5)
    c = x - x.mean(0)
    u, s, vt = np.linalg.svd(c, full_matrices=False)
    y = fit.apply(x)/fit.scale
    np.testing.assert_allclose(np.abs(y), np.abs(u[:, :5]*s[:5]), atol=1e-4*s[0])
    np.testing.assert_allclose(fit.explained, s[:5]**2/(s**2).sum(), rtol=1e-6)
    for direction in fit.basis.T: assert direction[np.abs(direction).argmax()] > 0


def test_both_solvers_agree_on_signs():
    x = cloud(40, 39)
    square, lean = fit_reduce('pca', x, 6), fit_reduce('pca', np.pad(x, ((0, 0), (0, 5))), 6)  # covariance, singular values
    np.testing.assert_allclose(square.apply(x), lean.apply(np.pad(x, ((0, 0), (0, 5)))), atol=1e-5)


def test_whitening_up_to_the_ridge():
    x = cloud(500, 12).astype(np.float64)
    fit = fit_reduce('whiten', x, 12)
    values, directions = np.linalg.eigh(np.cov(x.T))
    values, directions = values[::-1], directions[:, ::-1]
    zca = (x - x.mean(0)) @ directions/np.sqrt(values + RIDGE*values.mean()) @ directions.T
    y = fit.apply(x).astype(np.float64)
    np.testing.assert_allclose(y @ y.T, zca @ zca.T*fit.scale**2, atol=1e-4)  # the same dot products as ZCA
    strong = values > 100*RIDGE*values.mean()
    np.testing.assert_allclose(y.var(0)[strong]/y.var(0)[0], 1, rtol=.02)


def test_fit_sees_nothing_but_the_rows_it_is_given():
    x, strange = cloud(), cloud(seed=5)*50
    for name in REDUCTIONS:
        fit = fit_reduce(name, x, 4, parts=4, codes=8)
        assert (fit.apply(np.concatenate([x, strange]))[:len(x)] == fit.apply(x)).all()


def test_size_beyond_rank_names_the_largest():
    x = cloud(100, 16, rank=5)
    with pytest.raises(ValueError, match=r'reduce_size=6: .*span 5 directions; use reduce_size between 1 and 5'): fit_reduce('pca', x, 6)
    assert fit_reduce('pca', x, 5).explained.sum() == pytest.approx(1)
    with pytest.raises(ValueError, match='between 1 and 7'): fit_reduce('whiten', cloud(8, 16), 16)


def test_duplicates_reduce_the_rank():
    x = np.repeat(cloud(6, 16), 10, axis=0)
    with pytest.raises(ValueError, match='between 1 and 5'): fit_reduce('pca', x, 6)


@pytest.mark.parametrize('name', REDUCTIONS)
@pytest.mark.parametrize('bad,match', [
    (np.full((5, 4), .1, np.float32), 'the same vector'), (np.zeros((5, 4)), 'the same vector'), (np.ones((1, 4)), 'at least two'), (np.ones((0, 4)), 'at least two'),
    (np.array([[1., np.nan]]*3), 'NaN'), (np.array([[1., np.inf]]*3), 'infinity'), (np.ones(4), 'shape'), (np.ones((2, 2, 2)), 'shape')])
def test_bad_vectors(name, bad, match):
    with pytest.raises(ValueError, match=match): fit_reduce(name, bad, 1, parts=2, codes=2)


@pytest.mark.parametrize('name', REDUCTIONS)
def test_apply_refuses_what_it_was_not_fitted_for(name):
    fit = fit_reduce(name, cloud(), 4, parts=4, codes=8)
    with pytest.raises(ValueError, match=r'\(rows, 16\)'): fit.apply(np.ones((3, 15)))
    with pytest.raises(ValueError, match='the first is row 1'): fit.apply(np.array([[0.]*16, [np.nan]*16]))


def test_near_constant_vectors_with_noise_of_rounding():
    x = np.full((50, 8), 3., np.float32)
    x[::2] = np.nextafter(x[::2], 4)
    with pytest.raises(ValueError, match='the same vector'): fit_reduce('pca', x, 2)


@pytest.mark.parametrize('name', REDUCTIONS)
def test_round_trip_and_bytes(name, tmp_path):
    x = cloud()
    fit = fit_reduce(name, x, 4, parts=4, codes=8, seed=3)
    a, b = fit.save(tmp_path/'a.npz'), fit_reduce(name, x, 4, parts=4, codes=8, seed=3).save(tmp_path/'b.npz')
    assert a.read_bytes() == b.read_bytes()
    back = Reduction.load(a)
    assert back.name == name and back.scale == fit.scale and (back.apply(x) == fit.apply(x)).all() and (back.explained == fit.explained).all()


def test_pq_reconstruction_is_the_nearest_code():
    x = cloud(60, 8).astype(np.float64)
    fit = fit_reduce('pq', x, parts=2, codes=5)
    codes, y = fit.codes(x), fit.apply(x)/fit.scale
    for part in range(2):
        run = x[:, part*4:part*4 + 4]
        assert (codes[:, part] == np.square(run[:, None] - fit.books[part]).sum(2).argmin(1)).all()
        np.testing.assert_allclose(y[:, part*4:part*4 + 4], fit.books[part][codes[:, part]], rtol=1e-5, atol=1e-5)
    assert codes.max() < 5 and 0 < fit.explained[0] < 1
    exact = fit_reduce('pq', x, parts=1, codes=60)
    assert exact.explained[0] == pytest.approx(1, abs=1e-6)


def test_pq_bad_parameters():
    x = cloud(20, 16)
    with pytest.raises(ValueError, match=r'pq_parts=5: must divide the 16'): fit_reduce('pq', x, parts=5)
    with pytest.raises(ValueError, match=r'pq_codes=21: .*at most 20'): fit_reduce('pq', x, parts=4, codes=21)
    with pytest.raises(ValueError, match='has no codes'): fit_reduce('pca', x, 4).codes(x)


@pytest.mark.parametrize('change,match', [(dict(reduce='zca'), 'reduce='), (dict(reduce_size=0), 'reduce_size=0'), (dict(pq_parts=0), 'pq_parts=0'), (dict(pq_codes=1), 'pq_codes=1'), (dict(reduce_seed=-1), 'reduce_seed=-1'), (dict(reduce_seed=2**32), 'reduce_seed')])
def test_check_names_the_parameter(change, match):
    with pytest.raises(ValueError, match=match): check_reduce(**dict(reduce='pca', reduce_size=8, pq_parts=4, pq_codes=8, reduce_seed=0) | change)
