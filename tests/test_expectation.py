"""Laws of the expected error: it is a share, every sign counts one way, and between two slices it does not matter from where one looks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_apprentice.expectation import Ending, Signs, expected_error, expected_of_answer, expected_to_go_on, hindsight

SIGNS = st.builds(Signs, *[st.floats(0, 3)] * len(Signs._fields))


@given(SIGNS, st.sampled_from(Signs._fields), st.floats(0.1, 2))
def test_it_is_a_share_and_no_sign_makes_it_smaller(signs, name, more):
    error = expected_error(signs)
    assert 0 < error < 1
    assert expected_error(signs._replace(**{name: getattr(signs, name) + more})) >= error


@pytest.mark.parametrize("name", ["away", "lost", "against", "doubted", "small", "open", "apart"])
def test_these_count(name):
    quiet = Signs(*[0.0] * len(Signs._fields))
    assert expected_error(quiet._replace(**{name: 1.0})) > expected_error(quiet) + 0.01
    assert expected_error(quiet) < 0.15


@given(SIGNS, SIGNS, st.floats(0, 1), st.floats(0, 1))
def test_between_two_slices_both_sides_tell_the_same(first, last, share, apart):
    forth, back = first.towards(last, share, apart), last.towards(first, 1 - share, apart)
    assert forth == pytest.approx(back)
    assert (forth.open, forth.apart, forth.away) == (0, apart, min(first.away, last.away))


@given(SIGNS, st.floats(0, 1))
def test_at_either_end_are_its_own_signs(signs, apart):
    other = Signs(*[5.0] * len(Signs._fields))
    assert signs.towards(other, 0.0, apart) == pytest.approx(signs._replace(open=0.0, apart=apart))


@given(st.builds(Ending, st.integers(0, 60), st.floats(0.3, 40), st.floats(0, 1)), st.sampled_from(Ending._fields), st.integers(1, 9))
def test_what_speaks_for_the_end_of_an_object_makes_it_less_likely_that_it_goes_on(ending, name, more):
    likely = expected_to_go_on(ending)
    assert 0 < likely < 1
    assert expected_to_go_on(ending._replace(**{name: getattr(ending, name) + more})) <= likely


def test_a_large_mask_that_the_network_believes_in_has_hardly_ended_and_a_shrunken_doubted_one_has():
    assert expected_to_go_on(Ending(passed=0, shrunk=1.0, doubted=0.05)) > 0.7
    assert expected_to_go_on(Ending(passed=6, shrunk=5.0, doubted=0.4)) < 0.1


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 20), st.booleans())
def test_of_an_answer_it_is_a_share_that_falls_with_what_the_network_thinks_of_it(score, other, clicks, found):
    low, high = sorted([score, other])
    assert 0 <= expected_of_answer(high, clicks, found=found) <= expected_of_answer(low, clicks, found=found) <= 1
    assert math.isnan(expected_of_answer(math.nan, clicks, found=found))


def test_a_single_click_is_believed_less_than_several_and_one_that_was_found_least():
    several, pointed, found = (expected_of_answer(0.9, clicks, found=found) for clicks, found in ((2, False), (1, False), (1, True)))
    assert several < pointed < found
    assert expected_of_answer(0.9, 3, found=True) == found, "nobody has looked at what was suggested, however often"


def test_what_was_right_in_this_study_is_believed_the_more_of_it_there_is():
    assert hindsight([]) == 0.0
    as_expected = 1 - expected_of_answer(0.8, 1, found=True)
    assert hindsight([(0.8, as_expected)] * 9) == pytest.approx(0.0)
    right = [hindsight([(0.8, 0.9)] * count) for count in (1, 5, 50, 5000)]
    assert right == sorted(right)
    assert expected_of_answer(0.8, 1, found=True, better=right[-1]) == pytest.approx(0.1, abs=1e-3)
    assert hindsight([(0.8, 0.0)] * 50) < 0
    assert hindsight([(math.nan, 0.9)]) == 0.0
    assert expected_of_answer(0.8, 1, found=False, better=0.3) == expected_of_answer(0.8, 1, found=False)
