"Clients against servers on loopback: what they send, every failure, learning a server's dialect, litellm, batches that survive a kill, and keys that never show."
import asyncio, email.utils, json, logging, os, socket, threading, time, traceback, warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import pytest
from hypothesis import given, settings, strategies as st
from recx.text.answers import Decoding
from recx.text.clients import BatchClient, Busy, Denied, Dialect, DirectClient, Hiccup, LitellmClient, Reply, Unusable, failure, make_client, read_reply, scrub, wait_asked

KEY = 'sk-test-0123456789abcdefSECRET'
SCHEMA = dict(title='film facts', type='object', properties=dict(genre=dict(type='string')), required=['genre'], additionalProperties=False)
ASK = [dict(role='system', content='You describe films.'), dict(role='user', content='Heat (1995) 🎬')]


def chat(text='{"genre": "crime"}', finish='stop', **more):
    return dict(id='c1', object='chat.completion', created=1, model='film-1', choices=[dict(index=0, finish_reason=finish, message=dict(role='assistant', content=text), logprobs=None)],
                usage=dict(prompt_tokens=40, completion_tokens=8, total_tokens=48, prompt_tokens_details=dict(cached_tokens=32))) | more


class Server:
    "An HTTP server whose answers a function gives: request -> (status, headers, body) or None, which cuts the connection."
    def __init__(self, answer):
        self.seen, self.connections = [], set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def handle_any(self):
                raw = self.rfile.read(int(self.headers.get('Content-Length') or 0))
                server.connections.add(self.client_address)
                request = dict(method=self.command, path=self.path, headers={k.lower(): v for k, v in self.headers.items()}, raw=raw)
                try: request['body'] = json.loads(raw)
                except ValueError: request['body'] = None
                server.seen.append(request)
                reply = answer(request)
                if reply is None:
                    self.close_connection = True
                    return self.connection.shutdown(socket.SHUT_RDWR)
                status, headers, body = reply
                body = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for k, v in {'Content-Type': 'application/json', 'Content-Length': str(len(body))}.items() | headers.items(): self.send_header(k, v)
                self.end_headers()
                try: self.wfile.write(body)
                except OSError: pass # the client left, as it should from an answer without end

            do_GET = do_POST = handle_any

            def log_message(self, *args): pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args): pass

        self.http = Quiet(('127.0.0.1', 0), Handler)
        self.base = f'http://127.0.0.1:{self.http.server_address[1]}/v1'
        threading.Thread(target=self.http.serve_forever, args=(.05,), daemon=True).start()

    def __enter__(self): return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()


def ask(client, n=1, messages=ASK, schema=SCHEMA, decoding=Decoding()):
    async def go():
        try: return [await client.complete(messages, schema, decoding) for _ in range(n)]
        finally: await client.close()
    return asyncio.run(go())


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv('RECX_LLM_KEY', KEY)
    return KEY


def test_what_is_sent_and_what_comes_back(key):
    with Server(lambda r: (200, {}, chat())) as server:
        picture = [ASK[0], dict(role='user', content=[dict(type='text', text='Heat'), dict(type='image_url', image_url=dict(url='data:image/png;base64,iVBORw0K', detail='low'))])]
        client = make_client('film', server.base)
        got = ask(client, 3, picture, decoding=Decoding(temperature=.2, max_tokens=77, seed=5, logprobs=True))
        sent = server.seen[0]
        assert (sent['path'], sent['headers']['authorization']) == ('/v1/chat/completions', f'Bearer {KEY}')
        assert sent['body'] == dict(model='film', messages=picture, temperature=.2, seed=5, max_tokens=77, logprobs=True,
                                    response_format=dict(type='json_schema', json_schema=dict(name='film_facts', strict=True, schema=SCHEMA)))
        assert (got[0].text, got[0].tokens_in, got[0].tokens_out, got[0].tokens_cached, got[0].model, got[0].cut) == ('{"genre": "crime"}', 40, 8, 32, 'film-1', False)
        assert len(server.connections) == 1 and got[0].confidence != got[0].confidence and 0 < got[0].seconds < 5
        assert ask(client)[0].text == got[0].text # a second event loop after close()


