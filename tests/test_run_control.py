"The positive control of a study: the same arms on a twin, with wishes of its own, and an effect that is found where it was planted and nowhere else."
import json
from dataclasses import replace

import pytest

from recx.evidence.stage import control_in
from recx.run.store import folder_of
from recx.run.study import PLANTED, PLANTED_SMALL, Run, Study, complete, control_of, evidence_node, judged, plan

SMALL = dict(dataset='toy', toy_users=80, toy_items=60, embedding_size=8, epochs=2, negatives=16, bootstrap=100, flips=100, reduce_size=8)
TWIN = dict(SMALL, toy_seed=5, seeds=3)
STUDY = Study('test', 'A test', '?', 'ids', {'ids': dict(fusion='id'), 'init': dict(fusion='init', reduce='pca')}, [{}, dict(dropout=.3)], dict(smoke=dict(SMALL, seeds=2, trials=1, engine='inline')), placebos=('shuffled',), control=dict(smoke=TWIN))


def test_the_twin_keeps_its_own_data_texts_and_settings_and_takes_the_rest():
    person = dict(epochs=9, toy_users=70, text_columns='title', heads=2, seeds=5, engine='papermill', alpha=.01)
    twin = control_of(Run(STUDY, overrides=person))
    assert (twin.shared['epochs'], twin.shared['toy_users'], twin.shared['toy_seed']) == (2, 80, 5)
    assert 'text_columns' not in twin.shared and (twin.shared['heads'], twin.shared['alpha']) == (2, .01)
    assert twin.settings == dict(seeds=3, trials=1, engine='inline') and twin.study.simple == ()
    assert list(twin.arms) == list(STUDY.arms) and twin.study.placebos == STUDY.placebos


def test_arms_that_need_what_the_person_gave_are_left_out_of_the_twin():
    study = replace(STUDY, arms=STUDY.arms | dict(other=dict(fusion='add', reduce='pca')), needs=dict(other='import_path'))
    run = Run(study, overrides=dict(import_path='texts.parquet'))
    assert 'other' in run.arms and 'other' not in control_of(run).arms


def test_a_size_without_a_control_has_none():
    assert control_of(Run(replace(STUDY, control={}))) is None


@pytest.mark.parametrize('control, message', [(dict(full=TWIN), 'size in control'), (dict(smoke=SMALL), 'seeds'), (dict(smoke=dict(seeds=2)), 'dataset'), (dict(smoke=dict(TWIN, epocs=2)), 'epochs')])
def test_a_control_that_is_none_is_refused(control, message):
    with pytest.raises(ValueError, match=message): replace(STUDY, control=control)


def test_the_control_is_part_of_plan_evidence_and_report_and_is_not_computed_again(store, tmp_path):
    run = Run(STUDY, jobs=1)
    assert plan(run).result.str.startswith('control: ').any()
    result = complete(run, tmp_path/'report')
    after = plan(Run(STUDY, jobs=1))
    assert set(after.state) == {'cached'} and after.result.str.startswith('control: init · shuffled').any()
    assert (result.folder/'control'/'report.html').exists() and json.loads((result.folder/'control'/'summary.json').read_text())['study']['title'] == 'Positive control of: A test'
    stamps = {p: p.stat().st_mtime_ns for p in store.rglob('manifest.json')}
    again = complete(Run(STUDY, jobs=1), tmp_path/'report')
    assert {p: p.stat().st_mtime_ns for p in store.rglob('manifest.json')} == stamps
    assert again.summary['verdict']['control'] in again.told().data and again.figure('control') is not None
    arms, node = judged(run)
    assert evidence_node(run, arms).key != node.key and folder_of(node.inputs['control']).is_dir()


FOUND = PLANTED | dict(sim_users=500, sim_events=3000, seeds=2, epochs=10)


@pytest.mark.parametrize('strength', [1., 0.])
def test_what_was_planted_is_found_and_nothing_where_nothing_was(store, strength):
    study = replace(STUDY, arms={'ids': dict(fusion='id'), 'text': dict(fusion='add', adapter='moe', reduce='pca')}, sizes=dict(smoke=dict(seeds=1, trials=1, engine='inline')), control=dict(smoke=FOUND | dict(sim_l1=strength)))
    _, node = judged(control_of(Run(study, jobs=1)))
    control = control_in(folder_of(node))
    assert control.card['banner'] == 'simulated' and [row['baseline'] for row in control.rows] == ['ids', 'text · shuffled']
    assert control.found is (strength > 0), control.rows


def test_the_smoke_twin_is_smaller_in_everything_that_costs_time():
    assert all(PLANTED_SMALL[name] < PLANTED[name] for name in ('sim_users', 'sim_items', 'sim_events', 'seeds', 'epochs', 'bootstrap', 'flips'))
