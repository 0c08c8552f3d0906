"Click instances that know nothing of the future, and networks that learn what there is to learn, whichever way vectors come in."
import copy
import json
import warnings
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given as drawn, settings, strategies as st
from safetensors.torch import load_file, save_file
from recx.data.dataset import Col, Dataset
from recx.data.parameters import declared
from recx.data.stage import small as small_data
from recx.recommend import stage
from recx.recommend.clicks import CLICK_FUSIONS, Clicks, NETWORKS, probabilities
from recx.recommend.given import Given
from recx.recommend.instances import FIRST, MISSING, UNSEEN, auc, draw_pairs, field_codes, field_columns, make_instances, threshold, with_unmet
from recx.recommend.simple import Rates
from recx.recommend.stage import load_model, small as small_recommend
from recx.recommend.train import train

PARAMS = dict(backbone='deepfm', fusion='id', user_fusion='id', adapter='linear', adapter_hidden=8, adapter_gain=1., experts=3, expert_top_k=0, gate_noise=0., shared_experts=2, own_experts=2, final_relu=False, user_gate=False, null_size=4, embedding_size=8, dropout=.1,
              deep='24,12', cross_layers=2, attention_layers=1, heads=2, click_history=4, click_fields='auto', positive_above=0., click_negatives=0, hold_back=0, align_weight=.1, align_temperature=.2, align_mask=.1)
SETTINGS = dict(batch_size=128, gate_balance=.01, learning_rate=.01, weight_decay=1e-4, epochs=20, patience=4, validate_every=1, seed=0)
USERS, ITEMS = 60, 40


def board(length=20, seed=0):
    "Even people like even films, odd people odd ones; no pair is met twice."
    rng = np.random.default_rng(seed)
    film, person = np.concatenate([rng.permutation(ITEMS)[:length] for _ in range(USERS)]), np.repeat(np.arange(USERS), length)
    events = pd.DataFrame({Col.USER: [f'u{u}' for u in person], Col.ITEM: [f'i{i}' for i in film], Col.TIME: np.tile(np.arange(length), USERS), Col.VALUE: np.where(film % 2 == person % 2, 5., 2.), Col.SPLIT: np.tile(['train']*(length - 6) + ['valid']*3 + ['test']*3, USERS)})
    return Dataset(pd.DataFrame({Col.ITEM: [f'i{i}' for i in range(ITEMS)], 'shelf': [f's{i % 5}' for i in range(ITEMS)]}), pd.DataFrame({Col.USER: [f'u{u}' for u in range(USERS)]}), events, dict(name='ml-board', has_values=True))


def colours(n, seed, noise=.3):
    "Vectors that tell even from odd."
    rng = np.random.default_rng(seed)
    return (np.eye(2)[np.arange(n) % 2] @ np.random.default_rng(9).normal(size=(2, 8)) + noise*rng.normal(size=(n, 8))).astype(np.float32)


def both_sides(): return Given(colours(ITEMS, 1), colours(USERS, 2), {'': slice(0, 8)}, {'': slice(0, 8)})


def fitted(data=None, given=None, changes=None, **trained):
    task = Clicks(data or board(), PARAMS | (changes or {}))
    torch.manual_seed(0)
    model = task.model(given or Given())
    return task, model, *train(model, task, SETTINGS | trained)


def test_auc(task, model):
    part = task.results(model)['per_user'].query('split == "test"')
    return auc(part.label.to_numpy(), part.probability.to_numpy())


test_auc.__test__ = False


# instances

@st.composite
def logs(draw):
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    n = sum(lengths)
    some = lambda low, high: np.array(draw(st.lists(st.integers(low, high), min_size=n, max_size=n)))
    user = np.repeat(np.arange(len(lengths)), lengths)
    time = np.concatenate([np.sort(part) for part in np.split(some(0, 5), np.cumsum(lengths)[:-1])])
    return user, some(0, 7), some(0, 2), time, some(0, 1)


@settings(max_examples=60, deadline=None)
@drawn(logs(), st.integers(1, 5))
def test_histories_against_a_loop(log, longest):
    user, item, split, time, label = log
    got = make_instances(*log).history(np.arange(len(user)), longest)
    for i in range(len(user)):
        before = [item[j] for j in range(len(user)) if user[j] == user[i] and time[j] < time[i] and label[j]][-longest:]
        assert list(got[i]) == before + [-1]*(longest - len(before))


