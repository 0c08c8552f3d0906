"""Click models beside RecBole 1.2.1 on MovieLens-100K: AUC and log-loss on test by one evaluator, and rows per second in training, epochs of both alternating in one run.

    RECX_RECBOLE=…/bin/python python benchmarks/clicks_recbole.py [--networks deepfm,dcnv2,autoint] [--seeds 3] [--split ratio] [--size 16] [--deep 128,64] [--dropout .2] [--batch 2048] [--learning-rate .001] [--patience 3] [--history 0] [--threads 1]

A rating above 3 is a yes. RecBole is given the split as benchmark files (log.train.inter and so on), and the fields as recx's codes: user, age, gender, occupation, item, year, genres (several, averaged). `--split ratio` takes the last tenths of each user's events for validation and test, `--split time` the last tenths of the whole log. Same widths, dropout, batches and learning rate, Adam;
both are trained, seed by seed, until AUC on validation has not risen for `--patience` epochs, and the best epoch is tested. RecBole's click models read no history, so that recx's are all empty (its networks still have the fields for one, of zeros); with `--history n` recx reads n liked items, which RecBole does not.
What stays different: RecBole drops at the input of each hidden layer and recx at the output; RecBole's DCNv2 (in parallel, without the penalty on its cross matrices unless --reg is given) normalises batches in its hidden layers; its AutoInt projects before attention, has one residual around all layers and a first-order term; start values. It ends at once where RECX_RECBOLE is not set.
"""
import argparse, statistics, tempfile, time
from pathlib import Path
import numpy as np
import pandas as pd
import torch
from recbole_peer import Peer, interpreter
from recx.data import stage as data_stage
from recx.data.dataset import Dataset
from recx.data.parameters import declared
from recx.recommend import stage
from recx.recommend.clicks import Clicks
from recx.recommend.given import Given
from recx.recommend.instances import FILLING, auc, field_codes
from recx.recommend.train import train_epoch

NETWORKS = dict(deepfm='DeepFM', dcnv2='DCNV2', autoint='AutoInt', xdeepfm='xDeepFM')


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument('--networks', default='deepfm,dcnv2,autoint', type=lambda text: text.split(','), help=f"of {', '.join(NETWORKS)}")
    parser.add_argument('--split', choices=['ratio', 'time'], default='ratio')
    parser.add_argument('--deep', default='128,64')
    for name, value in dict(seeds=3, size=16, batch=2048, patience=3, history=0, threads=1).items(): parser.add_argument(f'--{name}', type=int, default=value)
    for name, value in {'dropout': .2, 'learning-rate': .001, 'reg': 0.}.items(): parser.add_argument(f'--{name}', type=float, default=value)
    given = parser.parse_args()
    if set(given.networks) - set(NETWORKS): parser.error(f"--networks {','.join(given.networks)}: choose among {', '.join(NETWORKS)}")
    return given


class Side:
    "What has been reached so far: the best AUC on validation, and the probabilities on test then."
    def __init__(self): self.best, self.test, self.at, self.tried, self.seconds = 0., None, 0, 0, []

    def step(self, task):
        "Train an epoch, validate, and look at the test part where it was the best."
        begun = time.perf_counter()
        self.train()
        self.seconds.append(time.perf_counter() - begun)
        valid, self.tried = auc(task.made.label[task.parts['valid']], self.said('valid')), self.tried + 1
        if valid > self.best: self.best, self.test, self.at, self.tried = valid, self.said('test'), len(self.seconds), 0


class Ours(Side):
    "recx's."
    def __init__(self, task, given, folder, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.task, self.model, self.settings = task, task.model(Given()), task.params | dict(seed=seed)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=given.learning_rate, weight_decay=0., fused=True)

    def train(self): train_epoch(self.model.train(), self.optimiser, self.task, self.settings, len(self.seconds))

    def said(self, part): return self.task.scores(self.model, part)

    def close(self): pass


