"Simple baselines against loops over users and items."
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from recx.data.dataset import Dataset
from recx.recommend.given import Given
from recx.recommend.instances import auc
from recx.recommend.simple import PRIORS, SIMPLE, TIE_SHARE, Odds, Rates, Simple, co_occurrence, fit_odds, nearest, scored

PARAMS = dict(fusion='id', user_fusion='id', knn_neighbours=3, hold_back=0, list_size=4)


def named(user, item, split, items):
    "A log of codes as a data set."
    events = pd.DataFrame(dict(user=[f'u{u:03}' for u in user], item=[f'i{i:03}' for i in item], time=np.arange(len(user)), value=1., split=np.array(['train', 'valid', 'test'])[split]))
    return Dataset(pd.DataFrame(dict(item=[f'i{i:03}' for i in range(items)])), pd.DataFrame(dict(user=[f'u{u:03}' for u in range(max(user) + 1)])), events, dict(name='log'))


def log(users=30, items=15, length=8, seed=0):
    rng = np.random.default_rng(seed)
    return np.repeat(np.arange(users), length), rng.integers(0, items, users*length), np.tile([0]*(length - 2) + [1, 2], users)


def slow_scores(name, user, item, split, items, row, k):
    "The score of every item for one event, by loops."
    met = [set(item[(user == u) & (split == 0)].tolist()) for u in range(max(user) + 1)]
    common = lambda i, j: sum(i in m and j in m for m in met)
    popular = np.array([common(i, i) for i in range(items)], float)
    earlier = item[(user == user[row]) & (np.arange(len(user)) < row)]
    scores = np.zeros(items)
    if name == 'last-item': scores = np.array([common(earlier[-1], i)*(i != earlier[-1]) for i in range(items)], float)
    if name == 'item-knn':
        for j in set(earlier.tolist()):
            near = sorted(((common(i, j)/np.sqrt(popular[i]*popular[j]) if popular[i]*popular[j] else 0., -i) for i in range(items) if i != j), reverse=True)[:k]
            for value, i in near: scores[-i] += value
    return scores + TIE_SHARE*popular/max(popular.max(), 1)


@pytest.mark.parametrize('name', SIMPLE)
@pytest.mark.parametrize('seed', range(3))
def test_scores_and_ranks_against_a_loop(name, seed):
    user, item, split = log(seed=seed)
    task = Simple(named(user, item, split, 16), PARAMS | dict(backbone=name))   # item 15 is met by nobody
    model, held = task.model(Given()), task.parts['test']
    got = np.concatenate([s for _, s in scored(model, held, block=7)])
    ranks = task.results(model)['per_user'].query("split == 'test'")['rank'].to_numpy()
    for i, row in enumerate(held.row):
        slow = slow_scores(name, user, item, split, 16, row, 3)
        seen = [j for j in set(item[(user == user[row]) & (np.arange(len(user)) < row)].tolist()) if j != item[row]]
        slow[seen] = -np.inf
        assert np.allclose(got[i], slow, atol=1e-9)
        slow = np.round(slow, 12)
        own = slow[item[row]]
        assert ranks[i] == 1 + (slow > own).sum() + ((slow == own).sum() - 1)/2


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=30), st.integers(1, 6))
def test_neighbours_are_the_k_nearest(events, k):
    user, item = map(np.array, zip(*events))
    counts = co_occurrence(user, item, 7)
    met = np.zeros((5, 7)); met[user, item] = 1
    assert (counts.toarray() == met.T @ met).all()
    near = nearest(counts, k).toarray()
    norm = np.sqrt((met**2).sum(0))
    cosine = np.divide(met.T @ met, np.outer(norm, norm), out=np.zeros((7, 7)), where=np.outer(norm, norm) > 0)
    np.fill_diagonal(cosine, 0)
    for i in range(7): assert np.allclose(np.sort(near[i])[::-1][:k], np.sort(cosine[i])[::-1][:k]) and (near[i] > 0).sum() == min(k, (cosine[i] > 0).sum())


def test_training_events_only_are_counted():
    user, item, split = log()
    changed = item.copy(); changed[split > 0] = (item[split > 0] + 5) % 15
    one, other = (Simple(named(user, i, split, 15), PARAMS | dict(backbone='item-knn')).model(Given()).state_dict() for i in (item, changed))
    assert all(np.array_equal(one[k], other[k]) for k in one)
    fewer = Simple(named(user, item, split, 15), PARAMS | dict(backbone='popularity', hold_back=2))
    assert len(fewer.train[0]) == len(user) - 2*30 - 2*30


def test_the_last_item_is_the_last_before_the_event():
    "The test event is ranked from the validation event."
    data = named(np.repeat(np.arange(4), 4), np.array([0, 1, 2, 3, 2, 3, 0, 1, 2, 4, 0, 1, 1, 4, 3, 0]), np.tile([0, 0, 1, 2], 4), 5)
    task = Simple(data, PARAMS | dict(backbone='last-item'))
    model = task.model(Given())
    counts = co_occurrence(*task.train, 5).toarray()
    for name, offset in (('valid', 1), ('test', 2)):
        held = task.parts[name]
        for i, row in enumerate(held.row):
            last = task.dataset.codes()[1][row - 1]
            assert row % 4 == offset + 1 and np.allclose(model(held, i, i + 1)[0].round(3), counts[last]*(np.arange(5) != last), atol=1e-6)


