"The evidence stage over simulated runs whose effects are known: what it writes, what it says, what it refuses."
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from simulated_runs import data_set, run_of, simulated

from recx.data.parameters import declared
from recx.evidence import stage
from recx.evidence.report import SECTIONS
from recx.evidence.stage import foretold_layers
from recx.extract.vectors import ROW_COLUMNS, Vectors

ARMS = {'ids': 0., 'moe': .35, 'moe · shuffled': 0., 'weak': dict(tail=.8), 'bad': -.6}
STUDY = dict(name='simulated', title='Known effects', question='Does the bench find what was put in?', baseline='ids', size='full',
             arms={'ids': dict(label='ids only', trials=[{'changes': {}, 'valid': .1}]), 'moe': dict(label='MoE', trials=[{'changes': {}, 'valid': .12}]),
                   'moe · shuffled': dict(label='MoE · shuffled', placebo_of='moe', trials=[{'changes': {}, 'valid': .1}]), 'weak': dict(label='tail only', trials=[{'changes': {}, 'valid': .1}]),
                   'bad': dict(label='worse', trials=[{'changes': {}, 'valid': .1}])},
             command='recx run simulated -p dataset parquet:/srv/anna/secret/beauty', settings=dict(data=dict(dataset_path='/srv/anna/secret/beauty')))


def evidence(out, inputs, study=STUDY, **changes):
    params = declared(vars(stage)) | dict(study=study, bootstrap=300, flips=300) | changes
    out.mkdir(parents=True, exist_ok=True)
    stage.check(params)
    return stage.run(params, inputs, out)


def said(out): return json.loads((out/'summary.json').read_text())


def words(out): return {c['arm']: (c['word'], c['unit']) for c in said(out)['verdict']['comparisons']}


@pytest.fixture(scope='module')
def full(tmp_path_factory):
    "Five arms, four seeds, manifests, an address in the data card."
    root = tmp_path_factory.mktemp('full')
    inputs = simulated(root, ARMS, seeds=4, banner='', source='/srv/anna/secret/beauty.zip', display='<script>alert(1)</script>')
    return evidence(root/'evidence', inputs), inputs


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    "Two arms, two seeds, no declaration."
    root = tmp_path_factory.mktemp('pair')
    inputs = simulated(root, dict(ids=0., moe=.4), seeds=2)
    return evidence(root/'evidence', inputs, study={}), inputs


def test_every_file_is_there(full):
    out, _ = full
    assert {p.name for p in out.iterdir()} == {'results.parquet', 'per_user.parquet', 'summary.json', 'figures', 'report.html'}
    for name in ('forest', 'strata', 'placebos', 'by_seed', 'curves', 'cost'):
        assert (out/'figures'/f'{name}.png').stat().st_size > 5000 and (out/'figures'/f'{name}.svg').read_bytes().startswith(b'<?xml')


def test_every_section_is_there_and_filled(full):
    html = (full[0]/'report.html').read_text()
    for name in SECTIONS.keys() - {'calibration', 'layers', 'segments'}:   # for studies that have them
        body = re.search(rf'<section id="{name}">(.*?)</section>', html, re.S)
        assert body and len(re.sub('<[^>]+>', '', body[1])) + 1000*('<img' in body[1]) > 100, name
        assert f'href="#{name}"' in html


def test_the_report_stands_alone(full):
    html = (full[0]/'report.html').read_text()
    assert '<script' not in html and not re.search(r'(src|href)="(?!data:|#)', html) and '@import' not in html and 'url(' not in html


def test_text_is_escaped(full):
    html = (full[0]/'report.html').read_text()
    assert '&lt;script&gt;alert(1)&lt;' in html and '<script>alert' not in html


def test_no_address_of_a_machine(full):
    out, inputs = full
    for name in ('report.html', 'summary.json'):
        text = (out/name).read_text()
        assert '/srv' not in text and 'anna' not in text and str(Path(inputs['data']).parent) not in text
    for path in (out/'figures').glob('*.svg'): assert str(out) not in path.read_text()


def test_known_effects_are_found(full):
    found = words(full[0])
    assert found['moe'] == ('better', 'users and seeds') and found['bad'] == ('worse', 'users and seeds')
    moe = next(c for c in said(full[0])['verdict']['comparisons'] if c['arm'] == 'moe')
    assert moe['meaning'] == 'shown' and 'beats its placebo' in moe['text']


def test_the_verdict_says_where_the_gain_is(full):
    weak = next(c for c in said(full[0])['verdict']['comparisons'] if c['arm'] == 'weak')
    assert re.search(r'tail \(n\s=\s\d+\) \+\d', weak['text']) and 'No placebo of it was run' in weak['text']


