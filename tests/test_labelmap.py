"""Patches are exact and smallest, and a label map changes only by them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_apprentice.labelmap import LabelMap, Patch, as_region
from napari_apprentice.types import LabelsError, Plane

shapes = hnp.array_shapes(min_dims=2, max_dims=3, max_side=6)
ids = st.sampled_from([0, 0, 1, 2, 255, 256, 70000])


@given(st.data())
def test_a_patch_leads_there_and_back_and_is_smallest(data):
    shape = data.draw(shapes)
    old, new = (data.draw(hnp.arrays(np.uint32, shape, elements=ids)) for _ in range(2))
    patch = Patch.between(old, new, (0,) * len(shape))
    if patch is None:
        assert (old == new).all()
        return
    there = old.copy()
    there[patch.region] = patch.after
    assert (there == new).all()
    there[patch.region] = patch.before
    assert (there == old).all()
    assert patch.changed == (old != new).sum()
    differs = (old != new)[patch.region]
    assert all(np.take(differs, side, axis).any() for axis in range(differs.ndim) for side in (0, -1))
    assert patch.after.dtype == np.min_scalar_type(max(old[patch.region].max(), new[patch.region].max()))


@given(st.data())
def test_planes_are_patched_where_they_lie(data):
    shape = data.draw(hnp.array_shapes(min_dims=3, max_dims=3, max_side=5))
    labels = data.draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 3)))
    axis = data.draw(st.integers(0, 2))
    index = data.draw(st.integers(0, shape[axis] - 1))
    labelmap = LabelMap(shape, labels)
    wanted = data.draw(hnp.arrays(np.uint16, shape[:axis] + shape[axis + 1 :], elements=st.integers(0, 300)))
    assert (labelmap.plane(Plane(axis, index)) == np.take(labels, index, axis)).all()
    patch = labelmap.plane_patch(Plane(axis, index), wanted)
    assert (labelmap.array == labels).all()
    if patch is not None:
        labelmap.widen(patch.dtype)
        labelmap.write(patch.region, patch.after)
    assert (labelmap.plane(Plane(axis, index)) == wanted).all()
    assert (np.delete(labelmap.array, index, axis) == np.delete(labels, index, axis)).all()


def test_patches_are_compressed():
    old, new = np.zeros((2, 512, 512), np.uint8)
    rows, cols = np.ogrid[:512, :512]
    new[(rows - 200) ** 2 + (cols - 300) ** 2 < 150**2] = 1
    assert Patch.between(old, new, (0, 0)).nbytes < 299 * 299 / 20


def test_ids_and_the_layers_that_hold_them():
    labels = np.zeros((6, 4, 4), np.int64)
    labels[1, 0, 0] = labels[4, 3, 3] = 9
    labels[2] = 300
    labelmap = LabelMap(labels.shape, labels)
    assert labelmap.array.dtype == np.uint16
    assert labelmap.ids() == (9, 300)
    assert labelmap.layers_with(9) == slice(1, 5)
    assert labelmap.layers_with(300) == slice(2, 3)
    assert labelmap.layers_with(7) is None


def test_the_map_is_a_copy_and_read_only():
    labels = np.zeros((4, 4), np.uint8)
    labelmap = LabelMap(labels.shape, labels)
    labels[0, 0] = 1
    assert not labelmap.array.any()
    with pytest.raises(ValueError, match="read-only"):
        labelmap.array[0, 0] = 1


def test_a_wider_value_does_not_fit_until_there_is_room():
    labelmap = LabelMap((2, 2))
    with pytest.raises(TypeError, match="safe"):
        labelmap.write((slice(0, 1), slice(0, 1)), np.full((1, 1), 300, np.uint16))
    labelmap.widen(np.uint16)
    labelmap.write((slice(0, 1), slice(0, 1)), np.full((1, 1), 300, np.uint16))
    assert labelmap.array[0, 0] == 300
    labelmap.widen(np.uint8)
    assert labelmap.array.dtype == np.uint16


@pytest.mark.parametrize("side", [slice(0, 2.5), slice("0", 2), slice(0, 2, 0), slice(0, 2, 1.5)])
def test_a_region_of_anything_but_whole_numbers_is_refused(side):
    with pytest.raises(LabelsError, match=r"the region .* arrived; expected"):
        as_region((side,), (4, 5))
