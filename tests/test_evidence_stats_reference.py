"The baseline gate: what it knows, and what it refuses to know."
import math

import pytest

from recx.evidence.reference import REFERENCES, baseline_gate, fitting, size_of

BEAUTY = dict(users=22363, items=12101, events=198502, split_by='leave-one-out', ties='file')


def test_published_values_come_first(): assert [(r.ndcg, r.published) for r in fitting(BEAUTY, 'ndcg', 'sasrec')] == [(.0531, True), (.0539, False)]


@pytest.mark.parametrize('value, status', [(.0531, 'reached'), (.0700, 'reached'), (.0505, 'reached'), (.0504, 'not reached'), (0., 'not reached')])
def test_within_five_per_cent(value, status): assert baseline_gate(BEAUTY, 'ndcg@10', value, 'sasrec')['status'] == status


@pytest.mark.parametrize('change, reason', [(dict(split_by='time'), 'leave-one-out'), (dict(events=198501), '198,501'), (dict(users=300), 'no known data set'), (dict(users=35598, items=18357, events=296337, ties='shuffle'), 'shuffle order')])
def test_unknown_says_why(change, reason):
    gate = baseline_gate(BEAUTY | change, 'ndcg@10', .05, 'sasrec')
    assert gate['status'] == 'unknown' and not gate['known'] and not gate['reached'] and math.isnan(gate['reference']) and reason in gate['text']


def test_each_tie_rule_has_its_own_value(): assert baseline_gate(BEAUTY | dict(ties='shuffle'), 'ndcg@10', .05, 'sasrec')['reference'] == .0503


def test_hit_rate_has_its_own_value(): assert baseline_gate(BEAUTY, 'hr@10', .09, 'sasrec')['reference'] == .0921


@pytest.mark.parametrize('metric', ['ndcg@20', 'mrr@10'])
def test_other_metrics_are_unknown(metric): assert 'NDCG@10 and HR@10 only' in baseline_gate(BEAUTY, metric, .05, 'sasrec')['text']


def test_no_two_rows_of_a_data_set_disagree_about_its_name():
    names = {}
    for r in REFERENCES: assert names.setdefault(size_of(r), r.data) == r.data


@pytest.mark.parametrize('value', [float('nan'), -.1, 1.2])
def test_what_is_no_metric_is_refused(value):
    with pytest.raises(ValueError, match='value='): baseline_gate(BEAUTY, 'ndcg@10', value, 'sasrec')


def test_a_value_holds_for_its_own_backbone_only():
    gate = baseline_gate(BEAUTY, 'ndcg@10', .03, 'lightgcn')
    assert gate['status'] == 'unknown' and 'known of sasrec, and this arm is lightgcn' in gate['text']
    assert {r.backbone for r in REFERENCES} == {'sasrec'} and baseline_gate(BEAUTY, 'ndcg@10', .03, 'sasrec')['status'] == 'not reached'
