"Encoders, pooling, encoding, vectors and the extract stage: bad input, odd text, invariances, resuming."
import json
from functools import cache
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from recx.extract import encode as encoding, stage
from recx.extract.encode import encode, plan_batches
from recx.extract.encoders import load_encoder, tiny_decoder
from recx.extract.pooling import POOLINGS, one_word_texts
from recx.extract.vectors import ROW_COLUMNS, UnknownIds, Vectors, mean_cosine
from recx.text.texts import NO_TEXT, load_texts, save_texts, text_hash
from recx.text.tokens import load_tokenizer, token_counts

TEXTS = ['title: Heat genres: Crime', 'title: Toy Story (1995) genres: Animation, Children, Comedy', 'שמפו לשיער “רך”', 'title: <Unplugged> & "live" 👩‍🚀', 'x',
         'title: ' + 'a long description of a thing ' * 6, 'title: [MASK] [SEP] </s> tricks', 'title: Casino']


@cache
def minilm(precision='fp32'): return load_encoder('minilm', device='cpu', precision=precision)


@pytest.fixture(scope='module')
def llama(tmp_path_factory): return load_encoder(str(tiny_decoder(tmp_path_factory.mktemp('models')/'tiny-llama', TEXTS)), device='cpu', precision='fp32')


def cosine(a, b): return (a*b).sum(1)/np.linalg.norm(a, axis=1)/np.linalg.norm(b, axis=1)


def test_mean_agrees_with_sentence_transformers():
    theirs = SentenceTransformer(str(minilm().path), device='cpu').encode(TEXTS, show_progress_bar=False)
    assert cosine(encode(minilm(), TEXTS, progress=False), theirs).min() > .99999
    assert cosine(encode(minilm('bf16'), TEXTS, progress=False), theirs).min() > .999


@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(len(TEXTS))), budget=st.sampled_from([1, 40, 300, 5000]), pooling=st.sampled_from([p for p in POOLINGS]))
def test_order_and_batches_do_not_matter(order, budget, pooling):
    straight = encode(minilm(), TEXTS, pooling, progress=False)
    shuffled = encode(minilm(), [TEXTS[i] for i in order], pooling, token_budget=budget, progress=False)
    np.testing.assert_allclose(shuffled, straight[list(order)], atol=2e-5)


@pytest.mark.parametrize('pooling', [p for p in POOLINGS if p != 'cls'])
def test_padding_does_not_touch_a_decoder(llama, pooling):
    np.testing.assert_allclose(encode(llama, TEXTS, pooling, progress=False), encode(llama, TEXTS, pooling, token_budget=1, progress=False), atol=1e-5)


def test_last_is_the_last_token_of_the_text(llama):
    text = TEXTS[1]
    ids = llama.tokenizer(text, return_tensors='pt')['input_ids']
    with torch.inference_mode(): last = llama.model(input_ids=ids).last_hidden_state[0, -1].numpy()
    np.testing.assert_allclose(encode(llama, TEXTS, 'last', progress=False)[1], last, atol=1e-5)


def test_equal_texts_are_encoded_once(monkeypatch):
    seen = []
    real = encoding.encode_distinct
    monkeypatch.setattr(encoding, 'encode_distinct', lambda e, texts, *rest: seen.extend(texts) or real(e, texts, *rest))
    matrix = encode(minilm(), ['b', 'a', 'b', 'b'], progress=False)
    assert seen == ['b', 'a'] and (matrix[0] == matrix[2]).all() and (matrix[0] != matrix[1]).any()


def test_one_word_question_survives_long_text(llama):
    for encoder, end in ((minilm(), 'means [MASK] .'), (llama, 'means in one word:"')):
        filled = one_word_texts(TEXTS + ['a very long text ' * 90], encoder)
        assert all(t.endswith(end) for t in filled) and max(token_counts(filled, encoder.tokenizer)) <= encoder.max_length
        assert 'x' in filled[4] and filled[0].startswith('This sentence : "title: Heat')


def test_no_text_no_vector():
    assert encode(minilm(), [], progress=False).shape == (0, 384)
    for wrong, says in (([''], r"texts\[0\]=''"), (['a', ' \n'], r'texts\[1\]'), (['a', None], 'NoneType'), ([3], 'int')):
        with pytest.raises(ValueError, match=says): encode(minilm(), wrong, progress=False)
    with pytest.raises(ValueError, match='token_budget=0'): encode(minilm(), ['a'], token_budget=0, progress=False)
    with pytest.raises(ValueError, match='pooling='): encode(minilm(), ['a'], 'median', progress=False)


