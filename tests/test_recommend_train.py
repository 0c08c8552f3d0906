"What the recommender learns, that it does so again, after a kill too; and what becomes of a run that diverges."
import json
import os
import signal
import subprocess
import sys
import time
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from recx.adapt.stage import small as small_adapt
from recx.data.dataset import Dataset
from recx.data.parameters import declared
from recx.extract.vectors import ROW_COLUMNS, Vectors
from recx.recommend import stage
from recx.recommend.batches import held_out, training_windows
from recx.recommend.losses import LOSSES
from recx.recommend.ranking import hr, ndcg, target_ranks
from recx.recommend.given import Given, load_given
from recx.recommend.nextitem import NextItem, answer, batch_loss
from recx.recommend.stage import check, load_model, make_model, run, small
from recx.recommend.rows import Optimisers
from recx.recommend.train import Diverged, train

SETTINGS = dict(loss='ce', negatives=16, gbce_t=.75, gate_balance=.01, learning_rate=.01, weight_decay=0., batch_tokens=256, epochs=25, patience=25, validate_every=1, seed=0)
SMALL = declared(vars(stage)) | dict(embedding_size=16, max_length=8, dropout=.1, null_size=8, adapter_hidden=8)


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    "A folder with small inputs: data, and vectors of 32 coordinates."
    folder = tmp_path_factory.mktemp('recommend')
    small_adapt(folder/'adapt', reduce='pca', reduce_size=32)
    small(folder/'ids', epochs=3, embedding_size=16, seed=1)
    return folder


