"Prices, token counts and estimates: what is unknown, what is not downloaded, and sums worked by hand."
import math, os, socket
from dataclasses import replace
from types import SimpleNamespace
import pytest
from hypothesis import given, settings, strategies as st
from pydantic import BaseModel
from recx.text import prices
from recx.text.answers import Decoding, Request
from recx.text.prices import Price, PriceUnknown, estimate, minilm_counter, own_price, price_of, token_counter
from recx.text.prompts import Prompt, json_schema


class Film(BaseModel): genre: str


def requests(n, words=3, name='film'): return [Request(f'{name}{i}', 'item', '', Prompt(name, '1', 'word '*words, '{text}', Film), dict(text=f'film {i}')) for i in range(n)]


def limits(**changes): return SimpleNamespace(**dict(concurrency=4, per_request=1, requests_per_minute=0, tokens_per_minute=0) | changes)


PRICE, DECODING = Price(1., 10., .1, .5, 'test'), Decoding(max_tokens=50)


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **more): raise AssertionError('a connection was opened')
    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)


def test_nothing_is_downloaded(offline, monkeypatch):
    monkeypatch.delenv('TIKTOKEN_CACHE_DIR', raising=False)
    for f in (prices.token_counter, prices.tiktoken_encoding, prices.price_map): f.cache_clear()
    assert token_counter('openai/gpt-4o-mini')('a film about a film') == 5 and price_of('openai/gpt-4o-mini').output == .6
    assert token_counter('local:some-one/model@12ab').source == 'o200k_base' and minilm_counter()('a film') > 1
    assert 'TIKTOKEN_CACHE_DIR' not in os.environ


def test_without_tiktoken(monkeypatch):
    monkeypatch.setattr(prices, 'tiktoken_encoding', lambda: None)
    counter = token_counter.__wrapped__('openai/gpt-4o-mini')
    assert counter.source == 'MiniLM x 1.25' and counter('a film about a film') == math.ceil(1.25*5) and counter('') == 0


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_counted(text): assert token_counter('openai/gpt-4o-mini')(text) >= (len(text) > 0)


@pytest.mark.parametrize('model', ['no-such-model', 'openai/none', 'groq/gpt-4o-mini', 'nobody/gpt-4o-mini', '', '/', 'github_copilot/gpt-4o', 'perplexity/sonar-medium-online'])
def test_unknown_prices_are_refused(model):
    with pytest.raises(PriceUnknown, match='llm_price='): price_of(model)


def test_no_hosted_model_is_free():
    free = [m for m, e in prices.price_map().items() if e.get('mode') == 'chat' and e.get('litellm_provider') not in prices.AT_HOME and prices.map_entry(m) and price_of(m).input == 0]
    assert free == []


@pytest.mark.parametrize('own', ['x', '1', '1/2/3/4', '-1/2', 'inf/1', 'nan/nan', '/', '1/', '$1/$2'])
def test_own_price_refused(own):
    with pytest.raises(ValueError, match='llm_price='): price_of('gpt-4o-mini', own)


def test_own_price_goes_first():
    assert price_of('gpt-4o-mini', '1/2/.5') == own_price('1/2/.5') == Price(1., 2., .5, .5, 'llm_price') and price_of('nobody', ' 0/0 ').money(1e6, 1e6) == 0


def test_estimate_by_hand():
    count = token_counter('')
    schema, own = count(__import__('json').dumps(json_schema(Film))), count('film 0')
    prefix = count(requests(1)[0].prompt.instructions) + schema
    e = estimate(requests(10), 0, PRICE, DECODING, limits())
    assert (e.rows, e.known, e.calls, e.tokens_out, e.tokens_cached) == (10, 0, 10, 500, 0) and e.tokens_in == 10*(prefix + own + prices.OVERHEAD)
    assert e.money == pytest.approx((e.tokens_in*1 + 500*10)/1e6) and 'worst case' in e.note and 'none is cached' in e.note
    half = estimate(requests(10), 0, PRICE, DECODING, limits(), batch=True)
    assert half.money == pytest.approx(e.money/2) and half.seconds == 86400
    assert estimate(requests(10), 0, PRICE, DECODING, limits(per_request=4)).calls == 3


def test_caching_starts_at_the_bound():
    long = estimate(requests(10, words=1100), 0, PRICE, DECODING, limits())
    without = estimate(requests(10, words=1100), 0, PRICE, DECODING, limits(), caching=False)
    assert long.tokens_cached > 9*1100 and long.tokens_cached % 9 == 0 and long.tokens_in == without.tokens_in and without.tokens_cached == 0
    assert without.money - long.money == pytest.approx(long.tokens_cached*.9/1e6)


def test_known_rows_and_doubles_cost_nothing():
    rows = requests(10)
    keys = {r.key('film', DECODING) for r in rows[:4]}
    assert estimate(rows, keys, PRICE, DECODING, limits(), model='film').calls == 6
    assert estimate(rows, 4, PRICE, DECODING, limits()).calls == 6
    assert estimate(rows, 99, PRICE, DECODING, limits()).money == 0 and estimate([], 0, PRICE, DECODING, limits(), batch=True).seconds == 0
    twice = estimate(rows + [replace(r, id='other') for r in rows], 0, PRICE, DECODING, limits())
    assert (twice.rows, twice.known, twice.calls) == (20, 10, 10)
    with pytest.raises(ValueError, match='model='): estimate(rows, keys, PRICE, DECODING, limits())


def test_limits_decide_the_time():
    free, slow = (estimate(requests(120), 0, PRICE, DECODING, limits(requests_per_minute=n)).seconds for n in (0, 10))
    assert free == pytest.approx((120*1 + 120*50/50)/4) and slow == 720
    assert estimate(requests(120), 0, PRICE, DECODING, limits(tokens_per_minute=100)).seconds > 720


def test_pictures_are_counted():
    small, large = (replace(requests(1)[0], images=pictures) for pictures in ((b'\x89PNG' + b'x'*9,)*2, (b'\x89PNG' + b'x'*9,)*3))
    both = [estimate([r], 0, PRICE, DECODING, limits()).tokens_in for r in (small, large)]
    assert both[1] - both[0] == prices.IMAGE_TOKENS['high']


def test_many_rows_are_counted_from_a_sample(monkeypatch):
    monkeypatch.setattr(prices, 'SAMPLE', 10)
    few, all_ = estimate(requests(200), 0, PRICE, DECODING, limits()), None
    monkeypatch.setattr(prices, 'SAMPLE', 1000)
    all_ = estimate(requests(200), 0, PRICE, DECODING, limits())
    assert few.tokens_in == pytest.approx(all_.tokens_in, rel=.02)