def test_nan_is_named(llama, tmp_path):
    with torch.no_grad(): kept = llama.model.norm.weight.clone(); llama.model.norm.weight[0] = float('nan')
    try:
        with pytest.raises(ValueError, match='NaN or infinity, first for'): encode(llama, TEXTS, progress=False, keep=tmp_path)
    finally:
        with torch.no_grad(): llama.model.norm.weight.copy_(kept)
    assert not list(tmp_path.iterdir())


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 300), max_size=60), budget=st.integers(1, 1000))
def test_batches_hold_every_text_once(lengths, budget):
    batches = plan_batches(lengths, budget)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    assert all(len(b)*max(lengths[i] for i in b) <= budget or len(b) == 1 for b in batches)


def test_finished_chunks_are_not_encoded_again(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, 'CHUNK', 3)
    whole, real, calls = encode(minilm(), TEXTS, progress=False), encoding.encode_distinct, []
    def dying(*args):
        calls.append(args[1])
        if len(calls) == 3: raise KeyboardInterrupt
        return real(*args)
    monkeypatch.setattr(encoding, 'encode_distinct', dying)
    with pytest.raises(KeyboardInterrupt): encode(minilm(), TEXTS, progress=False, keep=tmp_path)
    assert len(list(tmp_path.glob('*.npy'))) == 2
    assert (encode(minilm(), TEXTS, progress=False, keep=tmp_path) == whole).all() and len(calls) == 4 and len(calls[3]) == 2


def copied(folder, source):
    folder.mkdir(exist_ok=True)
    for f in ('config.json', 'tokenizer.json', 'tokenizer_config.json', 'model.safetensors'): (folder/f).write_bytes((Path(source)/f).read_bytes())
    return folder


def test_bad_models_are_refused(tmp_path, llama):
    source = tiny_decoder(tmp_path/'good', TEXTS)
    pickled = copied(tmp_path/'pickled', source)
    torch.save({}, pickled/'pytorch_model.bin'); (pickled/'model.safetensors').unlink()
    holes = copied(tmp_path/'holes', source)
    weights = load_file(holes/'model.safetensors')
    save_file({k: v for k, v in weights.items() if 'layers.1.mlp' not in k}, holes/'model.safetensors', metadata=dict(format='pt'))
    torn = copied(tmp_path/'torn', source)
    (torn/'model.safetensors').write_bytes((torn/'model.safetensors').read_bytes()[:5000])
    mute = copied(tmp_path/'mute', source)
    (mute/'tokenizer.json').unlink(); (mute/'tokenizer_config.json').unlink()
    foreign = copied(tmp_path/'foreign', source)
    (foreign/'config.json').write_text(json.dumps(dict(model_type='own', auto_map=dict(AutoConfig='code.Config', AutoModel='code.Model'))))
    (foreign/'code.py').write_text('raise SystemExit("foreign code ran")')
    for folder, says in ((pickled, 'no pickled weights'), (holes, '3 weights are not in its files'), (torn, 'could not be read'), (mute, 'no tokenizer'), (foreign, 'foreign code'), (tmp_path, 'no config.json')):
        with pytest.raises(ValueError, match=says) as e: load_encoder(str(folder), device='cpu')
        assert 'encoder=' in str(e.value) and str(tmp_path) not in str(e.value)


def test_tokenizer_without_padding_takes_the_end_token(tmp_path):
    tokenizer = load_tokenizer(str(tiny_decoder(tmp_path, TEXTS)))
    assert tokenizer.pad_token == tokenizer.eos_token and tokenizer.padding_side == 'right'


def test_a_sentence_transformers_folder_with_a_subfolder(tmp_path):
    SentenceTransformer(str(minilm().path), device='cpu').save(str(tmp_path/'st'))
    encoder = load_encoder(str(tmp_path/'st'), device='cpu', precision='fp32')
    assert encoder.advice['pooling'].startswith('mean') and encoder.advice['normalise'] and encoder.max_length == 256
    np.testing.assert_allclose(encode(encoder, TEXTS, progress=False), encode(minilm(), TEXTS, progress=False), atol=1e-5)


