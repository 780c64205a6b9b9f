"""Where the network looks, from prompt and shape alone: every window holds what it is about."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_apprentice.types import Box, Click, Prediction, Prompt
from napari_apprentice.zoom import ZoomConfig, widened

ZOOM = ZoomConfig()

sides = st.integers(1, 600)


def holds(window: Box, click: Click) -> bool:
    return window.top <= click.voxel[0] < window.bottom and window.left <= click.voxel[1] < window.right


@st.composite
def clicked_slices(draw):
    """A slice's shape and one to four clicks in it."""
    shape = draw(sides), draw(sides)
    places = st.tuples(st.integers(0, shape[0] - 1), st.integers(0, shape[1] - 1))
    return shape, draw(st.lists(st.builds(Click, places, st.booleans()), min_size=1, max_size=4))


# --- at first ---


@settings(max_examples=60)
@given(st.integers(1, 3000), st.integers(1, 3000), st.data())
def test_first_windows_shrink_from_the_whole_slice_and_hold_the_click(height, width, data):
    row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    windows = ZOOM.first_windows(Click((row, col)), (height, width))
    whole = windows[0]
    assert whole.top <= 0
    assert whole.left <= 0
    assert whole.bottom >= height
    assert whole.right >= width
    sides = [w.bottom - w.top for w in windows]
    assert sides == sorted(set(sides), reverse=True)
    assert len(windows) == 1 or sides[-1] >= ZOOM.smallest_side_px - 1
    for window in windows:
        assert holds(window, Click((row, col)))
    for window in windows[1:]:  # a smaller window looks beyond the slice only where the slice is narrower than it
        for low, high, size in ((window.top, window.bottom, height), (window.left, window.right, width)):
            assert (low >= 0 and high <= size) or high - low >= size - 1


@settings(max_examples=60)
@given(clicked_slices())
def test_first_looks_are_first_windows_that_hold_all_positive_clicks(drawn):
    shape, clicks = drawn
    anchor = next((c for c in clicks if c.positive), clicks[-1])
    windows, looks = ZOOM.first_windows(anchor, shape), ZOOM.first_looks(clicks, shape)
    assert looks
    assert [w for w in windows if w in looks] == looks
    assert all(holds(w, c) for w in looks for c in clicks if c.positive)


def test_a_negative_click_nearby_keeps_the_first_looks_narrow():
    shape, at = (400, 400), Click((200, 200))
    assert ZOOM.first_looks([at], shape) == ZOOM.first_windows(at, shape)
    looks = ZOOM.first_looks([at, Click((200, 230), False)], shape)
    assert max(w.bottom - w.top for w in looks) <= 90
    assert ZOOM.first_looks([at, Click((200, 201), False)], shape) == ZOOM.first_windows(at, shape)[-1:]


def filled(box: Box, shape: tuple[int, int], view: Box | None = None) -> Prediction:
    return Prediction(np.ones(box.shape, np.float32), box, shape, view)


def test_the_scale_is_looked_for_at_the_start_and_when_an_early_click_contradicts_it():
    shape, seen = (300, 300), Box(50, 50, 250, 250)
    object_ = filled(Box(100, 100, 200, 200), shape, seen)
    first = Click((150, 150))
    start = Prompt((first,)), Prompt((first,), Prediction.from_mask(np.zeros(shape, bool)))
    assert [ZOOM.is_lost(prompt) for prompt in start] == [True, True]
    assert [ZOOM.is_outgrown(prompt) for prompt in start] == [False, False]
    for click, lost, outgrown in (
        (Click((220, 150)), False, False),
        (Click((280, 150)), False, True),  # it is larger than what was looked at
        (Click((195, 150), False), False, False),
        (Click((150, 160), False), True, False),  # it is smaller
        (Click((280, 150), False), False, False),
    ):
        for ask, expected in ((ZOOM.is_lost, lost), (ZOOM.is_outgrown, outgrown)):
            assert ask(Prompt((first, click), object_)) == expected
            assert not ask(Prompt((*[first] * ZOOM.first_clicks, click), object_))
            assert not ask(Prompt((first, click), filled(object_.box, shape)))  # nobody looked: it was drawn
            assert not ask(Prompt((first, click), replace(object_, given=True)))  # it is corrected


