"The table of comparisons: against a slow second implementation, edge cases by name, and under the null."
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from recx.evidence.compare import COLUMNS, aligned, compare, comparisons_of, family_sizes

STUDY = dict(baseline='ids', arms={'ids': {}, 'a': {}, 'b': {}, 'a · shuffled': dict(placebo_of='a')})
FAST = dict(bootstrap=200, flips=99, cutoffs=(5, 10))


def world(users=60, seeds=3, per_user=1, arms=tuple(STUDY['arms']), gain=0., seed=0, n_items=80):
    "Ranks of arms over the same held-out events; `a` gains."
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(users), per_user if isinstance(per_user, int) else rng.integers(1, per_user[1] + 1, users))
    n = len(of)
    base = pd.DataFrame(dict(user=[f'u{i}' for i in of], item=[f'i{i}' for i in rng.integers(0, n_items, n)], split='test', share80=np.where(rng.random(n) < .6, 'head', 'tail'),
                             cold=rng.random(n) < .2, history=np.array(['1–4', '5–9', '10–19'])[(of % 3)]))
    base = base.drop_duplicates(['user', 'item']); of = of[base.index]
    ease = rng.beta(.5, 1.5, users)[of]
    runs = [(arm, s, np.clip(ease + rng.normal(0, .1, len(of)) + gain*(arm == 'a'), 0, 1)) for arm in arms for s in range(seeds)]
    return pd.concat([base.assign(arm=arm, seed=s, rank=(1 + (n_items - 1)*(1 - e)**5).round()) for arm, s, e in runs], ignore_index=True)


def quasi_f(d):
    "p of the mean of differences (seeds × users) by the mean squares of the two-way layout."
    (S, U), mean = d.shape, d.mean()
    squares = dict(user=S*d.mean(axis=0).var(ddof=1), seed=U*d.mean(axis=1).var(ddof=1), rest=sum((d[s, u] - d[:, u].mean() - d[s].mean() + mean)**2 for s in range(S) for u in range(U))/((S - 1)*(U - 1)))
    whole, most = squares['user'] + squares['seed'] - squares['rest'], max('user', 'seed', key=squares.get)
    of = dict(user=U - 1, seed=S - 1, rest=(S - 1)*(U - 1))
    df = whole**2/sum(squares[k]**2/of[k] for k in of) if whole > squares[most] else of[most]
    return 2*stats.t.sf(abs(mean)/np.sqrt(max(whole, squares[most])/(S*U)), df) if squares[most] > 0 else np.nan


def slowly(ranks, arm, other, metric, kind, stratum):
    "Means and tests of one row of the table, by groupby and SciPy."
    name, k = metric.split('@'); k = int(k)
    part = ranks if kind == 'all' else ranks[ranks[kind].map({True: 'cold', False: 'warm'}) == stratum] if kind == 'cold' else ranks[ranks[kind] == stratum]
    def of_user(r):
        hits, n = r[r <= k], len(r)
        if name == 'hr': return float(len(hits) > 0)
        if name == 'recall': return len(hits)/n
        if name == 'mrr': return (1/hits).max() if len(hits) else 0.
        if name == 'map': return np.minimum(1, np.arange(1, len(hits) + 1)/np.sort(hits)).sum()/min(k, n)
        return (1/np.log2(1 + hits)).sum()/(1/np.log2(np.arange(2, min(k, n) + 2))).sum()
    table = part[part.arm.isin([arm, other])].groupby(['arm', 'seed', 'user'])['rank'].apply(of_user).unstack('user')
    a, b = table.loc[arm], table.loc[other]
    return dict(p_crossed=quasi_f((a - b).to_numpy()), mean=a.to_numpy().mean(), mean_baseline=b.to_numpy().mean(), n_users=a.shape[1], p_seed=stats.ttest_rel(a.mean(axis=1), b.mean(axis=1)).pvalue,
                p_user=stats.ttest_rel(a.mean(), b.mean()).pvalue, wins=int((a.mean() - b.mean() > 1e-9).sum()), losses=int((a.mean() - b.mean() < -1e-9).sum()))


@pytest.mark.parametrize('per_user', [1, 3, (1, 4)], ids=['leave-one-out', 'three events', 'one to four events'])
def test_agrees_with_a_slow_implementation(per_user):
    ranks = world(per_user=per_user, gain=.1)
    results = compare(ranks, STUDY, **FAST)
    assert list(results.columns) == COLUMNS and set(results.stratum_kind) == {'all', 'share80', 'cold', 'history'}
    for row in results.sample(40, random_state=0).to_dict('records'):
        for name, value in slowly(ranks, row['arm'], row['baseline'], row['metric'], row['stratum_kind'], row['stratum']).items():
            if np.isfinite(value): assert row[name] == pytest.approx(value, rel=1e-5, abs=1e-9), (row, name)
    assert (results.wins + results.ties + results.losses == results.n_users).all()
    inside = results.dropna(subset='ci_low')
    assert (inside.ci_low <= inside['diff'] + 1e-3).all() and (inside['diff'] <= inside.ci_high + 1e-3).all()


