"""LightGCN or matrix factorisation with BPR beside RecBole 1.2.1 on MovieLens-100K: seconds of a training epoch and of a full-ranking validation, alternating in one run, and NDCG@10 of both by one evaluator.

    RECX_RECBOLE=…/bin/python python benchmarks/topk_recbole.py [--model lightgcn] [--epochs 5] [--threads 1] [--layers 2] [--size 64] [--batch 2048] [--patience 0] [--seeds 1]

Same pairs, same width, same steps of propagation, BPR with one uniform negative that the user has not met in training, Adam with the same constant learning rate, leave-one-out on the same events. `--l2` is LightGCN's alone, since RecBole's BPR has no such term. What differs is how the ids start: recx draws from a normal distribution of standard deviation .02, RecBole by Xavier.
`--patience n` trains both afresh, seed by seed, until NDCG@10 on validation has not risen for n validations (one every 5 epochs), and prints NDCG@10 of the best epochs, the mean of the seeds and each; ranks of both are computed here, from scores, with seen items left out. The standard error of the difference is over users, each taken at the mean of its seeds.
Without RECX_RECBOLE only recx is measured. Where the MovieLens files are not found, the data stage says from where to get them.
"""
import argparse, os, statistics, tempfile, time
from pathlib import Path
import numpy as np
import torch
from recbole_peer import Peer, aligned, ranks, write_atomic
from recx.data import stage as data_stage
from recx.data.dataset import Dataset
from recx.data.parameters import declared
from recx.recommend import stage
from recx.recommend.given import Given
from recx.recommend.ranking import ndcg, target_ranks
from recx.recommend.topk import TopK
from recx.recommend.train import train_epoch


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument('--model', choices=['lightgcn', 'mf'], default='lightgcn')
    for name, value in dict(epochs=5, threads=1, layers=2, size=64, batch=2048, patience=0, seeds=1).items(): parser.add_argument(f'--{name}', type=int, default=value)
    parser.add_argument('--l2', type=float, help='lightgcn: 1e-4 unless told; mf: 0, and nothing else')
    parser.add_argument('--learning-rate', type=float, default=.002)
    given = parser.parse_args()
    if given.model == 'mf' and given.l2: parser.error(f"--l2 {given.l2:g}: RecBole's BPR has no such term, so that the two would differ; leave it out, or use --model lightgcn")
    if given.l2 is None: given.l2 = 1e-4 if given.model == 'lightgcn' else 0.
    return given


def timed(job, *given):
    begun = time.perf_counter()
    job(*given)
    return time.perf_counter() - begun


class Ours:
    "recx's side of the same questions."
    def __init__(self, dataset, given, seed):
        params = declared(vars(stage)) | dict(backbone=given.model, embedding_size=given.size, graph_layers=given.layers, loss='bpr', negatives=1, l2=given.l2, learning_rate=given.learning_rate, batch_size=given.batch, seed=seed)
        self.task, self.settings, self.epoch = TopK(dataset, params), params, 0
        torch.manual_seed(seed)
        self.model = self.task.model(Given())
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=given.learning_rate, weight_decay=0., fused=True)

    def train(self):
        seconds = timed(train_epoch, self.model, self.optimiser, self.task, self.settings, self.epoch)
        self.epoch += 1
        return seconds

    def valid(self): return timed(self.task.validate, self.model)

    def ranks(self, part): return target_ranks(*self.task.answer(self.model, self.task.parts[part]), self.task.parts[part])

    def close(self): pass