def test_another_loop_without_close(key):
    with Server(lambda r: (200, {}, chat())) as server:
        client = make_client('film', server.base)
        for _ in range(2): assert asyncio.run(client.complete(ASK, None, Decoding())).text == '{"genre": "crime"}'
        asyncio.run(client.close())


def test_no_key_is_sent_where_there_is_none(monkeypatch):
    monkeypatch.delenv('RECX_LLM_KEY', raising=False)
    monkeypatch.setenv('OPENAI_API_KEY', KEY) # belongs to OpenAI's address and goes to no other
    with Server(lambda r: (200, {}, chat())) as server:
        ask(make_client('film', server.base))
        assert 'authorization' not in server.seen[0]['headers'] and KEY not in str(server.seen)


FAILURES = [
    (401, {}, dict(error=dict(message=f'Incorrect API key provided: {KEY}')), Denied), (403, {}, dict(error='no'), Denied), (404, {}, dict(error=dict(message='The model `film` does not exist', code='model_not_found')), Denied),
    (402, {}, {}, Denied), (429, {}, dict(error=dict(code='insufficient_quota', message='You exceeded your current quota')), Denied), (301, {'Location': 'http://127.0.0.1:9/'}, {}, Denied),
    (400, {}, dict(error=dict(message='Your credit balance is too low')), Denied), (400, {}, dict(error=dict(message='API key not valid', status='INVALID_ARGUMENT')), Denied),
    (429, {'Retry-After': '7'}, dict(error=dict(code='rate_limit_exceeded')), Busy), (503, {}, b'busy', Busy), (529, {}, b'', Busy),
    (500, {}, b'', Hiccup), (502, {}, b'<html>bad gateway</html>', Hiccup), (200, {}, b'<html>', Hiccup), (200, {}, b'[1]', Hiccup), (200, {}, dict(choices=[]), Hiccup), (200, {}, dict(error=dict(code=429, message='x')), Busy),
    (200, {}, dict(choices=[dict(message='x')]), Hiccup), (200, {'Content-Length': '5000'}, b'{"choices"', Hiccup),
    (400, {}, dict(error=dict(code='context_length_exceeded', message="This model's maximum context length is 512 tokens, schema included")), Unusable), (400, {}, dict(error=dict(code='content_policy_violation')), Unusable),
    (413, {}, b'', Unusable), (200, {}, chat('no', 'content_filter'), Unusable), (200, {}, b'{"x": "' + b'x'*2**20 + b'"}', Unusable), (500, {}, b'x'*2**21, Unusable),
]


@pytest.mark.parametrize('status, headers, body, kind', FAILURES)
def test_every_failure_says_what_to_do(status, headers, body, kind, key):
    with warnings.catch_warnings(), Server(lambda r: (status, headers, body)) as server:
        warnings.simplefilter('ignore')
        client = make_client('film', server.base, timeout=3)
        with pytest.raises((Busy, Hiccup, Denied, Unusable)) as caught: ask(client)
        assert type(caught.value) is kind
        assert KEY not in ''.join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(client) and len(str(caught.value)) < 600
        assert caught.value.__cause__ is None and (caught.value.__context__ is None or caught.value.__suppress_context__)
        if status == 429 and kind is Busy: assert caught.value.retry_after == 7


def test_time_out_cut_and_nobody_there(key):
    with Server(lambda r: time.sleep(1)) as server:
        with pytest.raises(Hiccup, match='no answer within 0.2 s'): ask(make_client('film', server.base, timeout=.2))
    with Server(lambda r: None) as server:
        with pytest.raises(Hiccup): ask(make_client('film', server.base))
    with pytest.raises(Hiccup): ask(make_client('film', server.base))


