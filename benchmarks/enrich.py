"""A catalogue enriched by the command, against a server on loopback: priced, killed, taken up again, and run once more with nothing to do.

    python benchmarks/enrich.py [items=100000] [capacity=64] [latency=.05] [kill_at=60]

Describes `items` products (title and category of made-up words) by `describe=summary`, encodes the answers and puts them into the feature store. After `kill_at` seconds of describing the process gets SIGKILL; the same command goes on. What was paid twice is counted by the server.
"""
import importlib.util, os, signal, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np
import pandas as pd

spec = importlib.util.spec_from_file_location('llm_server', Path(__file__).parent.parent/'tests'/'llm_server.py')
llm_server = importlib.util.module_from_spec(spec)
sys.modules['llm_server'] = llm_server
spec.loader.exec_module(llm_server)
GIVEN = dict(items=100_000, capacity=64, latency=.05, kill_at=60)


def catalogue(folder, n):
    "Tables of a shop: every item described, a hundred customers with a few events each."
    rng = np.random.default_rng(0)
    titles = [' '.join(llm_server.pseudo_words(f'title {i}', 6)).capitalize() for i in range(n)]
    pd.DataFrame(dict(item_id=[f'{i:06}' for i in range(n)], title=titles, category=rng.choice(['Skin Care', 'Hair Care', 'Make-up', 'Tools'], n))).to_parquet(folder/'items.parquet')
    pd.DataFrame(dict(user_id=np.repeat([f'u{u}' for u in range(100)], 5), item_id=[f'{i:06}' for i in rng.integers(0, n, 500)], position=np.tile(np.arange(5), 100))).to_parquet(folder/'interactions.parquet')


def run(words, env, **more):
    "The command, timed."
    start = time.perf_counter()
    done = subprocess.run(words, env=env, capture_output=True, text=True, **more)
    if done.returncode: raise RuntimeError(done.stderr[-2000:])
    return done.stdout, time.perf_counter() - start


def killed(words, env, seconds):
    "The command, ended by force `seconds` after the price was told."
    process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True)
    for line in process.stdout:
        if 'summary' in line: break
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main():
    given = GIVEN | {k: type(GIVEN[k])(float(v)) for k, v in (w.split('=') for w in sys.argv[1:])}
    with tempfile.TemporaryDirectory() as folder, llm_server.Server(capacity=given['capacity'], latency=given['latency'], own_words=30) as server:
        folder = Path(folder)
        catalogue(folder, given['items'])
        env = os.environ | dict(RECX_STORE=str(folder/'store'), RECX_LLM_KEY='none', PYTHONUNBUFFERED='1')
        wishes = dict(dataset=f'parquet:{folder}', catalogue='all', on_duplicates='keep', describe='summary', llm='served', llm_base=server.base, llm_price='0.1/0.4', llm_budget=100., llm_concurrency=given['capacity'])
        words = [str(Path(sys.executable).parent/'recx'), 'enrich', '--features', str(folder/'features'), *(w for name, value in wishes.items() for w in ('-p', name, str(value)))]
        told, seconds = run([*words, '--estimate', '--expect', '60'], env)
        print(f'price beforehand, {seconds:.1f} s:\n{told}')
        if given['kill_at']:
            killed(words, env, given['kill_at'])
            print(f"killed {given['kill_at']} s after the price; answered by then: {sum(server.counts()['valid'].values()):,}")
        told, seconds = run(words, env)
        print(f"{given['items']:,} items, taken up and finished: {seconds:.0f} s, {given['items']/seconds:.0f} items/s\n{told}")
        counts = server.counts()['valid'].values()
        print(f'answered twice by the server: {sum(n - 1 for n in counts)} of {sum(counts):,}')
        told, seconds = run(words, env)
        print(f'once more, nothing to do: {seconds:.1f} s: {told.strip().splitlines()[-1]}')


if __name__ == '__main__': main()