def test_a_model_is_restored_from_its_buffers():
    task = Simple(named(*log(), 15), PARAMS | dict(backbone='item-knn'))
    model, other = task.model(Given()), task.model(Given())
    for b in other.buffers(): b.zero_()
    other.load_state_dict(model.state_dict())
    assert task.results(other)['per_user'].equals(task.results(model)['per_user']) and not list(model.parameters())


def test_nothing_is_shown_that_was_seen_and_lists_are_full():
    user, item, split = log(items=12)
    task = Simple(named(user, item, split, 12), PARAMS | dict(backbone='popularity'))
    counts = task.results(task.model(Given()))['exposure'].set_index('item')['count']
    assert counts.sum() == 30*4
    with pytest.raises(ValueError, match='list_size=13'): Simple(named(user, item, split, 12), PARAMS | dict(backbone='popularity', list_size=13)).results(task.model(Given()))


@pytest.mark.parametrize('changes, said', [(dict(fusion='concat'), 'uses no vectors'), (dict(user_fusion='add'), 'user_fusion=id')])
def test_what_has_no_effect_is_refused(changes, said):
    with pytest.raises(ValueError, match=said): Simple(named(*log(), 15), PARAMS | dict(backbone='item-knn') | changes)


# rates

RATES = dict(backbone='rates', fusion='id', user_fusion='id', positive_above=.5, click_negatives=0, hold_back=0)


def labelled(users=60, items=25, length=30, seed=0, spread=1.):
    "Labels from users and items that say yes more or less often, and what it was drawn with."
    rng = np.random.default_rng(seed)
    user, item = np.repeat(np.arange(users), length), rng.integers(0, items, users*length)
    truth = -.5 + spread*rng.normal(size=users)[user] + spread*rng.normal(size=items)[item]
    data = named(user, item, np.tile([0]*(length - 10) + [1]*5 + [2]*5, users), items)
    data.events['value'] = (rng.random(len(user)) < 1/(1 + np.exp(-truth))).astype(float)
    data.card['has_values'] = True
    return data, truth


@pytest.mark.parametrize('prior', [.5, 4.])
def test_odds_are_those_of_a_general_optimiser(prior):
    from scipy.optimize import minimize
    rng = np.random.default_rng(1)
    user, item, label = rng.integers(0, 9, 400), rng.integers(0, 5, 400), (rng.random(400) < .3).astype(float)
    label[user == 3] = 0   # somebody who never says yes
    def loss(x):
        z = x[0] + x[1:11][user] + x[11:][item]
        return (np.logaddexp(0, z) - label*z).sum() + prior/2*(x[1:]**2).sum()
    best = minimize(loss, np.zeros(16), method='L-BFGS-B', options=dict(ftol=1e-14, gtol=1e-9)).x
    base, a, b = fit_odds((user, item), label, (10, 5), prior)
    assert np.allclose(np.r_[base, a, b], best, atol=.002) and a[9] == 0


def test_rates_are_calibrated_and_near_the_truth():
    data, truth = labelled(users=200, length=60)
    task = Rates(data, RATES)
    model = task.model(Given())
    label = task.made.label
    assert abs(task.scores(model, 'train').mean() - label[task.parts['train']].mean()) < .002
    part = task.parts['test']
    assert auc(label[part], task.scores(model, 'test')) > auc(label[part], truth[part]) - .02
    high = task.scores(model, 'test') > .5
    assert abs(label[part][high].mean() - task.scores(model, 'test')[high].mean()) < .05


def test_the_prior_is_chosen_on_validation_and_nothing_is_learned_from_later():
    data, _ = labelled(spread=.2)
    task = Rates(data, RATES)
    train = task.parts['train']
    losses = [task.log_loss(Odds(*fit_odds((task.made.user[train], task.made.item[train]), task.made.label[train], (60, 25), prior))) for prior in PRIORS]
    assert task.log_loss(task.model(Given())) == min(losses) < losses[0]   # where people differ little, they are drawn to the average
    other, _ = labelled(spread=.2)
    other.events.loc[other.events.split == 'test', 'value'] = 1 - other.events.value
    assert all(np.array_equal(a, b) for a, b in zip(task.model(Given()).state_dict().values(), Rates(other, RATES).model(Given()).state_dict().values()))


def test_rates_of_purchases_know_what_is_popular():
    rng = np.random.default_rng(0)
    item = np.concatenate([rng.choice(40, 12, replace=False, p=np.arange(1, 41)/820) for _ in range(100)])
    task = Rates(named(np.repeat(np.arange(100), 12), item, np.tile([0]*8 + [1]*2 + [2]*2, 100), 40), RATES | dict(click_negatives=1))
    table = task.results(task.model(Given()))['per_user']
    assert list(table) == ['user', 'item', 'split', 'label', 'probability', 'drawn'] and (table.drawn == (table.label == 0)).all()
    assert task.validate(task.model(Given())) > .65


@pytest.mark.parametrize('changes, said', [(dict(fusion='concat'), 'uses no vectors'), (dict(user_fusion='add'), 'user_fusion=id'), (dict(hold_back=1), 'use hold_back=0')])
def test_what_has_no_effect_on_rates_is_refused(changes, said):
    with pytest.raises(ValueError, match=said): Rates(labelled()[0], RATES | changes)
