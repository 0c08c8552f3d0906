"The runner as its users meet it: killed, started twice, given nonsense, run by plain papermill."
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import papermill as pm
import pytest

from recx.run.cli import main, study_notebook
from recx.run.engine import ensure, ensure_all
from recx.run.stages import chain
from recx.run.store import done, folder_of
from recx.run.study import Run, Study, complete, plan

SMALL = dict(dataset='toy', toy_users=80, toy_items=60, embedding_size=8, epochs=2, negatives=16, bootstrap=100, flips=100, reduce_size=8)
SIZES = dict(smoke=dict(SMALL, seeds=2, trials=1, engine='inline'))


def study(**changes):
    arms = {'ids': dict(fusion='id'), 'init': dict(fusion='init', reduce='pca')}
    return Study(**{**dict(name='test', title='A test', question='?', baseline='ids', arms=arms, grid=[{}, dict(dropout=.3)], sizes=SIZES, placebos=('shuffled',)), **changes})


def test_a_second_run_computes_nothing(store, tmp_path):
    run = Run(study(), jobs=1)
    complete(run, tmp_path/'report')
    stamps = {p: p.stat().st_mtime_ns for p in store.rglob('manifest.json')}
    start = time.time()
    complete(Run(study(), jobs=1), tmp_path/'report')
    assert {p: p.stat().st_mtime_ns for p in store.rglob('manifest.json')} == stamps
    assert time.time() - start < 5
    assert set(plan(run).state) == {'cached'}


def test_arms_share_what_they_agree_on(store, tmp_path):
    complete(Run(study(placebos=()), jobs=1), tmp_path/'report')
    assert [len(list((store/stage).glob('*/manifest.json'))) for stage in ('data', 'text', 'extract', 'adapt', 'recommend')] == [1, 1, 1, 1, 4 + 3]   # the three simple arms have nothing that a seed could change


def test_click_models_are_held_against_the_rates(store, tmp_path):
    "A floor for clicks: trained once for all seeds, called by its name, and told of in the gate."
    clicks = study(common=dict(backbone='fm', split_by='ratio', primary='auc', deep='8'), arms={'ids': dict(fusion='id'), 'text': dict(fusion='concat', reduce='pca')}, placebos=(), simple=('rates',))
    result = complete(Run(clicks, jobs=1), tmp_path/'report')
    rows = pd.read_parquet(result.folder/'per_user.parquet').query("arm == 'rates'")
    assert rows.probability.between(0, 1).all() and rows.seed.nunique() == 2
    assert 'rates of users and items' in result.summary['verdict']['gate']
    assert len([p for p in (store/'recommend').glob('*/manifest.json') if json.loads(p.read_text())['parameters']['backbone'] == 'rates']) == 1


def test_more_seeds_keep_the_old_ones(store, tmp_path):
    complete(Run(study(placebos=()), jobs=1), tmp_path/'report')
    before = {p: p.stat().st_mtime_ns for p in (store/'recommend').rglob('manifest.json')}
    complete(Run(study(placebos=()), overrides=dict(seeds=3), jobs=1), tmp_path/'report')
    after = {p: p.stat().st_mtime_ns for p in (store/'recommend').rglob('manifest.json')}
    assert len(after) == 6 + 3 and before.items() <= after.items()


KILLED = """
import os, sys
from recx.run.engine import ensure
from recx.run.stages import chain
ensure(chain({wishes}), 'inline')
"""


