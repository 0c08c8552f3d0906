"The files of KKBOX: no time and what follows from it, odd ages, genders, dates and codes, damage; the lot against a slow rule."
import json, os, zipfile
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from recx.data import sources, stage
from recx.data.dataset import Dataset, Raw
from recx.data.kkbox import KKBOX_FILES, KKBOX_ROWS, isrc_parts, minutes_said, read_kkbox
from recx.data.parameters import declared
from recx.data.prepare import prepare

PARAMS = declared(vars(stage))
LOT = dict(split_by='random', min_history=0, valid_share=.2, test_share=.3)
SONGS = dict(song_id=['s1=', 's2=', 's3=', 's4='], song_length=[247640, 30000, '', 900000], genre_ids=['465', '444|1259', '', '465'], artist_name=['張信哲', 'NA', 'AC/DC', ''], composer=['', 'x| y', '', ''], lyricist=['', '', '', ''], language=['3.0', '-1.0', '', '52.0'])
EXTRA = dict(song_id=['s2=', 's1=', 's4=', 'sX='], name=['null', '"我", 7" mix', 'Song', 'Nobody asked'], isrc=['TWB531410010', 'USSM18500123', '123', 'GBAYE6600473'])
MEMBERS = dict(msno=['m1=', 'm2=', 'm3=', 'm4='], city=[1, 13, 5, 1], bd=[31, 0, 1051, -43], gender=['female', '', 'male', ''], registered_via=[7, 9, 4, 7], registration_init_time=['20110820', '20150628', '20160411', '2015'], expiration_date=['20170920', '20170622', '20170712', '20150907'])
LOG = [(m, s, (i*j)%3 == 0) for i, m in enumerate(('m1=', 'm2=', 'm3=', 'm4='), 1) for j, s in enumerate(('s1=', 's2=', 's3=', 's4='), 1)]


def service(folder, log=LOG, songs=SONGS, extra=EXTRA, members=MEMBERS):
    folder.mkdir(exist_ok=True)
    tables = {'songs.csv': songs, 'song_extra_info.csv': extra, 'members.csv': members, 'train.csv': dict(msno=[m for m, *_ in log], song_id=[s for _, s, _ in log], source_system_tab='my library', source_screen_name='', source_type='local-library', target=[int(t) for *_, t in log])}
    for name, table in tables.items(): pd.DataFrame(table).to_csv(folder/name, index=False)
    return folder


def made(folder, place, **changes): return Dataset.load(stage.small(folder, dataset='kkbox', dataset_path=str(place), **(LOT | changes)))


# What is read ----------------------------------------------------------------------------------------------------------

def test_songs_and_members(tmp_path):
    raw = read_kkbox(service(tmp_path/'kkbox'))
    items, users = raw.items.set_index('item'), raw.users.set_index('user')
    assert items.title.fillna('').tolist() == ['"我", 7" mix', 'null', '', 'Song'] and items.artist_name.fillna('').tolist() == ['張信哲', 'NA', 'AC/DC', '']
    assert items.year.fillna('').tolist() == ['1985', '2014', '', ''] and items.country.fillna('').tolist() == ['US', 'TW', '', '']
    assert items.duration.fillna(-1).tolist() == [247.64, 30, -1, 900] and items.minutes.fillna('').tolist() == ['4 to 5', 'under 1', '', 'over 10']
    assert items.language.fillna('').tolist() == ['3', '-1', '', '52'] and items.genre_ids.fillna('').tolist() == ['465', '444|1259', '', '465']
    assert users.age.fillna(-1).tolist() == [31, -1, -1, -1] and users.gender.tolist() == ['female', 'unknown', 'male', 'unknown'] and users.region.tolist() == ['1', '13', '5', '1']
    assert users.registered.astype(str).fillna('NaT').tolist() == ['2011-08-20', '2015-06-28', '2016-04-11', 'NaT']
    notes = ' / '.join(raw.about['notes'])
    for said in ('1 songs without a second row', '1 songs whose ISRC is none', '3 members without an age from 1 to 100', '2 members without a gender', '1 members whose dates are none', f'train.csv has 16 of the {KKBOX_ROWS["train.csv"]:,} rows'): assert said in notes
    assert raw.events.value.tolist() == [int(t) for *_, t in LOG] and set(raw.events.time) == {0}


@given(st.text(max_size=14))
@settings(max_examples=100, deadline=None)
def test_what_is_no_code_gives_no_year(text):
    parts = isrc_parts(pd.Series([text], dtype='str')).iloc[0]
    assert parts.isna().all() or (parts.year[:2] in ('19', '20') and len(parts.year) == 4 and len(parts.country) == 2)


