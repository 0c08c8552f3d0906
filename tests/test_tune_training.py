"Tuning is resumable to the last bit, the same in parts and over processes, and stops at what is not a number."
import json, os, subprocess, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from recx.data.dataset import Dataset
from recx.data.stage import small
from recx.extract import tune as module
from recx.extract.encode import encode
from recx.extract.encoders import load_encoder, tiny_decoder
from recx.extract.lora import load_adapter
from recx.extract.tune import check_tune, last_checkpoint, tune
from recx.text.flatten import flatten_items
from recx.text.texts import make_texts, save_texts

PARAMS = dict(pooling='mean', tuning='cpt+sft', lora_rank=4, lora_alpha=16, lora_dropout=.1, lora_targets='', cpt_steps=4, sft_steps=4, scft_steps=4, tune_learning_rate=2e-3, tune_batch_tokens=256,
              tune_accumulate=1, attribute_dropout=.4, contrast_temperature=.05, tune_seed=0, checkpoint_every=2)
STORIES = Path(__file__).parents[2]/'shared/models/stories260K'


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A toy data set and a tiny decoder, in folders that other processes can read."
    folder = tmp_path_factory.mktemp('tune')
    data = Dataset.load(small(folder/'data', toy_users=60, toy_items=60))
    tiny_decoder(folder/'tiny-llama', flatten_items(data.items, data.card['text_columns']))
    return folder


def run(place, out, **changes):
    out.mkdir(parents=True, exist_ok=True)
    data = Dataset.load(place/'data')
    texts = pd.DataFrame(dict(id=data.item_ids, kind='item', text=flatten_items(data.items, data.card['text_columns'])))
    return tune(load_encoder(str(place/'tiny-llama'), device='cpu', precision='fp32'), texts, data, PARAMS | changes, out, progress=False)


def adapter(out): return load_file(out/'tuned'/'adapter_model.safetensors')


def same(a, b, tolerance=0.):
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], rtol=0, atol=tolerance) if tolerance else torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope='module')
def whole(place):
    "An uninterrupted run."
    run(place, place/'whole')
    return place/'whole'


@pytest.mark.parametrize('dies_at', [3, 6]) # train steps: within cpt and within sft, both after a checkpoint and before the next
def test_killed_and_resumed_gives_the_same_weights(place, whole, dies_at):
    out = place/f'killed-{dies_at}'
    script = f'''
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_tune_training as t
from pathlib import Path
step, calls = t.module.train_step, []
def dying(*args):
    calls.append(1)
    if len(calls) == {dies_at} + 1: os.kill(os.getpid(), signal.SIGKILL)
    return step(*args)
t.module.train_step = dying
t.run(Path({str(place)!r}), Path({str(out)!r}))
'''
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert not (out/'tuned').exists() and list((out/'checkpoint').glob('*-*'))
    (out/'checkpoint'/'part').mkdir(exist_ok=True) # half a checkpoint, as a kill at the wrong moment leaves it
    _, said = run(place, out)
    assert same(adapter(out), adapter(whole))
    assert not (out/'checkpoint').exists()
    curves = [pd.read_parquet(p/'tuned'/'curve.parquet').drop(columns='seconds') for p in (out, whole)]
    pd.testing.assert_frame_equal(*curves)
    assert said['after'] == json.loads((whole/'tuned'/'diagnostics.json').read_text())['after']


def test_finished_work_is_read_not_repeated(place, whole, monkeypatch):
    monkeypatch.setattr(module, 'train_step', None)
    encoder, said = run(place, whole)
    assert said == json.loads((whole/'tuned'/'diagnostics.json').read_text()) and not any('lora' in n for n, _ in encoder.model.named_modules())


def test_other_parameters_do_not_continue_a_checkpoint(place):
    out = place/'changed'
    with pytest.raises(KeyboardInterrupt): run_until(place, out, 3)
    state, _ = found = last_any(out)
    assert last_checkpoint(out/'checkpoint', 'another key') is None and last_checkpoint(out/'checkpoint', state['key']) is not None
    run(place, out, tune_seed=1)
    run(place, place/'clean', tune_seed=1)
    assert same(adapter(out), adapter(place/'clean'))


def run_until(place, out, steps):
    step, calls = module.train_step, []
    def stopping(*args):
        calls.append(1)
        if len(calls) > steps: raise KeyboardInterrupt
        return step(*args)
    module.train_step = stopping
    try: run(place, out)
    finally: module.train_step = step


def last_any(out):
    place = max((out/'checkpoint').glob('*-*'))
    return json.loads((place/'state.json').read_text()), place


def test_nan_stops_and_keeps_the_last_good_checkpoint(place, monkeypatch):
    out, step, calls = place/'nan', module.train_step, []
    held = {}
    def poisoned(accelerator, model, optimiser, batch, parts):
        calls.append(1)
        held['tuner'] = model
        if len(calls) == 4:
            with torch.no_grad(): next(p for n, p in model.named_parameters() if 'lora_B' in n).fill_(float('nan'))
        return step(accelerator, model, optimiser, batch, parts)
    monkeypatch.setattr(module, 'train_step', poisoned)
    with pytest.raises(FloatingPointError, match='tune_learning_rate=0.002.*step 4.*back at step 2.*0.0004'): run(place, out)
    state, good = last_any(out)
    weights = load_file(good/'weights.safetensors')
    assert state['step'] == 2 and all(w.isfinite().all() for w in weights.values())
    assert all(torch.equal(p, weights[n]) for n, p in held['tuner'].learnt().items())
    assert not (out/'tuned').exists()


