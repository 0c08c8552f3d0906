"An adapter travels from one data set to another, unchanged where it is frozen; what cannot travel is refused with the reason."
import json

import numpy as np
import pandas as pd
import pytest
import torch
from recx.data.stage import small as small_data
from recx.extract.vectors import ROW_COLUMNS, Vectors
from recx.recommend.stage import check, relevant, run
from recx.recommend.transfer import FROM_DONOR, TRANSFERS, adapters_in
from recx.data.parameters import declared
from recx.run.stages import chain, rests_on
from recx.run.study import Study
from safetensors.torch import load_file

import recx.recommend.stage as stage

DEFAULTS = declared(vars(stage))
SMALL = dict(embedding_size=8, adapter_hidden=6, epochs=2, negatives=8, max_length=8, list_size=5, deep='8', experts=2)


def vectors(folder, data, layers=('L1', 'L2'), size=6, seed=0, users=False):
    "Vectors of all items (and users) in layers, as an adapt artefact holds them."
    parts, rng = [], np.random.default_rng(seed)
    for kind, table, column in [('item', 'items', 'item')] + ([('user', 'users', 'user')] if users else []):
        ids = pd.read_parquet(data/f'{table}.parquet')[column].astype(str)
        parts += [pd.DataFrame(dict.fromkeys(ROW_COLUMNS, ''), index=range(len(ids))).assign(id=ids, kind=kind, layer=layer) for layer in layers]
    rows = pd.concat(parts, ignore_index=True)
    folder.mkdir(parents=True)
    Vectors(rows, rng.normal(size=(len(rows), size)).astype(np.float32)).save(folder)
    return folder


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "Two small catalogues, vectors of both, and a function that trains an arm on either."
    top = tmp_path_factory.mktemp('transfer')
    folders = {name: dict(data=small_data(top/name/'data', toy_users=60, toy_items=40, toy_seed=seed, split_by='time'), vectors=None) for seed, name in enumerate(('songs', 'shirts'))}
    for name, f in folders.items(): f['vectors'] = vectors(top/name/'adapt', f['data'], users=True)
    count = iter(range(1000))
    def train(where, donor=None, given=None, **changes):
        out = top/f'run-{next(count)}'; out.mkdir()
        params = DEFAULTS | SMALL | dict(transfer_from=dict(dataset='songs') if changes.get('transfer') in FROM_DONOR else {}) | changes
        check(params)
        return run(params, folders[where] | (given or {}) | (dict(donor=donor) if donor else {}), out)
    return train, folders, top


def adapters(folder):
    weights = load_file(folder/'model.safetensors')
    return {key: {inner: weights[name] for inner, name in names.items()} for key, names in adapters_in(weights).items()}


def same(a, b): return all(torch.equal(a[k][i], b[k][i]) for k in a for i in a[k])


@pytest.mark.parametrize('adapter', ['linear', 'mlp', 'moe', 'layer-moe', 'hea'])
def test_frozen_is_the_donors_and_start_is_not(world, adapter):
    train, _, _ = world
    donor = train('songs', backbone='mf', fusion='concat', adapter=adapter)
    frozen, start = (train('shirts', donor, backbone='mf', fusion='concat', adapter=adapter, transfer=how) for how in ('frozen', 'start'))
    assert same(adapters(donor), adapters(frozen)) and not same(adapters(donor), adapters(start))
    sizes = [json.loads((f/'summary.json').read_text()) for f in (frozen, start)]
    inside = sum(w.numel() for group in adapters(frozen).values() for w in group.values())
    assert sizes[1]['parameters_trainable'] - sizes[0]['parameters_trainable'] == inside > 0


@pytest.mark.parametrize('backbone', ['sasrec', 'lightgcn'])
def test_from_one_family_to_another(world, backbone):
    train, _, _ = world
    donor = train('songs', backbone='mf', fusion='add', adapter='mlp')
    assert same(adapters(donor), adapters(train('shirts', donor, backbone=backbone, fusion='replace', adapter='mlp', transfer='frozen')))