def test_a_killed_run_leaves_nothing_that_looks_finished_and_goes_on_to_the_same_bytes(store, tmp_path, monkeypatch):
    wishes = dict(SMALL, epochs=200, patience=200, fusion='id')
    child = subprocess.Popen([sys.executable, '-c', KILLED.format(wishes=wishes)], stderr=subprocess.PIPE)
    partial = folder_of(chain(wishes)).with_name(folder_of(chain(wishes)).name + '.partial')
    give_up = time.time() + 60
    while not list(partial.glob('checkpoint/*')) and child.poll() is None and time.time() < give_up: time.sleep(.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert partial.exists() and not done(folder_of(chain(wishes))), 'the child was done before it could be killed'
    ensure(chain(wishes), 'inline')
    resumed = pd.read_parquet(folder_of(chain(wishes))/'per_user.parquet')
    monkeypatch.setenv('RECX_STORE', str(tmp_path/'other'))
    ensure(chain(wishes), 'inline')
    pd.testing.assert_frame_equal(resumed, pd.read_parquet(folder_of(chain(wishes))/'per_user.parquet'))


def test_two_runs_at_once_on_one_store_compute_each_result_once(store):
    wishes = dict(SMALL, fusion='id', epochs=5)
    children = [subprocess.Popen([sys.executable, '-c', KILLED.format(wishes=wishes)], stderr=subprocess.PIPE) for _ in range(2)]
    assert [c.wait() for c in children] == [0, 0], [c.stderr.read() for c in children]
    assert done(folder_of(chain(wishes)))
    assert not list(store.rglob('*.partial'))


def test_parallel_workers_give_the_bytes_of_a_single_one(store, tmp_path, monkeypatch):
    nodes = [chain(dict(SMALL, fusion='id', seed=s)) for s in range(3)]
    ensure_all(nodes, 'inline', jobs=2)
    parallel = [(folder_of(n)/'per_user.parquet').read_bytes() for n in nodes]
    monkeypatch.setenv('RECX_STORE', str(tmp_path/'other'))
    ensure_all(nodes, 'inline', jobs=1)
    assert parallel == [(folder_of(n)/'per_user.parquet').read_bytes() for n in nodes]


@pytest.mark.parametrize('changes', [dict(fusion='replace', adapter='moe', experts=2, placebo='shuffled'), dict(fusion='add', adapter='mlp', scoring='cosine', loss='ce', seed=3), dict(fusion='init', tuning='sft', sft_steps=1, tune_batch_tokens=256, pooling='max')])
def test_every_stage_notebook_runs_under_parameters_that_are_not_its_defaults(store, changes):
    node = chain(dict(SMALL, reduce='pca', ties='shuffle', max_tokens=32, **changes))
    ensure(node, 'papermill')
    assert all((folder_of(n)/'notebook.ipynb').exists() and done(folder_of(n)) for n in node.upstream())


def test_the_papermill_engine_leaves_the_executed_notebook_and_the_same_result(store, tmp_path, monkeypatch):
    node = chain(dict(SMALL, fusion='id'))
    ensure(node, 'papermill')
    record = nbformat.read(folder_of(node)/'notebook.ipynb', as_version=4)
    assert any('embedding_size = 8' in c.source for c in record.cells if 'injected-parameters' in c.metadata.get('tags', []))
    manifest = json.loads((folder_of(node)/'manifest.json').read_text())
    assert manifest['peak_memory_mib'] > 50 and manifest['parameters']['embedding_size'] == 8
    by_notebook = pd.read_parquet(folder_of(node)/'per_user.parquet')
    monkeypatch.setenv('RECX_STORE', str(tmp_path/'other'))
    ensure(node, 'inline')
    pd.testing.assert_frame_equal(by_notebook, pd.read_parquet(folder_of(node)/'per_user.parquet'))


def test_a_stage_that_fails_says_so_in_its_own_words(store):
    from recx.run.engine import StageError
    node = chain(dict(SMALL, fusion='id', list_size=5000))
    with pytest.raises(StageError, match='list_size'): ensure(node, 'papermill')
    assert not done(folder_of(node)) and done(folder_of(node.inputs['data']))


@pytest.mark.parametrize('words, message', [
    ('run recxplor', "unknown study 'recxplor'; did you mean 'recxplore'"),
    ('run recxplore -p epocs 5', "unknown parameter 'epocs'; did you mean 'epochs'"),
    ('run recxplore --size smoke -p epochs many', 'epochs='),
    ('run recxplore --size smoke -p fusion id', 'this study varies it'),
    ('run recxplore --size smoke -p dataset ml-100', "dataset='ml-100'"),
    ('report nowhere', 'no report there'),
    ('data nothing', 'nothing'),
])
def test_bad_words_end_in_one_line(words, message, capsys, store):
    with pytest.raises(SystemExit) as stop: main(words.split())
    said = capsys.readouterr().err + str(stop.value)
    assert message in said and 'Traceback' not in said
    assert stop.value.code != 0


def test_plain_papermill_refuses_an_unknown_parameter(tmp_path, store):
    from papermill.exceptions import PapermillExecutionError
    with pytest.raises(PapermillExecutionError, match='epocs'):
        pm.execute_notebook(str(study_notebook('pooling')), str(tmp_path/'out.ipynb'), parameters=dict(epocs=3), kernel_name='python3', progress_bar=False)


def test_plain_papermill_takes_a_stage_parameter(tmp_path, store):
    report = tmp_path/'report'
    out = pm.execute_notebook(str(study_notebook('pooling')), str(tmp_path/'out.ipynb'), parameters=dict(epochs=1, report=str(report), **{k: SMALL[k] for k in ('toy_users', 'toy_items')}), kernel_name='python3', progress_bar=False)
    assert (report/'report.html').exists()
    assert json.loads((report/'summary.json').read_text())
    assert not any(o.get('output_type') == 'error' for c in out.cells for o in c.get('outputs', []))


def test_one_seed_is_reported_without_a_seed_level_test(store, tmp_path):
    result = complete(Run(study(placebos=()), overrides=dict(seeds=1), jobs=1), tmp_path/'report')
    assert result.results.p_seed.isna().all()
    assert result.results.note.str.contains('one seed').any()


def test_a_report_names_no_folder_of_the_machine(store, tmp_path):
    result = complete(Run(study(), jobs=1), tmp_path/'report')
    for path in result.folder.rglob('*'):
        if path.suffix in ('.html', '.json', '.svg'):
            text = path.read_text()
            assert str(tmp_path) not in text and str(Path.home()) not in text, path.name


def declared_by(name, **given):
    "The study of a study notebook under `given`, without running it."
    cells, space = [c.source for c in nbformat.read(study_notebook(name), 4).cells if c.cell_type == 'code'], {}
    exec(cells[0], space)
    space |= given
    for source in cells[1:3]: exec(source, space)
    return space['study']


def test_kar_takes_one_thing_away_at_a_time(store):
    kar = declared_by('kar', networks='fm')
    changes = {way: Run(kar).arms[f'FM + {way}'].node({}, 0).params for way in ('MLP', 'mean', 'MoE', 'HEA', 'HEA ReLU')}
    apart = lambda a, b: {k: (v, changes[b][k]) for k, v in changes[a].items() if v != changes[b][k]}
    assert apart('HEA ReLU', 'HEA') == dict(final_relu=(True, False))
    assert apart('mean', 'MLP') == dict(adapter_hidden=(7*128, 128))
    assert changes['MoE']['adapter_hidden']*changes['MoE']['experts'] == changes['HEA']['adapter_hidden']*(changes['HEA']['shared_experts'] + changes['HEA']['own_experts']) == changes['mean']['adapter_hidden']
    assert kar.simple == ('rates',) and set(kar.family) == {(arm, 'FM') for arm in kar.arms if arm != 'FM'}


def test_individual_and_collective_knowledge_meet_in_one_report(store, tmp_path):
    "All items have a text of their own out of the file, but in the arm that shares them."
    (tmp_path/'told.csv').write_text('id,text\nf0000,"A comedy"\n')
    wishes = dict(import_path=str(tmp_path/'told.csv'), import_columns=dict(id='id', text='text'))
    kar = declared_by('kar', networks='fm', collective=True)
    texts = {}
    for name, arm in Run(kar, overrides=wishes).arms.items():
        for n in arm.node({}, 0).upstream():
            if n.stage == 'text': texts[name] = [n.params[p] for p in ('describe', 'cluster_share', 'import_path')]
    shared = texts.pop('FM + HEA shared')
    assert shared == ['collective', .1, wishes['import_path']] and len(texts) == 8 and all(said == ['collective', 1., wishes['import_path']] for said in texts.values())
    assert ('FM + HEA shared', 'FM') in kar.family and kar.own == dict(networks='fm', collective=True)
    with pytest.raises(ValueError, match='describe: this study varies it'): Run(kar, overrides=dict(describe='flatten'))
