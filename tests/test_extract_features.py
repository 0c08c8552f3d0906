"The feature store and the serving table: two writers, killed writers, damage, full disks, bad input, and agreement with a plain dictionary."
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st
from recx.extract import features, serving as serving_module
from recx.extract.features import DamagedStore, Features, FeatureStore, compact, export, repair
from recx.extract.serving import publish, serving
from recx.extract.vectors import UnknownIds, Vectors
from recx.text.texts import NO_TEXT, make_texts, text_hash

SIZE = 8


def vector_of(text, model='model', size=SIZE):
    "A vector that tells its text: whatever comes back can be checked against the text beside it."
    return np.random.default_rng(int(text_hash(f'{model}|{text}'), 16)).standard_normal(size).astype(np.float32)


def made(catalogue, kind='item', layer='', source='flatten', model='model', size=SIZE, **more):
    "Texts and their vectors, from id → text."
    texts = make_texts(list(catalogue), list(catalogue.values()), 3, 0, kind=kind, layer=layer, source=source, prompt_version='p1', **more)
    return texts, vectors_for(texts, model, size)


def vectors_for(texts, model='model', size=SIZE):
    read = texts.text.where(texts.text.str.strip() != '', NO_TEXT)
    return Vectors(texts.assign(text_hash=read.map(text_hash), model=model, tuning='frozen', pooling='mean'), np.array([vector_of(t, model, size) for t in read], np.float32).reshape(-1, size))


def shop(n, word='thing', start=0): return {f'B{i}': f'{word} {i}' for i in range(start, start + n)}


def check_whole(store):
    "Every row's vector is that of its text."
    rows = store.rows()
    for (kind, layer, source, model), part in rows.groupby(['kind', 'layer', 'source', 'model']):
        vectors = store.vectors(kind=kind, layer=layer, source=source, model=model)
        texts = part.set_index('id').text.loc[vectors.rows.id]
        assert all((vector_of(t or NO_TEXT, model, vectors.size) == v).all() for t, v in zip(texts, vectors.matrix))
    return rows


@pytest.fixture
def store(tmp_path): return FeatureStore(tmp_path/'features')


def listing(folder): return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in Path(folder).rglob('*') if p.is_file() and p.name != 'lock'}


def test_same_rows_write_nothing(store):
    assert store.upsert(*made(shop(20))) == dict(new=20, changed=0, same=0)
    before = listing(store.folder)
    assert store.upsert(*made(shop(20), generated_at='2030-01-01')) == dict(new=0, changed=0, same=20)
    assert listing(store.folder) == before
    assert FeatureStore(store.folder).upsert(*made(shop(20) | shop(3, 'other') | shop(2, start=50))) == dict(new=2, changed=3, same=17)
    assert store.versions()[['new', 'changed', 'same']].values.tolist() == [[20, 0, 0], [2, 3, 17]]
    assert pq.read_table(store.folder/'segments'/'00000002-0'/'rows.parquet').num_rows == 5
    check_whole(store), check_whole(store.at(1))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.one_of(st.dictionaries(st.sampled_from('abcdé👩'), st.sampled_from(['', 'x', 'y', 'z "\n\x00', 'שמפו']), min_size=1), st.sampled_from(['compact', 'reopen'])), max_size=8), st.data())
def test_agrees_with_a_dictionary(tmp_path_factory, steps, data):
    store, plain, past = FeatureStore(tmp_path_factory.mktemp('s')/'features'), {}, {}
    for step in steps:
        if step == 'compact': compact(store, keep=100)
        elif step == 'reopen': store = FeatureStore(store.folder)
        else:
            kind = data.draw(st.sampled_from(['item', 'user']))
            mine = {(kind, i): t for i, t in step.items()}
            expected = dict(new=sum(k not in plain for k in mine), changed=sum(k in plain and (plain[k].strip() or NO_TEXT) != (t.strip() and t or NO_TEXT) for k, t in mine.items()))
            counts = store.upsert(*made(step, kind=kind))
            assert counts == expected | dict(same=len(step) - sum(expected.values()))
            plain |= mine
        past[store.snapshot.version] = dict(plain)
    assert len(store) == len(plain)
    for version, then in past.items():
        if not version: continue
        rows = store.at(version).rows()
        assert dict(zip(zip(rows.kind, rows.id), rows.text)) == then
    if plain: check_whole(store)


