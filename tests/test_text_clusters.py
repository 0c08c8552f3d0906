"Clustering: planted groups, bad input, odd sizes, and that the streaming tree counts what it says."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from sklearn.metrics import adjusted_rand_score
from recx.text.clusters import (METHODS, SMALL, Tree, cells_of, cluster, cluster_means, cut_labels, cut_tree, dendrogram_purity, describe_clusters, directions, extend, fit_kernel, grow_tree, join_clusters,
                                kmeans_labels, medoids, overlap, parents_first, planted, similarity)

HOW = tuple(how for how in METHODS if how != 'chance') # which recovers nothing, and is meant not to


@pytest.mark.parametrize('how', HOW)
def test_planted_themes_are_found(how):
    vectors, theme, _ = planted(800, 5, 4, 64, noise=.6)
    assert adjusted_rand_score(theme, cluster(vectors, how, 5)) > (.7 if how == 'streakhc' else .95) # the tree sees each point once


def test_finer_groups_are_found():
    "HDBSCAN is left out: its number of clusters is bounded, not chosen."
    vectors, _, part = planted(1500, 5, 10, 64, noise=.5)
    for how in ('kmeans', 'streakhc'): assert adjusted_rand_score(part, cluster(vectors, how, 50)) > .75, how


def test_groups_of_unequal_size_and_spread():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((3, 32))
    truth = np.repeat([0, 1, 2], [500, 80, 20])
    vectors = directions(centres[truth] + np.array([.7, .2, .1])[truth, None]*rng.standard_normal((600, 32)))
    tree = grow_tree(vectors)
    assert dendrogram_purity(tree, truth) > .98
    assert adjusted_rand_score(truth, cluster(vectors, 'kmeans', 3)) > .9


def test_kernel_is_a_kernel():
    vectors, *_ = planted(300)
    cells = cells_of(fit_kernel(vectors, psi=(40,), partitions=60), vectors)
    k = similarity(cells, cells)
    assert k.min() >= 0 and k.max() <= 1 and (k.diagonal() == 1).all() and (k == k.T).all()
    assert np.linalg.eigvalsh(k).min() > -1e-8
    assert [len(np.unique(column)) for column in cells.T] == [40]*60


def test_kernel_adapts_to_density():
    "At the same distance, points are less similar where the data are dense."
    rng = np.random.default_rng(1)
    angle = np.concatenate([rng.uniform(0, .5, 900), rng.uniform(2, 2.5, 100)])
    on_circle = lambda a: directions(np.stack([np.cos(a), np.sin(a)], axis=1))
    kernel = fit_kernel(on_circle(angle), psi=(64,), partitions=400)
    pair = lambda at: similarity(*(cells_of(kernel, on_circle(np.array([at + d]))) for d in (0., .02)))[0, 0]
    assert np.mean([pair(a) for a in (.1, .2, .3, .4)]) < np.mean([pair(a) for a in (2.1, 2.2, 2.3, 2.4)])


def points_under(tree, node):
    waiting, found = [node], []
    while waiting:
        n = waiting.pop()
        if tree.children[n]: waiting += tree.children[n]
        else: found += tree.members[n]
    return sorted(found)


@pytest.mark.parametrize('rows, twins', [(2, 0), (40, 0), (3*SMALL, 40), (200, 150)])
def test_tree_counts_what_it_says(rows, twins):
    "Sizes, sums within and overlaps are those of a count over all pairs, with points that are the same among them."
    vectors, *_ = planted(rows, 3, 3, 16)
    vectors = np.concatenate([vectors, vectors[np.zeros(twins, int)]])
    tree = grow_tree(vectors, partitions=25)
    k = similarity(tree.cells, tree.cells)
    for node in range(len(tree.size)):
        under = points_under(tree, node)
        assert tree.size[node] == len(under)
        assert np.isclose(tree.within[node], k[np.ix_(under, under)].sum())
        assert np.isclose(overlap(tree, node, tree.cells[0]), k[under, 0].sum())
    assert points_under(tree, 0) == list(range(len(vectors)))
    assert sorted(parents_first(tree)) == list(range(len(tree.size)))
    assert all(point in tree.members[leaf] for point, leaf in enumerate(tree.leaf))


def test_orders_of_arrival_agree():
    vectors, theme, part = planted(1000, 5, 6, 64, noise=.5)
    cuts = []
    for seed in range(4):
        tree = grow_tree(vectors, seed)
        assert dendrogram_purity(tree, theme) > .85 and dendrogram_purity(tree, part) > .85
        cuts.append(cut_labels(tree, cut_tree(tree, 30)))
        assert adjusted_rand_score(part, cuts[-1]) > .6
    assert np.mean([adjusted_rand_score(a, b) for i, a in enumerate(cuts) for b in cuts[:i]]) > .6


def test_a_sorted_stream_is_worse_and_no_disaster():
    vectors, theme, _ = planted(600)
    kernel = fit_kernel(vectors)
    sorted_tree = extend(Tree(kernel, np.empty((0, len(kernel.centres)), np.int32)), vectors, np.argsort(theme, kind='stable'))
    assert .6 < dendrogram_purity(sorted_tree, theme) < dendrogram_purity(grow_tree(vectors), theme)


def purity_by_pairs(tree, truth):
    parent = {child: node for node in range(len(tree.size)) for child in tree.children[node]}
    up = lambda n: [n] + (up(parent[n]) if n in parent else [])
    paths = [up(leaf) for leaf in tree.leaf]
    found = []
    for i in range(len(truth)):
        for j in range(i):
            if truth[i] != truth[j]: continue
            low = next(n for n in paths[i] if n in paths[j])
            found.append(np.mean(truth[points_under(tree, low)] == truth[i]))
    return np.mean(found)


