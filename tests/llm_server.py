"""A server on loopback that speaks OpenAI's chat completions and fails on request: for tests and benchmarks of what asks language models.

    with Server(capacity=64, latency=.25, faults=dict(busy=.05, error=.05)) as server: ... server.base ... server.counts()

runs it in a process of its own. It answers any schema with a valid value, `capacity` questions at once, `latency` seconds each. A fault strikes a question by a hash of its words and of how often it was asked, so that a run can be repeated.
`ask` asks it through the harness, `ask_and_be_killed` in a process that does not live to see the end.
"""
import asyncio, hashlib, json, multiprocessing, os, re, signal, subprocess, sys, time, urllib.request
from collections import Counter
from dataclasses import asdict, dataclass, field

FAULTS = dict(busy='429 with Retry-After', error='500', hang='no answer for `hang` seconds', cut='connection cut in the middle of the answer', body='200 with a body that is no JSON', json='an answer that is no JSON',
              schema='an answer that breaks its schema', prose='a valid answer within prose and a code fence', long='an answer cut off at max_tokens', huge='an answer of more than 1 MB', slow='ten times the latency', unusable='400: content policy', denied='401, with the key in the message')


@dataclass
class Settings:
    capacity: int = 64 # answers in the making at once; further questions wait
    latency: float = 0. # seconds per answer
    faults: dict = field(default_factory=dict) # name → share of the calls
    seed: int = 0
    retry_after: float = .05 # seconds asked for by `busy`
    hang: float = 30. # seconds
    key: str = '' # that must come with each call; '': none needed
    context: int = 0 # bytes of a conversation at most; 0: any number
    own_words: int = 0 # words in every string of an answer, each question its own; 0: one word, the same for all
    forms: tuple = ('json_schema', 'json_object') # kinds of response_format that are known


