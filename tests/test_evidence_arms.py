"Arms of a special kind, and arms that cannot answer everything: simple baselines, cold items, unknown users, gates of users."
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from simulated_runs import frame, simulated

from recx.data.parameters import declared
from recx.evidence import stage


def evidence(out: Path, inputs: dict, study: dict = {}, **changes):
    params = declared(vars(stage)) | dict(study=study, bootstrap=200, flips=200) | changes
    out.mkdir(parents=True, exist_ok=True)
    stage.check(params)
    return stage.run(params, inputs, out)


def said(out): return json.loads((out/'summary.json').read_text())


def changed(folder, **more):
    "Write into the summary of a run."
    path = Path(folder)/'summary.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def forget(folder, keep):
    "Take away the answers of a run where `keep` is false."
    path = Path(folder)/'per_user.parquet'
    rows = pd.read_parquet(path)
    rows[keep(rows)].to_parquet(path, index=False)


SIMPLE = dict(baseline='ids', arms={'ids': {}, 'moe': dict(changes=dict(fusion='add')), 'pop': dict(label='popularity', changes=dict(backbone='popularity')), 'knn': dict(label='item-kNN', changes=dict(backbone='item-knn'))})


def test_a_baseline_above_the_simple_ones_passes_the_weaker_gate(tmp_path):
    verdict = said(evidence(tmp_path/'e', simulated(tmp_path, dict(ids=0., moe=.4, pop=-.9, knn=-.6), seeds=3), SIMPLE))
    assert verdict['gate']['status'] == 'above simple' and set(verdict['gate']['beaten']) == {'pop', 'knn'}
    assert 'Against a baseline that beats the simple baselines' in verdict['verdict']['headline'] and 'It beats popularity' in verdict['verdict']['gate']
    assert [c['arm'] for c in verdict['verdict']['comparisons']] == ['moe']   # simple arms are controls, not claims


def test_a_baseline_not_above_one_of_them_is_said(tmp_path):
    verdict = said(evidence(tmp_path/'e', simulated(tmp_path, dict(ids=0., moe=.4, pop=-.9, knn=.02), seeds=3), SIMPLE))
    assert verdict['gate']['status'] == 'not above simple' and 'not shown to beat item-kNN' in verdict['verdict']['gate'] and 'but beats popularity' in verdict['verdict']['gate']
    assert 'is not shown to beat every simple baseline' in verdict['verdict']['headline']


def test_the_id_only_arm_is_held_against_them_where_it_is_not_the_baseline(tmp_path):
    out = evidence(tmp_path/'e', simulated(tmp_path, dict(ids=0., moe=.4, pop=-.9, knn=-.6), seeds=2), SIMPLE | dict(baseline='moe'))
    assert said(out)['gate']['arm'] == 'ids' and said(out)['gate']['status'] == 'above simple'
    rows = pd.read_parquet(out/'results.parquet')
    assert {('pop', 'moe'), ('pop', 'ids')} <= set(zip(rows.arm, rows.baseline))


def test_what_learns_nothing_is_neither_untuned_nor_cut_short_nor_preferred(tmp_path):
    inputs = simulated(tmp_path, dict(ids=0., moe=.4, pop=dict(effect=-.9, stopped='epochs'), knn=dict(effect=-.6, stopped='nothing to train')), seeds=2)
    for s in (0, 1): changed(inputs[f'pop/{s}'], valid={'ndcg@10': .99})
    arms = {name: spec | (dict(trials=[dict(changes={}, valid=.1), dict(changes=dict(dropout=.1), valid=.2)], chosen=dict(dropout=.1)) if name in ('ids', 'moe') else {}) for name, spec in SIMPLE['arms'].items()}
    verdict = said(evidence(tmp_path/'e', inputs, SIMPLE | dict(arms=arms)))['verdict']
    assert not [c for c in verdict['cautions'] if 'tuned' in c or 'limit of epochs' in c] and 'Validation prefers this arm too' in verdict['headline']


def test_events_that_some_arm_cannot_rank_are_left_out_everywhere_and_counted(tmp_path):
    inputs = simulated(tmp_path, dict(ids=0., moe=.4), seeds=2)
    for s, n in ((0, 30), (1, 20)): forget(inputs[f'moe/{s}'], lambda t, n=n: ~t.user.isin([f'u{u:05}' for u in range(n)]))
    out = evidence(tmp_path/'e', inputs)
    rows = pd.read_parquet(out/'results.parquet').query("stratum_kind == 'all'")
    assert (rows.n_users == 370).all() and pd.read_parquet(out/'per_user.parquet').user.nunique() == 370
    assert any('30 of 400 test events take part in no comparison' in c and '(moe 30)' in c for c in said(out)['verdict']['cautions'])
    ids = pd.read_parquet(Path(inputs['ids/0'])/'per_user.parquet').query("split == 'test' and user >= 'u00030'")
    level = next(r['value'] for r in said(out)['runs'] if r['arm'] == 'ids' and r['seed'] == 0)
    assert level == pytest.approx(((ids['rank'] <= 10)/np.log2(1 + ids['rank'])).mean(), rel=1e-5)