@settings(max_examples=60, deadline=None)
@drawn(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=30).filter(lambda x: len({label for label, _ in x}) == 2))
def test_auc_against_all_pairs(rows):
    label, score = (np.array(x, float) for x in zip(*rows))
    pairs = [(a > b) + (a == b)/2 for a in score[label > 0] for b in score[label == 0]]
    assert auc(label, score) == pytest.approx(np.mean(pairs), abs=1e-12)


@settings(max_examples=60, deadline=None)
@drawn(st.lists(st.tuples(st.lists(st.sampled_from('abcdef'), max_size=3), st.booleans()), min_size=1, max_size=20))
def test_codes_say_what_was_in_the_column(rows):
    values, met = [v for v, _ in rows], np.array([m for _, m in rows])
    codes, categories = field_codes(pd.Series(values, dtype=object), met)
    known = {x for v, m in rows if m for x in v}
    assert set(categories) == known
    for row, value in zip(codes, values):
        said = {categories[c - FIRST] for c in row if c >= FIRST}
        assert said == set(value) & known
        if not said: assert row[0] == (MISSING if not value and any(m and not v for v, m in rows) else UNSEEN)


def test_numbers_are_cut_at_training_quantiles():
    "Values that occur only outside of training move no cut."
    price = pd.Series([*np.arange(320.), 1e9, -1e9, np.nan])
    met = np.arange(323) < 320
    codes, bins = field_codes(price, met)
    assert len(bins) == 32 and np.bincount(codes[:320, 0])[FIRST:].tolist() == [10]*32
    assert codes[320, 0] == codes[319, 0] and codes[321, 0] == codes[0, 0] and codes[322, 0] == UNSEEN   # no missing number was met in training
    assert np.array_equal(codes[:320], field_codes(price[:320], met[:320])[0])


def test_fields_are_what_repeats():
    data = board()
    data.items = data.items.assign(title=[f'Film {i}' for i in range(ITEMS)], year=np.arange(ITEMS) % 7, same=1., genres=[['x', 'y'][:1 + i % 2] for i in range(ITEMS)])
    assert field_columns(data) == (['shelf', 'year', 'genres'], [])
    assert field_columns(data, 'title,shelf') == (['shelf', 'title'], [])
    with pytest.raises(ValueError, match="did you mean 'genres'"): field_columns(data, 'genre')


@pytest.mark.parametrize('name,given,above', [('ml-1m', 0., 3.), ('movielens_1m', 0., 3.), ('amazon-2018:Beauty', 0., 4.), ('amazon_beauty_2014', 0., 4.), ('ml-1m', 4., 4.), ('shop', .5, .5)])
def test_thresholds(name, given, above): assert threshold(dict(name=name), np.array([1., 5.]), given) == above


def test_a_name_that_only_sounds_like_a_benchmark_has_no_custom():
    for name in ('html-shop', 'toys'):
        with pytest.raises(ValueError, match='no custom is known'): threshold(dict(name=name), np.array([1., 5.]))
    assert threshold(dict(name='films', display='MovieLens-1M'), np.array([1., 5.])) == 3


def changed(data, **columns): return Dataset(data.items, data.users, data.events.assign(**columns), data.card)


@pytest.mark.parametrize('values,says', [(5., 'no values'), (np.r_[[1.]*600, [2.]*600], 'positive_above=3')])
def test_one_class_is_refused(values, says):
    with pytest.raises(ValueError, match=says): Clicks(changed(board(), value=values), PARAMS)


def test_one_class_on_one_side_is_refused():
    data = board()
    with pytest.raises(ValueError, match='all 180 valid events have label 1'): Clicks(changed(data, value=data.events.value.where(data.events.split != 'valid', 5.)), PARAMS)


def test_data_without_values_are_refused():
    data = board()
    data.card['has_values'] = False
    with pytest.raises(ValueError, match='no values'): Clicks(data, PARAMS)


def purchases():
    "The board's yeses alone, without a label."
    data = board()
    events = data.events[data.events.value == 5].assign(value=1.)
    return Dataset(data.items, data.users, events, dict(name='shop', has_values=False))


