"""Seconds to form the tastes of all users beside a loop over users, and to continue them with the last hundredth of the events beside a full computation.

    python benchmarks/tastes.py [events] [users] [items] [size] [repetitions]

All kinds alternate within a repetition, so that a busy machine slows all of them; ratios are medians over repetitions. Events are spread over users and items as popularity is, by a power law.
"""
import statistics, sys, time
import numpy as np
import pandas as pd
from recx.extract.tastes import no_tastes, read_tastes, update_tastes
from recx.extract.vectors import Vectors


def world(events, users, items, size):
    "Events of two years, and item vectors."
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(dict(id=[f'i{i}' for i in range(items)], kind='item', layer='', text_hash=[f'{i:x}' for i in range(items)], source='flatten', model='m', tuning='frozen', pooling='mean', prompt_version='1', generated_at=''))
    user, item = ((n*rng.random(events)**3).astype(int) for n in (users, items))
    log = pd.DataFrame(dict(user=[f'u{u}' for u in user], item=[f'i{i}' for i in item], time=np.sort(rng.integers(0, 2*365*86_400, events))))
    return log, Vectors(rows, rng.standard_normal((items, size)))


def by_user(log, vectors, half_life):
    "The formula with a loop over users."
    at = pd.Index(vectors.rows.id).get_indexer(log.item)
    means = []
    for rows in log.groupby('user').indices.values():
        age = log.time.to_numpy()[rows].max() - log.time.to_numpy()[rows]
        means.append(np.average(vectors.matrix[at[rows]], axis=0, weights=np.exp2(-age/(half_life*86_400))))
    return np.stack(means)


def timed(job):
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def main():
    given = [int(a) for a in sys.argv[1:]]
    events, users, items, size, repetitions = given + [1_000_000, 50_000, 20_000, 384, 3][len(given):]
    log, vectors = world(events, users, items, size)
    everybody, cut = log.user.unique(), events - events//100
    empty = no_tastes(everybody, vectors, 30)
    state, full = update_tastes(empty, log[:cut], vectors), update_tastes(empty, log, vectors)
    jobs = {'full': lambda: update_tastes(empty, log, vectors), 'loop over users': lambda: by_user(log, vectors, 30), 'the last hundredth': lambda: update_tastes(state, log[cut:], vectors), 'reading all': lambda: read_tastes(full)}
    seconds = {name: [] for name in jobs}
    for _ in range(repetitions):
        for name, job in jobs.items(): seconds[name].append(timed(job))
    apart = np.abs(read_tastes(update_tastes(state, log[cut:], vectors)).matrix - read_tastes(full).matrix).max()
    print(f'{events} events, {len(everybody)} users, {items} items × {size}, median of {repetitions}; update and full differ by at most {apart:.1e}')
    for name, took in seconds.items(): print(f'{name:20s} {statistics.median(took):7.2f} s   × full {statistics.median(a/b for a, b in zip(took, seconds["full"])):6.2f}')


if __name__ == '__main__': main()
