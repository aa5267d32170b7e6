"""The formulas of tables, against scipy's and by hand."""

import math

import pytest
from scipy import stats

from evidence import stats as seeds


def test_the_interval_is_that_of_scipys_paired_t_test():
    ours, theirs = {"0": 70.1, "1": 71.3, "2": 70.4, "5": 99.0}, {"0": 69.0, "1": 70.9, "2": 69.9, "7": 1.0}
    found = seeds.paired(ours, theirs)
    test = stats.ttest_rel([70.1, 71.3, 70.4], [69.0, 70.9, 69.9])
    interval = test.confidence_interval(0.95)
    assert found is not None and found.pairs == 3
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.sign == 0 and test.pvalue > 0.05
    assert found.text() == f"+0.67 [{interval.low:+.2f}, {interval.high:+.2f}]"


def test_an_interval_that_excludes_0_has_a_sign():
    ours, theirs = {"0": 1.0, "1": 1.1, "2": 1.25}, {"0": 0.0, "1": 0.1, "2": 0.2}
    assert seeds.paired(ours, theirs).sign == 1
    assert seeds.paired(theirs, ours).sign == -1


def test_one_pair_none_and_differences_without_spread_have_no_interval():
    assert seeds.paired({"0": 1.0}, {"1": 1.0}) is None
    assert seeds.paired({"0": 1.5}, {"0": 1.0}) == seeds.Difference(0.5, None, None, 1)
    equal = seeds.paired({"0": 80.1, "1": 81.1}, {"0": 80.0, "1": 81.0})
    assert equal.low is None and equal.sign == 0


def test_the_best_is_significant_only_where_all_others_are_behind_beyond_their_intervals():
    a, b, c = ({str(k): v for k, v in enumerate(x)} for x in ((1, 2, 3.1), (5, 6, 7), (4, 7, 6)))
    assert seeds.select_best({"a": a, "b": b}, lower_is_better=False) == ("b", True)
    assert seeds.select_best({"a": a, "b": b}, lower_is_better=True) == ("a", True)
    assert seeds.select_best({"a": a, "b": b, "c": c}, lower_is_better=False) == ("b", False)
    assert seeds.select_best({"a": a}, lower_is_better=False) == ("a", False)


def test_the_time_to_a_target_is_the_first_time_in_either_direction():
    curve = [(1.0, 3.0), (2.0, math.nan), (3.0, 5.0), (4.0, 4.0)]
    assert seeds.time_to_target(curve, 4.5, lower_is_better=False) == 3.0
    assert seeds.time_to_target(curve, 3.5, lower_is_better=True) == 1.0
    assert seeds.time_to_target(curve, 6.0, lower_is_better=False) is None


def test_times_say_how_many_seeds_reached_the_target():
    assert seeds.times_text([]) == "–"
    assert seeds.times_text([None, None]) == "never (0 of 2)"
    assert seeds.times_text([2.0, None, 4.0]) == "3.00 ± 1.41 (2 of 3)"
    assert seeds.times_text([2.0]) == "2.00"


def test_means_are_written_with_their_deviation():
    assert seeds.mean_text([1.0, None, 2.0]) == "1.50 ± 0.71"
    assert seeds.mean_text([1.0], ".3f") == "1.000"
    assert seeds.mean_text([None]) == "–"


def test_examples_and_seeds_add_their_squared_margins_and_never_narrow_an_interval():
    ours, theirs = {0: 71.0, 1: 73.0, 2: 72.5}, {0: 70.0, 1: 71.0, 2: 71.5}
    alone, both = seeds.paired(ours, theirs), seeds.paired(ours, theirs, sampling=2.0)
    examples = seeds.paired({0: 71.0, 1: 72.0}, {0: 70.0, 1: 71.0}, sampling=2.0)  # seeds without spread
    assert examples.detectable == pytest.approx(1.959964 * 2)
    assert both.detectable == pytest.approx(math.hypot(alone.detectable, examples.detectable))
    assert seeds.sampling_error(0.5, 0.5, 200) == pytest.approx(0.05)


def test_p_values_are_those_of_the_interval_and_of_scipy():
    ours, theirs = {0: 71.0, 1: 73.0, 2: 72.5}, {0: 70.0, 1: 71.0, 2: 71.5}
    expected = stats.ttest_rel(list(ours.values()), list(theirs.values())).pvalue
    assert seeds.paired(ours, theirs).p_value() == pytest.approx(expected)
    diff = seeds.paired(ours, theirs, sampling=1.0)
    edge = seeds.half_width(3, diff.error, 1.0, p=diff.p_value())
    assert edge == pytest.approx(abs(diff.mean))
    assert diff.p_value(margin=abs(diff.mean)) == 1.0
    assert seeds.paired({0: 1.0}, {0: 0.0}, sampling=1.0).p_value() is None


def test_false_discovery_rates_are_benjamini_and_hochbergs():
    assert seeds.false_discovery_rates([0.01, 0.02, 0.03, 0.5]) == pytest.approx([0.04, 0.04, 0.04, 0.5])
    assert seeds.false_discovery_rates([]) == []