def test_nothing_is_said_where_nothing_is_left_out(tmp_path):
    out = evidence(tmp_path/'e', simulated(tmp_path, dict(ids=0., moe=.4), seeds=1))
    assert not any('no comparison' in c or 'chance' in c for c in said(out)['verdict']['cautions'])


def test_no_common_event_is_an_error_that_names_the_runs(tmp_path):
    inputs = simulated(tmp_path, dict(ids=0., moe=.4), seeds=1, users=60)
    forget(inputs['ids/0'], lambda t: t.user < 'u00030'); forget(inputs['moe/0'], lambda t: t.user >= 'u00030')
    with pytest.raises(ValueError, match='no test event was answered by every run .*ids/0 lacks 30; moe/0 lacks 30 of 60'): evidence(tmp_path/'e', inputs)
    assert not list((tmp_path/'e').iterdir())


def test_ranks_of_cold_items_by_an_arm_without_vectors_are_called_chance(tmp_path):
    inputs = simulated(tmp_path, dict(ids=0., moe=.4), seeds=2)
    for s in (0, 1): changed(inputs[f'ids/{s}'], cold=dict(items=3, test_events=10, by_chance=True)); changed(inputs[f'moe/{s}'], cold=dict(items=3, test_events=10, by_chance=False))
    out = evidence(tmp_path/'e', inputs)
    n = (pd.read_parquet(out/'per_user.parquet').query("split == 'test' and arm == 'ids' and seed == 0").cold == 'cold').sum()
    assert n >= 10 and any(f'ids has no vectors: its ranks of {n} cold events are chance' in c for c in said(out)['verdict']['cautions'])
    assert (out/'report.html').read_text().count('cold events are chance') == 2   # in the verdict, and under the table of the cold stratum


def test_arms_stopped_by_different_criteria_are_refused(tmp_path):
    inputs = simulated(tmp_path, dict(ids=0., moe=.4), seeds=1, users=60)
    changed(inputs['moe/0'], criterion='auc', valid=dict(auc=.7))
    with pytest.raises(ValueError, match='moe/0 was validated by auc'): evidence(tmp_path/'e', inputs)


def test_the_curves_of_any_criterion_are_drawn(tmp_path):
    inputs = simulated(tmp_path, dict(ids=0., moe=.4), seeds=1, users=60)
    for arm in ('ids', 'moe'): changed(inputs[f'{arm}/0'], criterion='hr@10', valid={'hr@10': .3})
    assert 'validation HR@10' in (evidence(tmp_path/'e', inputs)/'report.html').read_text()