def test_dendrogram_purity_is_that_of_all_pairs():
    vectors, theme, _ = planted(40, 4, 2, 8, noise=1.)
    vectors = np.concatenate([vectors, vectors[:6]])
    theme = np.concatenate([theme, theme[:6]])
    tree = grow_tree(vectors)
    assert np.isclose(dendrogram_purity(tree, theme), purity_by_pairs(tree, theme))
    assert np.isnan(dendrogram_purity(tree, np.arange(46)))
    assert dendrogram_purity(tree, np.zeros(46, int)) == 1


def test_finer_cuts_lose_less():
    vectors, *_ = planted(500, noise=1.)
    tree = grow_tree(vectors)
    loss = lambda cut: sum(tree.size[n] - tree.within[n]/tree.size[n] for n in cut)
    cuts = [cut_tree(tree, k) for k in (1, 2, 5, 20, 77, 300, 10_000)]
    assert [len(c) for c in cuts[:-1]] == [1, 2, 5, 20, 77, 300]
    assert (np.diff([loss(c) for c in cuts]) < 1e-9).all()
    for cut in cuts: assert sorted(p for n in cut for p in points_under(tree, n)) == list(range(500))


@pytest.mark.parametrize('how', HOW)
@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 40), clusters=st.integers(1, 50), kinds=st.integers(1, 40), seed=st.integers(0, 3))
def test_any_size_any_number(how, rows, clusters, kinds, seed):
    "Labels are whole, numbered from 0 in order, never more than asked for, and the same again."
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((kinds, 5))[rng.integers(kinds, size=rows)].astype(np.float32)
    labels = cluster(vectors, how, clusters, seed)
    assert len(labels) == rows and labels.dtype == np.int64 and labels.max() < clusters
    assert list(dict.fromkeys(labels)) == list(range(labels.max() + 1))
    assert (labels == cluster(vectors, how, clusters, seed)).all()
    if clusters >= rows: assert (labels == np.arange(rows)).all()
    assert [labels[m] for m in medoids(vectors, labels)] == list(range(labels.max() + 1))


@pytest.mark.parametrize('how', HOW)
def test_equal_rows(how):
    vectors = np.repeat(np.eye(3, dtype=np.float32), 20, axis=0)
    assert (cluster(vectors, how, 3) == np.repeat([0, 1, 2], 20)).all()
    assert (cluster(vectors, how, 10) == np.repeat([0, 1, 2], 20)).all()
    assert (cluster(np.ones((50, 4)), how, 7) == 0).all()
    assert (cluster([[1., 2.]], how, 1) == 0).all()


@pytest.mark.parametrize('how', HOW)
@pytest.mark.parametrize('bad, says', [(np.nan, 'NaN'), (np.inf, 'infinity')])
def test_not_finite_is_refused(how, bad, says):
    vectors = np.ones((10, 3))
    vectors[4, 1] = bad
    with pytest.raises(ValueError, match=f'{says}.*' if bad != bad else says): cluster(vectors, how, 2)


def test_bad_input():
    for vectors, says in ((np.zeros((3, 2)), 'zero'), (np.ones(3), 'shape'), (np.ones((0, 4)), 'shape')):
        with pytest.raises(ValueError, match=says): cluster(vectors, 'kmeans', 1)
    with pytest.raises(ValueError, match='cluster_by'): cluster(np.ones((3, 2)), 'dbscan', 1)
    with pytest.raises(ValueError, match='clusters'): cluster(np.ones((3, 2)), 'kmeans', -1)


def test_kmeans_in_two_levels():
    vectors, _, part = planted(2000, 10, 5, 32, noise=.4)
    labels = kmeans_labels(vectors, 50, 0, lloyd=1)
    assert len(set(labels)) == 50 and adjusted_rand_score(part, labels) > .7
    assert len(set(kmeans_labels(vectors, 1500, 0, lloyd=1))) <= 1500


def test_medoid_is_the_most_central_member():
    vectors, *_ = planted(200)
    labels = cluster(vectors, 'kmeans', 12)
    for c, m in enumerate(medoids(vectors, labels)):
        rows = np.flatnonzero(labels == c)
        assert np.isclose((vectors[rows] @ vectors[m]).sum(), (vectors[rows] @ vectors[rows].T).sum(1).max(), atol=1e-3)


def test_description_of_clusters():
    vectors, *_ = planted(200)
    alone, one = describe_clusters(vectors, np.arange(200)), describe_clusters(vectors, np.zeros(200, int))
    assert alone['saved'] == 0 and alone['single'] == 200 and np.isclose(alone['to_medoid'], 1)
    assert one['clusters'] == 1 and np.isclose(one['within'], (vectors @ vectors.T)[~np.eye(200, dtype=bool)].mean(), atol=1e-5)


@pytest.mark.parametrize('how', HOW)
def test_newcomers_leave_the_old_alone(how):
    vectors, theme, _ = planted(700)
    labels = cluster(vectors[:600], how, 5)
    joined = join_clusters(vectors[:600], labels, vectors[600:], how, 5)
    assert set(joined) <= set(labels)
    assert adjusted_rand_score(theme[600:], joined) > adjusted_rand_score(theme[:600], labels) - .1
    assert (join_clusters(vectors[:600], labels, vectors[600:601], how, 5) == joined[:1]).all() # whoever else arrives
    single = np.arange(600)
    assert (join_clusters(vectors[:600], single, vectors[:50], how, 600) == np.arange(50)).all()


def test_means_of_members_that_cancel_out():
    assert np.isfinite(cluster_means(np.array([[1., 0.], [-1., 0.]]), np.array([0, 0]))).all()
    assert len(medoids(np.array([[1., 0.], [-1., 0.]]), np.array([0, 0]))) == 1
