"""DeepFM, DCNv2 and DIN over one million generated events: rows per second in training and in scoring, and peak memory.

    python benchmarks/clicks.py [--networks deepfm,dcnv2,din] [--events 1000000] [--users 20000] [--items 10000] [--size 32] [--history 10] [--batch 2048] [--steps 0] [--threads 1]

Events have a user, an item, five attributes and a history of liked items; eight in ten are for training. One epoch is trained over all of these (or `--steps` batches), in a process of its own for each network. The peak is that of resident memory from the making of the instances on; beside it stands what was resident before, which is the libraries and the tables of text.
"""
import argparse, multiprocessing, time
from pathlib import Path
import numpy as np
import pandas as pd
import torch
from recx.data.dataset import Col, Dataset
from recx.data.parameters import declared
from recx.recommend import stage
from recx.recommend.clicks import Clicks
from recx.recommend.given import Given


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument('--networks', default='deepfm,dcnv2,din')
    for name, value in dict(events=1_000_000, users=20_000, items=10_000, size=32, history=10, batch=2048, steps=0, threads=1).items(): parser.add_argument(f'--{name}', type=int, default=value)
    return parser.parse_args()


def generated(events, users, items):
    "People who like what is near to them in four hidden directions, and what is good."
    rng = np.random.default_rng(0)
    person, film = np.sort(rng.integers(0, users, events)), (items*rng.random(events)**2).astype(int)
    taste, kind, good = rng.normal(size=(users, 4)), rng.normal(size=(items, 4)), rng.normal(size=items)
    value = np.where(np.einsum('ij,ij->i', taste[person], kind[film]) + 2*good[film] + rng.normal(size=events) > 0, 5., 2.)
    place = np.arange(events) - np.searchsorted(person, person)
    share = place/np.bincount(person, minlength=users)[person]
    columns = lambda n, sizes: {name: rng.integers(0, size, n).astype(str) for name, size in sizes.items()}
    name = lambda letter, codes: np.char.add(letter, codes.astype(str)).astype(object)
    log = pd.DataFrame({Col.USER: name('u', person), Col.ITEM: name('i', film), Col.TIME: place, Col.VALUE: value, Col.SPLIT: np.select([share < .8, share < .9], ['train', 'valid'], 'test')})
    films = pd.DataFrame({Col.ITEM: name('i', np.arange(items))} | columns(items, dict(brand=500, year=60)) | dict(genres=[[f'g{g}' for g in row] for row in rng.integers(0, 20, (items, 2))]))
    return Dataset(films, pd.DataFrame({Col.USER: name('u', np.arange(users))} | columns(users, dict(age=8, city=200))), log, dict(name='generated', has_values=True))


def memory(name):
    "MiB of resident memory of this process: VmRSS now, VmHWM at its peak. Linux only."
    return next(int(line.split()[1])/2**10 for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(name))


def measure(network, given):
    "One epoch of one network."
    torch.set_num_threads(given.threads)
    data = generated(given.events, given.users, given.items)
    data.codes()
    Path('/proc/self/clear_refs').write_text('5')   # the peak begins anew
    before, params = memory('VmRSS'), declared(vars(stage)) | dict(backbone=network, embedding_size=given.size, click_history=given.history, positive_above=3., batch_size=given.batch, dropout=.1, cross_layers=3)
    begun = time.perf_counter()
    task = Clicks(data, params)
    built = time.perf_counter() - begun
    torch.manual_seed(0)
    model = task.model(Given())
    optimiser = torch.optim.AdamW(model.parameters(), lr=.002, fused=True)
    begun, cpu, rows = time.perf_counter(), time.process_time(), 0
    for step, (loss, n) in enumerate(task.losses(model.train(), params, np.random.default_rng(0))):
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rows += n
        if step + 1 == given.steps: break
    wall, cpu, begun = time.perf_counter() - begun, time.process_time() - cpu, time.perf_counter()
    score = task.validate(model)
    seconds = time.perf_counter() - begun
    print(f"{network:8s} {rows:,} rows in {wall:.1f} s: {rows/wall:,.0f} rows/s in training ({rows/cpu:,.0f} per second of processor) · {len(task.parts['valid'])/seconds:,.0f} rows/s in scoring · instances made in {built:.1f} s · "
          f"{sum(p.numel() for p in model.parameters()):,} weights · peak {memory('VmHWM'):,.0f} MiB, {before:,.0f} of them before · validation AUC {score:.3f}", flush=True)


def main():
    given = arguments()
    print(f'{given.events:,} events, {given.users:,} users, {given.items:,} items, 5 attributes, embedding_size {given.size}, history {given.history}, batches of {given.batch}, {given.threads} thread(s)', flush=True)
    for network in given.networks.split(','):
        process = multiprocessing.get_context('spawn').Process(target=measure, args=(network, given))
        process.start()
        process.join()


if __name__ == '__main__': main()
