"""How an answer is laid over the one before: every pixel comes from one of both, clicks are obeyed, late clicks are local."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_apprentice.merging import HELD_LOGIT, changed_near, extent_of_change, laid_over, probability_in_window
from napari_apprentice.types import Box, Click, Prediction

SHAPE = (12, 14)
masks = hnp.arrays(bool, SHAPE)
places = st.tuples(st.integers(0, SHAPE[0] - 1), st.integers(0, SHAPE[1] - 1))


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@st.composite
def boxes(draw):
    (top, left), (bottom, right) = draw(places), draw(places)
    return Box(min(top, bottom), min(left, right), max(top, bottom) + 1, max(left, right) + 1)


def drawn(mask: np.ndarray, value: float = 3.0) -> Prediction:
    return Prediction(np.where(mask, value, -value).astype(np.float32), Box(0, 0, *mask.shape), mask.shape)


def part(prediction: Prediction, box: Box) -> Prediction:
    """What a prediction of a whole slice says of a box alone."""
    return replace(prediction, logits=prediction.logits[box.slices].copy(), box=box)


# --- laid over ---


@given(masks, masks, boxes(), boxes(), st.lists(st.tuples(places, st.booleans()), max_size=4), st.booleans())
def test_the_new_answer_stands_where_it_looked_the_old_one_elsewhere_and_clicks_are_obeyed(old, new, where, there, placed, correction):
    previous, box = replace(part(drawn(old), where), given=correction), there
    clicks = list({at: Click(at, positive) for at, positive in placed}.values())
    answer = laid_over(previous, part(drawn(new), box).logits, box, SHAPE, Box(-1, -1, 20, 20), 0.5, clicks)
    expected = previous.mask
    expected[box.slices] = new[box.slices]
    for click in clicks:
        covered = answer.box.top <= click.voxel[0] < answer.box.bottom and answer.box.left <= click.voxel[1] < answer.box.right
        expected[click.voxel] = click.positive and covered
        if box.top <= click.voxel[0] < box.bottom and box.left <= click.voxel[1] < box.right:
            assert answer.mask[click.voxel] == click.positive
    assert np.array_equal(answer.mask, expected)
    assert (answer.view, answer.score, answer.given) == (Box(-1, -1, 20, 20), 0.5, correction)


def test_where_the_model_does_not_obey_the_answer_is_held_and_where_it_does_left_alone():
    logits = np.array([[-3.0, 3.0, 3.0, -3.0]], np.float32)
    clicks = [Click((0, 0)), Click((0, 1)), Click((0, 2), False), Click((0, 3), False)]
    answer = laid_over(None, logits, Box(0, 0, 1, 4), (1, 4), Box(0, 0, 4, 4), 0.5, clicks)
    assert answer.logits.tolist() == [[np.float32(HELD_LOGIT), 3.0, np.float32(-HELD_LOGIT), -3.0]]


# --- late clicks ---


def test_a_late_click_changes_the_mask_only_where_it_is():
    old, new = np.zeros((60, 60), bool), np.zeros((60, 60), bool)
    old[20:40, 20:40] = new[20:40, 20:40] = True
    new[20:26, 40:50] = True  # the change that was asked for
    new[34:40, 20:26] = False  # one that nobody asked for
    merged = changed_near(drawn(new, 5.0), drawn(old), Click((22, 45)), 0.1)
    expected = new.copy()
    expected[34:40, 20:26] = True
    assert np.array_equal(merged.mask, expected)
    everything = changed_near(drawn(new, 5.0), drawn(old), Click((22, 45)), 5.0)
    assert np.array_equal(everything.logits, drawn(new, 5.0).logits)


@given(masks, masks, places, st.floats(0, 1))
def test_merging_takes_every_pixel_from_one_of_both_and_the_clicked_one_from_the_new(old, new, at, reach):
    merged = changed_near(drawn(new), drawn(old), Click(at), reach)
    assert np.array_equal(merged.mask[old == new], new[old == new])
    assert merged.mask[at] == new[at]
    again = changed_near(merged, drawn(old), Click(at), reach)
    assert np.array_equal(again.logits, merged.logits)


def test_what_changed_is_the_piece_at_the_click():
    old, new = np.zeros((60, 60), bool), np.zeros((60, 60), bool)
    old[20:40, 20:40] = new[20:40, 20:40] = True
    new[20:26, 40:50] = True
    new[34:40, 20:26] = False
    found = [extent_of_change(drawn(new), drawn(old), Click(at)) for at in ((22, 45), (22, 55), (36, 21))]
    assert found == [Box(20, 40, 26, 50), Box(20, 40, 26, 50), Box(34, 20, 40, 26)]
    assert extent_of_change(drawn(old), drawn(old), Click((3, 4))).shape == (0, 0)


@given(masks, masks, boxes(), boxes(), places)
def test_the_extent_of_a_change_holds_something_that_changed_and_is_empty_only_where_nothing_did(old, new, where, there, at):
    before, after = part(drawn(old), where), part(drawn(new), there)
    changed = np.zeros(SHAPE, bool)
    changed[there.slices] = (before.mask != after.mask)[there.slices]
    extent = extent_of_change(after, before, Click(at))
    assert changed[extent.slices].any() == changed.any()
    assert (extent.shape == (0, 0)) == (not changed.any())


# --- shown to the network ---


@given(masks, boxes(), st.integers(-20, 20), st.integers(-20, 20), st.integers(1, 20))
def test_at_its_own_size_a_window_shows_the_probability_and_none_elsewhere(mask, where, top, left, side):
    prediction, window = part(drawn(mask), where), Box(top, left, top + side, left + side)
    everywhere = np.full((80, 80), -20.0, np.float32)
    everywhere[30 + where.top : 30 + where.bottom, 30 + where.left : 30 + where.right] = prediction.logits
    expected = torch.from_numpy(everywhere)[30 + top : 30 + window.bottom, 30 + left : 30 + window.right].sigmoid()
    torch.testing.assert_close(probability_in_window(prediction, window, side)[0, 0], expected, atol=1e-6, rtol=0)
