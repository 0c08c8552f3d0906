"Segments are joined by id, chance agreement is zero, profiles come from training events, and a probe finds what is redundant."
from collections import Counter
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from recx.data.dataset import Dataset
from recx.recommend.segments import agreement, assigned, by_user, choice, gate_figure, lifts, recovered, redundancy, segments, stays, uplift, user_columns, users_from_items

USERS, ITEMS = 90, 40


def dataset(seed=0):
    "Each user has six training events, one of validation, one of test; every third user likes one genre."
    rng, events = np.random.default_rng(seed), []
    for u in range(USERS):
        pool = np.arange(ITEMS)[np.arange(ITEMS) % 3 == u % 3]
        for t, i in enumerate(rng.permutation(pool)[:8]): events.append((f'u{u}', f'i{i}', t, 1., ['train', 'valid', 'test'][max(0, t - 5)]))
    items = pd.DataFrame(dict(item=[f'i{i}' for i in range(ITEMS)], title=[f't{i}' for i in range(ITEMS)], genres=[[['war', 'noir', 'farce'][i % 3], 'film'] for i in range(ITEMS)], year=[1990 + i % 2 for i in range(ITEMS)]))
    return Dataset(items, pd.DataFrame(dict(user=[f'u{u}' for u in range(USERS)])), pd.DataFrame(events, columns=['user', 'item', 'time', 'value', 'split']), dict(text_columns=['title', 'genres']))


def gates(by, noise=0., seed=0, order=None):
    "User u goes by layer by[u]."
    rng = np.random.default_rng(seed)
    x = np.eye(3)[by]*2 + noise*rng.normal(size=(len(by), 3))
    table = pd.DataFrame(np.exp(x)/np.exp(x).sum(1, keepdims=True), columns=['L1', 'L2', 'L3']).assign(user=[f'u{u}' for u in range(len(by))])
    return table if order is None else table.iloc[order].reset_index(drop=True)


BY = np.arange(USERS) % 3


def slow_rand(a, b):
    "Adjusted Rand index by counting all pairs of users."
    pairs = list(combinations(range(len(a)), 2))
    both, ina, inb = (sum(c) for c in zip(*[((a[i] == a[j]) and (b[i] == b[j]), a[i] == a[j], b[i] == b[j]) for i, j in pairs]))
    expected = ina*inb/len(pairs)
    return (both - expected)/((ina + inb)/2 - expected)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=6, max_size=25))
def test_agreement_against_counting_pairs(both):
    a, b = np.array(both).T
    if len(set(a)) < 2 or len(set(b)) < 2: assert np.isnan(agreement(np.stack([a, b])))
    else: assert agreement(np.stack([a, b])) == pytest.approx(slow_rand(a, b))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=5, max_size=5), min_size=1, max_size=4))
def test_share_that_stays_against_a_loop(rows):
    shares = [np.mean([y == 1 for x, y in zip(a, b) if x == 1]) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j and 1 in a]
    made = stays(np.array(rows), 1)
    assert np.isnan(made) if not shares else made == pytest.approx(np.mean(shares))


