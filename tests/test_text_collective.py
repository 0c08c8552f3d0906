"REKI's collective extraction: budgets, sharing, and newcomers without a call."
import numpy as np
import pandas as pd
import pytest
from recx.data.dataset import Dataset
from recx.text import collective as module
from recx.text.answers import Answer, Decoding
from recx.text.clusters import planted
from recx.text.collective import BUDGETS, budgets, clusters_for, collective, collective_users, group_prompt, incremental, item_vectors, spread, user_vectors
from recx.text.knowledge import FACTORS, facts, facts_requests, reasoning_users

PARAMS = dict(text_columns='', domain='product', history_length=20, max_tokens=128, tokenizer='minilm', embed_model='minilm', cluster_by='kmeans', cluster_share=.1, cluster_seed=0)
VECTORS, THEMES, _ = planted(60, 4, 1, 16, noise=.3)


@pytest.fixture
def shop(monkeypatch):
    "Sixty things of four kinds, with planted vectors in place of the encoder's, one thing without a word, and people who keep to one kind."
    place = {f'title: thing {i} of kind {t}': v for i, (t, v) in enumerate(zip(THEMES, VECTORS))}
    monkeypatch.setattr(module, 'embed_catalogue', lambda texts, model: np.stack([place.get(t, np.ones(16, np.float32)/4) for t in texts]))
    items = pd.DataFrame(dict(item=[f'i{i}' for i in range(60)] + ['mute'], title=[f'thing {i} of kind {t}' for i, t in enumerate(THEMES)] + ['']))
    rng = np.random.default_rng(0)
    events = pd.DataFrame([(f'u{u:02d}', f'i{i}', 1000*u + n, 1., 'train' if n < 4 else 'test') for u in range(20) for n, i in enumerate(rng.permutation(np.flatnonzero(THEMES == u % 4))[:5])], columns=['user', 'item', 'time', 'value', 'split'])
    return Dataset(items, pd.DataFrame(dict(user=[*events.user.unique(), 'idle'])), events, dict(name='shop', text_columns=['title'], time_kind='position'))


class Model:
    "Answers everything once, remembers it by its key, and counts."
    def __init__(self): self.known, self.calls, self.asked = {}, 0, []
    def __call__(self, requests, tier):
        for r in requests:
            key = r.key('stub', Decoding())
            if key not in self.known: self.calls, self.known[key] = self.calls + 1, Answer({f: f'answer {self.calls} for {f}' for f in r.prompt.schema.model_fields}, generated_at='2024-05-01T12:00:00+00:00')
        self.asked += requests
        return {(r.kind, r.id, r.layer): self.known[r.key('stub', Decoding())] for r in requests}


@pytest.mark.parametrize('share', BUDGETS)
@pytest.mark.parametrize('how', ['kmeans', 'hdbscan', 'streakhc'])
def test_budget_is_kept(shop, how, share):
    model = Model()
    texts = collective(shop, PARAMS | dict(cluster_by=how, cluster_share=share), model)
    assert 1 <= model.calls <= clusters_for(share, 61) and len({r.id for r in model.asked}) == len(model.asked)
    assert texts.id.tolist() == shop.items.item.tolist() and (texts.text[:60] != '').all() and texts.text[60] == ''
    assert all(t.endswith(f'title: thing {i} of kind {THEMES[i]}') for i, t in enumerate(texts.text[:60]))


@pytest.mark.parametrize('how', ['kmeans', 'hdbscan', 'streakhc'])
def test_whole_budget_is_individual_extraction(shop, how):
    model = Model()
    one = facts(shop, PARAMS, model)
    calls = model.calls
    shared = collective(shop, PARAMS | dict(cluster_by=how, cluster_share=1.), model)
    assert model.calls == calls == 60 and model.asked[:60] == model.asked[60:]
    pd.testing.assert_frame_equal(one.drop(columns='source'), shared.drop(columns='source'))


def test_groups_share_what_alike_items_are_told(shop):
    texts = collective(shop, PARAMS | dict(cluster_share=4/61), Model())
    assert (texts.text[:60].str.slice(0, 30).groupby(THEMES).nunique() == 1).all() and texts.text[:60].str.slice(0, 30).nunique() == 4


def test_single_members_reuse_individual_answers(shop):
    model = Model()
    facts(shop, PARAMS, model)
    before = model.calls
    collective(shop, PARAMS | dict(cluster_share=.9), model)
    assert model.calls - before == sum(r.kind == 'cluster' for r in model.asked) < 12