def test_stories(request):
    folder = Path(__file__).parent.parent.parent/'shared'/'models'/'stories260K'
    if not folder.is_dir(): pytest.skip('no stories260K at hand')
    encoder = load_encoder(str(folder), device='cpu', precision='fp32')
    assert (encoder.kind, encoder.size, encoder.name) == ('decoder', 64, 'stories260K')
    for pooling in ('mean', 'last', 'one-word'):
        np.testing.assert_allclose(encode(encoder, TEXTS, pooling, progress=False), encode(encoder, TEXTS, pooling, token_budget=1, progress=False), atol=1e-4)


def rows(ids): return pd.DataFrame({c: '' for c in ROW_COLUMNS}, index=range(len(ids))).assign(id=ids, kind='item')


@settings(max_examples=50, deadline=None)
@given(st.permutations([str(i) for i in range(9)]), st.permutations([str(i) for i in range(9)]))
def test_align_is_by_id(stored, wanted):
    vectors = Vectors(rows(stored), np.array([[float(i), -float(i)] for i in stored]))
    assert vectors.align(wanted)[:, 0].astype(int).astype(str).tolist() == list(wanted)


def test_align_refuses_by_name():
    vectors = Vectors(rows(['a', 'b']), np.eye(2))
    with pytest.raises(UnknownIds, match="1 of 3 items: 'zebra'"): vectors.align(['a', 'zebra', 'b'])
    with pytest.raises(KeyError): vectors.align(['zebra'])
    with pytest.raises(ValueError, match="'a'"): vectors.align(['a', 'a'])
    assert vectors.align([]).shape == (0, 2)


def test_mean_cosine_is_that_of_all_pairs():
    matrix = np.random.default_rng(0).normal(size=(40, 6)) + .3
    unit = matrix/np.linalg.norm(matrix, axis=1, keepdims=True)
    assert mean_cosine(matrix) == pytest.approx((unit @ unit.T)[~np.eye(40, dtype=bool)].mean())


def test_stage_keeps_to_the_ids_of_the_data(tmp_path):
    folder = stage.small(tmp_path/'vectors')
    assert not (folder/'chunks').exists() and not list(folder.glob('*.part'))
    texts, vectors = load_texts(tmp_path/'text'), Vectors.load(folder)
    assert vectors.rows.text_hash.tolist() == texts.text.map(text_hash).tolist() and vectors.rows.id.tolist() == texts.id.tolist()
    assert set(vectors.rows.model) == {'all-MiniLM-L6-v2'} and json.loads((folder/'diagnostics.json').read_text())['rows'] == len(texts)
    params = {name: value for name, value in vars(stage).items() if name in stage.__annotations__}
    (tmp_path/'other').mkdir(); (tmp_path/'out').mkdir(); (tmp_path/'bare').mkdir()
    save_texts(texts.iloc[2:], tmp_path/'other')
    with pytest.raises(ValueError, match=f"2 of {len(texts)} items have no row: '{texts.id[0]}'"): stage.run(params, dict(data=tmp_path/'data', text=tmp_path/'other'), tmp_path/'out')
    assert not list((tmp_path/'out').iterdir())
    save_texts(texts.assign(text=texts.text.where(texts.index > 0, '')), tmp_path/'bare')
    placed = Vectors.load(stage.run(params, dict(data=tmp_path/'data', text=tmp_path/'bare'), tmp_path/'out'))
    np.testing.assert_allclose(placed.align([texts.id[0]])[0], encode(load_encoder('minilm'), [NO_TEXT], progress=False)[0], atol=.05)
    assert json.loads((tmp_path/'out'/'diagnostics.json').read_text())['placeholders'] == 1


def test_stage_refuses(llama, tmp_path):
    params = {name: value for name, value in vars(stage).items() if name in stage.__annotations__ and name not in ('inputs', 'out')}
    decoder = str(tiny_decoder(tmp_path/'tiny-llama', TEXTS))
    for change, says in ((dict(pooling='avg'), 'pooling='), (dict(encoder=decoder, pooling='cls'), 'first token'), (dict(encoder=''), 'encoder='), (dict(encoder=str(tmp_path)), 'no config.json'), (dict(precision='fp16'), 'precision='),
                         (dict(encode_device='tpu'), 'encode_device='), (dict(token_budget=1), 'token_budget='), (dict(token_budget=1.5), 'token_budget='), (dict(tuning='sft+cpt'), 'tuning=')):
        with pytest.raises(ValueError, match=says): stage.check(params | change)
    stage.check(params | dict(encoder=decoder, pooling='last'))
