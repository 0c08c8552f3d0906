"Answers: reading what models write, and a store that several processes may use and any may be killed."
import multiprocessing, sqlite3, time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from pydantic import BaseModel, Field

from recx.text.answers import MAX_ANSWER, Answer, Answers, Decoding, InvalidAnswer, Request, answers_path, parse
from recx.text.prompts import Prompt


class Tags(BaseModel): tags: list[str] = Field(max_length=3)

PROMPT = Prompt('tags', '1', 'You tag.', '{item!fenced}', Tags)
def request(i=0, **changes): return replace(Request(str(i), 'item', '', PROMPT, dict(item=f'item {i}')), **changes)
GOOD = '{"tags": ["a"]}'


@pytest.mark.parametrize('raw', [GOOD, f' \n{GOOD}\n', f'```json\n{GOOD}\n```', f'Sure! {GOOD} Hope that helps {{smile}}', f'<think>maybe {{"tags": 3}} or {{"tags": []}}</think>{GOOD}', '{"tags": ["a"], "more": 1}', '\ufeff' + GOOD])
def test_what_is_around_the_answer_is_tolerated(raw): assert parse(Tags, raw) == dict(tags=['a'])


@pytest.mark.parametrize('raw, words', [('', 'empty'), ('  \n', 'empty'), ('no', 'no complete JSON'), ('[1]', 'no complete JSON'), ('{"tags": ["a"', 'no complete JSON'), ('{"tags": NaN}', 'no complete JSON'), ('{}', 'Field required'),
                                        ('{"tags": "a"}', 'valid list'), ('{"tags": ["a","b","c","d"]}', 'at most 3'), ('{"tags": ["\\ud800"]}', 'half a character'), ('{"tags": [null]}', 'tags.0'), ('x'*(MAX_ANSWER + 1), 'bytes'), ('{"a":'*150_000, 'no complete JSON')])
def test_invalid_answers_say_why(raw, words):
    start = time.process_time()
    with pytest.raises(InvalidAnswer, match=words) as e: parse(Tags, raw)
    assert len(str(e.value)) < 1000 and time.process_time() - start < 3


def test_a_megabyte_of_braces_takes_no_time():
    start = time.process_time()
    for raw in ('{'*MAX_ANSWER, '{"a":{"a":1},'*70_000, '{"tags": ['*90_000):
        with pytest.raises(InvalidAnswer): parse(Tags, raw)
    assert time.process_time() - start < 5


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_is_an_answer_or_a_reason(raw):
    try: Tags.model_validate(parse(Tags, raw))
    except InvalidAnswer: pass


def test_key_is_of_what_decides_the_answer():
    key = request().key('m', Decoding())
    assert key == request(id='9', kind='user', layer='L2').key('m', Decoding())
    changed = [request(fields=dict(item='item 1')), request(images=(b'a',)), request(images=(b'a', b'b')), request(images=(b'ab',)), request(prompt=replace(PROMPT, version='2'))]
    keys = {key, *(r.key('m', Decoding()) for r in changed), request().key('n', Decoding()), *(request().key('m', d) for d in (Decoding(temperature=.5), Decoding(max_tokens=9), Decoding(seed=1), Decoding(logprobs=True)))}
    assert len(keys) == 11
    assert request().key('m', Decoding(temperature=0)) == key


def test_store_keeps_the_first_answer_and_empties_quarantine(tmp_path):
    store = Answers(tmp_path/'a.sqlite')
    store.quarantine('k', request(), 'raw \ud800 \x00 😀', 'reason', 5)
    assert store.refused(['k', 'x']) == {'k'} and len(store.quarantined()) == 1
    store.put('k', Answer(dict(tags=['é😀']), float('nan'), model='m'), '')
    store.put('k', Answer(dict(tags=['other']), .5, model='m'), '')
    got = store.known(['k', 'x'])
    assert list(got) == ['k'] and got['k'].values == dict(tags=['é😀']) and np.isnan(got['k'].confidence)
    assert store.refused(['k']) == set() and store.quarantined().empty
    store.quarantine('u', request(1), '', 'reset', 5, cause='unreachable')
    assert store.refused(['u']) == set() and len(store.quarantined()) == 1
    store.release(['u'])
    assert store.quarantined().empty


def test_a_transaction_is_whole_or_not_there(tmp_path):
    store = Answers(tmp_path/'a.sqlite')
    with pytest.raises(TypeError): store.write(found=[('k', Answer(dict(tags=['a']), model='m'), '')], booked=[None])
    assert store.known(['k']) == {}
    store.put('k', Answer(dict(tags=['a']), model='m'))
    assert len(store.known(['k'])) == 1


def test_ledger_adds_up(tmp_path):
    store = Answers(tmp_path/'a.sqlite')
    for money in (.1, .2): store.book(dict(run='r', prompt='p', layer='L1', model='m', calls=1, money=money))
    store.book(dict(run='s', prompt='p', layer='L1', model='m', calls=7))
    assert store.ledger().calls.tolist() == [2, 7] and store.spent('r') == pytest.approx(.3) and store.spent('none') == 0


def write_many(path, who):
    store = Answers(path)
    for i in range(100): store.put(f'{i if i % 2 else (who, i)}', Answer(dict(tags=[who]), model='m'), 'raw')
    store.close()


def test_two_processes_write_at_once(tmp_path):
    path = tmp_path/'a.sqlite'
    Answers(path).close()
    writers = [multiprocessing.get_context('spawn').Process(target=write_many, args=(path, who)) for who in 'ab']
    for w in writers: w.start()
    for w in writers: w.join(60)
    assert [w.exitcode for w in writers] == [0, 0]
    assert len(Answers(path).table('SELECT key FROM answers')) == 150


def test_damaged_and_foreign_files_are_refused_and_left(tmp_path):
    path = tmp_path/'notes.sqlite'
    path.write_bytes(b'these are my notes'*100)
    with pytest.raises(ValueError, match='notes.sqlite'): Answers(path)
    assert path.read_bytes() == b'these are my notes'*100
    other = sqlite3.connect(tmp_path/'other.sqlite')
    other.execute('CREATE TABLE answers (x)'); other.commit(); other.close()
    with pytest.raises(ValueError, match='other.sqlite'): Answers(tmp_path/'other.sqlite')


def test_where_answers_are(store): assert answers_path() == store/'answers'/'answers.sqlite'
