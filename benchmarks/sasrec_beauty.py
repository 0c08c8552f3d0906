"""Id-only SASRec on Amazon Beauty 2014 (5-core): NDCG@10 and HR@10 by full ranking under leave-one-out, and seconds of training and validation, over three seeds.

    python benchmarks/sasrec_beauty.py [--ties file|shuffle] [--seeds 3] [--threads 1] [--data ../shared/data/amazon_beauty_2014] [-p name value …]

`-p` sets any parameter of the recommend stage. 9,719 of the 22,363 users have their validation and test events on the same day: `--ties shuffle` orders events of one day at random instead of as in the file, and is the figure to set beside the other.
"""
import argparse, json, tempfile, time
from pathlib import Path
import numpy as np
from recx.data import stage as data_stage
from recx.data.parameters import declared, typed
from recx.recommend import stage

BEAUTY = dict(loss='sampled-softmax', negatives=1024, embedding_size=64, blocks=1, heads=1, dropout=.5, max_length=50, learning_rate=.002, batch_tokens=2048, epochs=60, patience=3, validate_every=3)


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument('--ties', default='file', choices=['file', 'shuffle'])
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--data', default='../shared/data/amazon_beauty_2014')
    parser.add_argument('-p', nargs=2, action='append', default=[], metavar=('name', 'value'))
    return parser.parse_args()


def main():
    given, defaults = arguments(), declared(vars(stage))
    params = defaults | BEAUTY | {name: typed(name, value, type(defaults[name])) for name, value in given.p} | dict(train_threads=given.threads)
    results = []
    with tempfile.TemporaryDirectory() as tmp:
        data = data_stage.small(Path(tmp)/'data', dataset=f'parquet:{given.data}', ties=given.ties)
        for seed in range(given.seeds):
            out = Path(tmp)/str(seed)
            out.mkdir()
            begun = time.process_time()
            stage.check(params | dict(seed=seed))
            stage.run(params | dict(seed=seed), dict(data=data), out)
            said = json.loads((out/'summary.json').read_text())
            results.append([said['test']['ndcg@10'], said['test']['hr@10'], said['valid']['ndcg@10'], said['seconds_train'] + said['seconds_valid'], said['epochs'], said['best_epoch'], time.process_time() - begun])
            print(f"seed {seed}: test NDCG@10 {said['test']['ndcg@10']:.4f} HR@10 {said['test']['hr@10']:.4f} · validation NDCG@10 {said['valid']['ndcg@10']:.4f} · best epoch {said['best_epoch']} of {said['epochs']} · "
                  f"training {said['seconds_train']:.0f} s ({said['seconds_train']/said['epochs']:.2f} s/epoch), validation {said['seconds_valid']:.0f} s · processor {results[-1][-1]:.0f} s with loading and final ranking", flush=True)
    mean, spread = np.mean(results, 0), np.std(results, 0, ddof=1) if len(results) > 1 else np.full(7, np.nan)
    print(f'{given.ties} order, {given.threads} thread(s), mean of {len(results)} seeds: NDCG@10 {mean[0]:.4f} (SD {spread[0]:.4f}) · HR@10 {mean[1]:.4f} (SD {spread[1]:.4f}) · {mean[3]:.0f} s of training and validation per seed')


if __name__ == '__main__': main()
