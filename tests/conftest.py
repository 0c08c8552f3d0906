"What the tests share: a store of their own, so that no test reads a result that another run left."
import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples every time, so that what passed passes again; RECX_EXPLORE=1 looks for new ones.
settings.register_profile('fixed', derandomize=True, deadline=None)
if not os.environ.get('RECX_EXPLORE'): settings.load_profile('fixed')

os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')


@pytest.fixture
def store(tmp_path, monkeypatch):
    "An empty store for this test."
    folder = tmp_path/'store'
    monkeypatch.setenv('RECX_STORE', str(folder))
    return folder


@pytest.fixture(autouse=True, scope='session')
def embeddings(tmp_path_factory):
    "Vectors that the text stage keeps are kept for this run of the tests only."
    from recx.text import embed
    folder = tmp_path_factory.mktemp('embedded')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, 'embedded_path', lambda model='minilm': folder/embed.model_digest(model, 'embed_model')[:16])
        yield


def shared_data():
    "The folder with real data, or None: RECX_DATA, or `shared/data` beside the checkout."
    places = [Path(os.environ['RECX_DATA'])] if os.environ.get('RECX_DATA') else []
    places.append(Path(__file__).parent.parent.parent/'shared'/'data')
    return next((p for p in places if p.is_dir()), None)


@pytest.fixture
def real_data():
    "The folder with real data; the test is skipped where there is none."
    folder = shared_data()
    if folder is None: pytest.skip('no real data at hand: set RECX_DATA to its folder')
    return folder
