"What an option does: one that is kept in an address acts, one that cannot be used is refused before anything runs, and the way out that an error names is open."
import json
import re
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch

from recx.adapt.stage import small as small_adapt
from recx.data.dataset import Dataset
from recx.data.parameters import declared
from recx.data.stage import small as small_data
from recx.extract.vectors import ROW_COLUMNS, Vectors
from recx.recommend import stage
from recx.recommend.clicks import Clicks
from recx.recommend.fusion import FUSIONS
from recx.recommend.given import Given, load_given
from recx.recommend.late import Late
from recx.recommend.rerank import Rerank
from recx.recommend.simple import Simple
from recx.recommend.stage import TASKS, TRAINED, check, family, knows_items, make_model, relevant
from recx.recommend.train import train
from recx.run.stages import chain

DEFAULTS = declared(vars(stage))
USERS, ITEMS, LENGTH = 24, 20, 10
BASE = DEFAULTS | dict(embedding_size=8, dropout=.1, max_length=6, negatives=6, adapter_hidden=4, experts=2, shared_experts=1, own_experts=1, on_missing='zero', null_size=4, deep='8', click_history=5, click_fields='colour', batch_size=64, batch_tokens=64,
                       list_size=5, list_length=10, learning_rate=.02, epochs=2, patience=2, cross_layers=2, user_gate=False)
ACTS = dict( # other values than those above and than the defaults, to which `relevant` turns what is idle
            user_fusion='replace', adapter='mlp', adapter_hidden=6, adapter_gain=.25, experts=3, expert_top_k=1, gate_noise=1., gate_balance=1., shared_experts=3, own_experts=2, final_relu=True, user_gate=True, placebo='shuffled', on_missing='mean', embedding_size=10,
            blocks=2, heads=2, dropout=.3, max_length=3, mask_share=.6, graph_layers=1, edge_dropout=.5, l2=.1, knn_neighbours=2, loss='ce', negatives=3, gbce_t=.1, scoring='cosine', temperature=.5, align_weight=1., align_temperature=1., align_mask=.5,
            positive_above=1.5, click_negatives=2, click_fields='', click_history=2, deep='6', cross_layers=1, attention_layers=1, list_length=6, hold_back=1, batch_tokens=20, batch_size=16, null_size=2, seed=1, seen_items='candidates', list_size=3)
ELSEWHERE = dict(backbone='who an arm is', fusion='who an arm is', transfer='test_recommend_transfer', transfer_from='test_recommend_transfer', late_of='names the input second', first_stage='names the input first', train_device='needs another device',
                 train_threads='moves the last bits only', patience='test_recommend_train', **dict.fromkeys(('learning_rate', 'weight_decay', 'epochs', 'validate_every'), 'test_what_the_trainer_reads_acts'))


