"""SASRec beside RecBole 1.2.1 on MovieLens-100K with full cross-entropy: seconds of a training epoch and of a validation, alternating in one run, and NDCG@10 of both by one evaluator.

    RECX_RECBOLE=…/bin/python python benchmarks/sasrec_recbole.py [--epochs 1] [--threads 2] [--size 64] [--blocks 2] [--heads 2] [--batch 2048] [--patience 0] [--peer-patience 0] [--seeds 1]

The same number of predicted positions, width (inner width too) and depth, leave-one-out on the same events. RecBole makes a row of every prefix of a history and predicts one item from each; recx predicts at every position of a whole history, in windows of 50 events, so that an early position of a window sees less of what came before it.
Batches are of --batch predictions on both sides. `--patience n` trains recx, and `--peer-patience n` RecBole (at about two and a half minutes per epoch on two cores), until NDCG@10 on validation has not risen for n epochs; ranks of both are computed here, from scores, with seen items left out (RecBole's own figures leave them in). `--seeds n` trains recx under n seeds, since seeds differ more than one would like; RecBole has the first of them.
Without RECX_RECBOLE only recx is measured.
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
from recx.recommend.nextitem import NextItem
from recx.recommend.ranking import ndcg, target_ranks
from recx.recommend.train import train_epoch


def arguments():
    parser = argparse.ArgumentParser()
    for name, value in {'epochs': 1, 'threads': 2, 'size': 64, 'blocks': 2, 'heads': 2, 'batch': 2048, 'patience': 0, 'peer-patience': 0, 'seed': 0, 'seeds': 1}.items(): parser.add_argument(f'--{name}', type=int, default=value)
    parser.add_argument('--dropout', type=float, default=.5)
    parser.add_argument('--learning-rate', type=float, default=.001)
    return parser.parse_args()


def timed(job, *given):
    begun = time.perf_counter()
    job(*given)
    return time.perf_counter() - begun


class Ours:
    "recx's side of the same questions."
    def __init__(self, dataset, given, seed):
        params = declared(vars(stage)) | dict(embedding_size=given.size, blocks=given.blocks, heads=given.heads, dropout=given.dropout, max_length=50, loss='ce', learning_rate=given.learning_rate, batch_tokens=given.batch, seed=seed)
        self.task, self.settings, self.epoch = NextItem(dataset, params), params, 0
        torch.manual_seed(seed)
        self.model = self.task.model(Given())
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=given.learning_rate, weight_decay=0., fused=True)
        self.instances = int((self.task.windows.lengths - 1).sum())

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
        config = dict(hidden_size=given.size, inner_size=given.size, n_layers=given.blocks, n_heads=given.heads, hidden_dropout_prob=given.dropout, attn_dropout_prob=given.dropout, hidden_act='relu', loss_type='CE', train_neg_sample_args=None, MAX_ITEM_LIST_LENGTH=50,
                      learning_rate=given.learning_rate, train_batch_size=given.batch, eval_batch_size=256*(len(dataset.items) + 1), seed=given.seed, threads=given.threads, epochs=10_000)
        self.peer, self.dataset, self.held = Peer(folder, 'SASRec', config), dataset, held
        self.train, self.valid, self.instances = self.peer.train, self.peer.valid, self.peer.about['instances']

    def ndcg(self, part): return ndcg(ranks(aligned(self.dataset, self.held[part], *self.peer.scores(part)), self.held[part]), 10)


def converged(side, patience):
    "Validation and test NDCG@10 at the best validation, and the epoch."
    best, tried, epoch = (-1., 0., 0), 0, 0
    while tried < patience:
        side.train()
        epoch, valid = epoch + 1, side.ndcg('valid')
        best, tried = ((valid, side.ndcg('test'), epoch), 0) if valid > best[0] else (best, tried + 1)
    return best


def main():
    given = arguments()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as tmp:
        dataset = Dataset.load(data_stage.small(Path(tmp)/'data', dataset='ml-100k'))
        sides = dict(recx=Ours(dataset, given, given.seed))
        if os.environ.get('RECX_RECBOLE'): sides['RecBole'] = Theirs(dataset, Path(tmp)/'peer', given, sides['recx'].task.parts)
        else: print('RECX_RECBOLE is not set, so that RecBole is left out: name the Python of an environment with recbole==1.2.1, numpy<2 and setuptools<70')
        sides['recx'].train(); sides['recx'].valid()   # to warm up
        times = {name: {what: [] for what in ('train', 'valid')} for name in sides}
        for _ in range(given.epochs):
            for name, side in sides.items():
                for what in ('train', 'valid'): times[name][what].append(getattr(side, what)())
        print(f"{given.size} coordinates, {given.blocks} blocks, {given.heads} heads, {given.batch} predictions a batch, {given.threads} thread(s), median of {given.epochs} alternating epochs")
        for name, side in sides.items(): print(f"{name}: {side.instances:,} predictions an epoch · epoch {statistics.median(times[name]['train']):.2f} s · full-ranking validation {statistics.median(times[name]['valid']):.3f} s", flush=True)
        if len(sides) > 1: print('ratio: ' + ' · '.join(f"{word} {statistics.median(b/a for a, b in zip(times['recx'][what], times['RecBole'][what])):.1f}" for what, word in (('train', 'epoch'), ('valid', 'validation'))))
        for name, patience, before in (('recx', given.patience, given.epochs + 1), ('RecBole', given.peer_patience, given.epochs)):
            if not patience or name not in sides: continue
            valid, test, epoch = converged(sides[name], patience)
            print(f'{name} at convergence, seed {given.seed}: validation NDCG@10 {valid:.4f} · test NDCG@10 {test:.4f} · after {epoch + before} epochs', flush=True)
        for seed in range(given.seed + 1, given.seed + given.seeds if given.patience else 0):
            valid, test, epoch = converged(Ours(dataset, given, seed), given.patience)
            print(f'recx at convergence, seed {seed}: validation NDCG@10 {valid:.4f} · test NDCG@10 {test:.4f} · after {epoch} epochs', flush=True)
        if len(sides) > 1: sides['RecBole'].peer.close()


if __name__ == '__main__': main()