def checkerboard(users=40, items=20, length=9):
    "Even users see even items, odd users odd ones: the right recommendation is known."
    rng = np.random.default_rng(0)
    item = np.concatenate([rng.permutation(items//2)[:length]*2 + u % 2 for u in range(users)])
    return np.repeat(np.arange(users), length), item, np.tile([0]*(length - 2) + [1, 2], users)


def ring(users=60, items=30, length=12):
    "Everybody walks round the same ring."
    return np.repeat(np.arange(users), length), (np.tile(np.arange(length), users) + np.repeat(np.arange(users)*7, length)) % items, np.tile([0]*(length - 2) + [1, 2], users)


def as_dataset(log):
    "A log of codes as a data set."
    user, item, split = log
    events = pd.DataFrame(dict(user=[f'u{u:03}' for u in user], item=[f'i{i:03}' for i in item], time=np.arange(len(user)), value=1., split=np.array(['train', 'valid', 'test'])[split]))
    return Dataset(pd.DataFrame(dict(item=sorted(set(events.item)))), pd.DataFrame(dict(user=sorted(set(events.user)))), events, {})


def task_of(log, **changes): return NextItem(as_dataset(log), SMALL | changes)


def model_of(log, vectors=None, **changes):
    given = Given() if vectors is None else Given(items=vectors, layers={'': slice(0, vectors.shape[1])})
    return make_model(task_of(log, **changes), given, 0)


def fitted(log, changes=None, vectors=None, **settings):
    task, model = task_of(log, **(changes or {})), model_of(log, vectors, **(changes or {}))
    curve, stopped = train(model, task, SETTINGS | settings)
    held = task.parts['test']
    return model, target_ranks(*answer(model, held), held), curve, stopped


def test_the_ring_is_learned():
    assert hr(fitted(ring())[1], 1) > .9


def test_the_checkerboard_is_learned():
    model, ranks, *_ = fitted(checkerboard())
    held = held_out(*checkerboard(), 2, 8)
    queries, table = answer(model, held)
    top = (queries @ table.T).topk(5, dim=1).indices
    assert (top % 2 == (torch.arange(40) % 2)[:, None]).float().mean() > .95


FUSIONS = [f for f in NextItem.fusions if f != 'late']


@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize('scoring', ['dot', 'cosine'])
@pytest.mark.parametrize('fusion', FUSIONS)
def test_every_fusion_with_every_loss_and_scoring(fusion, scoring, loss):
    vectors = np.random.default_rng(0).normal(size=(30, 16)).astype(np.float32)
    *_, curve, _ = fitted(ring(), dict(fusion=fusion, scoring=scoring, temperature=.2, adapter='mlp'), vectors, loss=loss, epochs=4)
    assert curve.loss.iloc[-1] < curve.loss.iloc[0]


def test_a_mixture_of_experts_asks_for_balance_and_shows_its_gates():
    vectors = np.random.default_rng(0).normal(size=(30, 12)).astype(np.float32)
    model, ranks, curve, _ = fitted(ring(), dict(fusion='replace', adapter='moe', experts=4, expert_top_k=2, gate_noise=1.), vectors, epochs=25)
    assert hr(ranks, 5) > .5 and model.table.aux_loss() > -1


@pytest.mark.parametrize('loss', ['ce', 'sampled-softmax'])
def test_the_table_gets_gradients_from_both_sides(loss):
    "A table that is scored against without a gradient is a handicapped baseline; here either side alone moves it."
    log, rng = ring(), lambda: np.random.default_rng(0)
    windows, settings = training_windows(*log, 8), SETTINGS | dict(loss=loss, negatives=30)
    model = model_of(log)
    ids = model.table.parts[0].weight
    def gradient(blocked):
        sides, backbone = type(model).sides, model.backbone.forward
        if blocked == 'output': model.sides = lambda q, rows: sides(model, q, rows.detach())
        if blocked == 'input': model.backbone.forward = lambda x, *rest: backbone(x.detach(), *rest)
        model.zero_grad()
        batch_loss(model, windows, np.arange(20), np.arange(30), settings, rng())[0].backward()
        if blocked == 'output': del model.sides
        if blocked == 'input': del model.backbone.forward
        return ids.grad.clone()
    whole, no_output, no_input = gradient(''), gradient('output'), gradient('input')
    assert no_output.abs().sum() > 0 and no_input.abs().sum() > 0
    assert torch.allclose(whole, no_output + no_input, atol=1e-6)


def test_the_filling_has_no_gradient():
    log = ring()
    windows = training_windows(*log, 8)
    windows.start[0] = windows.stop[0] - 3   # a short row among long ones
    model = model_of(log, dropout=0.)
    def gradient(fill):
        pad = type(windows).pad
        def filled(which):
            items, lengths = pad(windows, which)
            items[torch.arange(items.shape[1]) >= lengths[:, None]] = fill
            return items, lengths
        windows.pad = filled
        model.zero_grad()
        loss, _ = batch_loss(model, windows, np.arange(3), np.arange(30), SETTINGS, np.random.default_rng(0))
        loss.backward()
        return loss.item(), model.table.parts[0].weight.grad.clone()
    (a, grad_a), (b, grad_b) = gradient(3), gradient(28)
    assert a == b and torch.equal(grad_a, grad_b)


def test_the_same_seed_gives_the_same_bytes(base):
    runs = [base/'ids', *(small(base/name, epochs=3, embedding_size=16, seed=seed) for name, seed in (('b', 1), ('c', 2)))]
    models = [(r/'model.safetensors').read_bytes() for r in runs]
    ranks = [pd.read_parquet(r/'per_user.parquet') for r in runs]
    assert models[0] == models[1] and ranks[0].equals(ranks[1]) and models[0] != models[2]


def test_what_the_stage_writes(base):
    folder = base/'ids'
    data, per_user, shown = Dataset.load(base/'data'), *(pd.read_parquet(folder/f'{n}.parquet') for n in ('per_user', 'exposure'))
    held = data.events[data.events.split != 'train']
    assert len(per_user) == len(held) and set(zip(per_user.user, per_user.item, per_user.split)) == set(zip(held.user, held.item, held.split))
    assert per_user['rank'].between(1, len(data.items)).all() and shown.item.tolist() == data.item_ids.tolist()
    assert shown['count'].sum() == 10*(per_user.split == 'test').sum()
    summary = json.loads((folder/'summary.json').read_text())
    assert np.isclose(summary['test']['ndcg@10'], ndcg(per_user[per_user.split == 'test']['rank'].to_numpy(), 10))
    assert summary['catalogue'] == len(data.items) and summary['unranked'] == 0
    assert not (folder/'checkpoint').exists() and not (folder/'gates.parquet').exists()


@pytest.mark.parametrize('fusion', FUSIONS)
def test_a_stored_model_answers_as_it_did(fusion, base):
    folder = small(base/f'stored-{fusion}', epochs=1, embedding_size=32, null_size=8, fusion=fusion, adapter='moe')
    data = Dataset.load(base/'data')
    task, model = load_model(folder, data)
    held = held_out(*data.codes(), 2, 50)
    stored = pd.read_parquet(folder/'per_user.parquet').query("split == 'test'")['rank'].to_numpy()
    assert (target_ranks(*task.answer(model, held), held) == stored).all()
    assert (folder/'gates.parquet').exists() == (fusion in ('replace', 'add', 'concat', 'cross-attention', 'dual-view'))


def test_vectors_are_joined_by_id_and_placebos_by_seed(base, tmp_path):
    data, inputs, vectors = Dataset.load(base/'data'), dict(vectors=base/'adapt'), Vectors.load(base/'adapt')
    order = np.random.default_rng(0).permutation(len(vectors))
    Vectors(vectors.rows.iloc[order], vectors.matrix[order]).save(tmp_path)
    params = SMALL | dict(fusion='replace')
    items = lambda inputs=inputs, data=data, **changes: load_given(params | changes, inputs, data).items
    real = items()
    assert real.shape == (len(data.items), 32) and (items(dict(vectors=tmp_path)) == real).all()
    shuffled = [items(placebo='shuffled', seed=s) for s in (0, 0, 1)]
    assert (shuffled[0] == shuffled[1]).all() and (shuffled[0] != shuffled[2]).any() and (shuffled[0] != real).any()
    assert np.allclose(np.sort(shuffled[0], 0), np.sort(real, 0))
    assert items(placebo='gaussian').shape == real.shape
    assert np.allclose(np.sort(items(placebo='popularity'), 0), np.sort(real, 0))
    strangers = Dataset(data.items.assign(item=data.items.item + 'x'), data.users, data.events.assign(item=data.events.item + 'x'), data.card)
    with pytest.raises(ValueError, match='no vector'): items(data=strangers)
    assert not items(data=strangers, on_missing='zero').any()
    with pytest.raises(ValueError, match='use id'): items({})
    with pytest.raises(ValueError, match='describe_users'): load_given(params | dict(user_fusion='add'), inputs, data)


def test_a_diverging_run_stops_and_leaves_no_result(base, tmp_path):
    with pytest.raises((Diverged, FloatingPointError), match='lower learning_rate'):
        run(declared(vars(stage)) | dict(learning_rate=1e9, epochs=200, patience=200, batch_tokens=64), dict(data=base/'data'), tmp_path)
    assert not list(tmp_path.glob('*.json')) and not list(tmp_path.glob('*.parquet'))


def test_the_last_good_checkpoint_survives_a_divergence(tmp_path, monkeypatch):
    log, file = ring(), tmp_path/'checkpoint'/'last.pt'
    model = model_of(log)
    from recx.recommend import nextitem as module
    old, calls = module.batch_loss, iter(range(10**6))
    monkeypatch.setattr(module, 'batch_loss', lambda *a: tuple(x*(float('nan') if i == 0 and next(calls) > 20 else 1) for i, x in enumerate(old(*a))))
    with pytest.raises(Diverged, match='temperature'): train(model, task_of(log), SMALL | SETTINGS, file, every=1)
    state = torch.load(file, weights_only=True)
    assert len(state['curve']) >= 1 and all(torch.isfinite(v).all() for v in state['model'].values())


def test_killed_and_resumed_equals_uninterrupted(base, tmp_path):
    params = SMALL | dict(epochs=15, patience=15, batch_tokens=256)
    code = f"from recx.recommend.stage import run; run({params!r}, dict(data={str(base/'data')!r}), {str(tmp_path)!r})"
    process = subprocess.Popen([sys.executable, '-c', code], env=os.environ | dict(OMP_NUM_THREADS='1'))
    file, end = tmp_path/'checkpoint'/'last.pt', time.time() + 120
    while not file.exists() and process.poll() is None and time.time() < end: time.sleep(.005)
    assert file.exists()
    process.send_signal(signal.SIGKILL); process.wait()
    assert not (tmp_path/'summary.json').exists()
    run(params, dict(data=base/'data'), tmp_path)
    (base/'whole').mkdir()
    run(params, dict(data=base/'data'), base/'whole')
    a, b = (load_file(folder/'model.safetensors') for folder in (base/'whole', tmp_path))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert (pd.read_parquet(base/'whole'/'curve.parquet').loss == pd.read_parquet(tmp_path/'curve.parquet').loss).all()


@pytest.mark.parametrize('change, says', [
    (dict(fusion='ad'), 'add'), (dict(loss='crossentropy'), 'loss='), (dict(heads=3), 'heads=3'), (dict(fusion='concat', embedding_size=63), 'even'), (dict(fusion='nullspace', null_size=64), 'null_size=64'),
    (dict(loss='bce', negatives=1000), 'gbce_t=0'), (dict(placebo='shuffled'), 'fusion=id uses no vectors'), (dict(temperature=0.), 'temperature'), (dict(learning_rate=float('nan')), 'learning_rate'), (dict(dropout=1.), 'dropout'),
    (dict(epochs=0), 'epochs'), (dict(epochs='many'), 'declared as int'), (dict(adapter='moe', experts=1, fusion='add'), 'experts'), (dict(validate_every=50), 'validate_every'), (dict(loss='sampled-softmax', negatives=1), 'negatives')])
def test_bad_parameters_are_refused_by_name(change, says):
    with pytest.raises(ValueError, match=says): check(declared(vars(stage)) | change)


def test_lists_longer_than_the_catalogue_and_widths_that_do_not_fit(base):
    with pytest.raises(ValueError, match='list_size=1000'): small(base/'long', list_size=1000)
    with pytest.raises(ValueError, match='reduce'): small(base/'narrow', fusion='init', embedding_size=8)


def test_a_user_without_an_earlier_event_is_counted_not_ranked(base, tmp_path):
    data = Dataset.load(base/'data')
    events = pd.concat([data.events, pd.DataFrame(dict(user=['newcomer'], item=[data.item_ids[0]], time=[2_000_000_000], value=[1.], split=['test']))], ignore_index=True)
    users = pd.concat([data.users, pd.DataFrame(dict(user=['newcomer']))], ignore_index=True).fillna('unknown')
    Dataset(data.items, users, events, data.card).save(tmp_path)
    run(SMALL | dict(epochs=1), dict(data=tmp_path), tmp_path)
    assert json.loads((tmp_path/'summary.json').read_text())['unranked'] == 1


@pytest.mark.parametrize('loss', LOSSES)
def test_an_item_that_nobody_met_is_no_negative(loss):
    "As a negative it would be pushed down in every step, and every cold item would rank below chance."
    user, item, split = ring(items=31)   # item 30 is met
    keep = item != 30
    keep[-1] = True
    item = item.copy(); item[-1] = 30    # … by one user, in the test alone
    log = user[keep], item[keep], split[keep]
    task = task_of(log, embedding_size=16)
    assert 30 not in task.known
    model = model_of(log, embedding_size=16)
    before = model.table.parts[0].weight[30].detach().clone()
    train(model, task, SETTINGS | dict(loss=loss, epochs=2, negatives=8))
    assert torch.equal(model.table.parts[0].weight[30].detach(), before) and not torch.equal(model.table.parts[0].weight[0].detach(), before)


class Falls:
    "A task whose validation score falls from the third epoch on."
    criterion = 'score'
    def __init__(self): self.validated = 0
    def losses(self, model, settings, rng): yield model.weight.square().sum(), 1
    def validate(self, model): self.validated += 1; return -abs(self.validated - 3.)


def test_a_run_that_has_stopped_early_does_not_go_on_when_it_is_taken_up(tmp_path):
    settings = SETTINGS | dict(epochs=20, patience=4)
    curve, stopped = train(torch.nn.Linear(2, 2), Falls(), settings, tmp_path/'last.pt', every=100)
    assert len(curve) == 7 and stopped == 'patience' and (tmp_path/'last.pt').exists()
    again, stopped = train(torch.nn.Linear(2, 2), Falls(), settings, tmp_path/'last.pt', every=100)
    assert again.equals(curve) and stopped == 'patience'


def test_patience_that_ends_with_the_last_epoch_is_said(): assert train(torch.nn.Linear(2, 2), Falls(), SETTINGS | dict(epochs=7, patience=4))[1] == 'patience'


def test_a_run_of_all_epochs_is_not_called_patience(): assert train(torch.nn.Linear(2, 2), Falls(), SETTINGS | dict(epochs=6, patience=4))[1] == 'epochs'


def test_early_stopping_looks_at_no_test_target():
    "Other test targets: the same curve, the same best epoch, the same weights; other validation targets: another curve."
    def run_of(turn=''):
        log, settings = checkerboard(), SETTINGS | dict(epochs=12, patience=2)
        task, model = task_of(log), model_of(log)
        if turn: task.parts[turn].target = np.random.default_rng(0).permutation(task.parts[turn].target)
        curve, _ = train(model, task, settings)
        return curve[['epoch', 'loss', 'valid']], model.state_dict()
    (curve, weights), (other, same), (third, _) = run_of(), run_of('test'), run_of('valid')
    assert curve.equals(other) and all(torch.equal(weights[k], same[k]) for k in weights)
    assert not curve.valid.equals(third.valid) and curve.valid.idxmax() < 11


def test_the_test_events_of_the_log_reach_neither_training_nor_validation():
    "The same with the events themselves: whatever is bought last, nothing that is learned or chosen changes."
    user, item, split = checkerboard()
    turned = item.copy()
    turned[split == 2] = np.random.default_rng(1).permutation(item[split == 2])
    made = []
    for log in ((user, item, split), (user, turned, split)):
        task = task_of(log)
        model = make_model(task, Given(), 0)
        made.append((train(model, task, SETTINGS | dict(epochs=6, patience=2))[0][['epoch', 'loss', 'valid']], model.state_dict()))
    assert made[0][0].equals(made[1][0]) and all(torch.equal(a, b) for a, b in zip(made[0][1].values(), made[1][1].values()))


def test_the_learning_rate_is_the_same_in_every_step_of_every_epoch(monkeypatch):
    "Seen by the optimiser at each step, whatever the number of epochs that are asked for."
    seen, step = [], Optimisers.step
    monkeypatch.setattr(Optimisers, 'step', lambda self, *rest: (seen.append(tuple(g['lr'] for o in self.parts for g in o.param_groups)), step(self, *rest))[1])
    for epochs in (2, 7):
        seen.clear()
        train(model_of(ring()), task_of(ring()), SETTINGS | dict(epochs=epochs))
        assert len(seen) > epochs and {rate for rates in seen for rate in rates} == {SETTINGS['learning_rate']}


@pytest.mark.parametrize('how, filling', [('zero', [0., 0.]), ('mean', [2., 4.])])
def test_what_is_missing_is_filled_by_numbers(how, filling, tmp_path):
    "Three of four items have a vector; each layer is filled by its own mean."
    log = as_dataset((np.array([0, 0, 0, 0]), np.array([0, 1, 2, 3]), np.array([0, 0, 1, 2])))
    have = pd.DataFrame([dict.fromkeys(ROW_COLUMNS, '') | dict(id=f'i00{i}', kind='item', layer=layer) for layer in ('L1', 'L2') for i in (0, 1, 3)])
    Vectors(have, np.array([[1, 2], [2, 4], [3, 6], [10, 20], [20, 40], [60, 30]], np.float32)).save(tmp_path)
    given = load_given(dict(fusion='add', user_fusion='id', placebo='none', on_missing=how, seed=0), dict(vectors=tmp_path), log)
    assert given.items.tolist() == [[1, 2, 10, 20], [2, 4, 20, 40], filling + ([0, 0] if how == 'zero' else [30, 30]), [3, 6, 60, 30]] and given.missing == dict(items=1)
    with pytest.raises(ValueError, match='i002'): load_given(dict(fusion='add', user_fusion='id', placebo='none', on_missing='error', seed=0), dict(vectors=tmp_path), log)