class TestSegments:
    def test_planted(self):
        table = segments({s: gates(BY, .2, s) for s in range(3)}, dataset()).set_index('segment')
        assert (table.users == 30).all() and (table.agreement == 1).all() and (table.stays == 1).all() and (table.events_mean == 6).all()
        assert [t.split(' ')[0] for t in table.top] == ['war', 'noir', 'farce'] and 'film' not in ' '.join(table.top)   # everybody meets films
        assert table.top['L1'] == 'war (3.00×)'

    def test_users_are_joined_by_id(self):
        shuffled = np.random.default_rng(0).permutation(USERS)
        straight, crossed = (segments({0: gates(BY, .2, 0), 1: gates(BY, .2, 1, order)}, dataset()) for order in (None, shuffled))
        pd.testing.assert_frame_equal(straight, crossed)
        by_place = segments({0: gates(BY, .2, 0), 1: gates(BY, .2, 1, shuffled).assign(user=gates(BY).user)}, dataset())
        assert by_place.agreement[0] < .2   # had they been joined by place, it would have shown

    def test_seeds_that_disagree_are_no_segments(self):
        rng = np.random.default_rng(0)
        table = segments({s: gates(rng.integers(0, 3, USERS)) for s in range(4)}, dataset())
        assert abs(table.agreement[0]) < .05 and table.stays.mean() < .5

    def test_one_seed_says_nothing_about_stability(self):
        table = segments({0: gates(BY)}, dataset())
        assert table.stays.isna().all() and table.agreement.isna().all() and table.users.sum() == USERS

    def test_all_users_in_one_segment_is_no_agreement(self):
        table = segments({s: gates(np.zeros(USERS, int), .1, s) for s in range(3)}, dataset())
        assert table.users.tolist() == [USERS, 0, 0] and table.agreement.isna().all() and table.top[0] == ''

    def test_some_users_and_another_column(self):
        table = segments({0: gates(BY).iloc[:30]}, dataset(), column='year')
        assert table.users.sum() == 30 and all(t == '' or t[:4] in ('1990', '1991') for t in table.top)

    @pytest.mark.parametrize('broken, said', [(lambda: {}, 'is empty'), (lambda: {0: gates(BY), 1: gates(BY[:80])}, "seed 1 are of other users"), (lambda: {0: gates(BY).assign(user='nobody')}, 'not in the data set'),
                                              (lambda: {0: gates(BY), 1: gates(BY).rename(columns=dict(L3='L4'))}, 'layers')])
    def test_refuses(self, broken, said):
        with pytest.raises(ValueError, match=said): segments(broken(), dataset())


def test_lifts_against_counting():
    data, of = dataset(), np.where(BY == 0, 0, 1)
    made = lifts(data, 'genres', of, 2)
    train = data.events[data.events.split == 'train']
    all_, mine = Counter(), Counter()
    genres = data.items.set_index('item').genres
    for user, item in zip(train.user, train.item):
        for g in genres[item]: all_[g] += 1; mine[g] += of[int(user[1:])] == 0
    n_mine = sum(of[int(u[1:])] == 0 for u in train.user)
    for g in all_: assert made.loc[g, 0] == pytest.approx(mine[g]/n_mine/(all_[g]/len(train)))


def test_user_weights_come_from_training_events_only():
    data = dataset()
    item_gates = pd.DataFrame(dict(item=data.item_ids, L1=np.linspace(0, 1, ITEMS))).assign(L2=lambda t: 1 - t.L1)
    made = users_from_items(item_gates, data)
    changed = item_gates.copy()
    own = data.events[data.events.user == 'u0']
    only_later = set(own[own.split != 'train'].item) - set(own[own.split == 'train'].item)
    changed.loc[changed.item.isin(only_later), ['L1', 'L2']] = [9., 9.]
    assert only_later and users_from_items(changed, data).iloc[0].equals(made.iloc[0])
    assert made.L1[0] == pytest.approx(item_gates.set_index('item').L1[own[own.split == 'train'].item].mean())


class TestRedundancy:
    def test_noise_is_not_predicted_and_a_copy_is(self):
        rng = np.random.default_rng(0)
        one = rng.normal(size=(200, 5))
        table = redundancy(dict(L1=one, L2=one @ rng.normal(size=(5, 5)), L3=rng.normal(size=(200, 5)))).set_index(['source', 'target'])
        assert table.score['L1', 'L2'] > .99 and abs(table.score['L1', 'L3']) < .15 and len(table) == 6

    def test_more_columns_than_items_do_not_look_like_knowledge(self):
        rng = np.random.default_rng(0)
        table = redundancy(dict(L1=rng.normal(size=(60, 300)), L2=rng.normal(size=(60, 4))), dict(mood=rng.integers(0, 2, 60))).set_index(['source', 'target'])
        assert table.above['L1', 'L2'] < .1 and table.above['L1', 'mood'] < .35

    def test_chance_is_the_most_frequent_value(self):
        table = redundancy(dict(L1=np.random.default_rng(0).normal(size=(50, 2))), dict(rare=['a']*45 + ['b']*5, same=['a']*50)).set_index('target')
        assert table.chance['rare'] == .9 and table.above['rare'] <= .2 and np.isnan(table.above['same'])

    def test_refuses_layers_of_other_items(self):
        with pytest.raises(ValueError, match='the same items'): redundancy(dict(L1=np.zeros((20, 2)), L2=np.zeros((21, 2))))
        with pytest.raises(ValueError, match='at least 10'): redundancy(dict(L1=np.zeros((4, 2)), L2=np.zeros((4, 2))))


