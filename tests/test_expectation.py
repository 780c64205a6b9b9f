"""Laws of the expected error: it is a share, every sign adds to it, and between two slices it does not matter from where one looks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_apprentice.expectation import Signs, expected_error

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