def test_quarantined_groups_stay_empty(shop):
    model = Model()
    def refuses(requests, tier): return dict(list(model(requests, tier).items())[1:])
    texts = collective(shop, PARAMS | dict(cluster_share=4/61), refuses)
    silent = texts[:60].groupby(THEMES).text.apply(lambda t: (t == '').all())
    assert silent.sum() == 1 and (texts.generated_at == '').sum() == (texts.text == '').sum()


def test_users(shop):
    model = Model()
    texts = collective_users(shop, PARAMS | dict(cluster_share=4/21), model)
    assert model.calls == 4 and texts.id.tolist() == shop.users.user.tolist() and texts.text[20] == '' and texts.cutoff[20] == ''
    kinds = np.arange(20) % 4
    assert (texts.text[:20].str.slice(0, 30).groupby(kinds).nunique() == 1).all()
    assert texts.cutoff[:20].astype(int).groupby(kinds).agg(['min', 'max']).to_numpy().tolist() == [[(16 + k)*1000 + 3]*2 for k in range(4)] # the latest of the group
    held_out = shop.events[shop.events.split == 'test'].set_index('user').item.map(shop.items.set_index('item').title)
    assert not any(held_out[u] in texts.text[i] for i, u in enumerate(shop.users.user[:20]))
    alone = reasoning_users(shop, PARAMS, model)
    pd.testing.assert_frame_equal(collective_users(shop, PARAMS | dict(cluster_share=1.), model).drop(columns='source'), alone.drop(columns='source'))


def test_user_vectors_read_training_only(shop):
    vectors = item_vectors(shop, PARAMS)
    first = user_vectors(shop, vectors, ['u00', 'u05'])
    met = shop.events[(shop.events.user == 'u05') & (shop.events.split == 'train')].item
    mean = vectors[[int(i[1:]) for i in met]].mean(0)
    assert np.allclose(first[1], mean/np.linalg.norm(mean), atol=1e-6)


def test_nobody_trained(shop):
    shop.events['split'] = 'test'
    model = Model()
    assert (collective_users(shop, PARAMS, model).text == '').all() and model.calls == 0


@pytest.mark.parametrize('how', ['kmeans', 'hdbscan', 'streakhc'])
def test_newcomers_cost_no_call(shop, how, monkeypatch):
    model, params = Model(), PARAMS | dict(cluster_by=how, cluster_share=4/61)
    texts = collective(shop, params, model)
    before, old = model.calls, module.embed_catalogue
    monkeypatch.setattr(module, 'embed_catalogue', lambda texts, m: np.stack([VECTORS[int(t.split()[-1])] if 'new' in t else old([t], m)[0] for t in texts]))
    arrivals = pd.DataFrame(dict(item=['n1', 'n2', 'n3'], title=['new like 3', 'new like 17', '']))
    new, joined = incremental(shop, arrivals, params, model)
    assert model.calls == before and new.id.tolist() == ['n1', 'n2', 'n3'] and new.text[2] == '' and joined.id.tolist() == ['n1', 'n2']
    assert [new.text[i][:30] for i in (0, 1)] == [texts.text[i][:30] for i in (3, 17)]
    assert (joined.cosine > .5).all()
    pd.testing.assert_frame_equal(incremental(shop, arrivals.iloc[[1]], params, model)[1].reset_index(drop=True), joined.iloc[[1]].reset_index(drop=True)) # whoever else arrives


def test_bad_budgets(shop):
    for share in (0., -1., 1.1, float('nan')):
        with pytest.raises(ValueError, match='cluster_share'): collective(shop, PARAMS | dict(cluster_share=share), Model())
    with pytest.raises(ValueError, match='cluster_by'): collective(shop, PARAMS | dict(cluster_by='dbscan'), Model())
    with pytest.raises(ValueError, match='already'): incremental(shop, shop.items.iloc[:1], PARAMS, Model())


def test_group_prompts():
    for scenario in FACTORS:
        item, user = group_prompt(scenario, 'item'), group_prompt(scenario, 'user')
        assert item.digest != user.digest and all(f'{name} (' in item.system and f'{name} (' in user.system for name in FACTORS[scenario])
        assert item.places == user.places == dict(typical=True, others=True)


def test_spread_reaches_from_near_to_far():
    line = np.stack([np.cos(np.linspace(0, 1, 50)), np.sin(np.linspace(0, 1, 50))], axis=1)
    assert spread(line, 0, 3).tolist() == [1, 25, 49]
    assert spread(line[:2], 1, 3).tolist() == [0]


def test_table_of_budgets():
    table = budgets(VECTORS, 'streakhc')
    assert table.index.tolist() == list(BUDGETS) and (table.clusters.diff().dropna() > 0).all() and table.saved.iloc[-1] == 0
