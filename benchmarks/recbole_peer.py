"""RecBole 1.2.1 as a process that trains and evaluates one epoch when asked, for benchmarks that set it beside recx.

RecBole wants an environment of its own (numpy<2, setuptools<70, `pip install recbole==1.2.1`). RECX_RECBOLE names the Python of that environment; benchmarks say so and end where it is not set. This file runs in both: as a module here, as the program there.
"""
import json, os, subprocess, sys, time
from pathlib import Path
import numpy as np


def interpreter():
    "The Python of RecBole's environment; ends the benchmark where none is named."
    return os.environ.get('RECX_RECBOLE') or sys.exit('RECX_RECBOLE is not set: name the Python of an environment with recbole==1.2.1, numpy<2 and setuptools<70, and this benchmark sets recx beside it')


class Peer:
    "A RecBole model in its own process. `train()` and `valid()` give the seconds of one epoch, `scores(part)` what it thinks of each user's items, `probabilities(part)` what a click model thinks of each row."
    def __init__(self, folder, model, config):
        (Path(folder)/'config.json').write_text(json.dumps(dict(model=model, config=config)))
        self.process = subprocess.Popen([interpreter(), '-W', 'ignore', str(Path(__file__).resolve()), str(folder)], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)   # it writes beside itself
        self.about = self.answer()

    def answer(self):
        for line in self.process.stdout:
            if line.startswith('@'): return json.loads(line[1:])
        sys.exit(f'RecBole ended with code {self.process.wait()}; see its message above')

    def ask(self, *words):
        self.process.stdin.write(' '.join(words) + '\n'); self.process.stdin.flush()
        return self.answer()

    def train(self): return self.ask('train')['seconds']

    def valid(self): return self.ask('valid')['seconds']

    def scores(self, part):
        "Users, items, and the scores (users, items)."
        made = np.load(self.ask('scores', part)['file'], allow_pickle=False)
        return made['users'], made['items'], made['scores']

    def probabilities(self, part):
        "The column `row` of each row, and the probability of a click."
        made = np.load(self.ask('probabilities', part)['file'])
        return made['rows'].astype(np.int64), made['said'].astype(np.float64)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def write_atomic(dataset, folder):
    "The events as RecBole's atomic file; the place in the log stands for the time, so that both sides hold out the same events."
    out = Path(folder)/'log'
    out.mkdir(parents=True)
    events = dataset.events[['user', 'item']].assign(time=np.arange(len(dataset.events)))
    events.to_csv(out/'log.inter', sep='\t', index=False, header=['user_id:token', 'item_id:token', 'timestamp:float'])


def aligned(dataset, held, users, items, scores):
    "Peer's scores as rank-ready rows: one per held-out event of `held`, items in the order of the catalogue; what it does not know comes last."
    row = {u: k for k, u in enumerate(users)}
    column = {i: k for k, i in enumerate(items)}
    out = np.full((len(held), len(dataset.items)), -1e30, np.float32)
    known = np.array([column.get(i, -1) for i in dataset.item_ids])
    out[:, known >= 0] = scores[[row[u] for u in dataset.events.user.to_numpy()[held.row]]][:, known[known >= 0]]
    return out


def ranks(scores, held):
    "Rank of each target, seen items left out, ties at their mean rank."
    scores = scores.astype(np.float64)
    scores[held.seen(0, len(held))] = -np.inf
    own = np.take_along_axis(scores, held.target[:, None], 1)
    return 1 + (scores > own).sum(1) + ((scores == own).sum(1) - 1)/2


def scores(model, data, loader):
    "On the other side: what the model thinks of each user's items."
    import torch
    parts = [(batch[0]['user_id'], model.full_sort_predict(batch[0]).view(len(batch[0]), -1)) for batch in loader]
    users, made = (torch.cat(column).numpy() for column in zip(*parts))
    return dict(users=np.array(data.id2token('user_id', users), dtype=str), items=np.array(data.id2token('item_id', np.arange(1, data.item_num)), dtype=str), scores=made[:, 1:])


def probabilities(model, data, loader):
    "On the other side: what the model thinks of each row."
    import torch
    rows, said = (torch.cat(column).numpy() for column in zip(*[(batch[0]['row'], model.predict(batch[0])) for batch in loader]))
    return dict(rows=rows, said=said)


def serve(folder):
    "The other side: build the model, and do what is asked on standard input."
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed
    from scipy.sparse import dok_matrix
    if not hasattr(dok_matrix, '_update'):   # RecBole fills its graph by a method that SciPy has removed
        dok_matrix._update = lambda self, entries: [self.__setitem__(at, value) for at, value in entries.items()]
    say = lambda **what: print('@' + json.dumps(what), flush=True)
    given = json.loads((Path(folder)/'config.json').read_text())
    common = dict(data_path=str(folder), load_col=dict(inter=['user_id', 'item_id', 'timestamp']), USER_ID_FIELD='user_id', ITEM_ID_FIELD='item_id', TIME_FIELD='timestamp', metrics=['NDCG', 'Hit'], topk=[10], valid_metric='NDCG@10',
                  eval_args=dict(split=dict(LS='valid_and_test'), group_by='user', order='TO', mode='full'), use_gpu=False, gpu_id='', show_progress=False, state='ERROR', checkpoint_dir=str(Path(folder)/'saved'), reproducibility=True)
    sys.argv = sys.argv[:1]
    config = Config(model=given['model'], dataset='log', config_dict=common | given['config'])
    torch.set_num_threads(int(given['config'].get('threads', 1)))
    init_seed(config['seed'], config['reproducibility'])
    data = create_dataset(config)
    train, valid, test = data_preparation(config, data)
    model = get_model(config['model'])(config, train._dataset).to(config['device'])
    trainer = get_trainer(config['MODEL_TYPE'], config['model'])(config, model)
    trainer.eval_collector.data_collect(train)
    say(instances=len(train._dataset), parameters=sum(p.numel() for p in model.parameters()), items=data.item_num - 1)
    epoch = 0
    for line in sys.stdin:
        what, *more = line.split()
        begun = time.perf_counter()
        if what == 'train': trainer._train_epoch(train, epoch); epoch += 1; say(seconds=time.perf_counter() - begun)
        if what == 'valid': trainer._valid_epoch(valid); say(seconds=time.perf_counter() - begun)
        if what in ('scores', 'probabilities'):
            model.eval()
            with torch.no_grad(): made = dict(scores=scores, probabilities=probabilities)[what](model, data, dict(valid=valid, test=test)[more[0]])
            file = Path(folder)/f'{more[0]}.npz'
            np.savez(file, **made)
            say(file=str(file))


if __name__ == '__main__': serve(sys.argv[1])
