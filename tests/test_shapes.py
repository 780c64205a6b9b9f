from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_apprentice.motion import Motion
from napari_apprentice.shapes import between, bounding_box, deepest, large_pieces, overlap, signed_distance

ROWS, COLS = np.mgrid[:40, :48]
MASKS = hnp.arrays(bool, (7, 9)).filter(lambda mask: mask.any() and not mask.all())


def disk(row, col, radius):
    return (ROWS - row) ** 2 + (COLS - col) ** 2 <= radius**2


@given(MASKS)
def test_the_sign_of_the_distance_is_the_mask(mask):
    for spacing in ((1.0, 1.0), (0.5, 3.0)):
        np.testing.assert_array_equal(signed_distance(mask, spacing) > 0, mask)


@pytest.mark.parametrize("spacing", [(5.0, 1.0), (1.0, 5.0), (2.0, 0.5), (1.0, 1.0)])
def test_the_contour_lies_half_a_pixel_away_along_either_axis(spacing):
    steps = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    for axis, half in enumerate(np.indices((6, 6)) > 2):
        whole = np.pad(half, 20, mode="edge")  # the border of the array is far
        found = np.moveaxis(signed_distance(whole, spacing)[20:26, 20:26], axis, 0)
        np.testing.assert_allclose(found, np.broadcast_to(steps[:, None] * spacing[axis], (6, 6)), rtol=1e-6)


@given(MASKS)
def test_pixels_that_are_nearly_square_have_nearly_the_distances_of_square_ones(mask):
    square = signed_distance(mask, (2.0, 2.0))
    np.testing.assert_allclose(square, 2 * signed_distance(mask))
    np.testing.assert_allclose(signed_distance(mask, (2.0, 2.000001)), square, atol=1e-4)


@given(MASKS, st.floats(0, 1))
def test_between_equal_masks_lies_that_mask(mask, share):
    np.testing.assert_array_equal(between(mask, mask, share) > 0, mask)


@given(MASKS, MASKS)
def test_between_begins_and_ends_with_its_masks(first, last):
    np.testing.assert_array_equal(between(first, last, 0.0) > 0, first)
    np.testing.assert_array_equal(between(first, last, 1.0) > 0, last)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_between_two_disks_lies_a_disk_of_the_mean_radius(share):
    found = between(disk(20, 24, 6), disk(20, 24, 14), share) > 0
    radius = 6 + 8 * share
    assert not (found & ~disk(20, 24, radius + 1)).any()
    assert not (~found & disk(20, 24, radius - 1)).any()


@given(MASKS)
def test_box_pieces_and_depth(mask):
    box = bounding_box(mask)
    assert mask[box.slices].sum() == mask.sum()
    assert mask[deepest(mask)]
    everything, count = large_pieces(mask, 0.0)
    np.testing.assert_array_equal(everything, mask)
    largest, one = large_pieces(mask, 1.0)
    assert one <= count
    assert not (largest & ~mask).any()


def test_pixels_that_touch_at_a_corner_hang_together():
    line = np.eye(9, dtype=bool)
    assert large_pieces(line, 0.5)[1] == large_pieces(line[::-1], 0.5)[1] == 1
    np.testing.assert_array_equal(large_pieces(line, 0.5)[0], line)


@given(MASKS, MASKS)
def test_overlap_is_the_iou(first, second):
    assert overlap(first, second) == overlap(second, first) == (first & second).sum() / (first | second).sum()
    assert overlap(first, first) == overlap(first & False, first & False) == 1


@pytest.mark.parametrize("side", [192, 24])
def test_motion_brings_a_shift_back(side):
    texture = np.random.default_rng(0).normal(size=(60, 70))
    texture = sum(np.roll(texture, (i, j), (0, 1)) for i in range(-2, 3) for j in range(-2, 3))
    before, after = texture[None, 10:50, 10:58], texture[None, 9:49, 8:56]
    motion = Motion(before, after, side_px=side)
    there = motion.moved(signed_distance(disk(20, 22, 8))) > 0
    assert overlap(there, disk(21, 24, 8)) > 0.85
    back = motion.moved_back(signed_distance(there)) > 0
    assert overlap(back, disk(20, 22, 8)) > 0.85


def test_motion_of_equal_or_flat_pictures_is_none():
    picture = np.random.default_rng(0).normal(size=(3, 30, 30))
    values = signed_distance(disk(15, 15, 6)[:30, :30])
    np.testing.assert_allclose(Motion(picture, picture).moved(values), values, atol=1e-3)
    np.testing.assert_allclose(Motion(picture * 0, picture * 0).moved(values), values, atol=1e-3)


def test_motion_in_a_picture_that_is_made_smaller_counts_along_each_axis_as_that_was_rounded(monkeypatch):
    monkeypatch.setattr("skimage.registration.optical_flow_ilk", lambda first, second, **_: np.ones((2, *first.shape)))
    flow = Motion(np.zeros((1, 1000, 12)), np.zeros((1, 1000, 12)), side_px=128)._there
    np.testing.assert_allclose(flow[0], 1000 / 128)
    np.testing.assert_allclose(flow[1], 12 / 2)
