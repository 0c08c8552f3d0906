"""Seconds of the search for who may take over whose answer; where the H&M sample is at hand, what taking over saves and what it gets wrong; where MovieLens-100K and the film summaries are at hand, what labels by the encoder are worth.

    python benchmarks/semantic.py [vectors] [dimensions] [articles]

The catalogue's own attributes stand in for a language model's answers: an article that takes over the answer of another is wrong where their attributes differ. They stay out of the texts that are compared (name and description).
"""
import resource, sys, tempfile, time
from pathlib import Path
import numpy as np
import pandas as pd
from recx.data.dataset import Dataset
from recx.data.parameters import small_of
from recx.data.sources import places
from recx.text.embed import embed
from recx.text.semantic import mean_interval, reuse
from recx.text.zeroshot import calibrate, known_attribute, label_said, score_labels

ATTRIBUTES = ['product_type_name', 'graphical_appearance_name', 'colour_group_name', 'garment_group_name']


def found(*parts): return next((p for place in places() if (p := place.joinpath(*parts)).is_file()), None)


def unit(vectors): return (vectors/np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def speed(n, d):
    "The worst case, where nobody reads alike, and groups of ten on average."
    rng = np.random.default_rng(0)
    strangers = unit(rng.normal(size=(n, d)))
    groups = unit(unit(rng.normal(size=(max(1, n//10), d)))[rng.integers(0, max(1, n//10), n)] + rng.normal(size=(n, d))*.2/np.sqrt(d))
    for name, vectors in (('strangers', strangers), ('groups', groups)):
        start, cpu = time.perf_counter(), time.process_time()
        donor, _ = reuse(vectors, np.zeros((0, d)), .9)
        print(f'{name:9s} {n} × {d}: {time.perf_counter() - start:6.1f} s, {time.process_time() - cpu:6.1f} s of CPU, {(donor >= 0).mean():.1%} reused', flush=True)


def loss(articles):
    "Reuse and disagreement by threshold on real garments."
    path = found('hm_sample', 'articles.parquet')
    if path is None: return
    shop = pd.read_parquet(path).sample(articles, random_state=0)
    texts = [f'title: {n} description: {d}' if isinstance(d, str) else f'title: {n}' for n, d in zip(shop.prod_name, shop.detail_desc)]
    start = time.perf_counter()
    vectors = embed(texts)
    print(f'\n{len(texts)} articles ({len(set(texts))} different texts), embedded in {time.perf_counter() - start:.0f} s\nthreshold  reused  distinct texts asked  ' + '  '.join(f'{a[:-5]:>20s}' for a in ATTRIBUTES) + '   mean')
    for threshold in (1., .98, .95, .9, .85, .8):
        donor, _ = reuse(vectors, np.zeros((0, vectors.shape[1])), threshold)
        rows = np.flatnonzero(donor >= 0)
        wrong = np.stack([shop[a].to_numpy()[rows] != shop[a].to_numpy()[donor[rows]] for a in ATTRIBUTES])
        low, high = mean_interval(wrong.mean(), len(rows))
        print(f'{threshold:9.2f}  {len(rows)/len(texts):6.1%}  {len({texts[i] for i in np.flatnonzero(donor < 0)}):20d}  ' + '  '.join(f'{w.mean():20.3f}' for w in wrong) + f'  {wrong.mean():.3f} ({low:.3f}–{high:.3f})', flush=True)
    order = np.random.default_rng(0).permutation(len(shop))
    print('strangers' + ' '*31 + '  '.join(f'{(shop[a].to_numpy() != shop[a].to_numpy()[order]).mean():20.3f}' for a in ATTRIBUTES))


def labels():
    "How often the nearest genre is one of the film's, and how far its margin can be trusted."
    path = found('llm_knowledge_ml1m_agent4rec', 'movie_summaries.parquet')
    if path is None: return
    with tempfile.TemporaryDirectory() as folder: films = Dataset.load(small_of('data')(Path(folder)/'data', dataset='ml-100k')).items
    plots = pd.read_parquet(path)
    plots = films.title.map(dict(zip(plots.title.str.replace(r'\s*\(\d{4}\)$', '', regex=True), plots.summary)))
    column, genres, truth = known_attribute(films, ['genres'])
    told = truth.any(1)
    for name, rows, texts in (('title, year', told, [f'title: {t} year: {y}' for t, y in zip(films.title, films.year)]), ('plot', told & plots.notna().to_numpy(), plots.fillna('').tolist())):
        p = score_labels([texts[i] for i in np.flatnonzero(rows)], [label_said(column, g) for g in genres])
        c = calibrate(p, truth[rows])
        print(f'labels by {name:12s}: {c.rows} films, {len(genres)} genres, {c.accuracy:.1%} right (most frequent genre: {truth[rows].mean(0).max():.1%}); calibration error of the margin {c.error_before:.3f}, held out after isotonic regression {c.error_after:.3f}', flush=True)


if __name__ == '__main__':
    n, d, articles = (int(a) for a in (sys.argv[1:4] + ['100000', '384', '4903'][len(sys.argv) - 1:]))
    speed(n, d)
    loss(articles)
    labels()
    print(f'peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20:.1f} GiB')
