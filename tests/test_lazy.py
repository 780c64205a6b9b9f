"""Laws of arrays that stay where they are: whatever is asked for is what numpy gives."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_apprentice import lazy
from napari_apprentice.lazy import LazyArray, basic_index

STORED = np.arange(4 * 3 * 5 * 2, dtype=">u2").reshape(4, 3, 5, 2)
VIEWS = {
    "as it is": (LazyArray, lambda a: a),
    "transposed": (lambda s: LazyArray(s).transposed((2, 0, 3, 1)), lambda a: a.transpose(2, 0, 3, 1)),
    "one time point": (lambda s: LazyArray(s).at(1, 2), lambda a: a[:, 2]),
    "behind a new axis": (lambda s: LazyArray(s).at(3, 1).with_axis(), lambda a: a[None, ..., 1]),
    "without alpha": (lambda s: LazyArray(s).transposed((3, 0, 1, 2)).head(1), lambda a: a.transpose(3, 0, 1, 2)[:1]),
    "all at once": (
        lambda s: LazyArray(s).transposed((2, 1, 0, 3)).at(0, 4).head(2).with_axis().transposed((1, 0, 3, 2)),
        lambda a: a.transpose(2, 1, 0, 3)[4, :2][None].transpose(1, 0, 3, 2),
    ),
}


def index_of(shape):
    along = [st.one_of(st.integers(-size, size - 1), st.slices(size).filter(lambda s: (s.step or 1) > 0)) for size in shape]
    return st.tuples(*along)


class Counting:
    """An array that says how many elements were read."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.read = array, array.shape, array.dtype, 0

    def __getitem__(self, index):
        values = self.array[index]
        self.read += values.size
        return values


@pytest.mark.parametrize("view", VIEWS)
@given(data=st.data())
def test_it_is_what_numpy_gives(view, data):
    made, expected = VIEWS[view]
    array, oracle = made(STORED), expected(STORED)
    assert (array.shape, array.ndim, array.size, len(array)) == (oracle.shape, oracle.ndim, oracle.size, len(oracle))
    index = data.draw(index_of(oracle.shape))
    found = array[index]
    np.testing.assert_array_equal(found, oracle[index])
    assert found.dtype == np.dtype("=u2")
    assert not np.asarray(found).flags.writeable
    np.testing.assert_array_equal(np.asarray(array), oracle)


def test_only_what_is_asked_for_is_read_and_only_once():
    source = Counting(STORED)
    array = LazyArray(source).transposed((3, 2, 1, 0))
    first = array[0, 2]
    assert source.read == first.size == 12
    assert array[0, 2] is first
    assert source.read == 12


def test_what_was_read_last_is_kept_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(lazy, "_CACHE_BYTES", 2 * 30 * 2)  # two of the slices below
    source = Counting(STORED)
    array = LazyArray(source)
    for index in (0, 1, 0, 2, 0):
        array[index]
    assert source.read == 3 * 30
    array[1]
    assert source.read == 4 * 30
    assert array[...] is not array[...]  # larger than the limit


def test_values_are_converted():
    array = LazyArray(STORED, convert=lambda values: values * np.float32(0.5), dtype=np.float32)
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array.at(0, 1)[..., 1], STORED[1, ..., 1] * np.float32(0.5))


@pytest.mark.parametrize("index", [4, -5, (0, 0, 0, 0, 0), (slice(None, None, -1),), ([0, 1],), 0.5, None])
def test_other_indices_are_refused(index):
    with pytest.raises(IndexError, match="expected"):
        LazyArray(STORED)[index]


def test_examples():
    assert doctest.testmod(lazy).failed == 0
    assert basic_index(..., (2, 3)) == (slice(0, 2, 1), slice(0, 3, 1))
