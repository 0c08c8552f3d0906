"The verdict under every combination of tests, also those that cannot happen often: it always says something, and never more than the tests do."
import math

import pandas as pd
from hypothesis import given, settings, strategies as st

from recx.evidence.verdict import ORDER, Call, call, compared, gate_said, interval, judge, number, outcome, p_value, percent, seconds, sentences

PROBABILITY = st.one_of(st.just(math.nan), st.floats(0, 1))
LEVEL = st.floats(0, 1)
DIFFERENCE = st.one_of(st.just(math.nan), st.floats(-1, 1))
STUDY = dict(baseline='ids', arms={'ids': {}, 'moe': {}, 'moe · shuffled': dict(placebo_of='moe')}, family=[['moe', 'ids']], seeds=[0, 1], size='full')
RUNS = pd.DataFrame(dict(arm=['ids', 'moe'], seed=[0, 0], stopped=['patience', 'patience'], valid=[.1, .2], chance=[0, 0], unanswered=[0, 0]))
GATE = dict(arm='ids', status='unknown', metric='ndcg@10', value=.05, text='No reference value.')


@st.composite
def rows(draw, arm='moe', baseline='ids', kind='all', stratum='all'):
    "A row of the results with anything undefined that may be."
    diff = draw(DIFFERENCE)
    low, high = sorted([draw(st.floats(-2, 2)), draw(st.floats(-2, 2))])
    gap = draw(st.booleans())
    n_seeds = draw(st.integers(1, 6))
    return dict(arm=arm, baseline=baseline, metric='ndcg@10', stratum_kind=kind, stratum=stratum, n_users=draw(st.integers(0, 10**6)), n_seeds=n_seeds, mean=draw(LEVEL), mean_baseline=draw(st.one_of(st.just(0.), LEVEL)), diff=diff, rel=diff,
                rel_low=math.nan if gap else low, rel_high=math.nan if gap else high, cross_low=math.nan if n_seeds == 1 else low, cross_high=math.nan if n_seeds == 1 else high, p_seed_adj=math.nan if n_seeds == 1 else draw(PROBABILITY),
                p_user_adj=draw(PROBABILITY), mde=draw(DIFFERENCE), note=draw(st.sampled_from(['', 'identical: zero variance', 'one seed: no seed-level test', 'one user: no test and no interval'])))


@given(rows())
@settings(max_examples=200, deadline=None)
def test_every_row_has_a_word_and_a_sentence(row):
    c = call(row)
    assert c in ORDER
    study = dict(STUDY, arms={'ids': {}, 'moe': {}})
    text = sentences(outcome(pd.DataFrame([row]), study, 'moe', 'ids'), study)
    assert text and 'nan' not in text.lower().replace('finance', '') and 'inf' not in text.lower()


@given(rows())
@settings(max_examples=200, deadline=None)
def test_no_word_goes_beyond_the_tests(row):
    c = call(row)
    if row['note'].startswith('identical'): assert c == Call('identical')
    if 'users' in c.unit: assert row['p_user_adj'] <= .05
    if 'seeds' in c.unit: assert row['p_seed_adj'] <= .05 and row['n_seeds'] > 1
    if c.word == 'better': assert row['diff'] > 0
    if c.confirmed: assert not row['cross_low']/(row['mean_baseline'] or math.inf) <= 0 <= row['cross_high']/(row['mean_baseline'] or math.inf) or row['mean_baseline'] == 0
    if not math.isfinite(row['p_seed_adj']) and not math.isfinite(row['p_user_adj']): assert not c.unit


@given(rows(), rows(baseline='moe · shuffled'), rows(kind='share80', stratum='tail'))
@settings(max_examples=60, deadline=None)
def test_a_gain_is_meaning_only_where_the_placebo_is_beaten(main, placebo, tail):
    verdict = judge(pd.DataFrame([main, placebo, tail]), STUDY, GATE, {}, RUNS)
    entry = verdict.entries[0]
    if 'so capacity and initialisation alone do not explain' in entry['text']: assert call(placebo).better and call(main).better
    if call(main).better and not call(placebo).better: assert 'not due to meaning' in entry['text'] and entry['meaning'] == 'not shown'


def test_an_arm_that_does_not_gain_is_never_called_a_gain_of_meaning():
    base = dict(arm='moe', baseline='ids', metric='ndcg@10', stratum_kind='all', stratum='all', n_users=100, n_seeds=2, mean=.1, mean_baseline=.1, diff=0., rel=0., rel_low=-.01, rel_high=.01, cross_low=-.001, cross_high=.001, p_seed_adj=.9, p_user_adj=.9, mde=.001, note='')
    better = base | dict(baseline='moe · shuffled', diff=.02, rel=.2, rel_low=.1, rel_high=.3, cross_low=.01, cross_high=.03, p_seed_adj=.01, p_user_adj=.01)
    text = judge(pd.DataFrame([base, better]), STUDY, GATE, {}, RUNS).entries[0]['text']
    assert 'shows no difference' in text and 'none is shown beyond what the baseline has' in text


def test_numbers_look_alike_everywhere():
    assert [number(x) for x in (0., 1., -.05, 12.5)] == ['.0000', '1.0000', '−.0500', '12.5000']
    assert [p_value(p).replace('\xa0', ' ') for p in (.0004, .0005, .05, .9994, .9996)] == ['p < .001', 'p = .001', 'p = .050', 'p = .999', 'p > .999']
    assert percent(1e308) == '–' and percent(.1).replace('\xa0', ' ') == '+10.0 %' and interval(math.nan, 1) == '–' and seconds(math.inf) == '–'
    assert [seconds(s).replace('\xa0', ' ') for s in (0., 9.94, 9.96, 119.6, 3599.7)] == ['0.0 s', '9.9 s', '10 s', '2 min 00 s', '1 h 00 min']


def test_the_gate_without_an_id_only_arm():
    assert 'no id-only arm' in gate_said(dict(arm='', status='unknown'), STUDY)
    assert compared(outcome(pd.DataFrame([dict(arm='moe', baseline='ids', metric='ndcg@10', stratum_kind='all', stratum='all', note='identical: zero variance')]), dict(STUDY, arms={}), 'moe', 'ids'), STUDY).endswith('nothing to test.')
