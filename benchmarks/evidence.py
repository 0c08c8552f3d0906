"""Seconds of the statistics of a study, beside scipy.stats.bootstrap and permutation_test in one process; coverage of percentile, BCa and t intervals where the truth is known.

    python benchmarks/evidence.py [users=22363] [arms=9] [seeds=6] [draws=10000]

The ranks are simulated: hit rates as on Amazon Beauty, five kinds of strata, three placebo arms. OMP_NUM_THREADS sets the threads of the matrix products; by default all cores.
"""
import os, resource, sys, time
import numpy as np
import pandas as pd
from scipy import stats
from recx.evidence.bootstrap import percentile, resample, user_interval
from recx.evidence.compare import aligned, compare, values_of
from recx.evidence.tests import sign_flip

ITEMS = 12_101


def simulated(users, arms, seeds):
    "A study and its ranks; the strata hang together as those of real data do."
    rng = np.random.default_rng(0)
    popularity, count, ease = rng.pareto(1.1, users)*4, rng.integers(3, 60, users), rng.beta(.15, 1.2, users)
    base = pd.DataFrame(dict(user=[f'U{i:06d}' for i in range(users)], item=[f'B{i:05d}' for i in rng.integers(0, ITEMS, users)], split='test', share80=np.where(popularity > 3, 'head', 'tail'),
                             top20=np.where(popularity > 8, 'head', 'tail'), cold=np.where(popularity < .05, 'cold', 'warm'),
                             bin=pd.cut(popularity, [-1, .05, 3, 9, 29, 99, 1e9], labels=['0', '1–3', '4–9', '10–29', '30–99', '100+']).astype(str), history=pd.cut(count, [0, 4, 9, 19, 99], labels=['1–4', '5–9', '10–19', '20+']).astype(str)))
    base = base.astype({c: 'category' for c in base.columns})
    names = ['ids', *(f'arm {i}' for i in range(1, arms - 3)), *(f'arm 1 · {p}' for p in ('shuffled', 'gaussian', 'popularity'))]
    runs = []
    for i, name in enumerate(names):
        for s in range(seeds):
            hit = rng.random(users) < ease*(1 + .02*(i if '·' not in name else 0))
            runs.append(base.assign(arm=name, seed=s, rank=np.where(hit, rng.integers(1, 21, users), rng.integers(21, ITEMS, users)).astype(np.float32)))
    study = dict(baseline='ids', arms={n: dict(placebo_of='arm 1') if '·' in n else {} for n in names})
    return pd.concat(runs, ignore_index=True).astype(dict(arm='category')), study


class Seconds(float):
    "Wall seconds that print the CPU seconds beside: on a busy machine only these can be compared."
    def __str__(self): return f'{self:.2f} s ({self.cpu:.2f} s CPU)'


def timed(job):
    start, cpu = time.perf_counter(), time.process_time()
    result = job()
    took = Seconds(time.perf_counter() - start)
    took.cpu = time.process_time() - cpu
    return took, result


def worlds(n, count, rng, seeds=6):
    "NDCG@10 differences, averaged over seeds, of users of very different ease: (users, worlds)."
    ease, total = rng.beta(.12, 1.2, (n, count)), np.zeros((n, count))
    for _ in range(seeds):
        for sign, p in ((1, np.minimum(1, 1.15*ease)), (-1, ease)): total += sign*(rng.random((n, count)) < p)/np.log2(1 + rng.integers(1, 11, (n, count)))
    return total/seeds


def coverage(n, count=1000, draws=2000):
    "Share of worlds whose 95 % interval holds the truth."
    rng = np.random.default_rng(n)
    truth, d = worlds(20_000, 100, np.random.default_rng(0)).mean(), worlds(n, count, rng)
    drawn, mean = resample(d[:, None], np.arange(n), [np.arange(n)], n, draws)[0].users, d.mean(axis=0)
    z0, c = stats.norm.ppf((drawn < mean).mean(axis=0)), d - mean
    a = (c**3).sum(axis=0)/(6*(c**2).sum(axis=0)**1.5)
    ends = [np.array([np.quantile(x, q) for x, q in zip(drawn.T, stats.norm.cdf(z0 + (z0 + z)/(1 - a*(z0 + z))))]) for z in (-1.96, 1.96)]   # BCa, acceleration by the jackknife of a mean
    half = stats.t.isf(.025, n - 1)*d.std(axis=0, ddof=1)/np.sqrt(n)
    return dict(users=n, **{name: float(np.mean((low <= truth) & (truth <= high))) for name, (low, high) in dict(percentile=percentile(drawn), BCa=ends, t=(mean - half, mean + half)).items()})


def main(users=22_363, arms=9, seeds=6, draws=10_000):
    ranks, study = simulated(users, arms, seeds)
    print(f"{users:,} users, {arms} arms, {seeds} seeds, {draws:,} draws; threads: {os.environ.get('OMP_NUM_THREADS', 'all cores')} of {os.cpu_count()}")
    panel = aligned(ranks, list(study['arms']), ['share80', 'top20', 'bin', 'cold', 'history'])
    made = values_of(panel, 'ndcg@10', (5, 10, 20))
    rows, strata = made.values.transpose(3, 1, 0, 2).reshape(len(made.users), seeds, -1), [r for _, _, r in made.strata]
    d = (made.values[1] - made.values[0]).mean(axis=0)[made.metrics.index('ndcg@10')]
    columns = rows.shape[2]*len(strata)
    all_ours, _ = timed(lambda: resample(rows, made.users, strata, panel.n_users, draws))
    one_ours, ours = timed(lambda: user_interval(d, draws))
    one_scipy, theirs = timed(lambda: stats.bootstrap((d,), np.mean, method='percentile', n_resamples=draws, batch=250, rng=0).confidence_interval)
    print(f'\nbootstrap   one difference: recx {one_ours!s}, scipy {one_scipy!s}, ratio {one_scipy.cpu/one_ours.cpu:.1f}   intervals [{ours[0][0]:.5f}, {ours[1][0]:.5f}] and [{theirs.low:.5f}, {theirs.high:.5f}]')
    print(f'            all {columns:,} means (arms × metrics × strata), over users and over users and seeds: recx {all_ours!s}; one scipy bootstrap each would be {one_scipy.cpu*columns:,.0f} s CPU, ratio {one_scipy.cpu*columns/all_ours.cpu:,.0f}')
    flips_ours, p = timed(lambda: sign_flip(np.repeat(d[:, None], 99, axis=1), draws))
    flips_scipy, q = timed(lambda: stats.permutation_test((d,), np.mean, permutation_type='samples', vectorized=True, n_resamples=draws, batch=250, rng=0).pvalue)
    print(f'sign flips  99 comparisons: recx {flips_ours!s}, p = {p[0]:.4f}; one by scipy {flips_scipy!s}, p = {q:.4f}, ratio for 99: {99*flips_scipy.cpu/flips_ours.cpu:,.0f}')
    total, results = timed(lambda: compare(ranks, study, bootstrap=draws, flips=draws))
    print(f'compare     {len(results):,} rows from {len(ranks):,} ranks: {total!s}, peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20:.2f} GiB')
    print('\ncoverage of 95 % intervals, 1,000 worlds\n' + pd.DataFrame([coverage(n) for n in (30, 100, 300, 1000)]).to_string(index=False))


if __name__ == '__main__': main(**{name: int(value) for name, value in (arg.split('=') for arg in sys.argv[1:])})