def example(schema, n=1):
    "A value that satisfies a schema; lists get `n` entries at the top, one below."
    if 'enum' in schema: return schema['enum'][0]
    if 'anyOf' in schema: return example(schema['anyOf'][0])
    kind = schema.get('type')
    if kind == 'object': return {k: example(s, n) for k, s in schema['properties'].items()}
    least = int((re.findall(r'at least (\d+) (?:entries|characters)', schema.get('description', '')) or [0])[0])
    if kind == 'array': n = max(n, least)
    if kind == 'string': return 'word' + ' word'*(least//5)
    if kind == 'array': return [example(schema['items'])|dict(number=i + 1) if 'number' in schema['items'].get('properties', {}) else example(schema['items']) for i in range(n)]
    return dict(number=.5, integer=1, boolean=True, null=None)[kind]


def words_of(messages):
    "The words of the first user message: what a question is known by, however often it is put."
    content = next(m['content'] for m in messages if m['role'] == 'user')
    return content if isinstance(content, str) else ''.join(p.get('text', '') for p in content)


def pseudo_words(question, n):
    "Words that differ from question to question, as answers do."
    drawn = hashlib.shake_256(question.encode()).digest(2*n)
    return [''.join(('ba', 'ke', 'li', 'mo', 'nu', 'ra', 'si', 'to', 've', 'xa', 'yo', 'zu', 'da', 'fe', 'gi', 'ho')[nibble] for nibble in (byte >> 4, byte & 15)) + 'nst'[other % 3] for byte, other in zip(drawn[:n], drawn[n:])]


class Model:
    "The server's state and its answers."
    def __init__(self, settings):
        self.settings, self.slots = settings, asyncio.Semaphore(settings.capacity)
        self.calls, self.valid, self.by_fault, self.busy, self.peak, self.first, self.last = Counter(), Counter(), Counter(), 0, 0, None, None

    def fault(self, words):
        "What goes wrong with this call, '' for nothing."
        at = int(hashlib.sha256(f'{self.settings.seed}|{self.calls[words]}|{words}'.encode()).hexdigest()[:12], 16)/16**12
        for name, share in self.settings.faults.items():
            at -= share
            if at < 0: return name
        return ''

    async def complete(self, request):
        "POST /v1/chat/completions."
        from aiohttp import web
        asked, s = await request.json(), self.settings
        if s.key and (sent := request.headers.get('Authorization', '')) != f'Bearer {s.key}': return web.json_response(dict(error=dict(message=f'Incorrect API key provided: {sent[7:]}', code='invalid_api_key')), status=401)
        form = asked.get('response_format', {}).get('type')
        if form and form not in s.forms: return web.json_response(dict(error=dict(message=f"'response_format' of type {form!r} is not supported")), status=400)
        words = words_of(asked['messages'])
        fault = self.fault(words)
        self.calls[words] += 1
        self.by_fault[fault] += 1
        self.first = self.first or time.time()
        if s.context and len(json.dumps(asked['messages'])) > s.context: return web.json_response(dict(error=dict(message='maximum context length exceeded', code='context_length_exceeded')), status=400)
        if fault == 'busy': return web.json_response(dict(error=dict(message='rate limit')), status=429, headers={'Retry-After': str(s.retry_after)})
        if fault == 'error': return web.json_response(dict(error=dict(message='internal error')), status=500)
        if fault == 'unusable': return web.json_response(dict(error=dict(message='content_policy_violation')), status=400)
        if fault == 'denied': return web.json_response(dict(error=dict(message=f"Incorrect API key provided: {request.headers.get('Authorization', '')[7:]}", code='invalid_api_key')), status=401)
        if fault == 'hang': await asyncio.sleep(s.hang) # outside of the slots: the others do not wait for it
        async with self.slots:
            self.busy += 1
            self.peak = max(self.peak, self.busy)
            await asyncio.sleep(s.latency*(10 if fault == 'slow' else 1))
            self.busy -= 1
        self.last = time.time()
        if fault == 'body': return web.Response(text='<html>gateway</html>')
        if fault == 'cut': return await self.cut(request)
        text, finish = self.text(asked, words, fault)
        if fault not in ('json', 'schema', 'long', 'huge', 'hang'): self.valid[words] += 1
        usage = dict(prompt_tokens=sum(len(str(m['content'])) for m in asked['messages'])//4, completion_tokens=max(1, len(text)//4), prompt_tokens_details=dict(cached_tokens=0))
        choice = dict(index=0, message=dict(role='assistant', content=text), finish_reason=finish)
        if asked.get('logprobs'): choice['logprobs'] = dict(content=[dict(token='a', logprob=-.1)])
        return web.json_response(dict(id='1', object='chat.completion', model=asked['model'], choices=[choice], usage=usage))

    def text(self, asked, words, fault):
        "The answer's text and why it ended."
        schema = asked.get('response_format', {}).get('json_schema', {}).get('schema')
        if schema is None: schema = json.loads(re.search(r'JSON schema:\n(\{.*\})', asked['messages'][0]['content'])[1]) if 'JSON schema:' in asked['messages'][0]['content'] else dict(type='object', properties={})
        value = json.dumps(example(schema, max(1, len(re.findall(r'^Item \d+:$', words, re.M)))))
        if self.settings.own_words: value = re.sub(r'"word[^"]*"', lambda _: json.dumps(' '.join(pseudo_words(words, self.settings.own_words))), value)
        if fault == 'json': return 'I am sorry, as a language model ' + value[:-1], 'stop'
        if fault == 'schema': return json.dumps({'wrong': value}), 'stop'
        if fault == 'prose': return f'Here it is:\n```json\n{value}\n```\nAnything else?', 'stop'
        if fault == 'long': return value[:len(value)//2], 'length'
        if fault == 'huge': return value[:-1] + ', "x": "' + 'x'*1_100_000 + '"}', 'stop'
        return value, 'stop'

    async def cut(self, request):
        "Half an answer, then nothing."
        from aiohttp import web
        response = web.StreamResponse(headers={'Content-Length': '1000'})
        await response.prepare(request)
        await response.write(b'{"choices": [{"mess')
        request.transport.close()
        return response

    async def counts(self, request):
        "GET /counts: what happened so far."
        from aiohttp import web
        return web.json_response(dict(calls=self.calls, valid=self.valid, by_fault=self.by_fault, peak=self.peak, busy=self.busy, seconds=(self.last or 0) - (self.first or 0)))

    async def change(self, request):
        "POST /settings: other settings and, unless `keep`, counts from zero."
        from aiohttp import web
        new = await request.json()
        keep = new.pop('keep', False)
        kept = self.calls, self.valid, self.by_fault
        self.__init__(Settings(**(asdict(self.settings) | new)))
        if keep: self.calls, self.valid, self.by_fault = kept
        return web.json_response({})


async def serve(settings):
    "Serve until killed; the port is the first line written."
    from aiohttp import web
    model, app = Model(settings), web.Application(client_max_size=2**26)
    app.add_routes([web.post('/v1/chat/completions', model.complete), web.get('/counts', model.counts), web.post('/settings', model.change)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, '127.0.0.1', 0, backlog=4096)
    await site.start()
    print(site._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


class Server:
    "The server in a process of its own."
    def __init__(self, **settings): self.settings = settings

    def __enter__(self):
        self.process = subprocess.Popen([sys.executable, __file__, json.dumps(self.settings)], stdout=subprocess.PIPE, text=True)
        self.address = f'http://127.0.0.1:{int(self.process.stdout.readline())}'
        self.base = f'{self.address}/v1'
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def counts(self): return json.loads(urllib.request.urlopen(f'{self.address}/counts', timeout=30).read())

    def change(self, **settings): urllib.request.urlopen(urllib.request.Request(f'{self.address}/settings', json.dumps(settings).encode(), {'Content-Type': 'application/json'}), timeout=30).read()


def asked_about(n, start=0):
    "`n` requests of one prompt."
    from pydantic import BaseModel, Field
    from recx.text.answers import Request
    from recx.text.prompts import Prompt
    class Described(BaseModel):
        summary: str = Field(max_length=200)
        tags: list[str] = Field(max_length=5)
        confidence: float = Field(ge=0, le=1)
    prompt = Prompt('describe', '1', 'You describe items for a recommender. '*20, 'The item: {item!fenced}', Described)
    return [Request(str(i), 'item', '', prompt, dict(item=f'Item number {i}, a nail lacquer with shimmer')) for i in range(start, start + n)]


def ask(base, store, items, concurrency=16, timeout=5., retries=4, backoff=.05, **limits):
    "Ask about `items` items through the harness, from a store in the file `store`."
    from recx.text.answers import Answers, Decoding
    from recx.text.clients import make_client
    from recx.text.harness import Limits, generate
    from recx.text.prices import Price
    answers = Answers(store)
    try: return generate(asked_about(items), make_client('served', base, timeout), answers, Decoding(), Limits(concurrency=concurrency, retries=retries, backoff=backoff, **limits), Price(1., 4., 1., 1., 'test'), progress=False)
    finally: answers.close()


def interruptible(**settings):
    "`ask`, which Ctrl-C ends also where the tests were started in the background of a shell, which has it ignored."
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return ask(**settings)


def ask_and_be_killed(server, settings, calls, after, by=signal.SIGKILL):
    "`ask` in a process that is killed (or interrupted) `after` seconds from the moment at which the server has had `calls` calls more; whether it was killed before its end."
    before = sum(server.counts()['calls'].values())
    process = multiprocessing.get_context('fork').Process(target=interruptible, kwargs=settings) # forked: what takes seconds to import is there already
    process.start()
    while process.is_alive() and sum(server.counts()['calls'].values()) < before + calls: time.sleep(.01)
    process.join(after)
    if process.is_alive(): os.kill(process.pid, by)
    process.join()
    return process.exitcode != 0


if __name__ == '__main__': asyncio.run(serve(Settings(**json.loads(sys.argv[1]))))