class Theirs(Side):
    "RecBole's."
    def __init__(self, task, given, folder, seed):
        super().__init__()
        network, deep = task.params['backbone'], [int(width) for width in given.deep.split(',')]
        own = dict(deepfm={}, dcnv2=dict(mixed=False, structure='parallel', cross_layer_num=task.params['cross_layers'], reg_weight=given.reg), xdeepfm=dict(cin_layer_size=[16]*task.params['cross_layers'], direct=True, reg_weight=given.reg),
                   autoint=dict(attention_size=given.size, n_layers=task.params['attention_layers'], num_heads=task.params['heads'], dropout_probs=[0., given.dropout, 0.], has_residual=True))[network]
        item, user = task.columns
        config = dict(embedding_size=given.size, mlp_hidden_size=deep, dropout_prob=given.dropout, learning_rate=given.learning_rate, train_batch_size=given.batch, eval_batch_size=8192, train_neg_sample_args=None, seed=seed, threads=given.threads, epochs=10_000,
                      benchmark_filename=['train', 'valid', 'test'], LABEL_FIELD='label', TIME_FIELD='row', load_col=dict(inter=['user_id', 'item_id', 'label', 'row'], user=['user_id', *user], item=['item_id', *item]), metrics=['AUC'], valid_metric='AUC', eval_args=dict(order='TO', mode='labeled'))
        self.peer, self.rows = Peer(folder, NETWORKS[network], config | own), task.parts
        self.train, self.close = self.peer.train, self.peer.close

    def said(self, part):
        rows, said = self.peer.probabilities(part)
        if not np.array_equal(np.sort(rows), self.rows[part]): raise ValueError(f'{part}: RecBole answered for other rows than it was given')
        return said[np.argsort(rows)].clip(1e-7, 1 - 1e-7)


def write_atomic(task, folder):
    "Split, labels and fields as RecBole's atomic files."
    data, out = task.dataset, folder/'log'
    out.mkdir(parents=True)
    events = data.events[['user', 'item']].assign(label=task.made.label, row=np.arange(len(data.events)))
    for part, rows in task.parts.items(): events.iloc[rows].to_csv(out/f'log.{part}.inter', sep='\t', index=False, header=['user_id:token', 'item_id:token', 'label:float', 'row:float'])
    for side, table, columns, met in (('item', data.items, task.columns[0], data.train_items), ('user', data.users, task.columns[1], data.user_counts > 0)):
        made = {f'{side}_id:token': table[side]}
        for column in columns:
            codes, _ = field_codes(table[column], met)
            made[f"{column}:token{'_seq' if codes.shape[1] > 1 else ''}"] = [' '.join(f'c{code}' for code in row if code != FILLING) for row in codes]
        pd.DataFrame(made).to_csv(out/f'log.{side}', sep='\t', index=False)


def task_of(dataset, given, network):
    "recx's task, its histories empty unless they are asked for."
    task = Clicks(dataset, declared(vars(stage)) | dict(backbone=network, embedding_size=given.size, deep=given.deep, dropout=given.dropout, heads=2, learning_rate=given.learning_rate, batch_size=given.batch, click_history=given.history or 1))
    if not given.history: task.made.start = task.made.stop
    return task


def several(values): return f'{statistics.mean(values):.4f} ({" ".join(f"{v:.4f}" for v in values)})'


def compare(network, dataset, given, folder):
    "Both sides of one network, all seeds."
    task, found = task_of(dataset, given, network), dict(recx=[], RecBole=[])
    write_atomic(task, folder)
    for seed in range(given.seeds):
        sides = dict(recx=Ours(task, given, folder, seed), RecBole=Theirs(task, given, folder, seed))
        while going := [side for side in sides.values() if side.tried < given.patience]:
            for side in going: side.step(task)
        for name, side in sides.items(): found[name].append(side); side.close()
    label, n = task.made.label[task.parts['test']], len(task.parts['train'])
    for name, sides in found.items():
        figures = [stage.measured(pd.DataFrame(dict(label=label, probability=side.test))) for side in sides]
        print(f"{network}, {name}: test AUC {several([f['auc'] for f in figures])} · log-loss {several([f['logloss'] for f in figures])} · validation AUC {several([side.best for side in sides])} · best epochs {', '.join(str(side.at) for side in sides)} · {n/statistics.median(s for side in sides for s in side.seconds):,.0f} rows/s in training", flush=True)
    print(f"{network}: rows per second, recx against RecBole, {statistics.median(b/a for ours, theirs in zip(*found.values()) for a, b in zip(ours.seconds, theirs.seconds)):.2f}", flush=True)


def main():
    given, _ = arguments(), interpreter()   # it ends here where there is none
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as tmp:
        dataset = Dataset.load(data_stage.small(Path(tmp)/'data', dataset='ml-100k', split_by=given.split))
        task = task_of(dataset, given, given.networks[0])
        print(f"{', '.join(f'{len(rows):,} {part}' for part, rows in task.parts.items())} rows, {task.made.label.mean():.0%} of them yes, split by {given.split}; fields user, item, {', '.join(task.columns[1] + task.columns[0])}; {given.size} coordinates, hidden layers {given.deep}, dropout {given.dropout:g}, batches of {given.batch}, learning rate {given.learning_rate:g}, "
              f"{f'recx reads {given.history} liked items' if given.history else 'no history'}, {given.threads} thread(s)", flush=True)
        for network in given.networks: compare(network, dataset, given, Path(tmp)/network)


if __name__ == '__main__': main()
