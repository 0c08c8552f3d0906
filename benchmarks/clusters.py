"""Processor seconds and quality of each way of clustering text vectors: planted groups at the size of a catalogue, order-robustness and purity of the streaming tree, and, where a file of vectors is given, real ones.

    python benchmarks/clusters.py [points] [dimensions] [vectors.npy]

Budgets are shares of the points, as `cluster_share` gives them. Seconds are of the processor, over all threads, so that other programs do not count; with OMP_NUM_THREADS=1 they are what an idle machine would take.
"""
import resource, sys, time
import numpy as np
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from recx.text.clusters import METHODS, cluster, cut_labels, cut_tree, dendrogram_purity, describe_clusters, directions, grow_tree, planted

SHARES = (.01, .05, .10, .25)


def ways(vectors, title, truth=None):
    "Every method at every budget."
    print(f'\n{title}: {len(vectors)} × {vectors.shape[1]}')
    print('method     share  asked   made  seconds  within  to medoid  single  largest' + ('     ARI     NMI' if truth is not None else ''))
    for how in METHODS:
        for share in SHARES:
            asked = max(1, round(share*len(vectors)))
            start = time.process_time()
            labels = cluster(vectors, how, asked)
            took, d = time.process_time() - start, describe_clusters(vectors, labels)
            known = f'  {adjusted_rand_score(truth, labels):6.3f}  {normalized_mutual_info_score(truth, labels):6.3f}' if truth is not None else ''
            print(f"{how:9s} {share:6.0%} {asked:6d} {d['clusters']:6d} {took:8.1f}  {d['within']:6.3f}  {d['to_medoid']:9.3f} {d['single']:7d} {d['largest']:8d}{known}", flush=True)


def orders(points, dimensions):
    "How much the streaming tree depends on the order of arrival."
    vectors, theme, part = planted(points, 10, 10, dimensions, noise=1.)
    cuts = []
    print(f'\nstreaming tree, {points} × {dimensions}, 10 themes of 10 parts, five orders of arrival')
    for seed in range(5):
        tree = grow_tree(vectors, seed)
        cuts.append(cut_labels(tree, cut_tree(tree, 100)))
        print(f'order {seed}: dendrogram purity {dendrogram_purity(tree, theme):.3f} of themes, {dendrogram_purity(tree, part):.3f} of parts; 100 clusters, ARI with the parts {adjusted_rand_score(part, cuts[-1]):.3f}', flush=True)
    between = [adjusted_rand_score(a, b) for i, a in enumerate(cuts) for b in cuts[:i]]
    print(f'between orders: ARI of the cuts {np.mean(between):.3f} on average, {min(between):.3f} at least')


def growth(dimensions):
    "Seconds per point as the tree grows."
    print('\nstreaming tree, growth')
    for points in (5_000, 10_000, 20_000):
        vectors = planted(points, 100, 10, dimensions, noise=1.)[0]
        start = time.process_time()
        tree = grow_tree(vectors)
        grown = time.process_time()
        cut_tree(tree, points//20)
        dense = sum(c is not None for c in tree.counts)
        print(f'{points:6d} points: grown in {grown - start:5.1f} s ({1e6*(grown - start)/points:4.0f} µs each), cut in {time.process_time() - grown:4.1f} s, {dense} nodes count cells ({dense*tree.kernel.first[-1]*4/2**20:.0f} MiB)', flush=True)


if __name__ == '__main__':
    points, dimensions = (int(a) for a in (sys.argv[1:3] + ['20000', '384'][len(sys.argv) - 1:]))
    vectors, _, part = planted(points, 100, 10, dimensions, noise=1.)
    ways(vectors, 'planted, 100 themes of 10 parts', part)
    orders(min(points, 3000), dimensions)
    growth(dimensions)
    if len(sys.argv) > 3: ways(directions(np.load(sys.argv[3])), 'given vectors')
    print(f'peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20:.1f} GiB')
