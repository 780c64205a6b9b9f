"""Patches are exact and smallest, and a label map changes only by them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_apprentice import labelmap as labelmap_module
from napari_apprentice.labelmap import LabelMap, Patch, as_region, slabs, spanned
from napari_apprentice.types import LabelsError, Plane

shapes = hnp.array_shapes(min_dims=2, max_dims=3, max_side=6)
ids = st.sampled_from([0, 0, 1, 2, 255, 256, 70000])


def put(array: np.ndarray, pieces) -> np.ndarray:
    changed = array.copy()
    for region, values in pieces:
        changed[region] = values
    return changed


@given(st.data(), st.sampled_from([1, 7, 20, 2**24]))
def test_a_patch_leads_there_and_back_and_is_smallest(data, most):
    shape = data.draw(shapes)
    old, new = (data.draw(hnp.arrays(np.uint32, shape, elements=ids)) for _ in range(2))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(labelmap_module, "_TILE_VOXELS", most)
        patch = Patch.between(old, new, (0,) * len(shape))
    if patch is None:
        assert (old == new).all()
        return
    assert (put(old, patch.after) == new).all()
    assert (put(new, patch.before) == old).all()
    assert patch.changed == (old != new).sum()
    assert patch.region == spanned([tile.region for tile in patch.tiles])
    assert patch.ids == {i for _, values in patch.after for i in values.ravel().tolist()}
    assert patch.dtype == np.min_scalar_type(max(max(old[region].max(), new[region].max()) for region, _ in patch.after))
    times = np.zeros(shape, int)
    for tile in patch.tiles:
        differs = (old != new)[tile.region]
        assert all(np.take(differs, side, axis).any() for axis in range(differs.ndim) for side in (0, -1))
        assert tile.changed == differs.sum()
        assert differs.size <= max(most, np.prod(shape[1:]))
        times[tile.region] += 1
    assert times.max() == 1, "tiles overlap"
    assert len(patch.tiles) == 1 or most < np.prod(shape)


@given(st.data(), st.sampled_from([1, 9, 2**24]))
def test_slabs_are_a_region_cut_across_an_axis(data, most):
    shape = data.draw(shapes)
    region = tuple(slice(low, data.draw(st.integers(low + 1, size))) for size in shape for low in [data.draw(st.integers(0, size - 1))])
    axis = data.draw(st.integers(0, len(shape) - 1))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(labelmap_module, "_TILE_VOXELS", most)
        parts = list(slabs(region, axis))
    times = np.zeros(shape, int)
    for part in parts:
        times[part] += 1
    expected = np.zeros(shape, int)
    expected[region] = 1
    assert (times == expected).all()
    assert all(part[axis].stop - part[axis].start == 1 or np.prod([s.stop - s.start for s in part]) <= most for part in parts)


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
        labelmap.write(patch.after)
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
        labelmap.write([((slice(0, 1), slice(0, 1)), np.full((1, 1), 300, np.uint16))])
    labelmap.widen(np.uint16)
    labelmap.write([((slice(0, 1), slice(0, 1)), np.full((1, 1), 300, np.uint16))])
    assert labelmap.array[0, 0] == 300
    labelmap.widen(np.uint8)
    assert labelmap.array.dtype == np.uint16


@pytest.mark.parametrize("side", [slice(0, 2.5), slice("0", 2), slice(0, 2, 0), slice(0, 2, 1.5)])
def test_a_region_of_anything_but_whole_numbers_is_refused(side):
    with pytest.raises(LabelsError, match=r"the region .* arrived; expected"):
        as_region((side,), (4, 5))