def test_purchases_get_unmet_items_as_noes():
    data = purchases()
    made = Clicks(data, PARAMS | dict(click_negatives=1)).made
    user, item, _ = data.codes()
    assert made.label.tolist() == [1, 0]*len(data.events) and np.array_equal(made.user[::2], user) and np.array_equal(made.item[::2], item)
    assert (made.split.reshape(-1, 2) == made.split[::2, None]).all() and (made.stop.reshape(-1, 2) == made.stop[::2, None]).all()
    again = Clicks(data, PARAMS | dict(click_negatives=1)).made
    assert (again.item == made.item).all()


@st.composite
def shops(draw):
    "Who bought what, in parts; the last user, if any, is history only before the held-out parts; few items, so that there is little left to draw."
    lengths = draw(st.lists(st.integers(1, 8), min_size=1, max_size=5))
    n, items = sum(lengths), draw(st.integers(6, 9))
    user = np.repeat(np.arange(len(lengths)), lengths)
    split = np.concatenate([np.sort(part) for part in np.split(np.array(draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))), np.cumsum(lengths)[:-1])])
    if draw(st.booleans()): split = np.where((user == user[-1]) & (split == 0), 3, split)
    return user, np.array(draw(st.lists(st.integers(0, 5), min_size=n, max_size=n))), split, np.arange(n), items, draw(st.integers(1, 4))


@settings(max_examples=200, deadline=None)
@drawn(shops())
def test_noes_know_the_past_and_not_the_future(shop):
    "Training draws what training has met, and avoids its purchases alone; later parts avoid what was bought and drawn up to then; no pair is drawn twice, and as many are drawn as there are."
    user, item, split, _, items, each = shop
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        try: who, shown, side, time, label = with_unmet(*shop)
        except ValueError as e:
            assert 'none can be drawn' in str(e)
            return
    no = label == 0
    assert [x[~no].tolist() for x in (who, shown, side, time)] == [list(x) for x in shop[:4]]
    noes = list(zip(who[no], shown[no]))
    assert len(set(noes)) == len(noes) and not no[side == 3].any()
    assert np.isin(shown[no & (side == 0)], item[split == 0]).all()
    missing = 0
    for part in (0, 1, 2):
        for u in range(user.max() + 1):
            bought = set(item[(user == u) & ((split <= part) | (split == 3))])
            before, here = (set(shown[no & (who == u) & at]) for at in (side < part, side == part))
            free = (set(item[split == 0]) if part == 0 else set(range(items))) - bought - before
            wanted = each*((user == u) & (split == part)).sum()
            assert here <= free and len(here) == min(wanted, len(free))
            missing += wanted - len(here)
    assert len(said) == (missing > 0) and (not missing or f'{missing} of ' in str(said[0].message))


def test_what_is_bought_later_changes_no_training_instance():
    "Else the noes that a user is spared would tell what comes."
    data = purchases()
    user, item, split = data.codes()
    moved = np.where(split > 0, (item + 7) % ITEMS, item)
    one, other = (with_unmet(user, i, split, np.arange(len(user)), ITEMS, 2) for i in (item, moved))
    assert all(np.array_equal(a[one[2] == 0], b[other[2] == 0]) for a, b in zip(one, other))
    later = set(zip(user[split > 0], item[split > 0]))
    assert any(pair in later for pair in zip(one[0][(one[2] == 0) & (one[4] == 0)], one[1][(one[2] == 0) & (one[4] == 0)]))


def test_an_item_of_later_is_no_standing_no():
    "Half of the catalogue is new in the test part: training asks about none of it, the test asks about all of it."
    user, split = np.repeat(np.arange(40), 6), np.tile([0, 0, 0, 0, 1, 2], 40)
    rng = np.random.default_rng(0)
    item = np.where(split == 2, rng.integers(50, 100, 240), rng.integers(0, 50, 240))
    who, shown, side, _, label = with_unmet(user, item, split, np.arange(240), 100, 2)
    assert shown[side == 0].max() < 50 and abs((shown[(side == 2) & (label == 0)] >= 50).mean() - .5) < .15


