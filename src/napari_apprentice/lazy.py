"""Arrays that stay where they are: only what is asked for is read."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["LARGE_BYTES", "ArrayLike", "LazyArray", "basic_index"]

LARGE_BYTES = 2**30
"""What takes more than this is not read into memory as a whole, where its file allows that."""

_CACHE_BYTES = 2**27


class ArrayLike:
    """What follows from the shape and the type of an array that is not in memory."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """What all of it would take in memory."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self[...], dtype=dtype)

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        raise NotImplementedError


class LazyArray(ArrayLike):
    """An array that reads: indexing with integers and slices gives a read-only numpy array in native byte order.

    What was read last is kept, so that asking again for a slice costs nothing. Safe to read from several threads.

    Parameters
    ----------
    source : anything with a shape and a dtype that gives an array-like for integers and slices: a zarr array, a memory map
    convert : what becomes of the values that were read, for example a scaling
    dtype : of the values that ``convert`` gives

    Examples
    --------
    >>> stored = np.arange(24).reshape(4, 3, 2)                     # (x, y, z)
    >>> volume = LazyArray(stored).transposed((2, 1, 0)).with_axis()
    >>> volume.shape, volume[0, 1, :, 3].tolist() == stored[3, :, 1].tolist()
    ((1, 2, 3, 4), True)
    """

    def __init__(
        self, source: Any, *, convert: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None, dtype: npt.DTypeLike | None = None
    ) -> None:
        self._source = source
        self._convert = convert
        self._axes: tuple[int | None, ...] = tuple(range(len(source.shape)))  # of the source, None for one that it does not have
        self._fixed: dict[int, int] = {}
        self.shape = tuple(int(side) for side in source.shape)
        self.dtype = np.dtype(source.dtype if dtype is None else dtype).newbyteorder("=")
        self._kept: OrderedDict[Any, npt.NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        key = tuple((i.start, i.stop, i.step) if isinstance(i, slice) else i for i in basic_index(index, self.shape))
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        values = self._read([slice(*i) if isinstance(i, tuple) else i for i in key])
        values.flags.writeable = False
        if values.nbytes <= _CACHE_BYTES:
            with self._lock:
                self._kept[key] = values
                while sum(kept.nbytes for kept in self._kept.values()) > _CACHE_BYTES:
                    self._kept.popitem(last=False)
        return values

    def transposed(self, order: Sequence[int]) -> LazyArray:
        """The same with axis ``order[i]`` of this array as axis i."""
        return self._view([self._axes[axis] for axis in order], [self.shape[axis] for axis in order], self._fixed)

    def at(self, axis: int, index: int) -> LazyArray:
        """The same at an index along an axis, without that axis."""
        fixed, rest = self._axes[axis], [other for other in range(self.ndim) if other != axis]
        chosen = {} if fixed is None else {fixed: int(index)}
        return self._view([self._axes[other] for other in rest], [self.shape[other] for other in rest], self._fixed | chosen)

    def head(self, count: int) -> LazyArray:
        """The first ``count`` along the first axis."""
        return self._view(self._axes, [min(count, self.shape[0]), *self.shape[1:]], self._fixed)

    def with_axis(self) -> LazyArray:
        """The same behind a new first axis of length one."""
        return self._view([None, *self._axes], [1, *self.shape], self._fixed)

    def _view(self, axes: Iterable[int | None], shape: Iterable[int], fixed: dict[int, int]) -> LazyArray:
        view = LazyArray(self._source, convert=self._convert, dtype=self.dtype)
        view._axes, view.shape, view._fixed = tuple(axes), tuple(shape), fixed
        return view

    def _read(self, index: Sequence[slice | int]) -> npt.NDArray[Any]:
        where: list[Any] = [self._fixed.get(axis) for axis in range(len(self._source.shape))]
        for axis, along in zip(self._axes, index, strict=True):
            if axis is not None:
                where[axis] = along
        values = np.asarray(self._source[tuple(where)])
        left = [axis for axis, along in enumerate(where) if isinstance(along, slice)]
        kept = [axis for axis, along in zip(self._axes, index, strict=True) if axis is not None and isinstance(along, slice)]
        values = values.transpose([left.index(axis) for axis in kept])
        shown = [(axis, along) for axis, along in zip(self._axes, index, strict=True) if isinstance(along, slice)]
        values = values[tuple(np.newaxis if axis is None else slice(None) for axis, _ in shown)]
        values = values[tuple(along if axis is None else slice(None) for axis, along in shown)]
        if self._convert is not None:
            values = self._convert(values)
        return np.array(values, dtype=self.dtype, order="C")


def basic_index(index: Any, shape: Sequence[int]) -> tuple[slice | int, ...]:
    """One integer or slice with start, stop and step, all from 0 up, for every axis of an array.

    Raises
    ------
    IndexError : too many axes, outside of the array, steps backwards, or anything but integers, slices and one ellipsis

    Examples
    --------
    >>> basic_index((-1, ..., slice(2, 99)), (4, 5, 6))
    (3, slice(0, 5, 1), slice(2, 6, 1))
    """
    given = list(index) if isinstance(index, tuple) else [index]
    if any(i is Ellipsis for i in given):
        at = next(position for position, i in enumerate(given) if i is Ellipsis)
        given[at : at + 1] = [slice(None)] * (len(shape) - len(given) + 1)
    given += [slice(None)] * (len(shape) - len(given))
    if len(given) != len(shape):
        raise IndexError(f"the index {index} arrived for an array of shape {tuple(shape)}; expected at most {len(shape)} axes")
    return tuple(_along(i, size) for i, size in zip(given, shape, strict=True))


def _along(index: Any, size: int) -> slice | int:
    if isinstance(index, slice):
        start, stop, step = index.indices(size)
        if step < 1:
            raise IndexError(f"a step of {step} arrived; expected a positive one")
        return slice(start, max(start, stop), step)
    if not isinstance(index, int | np.integer) or not -size <= index < size:
        raise IndexError(f"the index {index} arrived for an axis of {size}; expected integers and slices inside of it")
    return int(index) % size
