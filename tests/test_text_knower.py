"The simulated knower: right as often as asked, as sure as asked, over the interface of a real model."
import json, math, urllib.request
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from recx.data.twins import make_fashion, make_music
from recx.text.answers import Answers, Decoding
from recx.text.clients import make_client
from recx.text.harness import Limits, generate
from recx.text.knower import ACCURACY, Knower, KnowerServer, chance_of, completion, knower_of
from recx.text.layers import POLICY, extract_layers, reliability
from recx.text.prices import Price

PARAMS = dict(layers='L1,L2,L3', domain='fashion', text_columns='', max_tokens=128, tokenizer='minilm', escalate_below=.8, confidence_by='stated', llm_temperature=0., embed_model='minilm', image_folder='', audio_folder='')
SEEN = 'prod_name,product_type_name,perceived_colour_master_name,graphical_appearance_name,detail_desc'.split(',')


@pytest.fixture(scope='module')
def shop(tmp_path_factory):
    "The catalogue of a twin as a data set, and its truth."
    folder = make_fashion(tmp_path_factory.mktemp('hm'), items=200)
    things = pd.read_csv(folder/'articles.csv', dtype=str).rename(columns=dict(article_id='item'))
    planted = pd.read_parquet(folder/'planted'/'items.parquet')
    return SimpleNamespace(items=things, card=dict(name='sim-fashion', text_columns=SEEN)), planted


def desk(base, answers, by='stated', per_request=1, names=lambda tier: tier):
    "Asks a server through the harness, and keeps the ledger."
    outcomes = []
    def ask(requests, tier):
        decoding = Decoding(temperature=.7 if by == 'consistency' else 0., logprobs=by == 'logprob')
        outcomes.append(generate(requests, make_client(names(tier), base), answers, decoding, Limits(concurrency=8, per_request=per_request), Price(1., 4., 1., 1., 'stated'), progress=False))
        assert not outcomes[-1].stopped and not len(outcomes[-1].quarantined)
        return outcomes[-1].answers
    ask.ledger = lambda: pd.concat([o.ledger for o in outcomes]) if outcomes else pd.DataFrame()
    return ask


def judged(found, planted):
    "The answers of language models about what the world has, with the truth."
    true = planted.set_index('item')
    table = found.attributes[found.attributes.source.isin(list(ACCURACY)) & found.attributes.attribute.isin(true.columns)]
    return table.assign(right=[v == true.at[i, a] for i, a, v in zip(table['id'], table.attribute, table.value)])


def test_each_tier_is_right_as_often_as_asked_and_as_sure_as_it_may_be(shop):
    data, planted = shop
    for hidden in (0., .6):
        knower = knower_of(data, planted, overconfidence=hidden, accuracy=dict(light=.55, mid=.8, high=.97))
        for tier, share in knower.accuracy.items():
            said = [(item, name, *knower.say(tier, item, name)) for item in data.items.item for name in knower.truth]
            right, sure = np.array([v == knower.truth.at[i, n] for i, n, v, _ in said]), np.array([s for *_, s in said])
            assert right.mean() == pytest.approx(share, abs=4*math.sqrt(share*(1 - share)/len(said)))
            assert sure.mean() == pytest.approx(1 - (1 - share)*(1 - hidden), abs=.02)
            error = reliability(sure, right)[1]
            assert error < .05 if not hidden else error > .3*(1 - share)

@pytest.mark.parametrize('make, read', [(make_fashion, lambda f: pd.read_csv(f/'articles.csv', dtype=str).rename(columns=dict(article_id='item'))),
                                        (make_music, lambda f: pd.read_csv(f/'songs.csv', dtype=str).merge(pd.read_csv(f/'song_extra_info.csv', dtype=str)).rename(columns=dict(song_id='item')))])
@pytest.mark.parametrize('share', [0., .5])
def test_it_knows_no_more_than_the_items_show(tmp_path, make, read, share):
    folder = make(tmp_path/'twin', items=400, events=16_000, text=share)
    things, planted = read(folder), pd.read_parquet(folder/'planted'/'items.parquet')
    data = SimpleNamespace(items=things, card=dict(name='twin', text_columns=['detail_desc', 'prod_name'] if 'detail_desc' in things else ['name', 'artist_name', 'isrc']))
    knower, true = knower_of(data, planted, accuracy=dict(mid=1.)), planted.set_index('item')
    names = [name for name in knower.truth if true[name].nunique() > 3]
    assert len(names) >= 7 and not [name for name in knower.truth if name.startswith('shown_')]
    for rows, legible in ((true[~true.legible], False), (true[true.legible], True)):
        if not len(rows): continue
        right = pd.Series({name: np.mean([knower.say('mid', i, name)[0] == rows.at[i, name] for i in rows.index]) for name in names})
        assert (right == 1).all() if legible else right.mean() < .25 and right.max() < .4


def test_a_hard_question_is_hard_for_every_tier():
    assert all(chance_of(a, 0.) == pytest.approx(min(1., 2*a)) and chance_of(a, .2) > chance_of(a, .9) for a in (.2, .5, .8))

