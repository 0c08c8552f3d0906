"The text stage with a language model behind a real server on loopback: every describer, the second run, the budget, the keys, the command line."
import json
import pandas as pd
import pytest
from llm_server import Server
from recx.data.dataset import Dataset
from recx.data.parameters import declared, small_of
from recx.extract.features import FeatureStore
from recx.run import cli
from recx.text import stage
from recx.text.describers import ITEMS, USERS
from recx.text.texts import load_texts

KEY = 'sk-test-0123456789abcdef'
SMALL = dict(toy_users=40, toy_items=40)


@pytest.fixture(scope='module')
def server():
    with Server() as running:
        running.change(capacity=32, latency=0., key=KEY)
        yield running


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return small_of('data')(tmp_path_factory.mktemp('data')/'data', **SMALL)


@pytest.fixture
def llm(server, monkeypatch, tmp_path):
    monkeypatch.setenv('RECX_STORE', str(tmp_path/'store'))
    monkeypatch.setenv('RECX_LLM_KEY', KEY)
    return dict(llm='model', llm_base=server.base, llm_price='1/2')


def described(data, out, **changes):
    params = declared(vars(stage)) | changes
    stage.check(params)
    out.mkdir(parents=True)
    return stage.run(params, dict(data=data), out)


@pytest.mark.parametrize('name', [n for n, d in ITEMS.items() if d.asks])
def test_items_by_a_model(name, data, server, llm, tmp_path):
    first, before = described(data, tmp_path/'a', describe=name, domain='film', **llm), sum(server.counts()['calls'].values())
    texts, dataset = load_texts(first), Dataset.load(data)
    assert set(texts.id) == set(dataset.item_ids) and (texts.text != '').mean() > .5 and set(texts.source) == {name}
    again = described(data, tmp_path/'b', describe=name, domain='film', **llm)
    assert sum(server.counts()['calls'].values()) == before   # not one call
    pd.testing.assert_frame_equal(load_texts(again), texts)
    spent, ledger = json.loads((again/'spent.json').read_text()), pd.read_parquet(again/'ledger.parquet')
    assert ledger.calls.sum() == 0 and ledger.reused.sum() == ledger.rows.sum() and spent == json.loads((first/'spent.json').read_text())
    assert spent['money'] > 0 and spent['tokens'] > 0


@pytest.mark.parametrize('name', [n for n, d in USERS.items() if d.asks])
def test_users_by_a_model(name, data, llm, tmp_path):
    texts = load_texts(described(data, tmp_path/'a', describe='layers' if name == 'attributes' else 'flatten', describe_users=name, domain='film', **llm))
    users = texts[texts.kind == 'user']
    assert set(users.id) == set(Dataset.load(data).user_ids) and (users.text != '').all() and (users.cutoff != '').all()


def test_profiles_of_users_are_continued(data, server, llm, tmp_path):
    first = described(data, tmp_path/'a', describe_users='profile', **llm)
    before = sum(server.counts()['calls'].values())
    again = described(data, tmp_path/'b', describe_users='profile', users_before=str(first), **llm)
    assert sum(server.counts()['calls'].values()) == before   # nobody has new events
    pd.testing.assert_frame_equal(load_texts(again), load_texts(first))
    with pytest.raises(ValueError, match='users_before'): described(data, tmp_path/'c', describe_users='profile', users_before=str(tmp_path), **llm)


def test_budget_stops_and_the_next_run_goes_on(data, server, llm, tmp_path):
    small = dict(describe='expansion', llm_concurrency=1, **llm)
    with pytest.raises(ValueError, match='raise llm_budget'): described(data, tmp_path/'a', llm_budget=.004, **small)
    assert not list((tmp_path/'a').iterdir())
    before = sum(server.counts()['calls'].values())
    texts = load_texts(described(data, tmp_path/'b', llm_budget=5., **small))
    assert 0 < sum(server.counts()['calls'].values()) - before < len(texts)


def test_every_catalogue_has_its_own_budget(data, llm, tmp_path):
    settings = dict(describe='expansion', llm_concurrency=1, llm_budget=.009, **llm)
    described(data, tmp_path/'a', **settings)
    other = small_of('data')(tmp_path/'other', **SMALL | dict(toy_items=41, toy_seed=5))
    assert (load_texts(described(other, tmp_path/'b', **settings)).text != '').all()   # together they cost more than .009
    spent = [json.loads((tmp_path/n/'spent.json').read_text())['money'] for n in 'ab']
    assert max(spent) < .009 < sum(spent)


def test_alike_items_share(data, llm, tmp_path):
    out = described(data, tmp_path/'a', describe='summary', semantic_threshold=.5, semantic_check=.3, **llm)
    report = json.loads((out/'semantic.json').read_text())
    assert report['reused'] > 0 and report['checked'] > 0 and report['disagreement'] == 0
    assert pd.read_parquet(out/'ledger.parquet').calls.sum() < report['rows']


