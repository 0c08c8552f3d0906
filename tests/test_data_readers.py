"Readers against original formats, odd text, and the real files where they are at hand."
import gzip, json, os, zipfile
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from recx.data import stage
from recx.data.amazon import read_amazon, records
from recx.data.dataset import Dataset
from recx.data.movielens import GENRES, read_movielens
from recx.data.parameters import declared
from recx.data.recbole import read_recbole
from recx.data.sources import SOURCES, sha256_unpacked
from recx.data.tables import read_tables

ODD = ['Nail &amp; <b>Polish</b>', '"Quoted" \'both\'', 'two\nlines\r\nand\ttabs', 'שמפו “רך”', '\u202eright to left\u202c', '👩‍🚀 kit', 'a,b;c|d::e', 'NA', 'null', '  blanks  ', "L'été"]


def made(tmp_path, **changes): return Dataset.load(stage.small(tmp_path/'data', **changes))


# Amazon ----------------------------------------------------------------------------------------------------------------

def amazon(folder, kind, reviews, products, dump=json.dumps, category='Beauty'):
    names = {'amazon-2014': ('reviews_{}.json.gz', 'meta_{}.json.gz'), 'amazon-2018': ('{}.json.gz', 'meta_{}.json.gz'), 'amazon-2023': ('{}.jsonl.gz', 'meta_{}.jsonl.gz')}[kind]
    for name, rows, how in zip(names, (reviews, products), (json.dumps, dump)): (folder/name.format(category)).write_bytes(gzip.compress('\n'.join(map(how, rows)).encode() + b'\n\n'))
    return folder


def reviews_2018(n=12): return [dict(reviewerID=f'A{i//4}', asin=f'B{i%5}', overall=float(1 + i%5), unixReviewTime=1_400_000_000 + 86_400*i, reviewText='x'*100) for i in range(n)]


@pytest.mark.parametrize('kind, dump', [('amazon-2014', repr), ('amazon-2014', json.dumps), ('amazon-2018', json.dumps)])
def test_amazon_titles_pass_untouched(tmp_path, kind, dump):
    products = [dict(asin=f'B{i}', title=title) for i, title in enumerate(ODD)]
    reviews = [dict(reviewerID='A', asin=f'B{i}', overall=5, unixReviewTime=i) for i in range(len(ODD))]
    raw = read_amazon(amazon(tmp_path, kind, reviews, products, dump), kind, 'Beauty')
    assert raw.items.title.tolist() == ODD


def test_amazon_2023_has_its_own_keys_and_milliseconds(tmp_path):
    reviews = [dict(user_id='U', asin='X', parent_asin='P', rating=4.0, timestamp=1_588_687_728_923)]
    products = [dict(parent_asin='P', title='Brush', store='Acme', categories=['Hair', 'Brushes'], features=['soft', 'blue'], description=['One.', 'Two.'], main_category='All Beauty')]
    raw = read_amazon(amazon(tmp_path, 'amazon-2023', reviews, products), 'amazon-2023', 'Beauty')
    assert raw.events.values.tolist() == [['U', 'P', 1_588_687_728, 4.0]]
    assert raw.items.iloc[0].tolist() == ['P', 'Brush', 'Acme', ['Hair', 'Brushes'], ['soft', 'blue'], 'One. Two.']


def test_amazon_stage_from_folder_and_from_the_places_of_raw_data(tmp_path, monkeypatch):
    raw = tmp_path/'place'/'amazon-2018'
    raw.mkdir(parents=True)
    amazon(raw, 'amazon-2018', reviews_2018(), [dict(asin=f'B{i}', title=f'T{i}') for i in range(5)] + [dict(asin='B0', title='again')])
    given = made(tmp_path/'a', dataset='amazon-2018:Beauty', dataset_path=str(raw))
    monkeypatch.setenv('RECX_DATA', str(tmp_path/'place'))
    found = made(tmp_path/'b', dataset='amazon-2018:Beauty')
    assert given.events.equals(found.events) and len(given.events) == 12
    assert given.card['notes'] == ['1 repeated product records were skipped'] and given.items.title.tolist() == [f'T{i}' for i in range(5)]
    assert set(given.card['sha256']) == {'Beauty.json.gz', 'meta_Beauty.json.gz'}


