"""Click maps against a slow plain oracle."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_apprentice.guidance import GUIDANCE, WindowClick, click_maps, disk, squared_distance

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


def test_every_registered_encoding_stays_within_zero_and_one():
    for kind in GUIDANCE:
        maps = click_maps([WindowClick(3, 3, True), WindowClick(3.5, 4, True)], (8, 8), kind)
        assert 0 <= float(maps.min()) <= float(maps.max()) <= 1
