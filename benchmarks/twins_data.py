"""The data stage at the size of H&M (31.8 million purchases) and KKBOX (7.4 million encounters): seconds and memory of each step.

    python benchmarks/twins_data.py FOLDER [hm|kkbox|both] [share of the full size]

Simulated twins of full size are written into FOLDER once (about 4 GB and some minutes) and used again. Each data set is read in a process of its own, whose peak memory is what the system says of it. The line of the order compares
sorting rows by user and day as recx does it with numpy's lexsort, on the same log.
"""
import json, os, resource, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np

FULL = {'hm': dict(users=1_371_980, items=105_542, events=31_788_324), 'kkbox': dict(users=34_403, items=359_966, events=7_377_418)}
ASKED = {'hm': dict(split_by='week', on_duplicates='units'), 'kkbox': dict(split_by='random')}
LIMITS = {'hm': (90, 8), 'kkbox': (30, 8)} # seconds, GiB


def twin(folder, kind, share):
    "The files of a twin, written where they are not there."
    from recx.data.twins import make_fashion, make_music
    place = folder/f'{kind}-{share:g}'
    if (place/'planted'/'truth.json').exists(): return place
    start = time.perf_counter()
    {'hm': make_fashion, 'kkbox': make_music}[kind](place, **{name: max(400, int(n*share)) for name, n in FULL[kind].items()})
    print(f'{kind}: written in {time.perf_counter() - start:.0f} s, {sum(p.stat().st_size for p in place.glob("*.csv"))/2**30:.2f} GiB', flush=True)
    return place


def now(): return np.array([time.perf_counter(), time.process_time()]) # seconds: of the clock, of the processors


def measured(place, kind):
    "Seconds of each step of the data stage, peak memory and sizes, as JSON on the last line."
    from recx.data import stage
    from recx.data.card import make_card
    from recx.data.dataset import Dataset
    from recx.data.parameters import declared
    from recx.data.prepare import in_order, prepare
    params, seconds, last = declared(vars(stage)) | ASKED[kind] | dict(dataset=kind, dataset_path=str(place)), {}, now()
    stage.check(params)
    def lap(step):
        nonlocal last
        seconds[step], last = (now() - last).tolist(), now()
    sha256 = stage.external(params); lap('checksums')
    raw = stage.read(params); lap('read')
    data = prepare(raw, params); lap('index and split')
    data.card = make_card(raw, data, params, sha256); data.item_strata, data.user_strata; lap('card and strata')
    with tempfile.TemporaryDirectory(dir=place.parent) as out:
        data.save(out); lap('save')
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20
        size, user, day = (len(data.users), len(data.items), len(data.events)), *(raw.events[c] for c in ('user', 'time'))
        del data
        Dataset.load(out); last = now(); Dataset.load(out); lap('load')
    user, day, order = user.cat.codes.to_numpy(), day.to_numpy(), {}
    for name, sort in dict(recx=lambda: in_order(user, day), lexsort=lambda: np.lexsort((day, user))).items():
        start = time.perf_counter(); order[name] = sort(); order[name + '_s'] = time.perf_counter() - start
    assert (order['recx'] == order['lexsort']).all()
    print(json.dumps(dict(seconds=seconds, peak=peak, size=size, order=[order['recx_s'], order['lexsort_s']], steps=raw.about['rows'])))


def main():
    if sys.argv[1] == '--measure': return measured(Path(sys.argv[2]), sys.argv[3])
    folder, which, share = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else 'both', float(sys.argv[3]) if len(sys.argv) > 3 else 1.
    for kind in FULL if which == 'both' else [which]:
        place = twin(folder, kind, share)
        load = os.getloadavg()[0]
        done = subprocess.run([sys.executable, __file__, '--measure', str(place), kind], stdout=subprocess.PIPE, text=True, check=True)
        said = json.loads(done.stdout.splitlines()[-1])
        total, busy = (sum(s[k] for step, s in said['seconds'].items() if step != 'load') for k in (0, 1))
        print(f"\n{kind}: {said['steps']}; prepared {said['size'][2]:,} events, {said['size'][0]:,} users, {said['size'][1]:,} items; load before {load:.1f}")
        for step, (s, cpu) in said['seconds'].items(): print(f'  {step:16s} {s:7.1f} s, processor time {cpu:6.1f} s')
        print(f"  all but load     {total:7.1f} s, processor time {busy:6.1f} s (at most {LIMITS[kind][0]}), peak {said['peak']:.2f} GiB (at most {LIMITS[kind][1]})")
        print(f"  order of rows    {said['order'][0]:7.1f} s, lexsort {said['order'][1]:.1f} s")


if __name__ == '__main__': main()