def test_an_endless_answer_is_left():
    async def go():
        async def pour(reader, writer):
            await reader.readuntil(b'\r\n\r\n')
            writer.write(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n')
            try:
                while True:
                    writer.write(b'10000\r\n' + b'x'*0x10000 + b'\r\n')
                    await writer.drain()
            except ConnectionError: pass
            finally: writer.close()
        server = await asyncio.start_server(pour, '127.0.0.1', 0)
        client = make_client('film', f'http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1', timeout=20)
        with pytest.raises(Unusable, match='more than'): await client.complete(ASK, SCHEMA, Decoding())
        await client.close()
        server.close()
    asyncio.run(go())


@pytest.mark.parametrize('headers, wanted', [({'Retry-After': '0'}, 0.), ({'Retry-After': '-3'}, 0.), ({'Retry-After': 'inf'}, None), ({'retry-after-ms': '250'}, .25), ({'retry-after-ms': 'x', 'Retry-After': '4'}, 4.), (None, None), ({'Retry-After': 'Wed, 99 Foo'}, None)])
def test_waiting(headers, wanted): assert wait_asked(headers) == wanted


def test_waiting_until_a_date(): assert 55 < wait_asked({'Retry-After': email.utils.formatdate(time.time() + 60, usegmt=True)}) <= 60


@settings(max_examples=200, deadline=None)
@given(st.integers(200, 599), st.one_of(st.binary(max_size=60), st.text(max_size=60), st.recursive(st.one_of(st.none(), st.integers(), st.text(max_size=9)), lambda c: st.dictionaries(st.sampled_from(['error', 'message', 'code', 'choices']), c)).map(json.dumps)), st.text(max_size=20))
def test_any_answer_becomes_one_of_four(status, body, wait): assert type(failure(status, body, {'Retry-After': wait})) in (Busy, Hiccup, Denied, Unusable)


JSON = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.text(max_size=5)), lambda c: st.one_of(st.lists(c, max_size=2), st.dictionaries(st.sampled_from(['choices', 'message', 'content', 'usage', 'prompt_tokens', 'logprobs', 'finish_reason']), c)), max_leaves=8)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(['choices', 'usage', 'error', 'model']), JSON))
def test_a_malformed_envelope_is_a_hiccup(answer):
    try: reply = read_reply(answer, ASK, 'film')
    except (Hiccup, Unusable): return
    assert isinstance(reply.text, str) and reply.tokens_in >= reply.tokens_cached >= 0


class Particular:
    "A server that takes only what `takes` allows and says why not."
    def __init__(self, without=(), forms=('json_schema', 'json_object'), completion=False): self.without, self.forms, self.completion = without, forms, completion

    def __call__(self, request):
        body = request['body']
        form = body.get('response_format', {}).get('type')
        if self.completion and 'max_tokens' in body: return 400, {}, dict(error=dict(message="Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.", param='max_tokens', code='unsupported_parameter'))
        for p in self.without:
            if p in body: return 400, {}, dict(error=dict(message=f"Unsupported value: '{p}' does not support this value with this model. Only the default (1) value is supported.", param=p, code='unsupported_value'))
        if form and form not in self.forms: return 400, {}, dict(error=dict(message=f"Invalid parameter: 'response_format' of type '{form}' is not supported with this model."))
        return 200, {}, chat()


@pytest.mark.parametrize('server, refusals', [(Particular(), 0), (Particular(completion=True, without=('temperature',)), 2), (Particular(without=('seed', 'logprobs', 'temperature')), 3), (Particular(forms=('json_object',)), 1), (Particular(forms=()), 2)])
def test_a_dialect_is_learnt_once(server, refusals):
    with warnings.catch_warnings(record=True) as said, Server(server) as http:
        warnings.simplefilter('always')
        client = make_client('film', http.base)
        assert len(ask(client, 5, decoding=Decoding(logprobs=True))) == 5
        assert len(http.seen) == 5 + refusals and len(client.dialect.notes) == refusals == len([w for w in said if issubclass(w.category, UserWarning)])
        last = http.seen[-1]['body']
        if server.forms == ('json_object',): assert last['response_format'] == dict(type='json_object')
        if 'json_schema' not in server.forms: assert '"genre"' in last['messages'][0]['content'] and last['messages'][1] == ASK[1]


