"""Laws of affines and boxes."""

from __future__ import annotations

import doctest

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_apprentice import geometry
from napari_apprentice.geometry import (
    affine_from_spacing,
    clip,
    grow,
    reverse_axes,
    spacing_of,
    swap_lps_ras,
    union,
    voxel_to_world,
    world_to_voxel,
)
from napari_apprentice.types import Box

numbers = st.floats(-100, 100, allow_nan=False).map(lambda number: round(number, 3))
lengths = st.floats(0.01, 50)


@st.composite
def affines(draw, dimensions=(2, 3)) -> np.ndarray:
    """Invertible affines: a rotation times a spacing, and an origin."""
    n = draw(st.sampled_from(dimensions))
    turn = np.linalg.qr(np.array(draw(hnp.arrays(float, (n, n), elements=numbers))) + 300 * np.eye(n))[0]
    affine = np.eye(n + 1)
    affine[:n, :n] = turn * [draw(lengths) for _ in range(n)]
    affine[:n, n] = [draw(numbers) for _ in range(n)]
    return affine


@st.composite
def boxes(draw) -> Box:
    top, left = draw(st.integers(-20, 20)), draw(st.integers(-20, 20))
    return Box(top, left, top + draw(st.integers(0, 20)), left + draw(st.integers(0, 20)))


def pixels(box: Box) -> set[tuple[int, int]]:
    return {(row, col) for row in range(box.top, box.bottom) for col in range(box.left, box.right)}


def test_doctests():
    result = doctest.testmod(geometry)
    assert result.attempted >= 12
    assert result.failed == 0


def test_all_is_exact():
    public = {name for name, thing in vars(geometry).items() if getattr(thing, "__module__", None) == geometry.__name__}
    assert {name for name in public if not name.startswith("_")} == {name for name in geometry.__all__ if not name.isupper()}


@given(affine=affines(), data=st.data())
def test_there_and_back_again(affine, data):
    n = len(affine) - 1
    points = data.draw(hnp.arrays(float, hnp.array_shapes(min_dims=0, max_dims=2, max_side=4).map(lambda s: (*s, n)), elements=numbers))
    world = voxel_to_world(points, affine)
    assert world.shape == points.shape
    np.testing.assert_allclose(world_to_voxel(world, affine), points, atol=1e-6)


@given(affine=affines((3,)), point=hnp.arrays(float, 3, elements=numbers))
def test_nibabel_agrees_in_the_other_order(affine, point):
    expected = nibabel.affines.apply_affine(reverse_axes(affine), point[::-1])[::-1]
    np.testing.assert_allclose(voxel_to_world(point, affine), expected, atol=1e-9)
    np.testing.assert_allclose(spacing_of(affine), nibabel.affines.voxel_sizes(reverse_axes(affine))[::-1])


@given(affine=affines())
def test_moving_by_one_voxel_moves_by_the_spacing(affine):
    n = len(affine) - 1
    steps = voxel_to_world(np.eye(n), affine) - voxel_to_world(np.zeros(n), affine)
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), spacing_of(affine))


@given(affine=affines())
def test_reversing_twice_is_nothing(affine):
    np.testing.assert_array_equal(reverse_axes(reverse_axes(affine)), affine)


@given(affine=affines((3,)), point=hnp.arrays(float, 3, elements=numbers))
def test_lps_and_ras_differ_in_the_signs_of_two_world_axes(affine, point):
    np.testing.assert_array_equal(swap_lps_ras(swap_lps_ras(affine)), affine)
    np.testing.assert_allclose(voxel_to_world(point, swap_lps_ras(affine)), voxel_to_world(point, affine) * [1, -1, -1], atol=1e-9)


@given(spacing=st.lists(lengths, min_size=2, max_size=3), data=st.data())
def test_an_affine_from_a_spacing_has_it(spacing, data):
    origin = data.draw(st.none() | st.lists(numbers, min_size=len(spacing), max_size=len(spacing)))
    affine = affine_from_spacing(spacing, origin)
    assert spacing_of(affine) == pytest.approx(spacing)
    np.testing.assert_array_equal(voxel_to_world([0] * len(spacing), affine), origin or [0] * len(spacing))


@pytest.mark.parametrize("points", [[1, 2], [[1, 2, 3, 4]], 5.0])
def test_points_of_another_dimension_are_refused(points):
    with pytest.raises(ValueError, match=r"expected \(\.\.\., 3\)"):
        voxel_to_world(points, np.eye(4))


@given(first=boxes(), second=boxes())
def test_the_union_is_the_smallest_box_that_holds_both(first, second):
    both = union(first, second)
    assert pixels(first) | pixels(second) <= pixels(both)
    assert both == union(second, first)
    assert union(both, first) == both
    assert both.top in (first.top, second.top)
    assert both.right in (first.right, second.right)


@given(box=boxes(), height=st.integers(1, 15), width=st.integers(1, 15))
def test_clipping_leaves_the_pixels_inside(box, height, width):
    inside = clip(box, (height, width))
    assert pixels(inside) == pixels(box) & pixels(Box(0, 0, height, width))
    assert min(inside.shape) >= 0
    assert np.zeros((height, width))[inside.slices].shape == inside.shape


@given(box=boxes(), rows=st.integers(0, 9), cols=st.integers(0, 9))
def test_growing_and_shrinking_back_is_nothing(box, rows, cols):
    grown = grow(box, (rows, cols))
    assert grown.shape == (box.shape[0] + 2 * rows, box.shape[1] + 2 * cols)
    assert grow(grown, (-rows, -cols)) == box
    assert grow(box, rows) == grow(box, (rows, rows))


def test_a_margin_is_of_any_whole_type():
    assert grow(Box(2, 2, 4, 5), np.int64(2)) == grow(Box(2, 2, 4, 5), 2)
    with pytest.raises(TypeError):
        grow(Box(2, 2, 4, 5), 2.5)