def test_pairs_are_drawn_evenly_and_to_the_last_one():
    "Among 30 items of which 10 are taken, each of the others comes equally often; and who has one left gets it, however long chance would take."
    who, taken = np.repeat(np.arange(3000), 5), (np.arange(3000)[:, None]*30 + np.arange(10)).ravel()
    counts = np.bincount(draw_pairs(who, np.arange(30), taken, 30, np.random.default_rng(0)), minlength=30)
    assert counts[:10].sum() == 0 and abs(counts[10:] - 750).max() < 5*np.sqrt(750)
    many = 1_000_000
    assert draw_pairs(np.array([0, 0]), np.arange(many), np.delete(np.arange(many), 77_777), many, np.random.default_rng(0)).tolist() == [77_777, -1]


def test_a_model_learns_purchases_from_drawn_noes():
    task, model, *_ = fitted(purchases(), changes=dict(click_negatives=2))
    assert test_auc(task, model) > .8   # a third of the noes are films of the liked kind, not met: no model can have more than about 1 - 1/6
    rows = task.results(model)['per_user']
    assert len(rows) == 3*(purchases().events.split != 'train').sum() and rows.label.mean() == pytest.approx(1/3)


def test_drawn_noes_beside_labels_are_refused():
    with pytest.raises(ValueError, match='click_negatives=2.*values from 2 to 5'): Clicks(board(), PARAMS | dict(click_negatives=2))
    full = purchases()
    full.items = full.items.iloc[[0, 2]]
    full.events = pd.concat([full.events.iloc[[0]].assign(item=i) for i in ('i0', 'i2')]).assign(split='train', time=[0, 1])
    with pytest.raises(ValueError, match='train side have met.*all of the 2 items'): Clicks(full, PARAMS | dict(click_negatives=1))
    with pytest.raises(ValueError, match='click_negatives'): stage.check(declared(vars(stage)) | dict(backbone='fm', fusion='id', click_negatives=101))


def test_nothing_is_held_back_for_a_re_ranker():
    with pytest.raises(ValueError, match='hold_back=2: click models.*use hold_back=0'): Clicks(board(), PARAMS | dict(hold_back=2))


def test_an_event_on_two_sides_is_refused():
    data = board()
    events = data.events.copy()
    last = events.index[events.split == 'train'][13]
    events.loc[last + 1, [Col.ITEM, Col.TIME]] = events.loc[last, [Col.ITEM, Col.TIME]].to_numpy()
    with pytest.raises(ValueError, match="two sides.*on_duplicates='first'"): Clicks(Dataset(data.items, data.users, events, data.card), PARAMS)


def test_an_unknown_custom_asks_for_a_threshold():
    data = board()
    data.card['name'] = 'shop'
    with pytest.raises(ValueError, match='positive_above=0.*from 2 to 5'): Clicks(data, PARAMS)
    assert Clicks(data, PARAMS | dict(positive_above=4.)).above == 4


# nothing of the future

@pytest.mark.parametrize('backbone', ['deepfm', 'dien'])
@pytest.mark.parametrize('side', ['valid', 'test'])
def test_training_does_not_know_the_answers_of_later_sides(side, backbone):
    "Other answers there change no training loss; those of the test side change no validation score either."
    data = board()
    other = changed(data, value=data.events.value.where(data.events.split != side, 7 - data.events.value))
    (*_, a, _), (*_, b, _) = (fitted(d, changes=dict(backbone=backbone), epochs=2) for d in (data, other))
    assert a.loss.tolist() == b.loss.tolist()
    assert (a.valid.tolist() == b.valid.tolist()) == (side == 'test')


def test_best_epoch_is_that_of_validation():
    task, model, curve, _ = fitted()
    assert task.validate(model) == pytest.approx(curve.valid.max(), abs=1e-12)


# all networks

@pytest.fixture(scope='module', params=list(NETWORKS))
def learned(request): return request.param, *fitted(changes=dict(backbone=request.param), epochs=30, patience=30)   # products of small numbers take a while to leave their plateau


def test_the_board_is_learned(learned):
    name, task, model, curve, _ = learned
    assert test_auc(task, model) > .95, name


def test_probabilities_are_probabilities(learned):
    name, task, model, *_ = learned
    table = task.results(model)['per_user']
    assert list(table.columns) == ['user', 'item', 'split', 'label', 'probability'] and table.probability.between(0, 1, inclusive='neither').all() and set(table.label) == {0, 1}
    held = task.dataset.events.query('split != "train"')
    assert len(table) == len(held) and set(zip(table.user, table.item, table.split)) == set(zip(held.user, held.item, held.split))
    truth = held.set_index(['user', 'item']).value.gt(3).astype(int)
    assert (table.label.to_numpy() == truth.loc[list(zip(table.user, table.item))].to_numpy()).all()