def test_a_step_in_parts_is_the_step_in_one(place):
    steady = dict(lora_dropout=0., checkpoint_every=50)
    for parts in (1, 3): run(place, place/f'parts-{parts}', tune_accumulate=parts, **steady)
    assert same(adapter(place/'parts-1'), adapter(place/'parts-3'), tolerance=2e-5)


def test_two_processes_do_what_one_does(place):
    steady = dict(lora_dropout=0., checkpoint_every=50)
    script = place/'launched.py'
    script.write_text(f'''
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_tune_training as t
from pathlib import Path
encoder, said = t.run(Path({str(place)!r}), Path({str(place/"two")!r}), **{steady!r})
assert said['processes'] == 2
''')
    env = os.environ | dict(OMP_NUM_THREADS='1', ACCELERATE_USE_CPU='true') # accelerate launch starts several processes on GPUs only; torchrun sets the same variables
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', str(script)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    run(place, place/'one', **steady)
    assert same(adapter(place/'two'), adapter(place/'one'), tolerance=2e-5)


@pytest.mark.parametrize('tuning', ['sft', 'scft'])
def test_other_lessons_run_and_change_the_vectors(place, tuning):
    encoder, said = run(place, place/tuning, tuning=tuning)
    plain = load_encoder(str(place/'tiny-llama'), device='cpu', precision='fp32')
    texts = ['title: Something', 'title: Something else']
    assert np.abs(encode(encoder, texts, progress=False) - encode(plain, texts, progress=False)).max() > 1e-5
    assert {p['phase'] for p in said['phases']} == {tuning} and json.dumps(said)


def test_same_seed_same_bytes(place, whole):
    run(place, place/'twin')
    assert (place/'twin'/'tuned'/'adapter_model.safetensors').read_bytes() == (whole/'tuned'/'adapter_model.safetensors').read_bytes()


def test_the_adapter_names_no_folder(whole, place):
    said = ''.join(p.read_text() for p in (whole/'tuned').glob('*.json'))
    assert str(place) not in said and 'tiny-llama' in said


@pytest.mark.parametrize('change', [dict(tuning='cpt,sft'), dict(sft_steps=0), dict(lora_rank=0), dict(lora_dropout=1.), dict(tune_learning_rate=0.), dict(tune_batch_tokens=8), dict(contrast_temperature=0.),
                                    dict(attribute_dropout=-1.), dict(checkpoint_every=0), dict(tune_accumulate=0), dict(tune_seed=-1)])
def test_parameters_are_refused_by_name(change):
    with pytest.raises(ValueError, match=next(iter(change))): check_tune(PARAMS | change)


def test_unknown_layers_are_refused_with_those_there_are(place):
    with pytest.raises(ValueError, match='lora_targets.*q_proj'): run(place, place/'targets', lora_targets='query')


def test_sft_with_nothing_to_ask_is_refused_and_cpt_is_not(place, tmp_path):
    data = Dataset.load(place/'data')
    mute = SimpleNamespace(items=data.items[['item', 'title']], events=data.events.drop_duplicates('user'), card=dict(text_columns=['title']))
    texts = pd.DataFrame(dict(id=data.item_ids, kind='item', text=data.items.title))
    def go(tuning): return tune(load_encoder(str(place/'tiny-llama'), device='cpu', precision='fp32'), texts, mute, PARAMS | dict(tuning=tuning), tmp_path, progress=False)[1]
    with pytest.raises(ValueError, match="tuning='sft'.*nothing to ask"): go('sft')
    assert go('cpt')['sft_questions'] == {}


@pytest.mark.skipif(not STORIES.is_dir(), reason='the model of stories is not here')
def test_a_trained_decoder_learns_the_catalogue(place, tmp_path):
    data = Dataset.load(place/'data')
    texts = pd.DataFrame(dict(id=data.item_ids, kind='item', text=flatten_items(data.items, data.card['text_columns'])))
    _, said = tune(load_encoder(str(STORIES), device='cpu', precision='fp32'), texts, data, PARAMS | dict(tuning='cpt', cpt_steps=15, tune_batch_tokens=512, tune_learning_rate=5e-3, checkpoint_every=25), tmp_path, progress=False)
    assert said['after']['held_loss'] < .9*said['before']['held_loss'] and said['head'] == 'of the model'


def test_the_program_leaves_a_model_folder(place, whole, capsys):
    save_texts(make_texts(Dataset.load(place/'data').item_ids, flatten_items(Dataset.load(place/'data').items, Dataset.load(place/'data').card['text_columns']), 1, 0, kind='item', source='flatten'), place)
    given = [f'{k}={v}' for k, v in PARAMS.items()] + [f"encoder={place/'tiny-llama'}", 'encode_device=cpu', 'precision=fp32']
    module.main([str(place/'data'), str(place), str(place/'program'), *given])
    assert set(json.loads(capsys.readouterr().out)) == {'before', 'after', 'phases'}
    merged, plain = (load_encoder(str(p), device='cpu', precision='fp32') for p in (place/'program'/'model', place/'tiny-llama'))
    texts = ['title: Something', 'title: Something else']
    np.testing.assert_allclose(encode(merged, texts, progress=False), encode(load_adapter(plain, whole/'tuned'), texts, progress=False), atol=1e-4)
    with pytest.raises(ValueError, match='cpt_steps'): module.main([str(place/'data'), str(place), str(place/'program'), 'cpt_stes=1'])
    with pytest.raises(SystemExit, match='frozen'): module.main([str(place/'data'), str(place), str(place/'program'), 'tuning=frozen'])
    with pytest.raises(SystemExit, match='usage'): module.main([])
