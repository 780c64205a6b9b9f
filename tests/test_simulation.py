"""The robots against slow plain oracles of the published rules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from napari_apprentice.simulation import ROBOTS, CentreRobot, RandomRobot, make_robot
from napari_apprentice.types import Click, InputError, User

masks = hnp.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@st.composite
def corrections(draw):
    """A truth, a mask of the same shape, and some clicks inside them."""
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    voxel = st.tuples(st.integers(0, shape[0] - 1), st.integers(0, shape[1] - 1))
    clicks = draw(st.lists(st.builds(Click, voxel, st.booleans()), max_size=5))
    return draw(hnp.arrays(bool, shape)), draw(hnp.arrays(bool, shape)), tuple(clicks)


def plain_squared_distance(error: np.ndarray, row: int, col: int) -> int:
    """Squared distance of a pixel to the nearest pixel outside ``error``, the frame around the slice included, by looking at all."""
    height, width = error.shape
    return min(
        (row - r) ** 2 + (col - c) ** 2
        for r in range(-1, height + 1)
        for c in range(-1, width + 1)
        if not (0 <= r < height and 0 <= c < width) or not error[r, c]
    )


def plain_centre_click(truth: np.ndarray, mask: np.ndarray, clicks: tuple[Click, ...]) -> Click | None:
    """The rule in words, pixel by pixel."""
    used = {click.voxel for click in clicks}
    best = {}
    for positive, error in ((True, truth & ~mask), (False, mask & ~truth)):
        best[positive] = (0, None)
        for row, col in np.argwhere(error).tolist():
            if (row, col) not in used and (distance := plain_squared_distance(error, row, col)) > best[positive][0]:
                best[positive] = (distance, (row, col))
    positive = best[True][0] > best[False][0]
    voxel = best[positive][1]
    if voxel is None:
        return plain_centre_click(truth, mask, ()) if used and (truth != mask).any() else None
    return Click(voxel, positive)


@given(corrections())
@settings(max_examples=150, deadline=None)
def test_centre_robot_follows_the_plain_rule(correction):
    assert CentreRobot().click(*correction) == plain_centre_click(*correction)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_transform_of_the_bounding_box_equals_that_of_the_padded_slice(seed):
    draw = np.random.default_rng(seed)
    blobs = ndimage.gaussian_filter(draw.standard_normal((2, 90, 70)), (0, 4, 4)) > 0.04
    truth, mask = blobs
    missing, superfluous = (ndimage.distance_transform_edt(np.pad(error, 1))[1:-1, 1:-1] for error in (truth & ~mask, mask & ~truth))
    positive = bool(missing.max() > superfluous.max())
    distance = missing if positive else superfluous
    expected = Click(tuple(np.argwhere(distance == distance.max())[0]), positive)
    assert CentreRobot().click(truth, mask, ()) == expected


def test_first_click_lies_in_the_centre_of_a_disk():
    rows, cols = np.ogrid[:50, :60]
    truth = (rows - 20) ** 2 + (cols - 33) ** 2 <= 100
    assert CentreRobot().click(truth, np.zeros_like(truth), ()) == Click((20, 33), positive=True)


def test_border_of_the_slice_counts_as_an_edge():
    truth = np.ones((9, 9), dtype=bool)
    assert CentreRobot().click(truth, ~truth, ()) == Click((4, 4), positive=True)


def test_inscribed_circle_beats_area():
    truth = np.zeros((30, 100), dtype=bool)
    truth[1:4] = True  # 300 pixels, but thin
    truth[10:19, 10:19] = True  # 81 pixels, but thick
    assert CentreRobot().click(truth, np.zeros_like(truth), ()) == Click((14, 14), positive=True)


def test_tie_between_missing_and_superfluous_is_a_negative_click():
    truth, mask = np.zeros((2, 9, 20), dtype=bool)
    truth[2:7, 2:7] = True
    mask[2:7, 12:17] = True
    assert CentreRobot().click(truth, mask, ()) == Click((4, 14), positive=False)


def test_first_pixel_in_raster_order_breaks_ties():
    truth = np.zeros((12, 12), dtype=bool)
    truth[6:9, 1:4] = truth[2:5, 6:9] = True
    assert CentreRobot().click(truth, np.zeros_like(truth), ()) == Click((3, 7), positive=True)


def test_first_pixel_in_raster_order_counts_across_parts_of_the_error():
    truth = np.zeros((40, 40), dtype=bool)
    truth[1:21, 2:7] = truth[20:27, 1:8] = True  # begins higher up, but is as thick as the square only further down
    truth[10:17, 20:27] = True
    assert CentreRobot().click(truth, np.zeros_like(truth), ()) == Click((13, 23), positive=True)


def test_centre_robot_clicks_on_although_every_wrong_pixel_was_clicked():
    truth = np.zeros((5, 5), dtype=bool)
    truth[2, 2] = True
    again = CentreRobot().click(truth, np.zeros_like(truth), (Click((2, 2)),))
    assert again == Click((2, 2), positive=True)


@pytest.mark.parametrize("name", ROBOTS)
@given(masks)
@settings(max_examples=20, deadline=None)
def test_perfect_mask_ends_the_loop(name, mask):
    assert make_robot(name).click(mask, mask, (Click((0, 0)),)) is None


@pytest.mark.parametrize("name", ROBOTS)
@given(corrections())
@settings(max_examples=60, deadline=None)
def test_every_click_corrects_an_error_and_repeats_none_that_it_need_not(name, correction):
    truth, mask, clicks = correction
    click = make_robot(name, 3).click(truth, mask, clicks)
    used = {c.voxel for c in clicks}
    wrong = {tuple(voxel) for voxel in np.argwhere(truth != mask).tolist()}
    if not wrong:
        assert click is None
        return
    if click.box is not None:
        assert (name, clicks) == ("box", ())
        return
    assert click.voxel in wrong
    assert click.positive == truth[click.voxel]
    if wrong - used:
        assert click.voxel not in used


def test_random_robot_draws_uniformly_from_the_largest_8_connected_component():
    truth, mask = np.zeros((2, 20, 20), dtype=bool)
    truth[2:4, 2:4] = truth[4, 4] = True  # 5 pixels, joined over a corner
    truth[10, 10:14] = True  # 4 pixels
    mask[15, 2:6] = True  # 4 pixels too many
    draws = [RandomRobot(seed).click(truth, mask, ()) for seed in range(500)]
    assert all(draw.positive for draw in draws)
    counts = {voxel: sum(draw.voxel == voxel for draw in draws) for voxel in {draw.voxel for draw in draws}}
    assert set(counts) == {(2, 2), (2, 3), (3, 2), (3, 3), (4, 4)}
    assert min(counts.values()) > 60
    assert max(counts.values()) < 140


def test_random_robot_takes_the_largest_of_both_kinds():
    truth, mask = np.zeros((2, 20, 20), dtype=bool)
    truth[2, 2:6] = True
    mask[10, 2:8] = True
    click = RandomRobot(0).click(truth, mask, ())
    assert not click.positive
    assert click.voxel[0] == 10


def test_random_robot_goes_to_the_next_component_when_the_largest_is_used_up():
    truth = np.zeros((9, 9), dtype=bool)
    truth[1, 1:3] = truth[5, 5] = True
    used = (Click((1, 1)), Click((1, 2)))
    assert RandomRobot(1).click(truth, np.zeros_like(truth), used) == Click((5, 5), positive=True)


def test_random_robot_depends_on_its_seed_and_on_nothing_before():
    truth = np.ones((40, 40), dtype=bool)
    robot = RandomRobot(7)
    first = robot.click(truth, ~truth, ())
    assert robot.click(truth, ~truth, ()) == RandomRobot(7).click(truth, ~truth, ()) == first
    assert len({RandomRobot(seed).click(truth, ~truth, ()).voxel for seed in range(20)}) > 15
    assert len({robot.click(truth, ~truth, (Click((0, 0)),) * n).voxel for n in range(20)}) > 15


@pytest.mark.parametrize("name", ROBOTS)
def test_robots_are_users(name):
    assert isinstance(make_robot(name), User)


def test_unknown_robot_is_refused_in_one_sentence():
    with pytest.raises(InputError, match="'geodesic' was asked for; expected one of centre, random"):
        make_robot("geodesic")


@pytest.mark.parametrize("name", ROBOTS)
def test_masks_of_different_shape_are_refused(name):
    with pytest.raises(InputError, match=r"shape \(3, 4\) and a mask of shape \(4, 3\)"):
        make_robot(name).click(np.zeros((3, 4), bool), np.zeros((4, 3), bool), ())
