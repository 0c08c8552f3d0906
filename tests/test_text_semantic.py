"Who takes over whose answer, and what is reported about it."
import math
from typing import Literal, Optional
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from pydantic import BaseModel
from recx.text.answers import Answer, Request
from recx.text.prompts import Prompt
from recx.text.semantic import BLOCK, SemanticCache, disagreements, drawn, mean_interval, nearest, reuse


class Detail(BaseModel):
    colour: Literal['red', 'blue']
    confidence: float = 1.


class Thing(BaseModel):
    detail: Detail
    tags: list[str]
    words: Optional[str] = None
    count: int = 0


PROMPT = Prompt('thing', '1', 'You describe things.', '{thing!fenced} in {n} words', Thing)
RED = dict(detail=dict(colour='red', confidence=.5), tags=['a'], words='warm', count=1)


def asked(id, text, n=3, kind='item', layer='', images=(), prompt=PROMPT): return Request(str(id), kind, layer, prompt, dict(thing=text, n=n), images)


class Knower:
    def __init__(self, fails=()): self.calls, self.fails, self.ledger = [], set(fails), 'the ledger'
    def __call__(self, requests, tier):
        self.calls.append([r.id for r in requests])
        return {r.row: Answer(dict(RED, tags=[str(r.fields['thing'])])) for r in requests if r.id not in self.fails}


