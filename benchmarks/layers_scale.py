"""The three layers of a whole catalogue without a language model: zero-shot labels, vectors, feature store; items per second of each part, killed and taken up again.

    python benchmarks/layers_scale.py [--items 105542] [--threads 2] [--folder '']

The catalogue is that of a generated fashion shop (simulated). Each part is the stage's own function in a process of its own. Labels and vectors are made from chunks of 4,096 distinct texts: the process gets SIGKILL when half of the chunks are there, and the part is done again, from where it was. The store is killed in the middle of writing, and written again: a version
is in it wholly or not at all. `--folder` keeps what is made, and parts that are finished there are not done again.
"""
import argparse, json, os, resource, signal, subprocess, sys, tempfile, time
from pathlib import Path

PARTS = ('data', 'text', 'extract', 'store')


def arguments():
    parser = argparse.ArgumentParser()
    for name, value in dict(items=105_542, threads=2).items(): parser.add_argument(f'--{name}', type=int, default=value)
    parser.add_argument('--folder', default='')
    parser.add_argument('--part', default='', choices=('', *PARTS))
    return parser.parse_args()


def part(name, folder, given):
    "One part, in this process; what it took goes into a file."
    import torch
    from recx.data import stage as data
    from recx.data.parameters import declared
    from recx.extract import stage as extract
    from recx.extract.features import FeatureStore
    from recx.extract.vectors import Vectors
    from recx.text import stage as text
    from recx.text.texts import load_texts
    torch.set_num_threads(given.threads)
    out = folder/name
    out.mkdir(exist_ok=True)
    wishes = dict(data=dict(dataset='sim-fashion', sim_items=given.items, sim_users=2000, sim_events=60_000, catalogue='all', on_duplicates='units', split_by='week'), text=dict(describe='zeroshot_layers'), extract={})
    if name == 'store': told = FeatureStore(out/'features').upsert(load_texts(folder/'text'), Vectors.load(folder/'extract'))
    else:
        stage, inputs = dict(data=data, text=text, extract=extract)[name], {earlier: folder/earlier for earlier in PARTS[:PARTS.index(name)]}
        params = declared(vars(stage)) | wishes[name]
        stage.check(params)
        stage.run(params, inputs, out)
        told = json.loads((out/'diagnostics.json').read_text()) if name == 'extract' else {}
    (folder/f'{name}.json').write_text(json.dumps(told))


def child(name, folder, given):
    "A process that does one part; what it has to say beside its result goes into a file."
    with open(folder/f'{name}.log', 'ab') as log: return subprocess.Popen([sys.executable, __file__, '--part', name, '--folder', str(folder), '--items', str(given.items), '--threads', str(given.threads)], start_new_session=True, stderr=log, env=os.environ | dict(RECX_STORE=str(folder/'kept')))


def killed(name, folder, given, when):
    "Start a part, and end it by force as soon as `when` says so; was it ended before it was done?"
    process = child(name, folder, given)
    while process.poll() is None and not when(): time.sleep(.01)
    early = process.poll() is None
    if early: os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return early


def timed(name, folder, given, when=None):
    "Do a part, unless it is done, killed once if `when` is given; what it told, seconds and processor seconds of all its processes, and what was there when it was killed."
    file, spent = folder/f'{name}.json', lambda: resource.getrusage(resource.RUSAGE_CHILDREN)
    if file.exists(): return json.loads(file.read_text())
    begun, before = time.perf_counter(), spent()
    there = when() if when and killed(name, folder, given, when) else 0
    if not file.exists() and child(name, folder, given).wait(): raise SystemExit(f"{name}: failed; see {folder/f'{name}.log'}")
    after = spent()
    told = json.loads(file.read_text()) | dict(seconds=time.perf_counter() - begun, processor=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, there=there)
    file.write_text(json.dumps(told))
    return told


def main():
    given = arguments()
    if given.part: return part(given.part, Path(given.folder), given)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(given.folder or temporary).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        said = lambda name, took, more='': print(f"{name:9s} {given.items:,} items in {took['seconds']:.1f} s: {given.items/took['seconds']:,.1f} items/s, {given.items/took['processor']:,.1f} per second of processor{more} (load {os.getloadavg()[0]:.1f})", flush=True)
        said('catalogue', timed('data', folder, given))
        chunks, files = -(-given.items//4096), lambda part: len(list((folder/part).rglob('*.npy')))
        half = lambda part: files(part) if files(part) >= max(1, chunks//2) else 0
        took = timed('text', folder, given, lambda: half('kept'))
        said('labels', took, f", processes' starts included; killed with {took['there']} of about {chunks} chunks there")
        from recx.extract.features import FeatureStore
        from recx.text.texts import load_texts
        texts = load_texts(folder/'text')
        layers = texts.groupby('layer').text.nunique().to_dict()
        print(f"          {len(texts):,} texts in {len(layers)} layers, distinct: {', '.join(f'{layer} {n:,}' for layer, n in layers.items())}", flush=True)
        chunks = -(-texts.text.nunique()//4096)
        took = timed('extract', folder, given, lambda: half('extract'))
        said('vectors', took, f", processes' starts included; killed with {took['there']} of {chunks} chunks there, the others made by the second process")
        took = timed('store', folder, given, lambda: sum(1 for file in (folder/'store').rglob('*') if file.is_file()))
        said('store', took, f", processes' starts included; killed with {took['there']} files begun, then {took['new']:,} rows new and {took['same']:,} there")
        assert len(FeatureStore(folder/'store'/'features').snapshot.rows) == len(texts)


if __name__ == '__main__': main()
