"A simulated knower serves a study and is found again; the twins study puts two domains into one table, and refuses what its data do not allow."
import json
import socket
from contextlib import ExitStack

import pandas as pd
import matplotlib
import papermill as pm
import pytest
from recx.run.cli import arguments, study_notebook
from recx.run.engine import ensure
from recx.run.simulated import TIERS, knowing
from recx.run.stages import chain, make_node

TWIN = dict(dataset='sim-fashion', sim_users=60, sim_items=40, sim_events=900, on_duplicates='units')


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def test_the_same_port_gives_the_same_address_and_another_world_another_name(store):
    port, told = free_port(), []
    for more in ({}, {}, dict(sim_seed=1)):
        with ExitStack() as servers: told.append(knowing(TWIN | more, servers, port))
    assert told[0] == told[1] and told[0]['llm_base'].endswith(f':{port}/v1')
    assert told[0]['llm'] != told[2]['llm'] and {told[0][name].partition('@')[0] for name in TIERS} == set(TIERS.values())


def test_a_taken_port_does_not_stop_a_study(store):
    with ExitStack() as servers:
        port = free_port()
        first, second = knowing(TWIN, servers, port), knowing(TWIN | dict(sim_seed=1), servers, port)
        assert first['llm_base'] != second['llm_base']


def test_texts_come_from_the_truth_and_the_truth_is_in_no_table_that_a_describer_reads(store):
    with ExitStack() as servers:
        told = knowing(TWIN, servers)
        data = make_node('data', TWIN, {})
        texts = pd.read_parquet(ensure(make_node('text', TWIN | told | dict(layers='L3'), dict(data=data)), 'inline')/'texts.parquet')
    folder = ensure(data, 'inline')
    planted, items = (pd.read_parquet(folder/f'{name}.parquet').set_index('item') for name in ('planted_items', 'items'))
    said = texts.set_index('id').text
    right = [planted.silhouette[i].casefold() in said[i].casefold() for i in items.index]
    assert sum(right)/len(right) > .8   # the high tier is right in 95 % of its answers
    assert 'silhouette' not in items and not items.astype(str).apply(lambda column: column.str.contains('-line')).any(axis=None)


def test_only_a_twin_can_be_known(store):
    with ExitStack() as servers, pytest.raises(ValueError, match="dataset='toy'.*no planted truth"): knowing(dict(dataset='toy'), servers)


def test_click_models_of_purchases_are_judged_with_the_drawn_noes(store, tmp_path):
    from recx.run.study import Run, Study, complete
    small = TWIN | dict(split_by='week', click_negatives=1, backbone='fm', primary='auc', embedding_size=8, epochs=2, max_tokens=32, seeds=2, trials=1, engine='inline', bootstrap=200, flips=200)
    study = Study('clicks', 'Clicks of purchases', 'Do vectors help?', baseline='ids', arms={'ids': dict(fusion='id'), 'vectors': dict(fusion='concat', adapter='linear')}, grid=[{}], sizes=dict(smoke=small), simple=(), placebos=())
    result = complete(Run(study), str(tmp_path/'report'))
    rows = pd.read_parquet(result.folder/'per_user.parquet').query('arm == "ids" and seed == 0')
    summary = json.loads((result.folder/'summary.json').read_text())
    test = rows[rows.split == 'test']
    assert (test.label == 0).sum() == (test.label == 1).sum() == summary['data']['drawn_noes'] > 0
    assert rows[[c for c in rows if c not in ('label', 'probability')]].notna().all(axis=None)   # drawn items have strata too
    cautions = ' '.join(summary['verdict']['cautions']) if 'cautions' in summary['verdict'] else json.dumps(summary['verdict'])
    assert 'drawn by lot as noes' in cautions and 'take part in no comparison' not in cautions


def test_an_adapter_of_songs_serves_clothes(store):
    "The chain of a transferred arm, its experts and gate trained on songs."
    songs = dict(dataset='sim-music', split_by='random', on_duplicates='error', min_value=1., backbone='mf')
    small = dict(sim_users=60, sim_items=40, sim_events=900, embedding_size=8, epochs=1, negatives=16, max_tokens=32)
    node = chain(small | TWIN | dict(split_by='week', fusion='concat', adapter='moe', experts=2, backbone='mf', transfer='frozen', transfer_from=songs))
    assert node.inputs['donor'].inputs['data'].params['dataset'] == 'sim-music'
    assert (ensure(node, 'inline')/'gates.parquet').exists()


@pytest.mark.parametrize('name', ['twins', 'segments'])
def test_studies_take_their_own_wishes(name):
    own = pm.inspect_notebook(str(study_notebook(name)))
    assert {'knower', 'port', 'size', 'overrides', 'report'} <= set(own)
    assert arguments(study_notebook(name), [('knower', 'false'), ('sim_seed', '3')])['overrides'] == dict(sim_seed='3')


