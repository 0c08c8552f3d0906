"Metrics of probabilities: against slow definitions, Obuchowski's formula and a bootstrap of whole users; then a click study from end to end."
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats
from simulated_runs import data_set, frame, simulated

from recx.data.parameters import declared
from recx.evidence import stage
from recx.evidence.clicks import BINS, Clicks, check_clicks, kept, midranks
from recx.evidence.compare import compare
from recx.evidence.metrics import CLICK_METRICS
from recx.evidence.tests import paired_t

EVENTS = st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 8).map(lambda i: i/8)), min_size=2, max_size=40).filter(lambda rows: len({y for _, y, _ in rows}) == 2)


def unzipped(rows): return np.array([u for u, _, _ in rows]), np.array([int(y) for _, y, _ in rows]), np.array([p for _, _, p in rows])


def area(p, y):
    "All pairs of a positive and a negative; a tie is half."
    return float(np.mean([(a > b) + .5*(a == b) for a in p[y == 1] for b in p[y == 0]]))


def slowly(metric, users, y, p):
    if metric == 'auc': return area(p, y)
    if metric == 'gauc':
        found = [(area(p[users == u], y[users == u]), (users == u).sum()) for u in np.unique(users) if len(set(y[users == u])) == 2]
        return sum(a*n for a, n in found)/sum(n for _, n in found)
    if metric == 'logloss':
        q = np.clip(p, 2**-23, 1 - 2**-23)
        return -np.mean([np.log(b if a else 1 - b) for a, b in zip(y, q)])
    if metric == 'bias': return abs(p.sum()/y.sum() - 1)
    places = [int(min((((p < x).sum() + (p <= x).sum() + 1)/2 - .5)*BINS/len(p), BINS - 1)) for x in p]
    return sum(abs(sum(p[i] - y[i] for i in range(len(p)) if places[i] == b)) for b in range(BINS))/len(p)


@settings(max_examples=80, deadline=None)
@given(EVENTS)
def test_agrees_with_the_definitions_and_the_users_add_up_to_them(rows):
    users, y, p = unzipped(rows)
    for metric in CLICK_METRICS:
        used = kept(metric, users, y)
        if not used.any(): continue
        got = Clicks(users[used], y[used]).shares(metric, p[used])
        assert got.value == pytest.approx(slowly(metric, users, y, p), abs=1e-9), metric
        assert got.linear.mean() == pytest.approx(got.value, abs=1e-9) and got.own.mean() == pytest.approx(got.value, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(EVENTS, st.randoms())
def test_the_order_of_events_decides_nothing(rows, random):
    users, y, p = unzipped(rows)
    moved = list(range(len(p))); random.shuffle(moved)
    for metric in ('auc', 'logloss', 'ece', 'bias'):
        one, other = Clicks(users, y).shares(metric, p), Clicks(users[moved], y[moved]).shares(metric, p[moved])
        assert np.allclose(one.linear, other.linear) and np.allclose(one.own, other.own)


def test_midranks_are_those_of_scipy():
    x, group = np.random.default_rng(0).integers(0, 9, 200)/7, np.random.default_rng(1).integers(0, 5, 200)
    got = midranks(x, group)
    for g in range(5): assert np.array_equal(got[group == g], stats.rankdata(x[group == g]))


def world(users=80, seed=0, gain=0., events=(2, 9)):
    "Two models of equal quality (`gain`: the second is better) over users whose events resemble each other, and whose errors do too."
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(users), rng.integers(*events, users))
    taste = rng.normal(0, 1, users)[of] + rng.normal(0, 1, len(of))
    y = (rng.random(len(of)) < 1/(1 + np.exp(-taste))).astype(int)
    logits = [taste*(1 + gain*i) + rng.normal(0, 1, users)[of] + rng.normal(0, .5, len(of)) for i in range(2)]
    return of, y, 1/(1 + np.exp(-np.stack(logits)))


def test_the_variance_of_auc_is_that_of_obuchowski():
    "Obuchowski (1997): S10/M + S01/N + 2 S11/(MN), from sums of the structural components by cluster."
    users, y, p = world(60, events=(6, 12))
    for row in p:
        pos, neg = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
        psi = (row[pos][:, None] > row[neg]) + .5*(row[pos][:, None] == row[neg])
        a, M, N = psi.mean(), len(pos), len(neg)
        x, z = (np.array([part[users[at] == u].sum() for u in range(60)]) for part, at in ((psi.mean(axis=1), pos), (psi.mean(axis=0), neg)))
        m, n = (np.array([(users[at] == u).sum() for u in range(60)]) for at in (pos, neg))
        i10, i01 = (m > 0).sum(), (n > 0).sum()
        s10, s01 = i10/((i10 - 1)*M)*((x - m*a)**2).sum(), i01/((i01 - 1)*N)*((z - n*a)**2).sum()
        s11 = 60/59*((x - m*a)*(z - n*a)).sum()
        by_formula = s10/M + s01/N + 2*s11/(M*N)
        linear = Clicks(users, y).shares('auc', row).linear
        assert linear.var(ddof=1)/60 == pytest.approx(by_formula, rel=.01)


