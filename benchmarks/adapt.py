"""Seconds of one training step of each adapter (forward and backward, whole catalogue) beside the linear one, of a mixture beside a loop over its experts, and of each reduction.

    python benchmarks/adapt.py [items] [in_size] [out_size] [repetitions]

Kinds alternate within a repetition, so that a busy machine slows all of them; ratios are medians over repetitions. The threads are torch's own: set OMP_NUM_THREADS to change them.
"""
import statistics, sys, time
import numpy as np
import torch
from torch.nn import functional as F
from recx.adapt.adapters import make_adapter, mix
from recx.adapt.reduce import REDUCTIONS, fit_reduce


def looped(moe, x):
    "The mixture with a loop over its experts, as in published code."
    x = x*moe.in_size**.5
    gates = mix(x @ moe.gate, moe.top_k)
    each = [F.gelu(x @ moe.weight1[e] + moe.bias1[e]) @ moe.weight2[e] + moe.bias2[e] for e in range(gates.shape[1])]
    return (torch.stack(each, dim=1)*gates[:, :, None]).sum(1)


def step(forward, x, weight):
    "Seconds of a forward and a backward pass."
    start = time.perf_counter()
    (forward(x)*weight).sum().backward()
    return time.perf_counter() - start


def adapters(items, in_size, out_size, repetitions):
    "The table of adapters."
    torch.manual_seed(0)
    x, weight = torch.randn(items, in_size)/in_size**.5, torch.randn(items, out_size)
    kinds = dict(linear=dict(name='linear'), mlp=dict(name='mlp', hidden=64))
    kinds |= {f'moe, {e} experts, hidden 32': dict(name='moe', hidden=32, experts=e) for e in (2, 4, 8, 16)}
    kinds |= {'moe, 8 experts, hidden 16': dict(name='moe', hidden=16, experts=8), 'moe, 8 linear experts': dict(name='moe', hidden=0, experts=8), 'moe, 8 experts, hidden 32, top 2, noise': dict(name='moe', hidden=32, experts=8, top_k=2, noise=1.)}
    made = {name: make_adapter(in_size=in_size, out_size=out_size, **kind) for name, kind in kinds.items()}
    eight = made['moe, 8 experts, hidden 32']
    jobs = made | {'moe, 8 experts, hidden 32, by a loop': lambda x: looped(eight, x)}
    seconds = {name: [] for name in jobs}
    for turn in range(repetitions + 1):
        for name, job in jobs.items():
            took = step(job, x, weight)
            if turn: seconds[name].append(took)
    print(f'{items} × {in_size} → {out_size}, forward and backward, {torch.get_num_threads()} threads, median of {repetitions}')
    for name, took in seconds.items():
        parameters = sum(p.numel() for p in made[name].parameters()) if name in made else ''
        print(f'{name:42s} {1000*statistics.median(took):7.1f} ms   × linear {statistics.median(a/b for a, b in zip(took, seconds["linear"])):5.1f}   parameters {parameters}')
    loop = seconds['moe, 8 experts, hidden 32, by a loop']
    print(f'a loop over 8 experts takes {statistics.median(a/b for a, b in zip(loop, seconds["moe, 8 experts, hidden 32"])):.2f} times as long as the stacked form')


def reductions(items, in_size=384, size=64):
    "Seconds to fit and apply each reduction once."
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(in_size) + rng.standard_normal((items, in_size))/np.arange(1, in_size + 1)**.5).astype(np.float32)
    print(f'\n{items} × {in_size}, fit and apply, pca and whiten to {size}, pq with 8 parts of 32 codes')
    for name in REDUCTIONS:
        start = time.perf_counter()
        fit_reduce(name, x, size, parts=8, codes=32).apply(x)
        print(f'{name:8s} {time.perf_counter() - start:6.2f} s')


def main():
    given = [int(a) for a in sys.argv[1:]]
    items, in_size, out_size, repetitions = given + [12_101, 64, 64, 20][len(given):]
    adapters(items, in_size, out_size, repetitions)
    reductions(items)


if __name__ == '__main__': main()