def gates(folder, keep: float, seed: int, users: int = 400):
    "Weights of three layers: the first third of the users lives on L1, the second on L2; a share `keep` of them is found again."
    truth = np.minimum(np.arange(users)*3//users, 2)
    rng = np.random.default_rng(seed)
    found = np.where(rng.random(users) < keep, truth, rng.integers(0, 3, users))
    weights = rng.dirichlet([1, 1, 1], users)*.3 + .7*np.eye(3)[found]
    frame(Path(folder)/'gates_user.parquet', user=[f'u{u:05}' for u in range(users)], L1=weights[:, 0], L2=weights[:, 1], L3=weights[:, 2])


def test_segments_have_sizes_and_stability(tmp_path):
    inputs = simulated(tmp_path, dict(ids=0., stable=.2, shaky=.2), seeds=3)
    for s in range(3): gates(inputs[f'stable/{s}'], 1., s); gates(inputs[f'shaky/{s}'], 0., s)
    out = evidence(tmp_path/'e', inputs)
    found = pd.DataFrame(said(out)['segments']).set_index(['arm', 'segment'])
    assert list(found.loc['stable'].index) == ['L1', 'L2', 'L3'] and found.loc['stable'].users.tolist() == [134, 133, 133] and (found.loc['stable'].agreement == 1).all() and (found.loc['stable'].stays == 1).all()
    assert (found.loc['shaky'].agreement.abs() < .05).all() and (found.loc['shaky'].stays < .5).all() and found.loc['shaky'].share.sum() == pytest.approx(1)
    assert '<section id="segments">' in (out/'report.html').read_text()



@pytest.mark.parametrize('names', [('expert_0', 'expert_1'), ('L1 shared_0', 'L1 own_0'), ('token_0', 'token_1')])
def test_experts_make_no_segments(tmp_path, names):
    inputs = simulated(tmp_path, dict(ids=0., moe=.2), seeds=1, users=60)
    frame(Path(inputs['moe/0'])/'gates_user.parquet', user=[f'u{u:05}' for u in range(60)], **dict(zip(names, ([.4]*60, [.6]*60))))
    frame(Path(inputs['moe/0'])/'gates.parquet', item=[f'i{i:04}' for i in range(120)], **dict(zip(names, ([.4]*120, [.6]*120))))
    assert 'segments' not in said(evidence(tmp_path/'e', inputs)) and not (tmp_path/'e'/'segments.parquet').exists()


def test_who_is_in_which_segment_is_written(tmp_path):
    "Weights averaged over seeds, the largest one names the segment; the arm whose gate weighs items alone is marked, and not in the report."
    inputs = simulated(tmp_path, {'ids': 0., 'gate': .2, 'items': .2}, seeds=2)
    for s in (0, 1):
        gates(inputs[f'gate/{s}'], .8, s)
        frame(Path(inputs[f'items/{s}'])/'gates.parquet', item=[f'i{i:04}' for i in range(120)], L1=np.where(np.arange(120) % 2, .9, .2), L2=np.where(np.arange(120) % 2, .1, .8))
    out = evidence(tmp_path/'e', inputs)
    rows = pd.read_parquet(out/'segments.parquet')
    assert list(rows) == ['arm', 'weighed', 'user', 'segment', 'L1', 'L2', 'L3'] and rows.groupby('arm').size().to_dict() == dict(gate=400, items=400)
    own, read = rows[rows.arm == 'gate'].set_index('user'), [pd.read_parquet(Path(inputs[f'gate/{s}'])/'gates_user.parquet').set_index('user') for s in (0, 1)]
    mean = (read[0] + read[1])/2
    assert np.allclose(own[['L1', 'L2', 'L3']], mean.loc[own.index]) and (own.segment == mean.idxmax(axis=1)).all() and (own.weighed == 'user').all()
    found = pd.DataFrame(said(out)['segments'])
    assert set(found.arm) == {'gate'} and own.segment.value_counts().to_dict() == found.set_index('segment').users.to_dict()
    events = pd.read_parquet(Path(inputs['data'])/'events.parquet').query("split == 'train'")
    odd = events.item.str[1:].astype(int) % 2
    share = odd.groupby(events.user).mean()
    of_items = rows[rows.arm == 'items'].set_index('user')
    assert np.allclose(of_items.L1, (.9*share + .2*(1 - share)).loc[of_items.index]) and (of_items.weighed == 'items').all() and of_items.L3.isna().all()


def test_a_baseline_of_another_backbone_is_not_held_against_the_reference(tmp_path, monkeypatch):
    "The value of SASRec says nothing of a LightGCN."
    from recx.evidence import reference
    monkeypatch.setattr(reference, 'REFERENCES', (reference.Reference('simulated', 400, 120, 2400, 'file', 'SASRec', .9, .8, 'a test'),))
    inputs = simulated(tmp_path, dict(ids=0., moe=.4), seeds=1)
    assert said(evidence(tmp_path/'a', inputs))['gate']['status'] == 'not reached'
    changed(inputs['ids/0'], backbone='lightgcn')
    gate = said(evidence(tmp_path/'b', inputs))['gate']
    assert gate['status'] == 'unknown' and 'this arm is lightgcn' in gate['text']


def test_the_groups_of_a_stratum_are_all_users_with_test_events(tmp_path):
    "Under leave-one-out every user asks for one item, which is in one group of each kind."
    inputs = simulated(tmp_path, dict(ids=0., moe=.4), seeds=1)
    rows = pd.read_parquet(evidence(tmp_path/'e', inputs)/'results.parquet').query("metric == 'ndcg@10'")
    users = pd.read_parquet(Path(inputs['data'])/'events.parquet').query("split == 'test'").user.nunique()
    kinds = rows.groupby('stratum_kind').n_users.sum()
    assert {'share80', 'top20', 'bin', 'cold'} <= set(kinds.index) and (kinds == users).all() and (rows[rows.stratum_kind == 'share80'].n_users < users).all()