def test_costs_are_walked_up_to_the_data(full):
    costs = pd.DataFrame(said(full[0])['costs']).set_index('arm')
    assert costs.seconds['ids'] == pytest.approx(2 + 13) and costs.seconds['moe'] == pytest.approx(2 + 1 + 30 + .5 + 14)
    assert costs.peak_memory_mib['moe'] == 530 and costs.extract['moe'] == 30


def test_per_user_holds_every_run_and_event_once(full):
    table = pd.read_parquet(full[0]/'per_user.parquet')
    assert len(table) == 5*4*2*400 and not table.duplicated(['arm', 'seed', 'user', 'split']).any()
    assert {'arm', 'seed', 'user', 'item', 'split', 'rank', 'share80', 'top20', 'bin', 'cold'} <= set(table)


def test_summary_is_strict_json(full):
    json.loads((full[0]/'summary.json').read_text(), parse_constant=lambda name: pytest.fail(f'{name} in summary.json'))


def test_the_same_inputs_give_the_same_bytes(pair, tmp_path):
    out, inputs = pair
    again = evidence(tmp_path/'again', inputs, study={})
    for path in sorted(p for p in out.rglob('*') if p.is_file()): assert path.read_bytes() == (again/path.relative_to(out)).read_bytes(), path.name


def test_the_order_of_rows_in_a_run_decides_nothing(pair, tmp_path):
    out, inputs = pair
    moved = {}
    for name, folder in inputs.items():
        moved[name] = folder
        if name == 'data': continue
        moved[name] = tmp_path/name.replace('/', '-')
        moved[name].mkdir()
        for path in Path(folder).iterdir(): (moved[name]/path.name).write_bytes(path.read_bytes())
        pd.read_parquet(moved[name]/'per_user.parquet').sample(frac=1, random_state=1).to_parquet(moved[name]/'per_user.parquet', index=False)
    again = evidence(tmp_path/'again', moved, study={})
    pd.testing.assert_frame_equal(pd.read_parquet(out/'results.parquet'), pd.read_parquet(again/'results.parquet'))


def test_one_seed(tmp_path):
    out = evidence(tmp_path/'e', simulated(tmp_path, dict(ids=0., moe=.4), seeds=1), study={})
    verdict = said(out)['verdict']
    assert words(out)['moe'] == ('better', 'users') and any('One seed' in c for c in verdict['cautions']) and 'no test over seeds' in verdict['comparisons'][0]['text']
    assert all(row['p_seed'] is None for row in said(out)['table'])


def test_identical_arms(tmp_path):
    inputs = simulated(tmp_path, dict(ids=0.), seeds=2)
    inputs |= {f'twin/{s}': inputs[f'ids/{s}'] for s in (0, 1)}
    out = evidence(tmp_path/'e', inputs, study={})
    assert words(out)['twin'] == ('identical', '')
    assert 'nothing to test' in (out/'report.html').read_text()


def test_no_placebo_says_so(pair):
    out, _ = pair
    assert 'No placebo arm was run' in (out/'report.html').read_text() and not (out/'figures'/'placebos.png').exists()


def test_a_placebo_that_gains_as_much_takes_the_meaning_away(tmp_path):
    arms = {'ids': {}, 'init': {}, 'init · shuffled': dict(placebo_of='init')}
    out = evidence(tmp_path/'e', simulated(tmp_path, {'ids': 0., 'init': .4, 'init · shuffled': .4}, seeds=3), study=dict(baseline='ids', arms=arms))
    found = said(out)['verdict']['comparisons'][0]
    assert (found['word'], found['meaning']) == ('better', 'not shown') and 'not due to meaning' in found['text'] and 'not due to meaning' in said(out)['verdict']['headline']


def test_the_baseline_alone(tmp_path):
    out = evidence(tmp_path/'e', simulated(tmp_path, dict(ids=0.), seeds=2), study={})
    assert 'nothing was compared' in said(out)['verdict']['headline']


def test_simulated_data_and_smoke_runs_are_named(tmp_path):
    out = evidence(tmp_path/'e', simulated(tmp_path, dict(ids=0., moe=.1), seeds=2), study=dict(baseline='ids', size='smoke'))
    html = (out/'report.html').read_text()
    assert re.search('<div class="banner">Simulated data · smoke run', html) and 'and not of people' in html and 'tests the machinery, not the claim' in html


def test_runs_without_manifest_have_an_unknown_cost(tmp_path):
    out = evidence(tmp_path/'e', simulated(tmp_path, dict(ids=0., moe=.1), seeds=2, manifests=False), study={})
    assert all(c['seconds'] is None for c in said(out)['costs']) and 'its cost is unknown' in (out/'report.html').read_text()
    assert not (out/'figures'/'cost.png').exists()