def test_figure_shows_every_layer():
    axes = gate_figure(gates(BY), 'by user').axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ['L1', 'L2', 'L3'] and '90 users' in axes.get_ylabel()


class TestAssigned:
    def test_agrees_with_the_table(self):
        by_seed = {s: gates(BY, .5, s) for s in range(2)}
        assert assigned(by_seed).value_counts().to_dict() == segments(by_seed, dataset()).set_index('segment').users.to_dict()

    def test_a_layer_that_all_lean_to_hides_nobody_when_relative(self):
        leaning = {0: gates(BY).assign(L1=lambda t: t.L1*20)}
        assert set(assigned(leaning)) == {'L1'}
        assert (assigned(leaning, relative=True).to_numpy() == np.array(['L1', 'L2', 'L3'])[BY]).all()
        assert segments(leaning, dataset(), relative=True).users.tolist() == [30, 30, 30]

    def test_seeds_of_another_scale_count_alike_when_relative(self):
        faint = gates(BY).assign(**{c: lambda t, c=c: .333 + .001*t[c] for c in ('L1', 'L2', 'L3')})
        assert (assigned({0: faint}, relative=True).to_numpy() == np.array(['L1', 'L2', 'L3'])[BY]).all()


class TestUserColumns:
    def test_against_counting(self):
        data = dataset()
        data.users['age'], data.users['city'] = np.where(BY == 0, 60., 20. + BY), [['Kiel', 'Lund'][u % 2] for u in range(USERS)]
        data.users['name'] = [f'name {u}' for u in range(USERS)]
        table = user_columns(data, assigned({0: gates(BY)}))
        assert table.loc[('age', 'median')].tolist() == [60., 21., 22., 22.]
        mine = data.users[BY == 0]
        assert table.loc[('city', 'Kiel'), 'L1'] == pytest.approx((mine.city == 'Kiel').mean())
        assert 'name' not in table.index.get_level_values(0)   # an id under another name

    def test_no_columns_and_gaps(self):
        data = dataset()
        assert len(user_columns(data, assigned({0: gates(BY)}))) == 0
        data.users['age'] = np.where(np.arange(USERS) < 3, 30., np.nan)
        assert user_columns(data, assigned({0: gates(BY)})).loc[('age', 'median'), 'all'] == 30


class TestRecovered:
    PLANTED = pd.Series(np.array(['a', 'b', 'c'])[BY], [f'u{u}' for u in range(USERS)])

    def test_names_do_not_matter_and_ids_do(self):
        said = recovered(assigned({0: gates(BY)}), self.PLANTED.sample(frac=1, random_state=0), draws=99)
        assert said['agreement'] == 1 and said['p'] == .01 and said['users'] == USERS and said['chance'] < .1

    def test_by_chance_p_is_level(self):
        rng = np.random.default_rng(0)
        ps = [recovered(assigned({0: gates(rng.integers(0, 3, USERS))}), self.PLANTED, rng, 49)['p'] for _ in range(60)]
        assert .3 < np.mean(ps) < .7 and np.mean(np.array(ps) <= .1) < .25

    def test_users_in_one_of_both_are_left_out(self):
        assert recovered(assigned({0: gates(BY)}), self.PLANTED[:60], draws=9)['users'] == 60
        with pytest.raises(ValueError, match='no user in common'): recovered(assigned({0: gates(BY)}), self.PLANTED.rename(lambda u: u + 'x'))


def ranked(good, seed, users=USERS, both=('valid', 'test')):
    "Users of whom `good` are served at rank 1 and the others far down."
    rng = np.random.default_rng(seed)
    return pd.concat([pd.DataFrame(dict(user=[f'u{u}' for u in range(users)], item='i', split=split, rank=np.where(good, 1., rng.integers(5, 40, users)))) for split in both])