def test_sixteen_at_once_learn_one_lesson():
    with warnings.catch_warnings(record=True) as said, Server(Particular(forms=('json_object',), completion=True)) as http:
        warnings.simplefilter('always')
        client = make_client('film', http.base)

        async def go():
            try: return await asyncio.gather(*(client.complete(ASK, SCHEMA, Decoding()) for _ in range(16)))
            finally: await client.close()
        assert len(asyncio.run(go())) == 16 and len(client.dialect.notes) == 2 and client.dialect.form == 'json_object'


def test_a_row_too_long_teaches_nothing():
    long = dict(error=dict(message="'max_tokens' or 'max_completion_tokens' is too large: 300. This model's maximum context length is 512 tokens and your request has 400 input tokens."))
    with Server(lambda r: (400, {}, long)) as http:
        client = make_client('film', http.base)
        with pytest.raises(Unusable): ask(client)
        assert client.dialect == Dialect() and len(http.seen) == 1


def test_cut_thoughts_and_counts():
    assert read_reply(chat('{"genre": "cr', 'length'), ASK, 'film').cut
    assert read_reply(chat(None, 'length'), ASK, 'film').text == ''
    assert read_reply(chat('<think>a {"genre": "x"}</think>\n{"genre": "crime"}'), ASK, 'film').text == '{"genre": "crime"}'
    assert read_reply(chat([dict(type='text', text='{}')]), ASK, 'film').text == '{}'
    counted = read_reply(chat(usage=None), ASK, 'film')
    assert counted.tokens_in >= 8 and counted.tokens_out >= 5 and counted.tokens_cached == 0
    with pytest.raises(Unusable) as caught: read_reply(chat('x'*(2**20 + 1)), ASK, 'film')
    assert caught.value.reply.tokens_in == 40
    with pytest.raises(Unusable, match='refused'): read_reply(dict(chat(), choices=[dict(message=dict(content=None, refusal='I cannot help'))]), ASK, 'film')


@pytest.mark.parametrize('llm, base, word', [('', '', "llm=''"), ('openai/gpt-4o-mini', '', 'OPENAI_API_KEY'), ('film', 'localhost:8000', 'llm_base='), ('film', 'http://u:p@h/v1', 'RECX_LLM_KEY'), ('nobody/nothing', '', 'no provider'),
                                             ('anthropic/claude-haiku-4-5', '', 'ANTHROPIC_API_KEY'), ('gemini/gemini-2.5-flash', '', 'GEMINI_API_KEY'), ('local:/no/where', '', 'llm=')])
def test_what_is_missing_is_named(llm, base, word, monkeypatch):
    for k in [k for k in os.environ if k.endswith('_KEY')]: monkeypatch.delenv(k)
    with pytest.raises(ValueError, match=word): make_client(llm, base)


def test_keys_show_nowhere(key, monkeypatch, caplog, capsys):
    monkeypatch.setenv('OPENAI_API_KEY', KEY)
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as said, Server(lambda r: (401, {}, dict(error=dict(message=f'key {KEY} is wrong, Bearer {KEY}, {KEY[:12]}****'), echo=dict(r['headers'])))) as server:
        warnings.simplefilter('always')
        made = [make_client('film', server.base), LitellmClient('openai/film', server.base), make_client('openai/gpt-4o-mini'), BatchClient('film', server.base, every=.01)]
        shown = [repr(made), str([vars(c) for c in made]), str(vars(made[3].batches))]
        for client in made[:2]:
            try: ask(client)
            except Denied as e: shown += [repr(e), *traceback.format_exception(e)]
        try: asyncio.run(made[3].batches.once('aretrieve_batch', batch_id='b'))
        except Denied as e: shown += [repr(e), *traceback.format_exception(e)]
        out = capsys.readouterr()
        assert len(shown) > 6 and KEY not in '\n'.join(shown) + caplog.text + out.out + out.err + str([w.message for w in said])
        assert any(f'Bearer {KEY}' == r['headers'].get('authorization') for r in server.seen)


