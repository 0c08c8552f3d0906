"""LightGCN beside RecBole 1.2.1 on MovieLens-100K: seconds of a training epoch and of a full-ranking validation, alternating in one run, and NDCG@10 of both by one evaluator.

    RECX_RECBOLE=…/bin/python python benchmarks/lightgcn_recbole.py [--epochs 5] [--threads 1] [--layers 2] [--size 64] [--batch 2048] [--patience 0]

Same pairs, same width, same steps of propagation, BPR with one uniform negative, Adam with the same constant learning rate, leave-one-out on the same events. `--patience n` trains both until NDCG@10 on validation has not risen for n validations (one every 5 epochs), and prints the test NDCG@10 of the best epochs;
ranks of both are computed here, from scores, with seen items left out. Without RECX_RECBOLE only recx is measured. Where the MovieLens files are not found, the data stage says from where to get them.
"""
import argparse, os, statistics, tempfile, time
from pathlib import Path
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
    for name, value in dict(epochs=5, threads=1, layers=2, size=64, batch=2048, patience=0, seed=0).items(): parser.add_argument(f'--{name}', type=int, default=value)
    parser.add_argument('--l2', type=float, default=1e-4)
    parser.add_argument('--learning-rate', type=float, default=.002)
    return parser.parse_args()


def timed(job, *given):
    begun = time.perf_counter()
    job(*given)
    return time.perf_counter() - begun


class Ours:
    "recx's side of the same questions."
    def __init__(self, dataset, given):
        params = declared(vars(stage)) | dict(backbone='lightgcn', embedding_size=given.size, graph_layers=given.layers, loss='bpr', negatives=1, l2=given.l2, learning_rate=given.learning_rate, batch_size=given.batch, seed=given.seed)
        self.task, self.settings, self.epoch = TopK(dataset, params), params, 0
        torch.manual_seed(given.seed)
        self.model = self.task.model(Given())
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=given.learning_rate, weight_decay=0., fused=True)

    def train(self):
        seconds = timed(train_epoch, self.model, self.optimiser, self.task, self.settings, self.epoch)
        self.epoch += 1
        return seconds

    def valid(self): return timed(self.task.validate, self.model)

    def ndcg(self, part): return ndcg(target_ranks(*self.task.answer(self.model, self.task.parts[part]), self.task.parts[part]), 10)


class Theirs:
    "RecBole's, with ranks computed here."
    def __init__(self, dataset, folder, given, held):
        write_atomic(dataset, folder)
        config = dict(embedding_size=given.size, n_layers=given.layers, reg_weight=given.l2, require_pow=True, learning_rate=given.learning_rate, train_batch_size=given.batch, eval_batch_size=256*(len(dataset.items) + 1), seed=given.seed, threads=given.threads, epochs=10_000)
        self.peer, self.dataset, self.held = Peer(folder, 'LightGCN', config), dataset, held
        self.train, self.valid = self.peer.train, self.peer.valid

    def ndcg(self, part): return ndcg(ranks(aligned(self.dataset, self.held[part], *self.peer.scores(part)), self.held[part]), 10)


def converged(side, patience, every=5):
    "Test NDCG@10 at the best validation, and the epoch."
    best, tried, epoch = (-1., 0., 0), 0, 0
    while tried < patience:
        for _ in range(every): side.train()
        epoch, valid = epoch + every, side.ndcg('valid')
        best, tried = ((valid, side.ndcg('test'), epoch), 0) if valid > best[0] else (best, tried + 1)
    return best


def main():
    given = arguments()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as tmp:
        dataset = Dataset.load(data_stage.small(Path(tmp)/'data', dataset='ml-100k'))
        sides = dict(recx=Ours(dataset, given))
        if os.environ.get('RECX_RECBOLE'): sides['RecBole'] = Theirs(dataset, Path(tmp)/'peer', given, sides['recx'].task.parts)
        else: print('RECX_RECBOLE is not set, so that RecBole is left out: name the Python of an environment with recbole==1.2.1, numpy<2 and setuptools<70')
        times = {name: {what: [] for what in ('train', 'valid')} for name in sides}
        for _ in range(given.epochs + 1):
            for name, side in sides.items():
                for what in ('train', 'valid'): times[name][what].append(getattr(side, what)())
        print(f"{len(sides['recx'].task.pairs):,} pairs, {given.size} coordinates, {given.layers} steps, batches of {given.batch}, {given.threads} thread(s), median of {given.epochs} alternating epochs after one to warm up")
        for name in sides: print(f"{name}: epoch {statistics.median(times[name]['train'][1:]):.2f} s · full-ranking validation {statistics.median(times[name]['valid'][1:]):.3f} s")
        if len(sides) > 1: print('ratio: ' + ' · '.join(f"{word} {statistics.median(b/a for a, b in zip(times['recx'][what][1:], times['RecBole'][what][1:])):.1f}" for what, word in (('train', 'epoch'), ('valid', 'validation'))))
        if given.patience:
            for name, side in sides.items():
                valid, test, epoch = converged(side, given.patience)
                print(f'{name} at convergence: validation NDCG@10 {valid:.4f} · test NDCG@10 {test:.4f} · after {epoch + given.epochs + 1} epochs')
        if len(sides) > 1: sides['RecBole'].peer.close()


if __name__ == '__main__': main()
