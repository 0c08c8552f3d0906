"Where raw files come from: search order, checksums, downloads that fail half-way, the wheel."
import hashlib, io, os, subprocess, sys, zipfile
from pathlib import Path
import pytest
from recx.data import sources
from recx.data.sources import SOURCES, WHEEL, download, fetch, home, member, opened, places, resolve, verify

FILES = {'u.data': b'1\t1\t5\t100\n', 'u.item': b'1|A (1990)|\n', 'u.user': b'1|24|M|x|1\n'}


@pytest.fixture
def root(tmp_path, monkeypatch):
    "An empty root with an empty folder beside it, and a small stand-in for ml-100k with checksums of its own."
    monkeypatch.setenv('RECX_HOME', str(tmp_path/'root'))
    monkeypatch.delenv('RECX_DATA', raising=False)
    (tmp_path/'root').mkdir()
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    monkeypatch.setitem(SOURCES, 'ml-100k', sources.Source(SOURCES['ml-100k'].folders, SOURCES['ml-100k'].forms, digests, 'https://nowhere.invalid/ml-100k.zip', '0'*64))
    return tmp_path/'root'


def put(folder, files=FILES):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items(): (folder/name).write_bytes(data)
    return folder


def offline(monkeypatch):
    "Neither GroupLens nor PyPI."
    monkeypatch.setattr(subprocess, 'run', lambda *a, **k: subprocess.CompletedProcess(a, 1, '', 'ERROR: no index in reach'))


def test_search_order_is_raw_then_recx_data_then_shared(root, tmp_path, monkeypatch):
    monkeypatch.setenv('RECX_DATA', str(tmp_path/'elsewhere'))
    assert places() == [root/'data'/'raw', tmp_path/'elsewhere', tmp_path/'shared'/'data']
    for base in reversed(places()):
        put(base/'movielens_100k')
        assert fetch('ml-100k') == base/'movielens_100k'


def test_folder_of_recx_data_may_be_the_data_set_itself(root, tmp_path, monkeypatch):
    monkeypatch.setenv('RECX_DATA', str(put(tmp_path/'my films')))
    assert fetch('ml-100k') == tmp_path/'my films'


def test_zip_is_found_and_read_in_place(root):
    (root/'data'/'raw').mkdir(parents=True)
    with zipfile.ZipFile(root/'data'/'raw'/'ml-100k.zip', 'w') as z:
        for name, data in FILES.items(): z.writestr(f'ml-100k/{name}', data)
    place = fetch('ml-100k')
    with opened(place, 'u.item') as f: assert place.suffix == '.zip' and f.read() == FILES['u.item'] and member(place, 'u.item') == place


def test_wrong_checksum_is_an_error_that_names_the_file_and_the_way_out(root):
    put(root/'data'/'raw'/'ml-100k', FILES | {'u.data': b'1\t1\t5\t101\n'})
    with pytest.raises(ValueError, match='ml-100k: u.data in .* has checksum .* delete it .* or name its folder by dataset_path'): fetch('ml-100k')


def test_nothing_in_reach_tells_what_was_tried_and_leaves_nothing(root, monkeypatch):
    offline(monkeypatch)
    with pytest.raises(FileNotFoundError, match='data/raw.*RECX_DATA.*nowhere.invalid.*recbole==1.2.1 on PyPI .ERROR: no index in reach.*dataset_path'): fetch('ml-100k')
    assert not list((root/'data'/'raw').iterdir())


def test_wheel_is_verified_before_it_arrives(root, monkeypatch):
    def wheel(words, **how):
        with zipfile.ZipFile(Path(words[-1])/'recbole-1.2.1-py3-none-any.whl', 'w') as z:
            for name in ('ml-100k.inter', 'ml-100k.item', 'ml-100k.user'): z.writestr(WHEEL[1] + name, b'something')
        return subprocess.CompletedProcess(words, 0, '', '')
    monkeypatch.setattr(subprocess, 'run', wheel)
    assert fetch('ml-100k') == root/'data'/'raw'/'ml-100k'
    sources.shutil.rmtree(root/'data'/'raw'/'ml-100k')
    SOURCES['ml-100k'].sha256['ml-100k.inter'] = '0'*64
    with pytest.raises(ValueError, match='ml-100k.inter in .* has checksum'): fetch('ml-100k')
    assert not list((root/'data'/'raw').iterdir())


def test_download_cut_short_leaves_nothing(root, tmp_path, monkeypatch):
    class Cut(io.BytesIO):
        headers = {'Content-Length': '1000'}
        def read(self, n=-1):
            data = super().read(n)
            if not data: raise ConnectionResetError('connection reset')
            return data
    monkeypatch.setattr(sources.urllib.request, 'urlopen', lambda *a, **k: Cut(b'x'*100))
    with pytest.raises(ConnectionResetError): download('ml-100k', 'https://nowhere.invalid/x.zip', '0'*64)
    assert not list((root/'data'/'raw').iterdir())
    offline(monkeypatch)
    with pytest.raises(FileNotFoundError, match='connection reset'): fetch('ml-100k')


def test_a_twin_that_was_faster_wins(root):
    with sources.arriving('ml-100k') as folder:
        put(folder/'ml-100k')
        put(root/'data'/'raw'/'ml-100k')
    assert fetch('ml-100k') == root/'data'/'raw'/'ml-100k' and [p.name for p in (root/'data'/'raw').iterdir()] == ['ml-100k']


def test_a_folder_that_lacks_files_is_not_taken_for_the_data(root, monkeypatch):
    offline(monkeypatch)
    put(root/'data'/'raw'/'ml-100k', {'u.data': FILES['u.data']})
    with pytest.raises(FileNotFoundError): fetch('ml-100k')
    with pytest.raises(FileNotFoundError, match='does not hold'): verify('ml-100k', root/'data'/'raw'/'ml-100k')


def test_relative_paths_are_seen_from_here_from_the_root_and_from_raw_data(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for base in (root/'data'/'raw', root, tmp_path): (base/'films').mkdir(parents=True); assert resolve('films', 'films') == base/'films'
    assert resolve(str(root), 'root') == root
    for nothing in ('', 'no/such'):
        with pytest.raises(FileNotFoundError, match='dataset_path=.*: no such file'): resolve(nothing, f'dataset_path={nothing!r}')


def test_home_is_the_checkout_or_what_recx_home_names(tmp_path, monkeypatch):
    monkeypatch.delenv('RECX_HOME', raising=False)
    assert (home()/'settings.ini').exists()
    monkeypatch.setenv('RECX_HOME', str(tmp_path))
    assert home() == tmp_path


@pytest.mark.skipif(not os.environ.get('RECX_TEST_DOWNLOAD'), reason='set RECX_TEST_DOWNLOAD=1 to fetch from PyPI')
def test_wheel_from_pypi(tmp_path, monkeypatch):
    monkeypatch.setenv('RECX_HOME', str(tmp_path))
    place = sources.from_wheel()
    assert verify('ml-100k', place) == tmp_path/'data'/'raw'/'ml-100k' and len(list(place.iterdir())) == 3