def log(values=True):
    "Even people meet even things more often; what they like is what shares their parity."
    rng, rows = np.random.default_rng(0), []
    for u in range(USERS): rows += [(u, i) for i in rng.choice(ITEMS, LENGTH, replace=False, p=np.where(np.arange(ITEMS) % 2 == u % 2, 3, 1)/(2*ITEMS))]
    user, item = np.array(rows).T
    value = np.where(item % 2 == user % 2, rng.integers(2, 6, len(user)), rng.integers(1, 4, len(user))).astype(float) if values else 1.
    events = pd.DataFrame(dict(user=[f'u{u:02}' for u in user], item=[f'i{i:02}' for i in item], time=np.tile(np.arange(LENGTH), USERS), value=value, split=np.tile(['train']*(LENGTH - 4) + ['valid']*2 + ['test']*2, USERS)))
    there = np.arange(ITEMS if values else 2*ITEMS)   # more than anybody has met, so that noes can be drawn in every part
    return Dataset(pd.DataFrame(dict(item=[f'i{i:02}' for i in there], colour=np.array(['red', 'blue'])[there//2 % 2])), pd.DataFrame(dict(user=[f'u{u:02}' for u in range(USERS)])), events, dict(name='ml-board', has_values=values))


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    "Both logs, and vectors in two layers for all but one item and one user."
    folder = tmp_path_factory.mktemp('options')
    ids = [('item', f'i{i:02}') for i in range(ITEMS - 1)] + [('user', f'u{u:02}') for u in range(USERS - 1)]
    rows = pd.DataFrame([dict.fromkeys(ROW_COLUMNS, '') | dict(id=i, kind=kind, layer=layer) for layer in ('L1', 'L2') for kind, i in ids])
    Vectors(rows, np.random.default_rng(1).normal(1, 1, size=(len(rows), 4)).astype(np.float32)).save(folder)
    return folder, dict(labels=log(), purchases=log(False))


READ = ('fusion', 'user_fusion', 'placebo', 'on_missing', 'seed')


@cache
def vectors_of(folder, *values): return load_given(dict(zip(READ, values)), dict(vectors=folder), log())


def made(params, base):
    "Task and fresh model of an arm, on what it rests on."
    folder, logs = base
    data, given = logs['purchases' if params['click_negatives'] else 'labels'], replace(vectors_of(folder, *(params[name] for name in READ)))
    first = dict(backbone='fm' if TASKS[params['backbone']] is Clicks else 'mf', fusion='id', user_fusion='id')
    models = [made(params | first | change, base) for change in ([dict(backbone=params['first_stage'])] if TASKS[params['backbone']] is Rerank else [{}, dict(seed=9)] if params['fusion'] == 'late' else [])]
    given.models = dict(zip(('first', 'second'), models))
    task = family(params)(data, params)
    return task, make_model(task, given, params['seed'])


def outcome(params, base):
    "Everything an arm comes to after one epoch of plain gradient steps: losses, weights, results."
    task, model = made(params, base)
    rng, losses = np.random.default_rng(params['seed']), []
    with torch.random.fork_rng():
        torch.manual_seed(params['seed'])
        for loss, n in task.losses(model.train(), params, rng):
            if not losses: optimiser = torch.optim.SGD(model.parameters(), .1)
            optimiser.zero_grad(); loss.backward(); optimiser.step()
            losses.append((loss.item(), n))
    task.validate(model)
    return losses, {name: t.clone() for name, t in model.state_dict().items()}, task.results(model)


def alike(a, b):
    "Whether two arms came to the same."
    return a[0] == b[0] and a[1].keys() == b[1].keys() and all(torch.equal(t, b[1][name]) for name, t in a[1].items()) and a[2].keys() == b[2].keys() and all(t.equals(b[2][name]) for name, t in a[2].items())


def other(name, params):
    "Another value of an option."
    turned = dict(user_fusion='id', adapter='linear', loss='sampled-softmax', scoring='dot', click_negatives=2)
    return turned.get(name, BASE[name]) if params[name] == ACTS[name] or name == 'user_fusion' and params[name] != 'id' else ACTS[name]


ARMS = [dict(backbone=backbone) for backbone in TASKS] + [dict(backbone='sasrec', fusion=fusion) for fusion in TASKS['sasrec'].fusions if fusion not in ('id', 'init')] + [dict(backbone='lightgcn', fusion='align-gen'), dict(backbone='prm', fusion='nullspace'), dict(backbone='deepfm', fusion='concat'), dict(backbone='deepfm', fusion='late')]
ARMS += [dict(backbone='mf', fusion='concat', user_fusion='concat', adapter=adapter) for adapter in ('mlp', 'moe', 'hea', 'layer-moe')] + [dict(backbone='mf', user_fusion='nullspace')]
ARMS += [dict(backbone=backbone, **change) for backbone in ('sasrec', 'mf') for change in (dict(loss='gbce', scoring='cosine'), dict(loss='ce'))] + [dict(backbone='fm', click_negatives=1)]
said = lambda changes: ' '.join(map(str, changes.values()))


@pytest.mark.parametrize('changes', ARMS, ids=said)
def test_a_kept_option_acts(changes, base):
    params = BASE | (dict(hold_back=2, first_stage='mf') if TASKS[changes['backbone']] is Rerank else {}) | (dict(positive_above=3.) if TASKS[changes['backbone']] is Clicks else {}) | changes
    check(params)
    kept = {name for name in ACTS if relevant(params | {name: other(name, params)})[name] == other(name, params)}
    before = outcome(params, base)
    assert alike(before, outcome(params, base)), 'the same arm twice'
    idle = []
    for name in sorted(kept):
        if name == 'user_fusion' and other(name, params) not in family(params).user_fusions or name == 'click_negatives' and not params[name] or name == 'seed' and params['fusion'] == 'late': continue   # no other value is possible; under late, the seed is that of the two models
        change = params | {name: other(name, params)}
        check(change)
        if alike(before, outcome(change, base)): idle.append(name)
    assert not idle


def test_every_option_is_tried_or_said_to_be_tried_elsewhere(): assert set(ACTS) | set(ELSEWHERE) == set(DEFAULTS) and not set(ACTS) & set(ELSEWHERE)


@pytest.mark.parametrize('change', [dict(learning_rate=.1), dict(weight_decay=.5), dict(epochs=1), dict(validate_every=2)], ids=said)
def test_what_the_trainer_reads_acts(change, base):
    curves = []
    for params in (BASE | dict(backbone='mf'), BASE | dict(backbone='mf') | change):
        task, model = made(params, base)
        curves.append(train(model, task, params)[0][['epoch', 'loss', 'valid']])
    assert next(iter(change)) in TRAINED and not curves[0].equals(curves[1])


IDLE = [(dict(backbone='fm'), dict(hold_back=2, blocks=2, heads=2, max_length=5, dropout=.1, deep='8', cross_layers=1, list_size=3, loss='gbce', gbce_t=.1)), (dict(backbone='deepfm', click_negatives=1), dict(positive_above=4., heads=2)), (dict(backbone='gru4rec', fusion='align-con'), dict(adapter='mlp', adapter_hidden=3)),
        (dict(backbone='sasrec', fusion='add'), dict(adapter_hidden=3)), (dict(backbone='sasrec', fusion='cross-attention'), dict(adapter_gain=.5)), (dict(backbone='popularity'), dict(knn_neighbours=3, seed=4, embedding_size=8)), (dict(backbone='mf'), dict(max_length=3, blocks=2, dropout=.3)), (dict(backbone='mf', loss='ce'), dict(negatives=4)),
        (dict(backbone='prm', hold_back=1), dict(max_length=3, loss='gbce', gbce_t=.1)), (dict(backbone='sasrec', fusion='late'), dict(embedding_size=8, epochs=3, dropout=.1, learning_rate=.1)), (dict(backbone='deepfm', fusion='late'), dict(embedding_size=8, epochs=3, list_size=3, deep='8'))]


@pytest.mark.parametrize('arm, idle', IDLE, ids=lambda d: said(d))
def test_what_does_nothing_is_not_in_the_address(arm, idle):
    for name, value in idle.items(): assert relevant(DEFAULTS | arm | {name: value}) == relevant(DEFAULTS | arm), name


def test_an_option_of_the_models_that_are_mixed_is_in_their_addresses():
    keys = {chain(dict(fusion='late', late_of='id', epochs=e)).key for e in (2, 3)}
    assert len(keys) == 2


# ---- what is refused beforehand

WAY = re.compile(r'(\w+)=([^\s,;]+)')


def ways_out(message):
    "The settings that an error names as ways out."
    return [{name: {'True': True, 'False': False}.get(value, value)} for name, value in WAY.findall(message.rpartition('; use ')[2])]


def refusals(**changes):
    "Every refused arm, with what was said."
    for backbone, fusion, user_fusion in product(TASKS, FUSIONS, ('id', 'cross-attention', 'dual-view')):
        params = DEFAULTS | dict(backbone=backbone, fusion=fusion, user_fusion=user_fusion, hold_back=1) | changes
        try: check(params)
        except ValueError as e: yield params, str(e)


@pytest.mark.parametrize('adapter, user_gate', [('linear', False), ('hea', False), ('layer-moe', False), ('layer-moe', True)])
def test_every_way_out_that_an_error_names_is_open(adapter, user_gate):
    count = 0
    for params, message in refusals(adapter=adapter, user_gate=user_gate):
        at_fault = message.partition('=')[0]
        others = {name for name in ('fusion', 'user_fusion') if name != at_fault and params[name] != 'id'}
        if user_gate and others or at_fault == 'user_gate' and params['fusion'] == 'cross-attention': continue   # two faults; each is said in its turn
        params |= dict.fromkeys(others - ({'fusion'} if at_fault == 'user_fusion' and params['fusion'] in TASKS[params['backbone']].fusions else set()), 'id')
        assert ways_out(message), message
        for way in ways_out(message): check(params | way); count += 1
    assert count > 100


@pytest.mark.parametrize('change, said', [(dict(fusion='late', late_of='late'), "late_of='late': use one of id, "), (dict(fusion='late', late_of='foo'), "late_of='foo': use one of"), (dict(fusion='late', late_of='align-gen'), "late_of='align-gen': backbone='sasrec' has no such way in"),
    (dict(fusion='late', late_of='cross-attention', adapter='hea'), "late_of='cross-attention': weighs"), (dict(fusion='late', late_of='id', placebo='shuffled'), "placebo='shuffled': late_of=id uses no vectors"),
    (dict(backbone='prm', first_stage='prm', hold_back=1), "first_stage='prm': use one of sasrec"), (dict(backbone='prm', first_stage='sasrek', hold_back=1), "first_stage='sasrek'.*did you mean 'sasrec'"), (dict(backbone='dlcm', first_stage='popularity', hold_back=1), "first_stage='popularity': use one of"),
    (dict(backbone='prm', first_stage='gru4rec', hold_back=1, heads=2), "heads=2: first_stage='gru4rec'"), (dict(backbone='prm'), 'hold_back=0:.*use hold_back=1 or more'), (dict(backbone='prm', hold_back=1, list_size=20), 'list_size=20:.*list_length=10'),
    (dict(backbone='deepfm', deep='200;80'), "deep='200;80': write"), (dict(backbone='dien', click_history=1), 'click_history=1: must be at least 2'), (dict(fusion='add', adapter='moe', experts=200, embedding_size=8), 'experts=200: more than the embedding_size=8 coordinates.*use at most 8'), (dict(backbone='mf', user_fusion='align-gen'), "user_fusion='align-gen': backbone='mf' spreads")], ids=lambda x: said(x) if isinstance(x, dict) else '')
def test_what_cannot_be_trained_is_refused_before_anything_is_made(change, said):
    with pytest.raises(ValueError, match=f'^{said}'): check(DEFAULTS | change)
    with pytest.raises(ValueError, match=f'^{said}'): chain(change)   # an arm that rests on itself too, which has no end


# ---- who knows an item that training never met

KNOWS = [(dict(), False), (dict(fusion='align-con'), False), (dict(fusion='late'), False), (dict(fusion='init'), True), (dict(fusion='nullspace'), True), (dict(fusion='add'), True), (dict(fusion='cross-attention'), True), (dict(fusion='dual-view'), True), (dict(backbone='lightgcn', fusion='align-gen'), False),
         (dict(backbone='mf', user_fusion='replace'), False), (dict(backbone='mf', fusion='replace'), True), (dict(backbone='prm', first_stage='mf', hold_back=2), False), (dict(backbone='prm', first_stage='mf', hold_back=2, fusion='replace'), True), (dict(backbone='prm', first_stage='mf', hold_back=2, fusion='align-con'), False),
         (dict(backbone='fm'), True), (dict(backbone='fm', click_fields=''), False), (dict(backbone='fm', click_fields='', user_fusion='replace'), False), (dict(backbone='fm', click_fields='', fusion='concat'), True), (dict(backbone='item-knn'), True)]


@pytest.mark.parametrize('changes, knows', KNOWS, ids=lambda x: said(x) or 'ids' if isinstance(x, dict) else '')
def test_who_knows_an_item_that_training_never_met(changes, knows, base):
    params = BASE | dict(positive_above=3.) | changes
    check(params)
    assert knows_items(*made(params, base)) == knows


def test_a_mixture_knows_what_either_of_its_models_knows(base):
    folder, logs = base
    task, given = Late(logs['labels'], BASE), Given(models=dict(first=made(BASE | dict(backbone='mf'), base), second=made(BASE | dict(backbone='mf', fusion='add'), base)))
    assert knows_items(task, task.model(given))


@pytest.mark.parametrize('changes, chance', [(dict(), True), (dict(fusion='align-con'), True), (dict(fusion='add'), False)], ids=lambda x: said(x) or 'ids' if isinstance(x, dict) else '')
def test_the_summary_says_whose_answers_for_cold_items_are_chance(changes, chance, tmp_path):
    small_data(tmp_path/'data', cold_items=.2)
    small_adapt(tmp_path/'adapt', reduce='pca', reduce_size=16)
    cold = json.loads((stage.small(tmp_path/'arm', epochs=1, embedding_size=8, **changes)/'summary.json').read_text())['cold']
    assert cold['test_events'] > 0 and cold['by_chance'] is chance