def test_ids_of_items_and_users_and_layers_do_not_clash(store):
    for kind, layer in (('item', ''), ('user', ''), ('item', 'L1'), ('item', 'L2')): store.upsert(*made({'17': f'{kind} {layer}'}, kind=kind, layer=layer))
    assert len(store) == 4
    assert (store.lookup([17], kind='user').matrix[0] == vector_of('user ')).all()
    assert (store.lookup(['17'], layer='L2').matrix[0] == vector_of('item L2')).all()
    assert set(store.nearest(vector_of('item L1'), k=9).layer) == {'', 'L1', 'L2'}
    assert store.nearest(vector_of('item L1')).iloc[0][['id', 'layer', 'text']].tolist() == ['17', 'L1', 'item L1']
    with pytest.raises(ValueError, match="layer is left open.*'L1'"): store.nearest('17')


def test_models_and_sources_are_told_apart(store):
    store.upsert(*made(shop(5)))
    store.upsert(*made(shop(5), model='large', size=12))
    store.upsert(*made(shop(5, 'told'), source='summary'))
    assert (store.lookup(['B1'], model='large').size, store.lookup(['B1'], model='model', source='summary').size) == (12, SIZE)
    for question in (lambda: store.lookup(['B1']), lambda: store.nearest('B1'), lambda: store.vectors(model='model'), lambda: store.stale(made(shop(5))[0])):
        with pytest.raises(ValueError, match='is left open and there are 2'): question()
    with pytest.raises(ValueError, match="no rows with .*it holds.*'large', 'model'"): store.lookup(['B1'], model='lrage')
    with pytest.raises(ValueError, match='modle'): store.lookup(['B1'], modle='large')
    assert len(store.nearest('B1', k=100, model='model', source='flatten')) == 4
    check_whole(store)


def test_nearest_is_exact(store):
    store.upsert(*made(shop(300)))
    store.upsert(*made(shop(40, 'other', start=280)))
    all_, q = store.vectors(), vector_of('question')
    cosine = (all_.matrix @ q)/np.linalg.norm(all_.matrix, axis=1)/np.linalg.norm(q)
    found = store.nearest(q, k=7)
    assert found.id.tolist() == all_.rows.id.iloc[np.argsort(-cosine)[:7]].tolist()
    np.testing.assert_allclose(found.cosine, np.sort(cosine)[::-1][:7], rtol=1e-5)
    assert 'B3' not in store.nearest('B3', k=1000).id.tolist() and len(store.nearest('B3', k=1000)) == 319


def test_a_row_of_zeros_is_nobodys_neighbour(store):
    texts, vectors = made(shop(3))
    vectors.matrix[1] = 0
    store.upsert(texts, vectors)
    assert store.nearest('B0').id.tolist() == ['B2']
    with pytest.raises(ValueError, match='length is 0'): store.nearest('B1')


def test_only_stale_texts_are_encoded(store):
    from recx.extract.encode import encode # here, for the writers that import this module need no torch
    from recx.extract.encoders import load_encoder
    encoder, seen = load_encoder('minilm', device='cpu'), []
    def refresh(texts):
        stale = store.stale(texts)
        seen.append(stale.text.tolist())
        return store.upsert(stale, Vectors(stale.assign(text_hash=stale.text.map(text_hash), model=encoder.name, tuning='frozen', pooling='mean'), encode(encoder, stale.text, progress=False)))
    catalogue = {'a': 'a red dress', 'b': 'a blue dress', 'c': 'shoes'}
    texts = lambda c: made(c)[0]
    assert refresh(texts(catalogue)) == dict(new=3, changed=0, same=0)
    assert refresh(texts(catalogue)) == dict(new=0, changed=0, same=0)
    assert refresh(texts(catalogue | {'b': 'a green dress', 'd': 'a hat'})) == dict(new=1, changed=1, same=0)
    assert seen == [list(catalogue.values()), [], ['a green dress', 'a hat']]
    assert store.versions().version.tolist() == [1, 2]
    assert len(store.stale(texts(catalogue), model='another')) == 3


