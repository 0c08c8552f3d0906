"Users held out of training are told of by their visible history; items are not told of by them."
import numpy as np
import pytest
from recx.data.dataset import Col, Dataset
from recx.data import stage as data_stage
from recx.extract.tastes import check_events
from recx.text.histories import last_events, visible_events
from recx.text.template import template, template_users

PARAMS = dict(text_columns='', max_tokens=128, tokenizer='minilm')


@pytest.fixture(scope='module')
def worlds(tmp_path_factory):
    root = tmp_path_factory.mktemp('cold')
    return [Dataset.load(data_stage.small(root/name, toy_users=60, cold_users=share)) for name, share in (('warm', 0.), ('cold', .3))]


def test_a_held_out_user_is_told_of_by_all_of_the_visible_history(worlds):
    warm, cold = worlds
    held = cold.events[cold.events[Col.SPLIT] == 'history'][Col.USER].unique()
    assert len(held) > 5
    now, then = (template_users(world, PARAMS) for world in (cold, warm))
    chosen = lambda texts: texts.str.extract(r'^(.*? met\.(?: This user chooses .*? percent\)\.)?)')[0].tolist()   # what follows compares with other users and with the popularity of items, which training decides
    assert chosen(now.text) == chosen(then.text) and 'percent' in chosen(now.text)[0] and now.cutoff.tolist() == then.cutoff.tolist()
    assert set(last_events(cold, 5)[Col.USER]) >= set(held)


def test_items_are_told_of_by_training_alone(worlds):
    warm, cold = worlds
    texts = template(cold, PARAMS).text
    assert (texts != template(warm, PARAMS).text).any()
    assert texts.tolist() == template(Dataset(cold.items, cold.users, cold.events[cold.events[Col.SPLIT] != 'history'].reset_index(drop=True), cold.card), PARAMS).text.tolist()


def test_no_held_out_event_is_visible(worlds):
    for world in worlds: assert not np.isin(visible_events(world)[Col.SPLIT], ('valid', 'test')).any()
    with pytest.raises(ValueError, match='held out'): check_events(worlds[1].events, False)
    check_events(visible_events(worlds[1]), False)
