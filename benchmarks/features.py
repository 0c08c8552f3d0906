"""The feature store and the serving table: seconds of each operation and size on disk, beside LanceDB (where it is installed) and SQLite under the same load, in one run.

    python benchmarks/features.py [rows] [size] [repetitions]

Load: `rows` vectors of `size` float32 with texts of a shop's length; then 10,000 rows of which half are new and half changed; then lookups of 1,000 random ids.
Warm: the store is open and has answered before. Cold: a new process state, that is a newly opened store, its files checked; the system's page cache stays as it is.
LanceDB and SQLite are used as their manuals show, with a primary key or a scalar index on the ids, and without checksums, which the feature store always has.
Then one bit is flipped in the files of a store of 2,000 rows, at 40 random places, and everything is read: an error, the right vectors, or wrong ones.
"""
import random, shutil, sqlite3, statistics, sys, tempfile, time
from pathlib import Path
import numpy as np
import pandas as pd
from recx.extract.features import FeatureStore, compact
from recx.extract.serving import publish, serving
from recx.extract.vectors import Vectors
from recx.text.texts import make_texts, text_hash

KEY = ['id', 'kind', 'layer', 'source']
UPSERT, ASKED = 10_000, 1_000


def load(ids, size, seed, word):
    "Texts and vectors of `ids`."
    matrix = np.random.default_rng(seed).standard_normal((len(ids), size)).astype(np.float32)
    texts = make_texts(ids, [f'title: {word} moisturizing lotion number {i}, travel size brand: Acme categories: Beauty, Skin Care, Body' for i in ids], 24, 0, kind='item', source='flatten', prompt_version='flatten-1')
    return texts, Vectors(texts.assign(text_hash=texts.text.map(text_hash), model='all-MiniLM-L6-v2', tuning='frozen', pooling='mean'), matrix)


def seconds(job, repetitions=1):
    "Median wall and processor seconds."
    took = []
    for _ in range(repetitions):
        wall, cpu = time.perf_counter(), time.process_time()
        job()
        took.append((time.perf_counter() - wall, time.process_time() - cpu))
    return tuple(statistics.median(t) for t in zip(*took))


def megabytes(folder): return sum(p.stat().st_size for p in Path(folder).rglob('*') if p.is_file())/1e6


def ours(folder, first, second, asked, repetitions):
    store, q = FeatureStore(folder), first[1].matrix[7] + .1
    took = {'first upsert': seconds(lambda: store.upsert(*first)), 'upsert of 10,000': seconds(lambda: store.upsert(*second)), 'size (MB)': megabytes(folder)}
    took['open'] = seconds(lambda: FeatureStore(folder).snapshot, repetitions)
    took['lookup, cold'] = seconds(lambda: FeatureStore(folder).lookup(asked), repetitions)
    store.lookup(asked)
    took['lookup, warm'] = seconds(lambda: store.lookup(asked), 10*repetitions)
    took['nearest 10'] = seconds(lambda: store.nearest(q), repetitions)
    took['upsert of what is there'] = seconds(lambda: store.upsert(*second), repetitions)
    took['stale among all'] = seconds(lambda: store.stale(first[0]), repetitions)
    took['compact'] = seconds(lambda: compact(store))
    return took


def table_folder(folder, vectors, asked, repetitions):
    took = {'publish': seconds(lambda: publish(vectors, folder)), 'size (MB)': megabytes(folder)}
    took['open'] = seconds(lambda: serving(folder), repetitions)
    took['lookup, cold'] = seconds(lambda: serving(folder).lookup(asked), repetitions)
    table = serving(folder)
    table.lookup(asked)
    took['lookup, warm'] = seconds(lambda: table.lookup(asked), 10*repetitions)
    return took


def arrow(texts, vectors):
    "One Arrow table of all columns."
    import pyarrow as pa
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.matrix.reshape(-1)), vectors.size)
    table = pa.Table.from_pandas(vectors.rows.assign(text=texts.text), preserve_index=False)
    return table.cast(pa.schema([(name, pa.string()) for name in table.column_names])).append_column('vector', column)