def test_without_a_key_and_with_a_wrong_one(data, llm, monkeypatch, tmp_path):
    monkeypatch.setenv('RECX_LLM_KEY', 'sk-wrong-0123456789abcdef')
    with pytest.raises(ValueError, match='RECX_LLM_KEY|put that right') as e: described(data, tmp_path/'a', describe='keywords', **llm)
    assert 'sk-wrong' not in str(e.value)
    monkeypatch.delenv('OPENAI_API_KEY', raising=False)
    with pytest.raises(ValueError, match='OPENAI_API_KEY'): described(data, tmp_path/'b', describe='keywords', llm='openai/gpt-4o-mini')


def test_no_key_in_anything_written(data, llm, tmp_path, capsys):
    described(data, tmp_path/'a', describe='profile', describe_users='profile', **llm)
    said = capsys.readouterr()
    files = [p for p in tmp_path.rglob('*') if p.is_file()]
    assert len(files) >= 6 and KEY not in said.out + said.err
    for path in files: assert KEY.encode() not in path.read_bytes(), path.name


def test_enrich_by_the_command_line(server, llm, tmp_path, capsys):
    words = ['enrich', '--features', str(tmp_path/'features'), *(w for n, v in (llm | SMALL | dict(dataset='toy', describe='profile')).items() for w in ('-p', n, str(v)))]
    cli.main([*words, '--estimate'])
    told = capsys.readouterr().out
    assert 'profile (items)' in told and not (tmp_path/'features').exists()
    cli.main(words)
    assert '40 new' in capsys.readouterr().out
    before = sum(server.counts()['calls'].values())
    cli.main(words)
    assert '0 new, 0 changed, 40 as they were; 0 encoded' in capsys.readouterr().out and sum(server.counts()['calls'].values()) == before
    assert set(FeatureStore(tmp_path/'features').rows().source) == {'profile'}


def test_enrich_ended_while_encoding_goes_on(tmp_path, monkeypatch):
    from recx.extract import encode as encoding
    from recx.run.enrich import enrich
    monkeypatch.setenv('RECX_STORE', str(tmp_path/'store'))
    monkeypatch.setattr(encoding, 'CHUNK', 8)
    wishes, chunks, honest = SMALL | dict(dataset='toy', describe='template'), [], encoding.encode_distinct
    def ended(encoder, texts, *more):
        chunks.append(len(texts))
        if len(chunks) == 4: raise KeyboardInterrupt
        return honest(encoder, texts, *more)
    monkeypatch.setattr(encoding, 'encode_distinct', ended)
    with pytest.raises(KeyboardInterrupt): enrich(wishes, tmp_path/'features')
    assert not FeatureStore(tmp_path/'features').snapshot.rows.size and len(list((tmp_path/'store'/'encoding').rglob('*.npy'))) == 3
    done = enrich(wishes, tmp_path/'features')['store']
    distinct = FeatureStore(tmp_path/'features').rows().text.nunique()
    assert done['new'] == done['encoded'] == 40 and sum(chunks) == distinct + 8 and not [p for p in (tmp_path/'store'/'encoding').iterdir() if p.is_dir()]
    assert enrich(wishes, tmp_path/'features')['store']['encoded'] == 0


@pytest.mark.parametrize('changes, said', [(dict(describe='keywords'), 'need a language model'), (dict(describe='imported'), 'import_path'), (dict(llm_price='1'), 'llm_price'), (dict(describe='flatten', llm_per_request=99), 'llm_per_request'),
                                           (dict(layers='L9'), 'L9'), (dict(domain='cars'), 'domain'), (dict(cluster_by='k-means'), 'kmeans'), (dict(escalate_below=2.), 'escalate_below')])
def test_bad_parameters(changes, said):
    with pytest.raises(ValueError, match=said): stage.check(declared(vars(stage)) | changes)


def test_tastes_of_users_stand_beside_layered_items(data, llm, tmp_path):
    from recx.extract import stage as extract
    from recx.extract.vectors import Vectors
    text = described(data, tmp_path/'text', describe='layers', domain='film', **llm)
    params = declared(vars(extract)) | dict(user_vectors='tastes', half_life=30.)
    extract.check(params)
    (tmp_path/'vectors').mkdir()
    vectors, dataset = Vectors.load(extract.run(params, dict(data=data, text=text), tmp_path/'vectors')), Dataset.load(data)
    assert vectors.layers() == vectors.layers('user') == ['L1', 'L2', 'L3']
    assert vectors.joined(dataset.user_ids, 'user').shape == (len(dataset.user_ids), 3*384)