WRITER = '''
import sys, json
sys.path.insert(0, sys.argv[1])
from test_extract_features import *
store = FeatureStore(sys.argv[2])
for batch in json.loads(sys.stdin.read()): print(json.dumps(store.upsert(*made(batch))), flush=True)
'''


def writer(folder, batches):
    "A process that upserts `batches` and prints what it counted."
    process = subprocess.Popen([sys.executable, '-c', WRITER, str(Path(__file__).parent), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.stdin.write(json.dumps(batches))
    process.stdin.close()
    return process


def test_two_processes_write_at_once(store):
    one = [shop(30, start=30*i) | shop(1, f'one {i}', start=1000) for i in range(12)]
    two = [shop(30, start=500 + 30*i) | shop(1, f'two {i}', start=1000) | shop(5, start=30*i) for i in range(12)]
    running = [writer(store.folder, batches) for batches in (one, two)]
    counts = [json.loads(line) for p in running for line in p.stdout.read().splitlines()]
    assert [p.wait() for p in running] == [0, 0]
    rows = check_whole(store).set_index('id').text
    assert rows.drop('B1000').to_dict() == shop(360) | shop(360, start=500)
    assert rows['B1000'] in ('one 11 1000', 'two 11 1000')
    assert len(counts) == 24 and sum(c['new'] for c in counts) == len(rows) == 721
    assert store.versions().version.tolist() == list(range(1, 25))
    assert {p.name for p in (store.folder/'segments').iterdir()} == {f'{v:08d}-0' for v in range(1, 25)}


def test_a_killed_writer_leaves_whole_versions_only(store):
    for turn in range(4):
        process = writer(store.folder, [shop(200, f'turn {turn} {i}') for i in range(300)])
        process.stdout.readline()
        time.sleep(random.Random(turn).uniform(0, .3))
        process.send_signal(signal.SIGKILL)
        said = process.stdout.read()
        process.wait()
        rows = check_whole(FeatureStore(store.folder))
        assert len(rows) == 200 and rows.text.str.rsplit(n=1).str[0].nunique() == 1 # all of one upsert
        assert FeatureStore(store.folder).snapshot.version >= 1 + said.count('\n')
    store.upsert(*made(shop(1, start=900)))
    assert len(store) == 201
    compact(store)
    assert len(list((store.folder/'segments').iterdir())) == 1
    check_whole(store)


def test_readers_never_see_a_mixture(store):
    store.upsert(*made(shop(50, 'v 0')))
    seen, done = [], threading.Event()
    def read():
        own = FeatureStore(store.folder)
        while not done.is_set():
            view = Features(own.snapshot)
            rows = view.rows()
            vectors = view.vectors()
            assert rows.text.str.split().str[1].nunique() == 1 and (vectors.matrix[7] == vector_of(rows.text[7])).all()
            seen.append(own.snapshot.version)
        seen.append('ended')
    thread = threading.Thread(target=read)
    thread.start()
    for i in range(1, 15):
        store.upsert(*made(shop(50, f'v {i}')))
        if i % 3 == 0: compact(store)
    done.set()
    thread.join()
    assert seen[-1] == 'ended' and len(set(seen)) > 2


def damages(path):
    "A file's content in damaged forms."
    whole = path.read_bytes()
    yield 'emptied', b''
    yield 'cut', whole[:-1]
    yield 'lengthened', whole + b'\0'
    for at in {0, len(whole)//2, len(whole) - 1} | {random.Random(1).randrange(len(whole)) for _ in range(3)}: yield f'byte {at}', whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1:]
    yield 'gone', None


def test_every_damaged_file_is_found(store):
    store.upsert(*made(shop(40)))
    store.upsert(*made(shop(10, 'other')))
    pristine = store.folder.with_name('pristine')
    shutil.copytree(store.folder, pristine)
    for path in [p for p in sorted(store.folder.rglob('*')) if p.is_file() and p.name != 'lock' and p.name != '00000001.json']:
        whole = path.read_bytes()
        for how, content in damages(path):
            if path.suffix == '.json' and how == 'gone': continue # the newest version never was
            path.unlink()
            if content is not None: path.write_bytes(content)
            opened = FeatureStore(store.folder)
            for use in (lambda: opened.lookup(['B1']), lambda: opened.upsert(*made(shop(2))), lambda: compact(opened)):
                with pytest.raises(DamagedStore, match="feature store 'features'.*repair"): use()
            repair(opened)
            if len(opened): check_whole(opened)
            opened.upsert(*made(shop(40) | shop(10, 'other')))
            assert check_whole(opened).set_index('id').text.to_dict() == shop(40) | shop(10, 'other'), (path.name, how)
            shutil.rmtree(store.folder)
            shutil.copytree(pristine, store.folder)
            assert path.read_bytes() == whole


def test_a_store_without_a_readable_version_says_so(store):
    store.upsert(*made(shop(4)))
    (store.folder/'versions'/'00000001.json').write_text('x')
    with pytest.raises(DamagedStore, match='delete it'): repair(store)
    with pytest.raises(DamagedStore, match='00000001.json'): FeatureStore(store.folder).versions()


def test_an_earlier_version_is_readable_beside_a_damaged_one(store):
    store.upsert(*made(shop(4)))
    store.upsert(*made(shop(4, 'other')))
    (store.folder/'segments'/'00000002-0'/'vectors.npy').write_bytes(b'')
    with pytest.raises(DamagedStore, match='versions before 2'): FeatureStore(store.folder).rows()
    check_whole(FeatureStore(store.folder).at(1))
    assert repair(store) == dict(versions=[], segments=['00000002-0'], rows=4)
    assert repair(store) == dict(versions=[], segments=[], rows=0)


@pytest.mark.parametrize('place', ['seal', 'write_record', 'version_path', 'os.fsync', 'np.save'])
def test_a_full_disk_leaves_the_version_before(store, monkeypatch, place):
    store.upsert(*made(shop(4)))
    before = listing(store.folder)
    def full(*_, **__): raise OSError(errno.ENOSPC, 'No space left on device')
    with monkeypatch.context() as m:
        target = features if '.' not in place else getattr(features, place.split('.')[0])
        m.setattr(target, place.split('.')[-1], full)
        for opened in (store, FeatureStore(store.folder)):
            with pytest.raises(OSError, match="feature store 'features'.*[Nn]o space.*free some space") as e: opened.upsert(*made(shop(9)))
            assert e.value.errno == errno.ENOSPC
    left = {p: t for p, t in listing(store.folder).items() if not p.endswith('.part')}
    assert left == before and FeatureStore(store.folder).snapshot.version == 1
    store.upsert(*made(shop(9)))
    assert len(check_whole(store)) == 9


def test_a_full_disk_leaves_the_serving_table_before(tmp_path, monkeypatch):
    publish(made(shop(4))[1], tmp_path/'table')
    def full(*_, **__): raise OSError(errno.ENOSPC, 'No space left on device')
    for place in ('seal', 'write_record'):
        with monkeypatch.context() as m:
            m.setattr(serving_module, place, full)
            with pytest.raises(OSError, match="serving table 'table'.*free some space"): publish(made(shop(9))[1], tmp_path/'table')
        assert len(serving(tmp_path/'table')) == 4 and sorted(p.name for p in (tmp_path/'table').iterdir() if p.is_dir()) == ['00000001']
    assert publish(made(shop(9))[1], tmp_path/'table') == 2


def test_a_folder_that_may_not_be_written(store, monkeypatch):
    store.upsert(*made(shop(4)))
    plain = Path.open
    def refused(self, mode='r', *args, **kwargs):
        if 'w' in mode: raise OSError(errno.EROFS, 'Read-only file system')
        return plain(self, mode, *args, **kwargs)
    monkeypatch.setattr(Path, 'open', refused)
    with pytest.raises(OSError, match="feature store 'features'.*Read-only.*reading needs no more"): store.upsert(*made(shop(5)))
    check_whole(FeatureStore(store.folder))
    monkeypatch.undo()
    (store.folder.parent/'file').write_text('')
    with pytest.raises(OSError, match='feature store'): FeatureStore(store.folder.parent/'file'/'features').upsert(*made(shop(5)))


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_a_read_only_folder(store):
    store.upsert(*made(shop(4)))
    for p in [store.folder, *store.folder.rglob('*')]: p.chmod(p.stat().st_mode & ~0o222)
    with pytest.raises(PermissionError, match="feature store 'features'"): FeatureStore(store.folder).upsert(*made(shop(5)))
    check_whole(FeatureStore(store.folder))
    for p in [store.folder, *store.folder.rglob('*')]: p.chmod(p.stat().st_mode | 0o200)


def test_bad_input_is_refused_and_changes_nothing(store):
    texts, vectors = made(shop(4))
    store.upsert(texts, vectors)
    before = listing(store.folder)
    spoilt = made(shop(6))
    spoilt[1].matrix[2, 3] = np.nan
    foreign = made(shop(6))[1]
    foreign.matrix[:4] = -foreign.matrix[:4]
    for why, bad in {"NaN.*'B2'": spoilt, '12 numbers.* has 8': made(shop(6), size=12), "2 rows have no text: 'B4', 'B5'": (texts, made(shop(6))[1]), '2 rows have no vector': (made(shop(6))[0], vectors),
                     'were made of other texts': (made(shop(4, 'other'))[0], vectors), "4 texts are unchanged.*'model'": (made(shop(6))[0], foreign), 'no text': (made(shop(4), source='summary')[0], vectors),
                     'column .cutoff. is missing': (texts.drop(columns='cutoff'), vectors)}.items():
        with pytest.raises(ValueError, match=why): store.upsert(*bad)
    assert listing(store.folder) == before
    nothing = texts.iloc[:0], Vectors(vectors.rows.iloc[:0], vectors.matrix[:0])
    assert store.upsert(*nothing) == dict(new=0, changed=0, same=0) and listing(store.folder) == before
    assert len(store.stale(texts.iloc[:0])) == 0
    with pytest.raises(UnknownIds, match="no vector for 1 of 2 items: 'B9'"): store.lookup(['B1', 'B9'])
    with pytest.raises(ValueError, match='more than once'): store.lookup(['B1', 'B1'])
    with pytest.raises(UnknownIds, match='B9'): store.nearest('B9')
    for query in (np.zeros(SIZE), np.full(SIZE, np.nan)):
        with pytest.raises(ValueError, match='vector'): store.nearest(query)
    with pytest.raises(ValueError, match='shape'): store.nearest(np.ones(3))
    with pytest.raises(ValueError, match='k=0'): store.nearest('B1', k=0)
    with pytest.raises(ValueError, match='version=2'): store.at(2)
    assert store.lookup([]).rows.empty


def test_almost_the_same_vector_is_the_same_model(store):
    texts, vectors = made(shop(4))
    store.upsert(texts, vectors)
    rounded = Vectors(vectors.rows, vectors.matrix*(1 + np.float32(1e-3)))
    assert store.upsert(texts, rounded) == dict(new=0, changed=0, same=4)
    assert (store.vectors().matrix == vectors.matrix).all()


def test_folders_that_are_no_store(tmp_path):
    empty = FeatureStore(tmp_path/'nowhere')
    for use in (lambda: empty.lookup(['B1']), empty.rows, empty.vectors, lambda: empty.nearest('B1')):
        with pytest.raises(ValueError, match="'nowhere': it holds no rows"): use()
    assert len(empty.stale(made(shop(3))[0])) == 3 and empty.versions().empty and not (tmp_path/'nowhere').exists()
    (tmp_path/'photos').mkdir()
    (tmp_path/'photos'/'cat.jpg').write_text('x')
    with pytest.raises(ValueError, match="no.*cat.jpg|cat.jpg"): FeatureStore(tmp_path/'photos').upsert(*made(shop(3)))
    with pytest.raises(ValueError, match='cat.jpg'): publish(made(shop(3))[1], tmp_path/'photos')
    with pytest.raises(ValueError, match='nothing is published'): serving(tmp_path/'photos')
    assert [p.name for p in (tmp_path/'photos').iterdir()] == ['cat.jpg']


def test_a_store_that_was_deleted_and_begun_again(store):
    store.upsert(*made(shop(4)))
    shutil.rmtree(store.folder)
    FeatureStore(store.folder).upsert(*made(shop(3, 'other')))
    assert check_whole(store).text.tolist() == list(shop(3, 'other').values())
    assert store.upsert(*made(shop(4))) == dict(new=1, changed=3, same=0)
    assert len(check_whole(FeatureStore(store.folder))) == 4


def test_export_is_plain_parquet_and_npy(store, tmp_path):
    store.upsert(*made({'a': 'x', 'é\n"': 'emoji 👩‍🚀\x00', 'c': ''}, cutoff='2020-01-01'))
    export(store, tmp_path)
    table, matrix = pq.read_table(tmp_path/'features.parquet'), np.load(tmp_path/'features.npy')
    assert set(table.column_names) == {*features.COLUMNS, 'vector'} and table['id'].to_pylist() == ['a', 'é\n"', 'c']
    assert (np.array(table['vector'].to_pylist(), np.float32) == matrix).all() and (matrix == store.vectors().matrix).all()
    assert table['text'].to_pylist() == ['x', 'emoji 👩‍🚀\x00', ''] and table['cutoff'].to_pylist() == ['2020-01-01']*3
    with pytest.raises(ValueError, match='no rows with'): export(store, tmp_path, kind='user')


def test_compaction_keeps_what_it_says(store):
    for i in range(5): store.upsert(*made(shop(10, f'v {i}')))
    store.upsert(*made(shop(10), model='large', size=12))
    compact(store, keep=2)
    assert store.versions().version.tolist() == [5, 6, 7] and len(store) == 20
    assert len(store.snapshot.segments) == 2
    check_whole(store), check_whole(store.at(5))
    compact(store)
    assert store.versions().version.tolist() == [8] and len(list((store.folder/'segments').iterdir())) == 2
    check_whole(store)
    compact(FeatureStore(store.folder.parent/'nothing'))


def test_serving_answers_as_the_store_does(store, tmp_path):
    store.upsert(*made(shop(200)))
    publish(store.vectors(), tmp_path/'table', 'features, version 1')
    table = serving(tmp_path/'table')
    ids = [f'B{i}' for i in np.random.default_rng(0).permutation(200)]
    assert (table.lookup(ids) == store.lookup(ids).matrix).all() and isinstance(table.matrix, np.memmap)
    assert table.lookup(iter(ids[:3])).shape == (3, SIZE) and table.lookup(['B1', 'B1']).dtype == np.float32
    out = table.lookup(['B1', 17, 'B2'], 'mean')
    np.testing.assert_allclose(out[1], store.vectors().matrix.mean(0), rtol=1e-5, atol=1e-6)
    assert (table.lookup([17], 'zero') == 0).all() and (table.matrix[table.place['B1']] == out[0]).all()
    out[:] = 7
    assert (table.lookup(['B1']) != 7).all()
    with pytest.raises(UnknownIds, match="version 1: no vector for 1 of 2 items: '17'"): table.lookup(['B1', 17])
    with pytest.raises(ValueError, match='unknown'): table.lookup(['B1'], 'ignore')


def test_every_damaged_file_of_a_serving_table_is_found(tmp_path):
    folder = tmp_path/'table'
    publish(made(shop(40))[1], folder)
    for path in [p for p in folder.rglob('*') if p.is_file() and p.name != 'lock']:
        whole = path.read_bytes()
        for how, content in damages(path):
            if path.name == 'current.json' and how == 'gone': continue
            path.unlink()
            if content is not None: path.write_bytes(content)
            with pytest.raises(DamagedStore, match="serving table 'table'.*publish the table again"): serving(folder)
            path.write_bytes(whole)
    assert len(serving(folder)) == 40


def test_publishing_while_a_service_reads(tmp_path):
    folder, seen = tmp_path/'table', set()
    publish(made(shop(20, 'v 0'))[1], folder)
    done = threading.Event()
    def publisher():
        for i in range(1, 15): publish(made(shop(20, f'v {i}'))[1], folder)
        done.set()
    thread = threading.Thread(target=publisher)
    thread.start()
    table = serving(folder)
    while not done.is_set():
        table = table.latest()
        v = table.about['version'] - 1
        assert (table.lookup(['B7'])[0] == vector_of(f'v {v} 7')).all()
        seen.add(v)
    thread.join()
    assert table.latest().about['version'] == 15 and len(list(folder.glob('0*'))) == 2


def test_importing_loads_no_heavy_library():
    code = "import sys, recx.extract.features, recx.extract.serving; print([m for m in ('torch', 'lancedb', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'