@pytest.mark.parametrize('metric', ['auc', 'gauc', 'logloss'])
def test_interval_is_that_of_whole_users_drawn_anew(metric):
    "The metric recomputed on resampled users, against the standard error of the linearised values."
    users, y, p = world(150, gain=.4)
    used = kept(metric, users, y)
    users, y, p = users[used], y[used], p[:, used]
    d = np.diff(Clicks(users, y).shares(metric, p).linear, axis=0)[0]
    own, rng, draws = [np.flatnonzero(users == u) for u in np.unique(users)], np.random.default_rng(0), []
    for _ in range(400):
        picked = rng.integers(0, len(own), len(own))
        at, fresh = np.concatenate([own[i] for i in picked]), np.repeat(np.arange(len(picked)), [len(own[i]) for i in picked])
        draws.append(np.diff(Clicks(fresh, y[at]).shares(metric, p[:, at]).value)[0])
    assert np.std(draws) == pytest.approx(d.std(ddof=1)/np.sqrt(len(d)), rel=.15) and abs(np.mean(draws) - d.mean()) < .2*np.std(draws)


def rejected(metric, studies=400, by_event=False, **shape):
    "Share of studies of two equal models that the paired t over users calls different at .05; `by_event` takes every event for a user of its own."
    p_values = []
    for seed in range(studies):
        users, y, p = world(60, seed, **shape)
        used = kept(metric, users, y)
        units = np.arange(used.sum()) if by_event else users[used]
        p_values.append(paired_t(np.diff(Clicks(units, y[used]).shares(metric, p[:, used]).linear, axis=0)[0]).p[0])
    return np.mean(np.array(p_values) < .05)


@pytest.mark.parametrize('metric', ['auc', 'gauc', 'logloss'])
def test_equal_models_are_rarely_told_apart(metric): assert .02 < rejected(metric) < .09


@pytest.mark.parametrize('metric', ['ece', 'bias'])
def test_calibration_errs_on_the_safe_side(metric): assert rejected(metric, 200) < .09


def test_events_taken_as_independent_would_reject_too_often(): assert rejected('auc', 150, events=(20, 40)) < .1 < .15 < rejected('auc', 150, by_event=True, events=(20, 40))


def test_certain_and_wrong_is_finite(): assert np.isfinite(Clicks([0, 1], [1, 0]).shares('logloss', [0., 1.]).value)


def test_a_calibrated_model_has_a_small_error_and_a_constant_none():
    rng = np.random.default_rng(0)
    p = rng.random(20_000); y = (rng.random(20_000) < p).astype(int)
    clicks = Clicks(np.arange(20_000) % 500, y)
    assert clicks.shares('ece', p).value < .02 < clicks.shares('ece', p**2).value and clicks.shares('ece', np.full(20_000, y.mean())).value < 1e-12
    assert clicks.shares('auc', np.full(20_000, .3)).value == .5


@pytest.mark.parametrize('labels, probabilities, message', [([0, 2], [.1, .2], 'label=2'), ([0, 1], [.1, float('nan')], 'probability=nan'), ([0, 1], [-.1, .5], 'probability=-0.1'), ([0, 1], [.1, 1.01], 'probability=1.01'), ([1, 1], [.1, .2], 'all 2 events')])
def test_bad_input_is_refused(labels, probabilities, message):
    with pytest.raises(ValueError, match=re.escape(message)): check_clicks(np.array(labels), np.array(probabilities))


# ---------------------------------------------------------------- a study

def click_data(root: Path, users: int = 200, per_user: int = 8) -> Path:
    "The simulated data set with more test events, the first ten users being asked about one item only."
    folder = data_set(root/'data'/'d0', users, banner='')
    events, items = pd.read_parquet(folder/'events.parquet'), pd.read_parquet(folder/'items.parquet').item
    rng = np.random.default_rng(4)
    more = [(f'u{u:05}', items[i], 9, 1., 'test') for u in range(10, users) for i in rng.choice(len(items), per_user, replace=False)]
    events = pd.concat([events, pd.DataFrame(more, columns=events.columns)]).drop_duplicates(['user', 'item'])
    events.sort_values(['user', 'time'], kind='stable').to_parquet(folder/'events.parquet', index=False)
    return folder