@pytest.mark.parametrize('text', [f'x {KEY} y', 'Incorrect API key provided: sk-ab12****************wxyz', 'Bearer abc', 'key=AIzaSyA1234567890abcdefg', 'gsk_1234567890abcdef'])
def test_scrub(text, monkeypatch):
    monkeypatch.setenv('SOME', KEY)
    assert '***' in scrub(text, 'SOME') and not any(part in scrub(text, 'SOME') for part in (KEY, 'wxyz', 'AIzaSy', '1234567890'))


# litellm

def test_litellm_path_agrees_with_the_direct_one(monkeypatch, capfd):
    monkeypatch.setenv('OPENAI_API_KEY', KEY)
    with Server(lambda r: (200, {}, chat())) as server:
        direct, through = ask(DirectClient('openai/gpt-4o-mini', 'gpt-4o-mini', server.base))[0], ask(LitellmClient('openai/gpt-4o-mini', server.base), 2)[0]
        assert vars(direct) | dict(seconds=0, confidence=0) == vars(through) | dict(seconds=0, confidence=0)
        assert server.seen[-1]['body']['response_format']['type'] == 'json_schema' and server.seen[-1]['body']['seed'] == 0
    out = capfd.readouterr()
    assert out.out + out.err == ''


@pytest.mark.parametrize('status, headers, body, kind', [f for f in FAILURES if f[0] != 200 and f[0] != 301 and not (f[0] == 500 and f[2])])
def test_litellm_failures(status, headers, body, kind, monkeypatch):
    monkeypatch.setenv('OPENAI_API_KEY', KEY)
    with warnings.catch_warnings(), Server(lambda r: (status, headers, body)) as server:
        warnings.simplefilter('ignore')
        with pytest.raises((Busy, Hiccup, Denied, Unusable)) as caught: ask(LitellmClient('openai/film', server.base))
        assert type(caught.value) is kind, caught.value
        assert KEY not in ''.join(traceback.format_exception(caught.value))
        if status == 429 and kind is Busy: assert caught.value.retry_after == 7
        assert len(server.seen) <= 3 # no retries of litellm's own


def test_litellm_time_out_and_cut(monkeypatch):
    monkeypatch.setenv('OPENAI_API_KEY', KEY)
    with Server(lambda r: time.sleep(2)) as server:
        with pytest.raises(Hiccup): ask(LitellmClient('openai/film', server.base, timeout=.3))
    with Server(lambda r: None) as server:
        with pytest.raises(Hiccup): ask(LitellmClient('openai/film', server.base))


def test_anthropic_by_litellm(monkeypatch):
    monkeypatch.setenv('ANTHROPIC_API_KEY', KEY)
    said = dict(id='m', type='message', role='assistant', model='claude-haiku-4-5', content=[dict(type='text', text='{"genre": "crime"}')], stop_reason='end_turn', stop_sequence=None,
                usage=dict(input_tokens=10, output_tokens=6, cache_read_input_tokens=30, cache_creation_input_tokens=0))
    with Server(lambda r: (200, {}, said)) as server:
        got = ask(LitellmClient('anthropic/claude-haiku-4-5', server.base.removesuffix('/v1')))[0]
        sent = server.seen[0]
        assert (got.text, got.tokens_in, got.tokens_out, got.tokens_cached) == ('{"genre": "crime"}', 40, 6, 30)
        assert sent['headers']['x-api-key'] == KEY and sent['body']['system'][0]['cache_control'] == dict(type='ephemeral') and 'genre' in json.dumps(sent['body'])


# batches

