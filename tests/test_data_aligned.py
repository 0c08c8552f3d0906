"One declaration for clothes and for songs: columns by their role, and what the log of each allows."
from types import SimpleNamespace
import numpy as np
import pandas as pd
import pytest
from recx.data import stage
from recx.data.aligned import ALIGNED, SIDES, columns_asked, protocol_of
from recx.data.dataset import Dataset
from recx.data.parameters import declared
from recx.recommend.instances import field_columns
from recx.run.engine import ensure
from recx.run.stages import chain, stage_parameters
from recx.text.flatten import declared_columns

SMALL = dict(sim_users=60, sim_items=60, sim_events=1500)
ROLES = dict(text_columns='title,category,maker', click_fields='category,maker,age,membership')


@pytest.fixture(scope='module')
def twins(tmp_path_factory):
    folder = tmp_path_factory.mktemp('twins')
    return {name: Dataset.load(stage.small(folder/name, dataset=name, **SMALL, **{p: v for p, v in protocol_of(name).items() if p in declared(vars(stage))})) for name in ('sim-fashion', 'sim-music')}


def test_a_role_is_the_column_of_the_domain(twins):
    assert [declared_columns(d, ROLES['text_columns']) for d in twins.values()] == [['title', 'product_type_name', 'department_name'], ['title', 'genre_ids', 'artist_name']]
    fields = [field_columns(d, ROLES['click_fields']) for d in twins.values()]
    assert [(set(items), set(users)) for items, users in fields] == [({'product_type_name', 'department_name'}, {'age', 'club_member_status'}), ({'genre_ids', 'artist_name'}, {'age', 'registered_via'})]


def test_a_column_of_that_very_name_comes_first(twins):
    data = twins['sim-music']
    own = SimpleNamespace(items=data.items.assign(category='x'), users=data.users, card=data.card)
    assert declared_columns(own, 'category') == ['category'] and field_columns(own, 'category')[0] == ['category']
    assert declared_columns(SimpleNamespace(items=pd.DataFrame(dict(item=['1'], genres=['x'])), card={}), 'genres') == ['genres']


@pytest.mark.parametrize('ask', [lambda d, name: declared_columns(d, name), lambda d, name: field_columns(d, name)])
def test_what_is_neither_is_refused_with_both_lists(twins, ask):
    for name, said in dict(categry="did you mean 'category'", description='music has no column for this role', channel='music has no column for this role').items():
        with pytest.raises(ValueError, match=f"unknown column in (text_columns|click_fields) '{name}'.*{said}.*the columns .*genre_ids.*and the roles category \\(genre_ids\\), maker \\(artist_name\\)"): ask(twins['sim-music'], name)
    for name in ('item', 'user', 'value'):   # ids and answers are no attributes
        with pytest.raises(ValueError, match=f"unknown column in .* '{name}'"): ask(twins['sim-fashion'], name)


def test_a_role_and_its_column_are_one_column(twins):
    with pytest.raises(ValueError, match='product_type_name. is named twice'): declared_columns(twins['sim-fashion'], 'category,product_type_name')


def test_other_data_sets_have_no_roles():
    with pytest.raises(ValueError, match="unknown column in text_columns 'maker'; there are the columns genres, title$"): columns_asked(['maker'], ['title', 'genres'], {}, 'text_columns')


@pytest.mark.parametrize('name', ['hm', 'sim-fashion', 'kkbox', 'sim-music', 'xrec:yelp', 'toy', 'ml-1m', 'amazon-2018:Beauty'])
@pytest.mark.parametrize('clicks', [False, True])
def test_a_protocol_passes_the_checks_of_its_data_set(name, clicks):
    stage.check(declared(vars(stage)) | dict(dataset=name) | {p: v for p, v in protocol_of(name, clicks).items() if p in declared(vars(stage))})


def test_what_is_not_of_these_domains_has_the_defaults_of_the_stages():
    defaults = {name: value for params in stage_parameters().values() for name, value in params.items()}
    assert all(defaults[name] == value for name, value in protocol_of('ml-1m').items())
    protocol_of('hm')['split_by'] = 'ratio'
    assert protocol_of('hm')['split_by'] == 'week' and '12' in protocol_of('hm')['cutoffs'].split(',')


@pytest.mark.parametrize('backbone', ['mf', 'fm'])
def test_one_declaration_runs_on_both_twins(store, backbone):
    one = SMALL | ROLES | dict(backbone=backbone, fusion='concat', adapter='linear', embedding_size=8, epochs=1, max_tokens=32)
    scores = {}
    for dataset in ('sim-fashion', 'sim-music'):
        folder = ensure(chain(one | dict(dataset=dataset) | {p: v for p, v in protocol_of(dataset, backbone == 'fm').items() if p != 'cutoffs'}), 'inline')
        scores[dataset] = len(pd.read_parquet(next(folder.glob('*.parquet'))))
    assert all(scores.values())