def lance(folder, first, second, asked, repetitions):
    import lancedb
    from lancedb.index import BTree
    first_rows, second_rows = arrow(*first), arrow(*second)
    made = []
    took = {'first upsert': seconds(lambda: made.append(lancedb.connect(folder).create_table('features', first_rows)))}
    table = made[0]
    table.create_index('id', config=BTree())
    upsert = lambda: table.merge_insert(KEY).when_matched_update_all(where='target.text_hash != source.text_hash').when_not_matched_insert_all().execute(second_rows)
    took |= {'upsert of 10,000': seconds(upsert), 'size (MB)': megabytes(folder)}
    where = f"id IN ({','.join(repr(i) for i in asked)}) AND kind = 'item' AND layer = '' AND source = 'flatten'"
    find = lambda t: t.search().where(where).limit(len(asked)).to_arrow()
    assert find(table).num_rows == len(asked)
    reopened = lambda: lancedb.connect(folder).open_table('features')
    took['open'] = seconds(lambda: reopened().count_rows(), repetitions)
    took['lookup, cold'] = seconds(lambda: find(reopened()), repetitions)
    took['lookup, warm'] = seconds(lambda: find(table), 10*repetitions)
    took['nearest 10'] = seconds(lambda: table.search(first[1].matrix[7] + .1).distance_type('cosine').where("kind = 'item'", prefilter=True).limit(10).to_arrow(), repetitions)
    took['upsert of what is there'] = seconds(upsert, repetitions)
    return took


def sqlite(folder, first, second, asked, repetitions):
    path, columns = folder/'features.sqlite', [*first[1].rows.columns, 'text', 'vector']
    folder.mkdir()
    def connect():
        connection = sqlite3.connect(path)
        connection.execute('pragma journal_mode = wal')
        connection.execute('pragma synchronous = normal')
        return connection
    base = connect()
    base.execute(f"create table features ({', '.join(columns[:-1])}, vector blob, primary key (id, kind, layer, source))")
    changes = ', '.join(f'{c} = excluded.{c}' for c in columns if c not in KEY)
    def upsert(texts, vectors):
        with base: base.executemany(f"insert into features values ({','.join('?'*len(columns))}) on conflict ({', '.join(KEY)}) do update set {changes} where text_hash != excluded.text_hash",
                                    ((*row, vector.tobytes()) for row, vector in zip(vectors.rows.assign(text=texts.text).itertuples(index=False, name=None), vectors.matrix)))
    one = "select vector from features where id = ? and kind = 'item' and layer = '' and source = 'flatten'"
    find = lambda b: np.stack([np.frombuffer(b.execute(one, (i,)).fetchone()[0], np.float32) for i in asked])
    took = {'first upsert': seconds(lambda: upsert(*first)), 'upsert of 10,000': seconds(lambda: upsert(*second)), 'size (MB)': megabytes(folder)}
    took |= {'open': seconds(lambda: connect().execute('select id from features limit 1').fetchall(), repetitions), 'lookup, cold': seconds(lambda: find(connect()), repetitions), 'lookup, warm': seconds(lambda: find(base), 10*repetitions)}
    everything = lambda: np.frombuffer(b''.join(v for v, in base.execute('select vector from features')), np.float32).reshape(-1, first[1].size)
    def nearest():
        matrix, q = everything(), first[1].matrix[7] + .1
        return np.argsort(-(matrix @ q)/np.linalg.norm(matrix, axis=1))[:10]
    return took | {'nearest 10': seconds(nearest), 'upsert of what is there': seconds(lambda: upsert(*second), repetitions)}


def flips(folder, truth, read, times=40):
    "What reading everything gives after one flipped bit: counts of error, right, wrong."
    files, found, chance = [p for p in folder.rglob('*') if p.is_file() and p.stat().st_size], dict(error=0, right=0, wrong=0), random.Random(0)
    for path in chance.choices(files, [p.stat().st_size for p in files], k=times):
        whole, at = path.read_bytes(), chance.randrange(path.stat().st_size)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1:])
        try:
            ids, matrix = read()
            found['right' if sorted(ids) == sorted(truth) and all((truth[i] == v).all() for i, v in zip(ids, matrix)) else 'wrong'] += 1
        except Exception: found['error'] += 1
        path.write_bytes(whole)
    return found