def click_run(folder: Path, data: Path, skill: float, seed: int, shift: float = 0., **summary) -> Path:
    "One artefact of a click model: the more `skill`, the more of the user's taste it knows; `shift` spoils the level."
    held = pd.read_parquet(data/'events.parquet').query("split != 'train'").reset_index(drop=True)
    truth = np.random.default_rng(1)
    taste = truth.normal(0, 1.5, len(held)) + truth.normal(0, 1, held.user.nunique())[held.user.factorize()[0]]
    label = (truth.random(len(held)) < 1/(1 + np.exp(-taste))).astype(int)
    logit = skill*taste + np.random.default_rng([2, seed]).normal(0, .4, len(held)) + shift
    frame(folder/'per_user.parquet', user=held.user, item=held.item, split=held.split, label=label, probability=(1/(1 + np.exp(-logit))).astype('float32'))
    frame(folder/'curve.parquet', epoch=[1, 2, 3], loss=[.7, .6, .6], valid=[.6, .7, .69], seconds_train=[1.]*3, seconds_valid=[.1]*3)
    said = dict(valid=dict(auc=.7 + .1*skill), test=dict(auc=.7), criterion='auc', best_epoch=2, epochs=3, stopped='patience', seconds_train=3., seconds_valid=.3, parameters_trainable=100, parameters_total=100, backbone='deepfm', seed=seed)
    (folder/'summary.json').write_text(json.dumps(said | summary))
    return folder


def click_study(root: Path, arms: dict, seeds: int = 3) -> dict:
    data = click_data(root)
    return dict(data=str(data)) | {f'{arm}/{s}': str(click_run(root/'recommend'/f'{i}-{s}', data, seed=10*i + s, **spec)) for i, (arm, spec) in enumerate(arms.items()) for s in range(seeds)}


def evidence(out: Path, inputs: dict, **changes):
    params = declared(vars(stage)) | dict(primary='auc', bootstrap=300, flips=300) | changes
    out.mkdir(parents=True, exist_ok=True)
    stage.check(params)
    return stage.run(params, inputs, out)


def said(out): return json.loads((out/'summary.json').read_text())


ARMS = {'fm': dict(skill=.5), 'kar': dict(skill=.9), 'loud': dict(skill=.5, shift=1.)}


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp('clicks')
    inputs = click_study(root, ARMS)
    return evidence(root/'evidence', inputs), inputs


def words(out): return {c['arm']: (c['word'], c['unit']) for c in said(out)['verdict']['comparisons']}


def test_the_better_model_is_better_on_every_metric_whatever_its_direction(study):
    out, inputs = study
    assert words(out)['kar'] == ('better', 'users and seeds')
    for primary in ('gauc', 'logloss'): assert words(evidence(out.parent/primary, inputs, primary=primary))['kar'] == ('better', 'users and seeds')
    text = said(out.parent/'logloss')['verdict']['headline']
    assert 'log-loss (lower is better)' in text and re.search('gain is that of kar: log-loss .*−', text)
    rows = pd.read_parquet(out/'results.parquet').query("arm == 'kar' and baseline == 'fm' and stratum_kind == 'all'").set_index('metric')
    assert rows['diff']['logloss'] < 0 < rows['diff']['auc'] and (rows.wins > rows.losses)[['auc', 'gauc', 'logloss']].all()


def test_a_spoilt_level_is_worse_on_calibration_and_not_on_auc(study):
    rows = pd.read_parquet(study[0]/'results.parquet').query("arm == 'loud' and stratum_kind == 'all'").set_index('metric')
    assert rows.p_user['auc'] > .01 and (rows.p_user < .01)[['ece', 'bias']].all() and (rows['diff'] > 0)[['ece', 'bias', 'logloss']].all() and rows.losses['logloss'] > rows.wins['logloss']
    levels = pd.DataFrame(said(study[0])['calibration']).set_index('arm')
    assert levels.ratio['loud'] > 1.2 > levels.ratio['fm'] > .9 and levels.ece['loud'] == pytest.approx(rows['mean']['ece'])


def test_users_of_one_class_are_left_out_of_gauc_and_counted(study):
    out, _ = study
    table = pd.read_parquet(out/'per_user.parquet').query("split == 'test' and arm == 'fm' and seed == 0")
    both = (table.groupby('user', observed=True).label.nunique() == 2)
    rows = pd.read_parquet(out/'results.parquet').query("stratum_kind == 'all'").groupby('metric').n_users.max()
    assert rows['gauc'] == both.sum() < rows['auc'] == len(both)
    assert any(f'GAUC leaves out {(~both).sum()} of {len(both)} users' in c for c in said(out)['verdict']['cautions'])


def test_the_report_of_a_click_study(study):
    out, _ = study
    html = (out/'report.html').read_text()
    assert '<section id="calibration">' in html and '<section id="beyond">' not in html and (out/'figures'/'reliability.png').stat().st_size > 5000
    assert "Obuchowski" in html and 'validation AUC' in html and 'validation NDCG' not in html and 'items that the user has already met are masked' not in html and not re.search(r'>\s*(nan|NaN|inf|None)\b', html)