def test_ages_at_the_border():
    assert isrc_parts(pd.Series(['AABBB1800000', 'AABBB1900000', 'AABBB0000000', None])).year.fillna('').tolist() == ['2018', '1919', '2000', '']
    assert minutes_said(np.array([0., 59.9, 60., 599.9, 600.])).tolist() == ['under 1', 'under 1', '1 to 2', '9 to 10', 'over 10']


def test_from_files_to_a_data_set(tmp_path):
    data = made(tmp_path/'data', service(tmp_path/'kkbox'))
    assert sorted(zip(data.events.user, data.events.item, data.events.value)) == sorted((m, s, float(t)) for m, s, t in LOG)
    assert data.card['time_kind'] == 'none' and data.card['domain'] == 'music' and not data.card['baskets'] and data.card['valid_test_tie_share'] is None
    assert set(data.card['sha256']) == set(KKBOX_FILES) and json.loads(json.dumps(data.card)) == data.card
    assert made(tmp_path/'again', tmp_path/'kkbox').events.equals(data.events)
    assert not made(tmp_path/'other', tmp_path/'kkbox', split_seed=1).events.equals(data.events)
    listened = made(tmp_path/'again', tmp_path/'kkbox', min_value=1., split_seed=3)
    assert set(listened.events.value) == {1} and len(listened.events) == sum(t for *_, t in LOG)


# No time ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('dataset', ['kkbox', 'sim-music'])
@pytest.mark.parametrize('rule', ['leave-one-out', 'time', 'ratio', 'week'])
def test_splits_that_need_an_order_are_refused_before_anything_is_read(dataset, rule):
    with pytest.raises(ValueError, match=f"split_by='{rule}': the source gives neither a time nor an order of the events.*use split_by='random'"): stage.check(PARAMS | dict(dataset=dataset, split_by=rule))


@pytest.mark.parametrize('dataset', ['toy', 'ml-100k', 'hm', 'sim-fashion', 'amazon-2018:Beauty'])
def test_the_lot_is_refused_where_there_is_a_time(dataset):
    with pytest.raises(ValueError, match="split_by='random': the source says in which order"): stage.check(PARAMS | dict(dataset=dataset, split_by='random'))


@pytest.mark.parametrize('change, said', [(dict(ties='shuffle'), "ties='shuffle': kkbox has neither a time"), (dict(max_history=5), 'max_history=5: kkbox has neither a time')])
def test_what_needs_an_order_is_refused(tmp_path, change, said):
    with pytest.raises(ValueError, match=said): made(tmp_path/'data', service(tmp_path/'kkbox'), **change)


@pytest.mark.parametrize('dataset, change, said', [
    *((d, c, s) for d in ('kkbox', 'sim-music') for c, s in [(dict(ties='shuffle'), "ties='shuffle': .* neither a time nor an order"), (dict(max_history=5), 'max_history=5: .* neither a time'), (dict(on_duplicates='units'), "on_duplicates='units': the events of .* have values of their own")]),
    ('xrec:yelp', dict(max_history=5), 'max_history=5: xrec has neither a time'), ('hm', dict(min_value=1.), 'min_value=1.0: hm has no values'), ('sim-fashion', dict(min_value=1.), 'min_value=1.0: sim-fashion has no values'), ('toy', dict(on_duplicates='units'), "on_duplicates='units': the events of toy")])
def test_what_does_not_go_with_a_known_log_is_refused_before_anything_is_read(dataset, change, said):
    known = PARAMS | dict(dataset=dataset, split_by='random' if dataset in ('kkbox', 'sim-music', 'xrec:yelp') else 'leave-one-out')
    stage.check(known)
    with pytest.raises(ValueError, match=said): stage.check(known | change)


@pytest.mark.parametrize('wishes', [*(dict(backbone=b) for b in ('sasrec', 'gru4rec', 'bert4rec', 'din', 'dien')), dict(backbone='last-item', fusion='id'), dict(backbone='prm', first_stage='sasrec', hold_back=1), dict(backbone='sasrec', fusion='late', late_of='add')])
def test_what_reads_an_order_is_refused_before_a_text_is_written(wishes, monkeypatch):
    from recx.run import stages
    made, real = [], stages.make_node
    monkeypatch.setattr(stages, 'make_node', lambda stage, *a: made.append(stage) or real(stage, *a))
    one = dict(dataset='sim-music', split_by='random', fusion='concat', adapter='linear')
    with pytest.raises(ValueError, match='reads events in their order, and sim-music has no event times'): stages.chain(one | wishes)
    assert set(made) == {'data'}
    assert stages.chain(one | dict(backbone='mf')).stage == 'recommend'


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=10, max_size=80, unique=True), st.integers(0, 9), st.booleans())
def test_the_lot_keeps_every_event_once_and_sides_in_order(rows, seed, coded):
    events = pd.DataFrame([(f'u{u}', f'i{i}', 0, float((u + i) % 2)) for u, i in rows], columns=['user', 'item', 'time', 'value'])
    raw = Raw(pd.DataFrame(dict(item=[f'i{i}' for i in range(7)], title='x')), pd.DataFrame(dict(user=[]), dtype=str), events.astype(dict(user='category', item='category')) if coded else events, dict(name='made', text_columns=['title'], time_kind='none', has_values=True))
    data = prepare(raw, PARAMS | LOT | dict(split_seed=seed))
    assert sorted(zip(data.events.user, data.events.item, data.events.value)) == sorted((f'u{u}', f'i{i}', float((u + i) % 2)) for u, i in rows)
    assert (data.events.groupby('user', sort=False).split.apply(lambda s: s.map({'train': 0, 'valid': 1, 'test': 2}).astype(int).is_monotonic_increasing)).all()


