"What keeps a log of thirty million events in bounds, at a size that a test can bear: rows in order, ids that stay numbers, memory and files that grow with the events alone."
import time, tracemalloc
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st
from recx.data import stage
from recx.data.card import make_card
from recx.data.dataset import Dataset, Raw, positions
from recx.data.hm import read_hm
from recx.data.parameters import declared
from recx.data.prepare import DAY, codes_of, in_order, prepare, units
from recx.data.twins import make_fashion

PARAMS = declared(vars(stage)) | dict(split_by='week', on_duplicates='units')


def log(events, users, items=500, seed=0):
    "A log of days with ids of 64 letters, as numbers into their table."
    rng = np.random.default_rng(seed)
    names = pd.Index([f'{u:064x}' for u in range(users)])
    user, item = rng.integers(0, users, events), (items*rng.random(events)**3).astype(int)
    table = pd.DataFrame(dict(user=pd.Categorical.from_codes(user, names), item=pd.Categorical.from_codes(item, pd.Index([f'{i:010d}' for i in range(items)])), time=np.sort(rng.integers(0, 700, events))*DAY, value=1.))
    return Raw(pd.DataFrame(dict(item=[f'{i:010d}' for i in range(items)], title='x')), pd.DataFrame(dict(user=names)), table, dict(name='made', text_columns=['title'], time_kind='seconds', has_values=False, licence='none'))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 60), st.lists(st.integers(0, 62), min_size=1, max_size=4), st.integers(1, 86_400), st.integers(0, 9))
def test_rows_are_ordered_as_by_lexsort(n, widths, step, seed):
    "Keys of every width, so that they fit together into one number, in two goes, or not at all."
    rng = np.random.default_rng(seed)
    keys = [rng.integers(-2**width//2, 2**width//2 + 1, n)//step*step if rng.random() < .5 else rng.integers(0, 3, n) for width in widths]
    assert (in_order(*keys) == np.lexsort(keys[::-1])).all() if n else len(in_order(*keys)) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(1, 5)), min_size=1, max_size=50), st.booleans())
def test_units_against_a_dictionary(rows, coded):
    events = pd.DataFrame([(f'u{u}', t, f'i{i}', v) for u, t, i, v in rows], columns=['user', 'time', 'item', 'value'])
    first, total = units(events.astype(dict(user='category', item='category')) if coded else events)
    sums, seen = {}, set()
    for u, t, i, v in rows: sums[u, t, i] = sums.get((u, t, i), 0) + v
    for (u, t, i, _), stays, value in zip(rows, first, total):
        assert stays == ((u, t, i) not in seen) and value == (sums[u, t, i] if stays else 0)
        seen.add((u, t, i))


def test_ids_are_looked_up_in_their_table_and_never_written_out():
    "Per event a few numbers are held; 64 letters each, let alone Python objects, would be ten times as much."
    raw = log(400_000, 20_000)
    tracemalloc.start()
    data = prepare(raw, PARAMS)
    data.codes(), data.item_strata, data.user_strata
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak/len(raw.events) < 260, f'{peak/len(raw.events):.0f} bytes per event'
    assert all(isinstance(data.events[c].dtype, pd.CategoricalDtype) for c in ('user', 'item', 'split'))


def test_the_table_of_ids_is_stored_once(tmp_path):
    "Twice the events of the same users take less than twice the room; a group of rows each with a table of its own, or ids written out, would not."
    sizes = {}
    for events in (100_000, 200_000, 2_200_000):
        data = prepare(log(events, 20_000), PARAMS)
        data.card = make_card(log(10, 5), data, PARAMS, {})
        data.save(tmp_path)
        sizes[events] = (tmp_path/'events.parquet').stat().st_size
        assert pq.ParquetFile(tmp_path/'events.parquet').num_row_groups == 1
    assert sizes[2_200_000] < 20_000*70 + 8*2_200_000
    back = Dataset.load(tmp_path)
    assert back.events.equals(data.events) and all((a == b).all() for a, b in zip(back.codes(), data.codes()))
    assert list(back.events.user.cat.categories) == list(back.user_ids)


def test_text_and_numbers_give_the_same_data_set(tmp_path):
    coded = log(20_000, 900)
    text = Raw(coded.items, coded.users, coded.events.astype(dict(user=str, item=str)), coded.about)
    for change in (dict(), dict(split_by='leave-one-out'), dict(split_by='time', kcore=5), dict(split_by='ratio', max_history=10), dict(ties='shuffle', split_by='leave-one-out'), dict(cold_items=.1, cold_users=.1), dict(on_duplicates='first'), dict(on_duplicates='keep'), dict(catalogue='all')):
        a, b = prepare(coded, PARAMS | change), prepare(text, PARAMS | change)
        assert a.card == b.card and a.users.equals(b.users) and a.items.equals(b.items)
        assert (a.events.astype(dict(user=str, item=str, split=str)).astype(object) == b.events.astype(object)).all(axis=None), change


def test_unknown_ids_stay_unknown_among_numbers():
    values = pd.Series(pd.Categorical.from_codes([0, 2, -1, 1], ['a', 'b', 'c']))
    assert positions(np.array(['c', 'a'], dtype=object), values).tolist() == [1, 0, -1, -1] and codes_of(values).tolist() == [0, 2, -1, 1]


def test_a_log_in_many_blocks_is_read_as_in_one(tmp_path, monkeypatch):
    "Each block of the file brings a table of ids of its own; joined, they are one."
    place = make_fashion(tmp_path/'shop', users=400, items=200, events=6000)
    whole = read_hm(place)
    monkeypatch.setattr('recx.data.columns.BLOCK', 4096)
    parts = read_hm(place)
    assert parts.events.astype(dict(user=str, item=str)).equals(whole.events.astype(dict(user=str, item=str))) and parts.items.equals(whole.items) and parts.users.equals(whole.users)


def test_time_grows_with_the_events():
    "Four times the events in less than nine times the time: no step compares events with events."
    seconds = {}
    for events in (100_000, 400_000):
        raw = log(events, events//20)
        seconds[events] = min(_timed(lambda: prepare(raw, PARAMS)) for _ in range(3))
    assert seconds[400_000] < 9*seconds[100_000], seconds


def _timed(job):
    start = time.process_time()
    job()
    return time.process_time() - start