@pytest.mark.parametrize('by', ['stated', 'logprob', 'consistency'])
def test_the_ladder_over_http(shop, by, tmp_path):
    data, planted = shop
    answers, few = Answers(tmp_path/'a.sqlite'), SimpleNamespace(items=data.items.head(70), card=data.card)
    with KnowerServer(knower_of(data, planted)) as server:
        ask = desk(server.base, answers, by)
        found = extract_layers(few, PARAMS | dict(confidence_by=by, llm_temperature=.7, escalate_below=.85), ask)
        first = dict(server.calls)
        again = extract_layers(few, PARAMS | dict(confidence_by=by, llm_temperature=.7, escalate_below=.85), desk(server.base, answers, by))
    assert first == dict(server.calls) and set(first) == {'light', 'mid', 'high'} # the second time all is known
    pd.testing.assert_frame_equal(found.attributes, again.attributes)
    table = judged(found, planted)
    assert len(table) > 300 and table.confidence.between(0, 1).all()
    if by == 'stated': assert reliability(table.confidence, table.right)[1] < .08
    assert table[table.source == 'high'].right.mean() > .85
    assert ask.ledger().money.sum() > 0

def test_a_higher_threshold_costs_more_and_errs_less(shop, tmp_path):
    data, planted = shop
    spent, right = [], []
    for threshold in (0., .8, 1.):
        answers = Answers(tmp_path/f'{threshold}.sqlite')
        with KnowerServer(knower_of(data, planted)) as server:
            ask = desk(server.base, answers)
            table = judged(extract_layers(SimpleNamespace(items=data.items.head(60), card=data.card), PARAMS | dict(layers='L2', escalate_below=threshold), ask), planted)
        spent.append(float(ask.ledger().money.sum())); right.append(table.right.mean())
    assert spent[0] < spent[1] <= spent[2] and right[0] + .03 < right[1] and right[1] <= right[2] + .05
    assert right[0] == pytest.approx(ACCURACY[POLICY['L2'].tiers[0]], abs=.07)

def test_several_items_in_one_call(shop, tmp_path):
    data, planted = shop
    few, found = SimpleNamespace(items=data.items.head(24), card=data.card), []
    with KnowerServer(knower_of(data, planted)) as server:
        for n in (1, 6):
            found.append(extract_layers(few, PARAMS | dict(escalate_below=0.), desk(server.base, Answers(tmp_path/f'{n}.sqlite'), per_request=n)).attributes)
            calls = sum(server.calls.values()); server.calls.clear()
    assert calls <= 14 # 3 layers, 4 calls each, and one where what is asked for differs
    pd.testing.assert_frame_equal(*found)

def test_music_has_a_third_layer_that_text_can_be_asked_for(tmp_path):
    folder = make_music(tmp_path/'kkbox', items=60, events=6000)
    songs = pd.read_csv(folder/'songs.csv', dtype=str).merge(pd.read_csv(folder/'song_extra_info.csv', dtype=str)).rename(columns=dict(song_id='item'))
    data, planted = SimpleNamespace(items=songs, card=dict(name='sim-music', text_columns=['name', 'artist_name', 'isrc'])), pd.read_parquet(folder/'planted'/'items.parquet')
    with KnowerServer(knower_of(data, planted, accuracy=dict(light=1., mid=1., high=1.))) as server:
        found = extract_layers(data, PARAMS | dict(domain='music'), desk(server.base, Answers(tmp_path/'a.sqlite')))
    table = judged(found, planted)
    assert table.right.all() and {'form', 'lineage'} == set(table[table.layer == 'L3'].attribute) and {'mood', 'listening_context', 'lyrical_theme'} == set(table[table.layer == 'L2'].attribute)

def test_a_fixed_port_gives_the_same_address_again(shop):
    data, planted = shop
    with KnowerServer(knower_of(data, planted)) as first: base, port = first.base, first.server_address[1]
    with KnowerServer(knower_of(data, planted), port) as second: assert second.base == base

def test_what_it_cannot_answer_is_refused_in_words(shop):
    data, planted = shop
    with KnowerServer(knower_of(data, planted)) as server:
        for body, said in ((dict(model='gpt-4o', messages=[]), 'light, mid, high'), (dict(model='mid', messages=[dict(role='user', content='Hello')]), 'response_format'), ([], '')):
            with pytest.raises(urllib.error.HTTPError) as e: urllib.request.urlopen(urllib.request.Request(f'{server.base}/chat/completions', json.dumps(body).encode(), {'Content-Type': 'application/json'}), timeout=10)
            assert e.value.code == 400 and said in json.loads(e.value.read())['error']['message']
    for wrong, said in ((dict(accuracy=dict(light=1.2)), "accuracy\\['light'\\]=1.2"), (dict(overconfidence=-1), 'overconfidence=-1')):
        with pytest.raises(ValueError, match=said): knower_of(data, planted, **wrong)
    with pytest.raises(ValueError, match='planted'): knower_of(data, planted.assign(item='x'))

def test_answers_do_not_depend_on_when_they_are_asked():
    truth = pd.DataFrame(dict(mood=['calm', 'bold']), index=['a', 'b'])
    one, two = Knower({'<<<\nx\n>>>': 'a'}, truth), Knower({'<<<\nx\n>>>': 'a'}, truth, seed=1)
    form = dict(json_schema=dict(schema=dict(type='object', properties=dict(mood=dict(type='string')))))
    body = dict(model='light@b', messages=[dict(role='user', content='The article:\n<<<\nx\n>>>')], response_format=form)
    assert completion(one, body) == completion(one, body)
    assert any(one.say('light', 'a', 'mood', str(k)) != two.say('light', 'a', 'mood', str(k)) for k in range(30))
