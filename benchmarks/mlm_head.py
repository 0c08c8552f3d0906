"""Does a made-up masked-LM head harm the body, and what does fitting it first change? MiniLM on MovieLens-100K (toy where that is not found), three ways of continued pre-training with equal steps for the body.

    python benchmarks/mlm_head.py [name=value …]      parameters as for benchmarks/tune.py; cpt_steps, tune_batch_tokens and tune_learning_rate matter

`together` trains head and body from the first step, `fitted, then together` fits the head to the frozen body first, `fitted, then frozen` (what recx does) leaves it alone afterwards. Loss in nats per masked word of held-out texts.
"""
import sys, tempfile
from itertools import islice
from pathlib import Path
import numpy as np
import pandas as pd
import torch
from recx.extract.encode import encode
from recx.extract.encoders import load_encoder
from recx.extract.lora import Tuner, add_lora, language_head
from recx.extract.tasks import is_held
from recx.extract.tune import HEAD_RATE, cpt_lesson, held_loss, learning_rate, neighbours_kept
from recx.extract.vectors import mean_cosine
from tune import inputs


def teach(tuner, names, lesson, steps, rates):
    "`steps` optimiser steps of the parameters whose names begin with one of `names`, each group at its own rate."
    tuner.train()
    for name, p in tuner.learnt().items(): p.requires_grad = name.startswith(names)
    groups = [dict(params=[p for n, p in tuner.learnt().items() if n.startswith(name)], highest=rate) for name, rate in zip(names, rates)]
    optimiser = torch.optim.AdamW(groups, lr=0., weight_decay=0.)
    for step, batch in enumerate(islice(lesson, steps)):
        for group in optimiser.param_groups: group['lr'] = learning_rate(step, steps, group['highest'])
        with torch.autocast('cpu', torch.bfloat16, enabled=tuner.encoder.dtype == torch.bfloat16): tuner(**batch).backward()
        torch.nn.utils.clip_grad_norm_([p for g in groups for p in g['params']], 1.)
        optimiser.step(); optimiser.zero_grad()
    tuner.eval()


def way(texts, params, fit, together):
    "Measures of one way."
    encoder = load_encoder(params['encoder'], 'cpu', params['precision'])
    train, held = ([t for i, t in zip(texts.id, texts.text) if is_held(i) == side] for side in (False, True))
    before = encode(encoder, texts.text, progress=False)
    tuner, steps, rate = Tuner(encoder, add_lora(encoder), language_head(encoder)), params['cpt_steps'], params['tune_learning_rate']
    if fit: teach(tuner, ('head.',), cpt_lesson(encoder, train, params), steps, [HEAD_RATE])
    fitted = held_loss(tuner, held)
    teach(tuner, ('body.', 'head.') if together else ('body.',), cpt_lesson(encoder, train, params), steps, [rate, rate if fit else HEAD_RATE])
    after = encode(encoder, texts.text, progress=False)
    return dict(loss_before=fitted, loss_after=held_loss(tuner, held), cosine_before=mean_cosine(before), cosine_after=mean_cosine(after), neighbours_kept=neighbours_kept(before, after))


def main():
    with tempfile.TemporaryDirectory() as d: params, data, texts = inputs(sys.argv[1:], Path(d))
    texts = texts.assign(text=texts.text.replace('', 'unknown item'))
    ways = {'together': (False, True), 'fitted, then together': (True, True), 'fitted, then frozen': (True, False)}
    print(f"{data.card['name']}: {len(texts)} texts; {params['cpt_steps']} steps of {params['tune_batch_tokens']} tokens, rate {params['tune_learning_rate']:g}")
    print(pd.DataFrame({name: way(texts, params, *how) for name, how in ways.items()}).T.round(3).to_string())


if __name__ == '__main__': main()
