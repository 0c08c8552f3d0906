"""The harness against a server on loopback, in a process of its own: throughput beside a bare aiohttp loop, faults, kills, a warm run, and the processor time of a call.

    python benchmarks/harness.py [throughput] [faults] [kills] [warm] [items=10000] [capacity=64] [latency=.5] [kills=10] [kill_items=2000] [known=100000]

The server answers `capacity` questions at once in `latency` seconds each; that is its capacity, whatever the machine. The bare loop sends the same bytes to the same server with as many workers, reads the answers, and does nothing else with them.
"""
import asyncio, importlib.util, json, random, sys, tempfile, time
from pathlib import Path
import aiohttp
from recx.text.answers import Answer, Answers, Decoding
from recx.text.clients import make_client
from recx.text.harness import Limits, generate
from recx.text.prices import Price
from recx.text.prompts import json_schema

spec = importlib.util.spec_from_file_location('llm_server', Path(__file__).parent.parent/'tests'/'llm_server.py')
llm_server = importlib.util.module_from_spec(spec)
sys.modules['llm_server'] = llm_server
spec.loader.exec_module(llm_server)
FAULTS = dict(busy=.03, error=.03, cut=.03, body=.02, json=.03, schema=.03, long=.02, hang=.01)
GIVEN = dict(items=10_000, capacity=64, latency=.5, kills=10, kill_items=2000, known=100_000)


def timed(job):
    "Result, wall seconds, processor seconds."
    start, cpu = time.perf_counter(), time.process_time()
    return job(), time.perf_counter() - start, time.process_time() - cpu


async def bare(base, bodies, workers):
    "The same questions without a harness."
    todo = iter(bodies)
    async def work(session):
        for body in todo:
            async with session.post(f'{base}/chat/completions', data=body) as response: json.loads(await response.read())['choices'][0]['message']['content']
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers={'Content-Type': 'application/json'}) as session: await asyncio.gather(*(work(session) for _ in range(workers)))


def body(request):
    "What the harness's client sends for a request."
    schema = json_schema(request.prompt.schema)
    return json.dumps(dict(model='served', messages=request.prompt.messages(request.fields), temperature=0., seed=0, max_tokens=300, response_format=dict(type='json_schema', json_schema=dict(name='answer', strict=True, schema=schema))))


def throughput(items, capacity, latency, folder, **_):
    "Items per second, as a share of what the server can do."
    with llm_server.Server(capacity=capacity, latency=latency) as server:
        llm_server.ask(server.base, folder/'first.sqlite', 64, concurrency=capacity) # imports and connections
        bodies = [body(r) for r in llm_server.asked_about(items)]
        halves, sums = [bodies[:items//2], bodies[items//2:]], dict(bare=[0., 0.], harness=[0., 0.])
        for i, half in enumerate(halves): # in turns, so that a busy machine slows both
            for name, job in (('bare', lambda: asyncio.run(bare(server.base, half, capacity))), ('harness', lambda: llm_server.ask(server.base, folder/'store.sqlite', (i + 1)*items//2, concurrency=capacity))):
                outcome, *took = timed(job)
                sums[name] = [a + b for a, b in zip(sums[name], took)]
    (bare_wall, bare_cpu), (wall, cpu) = sums['bare'], sums['harness']
    assert len(outcome.answers) == items
    most = capacity/latency
    print(f'{items} items, server {capacity} at once × {latency:g} s = {most:.0f}/s')
    for name, w, c in (('bare aiohttp loop', bare_wall, bare_cpu), ('harness', wall, cpu)): print(f'  {name:18s} {w:6.1f} s · {items/w:6.1f}/s · {items/w/most:.1%} of capacity · processor {1000*c/items:.2f} ms per call')
    print(f'  harness/bare: {bare_wall/wall:.1%} of its rate, {cpu/bare_cpu:.1f} times its processor time')


def faults(items, capacity, folder, **_):
    "One call in five fails in one of eight ways."
    with llm_server.Server(capacity=capacity, latency=.1, hang=8., faults=FAULTS) as server:
        outcome, wall, _ = timed(lambda: llm_server.ask(server.base, folder/'faults.sqlite', items, concurrency=capacity, timeout=5.))
        said = server.counts()
    stored, refused = {i for _, i, _ in outcome.answers}, set(outcome.quarantined.id)
    print(f"{items} items, {sum(FAULTS.values()):.0%} faults: {len(stored)} in the store, {len(refused)} in quarantine, {len(stored & refused)} in both, {items - len(stored | refused)} in neither; {sum(said['calls'].values())} calls, "
          f"answered validly twice: {sum(n > 1 for n in said['valid'].values())}; {wall:.0f} s")
    print('  calls by fault:', {k or 'none': n for k, n in sorted(said['by_fault'].items())})


def kills(kills, kill_items, folder, concurrency=32, **_):
    "Killed at a random moment, again and again, then finished."
    rng, store = random.Random(time.time_ns()), folder/'kills.sqlite'
    with llm_server.Server(capacity=concurrency, latency=.3) as server:
        settings, killed, lines = dict(base=server.base, store=str(store), items=kill_items, concurrency=concurrency), 0, []
        for _ in range(kills):
            killed += llm_server.ask_and_be_killed(server, settings, rng.randrange(1, 3*kill_items//kills//2), rng.uniform(0, .3))
            answers = Answers(store)
            table = answers.table('SELECT answer, raw FROM answers')
            assert answers.db.execute('PRAGMA integrity_check').fetchone() == ('ok',) and table.answer.map(json.loads).map(len).eq(3).all()
            lines.append(len(table))
            answers.close()
        outcome = llm_server.ask(**settings)
        twice = sum(n - 1 for n in server.counts()['valid'].values())
    assert len(outcome.answers) == kill_items
    print(f'{killed} of {kills} runs killed, {concurrency} in flight each; in the store after each: {lines}; paid twice in all: {twice}, allowed {killed*concurrency}; store readable every time')


def warm(known, folder, **_):
    "Nothing to ask."
    class Silent:
        name, batch = 'served', False
        async def complete(self, *_): raise AssertionError('a call')
        async def close(self): pass
    requests, store = llm_server.asked_about(known), Answers(folder/'warm.sqlite')
    store.write(found=[(r.key('served', Decoding()), Answer(dict(summary='A nail lacquer with shimmer.', tags=['shimmer', 'nails'], confidence=.9), .9, model='served'), '{}') for r in requests])
    outcome, wall, cpu = timed(lambda: generate(requests, Silent(), store, Decoding(), Limits(), Price(1., 4., 1., 1., ''), progress=False))
    store.close()
    assert len(outcome.answers) == known and outcome.ledger.calls.sum() == 0
    print(f'{known} known rows: no call, {wall:.1f} s ({cpu:.1f} s processor)')


def main():
    words = sys.argv[1:]
    given = GIVEN | {k: type(GIVEN[k])(float(v)) for k, v in (w.split('=') for w in words if '=' in w)}
    jobs = [j for j in (throughput, faults, kills, warm) if j.__name__ in words] or [throughput, faults, kills, warm]
    for job in jobs:
        with tempfile.TemporaryDirectory() as folder: job(folder=Path(folder), **given)
        sys.stdout.flush()


if __name__ == '__main__': main()