def test_the_lot_does_not_look_at_the_order_of_the_file_within_a_side():
    raw = Raw(pd.DataFrame(dict(item=['i'], title='x')), pd.DataFrame(dict(user=[]), dtype=str), pd.DataFrame(dict(user=[f'u{n % 100}' for n in range(20_000)], item='i', time=0, value=1.)), dict(name='made', text_columns=['title'], time_kind='none', has_values=False))
    shares = prepare(raw, PARAMS | dict(split_by='random', on_duplicates='keep')).events.split.value_counts(normalize=True)
    assert abs(shares.test - .1) < .01 and abs(shares.valid - .1) < .01


# Damage ----------------------------------------------------------------------------------------------------------------

DAMAGE = [
    ('train.csv', lambda t: t.replace('target', 'label', 1), 'train.csv: no column target'),
    ('train.csv', lambda t: t[:-20], 'train.csv: .*Expected 6 columns.*damaged or cut short'),
    ('train.csv', lambda t: t.replace(',', ';'), "train.csv: its columns are separated by ';'"),
    ('train.csv', lambda t: t.replace(',1\n', ',2\n', 1), 'train.csv: 1 targets are neither 0 nor 1'),
    ('train.csv', lambda t: t.replace(',1\n', ',\n', 1), 'train.csv: 1 targets are neither 0 nor 1'),
    ('train.csv', lambda t: t.replace('m1=', '', 1), 'column msno of train.csv: 1 ids are missing, first in rows 1'),
    ('train.csv', lambda t: t + t.splitlines()[1] + '\n', "on_duplicates='error': 1 events repeat"),
    ('train.csv', lambda t: t.splitlines()[0] + '\n', 'train.csv: there is not one event'),
    ('songs.csv', lambda t: t.replace('song_length', 'length', 1), 'songs.csv: no column song_length'),
    ('songs.csv', lambda t: t.replace('247640', 'four minutes'), 'songs.csv: .*invalid value .four minutes'),
    ('songs.csv', lambda t: t.replace('s4=', 's5='), "on_unresolved='error': 4 events name 1 items"),
    ('songs.csv', lambda t: t + 's1=,1,465,x,,,3.0\n', '1 items have more than one row'),
    ('song_extra_info.csv', lambda t: t[:t.index('7""') + 1], 'song_extra_info.csv: a quotation mark is opened and never closed'),
    ('members.csv', lambda t: t.replace('bd', 'age', 1), 'members.csv: no column bd'),
]


@pytest.mark.parametrize('file, spoil, said', DAMAGE)
def test_damage_is_named_and_leaves_nothing(tmp_path, file, spoil, said):
    path = service(tmp_path/'kkbox')/file
    path.write_text(spoil(path.read_text()))
    with pytest.raises(ValueError, match=said): made(tmp_path/'data', tmp_path/'kkbox')
    assert not list((tmp_path/'data').iterdir())


def test_a_song_told_twice_in_the_second_table_counts_once(tmp_path):
    raw = read_kkbox(service(tmp_path/'kkbox', extra={k: [*v, v[0]] for k, v in EXTRA.items()}))
    assert len(raw.items) == 4 and raw.items.title[1] == 'null'


@pytest.mark.parametrize('end', ['', '\n'])
def test_a_lone_inch_mark_is_no_open_text(tmp_path, end):
    path = service(tmp_path/'kkbox')/'song_extra_info.csv'
    path.write_text(path.read_text().replace('null', 'My 7" mix').strip() + end)
    assert read_kkbox(tmp_path/'kkbox').items.title[1] == 'My 7" mix'


