"""Processor time of one call to a language model, by the direct path of recx.text.clients and by litellm, on the same loopback server; and of the two HTTP clients bare.

    python benchmarks/clients.py [calls] [repetitions]

The server is another process and answers at once, so what is measured is the client alone: build the question, send it, read the answer. Sixteen calls run at a time. Ratios are medians over alternating repetitions.
Processor time is given since it does not depend on what else the machine does.
"""
import asyncio, json, multiprocessing, os, statistics, sys, time

os.environ['OPENAI_API_KEY'] = 'of-no-use' # the server asks for none; litellm wants one
from recx.text.answers import Decoding
from recx.text.clients import DirectClient, LitellmClient

SCHEMA = dict(title='film', type='object', properties=dict(genre=dict(type='string', enum=['crime', 'comedy']), themes=dict(type='array', items=dict(type='string'))), required=['genre', 'themes'], additionalProperties=False)
MESSAGES = [dict(role='system', content='You describe films for a recommender. '*40), dict(role='user', content='title: Heat (1995) genres: Crime, Thriller '*5)]
ANSWER = json.dumps(dict(id='c', object='chat.completion', created=1, model='film', usage=dict(prompt_tokens=400, completion_tokens=30, total_tokens=430, prompt_tokens_details=dict(cached_tokens=0)),
                         choices=[dict(index=0, finish_reason='stop', message=dict(role='assistant', content=json.dumps(dict(genre='crime', themes=['loyalty', 'obsession'])))) ])).encode()


async def answer(reader, writer):
    try:
        while head := await reader.readuntil(b'\r\n\r\n'):
            await reader.readexactly(next(int(line.split(b':')[1]) for line in head.lower().split(b'\r\n') if line.startswith(b'content-length')))
            writer.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n' % len(ANSWER) + ANSWER)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError): pass
    finally: writer.close()


def serve(port):
    async def forever():
        server = await asyncio.start_server(answer, '127.0.0.1', 0)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()
    asyncio.run(forever())


async def sixteen(call, n):
    turns = iter(range(n))

    async def worker():
        for _ in turns: await call()
    await asyncio.gather(*(worker() for _ in range(16)))


async def by_client(client, n): # processor seconds, wall seconds
    async def call(): await client.complete(MESSAGES, SCHEMA, Decoding())
    await sixteen(call, 32)
    cpu, wall = time.process_time(), time.perf_counter()
    await sixteen(call, n)
    spent = time.process_time() - cpu, time.perf_counter() - wall
    await client.close()
    return spent


async def bare(library, base, n):
    body, headers = json.dumps(dict(model='film', messages=MESSAGES)), {'Content-Type': 'application/json'}
    if library == 'aiohttp':
        import aiohttp
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

        async def call():
            async with session.post(f'{base}/chat/completions', data=body, headers=headers) as r: json.loads(await r.read())
    else:
        import httpx
        session = httpx.AsyncClient(limits=httpx.Limits(max_connections=None))

        async def call(): json.loads((await session.post(f'{base}/chat/completions', content=body, headers=headers)).content)
    await sixteen(call, 32)
    cpu, wall = time.process_time(), time.perf_counter()
    await sixteen(call, n)
    spent = time.process_time() - cpu, time.perf_counter() - wall
    await (session.close() if library == 'aiohttp' else session.aclose())
    return spent


def main():
    calls, repetitions = (int(n) for n in sys.argv[1:] + ['500', '5'][len(sys.argv) - 1:])
    port = multiprocessing.Queue()
    server = multiprocessing.Process(target=serve, args=(port,), daemon=True)
    server.start()
    base = f'http://127.0.0.1:{port.get()}/v1'
    jobs = {'direct path': lambda: by_client(DirectClient('film', 'film', base), calls), 'litellm': lambda: by_client(LitellmClient('openai/gpt-4o-mini', base), calls),
            'aiohttp, bare': lambda: bare('aiohttp', base, calls), 'httpx, bare': lambda: bare('httpx', base, calls)}
    spent = {name: [] for name in jobs}
    for _ in range(repetitions):
        for name, job in jobs.items(): spent[name].append(asyncio.run(job()))
    print(f'{calls} calls, 16 at a time, median of {repetitions} alternating repetitions')
    first = next(iter(jobs))
    for name, times in spent.items():
        ratio = statistics.median(t[0]/f[0] for t, f in zip(times, spent[first]))
        print(f'{name:14s} {1000*statistics.median(t[0] for t in times)/calls:7.3f} ms of processor time per call   {calls/statistics.median(t[1] for t in times):6.0f} calls/s   processor time / direct path {ratio:6.2f}')
    server.terminate()


if __name__ == '__main__': main()