def damage(tmp):
    "The table of `flips`."
    texts, vectors = load([f'B{i}' for i in range(2000)], 384, 0, 'Gentle')
    truth = dict(zip(vectors.rows.id, vectors.matrix))
    FeatureStore(tmp/'store').upsert(texts, vectors)
    def from_store():
        back = FeatureStore(tmp/'store').vectors()
        return back.rows.id.tolist(), back.matrix
    found = {'feature store': flips(tmp/'store', truth, from_store)}
    (tmp/'sqlite').mkdir()
    with sqlite3.connect(tmp/'sqlite'/'features.sqlite') as base:
        base.execute('create table features (id primary key, vector blob)')
        base.executemany('insert into features values (?, ?)', ((i, v.tobytes()) for i, v in truth.items()))
    base.close()
    def from_sqlite():
        rows = sqlite3.connect(tmp/'sqlite'/'features.sqlite').execute('select id, vector from features').fetchall()
        return [i for i, _ in rows], [np.frombuffer(v, np.float32) for _, v in rows]
    found['SQLite'] = flips(tmp/'sqlite', truth, from_sqlite)
    try: import lancedb
    except ImportError: return found
    lancedb.connect(tmp/'lance').create_table('features', arrow(texts, vectors))
    def from_lance():
        rows = lancedb.connect(tmp/'lance').open_table('features').search().select(['id', 'vector']).limit(10_000).to_arrow()
        return rows['id'].to_pylist(), rows['vector'].combine_chunks().values.to_numpy().reshape(-1, 384)
    return found | {'LanceDB': flips(tmp/'lance', truth, from_lance)}


def main():
    given = [int(a) for a in sys.argv[1:]]
    rows, size, repetitions = given + [100_000, 384, 5][len(given):]
    ids = [f'B{i:09d}' for i in range(rows + UPSERT//2)]
    first, second = load(ids[:rows], size, 0, 'Gentle'), load(ids[rows - UPSERT//2:], size, 1, 'New')
    asked = np.random.default_rng(2).choice(ids, ASKED, replace=False).tolist()
    took = {}
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        took['feature store'] = ours(tmp/'store', first, second, asked, repetitions)
        clean = FeatureStore(tmp/'again')
        clean.upsert(*first)
        took['feature store'] |= {'upsert of all that is there': seconds(lambda: clean.upsert(*first), repetitions)}
        took['serving table'] = table_folder(tmp/'serving', FeatureStore(tmp/'store').vectors(), asked, repetitions)
        for name in ('store', 'again', 'serving'): shutil.rmtree(tmp/name)
        try: took['LanceDB'] = lance(tmp/'lance', first, second, asked, repetitions)
        except ImportError: print('LanceDB is not installed: left out')
        took['SQLite'] = sqlite(tmp/'sqlite', first, second, asked, repetitions)
        shutil.rmtree(tmp/'sqlite')
        shutil.rmtree(tmp/'lance', ignore_errors=True)
        found = damage(tmp)
    print(f'{rows:,} × {size}, {UPSERT:,} upserted of which half new, {ASKED:,} ids asked for; median of {repetitions}; on a busy machine only the processor time tells')
    print('size on disk (MB): ' + ', '.join(f"{name} {t.pop('size (MB)'):.0f}" for name, t in took.items()))
    for part, clock in enumerate(('wall', 'processor')):
        table = pd.DataFrame({name: {what: 1000*t[part] for what, t in times.items()} for name, times in took.items()})
        print(f'\n{clock} time (ms)\n' + table.to_string(na_rep='', float_format=lambda x: f'{x:,.2f}'))

    print('\none flipped bit, then everything read; of 40')
    print(pd.DataFrame(found).T.to_string())


if __name__ == '__main__': main()
