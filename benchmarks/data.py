"""Reading, preparing and saving a data set with recx beside a plain pandas implementation (sort, groupby, apply) of the same leave-one-out split, in one process.

    python benchmarks/data.py [folder with items.parquet and interactions.parquet] [repetitions]

Without a folder, a log of the size of Amazon Beauty is generated.
"""
import statistics, sys, tempfile, time
from pathlib import Path
import numpy as np
import pandas as pd
from recx.data import stage
from recx.data.dataset import Dataset
from recx.data.parameters import declared
from recx.data.prepare import prepare
from recx.data.tables import read_tables


def generated(folder, users=22_363, items=12_101):
    "A log of 5 + geometric events per user in the format of `parquet:DIR`."
    rng = np.random.default_rng(0)
    lengths = 5 + rng.geometric(.2, users)
    user = np.repeat(np.arange(users), lengths)
    position = np.arange(len(user)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    item = (items*rng.random(len(user))**3).astype(int)
    pd.DataFrame(dict(item_id=[f'B{i:09d}' for i in range(items)], title=[f'Product {i}' for i in range(items)])).to_parquet(folder/'items.parquet')
    pd.DataFrame(dict(user_id=np.char.add('A', user.astype(str)), item_id=np.char.mod('B%09d', item), position=position)).to_parquet(folder/'interactions.parquet')
    return folder


def plain(events):
    "Leave-one-out by sort, groupby and apply."
    def split(e):
        n = len(e)
        return e.assign(split=['train']*n if n < 3 else ['train']*(n - 2) + ['valid', 'test'])
    return events.sort_values(['user', 'time'], kind='stable').groupby('user', group_keys=False, sort=False)[['user', 'item', 'time', 'value']].apply(split)


def timed(job):
    start = time.perf_counter()
    result = job()
    return result, time.perf_counter() - start


def main():
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else generated(Path(tmp))
        repetitions = int(sys.argv[2]) if len(sys.argv) > 2 else 5
        params = declared(vars(stage)) | dict(dataset=f'parquet:{folder.resolve()}', on_duplicates='keep')
        out = Path(tmp)/'out'
        out.mkdir()
        raw = read_tables(folder)
        jobs = {'recx: read, prepare, describe, save': lambda: stage.run(params, {}, out), 'recx: load': lambda: Dataset.load(out), 'recx: prepare alone': lambda: prepare(raw, params), 'pandas: sort, groupby, apply': lambda: plain(raw.events)}
        results = {name: job() for name, job in jobs.items()}
        ours, theirs = results['recx: prepare alone'].events, results['pandas: sort, groupby, apply']
        key = ['user', 'item', 'time', 'split']
        assert ours[key].sort_values(key).values.tolist() == theirs[key].sort_values(key).values.tolist(), 'the two implementations disagree'
        seconds = {name: [] for name in jobs}
        for _ in range(repetitions):
            for name, job in jobs.items(): seconds[name].append(timed(job)[1])
    print(f'{len(raw.events):,} events, {raw.events.user.nunique():,} users; median of {repetitions} alternating repetitions; both give the same split')
    base = statistics.median(seconds['pandas: sort, groupby, apply'])
    for name, s in seconds.items(): print(f'{name:40s} {statistics.median(s):7.3f} s   {base/statistics.median(s):6.1f} times as fast as pandas groupby-apply')


if __name__ == '__main__': main()