def test_interval_and_relative_interval_exclude_zero_together():
    r = compare(world(300, gain=.05), STUDY, **FAST).dropna(subset=['ci_low', 'rel_low'])
    assert ((r.ci_low > 0) == (r.rel_low > 0)).all() and ((r.ci_high < 0) == (r.rel_high < 0)).all() and (r.ci_low > 0).any()


def test_order_of_rows_and_type_of_columns_decide_nothing():
    ranks = world()
    base = compare(ranks, STUDY, **FAST)
    pd.testing.assert_frame_equal(base, compare(ranks.sample(frac=1, random_state=1), STUDY, **FAST))
    text = ['arm', 'user', 'item', 'split', 'share80', 'history']
    pd.testing.assert_frame_equal(base, compare(ranks.astype({c: 'category' for c in text}), STUDY, **FAST))
    more = compare(pd.concat([ranks, ranks.assign(split='valid', rank=1.)]), STUDY, **FAST)
    pd.testing.assert_frame_equal(base, more)   # validation events decide nothing


def test_a_missing_user_is_named():
    ranks = world()
    with pytest.raises(ValueError, match="'b' seed 2 has other test events .* user 'u7'"): compare(ranks[~((ranks.arm == 'b') & (ranks.seed == 2) & (ranks.user == 'u7'))], STUDY, **FAST)


def test_another_target_for_the_same_user_is_named():
    ranks = world()
    ranks.loc[(ranks.arm == 'b') & (ranks.seed == 1) & (ranks.user == 'u7'), 'item'] = 'i999'
    with pytest.raises(ValueError, match="'b' seed 1 has other test events"): compare(ranks, STUDY, **FAST)


def test_an_event_twice_in_one_run_only_is_an_error():
    ranks = world()
    with pytest.raises(ValueError, match='other test events'): compare(pd.concat([ranks, ranks.iloc[[0]]]), STUDY, **FAST)


def test_seeds_that_only_some_arms_have_are_left_out_and_said():
    ranks = world(seeds=4)
    results = compare(ranks[(ranks.arm != 'b') | (ranks.seed != 3)], STUDY, **FAST)
    assert (results.n_seeds == 3).all() and results.note.str.contains('seeds 3 left out').all()


def test_no_common_seed_is_an_error_that_names_them():
    ranks = world(seeds=2)
    with pytest.raises(ValueError, match=r"no seed is common.*'?a'?: \[1\]"): compare(ranks[(ranks.arm == 'a') == (ranks.seed == 1)], STUDY, **FAST)


def test_an_arm_without_ranks_is_an_error():
    with pytest.raises(ValueError, match="no rows of 'b'"): compare(world(arms=('ids', 'a', 'a · shuffled')), STUDY, **FAST)


def test_one_seed_has_no_seed_level_test_and_says_so():
    r = compare(world(seeds=1, gain=.2), STUDY, **FAST)
    assert r[['t_seed', 'p_seed', 'p_seed_adj', 'dz_seed', 'cross_low', 'cross_high']].isna().all(axis=None) and r.note.str.contains('one seed: no seed-level test').all() and (r.p_user < .05).any()


def test_identical_arms_have_no_p_and_no_interval_and_say_so():
    ranks = world()
    twin = pd.concat([ranks[ranks.arm != 'b'], ranks[ranks.arm == 'ids'].assign(arm='b')])
    r = compare(twin, STUDY, **FAST).query("arm == 'b'")
    assert r.note.str.startswith('identical').all() and (r['diff'] == 0).all() and (r.ties == r.n_users).all()
    assert r[['p_user', 'p_seed', 'p_flip', 'p_wilcoxon', 'ci_low', 'cross_high', 'rel_low', 'mde', 'p_user_adj', 'dz_user']].isna().all(axis=None)


def test_a_single_user_in_a_stratum_has_no_test():
    ranks = world()
    ranks['share80'] = np.where(ranks.user == 'u3', 'tail', 'head')
    r = compare(ranks, STUDY, **FAST).query("stratum == 'tail'")
    assert (r.n_users == 1).all() and r[['p_user', 'p_flip', 'ci_low', 'cross_low', 'mde']].isna().all(axis=None) and r.note.str.startswith('one user').all()