def test_blocks_and_modes_do_not_matter(learned):
    name, task, model, *_ = learned
    which = task.parts['test']
    model.train()
    a = probabilities(model, task.made, which, 4)
    assert model.training and np.allclose(a, probabilities(model.eval(), task.made, which, 4, block=7), atol=1e-6)


def test_weights_come_back_from_a_file(learned, tmp_path):
    name, task, model, *_ = learned
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path/'model.safetensors')
    torch.manual_seed(1)
    again = task.model(Given())
    assert not np.array_equal(task.scores(again, 'test'), task.scores(model, 'test'))
    again.load_state_dict(load_file(tmp_path/'model.safetensors'))
    assert np.array_equal(task.scores(again, 'test'), task.scores(model, 'test'))


def test_the_same_seed_gives_the_same_weights(learned):
    name = learned[0]
    (_, a, *_), (_, b, *_), (_, c, *_) = (fitted(changes=dict(backbone=name), epochs=2, seed=s) for s in (0, 0, 1))
    assert all(torch.equal(a.state_dict()[k], b.state_dict()[k]) for k in a.state_dict())
    assert not all(torch.equal(a.state_dict()[k], c.state_dict()[k]) for k in a.state_dict())


@pytest.mark.parametrize('backbone', list(NETWORKS))
def test_cold_items_people_and_values_get_a_probability(backbone):
    "One film, one person and one shelf occur on the test side only."
    data = board()
    held = data.events.split == 'test'
    gone = (data.events.item == 'i7') | (data.events.user == 'u5')
    items = data.items.assign(shelf=data.items.shelf.where(data.items.item != 'i7', 'new'))
    cold = Dataset(items, data.users, data.events[held | ~gone].reset_index(drop=True), data.card)
    task, model, *_ = fitted(cold, changes=dict(backbone=backbone), epochs=2)
    table = task.results(model)['per_user']
    assert (table.item == 'i7').any() and (table.user == 'u5').any() and np.isfinite(table.probability).all()
    shelf = model.item.attributes[0]
    assert shelf.codes[7, 0] == UNSEEN and not shelf.weight[:MISSING].detach().any()   # trained on nothing: says nothing, weight decay or not


@pytest.mark.parametrize('backbone', list(NETWORKS))
def test_gradients_reach_every_weight(backbone):
    task = Clicks(board(), PARAMS | dict(backbone=backbone, fusion='concat', user_fusion='concat', adapter='mlp', dropout=0.))
    model = task.model(both_sides())
    sum(loss for loss, _ in task.losses(model, SETTINGS, np.random.default_rng(0))).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_items_learn_from_being_asked_about_and_from_being_liked():
    "Blocking either way changes the gradient of the ids: both are used."
    task = Clicks(board(), PARAMS | dict(dropout=0.))
    torch.manual_seed(0)
    model = task.model(Given())
    def gradient(history):
        model.zero_grad()
        which = task.parts['train'][-64:]
        model(torch.from_numpy(task.made.user[which]), torch.from_numpy(task.made.item[which]), torch.from_numpy(history(task.made.history(which, 4))))[0].sum().backward()
        return model.item.tables[0].parts[0].weight.grad.clone()
    assert not torch.equal(gradient(lambda h: h), gradient(lambda h: np.full_like(h, -1)))


@pytest.mark.parametrize('backbone,cares', [('deepfm', False), ('din', False), ('dien', True)])
def test_only_dien_reads_the_order_of_a_history(backbone, cares):
    task = Clicks(board(), PARAMS | dict(backbone=backbone))
    torch.manual_seed(0)
    model = task.model(Given()).eval()
    with torch.no_grad():
        for p in model.parameters(): p.add_(torch.randn_like(p)*.2)
        one = torch.tensor([3])
        a, b = (model(one, one, torch.tensor([h]))[0] for h in ([4, 9, 11, -1], [11, 9, 4, -1]))
    assert torch.allclose(a, b, atol=1e-5) != cares


# ways in