class Provider:
    "OpenAI's files and batches, in memory."
    def __init__(self, looks=1, answer=lambda body: (200, chat(json.dumps(dict(genre=body['messages'][-1]['content'])))), die=''):
        self.files, self.batches, self.looks, self.answer, self.die = {}, {}, looks, answer, die

    def file(self, content):
        self.files[name := f'file-{len(self.files)}'] = content
        return name

    def view(self, b): return {k: v for k, v in b.items() if k != 'left'}

    def __call__(self, r):
        path = r['path'].removeprefix('/v1').partition('?')[0]
        if (r['method'], path) == ('POST', '/files'):
            boundary = r['headers']['content-type'].partition('boundary=')[2].strip('"').encode()
            part = next(p for p in r['raw'].split(b'--' + boundary) if b'name="file"' in p)
            name = self.file(part.partition(b'\r\n\r\n')[2].removesuffix(b'\r\n'))
            return 200, {}, dict(id=name, object='file', bytes=1, created_at=1, filename='x.jsonl', purpose='batch', status='processed')
        if (r['method'], path) == ('POST', '/batches'):
            lines = [json.loads(line) for line in self.files[r['body']['input_file_id']].splitlines()]
            good, bad = [], []
            for line in lines:
                status, body = self.answer(line['body'])
                (good if status == 200 else bad).append(json.dumps(dict(id='x', custom_id=line['custom_id'], response=dict(status_code=status, request_id='r', body=body), error=None)))
            out = {k: self.file('\n'.join(v).encode()) if v else None for k, v in (('output_file_id', good), ('error_file_id', bad))}
            name = f'batch-{len(self.batches)}'
            self.batches[name] = dict(id=name, object='batch', endpoint='/v1/chat/completions', completion_window='24h', created_at=1, input_file_id=r['body']['input_file_id'], metadata=r['body'].get('metadata'), status='completed', errors=None, left=self.looks, **out)
            return (None if self.die == 'created' else (200, {}, self.view(self.batches[name])))
        if path == '/batches': return 200, {}, dict(object='list', data=[self.view(b) for b in self.batches.values()], first_id=None, last_id=None, has_more=False)
        if path.startswith('/batches/'):
            b = self.batches[path.removeprefix('/batches/')]
            b['left'] -= 1
            return 200, {}, self.view(b) | (dict(status='in_progress', output_file_id=None, error_file_id=None) if b['left'] >= 0 else {})
        if path.endswith('/content'): return 200, {'Content-Type': 'application/octet-stream'}, self.files[path.split('/')[2]]
        return 404, {}, dict(error=dict(message='no such path'))


def items(n, start=0): return [(f'k{i}', [ASK[0], dict(role='user', content=f'film {i}')], SCHEMA) for i in range(start, start + n)]


def run_batch(server, keep, todo, **more):
    async def go():
        client = BatchClient('film', server.base, timeout=5, every=.01, **more)
        try: return await client.run(todo, Decoding(), keep)
        finally: await client.close()
    return asyncio.run(go())


def test_batch(tmp_path, key):
    provider = Provider(looks=2)
    with Server(provider) as server:
        got = run_batch(server, tmp_path/'answers', items(5) + items(1))
        assert {k: json.loads(r.text)['genre'] for k, r in got.items()} == {f'k{i}': f'film {i}' for i in range(5)}
        assert len(provider.batches) == 1 and got['k0'].tokens_in == 40 and KEY not in ''.join(p.read_text() for p in (tmp_path/'answers').iterdir())
        assert str(run_batch(server, tmp_path/'answers', items(5))) == str({f'k{i}': got[f'k{i}'] for i in range(5)}) and len(provider.batches) == 1 # fetched again, not paid again
        assert len(run_batch(server, tmp_path/'answers', items(4, start=3))) == 4 and len(provider.batches) == 2 # two known, two new


