"""Texts per second of recx.extract.encode beside SentenceTransformer.encode at its defaults, on the packaged MiniLM, in one process with torch's default threads.

    python benchmarks/encode.py [texts] [repetitions] [folder with items.parquet]

Ratios are medians over alternating repetitions, of wall time and of processor time. On a machine that other programs use, only OMP_NUM_THREADS=1 and the
processor time tell anything: threads that wait for one another are held up by whatever else runs.
"""
import statistics, sys, time
from pathlib import Path
import numpy as np
import pandas as pd
import torch
from sentence_transformers import SentenceTransformer
from recx.extract.encode import encode
from recx.extract.encoders import load_encoder
from recx.text.flatten import flatten_items
from recx.text.tokens import token_counts

WORDS = 'moisturizing natural professional organic shampoo conditioner lotion cream nail lacquer polish matte waterproof eyeliner mascara foundation anti-aging serum brush set travel size ounce pack fragrance-free'.split()


def sample(n, folder):
    "`n` item texts: from items.parquet where there is one, else made of words, with lengths like those of a shop."
    if (Path(folder)/'items.parquet').is_file():
        items = pd.read_parquet(Path(folder)/'items.parquet').sample(n, random_state=0)
        return flatten_items(items, [c for c in ('title', 'brand', 'categories') if c in items])
    rng = np.random.default_rng(0)
    return [f"title: {' '.join(rng.choice(WORDS, k))} brand: {rng.choice(WORDS)} categories: Beauty, {rng.choice(WORDS)}" for k in 4 + rng.gamma(4, 4, n).astype(int)]


def timed(job):
    wall, cpu = time.perf_counter(), time.process_time()
    result = job()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def main():
    given = sys.argv[1:] + ['1000', '5', '../shared/data/amazon_beauty_2014'][len(sys.argv) - 1:]
    n, repetitions, folder = int(given[0]), int(given[1]), given[2]
    texts, encoder, bf16 = sample(n, folder), load_encoder('minilm', device='cpu', precision='fp32'), load_encoder('minilm', device='cpu', precision='auto')
    theirs = SentenceTransformer(str(encoder.path), device='cpu')
    tokens = token_counts(texts, encoder.tokenizer)
    print(f'{n} texts, {np.mean(tokens):.1f} tokens on average (longest {max(tokens)}), {torch.get_num_threads()} threads, auto precision is {str(bf16.dtype)[6:]}; median of {repetitions} alternating repetitions')
    jobs = {'sentence-transformers, defaults (batch 32, fp32)': lambda: theirs.encode(texts, show_progress_bar=False)}
    jobs |= {f'recx fp32, token_budget {b}': lambda b=b: encode(encoder, texts, token_budget=b, progress=False) for b in (2048,)}
    jobs |= {f'recx auto, token_budget {b}': lambda b=b: encode(bf16, texts, token_budget=b, progress=False) for b in (1024, 2048, 4096, 8192)}
    for job in jobs.values(): job()
    seconds, cpu, vectors = {name: [] for name in jobs}, {name: [] for name in jobs}, {}
    for _ in range(repetitions):
        for name, job in jobs.items():
            vectors[name], s, c = timed(job)
            seconds[name].append(s)
            cpu[name].append(c)
    base = next(iter(jobs))
    reference = vectors[base]/np.linalg.norm(vectors[base], axis=1, keepdims=True)
    for name in jobs:
        cosine = (vectors[name]*reference).sum(1)/np.linalg.norm(vectors[name], axis=1)
        ratio, cpu_ratio = (statistics.median(a/b for a, b in zip(t[base], t[name])) for t in (seconds, cpu))
        print(f'{name:50s} {n/statistics.median(seconds[name]):6.0f} texts/s   ratio {ratio:4.2f}   of processor time {cpu_ratio:4.2f}   cosine min {cosine.min():.5f} mean {cosine.mean():.5f}')


if __name__ == '__main__': main()