def executed(name, **parameters):
    "The cells of a study notebook, run here; what papermill would put behind the tagged cell is put there."
    matplotlib.use('Agg')
    namespace = {}
    for cell in json.loads(study_notebook(name).read_text())['cells']:
        if cell['cell_type'] != 'code': continue
        exec(compile(''.join(line for line in cell['source'] if not line.startswith('%')), name, 'exec'), namespace)
        if 'parameters' in cell['metadata'].get('tags', []): namespace.update(parameters)
    return namespace


@pytest.mark.parametrize('wishes, said', [(dict(domains='toy', overrides=dict(dataset='toy')), 'names its data sets there'), (dict(domains='toy', backbones='mf2'), 'mf2'), (dict(domains='toy,toy'), 'each once')])
def test_twins_refuses_before_anything_is_made(store, wishes, said):
    with pytest.raises(ValueError, match=said): executed('twins', **wishes)
    assert not list(store.rglob('manifest.json'))


TINY = dict(epochs=1, embedding_size=8, adapter_hidden=8, bootstrap=100, flips=100, max_tokens=32)


def test_one_domain_and_two_backbones_stand_side_by_side(store, tmp_path):
    executed('twins', domains='toy', backbones='mf,lightgcn', jobs=1, seeds=1, overrides=TINY | dict(toy_users=60, toy_items=40), report=str(tmp_path/'report'))
    table = pd.read_parquet(tmp_path/'report'/'twins.parquet')
    assert set(table.backbone) == {'MF', 'LightGCN'} and not table.arm.str.contains('transferred').any()
    assert {'L1', 'L1+L2', 'L1+L2+L3', 'L1, attended', 'L1+L2+L3, attended', 'layer-MoE', 'best, shuffled'} <= set(table.arm)
    assert sorted(p.name for p in (tmp_path/'report').iterdir()) == ['toy--lightgcn', 'toy--mf', 'twins.parquet', 'twins.png', 'twins.svg']


def test_each_domain_runs_what_its_log_allows_and_takes_the_others_adapter(store, tmp_path, monkeypatch):
    monkeypatch.setattr('recx.run.study.Run.train', lambda self: (_ for _ in ()).throw(InterruptedError('declared')))
    seen = {}
    monkeypatch.setattr('recx.run.study.Run.__post_init__', (lambda after: lambda self: (after(self), seen.update({(self.shared['dataset'], self.shared['backbone']): self})))(__import__('recx.run.study', fromlist=['Run']).Run.__post_init__))
    with pytest.raises(InterruptedError): executed('twins', backbones='mf,deepfm,sasrec,lightgcn', knower=False, jobs=1, seeds=1, overrides=TINY | dict(sim_users=60, sim_items=40, sim_events=900), report=str(tmp_path))
    assert set(seen) == {('sim-fashion', 'mf'), ('sim-fashion', 'deepfm'), ('sim-fashion', 'sasrec'), ('sim-fashion', 'lightgcn'), ('sim-music', 'mf'), ('sim-music', 'deepfm'), ('sim-music', 'lightgcn')}
    donors = {pair: run.arms['layer-MoE, transferred'].trials()[0].inputs['donor'] for pair, run in seen.items()}
    assert {pair: (d.inputs['data'].params['dataset'], d.params['backbone'], d.params['fusion']) for pair, d in donors.items()} == {
        ('sim-fashion', 'mf'): ('sim-music', 'mf', 'concat'), ('sim-fashion', 'deepfm'): ('sim-music', 'deepfm', 'concat'), ('sim-fashion', 'sasrec'): ('sim-music', 'mf', 'concat'), ('sim-fashion', 'lightgcn'): ('sim-music', 'lightgcn', 'concat'),
        ('sim-music', 'mf'): ('sim-fashion', 'mf', 'concat'), ('sim-music', 'deepfm'): ('sim-fashion', 'deepfm', 'concat'), ('sim-music', 'lightgcn'): ('sim-fashion', 'lightgcn', 'concat')}
    for (domain, backbone), run in seen.items():   # the donor is the other domain's own arm, trained once for both
        other = seen.get((donors[domain, backbone].inputs['data'].params['dataset'], backbone))
        if other: assert donors[domain, backbone].key == other.arms['layer-MoE'].trials()[0].key
    assert seen['sim-music', 'mf'].arms['id'].trials()[0].inputs['data'].params['min_value'] == 1 and seen['sim-music', 'deepfm'].arms['id'].trials()[0].inputs['data'].params['min_value'] == 0


def test_segments_of_a_known_twin_are_compared_with_the_planted_ones(store, tmp_path):
    seen = executed('segments', jobs=1, seeds=2, port=free_port(), overrides=TINY | dict(sim_users=60, sim_items=40, sim_events=900), report=str(tmp_path/'report'))
    table = pd.read_parquet(tmp_path/'report'/'uplift.parquet')
    assert set(table['segments by']) == {'gate, largest weight', 'gate, against the mean', 'clusters of vectors', 'by lot', 'planted'} and set(table.banner) == {'simulated'}
    assert (tmp_path/'report'/'figures'/'uplift.png').exists() and seen['rows'].p.notna().sum() == 5
