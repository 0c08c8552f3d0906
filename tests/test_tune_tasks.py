"Lessons are made of the catalogue and of training events alone, and their batches are functions of the seed."
from itertools import islice
from types import SimpleNamespace
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from recx.extract.tasks import answer_rows, item_views, packed_blocks, pair_strengths, sft_examples, strangers, token_batches, train_histories, with_choices

POISON = ['poison-valid', 'poison-test']


def poisoned(n_users=40, n_items=30, seed=0):
    "A log whose validation and test events are of two items that nobody met in training."
    rng = np.random.default_rng(seed)
    items = pd.DataFrame(dict(item=[f'i{n}' for n in range(n_items)] + POISON, title=[f'Title {n}' for n in range(n_items)] + ['Venom', 'Toxin'],
                              brand=[f'brand {n % 5}' for n in range(n_items)] + ['Hemlock', 'Hemlock']))
    rows = [dict(user=f'u{u}', item=f'i{i}', split='train') for u in range(n_users) for i in rng.choice(n_items, 8, replace=False)]
    rows += [dict(user=f'u{u}', item=item, split=split) for u in range(n_users) for item, split in zip(POISON, ('valid', 'test'))]
    events = pd.DataFrame(rows).sort_values('user', kind='stable', ignore_index=True)
    return SimpleNamespace(items=items, events=events, card=dict(text_columns=['title', 'brand']))


@pytest.mark.parametrize('kind', ['encoder', 'decoder'])
def test_no_validation_or_test_event_reaches_a_lesson(kind):
    data = poisoned()
    texts = dict(zip(data.items.item, 'title: ' + data.items.title + ' brand: ' + data.items.brand))
    assert not set(POISON) & {i for h in train_histories(data).values() for i in h}
    examples = sft_examples(data, texts, kind)
    behaviour = examples[~examples.task.isin(['attribute', 'title'])]
    assert len(behaviour) and not behaviour[['question', 'answer', 'key']].apply(lambda c: c.str.contains('Venom|Toxin|poison|Hemlock')).any().any()
    choices = with_choices(examples.assign(held=True))
    assert not choices[~choices.task.isin(['attribute', 'title'])].choices.map(str).str.contains('Venom|Toxin').any()
    without = SimpleNamespace(items=data.items, events=data.events[data.events.split == 'train'], card=data.card)
    pd.testing.assert_frame_equal(examples, sft_examples(without, texts, kind))


def test_held_pairs_and_users_do_not_return_in_training_questions():
    data = poisoned(200)
    examples = sft_examples(data, dict(zip(data.items.item, data.items.title)), 'encoder')
    partner = examples[examples.task == 'partner']
    def pairs(rows): return {frozenset((q.split('.')[0], a)) for q, a in zip(rows.question, rows.answer)}
    assert partner.held.any() and not pairs(partner[partner.held]) & pairs(partner[~partner.held])


def test_yes_and_no_are_equally_popular():
    data = poisoned(200, 60)
    histories = train_histories(data)
    pairs = pair_strengths(histories, window=2)
    seen = pd.Series([i for h in histories.values() for i in h]).value_counts()
    others = strangers(pairs, pairs, histories)
    both = [(b, c) for b, c in zip(pairs['second'], others) if c is not None]
    known = {frozenset(p) for p in zip(pairs['first'], pairs['second'])}
    assert both and not any(frozenset((a, c)) in known for a, c in zip(pairs['first'], others) if c)
    assert abs(np.mean([seen[b] - seen[c] for b, c in both])) < seen.std()/2


def test_choices_hold_one_right_answer():
    data = poisoned(100)
    examples = sft_examples(data, dict(zip(data.items.item, data.items.title)), 'decoder')
    right = examples.groupby('question').answer.agg(set)
    for row in with_choices(examples.assign(held=True)).itertuples():
        assert row.choices[0] in right[row.question] and len(set(row.choices)) == len(row.choices) >= 2
        assert not right[row.question] & set(row.choices[1:])


def test_where_nothing_can_be_asked_there_are_no_questions():
    data = SimpleNamespace(items=pd.DataFrame(dict(item=['a', 'b'], title=['A', 'B'])), events=pd.DataFrame(dict(user=['u', 'v'], item=['a', 'b'], split='train')), card=dict(text_columns=['title']))
    examples = sft_examples(data, dict(a='A', b='B'), 'encoder')
    assert examples.empty and examples.held.all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=80), st.integers(8, 200), st.integers(0, 9), st.integers(1, 4))
def test_batches_keep_to_the_budget_the_group_and_the_seed(lengths, budget, seed, groups):
    lengths, groups = np.array(lengths), np.arange(len(lengths)) % groups
    some = list(islice(token_batches(lengths, budget, seed, groups), 30))
    assert some[10:] == list(islice(token_batches(lengths, budget, seed, groups), 10, 30))
    for batch in some:
        assert len(set(batch)) == len(batch) > 0 and len(set(groups[batch])) == 1
        assert len(batch) <= 2 or len(batch)*lengths[batch].max() <= budget


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(10, 99), min_size=1, max_size=12), min_size=1, max_size=8), st.integers(2, 20))
def test_packed_blocks_are_full_and_labelled_within_a_text(documents, block):
    for ids, labels, positions in islice(packed_blocks(documents, block, end=2), 6):
        assert len(ids) == len(labels) == len(positions) == block and positions[0] == 0
        for n in range(1, block):
            starts = positions[n] == 0
            assert starts or positions[n] == positions[n - 1] + 1
            assert labels[n] == (-100 if starts else ids[n])
            if starts: assert ids[n - 1] == 2


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.floats(0, 1))
def test_a_view_never_says_nothing(seed, drop):
    items = pd.DataFrame(dict(item=['a', 'b', 'c'], title=['Heat', None, 'nan'], genres=[['Crime'], ['Drama'], []], year=[1995., None, 1999.]))
    views = item_views(items, ['title', 'genres', 'year'], drop, np.random.default_rng(seed))
    assert all(views) and all(set(v.split()) <= set('title: Heat genres: Crime Drama year: 1995 1999'.split()) for v in views)


def test_hostile_titles_survive(tmp_path):
    from recx.extract.encoders import load_encoder
    tokenizer = load_encoder('minilm', device='cpu').tokenizer
    titles = ['A "quoted" {brace} title', 'line\nbreak', 'שמפו “רך”', '{attributes} %s', '</s> [MASK]', '<b>x</b>']
    items = pd.DataFrame(dict(item=[f'i{n}' for n in range(6)], title=titles, brand='b'))
    events = pd.DataFrame([dict(user=f'u{u}', item=f'i{i}', split='train') for u in range(4) for i in range(6)])
    examples = sft_examples(SimpleNamespace(items=items, events=events, card=dict(text_columns=['title', 'brand'])), dict(zip(items.item, items.title)), 'encoder')
    assert len(examples) and examples.question.str.len().gt(0).all()
    class Plain: bos_token_id, eos_token_id, __call__ = None, 2, staticmethod(lambda texts, **_: tokenizer(texts, add_special_tokens=False))
    for ids, labels in answer_rows(Plain(), examples.question.tolist(), examples.answer.tolist(), 24):
        assert len(ids) == len(labels) <= 24 and ids[-1] == labels[-1] == 2 and -100 in labels