def test_members_whom_no_table_knows(tmp_path):
    data = made(tmp_path/'data', service(tmp_path/'kkbox', [*LOG, ('mX=', 's1=', True), ('mX=', 's2=', False)]))
    assert data.card['unknown_users'] == 1 and 'mX=' in data.user_ids
    assert 'mX=' not in made(tmp_path/'less', tmp_path/'kkbox', on_unknown_users='drop').user_ids


@pytest.mark.parametrize('name', KKBOX_FILES)
def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path, name):
    raw, path = read_kkbox(service(tmp_path/'kkbox')), tmp_path/'kkbox'/name
    path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())
    again = read_kkbox(tmp_path/'kkbox')
    for table in ('items', 'users', 'events'): pd.testing.assert_frame_equal(getattr(again, table), getattr(raw, table))


def test_packed_files_are_told_to_be_unpacked(tmp_path):
    (service(tmp_path/'kkbox')/'train.csv').rename(tmp_path/'kkbox'/'train.csv.7z')
    with pytest.raises(FileNotFoundError, match='kkbox: train.csv in kkbox is still packed; unpack the .7z files'): made(tmp_path/'data', tmp_path/'kkbox')


def test_found_in_a_zip_by_name_but_a_part_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv('RECX_HOME', str(tmp_path/'root'))
    monkeypatch.delenv('RECX_DATA', raising=False)
    (tmp_path/'root'/'data'/'raw').mkdir(parents=True)
    service(tmp_path/'kkbox')
    with zipfile.ZipFile(tmp_path/'root'/'data'/'raw'/'wsdm-cup-2018.zip', 'w') as z:
        for name in KKBOX_FILES: z.write(tmp_path/'kkbox'/name, name)
    with pytest.raises(ValueError, match='kkbox: songs.csv has 4 rows, and not 2,296,320'): stage.small(tmp_path/'data', dataset='kkbox', **LOT)
    monkeypatch.setattr(stage, 'KKBOX_ROWS', {'songs.csv': 4, 'members.csv': 4, 'train.csv': len(LOG), 'song_extra_info.csv': 4})
    found = Dataset.load(stage.small(tmp_path/'data', dataset='kkbox', **LOT))
    assert found.events.equals(made(tmp_path/'plain', tmp_path/'kkbox').events)


def test_7z_files_from_the_client_are_unpacked(tmp_path, monkeypatch):
    "A client that serves train.csv as train.csv.7z, and a program that unpacks it."
    monkeypatch.setenv('RECX_HOME', str(tmp_path/'root'))
    monkeypatch.delenv('RECX_DATA', raising=False)
    place, programs = service(tmp_path/'served'), tmp_path/'bin'
    programs.mkdir()
    (programs/'kaggle').write_text(f'#!/bin/sh\ncase "$6" in *.7z) cp "{place}/$(basename "$6" .7z)" "$8/$6";; *) exit 1;; esac\n')
    (programs/'7z').write_text('#!/bin/sh\ncp "$3" "$(basename "$3" .7z)"\n')
    for program in programs.iterdir(): program.chmod(0o755)
    monkeypatch.setenv('PATH', str(programs) + os.pathsep + os.environ['PATH'])
    assert sorted(p.name for p in sources.fetch('kkbox').iterdir()) == sorted([*KKBOX_FILES, sources.SUMS])
    assert (sources.home()/'data'/'raw'/'kkbox'/'train.csv').read_text() == (place/'train.csv').read_text()


def test_a_7z_that_breaks_off_is_not_taken_for_the_data(tmp_path, monkeypatch):
    "A program that leaves what it had when the package broke off."
    (tmp_path/'7z').write_text('#!/bin/sh\nprintf half > "$(basename "$3" .7z)"\nexit 2\n')
    (tmp_path/'7z').chmod(0o755)
    (tmp_path/'train.csv.7z').touch()
    monkeypatch.setenv('PATH', str(tmp_path) + os.pathsep + os.environ['PATH'])
    with pytest.raises(OSError, match='train.csv.7z cannot be unpacked: 7z ends with code 2'): sources.unpack(tmp_path, 'train.csv')


# The twin --------------------------------------------------------------------------------------------------------------

def test_a_twin_of_music(tmp_path):
    data = Dataset.load(stage.small(tmp_path/'data', dataset='sim-music', split_by='random', sim_users=60, sim_items=60, sim_events=900))
    assert data.card['banner'] == 'simulated' and data.card['domain'] == 'music' and set(data.events.value) == {0, 1}
    assert (tmp_path/'data'/'planted_truth.json').exists() and set(data.item_ids) <= set(pd.read_parquet(tmp_path/'data'/'planted_items.parquet').item)
    assert not ({'mood', 'energy', 'L1', 'L2', 'L3', 'segment'} & {*data.items.columns, *data.users.columns})