def test_a_stratum_without_the_metric_has_no_panel():
    from recx.evidence.figures import strata_shown
    rows = pd.DataFrame(dict(metric=['auc', 'auc', 'logloss'], stratum_kind=['all', 'share80', 'cold'], stratum=['all', 'tail', 'cold']))
    assert strata_shown(rows, 'auc', ('share80', 'cold')) == [('share80', 'tail')]


def test_per_user_holds_label_and_probability(study):
    table = pd.read_parquet(study[0]/'per_user.parquet')
    assert {'label', 'probability', 'share80'} <= set(table) and 'rank' not in table and set(table.label) == {0, 1}


def test_the_same_inputs_give_the_same_bytes(study):
    out, inputs = study
    again = evidence(out.parent/'again', inputs)
    for path in sorted(p for p in out.rglob('*') if p.is_file()): assert path.read_bytes() == (again/path.relative_to(out)).read_bytes(), path.name


def test_twins_are_identical(tmp_path):
    inputs = click_study(tmp_path, {'fm': dict(skill=.5)}, seeds=2)
    inputs |= {f'twin/{s}': inputs[f'fm/{s}'] for s in (0, 1)}
    assert words(evidence(tmp_path/'e', inputs))['twin'] == ('identical', '')


def rewrite(folder, change):
    path = Path(folder)/'per_user.parquet'
    change(pd.read_parquet(path)).to_parquet(path, index=False)


@pytest.mark.parametrize('change, message', [
    (lambda t: t.assign(label=1 - t.label), 'disagree about the label'),
    (lambda t: t.assign(probability=t.probability.where(t.index != 3)), 'no probability'),
    (lambda t: t.assign(probability=t.probability + 1), 'not in [0, 1]'),
    (lambda t: t.drop(columns='label'), 'neither a column'),
    (lambda t: t.assign(rank=1.).drop(columns=['label', 'probability']), 'a study compares arms of one kind'),
    (lambda t: t.assign(user='stranger'), 'trained on another data set')])
def test_what_cannot_be_compared_is_refused(tmp_path, change, message):
    inputs = click_study(tmp_path, {'fm': dict(skill=.5), 'kar': dict(skill=.9)}, seeds=1)
    rewrite(inputs['kar/0'], change)
    with pytest.raises(ValueError, match=re.escape(message)): evidence(tmp_path/'e', inputs)
    assert not list((tmp_path/'e').iterdir())


@pytest.mark.parametrize('primary, message', [('ndcg@10', 'the runs hold probabilities'), ('ece', 'calibration cannot decide'), ('bias', 'calibration cannot decide')])
def test_a_metric_that_cannot_decide_is_refused(tmp_path, primary, message):
    inputs = click_study(tmp_path, {'fm': dict(skill=.5)}, seeds=1)
    with pytest.raises(ValueError, match=message): evidence(tmp_path/'e', inputs, primary=primary)


def test_auc_of_ranks_is_refused(tmp_path):
    with pytest.raises(ValueError, match='the runs hold ranks'): evidence(tmp_path/'e', simulated(tmp_path, dict(ids=0.), seeds=1, users=60))


def test_one_test_event_per_user_has_no_gauc():
    n = 40
    base = pd.DataFrame(dict(user=[f'u{i}' for i in range(n)], item=[f'i{i}' for i in range(n)], split='test', label=np.arange(n) % 2))
    rows = pd.concat([base.assign(arm=arm, seed=s, probability=np.random.default_rng([i, s]).random(n)) for i, arm in enumerate(('a', 'b')) for s in (0, 1)])
    declared_study, fast = dict(baseline='a', arms={'a': {}, 'b': {}}), dict(bootstrap=100, flips=99, strata=[])
    assert 'gauc' not in set(compare(rows, declared_study, primary='auc', **fast).metric)
    with pytest.raises(ValueError, match="metric='gauc'.*no user has both labels"): compare(rows, declared_study, primary='gauc', **fast)


def test_a_stratum_of_one_class_has_no_auc_and_keeps_its_logloss():
    users, y, p = world(40)
    rows = pd.concat([pd.DataFrame(dict(user=users, item=np.arange(len(y)), split='test', label=y, probability=p[i], arm=arm, seed=0, share80=np.where(y == 1, 'head', 'tail'))) for i, arm in enumerate(('a', 'b'))])
    r = compare(rows, dict(baseline='a', arms={'a': {}, 'b': {}}), primary='auc', bootstrap=100, flips=99)
    assert set(r[r.metric == 'auc'].stratum) == {'all'} and set(r[r.metric == 'logloss'].stratum) == {'all', 'head', 'tail'} and set(r[r.metric == 'bias'].stratum) == {'all', 'head'}
