"Recommend artefacts with a known effect, without training: for the tests of everything that reads them."
import json
from pathlib import Path

import numpy as np
import pandas as pd

VERSIONS = dict(versions=dict(python='3.11', recx='0.1.0'), git=dict(commit='0123abc', changed=False), machine=dict(cores=2))

def frame(path: Path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_parquet(path, index=False)

def manifest(folder: Path, stage: str, inputs: dict, seconds: float):
    "What the runner writes beside a result."
    said = dict(stage=stage, key=folder.name, parameters={}, inputs=inputs, external={}, code='c0de', **VERSIONS, started='2026-01-05T10:00:00Z', seconds=seconds, peak_memory_mib=500. + seconds, status='done', files={})
    (folder/'manifest.json').write_text(json.dumps(said))

def data_set(folder: Path, users: int = 400, items: int = 120, seed: int = 0, **card) -> Path:
    "A data artefact: six events per user, items of falling popularity, the last three items cold."
    rng, names = np.random.default_rng(seed), [f'u{u:05}' for u in range(users)]
    goods = np.array([f'i{i:04}' for i in range(items)])
    share = 1/np.arange(1, items - 2)
    rows = []
    for u, name in enumerate(names):
        picked = rng.choice(items - 3, 6, replace=False, p=share/share.sum())
        if u % 40 == 0: picked[-1] = items - 1 - u//40 % 3
        rows += [(name, goods[i], t, 1., 'train' if t < 4 else 'valid' if t == 4 else 'test') for t, i in enumerate(picked)]
    events = pd.DataFrame(rows, columns=['user', 'item', 'time', 'value', 'split'])
    train = events[events.split == 'train']
    count = train.item.value_counts().reindex(goods, fill_value=0)
    order = count.sort_values(ascending=False, kind='stable')
    head = set(order.index[order.cumsum().shift(fill_value=0) < .8*len(train)])
    top = set(order.index[:items//5])
    folder.mkdir(parents=True, exist_ok=True)
    frame(folder/'items.parquet', item=goods, title=[f'<b>{g}</b> & "שלום"' for g in goods])
    frame(folder/'users.parquet', user=names)
    events.to_parquet(folder/'events.parquet', index=False)
    frame(folder/'item_strata.parquet', item=goods, train_count=count.to_numpy(), cold=count.to_numpy() == 0, share80=['head' if g in head else 'tail' for g in goods],
          top20=['head' if g in top else 'tail' for g in goods], bin=['0' if c == 0 else '1–10' if c <= 10 else '11+' for c in count])
    frame(folder/'user_strata.parquet', user=names, train_count=[4]*users, history=['1–4']*users)
    said = dict(name='simulated', display='simulated', text_columns=['title'], users=users, items=items, events=len(events), density=len(events)/users/items, sha256={}, licence='none', source='simulated',
                time_kind='position', ties='file', valid_test_tie_share=0., split_by='leave-one-out', banner='simulated')
    (folder/'card.json').write_text(json.dumps(said | card))
    return folder

def run_of(folder: Path, data: Path, effect: float = 0., tail: float = 0., arm: int = 0, seed: int = 0, noise: float = .35, stopped: str = 'patience') -> Path:
    "One recommend artefact: ranks are shrunk by `exp(-effect)` (and `exp(-tail)` more on tail items); users keep their difficulty across arms, which is what pairing is for."
    events, strata = pd.read_parquet(data/'events.parquet'), pd.read_parquet(data/'item_strata.parquet').set_index('item')
    held = events[events.split != 'train'].reset_index(drop=True)
    difficulty = np.random.default_rng(1).normal(2., 1.2, len(held))
    shock = np.random.default_rng([2, arm, seed]).normal(0, noise, len(held))
    tails = (strata.share80.reindex(held.item) == 'tail').to_numpy()
    logs = difficulty + .5*tails + shock - effect - tail*tails
    rank = np.clip(np.rint(np.exp(logs)), 1, len(strata)).astype('float32')
    frame(folder/'per_user.parquet', user=held.user, item=held.item, split=held.split, rank=rank)
    shown = np.random.default_rng([3, arm, seed]).integers(0, 40, len(strata))
    frame(folder/'exposure.parquet', item=strata.index, count=shown)
    epochs = np.arange(1, 13)
    frame(folder/'curve.parquet', **{'epoch': epochs, 'loss': 5 - .1*epochs, 'valid': .1*(1 - np.exp(-epochs/4)) + .001*arm, 'seconds_train': 1., 'seconds_valid': .1})
    means = {s: {'ndcg@10': float((1/np.log2(1 + rank[held.split == s])*(rank[held.split == s] <= 10)).mean()), 'hr@10': float((rank[held.split == s] <= 10).mean())} for s in ('valid', 'test')}
    (folder/'summary.json').write_text(json.dumps(dict(**means, criterion='ndcg@10', best_epoch=12, epochs=12, stopped=stopped, seconds_train=12., seconds_valid=1.2, parameters_trainable=7744 + 100*arm, parameters_total=7744 + 100*arm, backbone='sasrec',
                                                       catalogue=len(strata), users=int(held.user.nunique()), seed=seed, threads=1, device='cpu')))
    return folder

def simulated(root: Path, effects: dict, seeds: int = 3, users: int = 400, manifests: bool = True, **card) -> dict:
    "Inputs of the evidence stage: arms by name, each with its effect (a number, or the arguments of `run_of`), in a store under `root`."
    root = Path(root)
    data = data_set(root/'data'/'d0', users, **card)
    inputs = dict(data=str(data))
    for i, (arm, effect) in enumerate(effects.items()):
        for seed in range(seeds):
            folder = run_of(root/'recommend'/f'r{i}{seed}', data, arm=i, seed=seed, **(effect if isinstance(effect, dict) else dict(effect=effect)))
            inputs[f'{arm}/{seed}'] = str(folder)
            if manifests: manifest(folder, 'recommend', dict(data=dict(stage='data', key='d0')) | (dict(vectors=dict(stage='adapt', key='a0')) if i else {}), 13. + i)
    if manifests:
        manifest(data, 'data', {}, 2.)
        for stage, key, seconds, needs in (('text', 't0', 1., dict(data=('data', 'd0'))), ('extract', 'x0', 30., dict(data=('data', 'd0'), text=('text', 't0'))), ('adapt', 'a0', .5, dict(data=('data', 'd0'), vectors=('extract', 'x0')))):
            (root/stage/key).mkdir(parents=True, exist_ok=True)
            manifest(root/stage/key, stage, {n: dict(stage=s, key=k) for n, (s, k) in needs.items()}, seconds)
    return inputs
