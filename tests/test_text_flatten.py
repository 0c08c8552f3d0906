"Odd text, bad input, and properties of the text stage."
import json, math
from functools import cache
from types import SimpleNamespace
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from recx.data.dataset import Dataset
from recx.data.parameters import declared
from recx.text import stage
from recx.text.flatten import clean_string, clean_value, declared_columns, flatten, flatten_items
from recx.text.texts import COLUMNS, load_texts, make_texts, save_texts
from recx.text.tokens import cap_texts, load_tokenizer, model_digest, model_folder, token_counts

PARAMS = dict(describe='flatten', text_columns='', max_tokens=128, tokenizer='minilm')
ODD = {
    'A &amp; B': 'A & B', 'A &amp;amp; B': 'A & B', 'caf&eacute;': 'café', '&lt;br&gt;x': 'x',
    '<p class="a">One</p><p>Two</p>': 'One Two', 'so<b>lo</b>': 'solo', '<BR />x<hr>': 'x', '<script>if (a<b) {x}</script>tail': 'tail',
    '3 < 4 and 5 > 2': '3 < 4 and 5 > 2', 'I <3 U': 'I <3 U', '<Unplugged>': '<Unplugged>', '<b': '<b',
    'line\r\nbreak\ttab\x0bvt\x1besc': 'line break tab vt esc', 'a\u00a0b\u2003c\u2028d': 'a b c d', '\ufeffx\u200by': 'xy',
    '"quoted" \'it\'s\' «fr» „de“': '"quoted" \'it\'s\' «fr» „de“', 'مرحبا بالعالم': 'مرحبا بالعالم', 'می\u200cخواهم': 'می\u200cخواهم',
    '\u202eabc\u202c': '\u202eabc\u202c', '👩\u200d🚀 kit': '👩\u200d🚀 kit', 'e\u0301': 'é', 'x\ud800y': 'xy',
    'nan': '', 'None': '', '<NA>': '', 'N/A': '', '  ': '', '\x00': '', 'Nan': 'Nan', 'nano': 'nano',
}


@cache
def minilm_tokenizer(): return load_tokenizer('minilm')


@pytest.fixture
def tokenizer(): return minilm_tokenizer()


def shop(**columns):
    items = pd.DataFrame(columns)
    items.insert(0, 'item', [f'i{i}' for i in range(len(items))])
    return SimpleNamespace(items=items, card=dict(name='shop', text_columns=list(columns)), item_ids=items.item.to_numpy())


@pytest.mark.parametrize('given_text, wanted', ODD.items())
def test_odd_text(given_text, wanted): assert clean_string(given_text) == wanted


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_clean_text_is_one_storable_line(text):
    clean = clean_string(text)
    clean.encode('utf-8')
    assert clean == ' '.join(clean.split()) and not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in clean)


@pytest.mark.parametrize('value', [None, float('nan'), pd.NA, pd.NaT, [], (), {}, [None, float('nan'), ' '], {'a': None}, '', 'nan', [[], ['None']]])
def test_nothing_is_left_out_with_its_name(value):
    assert flatten_items(pd.DataFrame(dict(item=['1'], title=['Heat'], more=[value])), ['title', 'more']) == ['title: Heat']


def test_numbers_and_lists():
    assert [clean_value(v) for v in (1995.0, 0, False, 2.5, math.inf, ['a', ['b', 'c']], pd.Timestamp('2020-02-03').date())] == ['1995', '0', 'False', '2.5', 'inf', 'a, b, c', '2020-02-03']


def test_parquet_lists_come_back_as_arrays(tmp_path):
    shop(categories=[['Hair', 'Care'], [], None]).items.to_parquet(tmp_path/'items.parquet')
    assert flatten_items(pd.read_parquet(tmp_path/'items.parquet'), ['categories']) == ['categories: Hair, Care', '', '']


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(max_size=80), max_size=6), limit=st.integers(3, 30))
def test_cap_keeps_to_the_limit_and_counts(texts, limit):
    tokenizer = minilm_tokenizer()
    texts = [clean_string(t) for t in texts]
    capped, tokens, cut = cap_texts(texts, limit, tokenizer)
    full, now = token_counts(texts, tokenizer), token_counts(capped, tokenizer)
    for before, after, n, c, f, m in zip(texts, capped, tokens, cut, full, now):
        assert before.startswith(after) and n <= limit and m <= limit
        assert (c > 0) == (f > limit) and (after == before or f > limit)
        assert n == (m if after else 0) and c == (f - m if f > limit else 0)


def test_script_without_spaces_is_cut_between_tokens(tokenizer):
    (text,), (n,), (cut,) = cap_texts(['化粧水' * 60], 20, tokenizer)
    assert text and n <= 20 and cut > 0


def test_items_without_text_are_kept_empty_and_counted(tmp_path):
    rows = flatten(shop(title=['Heat', None, '&nbsp;']), PARAMS)
    save_texts(rows, tmp_path)
    assert rows.text.tolist() == ['title: Heat', '', ''] and rows.tokens.tolist() == [5, 0, 0]
    assert json.loads((tmp_path/'summary.json').read_text())['empty'] == 2


def test_a_catalogue_without_any_text_is_an_error():
    with pytest.raises(ValueError, match='text_columns.*not one of the 2 items'): flatten(shop(title=[None, 'nan']), PARAMS)
    with pytest.raises(ValueError, match='no vectors'): declared_columns(SimpleNamespace(items=pd.DataFrame(dict(item=['1'])), card={}), '')
    with pytest.raises(ValueError, match="did you mean 'title'"): declared_columns(shop(title=['Heat']), 'titel')


def test_odd_ids_and_texts_survive_the_file(tmp_path):
    texts = [clean_string(t) for t in ODD]
    rows = make_texts([f'id "{i}"\n' for i in range(len(texts))], texts, [1]*len(texts), [0]*len(texts), kind='item', source='flatten', prompt_version='flatten-1')
    pd.testing.assert_frame_equal(load_texts(save_texts(rows, tmp_path)), rows)
    assert list(rows.columns) == list(COLUMNS)


@pytest.mark.parametrize('change, says', [(dict(describe='keyword'), 'describe='), (dict(max_tokens=7), 'max_tokens=7'), (dict(max_tokens='many'), 'max_tokens='), (dict(max_tokens=True), 'max_tokens='),
                                          (dict(text_columns=','), 'text_columns='), (dict(text_columns='title,title'), 'twice'), (dict(tokenizer=''), 'tokenizer='), (dict(tokenizer='no/such/model/folder'), 'tokenizer=')])
def test_stage_refuses(change, says):
    with pytest.raises(ValueError, match=says): stage.check(declared(vars(stage)) | change)


def test_stage_writes_the_same_bytes_twice(tmp_path):
    first = stage.small(tmp_path/'text')
    second = stage.small(tmp_path/'again')
    assert (first/'texts.parquet').read_bytes() == (second/'texts.parquet').read_bytes()
    assert load_texts(first).id.tolist() == list(Dataset.load(tmp_path/'data').item_ids)


def test_digest_follows_content(tmp_path):
    (tmp_path/'tokenizer.json').write_text('{}')
    one = model_digest(str(tmp_path))
    (tmp_path/'notes.md').write_text('x')
    assert model_digest(str(tmp_path)) == one
    (tmp_path/'tokenizer.json').write_text('{"a": 1}')
    assert model_digest(str(tmp_path)) != one
    assert model_digest('minilm', weights=False) == model_digest(str(model_folder('minilm')), weights=False)