def test_amazon_metadata_of_unreviewed_products_is_not_kept(tmp_path):
    products = ({'asin': f'B{i}', 'title': 'x'*1000} for i in range(2000))
    raw = read_amazon(amazon(tmp_path, 'amazon-2018', reviews_2018(), products), 'amazon-2018', 'Beauty')
    assert len(raw.items) == 5


@pytest.mark.parametrize('line, said', [(b'{"a": 1', 'line 2: neither JSON nor a Python literal'), (b'[1, 2]', 'line 2: no record but list'), (b'__import__("os").getcwd()', 'line 2: neither'), (b'{"t": "\xff"}', 'line 2: neither')])
def test_amazon_refuses_lines_by_number(tmp_path, line, said):
    (tmp_path/'x.json').write_bytes(b'{"asin": "B1"}\n' + line + b'\n')
    with pytest.raises(ValueError, match=said): list(records(tmp_path, 'x.json'))


def test_amazon_refuses_a_truncated_file(tmp_path):
    amazon(tmp_path, 'amazon-2018', reviews_2018(), [dict(asin='B0', title='x')])
    packed = (tmp_path/'Beauty.json.gz').read_bytes()
    (tmp_path/'Beauty.json.gz').write_bytes(packed[:len(packed)//2])
    with pytest.raises(ValueError, match='Beauty.json.gz: the file is damaged or incomplete'): read_amazon(tmp_path, 'amazon-2018', 'Beauty')


def test_amazon_missing_times_are_refused_with_rows(tmp_path):
    reviews = reviews_2018()
    del reviews[3]['unixReviewTime']
    amazon(tmp_path, 'amazon-2018', reviews, [dict(asin=f'B{i}', title='x') for i in range(5)])
    with pytest.raises(ValueError, match='1 events have no time, first in rows 4'): made(tmp_path, dataset='amazon-2018:Beauty', dataset_path=str(tmp_path))


# MovieLens -------------------------------------------------------------------------------------------------------------

def ml100k(folder, n_users=4, n_items=6):
    titles = ['Toy Story (1995)', 'Cérémonie, La (1995)', '"Quoted" (1990)', 'Unknown', 'Seven (Se7en) (1995)', 'Á köldum klaka (Cold Fever) (1994)']
    (folder/'u.item').write_text(''.join(f'{i + 1}|{titles[i]}|01-Jan-1995||http://x|' + '|'.join('1' if j == i + 1 else '0' for j in range(len(GENRES))) + '\n' for i in range(n_items)), encoding='iso-8859-1')
    (folder/'u.user').write_text(''.join(f'{u + 1}|24|M|technician|85711\n' for u in range(n_users)))
    rows = [(u + 1, i + 1, 1 + (u + i)%5, 880_000_000 + 1000*u + 10*i) for u in range(n_users) for i in range(n_items)]
    order = np.random.default_rng(0).permutation(len(rows))
    (folder/'u.data').write_text(''.join('\t'.join(map(str, rows[k])) + '\n' for k in order))
    return folder


def test_ml_100k_is_sorted_by_time_whatever_the_order_of_the_file(tmp_path):
    data = made(tmp_path, dataset='ml-100k', dataset_path=str(ml100k(tmp_path)))
    assert data.events[data.events.user == '2'].item.tolist() == ['1', '2', '3', '4', '5', '6']
    assert data.items.title.tolist() == ['Toy Story', 'Cérémonie, La', '"Quoted"', 'Unknown', 'Seven (Se7en)', 'Á köldum klaka (Cold Fever)']
    assert data.users.occupation.tolist() == ['technician']*4


def test_ml_100k_plain_gz_and_zip_are_the_same_data(tmp_path):
    plain = ml100k(tmp_path)
    (packed := tmp_path/'packed').mkdir()
    for name in ('u.data', 'u.item', 'u.user'): (packed/f'{name}.gz').write_bytes(gzip.compress((plain/name).read_bytes()))
    with zipfile.ZipFile(tmp_path/'ml-100k.zip', 'w') as z:
        for name in ('u.data', 'u.item', 'u.user'): z.write(plain/name, f'ml-100k/{name}')
    events = [read_movielens(place, 'ml-100k').events for place in (plain, packed, tmp_path/'ml-100k.zip')]
    assert events[0].equals(events[1]) and events[0].equals(events[2])


@pytest.mark.parametrize('file, text, said', [('u.data', '1\t2\t3\n', 'u.data in .*: 3 columns, and not 4'), ('u.data', '', 'u.data in .*: the file is empty'), ('u.data', '1\t2\t3\n1\t2\t3\t4\n', 'u.data in .*'),
                                              ('u.data', '1\t99\t5\t1\n', "on_unresolved='error': 1 events name 1 items"), ('u.data', '1\t1\t5\tsoon\n', '1 events have no time, first in rows 1'), ('u.data', '\t1\t5\t1\n', '1 ids are missing, first in rows 1')])
def test_ml_100k_damage_is_named(tmp_path, file, text, said):
    (ml100k(tmp_path)/file).write_text(text)
    with pytest.raises(ValueError, match=said): made(tmp_path, dataset='ml-100k', dataset_path=str(tmp_path))


def test_ml_1m_original_format(tmp_path):
    (tmp_path/'movies.dat').write_text("1::Toy Story (1995)::Animation|Children's\n2::Misérables, Les (1995)::Drama\n3::a : b (1990)::Drama\n", encoding='iso-8859-1')
    (tmp_path/'users.dat').write_text('1::F::1::10::48067\n')
    (tmp_path/'ratings.dat').write_text('1::3::5::30\n1::1::4::10\n1::2::3::20\n')
    data = made(tmp_path, dataset='ml-1m', dataset_path=str(tmp_path))
    assert data.events.item.tolist() == ['1', '2', '3'] and data.events.split.tolist() == ['train', 'valid', 'test']
    assert data.items.title.tolist() == ['Toy Story', 'Misérables, Les', 'a : b'] and data.items.genres[0] == ['Animation', "Children's"]


# RecBole and tables ----------------------------------------------------------------------------------------------------

def test_recbole_odd_text_and_gz(tmp_path):
    titles = [t for t in ODD if not set(t) & set('\n\t\r')]
    (tmp_path/'shop.inter.gz').write_bytes(gzip.compress(('user_id:token\titem_id:token\trating:float\ttimestamp:float\n' + ''.join(f'u\tb{i}\t5\t{i}\n' for i in range(len(titles)))).encode()))
    (tmp_path/'shop.item').write_text('item_id:token\ttitle:token_seq\n' + ''.join(f'b{i}\t{t}\n' for i, t in enumerate(titles)))
    raw = read_recbole(tmp_path)
    assert raw.items.title.tolist() == titles and raw.about['has_values'] and raw.events.time.tolist() == list(range(len(titles)))
    assert made(tmp_path, dataset=f'recbole:{tmp_path}').card['text_columns'] == ['title']


def tables(folder, items, events, users=None):
    for name, table in dict(items=items, interactions=events, users=users).items():
        if table is not None: table.to_parquet(folder/f'{name}.parquet')
    return folder


ITEMS = pd.DataFrame(dict(item_id=['x', 'y', 'z'], title=['X', 'Y', 'Z']))


def test_tables_odd_text_lists_numbers_and_categories(tmp_path):
    items = pd.DataFrame(dict(item_id=range(len(ODD)), price=1.5, note=ODD, title=ODD, tags=[[t, 'x'] for t in ODD], kind=pd.Categorical(['a']*len(ODD))))
    events = pd.DataFrame(dict(user_id=1.0, item_id=range(len(ODD)), time=range(len(ODD))))
    data = made(tmp_path, dataset=f'parquet:{tables(tmp_path, items, events)}')
    assert data.items.title.tolist() == ODD and data.items.tags.map(lambda t: t[0]).tolist() == ODD
    assert data.card['text_columns'] == ['title', 'note', 'tags', 'kind'] and data.user_ids.tolist() == ['1'] and data.item_ids[0] == '0'


@pytest.mark.parametrize('time, kind, order', [
    (dict(time=[30, 10, 20]), 'seconds', 'yzx'), (dict(timestamp=pd.to_datetime(['2020-01-03', '2020-01-01', '2020-01-02'])), 'seconds', 'yzx'), (dict(time=['2020-01-03', '2020-01-01', '2020-01-02']), 'seconds', 'yzx'),
    (dict(position=[2, 0, 1]), 'position', 'yzx'), (dict(position=[2, 1, 0], seconds_since_first=[5, 0, 0]), 'relative', 'zyx'), (dict(seconds_since_first=[5, 0, 0]), 'relative', 'yzx'), (dict(time=[1.9, 1.1, 1.5]), 'seconds', 'yzx')])
def test_tables_kinds_of_time(tmp_path, time, kind, order):
    data = made(tmp_path, dataset=f'parquet:{tables(tmp_path, ITEMS, pd.DataFrame(dict(user_id="u", item_id=list("xyz")) | time))}')
    assert data.card['time_kind'] == kind and ''.join(data.events.item) == order


@pytest.mark.parametrize('events, said', [
    (dict(user_id='u', item_id=list('xyz')), 'interactions.parquet: no column time, timestamp'), (dict(user_id='u', item_id=list('xyz'), time=[1, None, 3]), '1 events have no time, first in rows 2'),
    (dict(user_id='u', item_id=list('xyz'), position=[0, None, 1]), '1 events have no position, first in rows 2'), (dict(user_id='u', item_id=list('xyz'), time=[1e12]*3), 'milliseconds'),
    (dict(user_id='u', thing=list('xyz'), time=1), 'no column item_id or movie_id'), (dict(user_id=['u', None, ' '], item_id=list('xyz'), time=1), '2 ids are missing, first in rows 2, 3'),
    (dict(user_id='u', item_id=list('xyw'), time=[1, 2, 3]), "on_unresolved='error': 1 events name 1 items that are not in the item table, such as 'w'"), (dict(user_id='u', item_id=list('xyy'), time=[1, 2, 2]), "on_duplicates='error': 1 events repeat"),
    (dict(user_id='u', item_id=list('xyz'), time=[1, 2, 3], rating=[1, None, 2]), '1 events have no value'), (dict(user_id='u', item_id=list('xyz'), position=[0, 1, 2], time=[1, 3, 2]), "contradict each other, first for user 'u'")])
def test_tables_bad_logs_are_refused(tmp_path, events, said):
    with pytest.raises(ValueError, match=said): made(tmp_path, dataset=f'parquet:{tables(tmp_path, ITEMS, pd.DataFrame(events, index=range(3)))}')


def test_tables_bad_folders_are_refused(tmp_path):
    log = pd.DataFrame(dict(user_id='u', item_id=list('xyz'), time=range(3)))
    with pytest.raises(FileNotFoundError, match='no such file or folder'): made(tmp_path, dataset='parquet:not/there')
    with pytest.raises(FileNotFoundError, match='no items.parquet or movies.parquet'): made(tmp_path, dataset=f'parquet:{tmp_path}')
    tables(tmp_path, ITEMS[['item_id']].assign(price=1.), log)
    with pytest.raises(ValueError, match='no text column'): made(tmp_path, dataset=f'parquet:{tmp_path}')
    tables(tmp_path, pd.concat([ITEMS, ITEMS]), log)
    with pytest.raises(ValueError, match='3 items have more than one row'): made(tmp_path, dataset=f'parquet:{tmp_path}')
    tables(tmp_path, ITEMS, log.head(0))
    with pytest.raises(ValueError, match='the log is empty'): made(tmp_path, dataset=f'parquet:{tmp_path}')
    (tmp_path/'items.parquet').write_text('no parquet')
    with pytest.raises(ValueError, match='items.parquet in .*: not a readable parquet file'): made(tmp_path, dataset=f'parquet:{tmp_path}')


def test_a_refused_data_set_leaves_nothing(tmp_path):
    tables(tmp_path, ITEMS, pd.DataFrame(dict(user_id='u', item_id=list('xyw'), time=range(3))))
    with pytest.raises(ValueError): stage.small(tmp_path/'out', dataset=f'parquet:{tmp_path}')
    assert not list((tmp_path/'out').iterdir())


def test_external_follows_the_bytes(tmp_path):
    log = pd.DataFrame(dict(user_id='u', item_id=list('xyz'), time=range(3)))
    params = declared(vars(stage)) | dict(dataset=f'parquet:{tables(tmp_path, ITEMS, log)}')
    before = stage.external(params)
    tables(tmp_path, ITEMS, log.assign(time=[0, 1, 3]))
    after = stage.external(params)
    assert before['items.parquet'] == after['items.parquet'] and before['interactions.parquet'] != after['interactions.parquet']
    assert stage.external(declared(vars(stage))) == {}


# Real files ------------------------------------------------------------------------------------------------------------

REAL = {
    'amazon_beauty_2014': (22_363, 12_101, 198_502, 'relative', 9_719), 'amazon_sports_2014': (35_598, 18_357, 296_337, 'relative', 16_049), 'amazon_videogames_2018': (50_546, 16_859, 440_264, 'position', None),
    'yelp_s3rec': (30_431, 20_033, 316_354, 'position', None), 'movielens_1m': (6_040, 3_416, 994_985, 'position', None),
}


@pytest.mark.parametrize('name', REAL)
def test_real_tables(tmp_path, real_data, name):
    if not (real_data/name).is_dir(): pytest.skip(f'{name} is not at hand')
    data = made(tmp_path, dataset=f'parquet:{real_data/name}')
    assert (len(data.users), len(data.items), len(data.events), data.card['time_kind'], data.card['tied_users']) == REAL[name]
    assert data.card['test'] == data.card['valid'] == len(data.users) == data.card['test_users']


def test_real_beauty_card_is_recognised_and_order_is_that_of_the_file(tmp_path, real_data):
    if not (real_data/'amazon_beauty_2014').is_dir(): pytest.skip('amazon_beauty_2014 is not at hand')
    data = made(tmp_path, dataset=f'parquet:{real_data}/amazon_beauty_2014')
    source = pd.read_parquet(real_data/'amazon_beauty_2014'/'interactions.parquet').sort_values(['user_id', 'position'], kind='stable')
    ours = data.events.sort_values('user', kind='stable')
    assert ours.item.tolist() == source.item_id.tolist() and ours.time.tolist() == source.seconds_since_first.tolist()
    assert data.card['display'] == 'Amazon Beauty 2014, 5-core' and data.card['tied_of'] == 22_363
    assert str(real_data) not in json.dumps(data.card)
    with pytest.raises(ValueError, match="split_by='time'"): made(tmp_path, dataset=f'parquet:{real_data}/amazon_beauty_2014', split_by='time')


@pytest.mark.parametrize('name, users, items, events', [('ml-100k', 943, 1_682, 100_000), ('ml-latest-small', 610, 9_724, 100_836)])
def test_real_movielens_by_name(tmp_path, real_data, monkeypatch, name, users, items, events):
    monkeypatch.setenv('RECX_DATA', str(real_data))
    if not any((real_data/f).is_dir() for f in SOURCES[name].folders): pytest.skip(f'{name} is not at hand')
    data = made(tmp_path, dataset=name)
    assert (len(data.users), len(data.items), len(data.events)) == (users, items, events)
    assert data.items.set_index('item').title['1'] == 'Toy Story' and data.events.groupby('user', sort=False).time.apply(lambda t: t.is_monotonic_increasing).all()
    assert not data.items.title.str.contains(r'\(\d{4}\)$').any()


def test_real_latest_small_keeps_the_whole_catalogue_when_asked(tmp_path, real_data, monkeypatch):
    monkeypatch.setenv('RECX_DATA', str(real_data))
    if not (real_data/'movielens_latest_small').is_dir(): pytest.skip('movielens_latest_small is not at hand')
    assert len(made(tmp_path, dataset='ml-latest-small', catalogue='all').items) == 9_742


def test_real_recbole(tmp_path, real_data):
    if not (real_data/'movielens_100k').is_dir(): pytest.skip('movielens_100k is not at hand')
    raw, same = read_recbole(real_data/'movielens_100k'), read_movielens(real_data/'movielens_100k', 'ml-100k')
    assert raw.events.equals(same.events) and raw.about['text_columns'] == ['movie_title', 'class', 'release_year']
    assert sha256_unpacked(real_data/'movielens_100k', 'ml-100k.inter') == SOURCES['ml-100k'].sha256['ml-100k.inter']
