"One test for every backbone there is: it learns a checkerboard, comes back from its checkpoint, is the same for the same seed, meets a cold item, and refuses vectors that are none."
import json
import numpy as np
import pandas as pd
import pytest
import torch
from recx.data.dataset import Dataset
from recx.data.parameters import declared
from recx.recommend import stage
from recx.recommend.clicks import Clicks
from recx.recommend.given import Given
from recx.recommend.instances import auc
from recx.recommend.ranking import hr
from recx.recommend.rerank import Rerank
from recx.recommend.simple import Rates, Simple
from recx.recommend.stage import TASKS, load_model, run

USERS, ITEMS, LENGTH = 60, 40, 14
COLD = ITEMS - 1   # met by nobody in training, asked for once in the test
SMALL = declared(vars(stage)) | dict(embedding_size=16, epochs=40, patience=30, learning_rate=.01, dropout=.1, loss='ce', batch_size=64, batch_tokens=256, max_length=16, deep='24', click_fields='', mask_share=.3, list_length=10, list_size=5, adapter_hidden=8)


def checkerboard(values):
    "Even people meet even films, odd ones odd films; with `values` everybody meets all kinds, and likes their own."
    rng, rows = np.random.default_rng(0), []
    for u in range(USERS):
        pool = np.arange(COLD) if values else np.arange(u % 2, COLD, 2)
        rows += [(u, i) for i in rng.permutation(pool)[:LENGTH]]
    user, item = np.array(rows).T
    item[LENGTH - 1] = COLD
    events = pd.DataFrame(dict(user=[f'u{u:02}' for u in user], item=[f'i{i:02}' for i in item], time=np.tile(np.arange(LENGTH), USERS), value=np.where(item % 2 == user % 2, 5., 2.), split=np.tile(['train']*(LENGTH - 4) + ['valid']*2 + ['test']*2, USERS)))
    return Dataset(pd.DataFrame(dict(item=[f'i{i:02}' for i in range(ITEMS)])), pd.DataFrame(dict(user=[f'u{u:02}' for u in range(USERS)])), events, dict(name='ml-board', has_values=True))


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    "Both logs, and the first stage of the re-rankers."
    folder = tmp_path_factory.mktemp('contract')
    for name, values in (('ranking', False), ('clicks', True)):
        (folder/name).mkdir()
        checkerboard(values).save(folder/name)
    (folder/'first').mkdir()
    run(SMALL | dict(hold_back=2, epochs=4), dict(data=folder/'ranking'), folder/'first')
    return folder


def params_of(backbone, **changes):
    extra = dict(hold_back=2) if TASKS[backbone] is Rerank else dict(heads=2, learning_rate=.02) if backbone == 'autoint' else {}
    return SMALL | dict(backbone=backbone) | extra | changes


def inputs_of(backbone, base):
    return dict(data=base/('clicks' if TASKS[backbone] in (Clicks, Rates) else 'ranking')) | (dict(first=base/'first') if TASKS[backbone] is Rerank else {})


@pytest.fixture(scope='module')
def trained(base):
    "Each backbone, run once."
    made = {}
    def of(backbone):
        if backbone not in made:
            out = base/f'run-{backbone}'
            out.mkdir()
            made[backbone] = run(params_of(backbone), inputs_of(backbone, base), out)
        return made[backbone]
    return of


def same_side(per_user):
    "Which held-out events ask for something the user likes; the cold item is left out."
    return per_user[per_user.item != f'i{COLD:02}']


@pytest.mark.parametrize('backbone', TASKS)
def test_the_checkerboard_is_learned(backbone, trained):
    per_user = same_side(pd.read_parquet(trained(backbone)/'per_user.parquet')).query("split == 'test'")
    if backbone == 'rates': assert abs(auc(per_user.label.to_numpy(), per_user.probability.to_numpy()) - .5) < .15   # here everybody says yes as often as everybody else
    elif TASKS[backbone] is Clicks: assert auc(per_user.label.to_numpy(), per_user.probability.to_numpy()) > .8
    elif backbone == 'popularity': assert abs(hr(per_user['rank'].to_numpy(), 10) - 10/27) < .2   # knows nobody: ten of the items that are left
    else: assert hr(per_user['rank'].to_numpy(), 9) > .75   # nine of one's own colour are left


@pytest.mark.parametrize('backbone', TASKS)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(backbone, base, trained, tmp_path):
    again, other = tmp_path/'again', tmp_path/'other'
    for folder, changes in ((again, {}), (other, dict(seed=1))):
        folder.mkdir()
        run(params_of(backbone, epochs=2, **changes), inputs_of(backbone, base), folder)
    twice = tmp_path/'twice'
    twice.mkdir()
    run(params_of(backbone, epochs=2), inputs_of(backbone, base), twice)
    assert (again/'model.safetensors').read_bytes() == (twice/'model.safetensors').read_bytes()
    assert pd.read_parquet(again/'per_user.parquet').equals(pd.read_parquet(twice/'per_user.parquet'))
    if TASKS[backbone] not in (Simple, Rates): assert (again/'model.safetensors').read_bytes() != (other/'model.safetensors').read_bytes()


@pytest.mark.parametrize('backbone', TASKS)
def test_a_stored_model_answers_as_it_did(backbone, base, trained):
    folder, inputs = trained(backbone), inputs_of(backbone, base)
    data = Dataset.load(inputs['data'])
    task, model = load_model(folder, data, {'first': load_model(inputs['first'], data)} if 'first' in inputs else None)
    said = json.loads((folder/'summary.json').read_text())
    assert np.isclose(task.validate(model), said['valid'][said['criterion']])
    stored, now = pd.read_parquet(folder/'per_user.parquet'), task.results(model)['per_user']
    column = 'probability' if 'probability' in stored else 'rank'
    assert np.allclose(stored[column], now[column])


@pytest.mark.parametrize('backbone', TASKS)
def test_a_cold_item_gets_an_answer_and_is_said(backbone, trained):
    per_user, said = pd.read_parquet(trained(backbone)/'per_user.parquet'), json.loads((trained(backbone)/'summary.json').read_text())
    row = per_user[per_user.item == f'i{COLD:02}']
    assert len(row) == 1 and np.isfinite(row.iloc[0, -1])
    assert said['cold'] == dict(items=1, test_events=1, by_chance=TASKS[backbone] is not Simple)


@pytest.mark.parametrize('backbone', [name for name, task in TASKS.items() if task not in (Simple, Rates)])
def test_vectors_that_are_none_are_refused(backbone, base):
    inputs = inputs_of(backbone, base)
    data = Dataset.load(inputs['data'])
    vectors = np.random.default_rng(0).normal(size=(ITEMS, 8)).astype(np.float32)
    vectors[3, 2] = np.nan
    given = Given(items=vectors, layers={'': slice(0, 8)}, models={'first': load_model(base/'first', data)} if 'first' in inputs else {})
    params = params_of(backbone, fusion='replace')
    with pytest.raises(ValueError, match='NaN'):
        with torch.random.fork_rng(): TASKS[backbone](data, params).model(given)
