"Texts and answers that were written elsewhere: odd files, wrong columns, ids that do not resolve, and the real ones."
import json
from types import SimpleNamespace
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from pydantic import BaseModel, Field
from recx.text.imports import as_text, columns_of, import_answers, import_digest, import_file, imported, imported_users, read_import, resolve_import

BASE = dict(max_tokens=128, tokenizer='minilm')


def people_and_things(items, users=()):
    return SimpleNamespace(items=pd.DataFrame(dict(item=[str(i) for i in items])), users=pd.DataFrame(dict(user=[str(u) for u in users])))


def table(path, rows):
    frame = pd.DataFrame(rows)
    if path.suffix == '.parquet': frame.to_parquet(path)
    elif path.suffix == '.jsonl': path.write_text('\n'.join(json.dumps(r) for r in rows))
    else: frame.to_csv(path, index=False, sep='\t' if path.suffix == '.tsv' else ',')
    return path


ROWS = [dict(item=7, text='Ein Film über Zürich 🎬'), dict(item=8, text='פילם, "quoted"\nand broken'), dict(item=9, text='third')]


@pytest.mark.parametrize('ending', ['.jsonl', '.csv', '.tsv', '.parquet'])
def test_the_three_formats_say_the_same(tmp_path, ending):
    path = table(tmp_path/f'a{ending}', ROWS)
    rows = imported(people_and_things([8, 7, 6]), BASE | dict(import_path=str(path), import_columns={}))
    assert rows.text.tolist() == ['פילם, "quoted" and broken', 'Ein Film über Zürich 🎬', '']
    assert rows.attrs['import'] | dict(file='') == dict(file='', rows=3, resolved=2, wanted=3, unknown=1, unknown_ids=['9'], repeated=0, refused=[], refused_rows=0, coverage=2/3)
    assert rows.source.unique().tolist() == ['imported'] and str(tmp_path) not in rows.to_json() + json.dumps(rows.attrs)


@pytest.mark.parametrize('content, words', [
    (b'\xff\xfe\x00', 'UTF-8'), (b'{"item": 1, "text": "a"}\n{"item": 2', 'line 2'), (b'"text"', 'a str'), (b'', 'not one row'), (b'[' * 100_000, 'line 1'), (b'\n\n', 'not one row')])
def test_damaged_lines_are_named(tmp_path, content, words):
    path = tmp_path/'broken.jsonl'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught: read_import(path)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize('ending, content', [('.parquet', b'PAR1 no'), ('.csv', b'a,b\n1,2,3,4\n"'), ('.csv', b'id,text\n1,caf\xe9\n')])
def test_damaged_tables_are_named(tmp_path, ending, content):
    path = tmp_path/f'broken{ending}'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f'broken{ending}') as caught: read_import(path)
    assert str(tmp_path) not in str(caught.value)


def test_missing_file_and_empty_path_show_no_folder(tmp_path):
    with pytest.raises(ValueError, match="no file 'gone.csv'") as caught: import_file(str(tmp_path/'gone.csv'))
    assert str(tmp_path) not in str(caught.value)
    for path in ('', '  '):
        with pytest.raises(ValueError, match='import_path'): import_file(path)


def test_relative_paths_are_found_among_raw_data(tmp_path, monkeypatch):
    monkeypatch.setenv('RECX_DATA', str(tmp_path))
    (tmp_path/'set').mkdir()
    path = table(tmp_path/'set'/'texts.csv', ROWS)
    assert import_file('set/texts.csv') == path
    params = dict(describe='imported', describe_users='', import_path='set/texts.csv', import_columns={})
    before = import_digest(params)
    table(path, ROWS[:2])
    assert list(before) == ['import_items'] and len(before['import_items']) == 64 and import_digest(params) != before


@pytest.mark.parametrize('columns, kind, words', [
    (dict(id='movie', text='summary'), 'item', "did you mean 'movie_id'"), (dict(id='movie_id', text='sumary'), 'item', "did you mean 'summary'"),
    (dict(id='user_id', text='summary'), 'item', 'another kind'), (dict(id='movie_id', text='summary'), 'user', 'another kind'), (dict(idd='movie_id'), 'item', 'unknown key'),
    (dict(text='summary'), 'item', 'the file has movie_id'), (dict(id='movie_id'), 'item', 'the text of the items'), (dict(id=3, text='summary'), 'item', 'name of one column')])
def test_wrong_columns_name_the_nearest(columns, kind, words):
    with pytest.raises(ValueError, match=words): columns_of(dict(import_columns=columns), kind, ['movie_id', 'user_id', 'summary'])


def test_items_and_users_with_the_same_ids_keep_their_own_texts(tmp_path):
    path = table(tmp_path/'pairs.parquet', [dict(uid=u, iid=i, u=f'user {u}', i=f'item {i}') for u in (1, 2) for i in (1, 2)])
    params = BASE | dict(import_path=str(path), import_columns=dict(id='iid', text='i', user_id='uid', user_text='u'))
    data = people_and_things([1, 2, 3], [1, 2, 3])
    items, users = imported(data, params), imported_users(data, params)
    assert (items.text.tolist(), users.text.tolist()) == (['item 1', 'item 2', ''], ['user 1', 'user 2', ''])
    assert (set(items.kind), set(users.kind)) == ({'item'}, {'user'}) and users.cutoff.tolist() == ['unknown', 'unknown', '']
    assert items.attrs['import']['repeated'] == 2


