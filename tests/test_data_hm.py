"The files of H&M: every column and every kind of damage, week split against a slow rule, baskets, units, strangers, pictures; the real sample where it is at hand."
import gzip, os, re, zipfile
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from recx.data import columns, sources, stage
from recx.data.card import show
from recx.data.aligned import ALIGNED, SIDES, column_of
from recx.data.dataset import Dataset, Raw
from recx.data.hm import HM_ROWS, read_hm
from recx.data.kkbox import read_kkbox
from recx.data.parameters import declared
from recx.data.prepare import DAY, prepare, split_week
from recx.data.twins import make_fashion, make_music

PARAMS = declared(vars(stage))
WEEKLY = dict(split_by='week', on_duplicates='units', min_history=0)
FIRST = 17_800 # a day


def article(code, product='Vest top', **said): return dict(dict.fromkeys(
    'product_type_no product_group_name graphical_appearance_no graphical_appearance_name colour_group_code colour_group_name perceived_colour_value_id perceived_colour_value_name perceived_colour_master_id perceived_colour_master_name '
    'department_no department_name index_code index_name index_group_no index_group_name section_no section_name garment_group_no garment_group_name'.split(), 'x'), article_id=code, product_code=code[:7].lstrip('0'), prod_name=f'Top {code[-3:]}', product_type_name=product, detail_desc='Jersey top, "soft"\nand light.') | said


def shop(folder, log, articles=('0108775015', '0108775044', '0110065001', '0110065002'), customers=('c1', 'c2', 'c3')):
    "A shop whose log is given as (day, customer, article)."
    folder.mkdir(exist_ok=True)
    pd.DataFrame([article(a) for a in articles]).to_csv(folder/'articles.csv', index=False)
    pd.DataFrame(dict(customer_id=customers, FN=[1., None, None][:len(customers)], Active=[1., None, None][:len(customers)], club_member_status=['ACTIVE', 'PRE-CREATE', None][:len(customers)], fashion_news_frequency=['Regularly', 'NONE', 'None'][:len(customers)], age=[49., None, 25.][:len(customers)], postal_code='52043e')).to_csv(folder/'customers.csv', index=False)
    days = pd.to_datetime([FIRST + d for d, *_ in log], unit='D').strftime('%Y-%m-%d')
    pd.DataFrame(dict(t_dat=days, customer_id=[c for _, c, _ in log], article_id=[a for *_, a in log], price=.0508, sales_channel_id=2)).to_csv(folder/'transactions_train.csv', index=False)
    return folder


A, B, C, D = '0108775015', '0108775044', '0110065001', '0110065002'
LOG = [(0, 'c1', A), (0, 'c1', A), (1, 'c2', B), (3, 'c1', C), (10, 'c1', B), (11, 'c2', A), (12, 'c2', A), (15, 'c3', D), (17, 'c1', D), (20, 'c1', D), (20, 'c1', A)]


def made(folder, place, **changes): return Dataset.load(stage.small(folder, dataset='hm', dataset_path=str(place), **(WEEKLY | changes)))


# What is read ----------------------------------------------------------------------------------------------------------

