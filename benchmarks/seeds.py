"""All seeds of one arm against one seed: processes with one thread each, as many as there are cores.

    RECX_DATA=… python benchmarks/seeds.py [--dataset parquet:…/amazon_beauty_2014] [--seeds 6] [--epochs 12]

Wall seconds of one run by itself, and of all seeds side by side through the runner that studies use. On c cores six seeds cannot take less than 6/c times one.
"""
import argparse, os, tempfile, time


def main():
    parser = argparse.ArgumentParser()
    for name, default in (('--dataset', 'parquet:../shared/data/amazon_beauty_2014'), ('--seeds', 6), ('--epochs', 12)): parser.add_argument(name, default=default, type=type(default))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as store:
        os.environ['RECX_STORE'] = store
        from recx.run.engine import ensure, ensure_all   # after the store is set
        from recx.run.stages import chain
        node = lambda seed: chain(dict(dataset=given.dataset, fusion='id', seed=seed, epochs=given.epochs, patience=given.epochs))
        ensure(node(0).inputs['data'], 'inline')
        took = []
        for seeds in ([1000], range(given.seeds)):
            start = time.perf_counter()
            ensure_all([node(seed) for seed in seeds], 'papermill', 0, '')   # inline would stay in this process
            took.append(time.perf_counter() - start)
    print(f'{given.dataset.rpartition("/")[2]}, {given.epochs} epochs on {os.cpu_count()} cores: one seed {took[0]:.1f} s, {given.seeds} seeds {took[1]:.1f} s: {took[1]/took[0]:.2f} times')


if __name__ == '__main__': main()