@given(st.lists(st.booleans(), max_size=20), st.booleans())
def test_masks_get_tighter_the_more_the_corrections_take_away(signs, first):
    clicks = [Click((0, 0), first), *(Click((0, 1), sign) for sign in signs)]
    lean = ZOOM.lean(clicks)
    assert ZOOM.lean(clicks[:1]) == 0
    assert ZOOM.lean([*clicks, Click((0, 2), False)]) > lean > ZOOM.lean([*clicks, Click((0, 2), True)])
    assert abs(lean) < ZOOM.leaning
    assert ZOOM.lean([replace(c, positive=not c.positive) for c in clicks]) == -lean


def test_late_are_many_clicks_and_those_on_a_given_mask_but_never_those_on_what_was_only_just_found():
    shape, click = (300, 300), Click((105, 150))
    seen = filled(Box(100, 100, 200, 200), shape, Box(50, 50, 250, 250))
    for previous, expected in (
        (seen, [False, False, True]),
        (replace(seen, given=True), [True, True, True]),
        (replace(seen, given=True, view=None), [True, True, True]),
        (replace(seen, view=None), [False, False, False]),
        (None, [False, False, False]),
    ):
        assert [ZOOM.is_late(Prompt((click,) * count, previous), 5) for count in (1, 4, 5)] == expected
        assert not ZOOM.is_late(Prompt((click,) * 5, previous), 0)
    deep = Prompt((Click((150, 150), False),), replace(seen, given=True))
    assert not ZOOM.is_late(deep, 5)  # most of it is wrong


# --- about an object ---


@settings(max_examples=60)
@given(sides, sides, st.data())
def test_the_window_holds_all_positive_clicks_and_the_object(height, width, data):
    places = st.tuples(st.integers(0, height - 1), st.integers(0, width - 1))
    clicks = tuple(Click(at) for at in data.draw(st.lists(places, min_size=1, max_size=4)))
    (top, left), (bottom, right) = data.draw(places), data.draw(places)
    top, bottom, left, right = min(top, bottom), max(top, bottom) + 1, min(left, right), max(left, right) + 1
    window = ZOOM.grown_window(Prompt(clicks, filled(Box(top, left, bottom, right), (height, width))), (height, width))
    for place in (*(c.voxel for c in clicks), (top, left), (bottom - 1, right - 1)):
        assert holds(window, Click(place))
    assert window.shape[0] == window.shape[1] <= 1.15 * max(height, width) + 1


def test_the_window_stays_while_it_still_does():
    shape, seen = (400, 400), Box(100, 100, 300, 300)
    prompt = Prompt((Click((200, 200)), Click((110, 200))), filled(Box(150, 150, 250, 250), shape, seen))
    assert ZOOM.window(prompt, shape) == seen
    outside = Prompt((Click((200, 200)), Click((90, 200))), prompt.previous)
    assert ZOOM.window(outside, shape) == ZOOM.grown_window(outside, shape) != seen
    small = Prompt((Click((200, 200)),), filled(Box(190, 190, 210, 210), shape, seen))
    assert ZOOM.window(small, shape) == ZOOM.grown_window(small, shape) != seen
    assert ZOOM.window(Prompt((Click((200, 200)),)), shape) == ZOOM.grown_window(Prompt((Click((200, 200)),)), shape)


@given(st.integers(1, 300), st.integers(-50, 300), st.integers(-50, 300), st.floats(1.0, 4.0), sides, sides)
def test_a_wider_window_holds_the_window(side, top, left, factor, height, width):
    window = Box(top, left, top + side, left + side)
    wide = widened(window, factor, (height, width))
    assert wide.top <= window.top
    assert wide.left <= window.left
    assert wide.bottom >= window.bottom
    assert wide.right >= window.right
    assert wide.shape[0] <= max(1.15 * max(height, width), side) + 1


@pytest.mark.parametrize(
    ("changed", "side"),
    [(Box(100, 100, 140, 120), 80), (Box(100, 100, 103, 104), 24), (Box(100, 100, 169, 110), 138), (Box(9, 9, 9, 9), None)],
)
def test_a_closer_window_is_about_the_change_and_clearly_narrower_than_what_was_seen(changed, side):
    seen = Box(0, 0, 200, 200)
    window = ZOOM.closer_window(changed, seen)
    assert (None if window is None else window.shape) == (None if side is None else (side, side))
    if window is not None:
        assert window.top <= changed.top < changed.bottom <= window.bottom
        assert window.left <= changed.left < changed.right <= window.right
    assert ZOOM.closer_window(Box(100, 100, 171, 110), seen) is None