def test_a_shop_from_files_to_baskets(tmp_path):
    data = made(tmp_path/'data', shop(tmp_path/'shop', LOG))
    rows = [(r.user, r.item, (r.time//DAY) - FIRST, r.value, r.split) for r in data.events.itertuples()]
    assert rows == [('c1', A, 0, 2., 'train'), ('c1', C, 3, 1., 'train'), ('c1', B, 10, 1., 'valid'), ('c1', D, 17, 2., 'test'), ('c1', A, 20, 1., 'test'),
                    ('c2', B, 1, 1., 'train'), ('c2', A, 11, 2., 'valid'), ('c3', D, 15, 1., 'test')]
    assert data.card['baskets'] and data.card['domain'] == 'fashion' and data.card['cold_users'] == 1 and data.card['banner'] == ''
    assert data.users.columns.tolist() == ['user', 'FN', 'Active', 'club_member_status', 'fashion_news_frequency', 'age', 'region'] and data.users.FN.tolist() == [1, 0, 0]
    assert data.users.fashion_news_frequency.tolist() == ['Regularly', 'NONE', 'NONE'] and np.isnan(data.users.age[1])
    assert data.items.description[0] == 'Jersey top, "soft"\nand light.' and data.items.title.tolist() == ['Top 015', 'Top 044', 'Top 001', 'Top 002']
    assert {s['step']: s['dropped'] for s in data.card['steps']}['one event per item and held-out week'] == 2
    assert set(data.card['sha256']) == set(HM_ROWS) and [n for n in data.card['notes'] if 'articles.csv has 4 of the 105,542 rows' in n]


def test_ids_stay_numbers_into_the_tables(tmp_path):
    data = made(tmp_path/'data', shop(tmp_path/'shop', LOG))
    for column, ids in dict(user=data.user_ids, item=data.item_ids, split=['train', 'valid', 'test', 'history']).items():
        assert isinstance(data.events[column].dtype, pd.CategoricalDtype) and list(data.events[column].cat.categories) == list(ids)
        assert (data.events[column].cat.codes.to_numpy() == data.codes()[['user', 'item', 'split'].index(column)]).all()


def test_products_merge_their_articles(tmp_path):
    place = shop(tmp_path/'shop', LOG + [(20, 'c1', '0110065001')])
    data = made(tmp_path/'data', place, item_level='product')
    assert data.items.item.tolist() == ['0108775', '0110065'] and data.items.title.tolist() == ['Top 015', 'Top 001']
    assert data.events[(data.events.user == 'c1') & (data.events.split == 'test')][['item', 'value']].values.tolist() == [['0110065', 3.], ['0108775', 1.]]
    assert any('2 products of 4 articles' in note for note in data.card['notes'])


def test_ids_that_lost_their_zero_are_the_same_articles(tmp_path):
    whole = made(tmp_path/'a', shop(tmp_path/'shop', LOG))
    for name in ('articles.csv', 'transactions_train.csv'):
        text = (tmp_path/'shop'/name).read_text()
        (tmp_path/'shop'/name).write_text(text.replace('0108775', '108775').replace('0110065', '110065'))
    assert made(tmp_path/'b', tmp_path/'shop').events.equals(whole.events)


def test_plain_zip_and_gz_with_marks_and_other_line_ends_are_the_same_data(tmp_path):
    place = shop(tmp_path/'shop', LOG)
    raw = read_hm(place)
    (packed := tmp_path/'packed').mkdir()
    with zipfile.ZipFile(tmp_path/'hm.zip', 'w') as z:
        for name in HM_ROWS:
            text = (place/name).read_bytes()
            (packed/f'{name}.gz').write_bytes(gzip.compress(b'\xef\xbb\xbf' + text.replace(b'\n2', b'\r\n2')))
            z.write(place/name, f'h-and-m/{name}')
    for other in (packed, tmp_path/'hm.zip'):
        again = read_hm(other)
        assert again.events.equals(raw.events) and again.items.equals(raw.items) and again.users.equals(raw.users)


@pytest.mark.parametrize('quoted', [False, True])
@pytest.mark.parametrize('name', HM_ROWS)
def test_a_byte_order_mark_in_a_plain_file_is_no_part_of_a_name(tmp_path, name, quoted):
    raw, path = read_hm(shop(tmp_path/'shop', LOG)), tmp_path/'shop'/name
    first, rest = path.read_text().split('\n', 1)
    path.write_text('\ufeff' + (','.join(f'"{c}"' for c in first.split(',')) if quoted else first) + '\n' + rest, encoding='utf-8')
    again = read_hm(tmp_path/'shop')
    for table in ('items', 'users', 'events'): pd.testing.assert_frame_equal(getattr(again, table), getattr(raw, table))


def as_parquet(place, folder, log='transactions_train', **types):
    "The tables of a shop as pandas would write them, with some columns of other types."
    folder.mkdir()
    for name, called in {'articles.csv': 'articles', 'customers.csv': 'customers', 'transactions_train.csv': log}.items():
        table = pd.read_csv(place/name, dtype=dict(article_id=str, product_code=str), keep_default_na=False, na_values=[''])
        table.astype({c: t for c, t in types.items() if c in table}).to_parquet(folder/f'{called}.parquet')
    return folder


@pytest.mark.parametrize('n, types', [(0, {}), (1, dict(article_id='int64', product_code='float64', t_dat='datetime64[s]')), (2, dict(customer_id='category', article_id='category', FN='float32'))])
def test_parquet_is_read_as_the_comma_separated_files_are(tmp_path, n, types):
    place = shop(tmp_path/'shop', LOG)
    plain, made_of = read_hm(place), as_parquet(place, tmp_path/'parquet', ('transactions_train', 'transactions')[n % 2], **types)
    with zipfile.ZipFile(tmp_path/'shop.zip', 'w') as z:
        for path in made_of.iterdir(): z.write(path, f'hm/{path.name}')
    for at in (made_of, tmp_path/'shop.zip'):
        raw = read_hm(at)
        for table in ('items', 'users', 'events'): pd.testing.assert_frame_equal(getattr(raw, table), getattr(plain, table))
    assert set(made(tmp_path/'data', made_of).card['sha256']) == {p.name for p in made_of.iterdir()}
    assert any(note.startswith('articles.parquet has 4 of the 105,542 rows') for note in raw.about['notes'])


PARQUET_DAMAGE = [
    ('transactions', lambda t: t.drop(columns='t_dat'), 'transactions.parquet: no column t_dat, only customer_id'),
    ('transactions', lambda t: t.assign(t_dat='26/09/2018'), 'transactions.parquet: column t_dat: .*26/09/2018'),
    ('transactions', lambda t: t.assign(customer_id=['', *t.customer_id[1:]]), 'column customer_id of transactions.parquet: 1 ids are missing, first in rows 1'),
    ('transactions', lambda t: t.assign(article_id=[.5, *t.article_id[1:].astype(float)]), 'transactions.parquet: column article_id: .*truncated'),
    ('transactions', lambda t: t.head(0), 'transactions.parquet: there is not one purchase'),
    ('customers', lambda t: t.assign(age='forty'), 'customers.parquet: column age: .*forty'),
    ('articles', b'PAR1 and no more', 'articles.parquet: .*the file is damaged or not what its name says'),
]


@pytest.mark.parametrize('file, spoil, said', PARQUET_DAMAGE)
def test_damage_to_parquet_is_named(tmp_path, file, spoil, said):
    path = as_parquet(shop(tmp_path/'shop', LOG), tmp_path/'parquet', 'transactions')/f'{file}.parquet'
    if isinstance(spoil, bytes): path.write_bytes(spoil)
    else: spoil(pd.read_parquet(path)).to_parquet(path)
    with pytest.raises(ValueError, match=said): read_hm(tmp_path/'parquet')


def test_parquet_that_is_cut_short_is_named(tmp_path):
    path = as_parquet(shop(tmp_path/'shop', LOG), tmp_path/'parquet')/'transactions_train.parquet'
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match='transactions_train.parquet: .*damaged'): read_hm(tmp_path/'parquet')


def test_dates_out_of_order_are_put_in_order_and_said(tmp_path):
    straight = made(tmp_path/'a', shop(tmp_path/'shop', LOG))
    data = made(tmp_path/'b', shop(tmp_path/'shop', LOG[5:] + LOG[:5]))
    assert sorted(map(tuple, data.events.astype(str).values)) == sorted(map(tuple, straight.events.astype(str).values))
    assert any('1 purchases stand in the file after one of a later day' in note for note in data.card['notes'])


# Damage ----------------------------------------------------------------------------------------------------------------

DAMAGE = [
    ('transactions_train.csv', lambda t: t.replace('t_dat', 'day', 1), 'transactions_train.csv: no column t_dat, only day, customer_id'),
    ('articles.csv', lambda t: t.replace('detail_desc', 'desc', 1), 'articles.csv: no column detail_desc'),
    ('customers.csv', lambda t: t.replace('age,', '', 1), 'customers.csv: no column age'),
    ('transactions_train.csv', lambda t: t[:-20], 'transactions_train.csv: .*Row #12: Expected 5 columns, got [123].*damaged or cut short'),
    ('articles.csv', lambda t: t[:-25], 'articles.csv: a quotation mark .* never closed; the file is cut short'),
    ('articles.csv', lambda t: t[:t.rindex('\nand light') + 1], 'articles.csv: a quotation mark .* never closed; the file is cut short'),
    ('transactions_train.csv', lambda t: t.replace(',', ';'), "separated by ';' and not by commas"),
    ('transactions_train.csv', lambda t: t.replace(',', '\t'), 'separated by .*t. and not by commas'),
    ('transactions_train.csv', lambda t: '', 'the file is empty'),
    ('transactions_train.csv', lambda t: t.splitlines()[0] + '\n', 'not one purchase'),
    ('transactions_train.csv', lambda t: t.replace('2018-09-26', '26/09/2018', 1), 'conversion error to date32'),
    ('transactions_train.csv', lambda t: t.replace('2018-09-26', '', 1), '1 purchases have no t_dat'),
    ('transactions_train.csv', lambda t: t.replace(',c1,', ',,', 1), 'column customer_id of transactions_train.csv: 1 ids are missing, first in rows 1'),
    ('transactions_train.csv', lambda t: t.replace(A, '', 1), 'column article_id of transactions_train.csv: 1 ids are missing'),
    ('articles.csv', lambda t: t + t.splitlines()[-2] + '\n' + t.splitlines()[-1] + '\n', '1 items have more than one row'),
    ('customers.csv', lambda t: t.replace('49.0', 'forty'), 'customers.csv: .*invalid value .forty'),
    ('transactions_train.csv', lambda t: t.replace(D, '0999999001'), "on_unresolved='error': 3 events name 1 items"),
    ('transactions_train.csv', lambda t: re.sub(r'2018-\d\d-\d\d', '2018-09-26', t), "split_by='week': the log covers 1 days"),
]


@pytest.mark.parametrize('file, spoil, said', DAMAGE)
def test_damage_is_named_and_leaves_nothing(tmp_path, file, spoil, said):
    path = shop(tmp_path/'shop', LOG)/file
    path.write_text(spoil(path.read_text()))
    with pytest.raises(ValueError, match=said): made(tmp_path/'data', tmp_path/'shop')
    assert not list((tmp_path/'data').iterdir())


def one_by_one(text):
    "Whether a text is open at the end, letter by letter."
    state = 'start' # of a field; 'plain', 'quoted', 'mark' (within a quoted one, just behind a mark)
    for letter in text:
        if state == 'mark' and letter == '"': state = 'quoted'
        elif state == 'quoted': state = 'mark' if letter == '"' else 'quoted'
        elif letter in ',\n\r': state = 'start'
        else: state = 'quoted' if letter == '"' and state == 'start' else 'plain'
    return state == 'quoted'


@settings(max_examples=300, deadline=None)
@given(st.text('"",\n\rab', max_size=40), st.integers(1, 9), st.integers(1, 9))
def test_open_quotes_against_a_rule_applied_letter_by_letter(tmp_path_factory, text, block, near):
    folder = tmp_path_factory.mktemp('quotes')
    (folder/'log.csv').write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(columns, 'BLOCK', block)
        patched.setattr(columns, 'NEAR', near)
        if one_by_one(text):
            with pytest.raises(ValueError, match='log.csv: a quotation mark is opened and never closed'): columns.refuse_open_quotes(folder, 'log.csv')
        else: columns.refuse_open_quotes(folder, 'log.csv')


def test_missing_files_are_named(tmp_path):
    (shop(tmp_path/'shop', LOG)/'customers.csv').unlink()
    with pytest.raises(FileNotFoundError, match='hm: customers.csv not found in shop; download it from https'): made(tmp_path/'data', tmp_path/'shop')


def test_utf16_is_refused_by_name(tmp_path):
    path = shop(tmp_path/'shop', LOG)/'customers.csv'
    path.write_text(path.read_text(), encoding='utf-16')
    with pytest.raises(ValueError, match='customers.csv: not encoded in UTF-8'): read_hm(tmp_path/'shop')


# Strangers, units, pictures --------------------------------------------------------------------------------------------

STRANGE = LOG + [(9, 'c9', A), (18, 'c9', B), (19, 'c8', '0999999001')]


def test_strangers_are_counted_kept_dropped_or_refused(tmp_path):
    place = shop(tmp_path/'shop', STRANGE)
    kept, dropped = (made(tmp_path/rule, place, on_unresolved='drop', on_unknown_users=rule) for rule in ('keep', 'drop'))
    assert (kept.card['unknown_users'], kept.card['unknown_items']) == (2, 1) == (dropped.card['unknown_users'], dropped.card['unknown_items'])
    assert kept.user_ids.tolist() == ['c1', 'c2', 'c3', 'c9'] and dropped.user_ids.tolist() == ['c1', 'c2', 'c3']
    assert np.isnan(kept.users.age[3]) and len(kept.events) == len(dropped.events) + 2
    with pytest.raises(ValueError, match="on_unknown_users='error': 2 events name 1 users that are not in the user table, such as 'c9'"): made(tmp_path/'error', place, on_unresolved='drop', on_unknown_users='error')


@pytest.mark.parametrize('catalogue', ['interacted', 'all'])
def test_articles_that_no_table_knows_can_be_kept(tmp_path, catalogue):
    place = shop(tmp_path/'shop', STRANGE + [(9, 'c9', '0999999002'), (9, 'c8', '0108775044')])
    with pytest.raises(ValueError, match="on_unresolved='error': 2 events name 2 items .*complete the table, or set on_unresolved to 'drop' .*, or to 'keep'"): made(tmp_path/'error', place)
    data, less = (made(tmp_path/rule, place, on_unresolved=rule, catalogue=catalogue) for rule in ('keep', 'drop'))
    strange = ['0999999001', '0999999002']
    assert data.items.item.tolist() == less.items.item.tolist() + strange and data.items.title.isna().tolist() == [False]*4 + [True]*2
    assert (data.card['unknown_items'], data.card['kept_unknown_items'], less.card['kept_unknown_items']) == (2, 2, 0)
    assert len(data.events) == len(less.events) + 2 and set(data.events.item) == set(less.events.item) | set(strange)
    assert 'strangers  2 items of the log are in no table; 2 of them are kept, without a text' in show(data.card)
    few = made(tmp_path/'few', place, on_unresolved='keep', catalogue=catalogue, on_unknown_users='drop', min_history=2)   # the rules behind it take them with their users
    assert few.items.item.tolist() == less.items.item.tolist() and few.card['kept_unknown_items'] == 0


def test_a_kept_article_has_a_text_to_encode_like_all_items_without_one(tmp_path):
    from recx.extract.stage import PLACEHOLDERS, known_texts
    from recx.text.flatten import flatten
    data = made(tmp_path/'data', shop(tmp_path/'shop', STRANGE), on_unresolved='keep')
    texts = flatten(data, dict(text_columns='', max_tokens=32, tokenizer='minilm'))
    assert texts.text.tolist()[-1] == '' and known_texts(texts, data).text.tolist()[-1] == PLACEHOLDERS['item']


def test_repeated_rows_are_asked_about_and_counted(tmp_path):
    place = shop(tmp_path/'shop', LOG)
    with pytest.raises(ValueError, match="on_duplicates='error': 1 events repeat .*to 'units' to count them"): made(tmp_path/'error', place, on_duplicates='error')
    values = {rule: made(tmp_path/rule, place, on_duplicates=rule).events.value.tolist() for rule in ('units', 'first', 'keep')}
    assert values['units'][0] == 2 and values['first'][0] == 1 and values['keep'][:2] == [1, 1]


def test_units_of_a_log_with_ratings_are_refused():
    with pytest.raises(ValueError, match="on_duplicates='units': the events of toy have values of their own"): prepare(stage.read(PARAMS), PARAMS | dict(on_duplicates='units'))


def test_an_image_folder_with_holes(tmp_path):
    from recx.text.images import find_media
    place = shop(tmp_path/'shop', LOG)
    assert 'image' not in made(tmp_path/'a', place).items
    (place/'images'/'011').mkdir(parents=True)
    (place/'images'/'011'/f'{C}.jpg').touch()
    (place/'images'/'011'/'.DS_Store').touch()
    data = made(tmp_path/'b', place)
    assert data.items.image.fillna('').tolist() == ['', '', f'images/011/{C}.jpg', '']
    assert any('3 of 4 articles have no image' in note for note in data.card['notes'])
    assert find_media(place, C) == place/data.items.image[2] and find_media(place, A) is None
    assert made(tmp_path/'c', place, item_level='product').items.image.fillna('').tolist() == ['', f'images/011/{C}.jpg']


def test_pictures_in_a_zip_are_said_not_to_be_read(tmp_path):
    place = shop(tmp_path/'shop', LOG)
    with zipfile.ZipFile(tmp_path/'shop.zip', 'w') as z:
        for name in HM_ROWS: z.write(place/name, f'h-and-m/{name}')
        for n, name in enumerate((f'{C}.jpg', f'{A}.jpg', 'sizes.txt')): z.writestr(f'h-and-m/images/{n:03d}/{name}', b'x')
    data = made(tmp_path/'data', tmp_path/'shop.zip')
    assert 'image' not in data.items and [n for n in data.card['notes'] if n.startswith('2 pictures lie in shop.zip and cannot be opened there') and 'unpack it' in n]


# The week split against a slow rule ------------------------------------------------------------------------------------

logs = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


def slow(rows):
    "One event at a time: units of a day, then of a held-out week."
    last, merged = max(d for d, *_ in rows), {}
    for n, (d, u, i) in enumerate(rows):
        split = 'test' if d > last - 7 else 'valid' if d > last - 14 else 'train'
        when, units = merged.setdefault((u, i, d if split == 'train' else split), [(d, n), 0])
        merged[u, i, d if split == 'train' else split] = [min(when, (d, n)), units + 1]
    return {(f'u{u}', f'i{i}', when[0], split if isinstance(split, str) else 'train', units) for (u, i, split), (when, units) in merged.items()}


@settings(max_examples=60, deadline=None)
@given(logs, st.booleans())
def test_weeks_against_a_rule_applied_event_by_event(rows, coded):
    events = pd.DataFrame([(f'u{u}', f'i{i}', d*DAY, 1.) for d, u, i in rows], columns=['user', 'item', 'time', 'value'])
    raw = Raw(pd.DataFrame(dict(item=[f'i{i}' for i in range(5)], title='x')), pd.DataFrame(dict(user=[]), dtype=str), events.astype(dict(user='category', item='category')) if coded else events, dict(name='made', text_columns=['title'], time_kind='seconds', has_values=False))
    days = {d for d, *_ in rows}
    last = max(days)
    possible = last - min(days) >= 14 and any(last - 14 < d <= last - 7 for d in days)
    if not possible:
        with pytest.raises(ValueError, match="split_by='week'"): prepare(raw, PARAMS | WEEKLY)
        return
    data = prepare(raw, PARAMS | WEEKLY)
    assert {(e.user, e.item, e.time//DAY, e.split, e.value) for e in data.events.itertuples()} == slow(rows)
    assert len(data.events) == len(slow(rows)) and data.events.value.sum() == len(rows)


def test_a_week_ends_with_the_last_day_whatever_the_hour():
    at = np.array([0, 20.99, 21, 27.99, 28, 34.2])*DAY
    assert split_week(at.astype('int64')).tolist() == [0, 0, 1, 1, 2, 2]


# Where it is looked for ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('folder', sources.SOURCES['hm'].folders)
def test_found_by_name_but_a_part_is_refused(tmp_path, monkeypatch, folder):
    monkeypatch.setenv('RECX_HOME', str(tmp_path/'root'))
    monkeypatch.delenv('RECX_DATA', raising=False)
    (tmp_path/'root'/'data'/'raw').mkdir(parents=True)
    shop(tmp_path/'root'/'data'/'raw'/folder, LOG)
    with pytest.raises(ValueError, match='hm: articles.csv has 4 rows, and not 105,542, .*name its folder by dataset_path'): stage.small(tmp_path/'data', dataset='hm', **WEEKLY)
    monkeypatch.setattr(stage, 'HM_ROWS', {'articles.csv': 4, 'customers.csv': 3, 'transactions_train.csv': len(LOG)})
    assert Dataset.load(stage.small(tmp_path/'data', dataset='hm', **WEEKLY)).card['users'] == 3


def kaggle(folder, body):
    (folder/'bin').mkdir()
    (folder/'bin'/'kaggle').write_text(f'#!/bin/sh\n{body}\n')
    (folder/'bin'/'kaggle').chmod(0o755)
    return str(folder/'bin') + os.pathsep + os.environ['PATH']


def test_the_kaggle_client_is_asked_file_by_file(tmp_path, monkeypatch):
    monkeypatch.setenv('RECX_HOME', str(tmp_path/'root'))
    monkeypatch.delenv('RECX_DATA', raising=False)
    (tmp_path/'served').mkdir()
    for name in HM_ROWS:
        with zipfile.ZipFile(tmp_path/'served'/f'{name}.zip', 'w') as z: z.writestr(name, f'{name}\n')
    monkeypatch.setenv('PATH', kaggle(tmp_path, f'cp "{tmp_path}/served/$6.zip" "$8/"'))
    place = sources.fetch('hm')
    assert place == tmp_path/'root'/'data'/'raw'/'hm' and sorted(p.name for p in place.iterdir()) == sorted([*HM_ROWS, sources.SUMS])


@pytest.mark.parametrize('later', [False, True])
@pytest.mark.parametrize('text, said', [('articles.csv', '12 bytes, and not 13'), ('Articles.csv\n', 'another checksum than as fetched')])
def test_what_was_fetched_is_known_again(tmp_path, monkeypatch, text, said, later):
    monkeypatch.setenv('RECX_HOME', str(tmp_path/'root'))
    monkeypatch.delenv('RECX_DATA', raising=False)
    (tmp_path/'served').mkdir()
    for name in HM_ROWS: (tmp_path/'served'/name).write_text(f'{name}\n')
    monkeypatch.setenv('PATH', kaggle(tmp_path, f'cp "{tmp_path}/served/$6" "$8/"'))
    place = sources.fetch('hm')
    assert len((place/sources.SUMS).read_text().splitlines()) == 3 and sources.fetch('hm') == place
    summed = []
    monkeypatch.setattr(sources, 'sha256', lambda path, real=sources.sha256: summed.append(path.name) or real(path))
    sources.fetch('hm')
    assert not summed   # sizes alone, where nothing was written since
    os.utime(place/'customers.csv', (2e9, 2e9))
    if later: sources.fetch('hm'); assert summed == ['customers.csv']
    (place/'articles.csv').write_text(text)
    os.utime(place/'articles.csv', (2e9, 2e9))
    with pytest.raises(ValueError, match=f'hm: articles.csv in .* has {said}.*delete the folder'): sources.fetch('hm')


@pytest.mark.parametrize('body, said', [('printf "PK, cut" > "$8/$6.zip"', 'articles.csv.zip cannot be unpacked'), ('echo "403 - Forbidden" >&2; exit 1', '403 - Forbidden'), ('exit 0', 'did not come out of its package')])
def test_a_refusing_client_leaves_nothing(tmp_path, monkeypatch, body, said):
    monkeypatch.setenv('RECX_HOME', str(tmp_path/'root'))
    monkeypatch.delenv('RECX_DATA', raising=False)
    monkeypatch.setenv('PATH', kaggle(tmp_path, body))
    with pytest.raises(FileNotFoundError, match=f'hm: not found in data/raw.*{said}.*dataset_path'): sources.fetch('hm')
    assert not list((tmp_path/'root'/'data'/'raw').iterdir())


def test_without_a_client_the_way_out_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv('RECX_HOME', str(tmp_path/'root'))
    monkeypatch.delenv('RECX_DATA', raising=False)
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(FileNotFoundError, match='no Kaggle client here: `pip install kaggle`'): sources.fetch('kkbox')


# Twins and the aligned schema ------------------------------------------------------------------------------------------

def test_a_twin_says_what_it_is_and_keeps_its_truth_apart(tmp_path):
    small = dict(sim_users=60, sim_items=60, sim_events=900)
    asked = dict(dataset='sim-fashion', min_history=0, on_duplicates='units')
    data = Dataset.load(stage.small(tmp_path/'a', **asked, **small))
    assert data.card['banner'] == 'simulated' and 'twin' in data.card['display'] and data.card['sha256'] == {}
    planted = pd.read_parquet(tmp_path/'a'/'planted_items.parquet'), pd.read_parquet(tmp_path/'a'/'planted_users.parquet')
    assert set(data.item_ids) <= set(planted[0].item) and set(data.user_ids) <= set(planted[1].user) and (tmp_path/'a'/'planted_truth.json').exists()
    assert not ({'silhouette', 'style', 'mood', 'L1', 'L2', 'L3', 'segment', 'w1'} & {*data.items.columns, *data.users.columns})
    assert not [p for p in (tmp_path/'a').iterdir() if p.is_dir()]
    stage.small(tmp_path/'b', **asked, **small)
    for path in (tmp_path/'a').iterdir(): assert path.read_bytes() == (tmp_path/'b'/path.name).read_bytes(), path.name
    place = make_fashion(tmp_path/'files', users=60, items=60, events=900)
    again = Dataset.load(stage.small(tmp_path/'c', **(asked | dict(dataset='hm', dataset_path=str(place)))))
    assert again.card['banner'] == 'simulated' and again.events.equals(data.events) and (tmp_path/'c'/'planted_items.parquet').exists()


@pytest.mark.parametrize('make, kind, asked', [(make_fashion, 'hm', WEEKLY), (make_music, 'kkbox', dict(split_by='random', min_history=0))])
def test_a_packed_twin_says_what_it_is_and_keeps_its_truth(tmp_path, make, kind, asked):
    place = make(tmp_path/'twin', users=60, items=60, events=900)
    with zipfile.ZipFile(tmp_path/'twin.zip', 'w') as z:
        z.writestr('__MACOSX/shop/planted/._truth.json', b'x')
        for path in place.rglob('*'): z.write(path, f'shop/{path.relative_to(place)}')
    plain, packed = (Dataset.load(stage.small(tmp_path/name, dataset=kind, dataset_path=str(at), **asked)) for name, at in dict(plain=place, packed=tmp_path/'twin.zip').items())
    assert packed.card['banner'] == 'simulated' and packed.card['display'] == plain.card['display'] and packed.events.equals(plain.events)
    assert not [n for n in packed.card['notes'] if 'of the full file' in n] and len(list((tmp_path/'packed').glob('planted_*'))) == 3
    for path in (tmp_path/'plain').glob('planted_*'): assert path.read_bytes() == (tmp_path/'packed'/path.name).read_bytes()


def test_both_readers_name_alike_what_both_have(tmp_path):
    raws = dict(fashion=read_hm(make_fashion(tmp_path/'f', users=60, items=60, events=600)), music=read_kkbox(make_music(tmp_path/'m', users=60, items=60, events=600)))
    for role, row in ALIGNED.items():
        for domain, raw in raws.items():
            table = getattr(raw, row[0])
            if row[3] == 'same': assert role in table, (role, domain)
            if (name := column_of(role, domain)) and row[0] != 'events' and role != 'isrc': assert name in table, (role, domain)
            if row[3] in ('same', 'only one') and row[SIDES[domain]] not in ('', role): assert row[SIDES[domain]] not in table
    assert all(set(raw.about['text_columns']) <= set(raw.items) for raw in raws.values())


# The real thing --------------------------------------------------------------------------------------------------------

def test_a_day_of_the_real_shop(real_data, tmp_path):
    if not (real_data/'hm_sample').is_dir(): pytest.skip('no sample of H&M at hand')
    for table, name in dict(articles='articles', customers='customers', transactions='transactions_train').items(): pd.read_parquet(real_data/'hm_sample'/f'{table}.parquet').to_csv(tmp_path/f'{name}.csv', index=False)
    data = Dataset.load(stage.small(tmp_path/'data', dataset='hm', dataset_path=str(tmp_path), on_duplicates='units', min_history=0, split_by='ratio'))
    again = Dataset.load(stage.small(tmp_path/'again', dataset='hm', dataset_path=str(real_data/'hm_sample'), on_duplicates='units', min_history=0, split_by='ratio'))
    for table in ('items', 'users', 'events'): pd.testing.assert_frame_equal(getattr(again, table), getattr(data, table))
    bought = pd.read_parquet(real_data/'hm_sample'/'transactions.parquet')
    assert (len(data.users), len(data.items), data.events.value.sum(), data.events.time.nunique()) == (2954, 4903, 10_000, 1)
    assert len(data.events) == len(bought.drop_duplicates(['customer_id', 'article_id'])) and data.card['unknown_users'] > 2800
    assert 'transactions_train.csv has 10,000 of the 31,788,324 rows of the full file' in data.card['notes']
    products = read_hm(tmp_path, item_level='product').items
    codes = pd.read_parquet(real_data/'hm_sample'/'articles.parquet').product_code.nunique()
    assert len(products) == codes and (products.item.str.lstrip('0') == products.product_code).all()
    with pytest.raises(ValueError, match="split_by='week': the log covers 1 days"): stage.small(tmp_path/'week', dataset='hm', dataset_path=str(tmp_path), **WEEKLY)
