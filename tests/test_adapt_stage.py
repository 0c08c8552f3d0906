"The adapt stage on made artefacts: ids, training items, files, bytes, and what it refuses."
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from recx.adapt import stage
from recx.adapt.inspect import kept_neighbours, neighbour_table, titles
from recx.adapt.reduce import Reduction
from recx.data.dataset import Dataset
from recx.data.parameters import declared
from recx.data.stage import small as small_data
from recx.extract.vectors import ROW_COLUMNS, Vectors


def rows_of(ids, kind='item'):
    return pd.DataFrame({c: '' for c in ROW_COLUMNS}, index=range(len(ids))).assign(id=ids, kind=kind)


@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
    "A small data set and made vectors of its items, in another order, with rows of users among them."
    folder = tmp_path_factory.mktemp('adapt')
    data = Dataset.load(small_data(folder/'data'))
    rng = np.random.default_rng(0)
    ids, users = rng.permutation(data.item_ids), data.user_ids[:7]
    matrix = rng.standard_normal(24)*2 + rng.standard_normal((len(ids) + 7, 24))/np.arange(1, 25)
    (folder/'vectors').mkdir()
    Vectors(pd.concat([rows_of(users, 'user'), rows_of(ids)], ignore_index=True), matrix).save(folder/'vectors')
    return dict(data=folder/'data', vectors=folder/'vectors')


def go(inputs, out, **changes):
    out.mkdir()
    params = declared(vars(stage)) | changes
    stage.check(params)
    return stage.run(params, inputs, out)


CASES = dict(none={}, pca=dict(reduce='pca', reduce_size=8), whiten=dict(reduce='whiten', reduce_size=8), pq=dict(reduce='pq', pq_parts=4, pq_codes=8))


@pytest.mark.parametrize('case', CASES)
def test_artefact(inputs, tmp_path, case):
    out = go(inputs, tmp_path/'a', **CASES[case])
    data, source, reduced, about = Dataset.load(inputs['data']), Vectors.load(inputs['vectors']), Vectors.load(out), json.loads((out/'diagnostics.json').read_text(encoding='utf-8'))
    assert {p.name for p in out.iterdir()} == {'vectors.npy', 'vectors.parquet', 'transform.npz', 'diagnostics.json'} | ({'codes.parquet'} if case == 'pq' else set())
    pd.testing.assert_frame_equal(reduced.rows, source.rows)
    items = reduced.align(data.item_ids)
    assert np.square(items[data.train_items]).sum(1).mean() == pytest.approx(1, abs=1e-4)
    transform = Reduction.load(out/'transform.npz')
    assert (transform.apply(source.align(data.item_ids)) == items).all()
    assert (transform.apply(source.align(data.user_ids[:7], kind='user')) == reduced.align(data.user_ids[:7], kind='user')).all()
    assert about['size_after'] == items.shape[1] and about['train_items'] == data.train_items.sum() and 0 < about['explained_variance'] <= 1 + 1e-9
    assert set(about['neighbours'][0]) >= {'title', 'before', 'after'} and about['mean_cosine_before'] > .5
    if case in ('pca', 'whiten'): assert abs(about['mean_cosine_after']) < .1


@pytest.mark.parametrize('case', CASES)
def test_same_bytes(inputs, tmp_path, case):
    a, b = go(inputs, tmp_path/'a', **CASES[case]), go(inputs, tmp_path/'b', **CASES[case])
    for p in a.iterdir(): assert p.read_bytes() == (b/p.name).read_bytes(), p.name


def test_items_not_met_in_training_do_not_shape_the_space(inputs, tmp_path):
    data, source = Dataset.load(inputs['data']), Vectors.load(inputs['vectors'])
    cold = set(data.item_ids[~data.train_items])
    assert cold, 'the toy has items that only occur after training'
    mine = source.rows.id.isin(cold) & (source.rows.kind == 'item')
    (tmp_path/'wild').mkdir()
    Vectors(source.rows, np.where(mine.to_numpy()[:, None], 100*source.matrix, source.matrix)).save(tmp_path/'wild')
    a, b = go(inputs, tmp_path/'a', **CASES['pca']), go(inputs | dict(vectors=tmp_path/'wild'), tmp_path/'b', **CASES['pca'])
    assert (a/'transform.npz').read_bytes() == (b/'transform.npz').read_bytes()


def test_missing_item_is_named_and_nothing_left(inputs, tmp_path):
    source = Vectors.load(inputs['vectors'])
    lost = source.rows.id.iloc[-1]
    (tmp_path/'less').mkdir()
    Vectors(source.rows[:-1], source.matrix[:-1]).save(tmp_path/'less')
    with pytest.raises(ValueError, match=lost): go(inputs | dict(vectors=tmp_path/'less'), tmp_path/'a')
    assert not list((tmp_path/'a').iterdir())


def test_size_too_large_names_the_largest(inputs, tmp_path):
    with pytest.raises(ValueError, match='reduce_size=25: .* between 1 and 24'): go(inputs, tmp_path/'a', reduce='pca', reduce_size=25)
    assert not list((tmp_path/'a').iterdir())


def test_a_killed_run_is_overwritten(inputs, tmp_path):
    a = go(inputs, tmp_path/'a', **CASES['pca'])
    shutil.copytree(a, tmp_path/'b')
    (tmp_path/'b'/'vectors.npy').write_bytes(b'half')
    b = stage.run(declared(vars(stage)) | CASES['pca'], inputs, tmp_path/'b')
    assert (a/'vectors.npy').read_bytes() == (b/'vectors.npy').read_bytes()


@pytest.mark.parametrize('change', [dict(reduce='svd'), dict(reduce_size='many'), dict(reduce_size=6.5), dict(reduce_size=-1), dict(pq_parts=0), dict(pq_codes=1), dict(reduce_seed=-1)])
def test_check_refuses(change):
    (name, _), = change.items()
    with pytest.raises(ValueError, match=name): stage.check(declared(vars(stage)) | change)


def test_titles_of_any_kind():
    names = ['Tom &amp; <b>Jerry</b>', 'a\nb "quoted"', 'שלום עולם', None, 'x'*200]
    items = pd.DataFrame(dict(item=[f'i{n}' for n in range(5)], title=names))
    events = pd.DataFrame(dict(user='u', item=items.item, time=range(5), value=1., split='train'))
    shelf = Dataset(items, pd.DataFrame(dict(user=['u'])), events, dict(name='shelf', text_columns=['title']))
    called = titles(shelf)
    assert called[:4].tolist() == ['Tom & Jerry', 'a b "quoted"', 'שלום עולם', 'i3'] and len(called[4]) == 60
    space = np.random.default_rng(0).standard_normal((5, 3))
    json.dumps(neighbour_table(space, space, shelf).to_dict('records'))
    assert kept_neighbours(space, space[:, :2]*[[2.]]) <= 1
    with pytest.raises(ValueError, match='align'): neighbour_table(space[:4], space, shelf)
