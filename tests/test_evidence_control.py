"The positive control in the evidence: what was planted is found or missed, and the report says what a null is then worth."
import html
import json
import re

import pytest

from simulated_runs import simulated

from recx.data.parameters import declared
from recx.evidence import stage

LABELS = {'ids': dict(label='ids only'), 'moe': dict(label='MoE'), 'moe · shuffled': dict(label='MoE · shuffled', placebo_of='moe')}
STUDY = dict(name='study', title='Does text help?', baseline='ids', size='full', arms={arm: spec | dict(trials=[{'changes': {}, 'valid': .1}]) for arm, spec in LABELS.items()}, family=[['moe', 'ids']])
TWIN = STUDY | dict(title='Positive control of: Does text help?')


def evidence(out, inputs, study=STUDY, **changes):
    params = declared(vars(stage)) | dict(study=study, bootstrap=300, flips=300) | changes
    out.mkdir(parents=True)
    return stage.run(params, {name: str(folder) for name, folder in inputs.items()}, out)


def said(out): return json.loads((out/'summary.json').read_text())


def section(out): return re.search(r'<section id="controls">(.*?)</section>', (out/'report.html').read_text(), re.S)[1]


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "Real data (here: made up, without the banner) with an effect and without one; twins in which it is found, missed, and seen in placebos as well."
    root = tmp_path_factory.mktemp('runs')
    nothing = {'ids': 0., 'moe': 0., 'moe · shuffled': 0.}
    study = {name: simulated(root/name, effects, banner='') for name, effects in dict(null=nothing, gain=nothing | dict(moe=.5)).items()}
    twins = {name: evidence(root/name/'evidence', simulated(root/name, effects), TWIN) for name, effects in dict(found=nothing | dict(moe=.5), missed=nothing, capacity={'ids': 0., 'moe': .5, 'moe · shuffled': .5}).items()}
    return root, study, twins


@pytest.mark.parametrize('data, twin, found, words', [
    ('null', 'found', True, 'none is shown above is informative'), ('gain', 'found', True, 'finds an effect of that size.'),
    ('null', 'missed', False, 'nothing is shown above says little'), ('gain', 'missed', False, 'may be there all the same'),
    ('null', 'capacity', False, 'not shown to be better than MoE · shuffled')])
def test_the_verdict_says_what_a_null_is_worth(runs, data, twin, found, words):
    root, study, twins = runs
    out = evidence(root/f'{data}-{twin}', study[data] | dict(control=twins[twin]))
    assert said(out)['control']['found'] is found and said(out)['control']['arm'] == 'moe'
    assert words in said(out)['verdict']['control'] and said(out)['verdict']['control'] in html.unescape((out/'report.html').read_text())
    assert 'simulated' in said(out)['verdict']['control'] and 'simulated' in section(out)
    assert ('>found<' in section(out)) is found and ('>missed<' in section(out)) is not found
    assert (out/'figures'/'control.png').stat().st_size > 5000 and section(out).count('<img') == 2


def test_the_control_takes_part_in_no_comparison_and_no_cost(runs):
    root, study, twins = runs
    alone, beside = (evidence(root/name, study['gain'] | more) for name, more in dict(alone={}, beside=dict(control=twins['found'])).items())
    assert (alone/'results.parquet').read_bytes() == (beside/'results.parquet').read_bytes()
    for part in ('table', 'runs', 'costs', 'gate'): assert said(alone)[part] == said(beside)[part]
    one, other = said(alone)['verdict'], said(beside)['verdict']
    assert {k for k in one if one[k] != other[k]} == {'control'} and one['control'] == ''


def test_a_study_without_a_control_says_that_it_has_none(runs):
    root, study, _ = runs
    out = evidence(root/'none', study['null'])
    assert 'No positive control was run' in section(out) and 'control' not in said(out) and not (out/'figures'/'control.png').exists()


def test_real_data_stay_free_of_the_banner_of_the_twin(runs):
    root, study, twins = runs
    out = evidence(root/'banner', study['null'] | dict(control=twins['found']))
    assert '<div class="banner">' not in (out/'report.html').read_text() and 'simulated' not in said(out)['verdict']['headline']
    assert '<div class="banner">' in (twins['found']/'report.html').read_text()


def test_the_metric_of_the_control_is_that_of_the_study(runs):
    root, _, _ = runs
    twin = evidence(root/'hr', simulated(root/'hr-runs', {'ids': 0., 'moe': .5, 'moe · shuffled': 0.}), TWIN, primary='hr@10')
    out = evidence(root/'hr-study', runs[1]['null'] | dict(control=twin), primary='hr@10')
    assert 'HR@10' in said(out)['verdict']['control'] and 'NDCG' not in said(out)['verdict']['control']