@pytest.mark.parametrize('user_fusion', CLICK_FUSIONS)
@pytest.mark.parametrize('fusion', CLICK_FUSIONS)
def test_every_way_in_on_both_sides(fusion, user_fusion):
    task, model, curve, _ = fitted(given=both_sides(), changes=dict(fusion=fusion, user_fusion=user_fusion, adapter='mlp'), epochs=4)
    assert curve.valid.max() > (.5 if fusion == user_fusion == 'id' else .7)
    state = copy.deepcopy(model.state_dict())
    again = task.model(both_sides())
    again.load_state_dict(state)
    assert np.array_equal(task.scores(again, 'test'), task.scores(model, 'test'))


@pytest.mark.parametrize('adapter', ['linear', 'mlp', 'moe', 'hea'])
@pytest.mark.parametrize('sides', [('concat', 'id'), ('id', 'concat'), ('concat', 'concat')])
def test_every_adapter_for_each_side_alone_and_for_both(adapter, sides):
    fusion, user_fusion = sides
    whole = both_sides()
    given = Given(whole.items if fusion != 'id' else None, whole.users if user_fusion != 'id' else None, whole.layers if fusion != 'id' else {}, whole.user_layers if user_fusion != 'id' else {})
    task, model, curve, _ = fitted(given=given, changes=dict(fusion=fusion, user_fusion=user_fusion, adapter=adapter), epochs=3)
    assert [model.item.fields, model.user.fields] == [2 + (fusion != 'id'), 1 + (user_fusion != 'id')]
    found = task.results(model)
    gated = adapter in ('moe', 'hea')
    assert ('gates' in found) == (gated and fusion != 'id') and ('gates_user' in found) == (gated and user_fusion != 'id')
    for name, ids in (('gates', task.dataset.item_ids), ('gates_user', task.dataset.user_ids)):
        if name in found: assert list(found[name].iloc[:, 0]) == list(ids) and np.allclose(found[name].iloc[:, 1:].sum(axis=1), 1, atol=1e-5)


def test_hybrid_experts_are_shared_between_the_sides():
    "One set of shared experts for people and films: what a film teaches, a person's vector is read with."
    task = Clicks(board(), PARAMS | dict(fusion='concat', user_fusion='concat', adapter='hea'))
    counts = {}
    for own in (2, 3): counts[own] = sum(p.numel() for p in Clicks(task.dataset, task.params | dict(own_experts=own)).model(both_sides()).parameters())
    for shared in (3, 4): counts[f'shared {shared}'] = sum(p.numel() for p in Clicks(task.dataset, task.params | dict(shared_experts=shared)).model(both_sides()).parameters())
    gates = 2*(8 + 1)   # a column in the gate of each side, with its bias
    assert counts[3] - counts[2] - gates == 2*(counts['shared 4'] - counts['shared 3'] - gates)   # an own expert exists twice, a shared one once


def test_vectors_help_where_ids_cannot():
    "Films of the test side were never met in training: ids alone guess, vectors know."
    data = board()
    late = data.events.item.isin([f'i{i}' for i in range(30, 40)])
    events = data.events[(data.events.split == 'test') == late].reset_index(drop=True)
    events[Col.SPLIT] = events.groupby('user').cumcount().pipe(lambda c: np.where(late[(data.events.split == 'test') == late], 'test', np.where(c >= 8, 'valid', 'train')))
    cold = Dataset(data.items, data.users, events, data.card)
    plain = dict(click_fields='')
    ids = fitted(cold, changes=plain)
    whole = both_sides()
    texts = fitted(cold, Given(whole.items, None, whole.layers), plain | dict(fusion='replace', adapter='mlp'))
    assert test_auc(*texts[:2]) > .9 > .65 > test_auc(*ids[:2])


def test_layers_are_weighed():
    data, rng = board(), np.random.default_rng(0)
    vectors = np.concatenate([colours(ITEMS, 1), rng.normal(size=(ITEMS, 8)).astype(np.float32)], 1)
    given = Given(vectors, None, {'L1': slice(0, 8), 'L2': slice(8, 16)})
    task, model, curve, _ = fitted(data, given, dict(fusion='concat', adapter='layer-moe'), epochs=6)
    assert list(task.results(model)['gates'].columns) == ['item', 'L1', 'L2'] and curve.valid.max() > .9


# what is refused

