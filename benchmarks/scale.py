"""One epoch of MF, SASRec and LightGCN over 1, 3, 10 and 30 million generated events: seconds, peak memory, and how both grow.

    python benchmarks/scale.py [--backbones mf,sasrec,lightgcn] [--millions 1,3,10,30] [--threads 2] [--steps 0] [--out reports/scale]

A log of n million events has n/23 million users and 105,542 items met as Zipf would have it, as in a large shop; the last two events of each user are held out. Training is as the recommend stage does it by default (64 coordinates, batches of 2,048, 1,024 negatives), for one epoch or its first `--steps` batches. LightGCN smooths the
whole graph in every step, so that a fixed batch makes an epoch quadratic: its epoch is fifty batches of a fiftieth of the pairs. Each run has a process of its own; the peak is that of its resident memory, the log included. What was measured is kept in `--out`/scale.json, one entry for each backbone and size, and the figure is drawn from all that is there.
"""
import argparse, json, multiprocessing, os, time
from pathlib import Path
import numpy as np
import pandas as pd
import torch
from recx.data.dataset import Col, Dataset
from recx.data.parameters import declared
from recx.recommend import stage
from recx.recommend.given import Given
from recx.recommend.nextitem import NextItem
from recx.recommend.rows import Optimisers
from recx.recommend.topk import TopK
from recx.recommend.train import train_epoch

ITEMS, EACH, GRAPH_STEPS = 105_542, 23, 50


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument('--backbones', default='mf,sasrec,lightgcn')
    parser.add_argument('--millions', default='1,3,10,30')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--steps', type=int, default=0)
    parser.add_argument('--out', default='reports/scale')
    return parser.parse_args()


def generated(events):
    "A log in which everybody meets 23 items, some items often and most seldom."
    rng, users = np.random.default_rng(0), events//EACH
    share = np.cumsum(1/np.arange(1, ITEMS + 1))
    item = rng.permutation(ITEMS).astype(np.int32)[np.searchsorted(share, rng.random(users*EACH, dtype=np.float32)*share[-1]).clip(max=ITEMS - 1)]
    user, split = np.repeat(np.arange(users, dtype=np.int32), EACH), np.tile(np.array([0]*(EACH - 2) + [1, 2], np.int8), users)
    names = {Col.USER: np.char.add('u', np.arange(users).astype(str)).astype(object), Col.ITEM: np.char.add('i', np.arange(ITEMS).astype(str)).astype(object)}
    log = pd.DataFrame({Col.USER: pd.Categorical.from_codes(user, names[Col.USER]), Col.ITEM: pd.Categorical.from_codes(item, names[Col.ITEM]), Col.SPLIT: pd.Categorical.from_codes(split, ['train', 'valid', 'test'])})
    data = Dataset(pd.DataFrame({Col.ITEM: names[Col.ITEM]}), pd.DataFrame({Col.USER: names[Col.USER]}), log, dict(name='generated', time_kind='position', banner='simulated'))
    data._codes = user, item, split
    return data


def memory(name):
    "GiB of resident memory of this process: VmRSS now, VmHWM at its peak. Linux only."
    return next(int(line.split()[1])/2**20 for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(name))


class First:
    "The first batches of a task's epoch."
    def __init__(self, task, steps): self.task, self.steps = task, steps
    def losses(self, *given):
        for step, one in enumerate(self.task.losses(*given)):
            yield one
            if step + 1 == self.steps: return


def measure(backbone, millions, threads, steps, end):
    "One epoch of one backbone over one size of log; what it took goes into the pipe `end`."
    torch.set_num_threads(threads)
    data = generated(int(millions*1e6))
    Path('/proc/self/clear_refs').write_text('5')   # the peak begins anew
    log, begun = memory('VmRSS'), time.perf_counter()
    params = declared(vars(stage)) | dict(backbone=backbone, list_size=10)
    task = (NextItem if backbone == 'sasrec' else TopK)(data, params)
    torch.manual_seed(0)
    model = task.model(Given())
    indexed = time.perf_counter() - begun
    if backbone == 'lightgcn': params['batch_size'] = -(-len(task.pairs)//GRAPH_STEPS)
    optimiser, begun, cpu = Optimisers(model, params['learning_rate'], params['weight_decay']), time.perf_counter(), time.process_time()
    loss = train_epoch(model.train(), optimiser, First(task, steps) if steps else task, params, 0)
    optimiser.settle()
    end.send(dict(backbone=backbone, millions=millions, events=len(data.events), users=len(data.users), indexed=indexed, seconds=time.perf_counter() - begun, processor=time.process_time() - cpu, peak=memory('VmHWM'), log=log, loss=loss,
                  threads=threads, steps=steps, load=os.getloadavg()[0]))


def apart(*given):
    "Measured in a process of its own."
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context('spawn').Process(target=measure, args=(*given, there))
    process.start()
    there.close()
    try: made = here.recv()
    finally: process.join()
    return made


def exponent(runs, name):
    "Slope of the logarithms: 1 is growth in proportion."
    return float(np.polyfit(*(np.log([run[key] for run in runs]) for key in ('events', name)), 1)[0]) if len(runs) > 1 else float('nan')


def draw(made, folder):
    "Processor seconds of an epoch, which other work on the machine does not touch, and peak memory against events, on logarithmic axes."
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout='constrained')
    for backbone in dict.fromkeys(run['backbone'] for run in made):
        runs = sorted((run for run in made if run['backbone'] == backbone), key=lambda run: run['events'])
        for axis, name, unit in zip(axes, ('processor', 'peak'), ('s of processor per epoch', 'GiB, log included')):
            line, = axis.loglog([run['events'] for run in runs], [run[name] for run in runs], marker='o', label=f'{backbone} (exponent {exponent(runs, name):.2f})')
            axis.set(xlabel='events', ylabel=unit)
            if name == 'processor': axis.loglog([run['events'] for run in runs], [runs[0][name]*run['events']/runs[0]['events'] for run in runs], ls=':', lw=1, color=line.get_color())
    for axis in axes: axis.legend(frameon=False, fontsize=8)
    figure.suptitle('One epoch by the size of the log (simulated); dotted: in proportion to the smallest', fontsize=9)
    figure.savefig(folder/'scale.png', dpi=150)


def main():
    given = arguments()
    folder = Path(given.out)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder/'scale.json'
    for millions in map(float, given.millions.split(',')):
        for backbone in given.backbones.split(','):
            run = apart(backbone, millions, given.threads, given.steps)
            made = [old for old in (json.loads(file.read_text()) if file.exists() else []) if (old['backbone'], old['millions']) != (backbone, millions)] + [run]
            file.write_text(json.dumps(made, indent=1) + '\n')
            print(f"{backbone:9s} {run['events']:>10,} events, {run['users']:>9,} users: indexed in {run['indexed']:.1f} s · {run['seconds']:.1f} s {'an epoch' if not given.steps else f'for {given.steps} batches'} ({run['processor']:.1f} s of processor, {given.threads} threads, load {run['load']:.1f}) · "
                  f"peak {run['peak']:.2f} GiB, {run['log']:.2f} of it before · loss {run['loss']:.4f}", flush=True)
    for backbone in given.backbones.split(','):
        runs = sorted((run for run in made if run['backbone'] == backbone), key=lambda run: run['events'])
        print(f"{backbone:9s} growth over {len(runs)} sizes: seconds ∝ events^{exponent(runs, 'seconds'):.2f}, of processor ^{exponent(runs, 'processor'):.2f}, peak ^{exponent(runs, 'peak'):.2f}")
    draw(made, folder)


if __name__ == '__main__': main()