def test_batch_with_failures(tmp_path, key):
    def answer(body):
        n = int(body['messages'][-1]['content'].split()[-1])
        return [(200, chat()), (400, dict(error=dict(code='context_length_exceeded', message='too long'))), (429, dict(error=dict(code='rate_limit_exceeded'))), (500, {})][n % 4]
    provider = Provider(answer=answer)
    with Server(provider) as server:
        got = run_batch(server, tmp_path, items(8))
        assert [type(got[f'k{i}']) for i in range(8)] == [Reply, Unusable, Busy, Hiccup]*2
        run_batch(server, tmp_path, items(8))
        assert len(provider.batches) == 2 and len(provider.files[provider.batches['batch-1']['input_file_id']].splitlines()) == 6 # only what failed is asked again


def test_batch_learns_a_dialect(tmp_path, key):
    def answer(body): return (200, chat()) if body.get('response_format', {}).get('type') == 'json_object' else (400, dict(error=dict(message="'response_format' of type 'json_schema' is not supported")))
    with warnings.catch_warnings(), Server(Provider(answer=answer)) as server:
        warnings.simplefilter('ignore')
        assert all(isinstance(r, Reply) for r in run_batch(server, tmp_path, items(3)).values())


def test_a_batch_that_fails_whole(tmp_path, key):
    provider = Provider()
    with Server(lambda r: (lambda s: (s[0], s[1], s[2] | dict(status='expired', output_file_id=None)) if r['path'].startswith('/v1/batches/') else s)(provider(r))) as server:
        got = run_batch(server, tmp_path, items(2))
        assert all(isinstance(g, Hiccup) and 'expired' in str(g) for g in got.values()) and not list(tmp_path.iterdir())


def test_batch_denied_and_wrong_provider(tmp_path, key, monkeypatch):
    with Server(lambda r: (401, {}, dict(error=dict(message=f'bad key {KEY}')))) as server:
        with pytest.raises(Denied): run_batch(server, tmp_path, items(1))
    monkeypatch.delenv('OPENAI_API_KEY', raising=False)
    with pytest.raises(ValueError, match='OPENAI_API_KEY'): BatchClient('openai/gpt-4o-mini')
    with pytest.raises(ValueError, match='llm_batch=False'): BatchClient('gemini/gemini-2.5-flash')


@pytest.mark.parametrize('moment', ['created', 'waiting'])
def test_a_batch_run_that_dies_is_not_paid_twice(moment, tmp_path, key):
    "A run is left for dead while the provider creates the batch, or works on it: nothing is written after that moment, as under kill -9."
    provider, reached = Provider(looks=10**6), threading.Event()

    def answer(r):
        said = provider(r)
        if not reached.is_set() and (r['method'] == 'POST' and r['path'].endswith('/batches') if moment == 'created' else '/batches/' in r['path']):
            reached.set()
            if moment == 'created': time.sleep(3)
        return said

    async def die(server):
        run = asyncio.ensure_future(BatchClient('film', server.base, every=.05).run(items(4), Decoding(), tmp_path))
        while not reached.is_set(): await asyncio.sleep(.01)
        run.cancel()
        with pytest.raises(asyncio.CancelledError): await run
    with Server(answer) as server:
        asyncio.run(die(server))
        note = json.loads(next(tmp_path.iterdir()).read_text())
        assert len(provider.batches) == 1 and (note['id'] == '') == (moment == 'created')
        for b in provider.batches.values(): b['left'] = 1
        assert {k: json.loads(r.text)['genre'] for k, r in run_batch(server, tmp_path, items(4)).items()} == {f'k{i}': f'film {i}' for i in range(4)}
        assert len(provider.batches) == 1


def test_a_batch_that_never_came_to_be_is_submitted(tmp_path, key):
    provider = Provider()
    with Server(lambda r: (400, {}, {}) if r['method'] == 'POST' and r['path'].endswith('/batches') and not provider.batches and not provider.files.pop('let', None) else provider(r)) as server:
        with pytest.raises(Unusable): run_batch(server, tmp_path, items(2))
        provider.files['let'] = b'x'
        assert len(run_batch(server, tmp_path, items(2))) == 2 and len(provider.batches) == 1