def unit(rows): return (rows/np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def plainly(vectors, known, threshold):
    "The leader algorithm as one would write it first."
    leaders, donor = list(range(len(known))), []
    every = np.concatenate([known, vectors])
    for i in range(len(vectors)):
        cosines = every[leaders]@vectors[i] if leaders else np.array([-2.])
        if cosines.max() >= threshold - 1e-6: donor.append(leaders[int(cosines.argmax())])
        else: donor.append(-1); leaders.append(len(known) + i)
    return donor


@pytest.mark.parametrize('n, k, d, threshold', [(50, 0, 3, .9), (300, 20, 4, .8), (BLOCK + 300, 5, 6, .7), (40, 10, 8, 0.), (2*BLOCK + 1, 0, 3, .99)])
def test_blocks_give_what_the_plain_loop_gives(n, k, d, threshold):
    rng = np.random.default_rng(n)
    vectors, known = unit(rng.normal(size=(n, d))), unit(rng.normal(size=(k, d))) if k else np.zeros((0, d), np.float32)
    donor, cosine = reuse(vectors, known, threshold)
    wanted, every = np.array(plainly(vectors, known, threshold)), np.concatenate([known, vectors])
    taken = donor >= 0
    assert ((wanted >= 0) == taken).all()
    assert np.allclose((every[donor[taken]]*vectors[taken]).sum(1), (every[wanted[taken]]*vectors[taken]).sum(1), atol=1e-5)
    assert all(donor[d - k] == -1 for d in donor[taken] if d >= k) and (cosine[taken] >= threshold - 1e-5).all()


def test_empty_and_single():
    none = np.zeros((0, 4), np.float32)
    assert reuse(none, none, .9)[0].tolist() == [] and reuse(np.eye(1, 4), none, .9)[0].tolist() == [-1]
    assert nearest(np.eye(2, 4), none)[0].tolist() == [-1, -1]


@pytest.mark.parametrize('vectors, threshold, words', [(np.full((2, 3), np.nan), .9, 'NaN'), (np.ones((2, 3)), .9, 'length 1'), (np.ones(3), .9, 'shape'), (np.eye(3), 1.1, 'semantic_threshold'), (np.eye(3), float('nan'), 'semantic_threshold'), (np.zeros((1, 3)), .9, 'length 1')])
def test_bad_vectors_are_refused(vectors, threshold, words):
    with pytest.raises(ValueError, match=words): reuse(vectors, np.zeros((0, 3)), threshold)


def test_equal_texts_share_at_the_strictest_threshold_and_save_no_call():
    knower = Knower()
    cache = SemanticCache(knower, 1., check=0)
    answers = cache([asked(i, t) for i, t in enumerate(['red shirt', 'red shirt', 'a film about war', 'red shirt'])], 'light')
    assert knower.calls == [['0', '2']] and [answers['item', str(i), ''].source for i in range(4)] == ['call', 'semantic', 'call', 'semantic']
    assert cache.report()['reused'] == 2 and cache.report()['calls_saved'] == 0 # the harness would not have asked twice either


def test_only_the_like_may_share():
    other = Prompt('thing', '2', 'You describe things.', '{thing!fenced} in {n} words', Thing)
    unlike = [asked(1, 'x'), asked(2, 'x', n=4), asked(3, 'x', kind='user'), asked(1, 'x', kind='user', layer='L1'), asked(4, 'x', images=(b'p',)), asked(5, 'x', prompt=other), asked(6, ''), asked(7, ' ')]
    knower = Knower()
    answers = SemanticCache(knower, .5)(unlike, 'light')
    assert len(knower.calls[0]) == len(answers) == len(unlike) and {a.source for a in answers.values()} == {'call'}


@pytest.mark.parametrize('text', ['🎬🍿', 'שמפו לשיער', '電影', 'a\x00b', 'half \ud800'])
def test_odd_texts_pass(text): assert len(SemanticCache(Knower(), .9)([asked(1, text), asked(2, text)], 'light')) == 2


def test_items_and_users_with_one_id_stay_apart():
    answers = SemanticCache(Knower(), .9, check=0)([asked(1, 'a war film'), asked(1, 'likes opera', kind='user'), asked(2, 'a war film')], 'light')
    assert answers['user', '1', ''].values['tags'] == ['likes opera'] and answers['item', '2', ''].values['tags'] == ['a war film']


def test_followers_of_a_failed_leader_are_asked():
    knower = Knower(fails=['0'])
    cache = SemanticCache(knower, 1., check=0)
    answers = cache([asked(i, 'same') for i in range(3)], 'light')
    assert knower.calls == [['0'], ['1', '2']] and set(answers) == {('item', '1', ''), ('item', '2', '')}
    assert cache.report()['failed_leaders'] == 1 and cache.report()['reused'] == 0


def test_a_checked_row_keeps_its_own_answer_and_the_sample_stays():
    knower = Knower()
    cache = SemanticCache(knower, .3, check=1.)
    answers = cache([asked(i, f'shirt number {i}') for i in range(6)], 'light')
    report = cache.report()
    assert {a.source for a in answers.values()} == {'call'} and report['checked'] == report['reused'] > 0 and report['calls_saved'] == 0
    assert report['low'] < report['disagreement'] < report['high'] and len(knower.calls) == 1
    sample = {i for i in range(2000) if drawn(('item', str(i), ''), .1, 0)}
    assert 140 < len(sample) < 260 and sample == {i for i in range(2000) if drawn(('item', str(i), ''), .1, 0)} <= {i for i in range(2000) if drawn(('item', str(i), ''), .2, 0)}
    assert not any(drawn(('item', str(i), ''), 0., 0) for i in range(100))


def test_reports_add_up_over_calls_and_say_nan_where_nothing_is_known():
    cache = SemanticCache(Knower(), 1., check=0)
    assert math.isnan(cache.report()['reuse_rate']) and math.isnan(cache.report()['disagreement'])
    for tier in ('light', 'high'): cache([asked(1, 'a'), asked(2, 'a')], tier)
    assert cache.report()['rows'] == 4 and cache.report()['reuse_rate'] == .5 and math.isnan(cache.report()['low']) and cache.by_attribute().empty
    assert cache.ledger == 'the ledger' and cache([], 'light') == {}


def test_disagreement_by_attribute():
    def parts(**changes): return disagreements([(Thing, RED, RED | changes)])[0]
    assert parts() == {'detail.colour': 0., 'tags': 0., 'words': 0., 'count': 0.}
    assert parts(detail=dict(colour='red', confidence=.9)) == parts() and parts(detail=dict(colour='blue'))['detail.colour'] == 1
    assert parts(tags=['A', 'b'])['tags'] == .5 and parts(tags=[])['tags'] == 1 and parts(count=2)['count'] == 1 and parts(words=None)['words'] == 1
    assert 0 < parts(words='hot')['words'] < parts(words='a treaty of commerce')['words'] <= 1


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 500), st.floats(0, 1))
def test_the_interval_holds_the_mean(n, mean):
    low, high = mean_interval(mean, n)
    assert 0 <= low <= mean + 1e-9 and mean - 1e-9 <= high <= 1 and high - low > 0