@pytest.mark.parametrize('change,says', [(dict(fusion='late'), "fusion='late': use one of id, concat"), (dict(user_fusion='align-con'), "user_fusion='align-con': use one of id, concat"), (dict(fusion='dual-view'), 'use one of id'),
    (dict(backbone='sasrec'), "backbone='sasrec': use one of fm"), (dict(user_gate=True), 'user_gate=False'), (dict(deep='200;80'), "deep='200;80'.*'200,80'"), (dict(click_history=0), 'click_history=0'),
    (dict(backbone='dien', click_history=1), 'click_history=1.*at least 2'), (dict(click_fields='studio'), "unknown column in click_fields 'studio'")])
def test_what_no_model_can_be_made_of(change, says):
    with pytest.raises(ValueError, match=says): Clicks(board(), PARAMS | change)


@pytest.mark.parametrize('fusion', [f for f in CLICK_FUSIONS if f != 'id'])
@pytest.mark.parametrize('side', ['fusion', 'user_fusion'])
def test_vectors_that_do_not_fit_are_refused(side, fusion):
    task = Clicks(board(), PARAMS | {side: fusion})
    name = 'items' if side == 'fusion' else 'users'
    for spoil in (lambda x: np.where(np.arange(len(x))[:, None] == 3, np.nan, x).astype(np.float32), lambda x: x[1:], lambda x: None):
        given = both_sides()
        setattr(given, name, spoil(getattr(given, name)))
        with pytest.raises(ValueError, match='NaN|norm is nan|vector for each|use id'): train(task.model(given), task, SETTINGS | dict(epochs=1))


def test_hybrid_experts_need_one_width():
    task = Clicks(board(), PARAMS | dict(fusion='concat', user_fusion='concat', adapter='hea'))
    with pytest.raises(ValueError, match="adapter='hea'.*different widths"): task.model(Given(colours(ITEMS, 1), np.random.default_rng(0).normal(size=(USERS, 6)).astype(np.float32), {'': slice(0, 8)}, {'': slice(0, 6)}))


# the stage

@pytest.mark.parametrize('backbone,fusion,user_fusion', [('deepfm', 'id', 'id'), ('din', 'concat', 'id')])
def test_the_stage_writes_and_reads_click_models(tmp_path, backbone, fusion, user_fusion):
    "From the data folder to probabilities, and back from the file to the same ones."
    small_data(tmp_path/'data', split_by='time')
    changes = dict(backbone=backbone, fusion=fusion, user_fusion=user_fusion, embedding_size=8, deep='16,8', epochs=2, dropout=.1)
    folder = small_recommend(tmp_path/'arm', **changes)
    table, summary = pd.read_parquet(folder/'per_user.parquet'), json.loads((folder/'summary.json').read_text())
    test = table[table.split == 'test']
    assert summary['criterion'] == 'auc' and summary['test']['auc'] == pytest.approx(auc(test.label.to_numpy(), test.probability.to_numpy())) and summary['test']['logloss'] > 0
    assert not (folder/'exposure.parquet').exists()
    task, model = load_model(folder, Dataset.load(tmp_path/'data'))
    assert np.array_equal(task.scores(model, 'test'), test.probability.to_numpy())


def test_the_stage_names_the_ways_in_that_a_click_model_has():
    params = declared(vars(stage)) | dict(backbone='fibinet')
    with pytest.raises(ValueError, match="fusion='align-con'.*fusion=id, fusion=concat, fusion=replace"): stage.check(params | dict(fusion='align-con'))


# data sets

def test_the_toy_has_something_to_learn(tmp_path):
    data = Dataset.load(small_data(tmp_path/'data', split_by='time'))
    task, model, curve, _ = fitted(data, epochs=8)
    assert task.columns == (['genres', 'director'], ['age_group'])
    assert curve.valid.max() > .6


def test_movielens_100k_beats_the_rates_of_users_and_items(tmp_path, real_data, monkeypatch):
    "Time-ordered by user: DeepFM against the rates of the person and of the film, a strong baseline without any interaction."
    monkeypatch.setenv('RECX_DATA', str(real_data))
    data = Dataset.load(small_data(tmp_path/'data', dataset='ml-100k', split_by='ratio'))
    task, model, *_ = fitted(data, changes=dict(embedding_size=16, deep='64,32', click_history=10), epochs=4, batch_size=1024, learning_rate=.003)
    rates = Rates(data, PARAMS | dict(backbone='rates'))
    assert test_auc(task, model) > test_auc(rates, rates.model(Given())) > .78
