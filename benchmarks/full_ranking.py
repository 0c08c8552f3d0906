"""Full-ranking evaluation at the size of a large shop: ranks of the targets of 100,000 users among 105,542 items, and the lists that they would be shown.

    python benchmarks/full_ranking.py [--users 100000] [--items 105542] [--size 64] [--threads 2] [--seen 23] [--basket 1] [--repeat 1]

Users have `--seen` earlier events each, which are left out of the ranking, and `--basket` events to be predicted. Beside the ranks stands the bare matrix product that they need, in the same blocks; exposure counts the items of the top-10 lists.
"""
import argparse, os, resource, time
import numpy as np
import torch
from recx.recommend.batches import held_out
from recx.recommend.ranking import exposure, ndcg, target_ranks


def arguments():
    parser = argparse.ArgumentParser()
    for name, value in dict(users=100_000, items=105_542, size=64, threads=2, seen=23, basket=1, repeat=1).items(): parser.add_argument(f'--{name}', type=int, default=value)
    return parser.parse_args()


def product(queries, table, block=256):
    "The scores and nothing else, into the same memory."
    scores, columns = torch.empty(block, len(table)), table.T
    for i in range(0, len(queries), block): torch.mm(queries[i:i + block], columns, out=scores[:len(queries[i:i + block])])


def timed(job, *given):
    begun, cpu = time.perf_counter(), time.process_time()
    made = job(*given)
    return made, time.perf_counter() - begun, time.process_time() - cpu


def main():
    given = arguments()
    torch.set_num_threads(given.threads)
    rng = np.random.default_rng(0)
    each = given.seen + given.basket
    user, item = np.repeat(np.arange(given.users, dtype=np.int32), each), rng.integers(0, given.items, given.users*each).astype(np.int32)
    split = np.tile(np.array([0]*given.seen + [2]*given.basket, np.int8), given.users)
    held, *indexed = timed(lambda: held_out(user, item, split, 2, baskets=given.basket > 1))
    rows = torch.from_numpy(rng.normal(size=(given.users, given.size)).astype(np.float32))
    queries, table = rows[torch.from_numpy(user[held.row].astype(np.int64))], torch.from_numpy(rng.normal(size=(given.items, given.size)).astype(np.float32))
    for _ in range(given.repeat):
        _, *bare = timed(product, rows, table)
        ranks, *ranking = timed(target_ranks, queries, table, held)
        _, *lists = timed(exposure, queries, table, held, 10)
        print(f'{given.users:,} users with {given.basket} events each × {given.items:,} items × {given.size}, {given.threads} threads, load {os.getloadavg()[0]:.1f}: indexed in {indexed[0]:.2f} s · ranks {ranking[0]:.1f} s ({ranking[1]:.1f} of processor) · '
              f'bare product {bare[0]:.1f} s ({bare[1]:.1f}) · exposure {lists[0]:.1f} s ({lists[1]:.1f}) · peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20:.2f} GiB · NDCG@10 {ndcg(ranks, 10):.5f}', flush=True)


if __name__ == '__main__': main()