def test_a_run_that_met_nan_is_named(tmp_path):
    out = evidence(tmp_path/'e', simulated(tmp_path, dict(ids=0., moe=dict(effect=.1, stopped='nan')), seeds=2), study={})
    assert any('not a number' in c for c in said(out)['verdict']['cautions'])


def test_awkward_names(tmp_path):
    name = 'CPT+SFT $x_1$ "quoted" <i>שלום</i> a/b, a label that is much longer than any column of any table is wide'
    out = evidence(tmp_path/'e', simulated(tmp_path, {'ids': 0., name: .3}, seeds=2), study={})
    assert '<i>' not in (out/'report.html').read_text() and name in words(out)


@pytest.mark.parametrize('break_it, message', [
    (lambda i: i.pop('data'), "no 'data'"),
    (lambda i: i.pop('moe/1'), 'moe/1 missing'),
    (lambda i: i.update({'moe': i['moe/0']}), "'<arm>/<seed>'"),
    (lambda i: [i.pop(n) for n in list(i) if n != 'data'], 'no run to judge')])
def test_wrong_inputs_are_refused(tmp_path, break_it, message):
    inputs = simulated(tmp_path, dict(ids=0., moe=.1), seeds=2, users=60)
    break_it(inputs)
    with pytest.raises(ValueError, match=re.escape(message)): evidence(tmp_path/'e', inputs, study={})
    assert not list((tmp_path/'e').iterdir())


def test_a_run_on_other_data_is_refused(tmp_path):
    inputs = simulated(tmp_path, dict(ids=0., moe=.1), seeds=1, users=60)
    other = data_set(tmp_path/'other', users=60, seed=5)
    inputs['moe/0'] = run_of(tmp_path/'stray', other)
    with pytest.raises(ValueError, match='moe/0: answers for .* trained on another data set'): evidence(tmp_path/'e', inputs, study={})
    assert not list((tmp_path/'e').iterdir())


def test_cut_off_beyond_the_catalogue_is_refused(tmp_path):
    inputs = simulated(tmp_path, dict(ids=0., moe=.1), seeds=1, users=60)
    with pytest.raises(ValueError, match='larger than the catalogue'): evidence(tmp_path/'e', inputs, study={}, cutoffs='10,500')


def test_undefined_values_are_dashes_and_never_numbers(full):
    results = pd.read_parquet(full[0]/'results.parquet')
    undefined = results[results.p_user.isna()]
    assert (undefined.note != '').all()
    html = (full[0]/'report.html').read_text()
    assert not re.search(r'>\s*(nan|NaN|inf|None)\b', html)


def test_cold_items_are_a_stratum_of_their_own(full):
    table = pd.read_parquet(full[0]/'per_user.parquet').query("split == 'test' and arm == 'ids' and seed == 0")
    cold = pd.read_parquet(full[0]/'results.parquet').query("stratum_kind == 'cold' and stratum == 'cold'")
    assert set(cold.n_users) == {(table.cold == 'cold').sum()} and (table.cold == 'cold').sum() >= 10


# ---- layers

def layered(folder, layers, n, size=6):
    "An artefact of item vectors: one layer drawn, the others linear in it, each less exactly than the one before."
    rng = np.random.default_rng(0)
    first = rng.normal(size=(n, size))
    made = [first + k*rng.normal(size=(n, size)) for k in range(layers)]
    rows = pd.DataFrame(dict(kind='item', id=[f'i{i}' for i in range(n)]*layers, layer=[f'L{k + 1}' if layers > 1 else '' for k in range(layers) for _ in range(n)])).reindex(columns=list(ROW_COLUMNS), fill_value='')
    Vectors(rows, np.concatenate(made).astype(np.float32)).save(folder)
    return SimpleNamespace(item_ids=np.array([f'i{i}' for i in range(n)]))


def test_what_layers_tell_of_each_other_is_in_the_order_of_the_noise(tmp_path):
    told = foretold_layers(tmp_path, layered(tmp_path, 3, 400)).set_index(['source', 'target']).score
    assert len(told) == 6 and told['L1', 'L2'] > told['L1', 'L3'] > 0 and told['L1', 'L2'] == pytest.approx(.5, abs=.1) and told['L1', 'L3'] == pytest.approx(.2, abs=.1)   # 1/(1 + k²)


@pytest.mark.parametrize('layers, n', [(1, 100), (2, 9)])
def test_one_layer_or_few_items_say_nothing_of_layers(layers, n, tmp_path): assert foretold_layers(tmp_path, layered(tmp_path, layers, n)) is None