def test_clicks_take_a_whole_width_from_replace(world):
    train, _, _ = world
    donor = train('songs', backbone='mf', fusion='replace', adapter='mlp')
    moved = train('shirts', donor, backbone='deepfm', fusion='concat', adapter='mlp', transfer='frozen')
    assert same(adapters(donor), adapters(moved))


def test_both_sides_and_shared_experts_travel(world):
    train, _, _ = world
    donor = train('songs', backbone='mf', fusion='replace', user_fusion='replace', adapter='hea')
    moved = train('shirts', donor, backbone='mf', fusion='replace', user_fusion='replace', adapter='hea', transfer='frozen')
    assert set(adapters(moved)) == {('items', 0), ('users', 0)} and same(adapters(donor), adapters(moved))
    alone = train('songs', backbone='mf', fusion='replace', adapter='mlp')
    with pytest.raises(ValueError, match='no such adapter of users'): train('shirts', alone, backbone='mf', fusion='replace', user_fusion='replace', adapter='mlp', transfer='frozen')


def test_layers_of_cross_attention_in_their_order(world):
    train, _, _ = world
    donor = train('songs', backbone='mf', fusion='cross-attention', adapter='linear')
    moved = train('shirts', donor, backbone='mf', fusion='cross-attention', adapter='linear', transfer='frozen')
    assert set(adapters(moved)) == {('items', 0), ('items', 1)} and same(adapters(donor), adapters(moved))


def test_a_user_gate_travels(world):
    train, _, _ = world
    wishes = dict(backbone='mf', fusion='replace', adapter='layer-moe', user_gate=True)
    donor = train('songs', **wishes, epochs=4)
    moved = train('shirts', donor, **wishes, transfer='frozen')
    gate = adapters(moved)['items', 0]['user_gate']
    assert gate.abs().sum() > 0 and torch.equal(gate, adapters(donor)['items', 0]['user_gate'])
    assert (moved/'gates_user.parquet').exists()


def test_the_control_keeps_its_own_start(world):
    train, _, _ = world
    short, long = (train('shirts', backbone='mf', fusion='replace', adapter='mlp', transfer='untrained', epochs=n, patience=n) for n in (1, 4))
    trained = train('shirts', backbone='mf', fusion='replace', adapter='mlp', epochs=4)
    assert same(adapters(short), adapters(long)) and not same(adapters(short), adapters(trained))
    assert not same(adapters(short), adapters(train('shirts', backbone='mf', fusion='replace', adapter='mlp', transfer='untrained', seed=1)))


def test_a_transferred_model_answers_again(world):
    from recx.data.dataset import Dataset
    train, folders, _ = world
    donor = train('songs', backbone='mf', fusion='concat', adapter='layer-moe')
    moved = train('shirts', donor, backbone='sasrec', fusion='concat', adapter='layer-moe', transfer='start')
    task, model = stage.load_model(moved, Dataset.load(folders['shirts']['data']))
    assert task.validate(model) == pytest.approx(json.loads((moved/'summary.json').read_text())['valid']['ndcg@10'], abs=1e-6)


@pytest.mark.parametrize('changes, said', [(dict(embedding_size=16), 'has weights'), (dict(adapter='linear'), 'has weights'), (dict(fusion='concat'), 'has weights'), (dict(adapter_hidden=7), 'has weights')])
def test_widths_that_differ_are_refused(world, changes, said):
    train, _, _ = world
    donor = train('songs', backbone='mf', fusion='replace', adapter='mlp')
    with pytest.raises(ValueError, match=said): train('shirts', donor, **dict(dict(backbone='mf', fusion='replace', adapter='mlp', transfer='frozen'), **changes))


def test_other_layers_are_refused(world, tmp_path):
    train, folders, _ = world
    donor = train('songs', backbone='mf', fusion='replace', adapter='mlp')
    other = vectors(tmp_path/'adapt', folders['shirts']['data'], layers=('L1', 'L3'))
    with pytest.raises(ValueError, match='same layers'): train('shirts', donor, given=dict(vectors=other), backbone='mf', fusion='replace', adapter='mlp', transfer='frozen')