class Theirs:
    "RecBole's, with ranks computed here."
    def __init__(self, dataset, given, seed):
        config = dict(embedding_size=given.size, learning_rate=given.learning_rate, train_batch_size=given.batch, eval_batch_size=256*(len(dataset.items) + 1), seed=seed, threads=given.threads, epochs=10_000)
        if given.model == 'lightgcn': config |= dict(n_layers=given.layers, reg_weight=given.l2, require_pow=True)
        self.dataset, self.held, self.folder = dataset, TopK(dataset, declared(vars(stage)) | dict(backbone='mf', loss='bpr', negatives=1)).parts, tempfile.TemporaryDirectory()
        write_atomic(dataset, self.folder.name)
        self.peer = Peer(self.folder.name, dict(lightgcn='LightGCN', mf='BPR')[given.model], config)
        self.train, self.valid = self.peer.train, self.peer.valid

    def ranks(self, part): return ranks(aligned(self.dataset, self.held[part], *self.peer.scores(part)), self.held[part])

    def close(self):
        self.peer.close()
        self.folder.cleanup()


def times(sides, epochs):
    "Seconds of epochs and validations, side by side, after one to warm up."
    found = {name: {what: [] for what in ('train', 'valid')} for name in sides}
    for _ in range(epochs + 1):
        for name, side in sides.items():
            for what in ('train', 'valid'): found[name][what].append(getattr(side, what)())
    return {name: {what: seconds[1:] for what, seconds in kinds.items()} for name, kinds in found.items()}


def converged(side, patience, every=5):
    "NDCG@10 on validation, ranks on test, and the epoch, all at the best validation."
    best, tried, epoch = (-1., None, 0), 0, 0
    while tried < patience:
        for _ in range(every): side.train()
        epoch, valid = epoch + every, ndcg(side.ranks('valid'), 10)
        best, tried = ((valid, side.ranks('test'), epoch), 0) if valid > best[0] else (best, tried + 1)
    side.close()
    return best


def main():
    given = arguments()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as tmp: dataset = Dataset.load(data_stage.small(Path(tmp)/'data', dataset='ml-100k'))
    makers = dict(recx=Ours)
    if os.environ.get('RECX_RECBOLE'): makers['RecBole'] = Theirs
    else: print('RECX_RECBOLE is not set, so that RecBole is left out: name the Python of an environment with recbole==1.2.1, numpy<2 and setuptools<70')
    sides = {name: make(dataset, given, 0) for name, make in makers.items()}
    found = times(sides, given.epochs)
    for side in sides.values(): side.close()
    print(f"{given.model}: {len(sides['recx'].task.pairs):,} pairs, {given.size} coordinates, {f'{given.layers} steps, ' if given.model == 'lightgcn' else ''}batches of {given.batch}, {given.threads} thread(s), median of {given.epochs} alternating epochs after one to warm up")
    for name in sides: print(f"{name}: epoch {statistics.median(found[name]['train']):.2f} s · full-ranking validation {statistics.median(found[name]['valid']):.3f} s", flush=True)
    if len(sides) > 1: print('ratio: ' + ' · '.join(f"{word} {statistics.median(b/a for a, b in zip(found['recx'][what], found['RecBole'][what])):.1f}" for what, word in (('train', 'epoch'), ('valid', 'validation'))), flush=True)
    if not given.patience: return
    reached = {name: [] for name in makers}
    for seed in range(given.seeds):
        for name, make in makers.items():
            valid, test, epoch = converged(make(dataset, given, seed), given.patience)
            reached[name].append((valid, ndcg(test, 10), (test <= 10)/np.log2(1. + test)))
            print(f'{name}, seed {seed}: validation NDCG@10 {valid:.4f} · test NDCG@10 {reached[name][-1][1]:.4f} · after {epoch} epochs', flush=True)
    for name, seeds in reached.items(): print(f'{name}, mean of {given.seeds}: validation NDCG@10 {statistics.mean(valid for valid, _, _ in seeds):.4f} · test NDCG@10 {statistics.mean(test for _, test, _ in seeds):.4f}')
    if len(reached) < 2: return
    ours, theirs = (np.mean([gain for *_, gain in seeds], 0) for seeds in reached.values())
    apart = ours - theirs
    print(f'recx − RecBole on test: {apart.mean():+.4f}, standard error over {len(apart)} users {apart.std(ddof=1)/len(apart)**.5:.4f}')


if __name__ == '__main__': main()
