"""Clicks of simulated users in training: where they fall, and what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from napari_apprentice.boxes import beside, inscribed
from napari_apprentice.simulation import make_robot
from napari_apprentice.training_clicks import bent, careless_click, clicks_on, drawn_box, first_clicks, next_click
from napari_apprentice.types import Box

masks = hnp.arrays(bool, st.tuples(st.integers(2, 24), st.integers(2, 24)))


@st.composite
def corrections(draw):
    truth = draw(masks)
    return truth, draw(hnp.arrays(bool, truth.shape)), draw(st.integers(0, 1000))


@settings(max_examples=150)
@given(corrections())
def test_a_correction_falls_on_an_error_and_says_what_is_true_there(correction):
    truth, mask, seed = correction
    click = next_click(np.random.default_rng(seed), truth, mask)
    if (truth == mask).all():
        assert click is None
    else:
        row, col = int(click.row), int(click.col)
        assert truth[row, col] != mask[row, col]
        assert click.positive == bool(truth[row, col])


@settings(max_examples=150)
@given(corrections())
def test_a_careless_click_falls_where_the_robot_random_would_click(correction):
    truth, mask, seed = correction
    click = careless_click(np.random.default_rng(seed), truth, mask)
    expected = make_robot("random").click(truth, mask)
    assert (click is None) == (expected is None) == bool((truth == mask).all())
    if click is not None:
        assert click.positive == expected.positive
        error = ndimage.label((truth != mask) & (truth == click.positive), np.ones((3, 3)))[0]
        assert error[int(click.row), int(click.col)] == error[expected.voxel] != 0


def test_careless_clicks_fall_everywhere_in_the_largest_error():
    truth = square(10, 10, 12)
    truth[40:60, 40] = True
    drawn = {(c.row, c.col) for seed in range(600) if (c := careless_click(np.random.default_rng(seed), truth, np.zeros_like(truth)))}
    assert all(10 <= row < 22 and 10 <= col < 22 for row, col in drawn)
    assert len(drawn) > 130


@settings(max_examples=150)
@given(masks, st.integers(0, 1000))
def test_a_box_is_drawn_around_all_of_an_object_or_not_at_all(target, seed):
    told = drawn_box(np.random.default_rng(seed), target)
    border = target.copy()
    border[1:-1, 1:-1] = False
    assert (told is None) == (border.any() or not target.any())
    if told is not None:
        clicks, probability = told
        rows, cols = np.nonzero(probability)
        sides = [rows.min() + 1, cols.min() + 1, rows.max(), cols.max()]  # a pixel around the box is said not to be the object
        held = np.nonzero(target)
        tight = [held[0].min(), held[1].min(), held[0].max() + 1, held[1].max() + 1]
        extent = [tight[2] - tight[0], tight[3] - tight[1]] * 2
        for drawn, true, size in zip(sides, tight, extent, strict=True):
            assert abs(drawn - true) <= 0.1 * size + 1
        assert not any(click.positive for click in clicks)
        assert all(probability[int(click.row), int(click.col)] < 0.5 for click in clicks)


def test_a_drawn_box_is_told_as_one_that_a_user_drew():
    """To the network, as the segmenter tells it."""
    target = square(20, 24, 16)
    clicks, probability = drawn_box(np.random.default_rng(0), target)
    rows, cols = np.nonzero(probability > 0.5)
    box = Box(int(rows.min()), int(cols.min()), int(rows.max()) + 1, int(cols.max()) + 1)
    outline = inscribed(box, target.shape)
    np.testing.assert_allclose(probability[outline.box.slices], 1 / (1 + np.exp(-outline.logits)))
    assert {(c.row, c.col) for c in clicks} == {c.voxel for c in beside(box, target.shape)}
    assert ((probability > 0.5) & target).sum() > 0.6 * target.sum()


def square(row: int, col: int, side: int, shape: tuple[int, int] = (64, 64)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[row : row + side, col : col + side] = True
    return mask


@pytest.mark.parametrize("seed", range(5))
def test_the_larger_error_is_corrected_first(seed):
    rng = np.random.default_rng(seed)
    small, large = square(4, 4, 10), square(30, 30, 20)
    missed = next_click(rng, large, small)
    assert missed.positive
    assert large[int(missed.row), int(missed.col)]
    extra = next_click(rng, small, large)
    assert not extra.positive
    assert large[int(extra.row), int(extra.col)]


def test_larger_means_the_larger_inscribed_circle_not_the_larger_area():
    line = np.zeros((64, 64), bool)
    line[2:4] = True  # 128 pixels, but thin
    blob = square(30, 30, 10)  # 100 pixels
    assert next_click(np.random.default_rng(0), blob, line).positive
    assert not next_click(np.random.default_rng(0), line, blob).positive


def test_corrections_lie_deep_inside_the_error():
    truth = square(10, 10, 40)
    depth = ndimage.distance_transform_edt(truth)
    for seed in range(30):
        click = next_click(np.random.default_rng(seed), truth, np.zeros_like(truth), deep=0.5)
        assert depth[int(click.row), int(click.col)] > 0.4 * depth.max()


@settings(max_examples=150)
@given(masks, st.integers(0, 1000))
def test_first_clicks_tell_the_truth_and_begin_with_the_object(truth, seed):
    clicks = first_clicks(np.random.default_rng(seed), truth)
    assert bool(clicks) or not truth.any()
    if truth.any():
        assert clicks[0].positive
    for click in clicks:
        assert truth[int(click.row), int(click.col)] == click.positive


def test_first_clicks_are_one_most_of_the_time_and_more_of_both_signs_otherwise():
    truth = square(10, 10, 30)
    drawn = [first_clicks(np.random.default_rng(seed), truth) for seed in range(200)]
    assert 0.5 < np.mean([len(clicks) == 1 for clicks in drawn]) < 0.85
    assert any(sum(c.positive for c in clicks) > 2 for clicks in drawn)
    assert any(not c.positive for clicks in drawn for c in clicks)


@settings(max_examples=100)
@given(masks, st.integers(0, 1000))
def test_a_bent_mask_is_about_where_it_was(truth, seed):
    found = bent(np.random.default_rng(seed), truth)
    assert found.shape == truth.shape
    assert found.dtype == bool
    assert (found & truth).sum() > 0.2 * truth.sum() or np.array_equal(found, truth)
    assert np.array_equal(found, bent(np.random.default_rng(seed), truth))


def test_most_bent_masks_need_a_correction():
    truth = np.zeros((64, 64), bool)
    truth[16:44, 20:52] = True
    masks = [bent(np.random.default_rng(seed), truth) for seed in range(40)]
    ious = [(m & truth).sum() / (m | truth).sum() for m in masks]
    assert 0.6 < np.median(ious) < 0.95
    clicks = [clicks_on(np.random.default_rng(seed), truth, mask) for seed, mask in enumerate(masks)]
    assert all(clicks)
    assert {c.positive for of_mask in clicks for c in of_mask} == {True, False}
    for mask, of_mask in zip(masks, clicks, strict=True):
        for c in of_mask[1:]:
            assert c.positive == truth[round(c.row), round(c.col)]
            assert truth[round(c.row), round(c.col)] != mask[round(c.row), round(c.col)]