def test_nothing_is_written_where_the_donor_is_missing(world, tmp_path):
    _, folders, _ = world
    params = DEFAULTS | SMALL | dict(fusion='replace', transfer='frozen', transfer_from=dict(dataset='songs'))
    with pytest.raises(ValueError, match="input 'donor'"): run(params, folders['shirts'], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('changes, said', [(dict(transfer='forzen'), 'transfer'), (dict(transfer='frozen'), 'would be this very arm'), (dict(transfer='start', transfer_from=dict(dataset='x'), fusion='id'), 'no adapter'),
                                           (dict(transfer='frozen', transfer_from=dict(dataset='x'), fusion='nullspace'), 'no adapter'), (dict(transfer='frozen', transfer_from=dict(transfer='start')), 'own domain alone'),
                                           (dict(transfer='frozen', transfer_from=dict(dataset='x'), fusion='late'), 'no adapter'), (dict(transfer='untrained', fusion='init', reduce_size=64), 'no adapter|reduce_size')])
def test_check_refuses(changes, said):
    with pytest.raises(ValueError, match=said): check(DEFAULTS | dict(fusion='replace') | changes)


def test_what_is_idle_has_no_part_in_the_address():
    base = DEFAULTS | dict(fusion='replace')
    assert relevant(base | dict(transfer_from=dict(dataset='x'))) == relevant(base)
    assert relevant(base | dict(transfer='untrained', transfer_from=dict(dataset='x'))) == relevant(base | dict(transfer='untrained'))
    assert len({json.dumps(relevant(base | dict(transfer=how, transfer_from=dict(dataset='x'))), sort_keys=True) for how in TRANSFERS}) == len(TRANSFERS)


MOVED = dict(dataset='toy', fusion='concat', adapter='mlp', describe='zeroshot_layers', transfer='frozen', transfer_from=dict(toy_seed=5, backbone='mf'))


def test_the_chain_trains_the_donor_on_its_own_data_at_the_same_seed():
    node = chain(MOVED | dict(seed=3, backbone='sasrec'))
    donor = node.inputs['donor']
    assert donor.params['seed'] == 3 and donor.params['backbone'] == 'mf' and donor.params['transfer'] == 'none'
    assert donor.inputs['data'].params['toy_seed'] == 5 and node.inputs['data'].params['toy_seed'] == 0
    assert donor.key == chain({**MOVED, 'seed': 3, 'toy_seed': 5, 'backbone': 'mf', 'transfer': 'none', 'transfer_from': {}}).key   # an arm of its own, shared with whoever trains it


def test_a_placebo_takes_the_meaning_from_the_donor_too():
    assert chain(MOVED | dict(placebo='shuffled')).inputs['donor'].params['placebo'] == 'shuffled'


@pytest.mark.parametrize('changes, said', [(dict(reduce='pca'), "reduce='pca'.*axes of its own"), (dict(tuning='cpt'), "tuning='cpt'"), (dict(transfer_from=dict(reduce='whiten')), 'two spaces'), (dict(transfer_from=dict(datset='x')), "datset")])
def test_spaces_that_differ_are_refused(changes, said):
    with pytest.raises(ValueError, match=said): chain(MOVED | changes)


def test_a_reranker_takes_the_adapter_and_its_first_stage_does_not():
    found = rests_on(MOVED | dict(backbone='dlcm', split_by='time'))
    assert set(found) == {'donor', 'first'} and found['first']['transfer'] == 'none' and found['first']['transfer_from'] == {}


def test_a_study_may_have_transferred_arms():
    study = Study('t', '', '', baseline='own', arms={'own': dict(fusion='replace'), 'moved': dict(fusion='replace', transfer='frozen', transfer_from=dict(toy_seed=1))}, grid=[{}], sizes=dict(smoke=dict(seeds=1, trials=1, engine='inline')))
    assert study.arms['moved']['transfer_from'] == dict(toy_seed=1)