class TestUplift:
    def arms(self, strength=1., seed=0):
        rng = np.random.default_rng(seed)
        return {layer: {s: ranked((BY == at) & (rng.random(USERS) < strength), s) for s in range(2)} for at, layer in enumerate(('L1', 'L2', 'L3'))}

    def test_scores_against_a_loop(self):
        runs = self.arms(.5)
        valid, test = by_user(runs)
        for user in ('u0', 'u41'):
            for arm in runs:
                gain = [1/np.log2(1 + r) if r <= 10 else 0 for t in runs[arm].values() for r in t[(t.user == user) & (t.split == 'test')]['rank']]
                assert test.loc[user, arm] == pytest.approx(np.mean(gain))

    def test_events_that_an_arm_did_not_rank_are_left_out_for_all(self):
        runs = self.arms()
        runs['L2'] = {s: t[t.user != 'u7'] for s, t in runs['L2'].items()}
        valid, test = by_user(runs)
        assert 'u7' not in test.index and len(test) == USERS - 1 and not test.isna().any(axis=None)

    def test_planted_segments_pay_and_random_ones_do_not(self):
        valid, test = by_user(self.arms())
        table = uplift(valid, test, assigned({0: gates(BY)}), draws=99).set_index('segment')
        assert table.arm[:3].tolist() == ['L1', 'L2', 'L3'] and table.p['all'] == .01 and table.low['all'] > .3
        assert table['mean']['all'] == pytest.approx(1) and table.gain['all'] == pytest.approx(table['mean']['all'] - table.single['all'])
        rng, ps = np.random.default_rng(0), []
        for _ in range(40):
            random = pd.Series(rng.permutation(np.array(['a', 'b', 'c'])[BY]), [f'u{u}' for u in range(USERS)])
            ps.append(uplift(valid, test, random, rng, draws=39).p.iloc[-1])
        assert .3 < np.mean(ps) < .7 and np.mean(np.array(ps) <= .1) < .3

    def test_the_choice_is_made_on_validation_alone(self):
        valid, test = by_user(self.arms())
        segment = assigned({0: gates(BY)})
        turned = test[['L2', 'L3', 'L1']].set_axis(['L1', 'L2', 'L3'], axis=1)   # on test the others are good
        table = uplift(valid, turned, segment, draws=9).set_index('segment')
        assert table.arm[:3].tolist() == ['L1', 'L2', 'L3'] and table.gain['all'] <= 0

    def test_one_segment_gains_nothing(self):
        valid, test = by_user(self.arms())
        table = uplift(valid, test, pd.Series('all of them', valid.index), draws=9)
        assert (table.gain == 0).all() and table.p.iloc[-1] == 1 and table.chance.iloc[-1] == 0

    def test_a_segment_without_validation_events_gets_the_single_arm(self):
        valid, test = by_user(self.arms())
        table = uplift(valid[BY != 2], test, assigned({0: gates(BY)}), draws=9).set_index('segment')
        assert table.arm['L3'] == table.arm['all'] and table.gain['L3'] == 0
        assert choice(np.eye(2, dtype=bool), np.array([[0., .5], [np.nan, np.nan]])).tolist() == [1, 1]

    def test_the_interval_covers(self):
        rng, hits = np.random.default_rng(0), 0
        index = pd.Index([f'u{u}' for u in range(400)])
        segment = pd.Series(np.where(np.arange(400) % 2, 'a', 'b'), index)
        for _ in range(60):
            draw = lambda: pd.DataFrame(dict(one=rng.random(400) + .3*(segment == 'a').to_numpy(), two=rng.random(400) + .2*(segment == 'b').to_numpy()), index)
            last = uplift(draw(), draw(), segment, rng, draws=1).iloc[-1]
            hits += last.low <= .1 <= last.high   # half of the users gain .2
        assert hits >= 52

    def test_refuses(self):
        valid, test = by_user(self.arms())
        with pytest.raises(ValueError, match='has a test event'): uplift(valid, test, pd.Series('a', ['x', 'y']))
        with pytest.raises(ValueError, match='in common'): by_user({'a': {0: ranked(BY == 0, 0)}, 'b': {0: ranked(BY == 0, 0).assign(item='j')}})
