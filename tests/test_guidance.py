"""Click maps against a slow plain oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from napari_apprentice.guidance import (
    GUIDANCE,
    WindowClick,
    click_maps,
    disk,
    distance,
    gaussian,
    gaussian_sum,
    squared_distance,
    windowed_gaussians,
)

many = settings(max_examples=60)
sizes = st.tuples(st.integers(1, 14), st.integers(1, 14))
# Quarters are exact in float32, so that d² = r² is decided alike by the oracle and by the map.
places = st.tuples(st.integers(-12, 64).map(lambda v: v / 4), st.integers(-12, 64).map(lambda v: v / 4))
radii = st.integers(0, 24).map(lambda v: v / 4)


def plain_disk(points: list[tuple[float, float]], size: tuple[int, int], radius: float) -> list[list[float]]:
    """The definition, pixel by pixel."""
    return [
        [float(any((row - r) ** 2 + (col - c) ** 2 <= radius**2 for r, c in points)) for col in range(size[1])] for row in range(size[0])
    ]


@many
@given(st.lists(places, max_size=4), sizes, radii)
def test_disk_is_the_plain_definition(points, size, radius):
    assert disk(points, size, radius).tolist() == plain_disk(points, size, radius)


@many
@given(st.lists(places, min_size=1, max_size=4), sizes)
def test_squared_distance_is_pythagoras(points, size):
    found = squared_distance(points, size)
    assert found.shape == (len(points), *size)
    for (r, c), of_point in zip(points, found.tolist(), strict=True):
        assert of_point == [[(row - r) ** 2 + (col - c) ** 2 for col in range(size[1])] for row in range(size[0])]


def test_the_border_of_the_disk_belongs_to_it():
    found = disk([(5, 5)], (11, 11), 3.0)
    assert found[5, 8] == 1
    assert found[5, 9] == 0
    assert found[7, 7] == 1  # d² = 8
    assert found[8, 8] == 0  # d² = 18


@pytest.mark.parametrize("signs", [(), (True,), (False, False)])
def test_a_sign_without_clicks_is_all_zero(signs):
    maps = click_maps([WindowClick(4.0, 4.0 + i, sign) for i, sign in enumerate(signs)], (9, 12))
    assert maps.shape == (2, 9, 12)
    assert maps.dtype == torch.float32
    assert bool(maps[0].any()) == (True in signs)
    assert bool(maps[1].any()) == (False in signs)


def test_positive_clicks_come_first_and_do_not_mix_with_negative_ones():
    maps = click_maps([WindowClick(2, 3, True), WindowClick(7, 8, False)], (10, 12), radius_px=0)
    assert maps[0].nonzero().tolist() == [[2, 3]]
    assert maps[1].nonzero().tolist() == [[7, 8]]


@many
@given(st.lists(st.tuples(places, st.booleans()), min_size=1, max_size=4), st.integers(0, 5), st.integers(0, 5))
def test_shifted_clicks_give_shifted_maps(clicks, down, right):
    size = (20, 22)
    maps = click_maps([WindowClick(*at, sign) for at, sign in clicks], size)
    shifted = click_maps([WindowClick(at[0] + down, at[1] + right, sign) for at, sign in clicks], size)
    assert torch.equal(shifted[:, down:, right:], maps[:, : size[0] - down, : size[1] - right])


def test_the_order_of_clicks_does_not_matter():
    clicks = [WindowClick(1, 2, True), WindowClick(6, 3.5, False), WindowClick(4, 4, True)]
    assert torch.equal(click_maps(clicks, (9, 9)), click_maps(clicks[::-1], (9, 9)))


# --- every encoding ---------------------------------------------------------------------------------------------------------------------


def plain_distance(points: list[tuple[float, float]], size: tuple[int, int], truncation: float) -> list[list[float]]:
    return [
        [min([truncation, *(math.dist((row, col), at) for at in points)]) / truncation for col in range(size[1])] for row in range(size[0])
    ]


def plain_gaussian(points: list[tuple[float, float]], size: tuple[int, int], sigma: float) -> list[list[float]]:
    return [
        [max([0.0, *(math.exp(-(math.dist((row, col), at) ** 2) / (2 * sigma**2)) for at in points)]) for col in range(size[1])]
        for row in range(size[0])
    ]


def plain_gaussian_sum(points: list[tuple[float, float]], size: tuple[int, int], sigma: float) -> np.ndarray:
    total = np.zeros(size)
    for row, col in np.ndindex(*size):
        for r, c in points:
            if abs(row - r) <= 3 * sigma and abs(col - c) <= 3 * sigma:
                total[row, col] += math.exp(-((row - r) ** 2 + (col - c) ** 2) / (2 * sigma**2))
    return (total - total.min()) / (total.max() - total.min()) if total.max() > total.min() else np.zeros(size)


PLAIN = {"disk": plain_disk, "distance": plain_distance, "gaussian": plain_gaussian, "gaussian_sum": plain_gaussian_sum}


def test_every_encoding_has_its_oracle():
    assert set(PLAIN) == set(GUIDANCE)


@pytest.mark.parametrize("kind", sorted(GUIDANCE))
@settings(max_examples=40)
@given(points=st.lists(places, max_size=4), size=sizes, length=st.sampled_from([1.0, 2.5, 10.0]))
def test_every_encoding_is_the_plain_definition(kind, points, size, length):
    found = GUIDANCE[kind](points, size, length)
    assert found.shape == size
    assert found.dtype == torch.float32
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    # A sum of far tails is stretched like any other: float32 knows it to some 1e-7 of a value that may itself be as small.
    exact = kind != "gaussian_sum" or float(windowed_gaussians(points, size, length, 3 * length).sum(0).max()) > 1e-3
    if exact:
        np.testing.assert_allclose(found.numpy(), PLAIN[kind](points, size, length), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", sorted(GUIDANCE))
def test_every_encoding_keeps_signs_apart_and_forgets_the_order(kind):
    clicks = [WindowClick(1, 2, True), WindowClick(6, 3.5, False), WindowClick(4, 4, True)]
    maps = click_maps(clicks, (9, 9), kind)
    torch.testing.assert_close(click_maps(clicks[::-1], (9, 9), kind), maps)
    torch.testing.assert_close(click_maps([c for c in clicks if c.positive], (9, 9), kind)[0], maps[0])
    torch.testing.assert_close(click_maps([c._replace(positive=not c.positive) for c in clicks], (9, 9), kind), maps.flip(0))


@pytest.mark.parametrize(("kind", "empty"), [("disk", 0.0), ("distance", 1.0), ("gaussian", 0.0), ("gaussian_sum", 0.0)])
def test_what_a_sign_without_clicks_looks_like(kind, empty):
    assert bool((click_maps([], (5, 7), kind) == empty).all())


def test_distance_by_hand():
    found = distance([(0, 0), (0, 10)], (4, 300))
    assert float(found[3, 4]) == pytest.approx(5 / 255)
    assert float(found[0, 8]) == pytest.approx(2 / 255)
    assert float(found[0, 264]) == pytest.approx(254 / 255)
    assert float(found[0, 265]) == float(found[0, 299]) == 1.0  # truncated at 255


@many
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 13)), min_size=1, max_size=4))
def test_distance_is_the_distance_transform_of_the_clicked_pixels(points):
    clicked = np.zeros((12, 14), bool)
    clicked[tuple(zip(*points, strict=True))] = True
    np.testing.assert_allclose(255 * distance(points, (12, 14)).numpy(), ndimage.distance_transform_edt(~clicked), atol=1e-4)


def test_gaussian_by_hand():
    found = gaussian([(0, 0), (0, 40)], (11, 41), 10.0)
    assert float(found[0, 0]) == float(found[0, 40]) == 1.0
    assert float(found[10, 0]) == pytest.approx(math.exp(-0.5))
    assert float(found[0, 20]) == pytest.approx(math.exp(-2))  # the largest of two, not their sum


def test_gaussian_sum_is_a_convolution_of_31_by_31_pixels_stretched_to_one():
    """As the paper makes it, by another library."""
    impulses = np.zeros((64, 64))
    impulses[[20, 22, 50], [20, 25, 48]] = 1
    axis = np.exp(-(np.arange(-15, 16) ** 2) / (2 * 5.0**2))
    expected = ndimage.convolve(impulses, np.outer(axis, axis), mode="constant")
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    found = gaussian_sum([(20, 20), (22, 25), (50, 48)], (64, 64))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert float(found.max()) == 1.0
    assert float(found[50, 48]) < 0.7  # the two near each other dim the lonely one


def test_clicks_out_of_reach_leave_a_stretched_map_empty():
    assert not bool(gaussian_sum([(-40.0, 3.0)], (8, 8)).any())