def resolved(rows, ids=('1', '2')): return resolve_import(pd.DataFrame(rows), dict(id='id', text='text'), ids, 'f')


def test_missing_and_odd_ids():
    with pytest.raises(ValueError, match='1 ids are missing'): resolved([dict(id=1., text='a'), dict(id=np.nan, text='b')])
    with pytest.raises(ValueError, match='lists or mappings'): resolved([dict(id=[1], text='a')])
    with pytest.raises(ValueError, match='no id of f'): resolved([dict(id='x', text='a')])
    with pytest.raises(ValueError, match='no usable row'): resolved([dict(id='1', text='')])
    assert resolved([dict(id=1., text='a'), dict(id=2., text='b')])[0].text.to_dict() == {'1': 'a', '2': 'b'}
    assert resolved([dict(id=1, text='a'), dict(id='1', text='a')])[1].repeated == 1


def test_contradictions_are_refused_and_unusable_texts_named():
    with pytest.raises(ValueError, match='several different texts'): resolved([dict(id=1, text='a'), dict(id=1, text='b')])
    found, report = resolved([dict(id=1, text='a'), dict(id=1, text=None), dict(id=2, text='\x00\x01 '), dict(id=2, text='x'*1_000_001), dict(id=2, text='nan')])
    assert found.text.to_dict() == {'1': 'a'} and [r[0] for r in report.refused] == [2, 3, 4, 5] and report.refused_rows == 4


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.recursive(st.none() | st.floats() | st.text(max_size=20), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6))
def test_any_cell_becomes_one_storable_line(value):
    text = as_text(value)
    text.encode('utf-8')
    assert text == ' '.join(text.split())


class Taste(BaseModel):
    taste: str = Field(min_length=1)
    score: float = Field(ge=0, le=1)


def test_structured_answers_pass_the_same_check_as_replies():
    good = dict(taste='crime', score=.5)
    rows = pd.DataFrame(dict(id=[1, 2, 3, 4, 5, 6], text=[json.dumps(good), good, '{"taste": "x", "score": NaN}', dict(taste='', score=2), None, 'x'*1_000_001], who=['gpt']*6))
    found, refused = import_answers(rows, dict(id='id', text='text', model='who'), Taste)
    assert {i: (a.values, a.source, a.model) for i, a in found.items()} == {i: (good, 'import', 'gpt') for i in ('1', '2')}
    assert refused.id.tolist() == ['3', '4', '5', '6'] and refused.reason.str.len().min() > 0 and refused.raw.str.len().max() <= 1000
    with pytest.raises(ValueError, match='several different answers'): import_answers(pd.DataFrame(dict(id=[1, 1], text=[good, good | dict(score=.6)])), dict(id='id', text='text'), Taste)


def real(folder, *names):
    path = folder.joinpath(*names)
    if not path.is_file(): pytest.skip(f'{path.name} is not at hand')
    return path


def test_film_summaries_load_for_two_releases(real_data):
    path = real(real_data, 'llm_knowledge_ml1m_agent4rec', 'movie_summaries.parquet')
    params = BASE | dict(import_path=str(path), import_columns=dict(id='movie_id', text='summary'))
    ml1m = pd.read_parquet(real(real_data, 'movielens_1m', 'movies.parquet')).movie_id
    small = pd.read_csv(real(real_data, 'movielens_latest_small', 'movies.csv.gz')).movieId
    full, part = imported(people_and_things(ml1m), params), imported(people_and_things(small), params)
    assert full.attrs['import']['coverage'] == 1 and full.attrs['import']['unknown'] == 0 and (full.text.str.len() > 40).all()
    assert part.attrs['import']['resolved'] == small.isin(pd.read_parquet(path).movie_id).sum() == (part.text != '').sum()


def test_user_personas_load_with_their_lists(real_data):
    path = real(real_data, 'llm_knowledge_ml1m_agent4rec', 'user_personas.parquet')
    ids = pd.read_parquet(path).user_id
    params = BASE | dict(max_tokens=256, import_path='', import_columns=dict(user_path=str(path), user_text='taste'))
    rows = imported_users(people_and_things([1], ids), params)
    assert rows.attrs['import']['coverage'] == 1 and (rows.text != '').all() and not rows.text.str.contains('[', regex=False).any()
    with pytest.raises(ValueError, match='another kind'): imported(people_and_things(ids), BASE | dict(import_path=str(path), import_columns=dict(id='user_id', text='taste')))


@pytest.mark.parametrize('name', ['amazon_books', 'google_reviews', 'yelp'])
def test_profiles_of_pairs_load_and_texts_of_pairs_do_not(real_data, name):
    path = real(real_data, 'llm_profiles_xrec', name, 'profiles.parquet')
    pairs = pd.read_parquet(path)
    data = people_and_things(pairs.iid.unique(), pairs.uid.unique())
    params = BASE | dict(import_path=str(path), import_columns=dict(id='iid', text='item_summary', user_id='uid', user_text='user_summary'))
    for rows in (imported(data, params), imported_users(data, params)): assert rows.attrs['import']['coverage'] == 1 and rows.attrs['import']['repeated'] == len(pairs) - len(rows)
    with pytest.raises(ValueError, match='several different texts'): imported(data, params | dict(import_columns=dict(id='iid', text='explanation')))