def test_a_baseline_of_zero_has_no_relative_gain():
    ranks = world()
    ranks.loc[ranks.arm == 'ids', 'rank'] = 80.
    r = compare(ranks, STUDY, **FAST).query("baseline == 'ids'")
    assert r[['rel', 'rel_low', 'rel_high']].isna().all(axis=None) and r.note.str.contains('baseline is zero').all() and r.ci_low.notna().any()


def test_a_kind_with_one_stratum_is_left_out_and_missing_strata_are_an_error():
    ranks = world().assign(cold=False)
    assert 'cold' not in set(compare(ranks, STUDY, **FAST).stratum_kind)
    with pytest.raises(ValueError, match="'history' has missing values"): compare(ranks.assign(history=ranks.history.where(ranks.user != 'u1')), STUDY, **FAST)
    assert set(compare(ranks, STUDY, strata=['share80'], **FAST).stratum_kind) == {'all', 'share80'} and set(compare(ranks, STUDY, strata=[], **FAST).stratum_kind) == {'all'}


def test_the_family_is_the_declared_one():
    study = dict(STUDY, family=[['a', 'ids'], ['a', 'b']])
    r = compare(world(), study, **FAST)
    assert set(zip(r.arm[r.in_family], r.baseline[r.in_family])) == {('a', 'ids'), ('a', 'b')} and (r.metric[r.in_family] == 'ndcg@10').all() and (r.stratum_kind[r.in_family] == 'all').all()
    assert ((r.adjustment == 'holm') == r.in_family).all() and family_sizes(r).set_index('adjustment').comparisons['holm'] == 2
    assert r.p_user_adj[r.in_family].max() == pytest.approx(min(1, max(2*r.p_user[r.in_family].min(), r.p_user[r.in_family].max())))


def test_comparisons_hold_every_arm_and_every_placebo_once():
    assert comparisons_of(STUDY) == [('a', 'ids'), ('b', 'ids'), ('a · shuffled', 'ids'), ('a', 'a · shuffled')]


def test_a_study_of_the_baseline_alone_gives_an_empty_table():
    r = compare(world(arms=('ids',)), dict(baseline='ids', arms={'ids': {}}), **FAST)
    assert len(r) == 0 and list(r.columns) == COLUMNS


@pytest.mark.parametrize('wrong, message', [(dict(primary='ndcg@7'), "primary='ndcg@7'"), (dict(cutoffs=(10, 500), n_items=80), 'larger than the catalogue'), (dict(alpha=0), 'alpha=0'), (dict(bootstrap=3), 'bootstrap=3'),
                                            (dict(flips=3), 'flips=3'), (dict(strata=['share90']), "did you mean 'share80'"), (dict(cutoffs=(0, 10)), 'cutoffs=0')])
def test_bad_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message): compare(world(), STUDY, **FAST | wrong)


@pytest.mark.parametrize('rank', [0., float('nan')])
def test_bad_ranks_are_refused(rank):
    ranks = world()
    ranks.loc[5, 'rank'] = rank
    with pytest.raises(ValueError, match='rank='): compare(ranks, STUDY, **FAST)


def test_under_the_null_the_family_is_rarely_claimed_and_the_intervals_cover():
    "Three arms that are as good as the baseline, 60 studies."
    arms, claims, inside = dict(baseline='ids', arms={a: {} for a in ('ids', 'a', 'b', 'c')}), [], []
    for seed in range(60):
        r = compare(world(80, 3, arms=tuple(arms['arms']), seed=seed), arms, cutoffs=(10,), strata=[], bootstrap=200, flips=99)
        family = r[r.in_family]
        claims.append((family.p_user_adj.min() < .05, family.p_seed_adj.min() < .05)); inside += ((family.cross_low <= 0) & (family.cross_high >= 0)).tolist()
    users, seeds = np.mean(claims, axis=0)
    assert users < .13 and seeds < .13 and np.mean(inside) > .88


def test_power_rises_with_the_effect():
    found = [np.mean([compare(world(150, 3, gain=g, seed=s), STUDY, cutoffs=(10,), strata=[], bootstrap=200, flips=99).query('in_family and arm == "a"').p_user_adj.iloc[0] < .05 for s in range(20)]) for g in (0, .03, .15)]
    assert found[0] < .25 and found[0] <= found[1] <= found[2] and found[2] > .9


def test_aligned_joins_by_key():
    ranks = world(seeds=2)
    panel = aligned(ranks.sample(frac=1, random_state=3), ['ids', 'b'], ['share80'])
    one = ranks[(ranks.arm == 'b') & (ranks.seed == 1)].sort_values(['user', 'item'])
    assert np.array_equal(panel.answers[1, 1], one['rank'].to_numpy(np.float32)) and panel.strata.share80.tolist() == one.share80.tolist()
