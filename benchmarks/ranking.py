"""Full ranking beside the bare matrix product it needs, in one process and one run.

    python benchmarks/ranking.py [users] [items] [size] [repetitions] [threads]

Users have histories of 5 to 12 events; the target's rank among all items is computed with seen items left out and ties at their mean rank. The ratio is the figure: both halves run alternately, so that a busy machine slows both.
"""
import statistics, sys, time
import numpy as np
import torch
from recx.recommend.batches import held_out
from recx.recommend.ranking import target_ranks


def log(users, items, rng):
    "A random log with one validation and one test event for each user."
    lengths = rng.integers(5, 13, users)
    last = np.cumsum(lengths) - 1
    split = np.zeros(lengths.sum(), int)
    split[last], split[last - 1] = 2, 1
    return np.repeat(np.arange(users), lengths), rng.integers(0, items, len(split)), split


def product(queries, table, block=256):
    "The scores and nothing else, in the same blocks, into the same memory."
    scores, columns = torch.empty(block, len(table)), table.T
    for i in range(0, len(queries), block): torch.mm(queries[i:i + block], columns, out=scores[:len(queries[i:i + block])])


def timed(job, *given):
    start = time.perf_counter()
    job(*given)
    return time.perf_counter() - start


def main():
    users, items, size, repetitions, threads = map(int, sys.argv[1:] + ['22363', '12101', '64', '7', '2'][len(sys.argv) - 1:])
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    held = held_out(*log(users, items, rng), 2)
    queries, table = (torch.from_numpy(rng.normal(size=(n, size)).astype(np.float32)) for n in (len(held), items))
    times = [(timed(product, queries, table), timed(target_ranks, queries, table, held)) for _ in range(repetitions + 1)][1:]
    bare, full = (statistics.median(column) for column in zip(*times))
    print(f'{users} users × {items} items × {size}, {threads} threads, median of {repetitions} alternating repetitions')
    print(f'matrix product {bare:.2f} s · full ranking {full:.2f} s · ratio {statistics.median(f/b for b, f in times):.2f}')


if __name__ == '__main__': main()
