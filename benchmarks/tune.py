"""Seconds and measures of tuning the packaged MiniLM on MovieLens-100K (on the toy catalogue where that is not found), by default CPT+SFT at the default steps.

    python benchmarks/tune.py [name=value …]      any parameter of the data, text or extract stage, such as tuning=scft precision=fp32 dataset=toy

`held_loss` is in nats per masked word (or per token), `sft_accuracy` the mean over the kinds of questions among ten answers, chance levels stand beside. One process with torch's default threads.
"""
import sys, tempfile, time
from pathlib import Path
import pandas as pd
import torch
from recx.data import stage as data_stage
from recx.data.dataset import Dataset
from recx.data.parameters import declared, known, typed
from recx.extract import stage as extract_stage
from recx.extract.encode import encode
from recx.extract.encoders import load_encoder
from recx.extract.tune import tune
from recx.text import stage as text_stage
from recx.text.texts import load_texts

STAGES = dict(data=data_stage, text=text_stage, extract=extract_stage)


def parameters(given):
    "Defaults of the three stages with the changes of the command line: stage → parameters."
    changes, defaults = dict(g.split('=', 1) for g in given), {name: declared(vars(stage)) for name, stage in STAGES.items()}
    known(changes, [n for d in defaults.values() for n in d])
    return {name: {n: typed(n, changes.get(n, v), type(v)) for n, v in d.items()} for name, d in defaults.items()}


def inputs(given, folder):
    "The data and text artefacts that `given` names, MovieLens-100K where nothing is named and it is found."
    named = [g for g in given if g.startswith('dataset=')]
    for dataset in [named[0]] if named else ['dataset=ml-100k', 'dataset=toy']:
        params = parameters([g for g in given if not g.startswith('dataset=')] + [dataset])
        try: data = data_stage.small(folder/dataset/'data', **params['data'])
        except ValueError as e:
            if named: raise
            print(e)
        else: return params['extract'], Dataset.load(data), load_texts(text_stage.small(folder/dataset/'text', **params['text']))


def main():
    given = sys.argv[1:]
    given = given if any(g.startswith('tuning=') for g in given) else [*given, 'tuning=cpt+sft']
    with tempfile.TemporaryDirectory() as d:
        params, data, texts = inputs(given, Path(d))
        (Path(d)/'out').mkdir()
        start = time.perf_counter()
        model = load_encoder(params['encoder'], params['encode_device'], params['precision'])
        tuned, said = tune(model, texts, data, params, Path(d)/'out')
        tuning = time.perf_counter() - start
        encode(tuned, texts.text.replace('', 'unknown item'), params['pooling'], params['token_budget'])
        encoding = time.perf_counter() - start - tuning
    print(f"{data.card['name']}: {len(texts)} items, {texts.tokens.mean():.1f} tokens each; {model.name}, {str(model.dtype)[6:]}, {torch.get_num_threads()} threads; {' '.join(given)}")
    print(f"tuning {tuning:.1f} s, of which training {said['seconds_train']:.1f} s, measuring and set-up {tuning - said['seconds_train']:.1f} s; encoding afterwards {encoding:.1f} s")
    print(pd.DataFrame(said['phases']).round(3).to_string(index=False))
    print(pd.DataFrame(dict(before=said['before'], after=said['after'], chance={f'sft_accuracy_{k}': v for k, v in said['sft_chance'].items()})).round(3).to_string())
    print(f"neighbours kept {said['neighbours_kept']:.3f}; {said['held_items']} held-out texts, {said['sft_questions']} held-out questions; {said['parameters_trainable']:,} of {said['parameters_total']:,} parameters trainable; head {said['head']}")


if __name__ == '__main__': main()
