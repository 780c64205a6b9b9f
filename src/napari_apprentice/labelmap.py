"""A label map that only changes by patches, each of which can be taken back exactly."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_apprentice.types import LabelsError, Plane

__all__ = ["LARGEST_ID", "LabelMap", "Patch", "as_ids", "as_region"]

LARGEST_ID = int(np.iinfo(np.uint32).max)
"""Ids are whole numbers from 1 to this; 0 is background."""


@dataclass(frozen=True, eq=False)
class Patch:
    """An exact change of a label map: what stood in a box and what stands there now, compressed.

    Attributes
    ----------
    region : where, one slice with start and stop for every axis
    dtype : numpy name of the type that both sides are kept in
    old, new : zlib streams of the values in C order; ``old`` is empty where it is not known (as read from a journal)
    changed : number of voxels that differ
    """

    region: tuple[slice, ...]
    dtype: str
    old: bytes
    new: bytes
    changed: int

    @classmethod
    def between(cls, old: npt.NDArray[Any], new: npt.NDArray[Any], origin: tuple[int, ...]) -> Patch | None:
        """The smallest patch that turns ``old`` into ``new``, both of one shape with their first voxel at ``origin``; None if equal."""
        differs = old != new
        if not differs.any():
            return None
        axes = range(old.ndim)
        extents = [np.flatnonzero(differs.any(axis=tuple(a for a in axes if a != axis))) for axis in axes]
        inner = tuple(slice(int(where[0]), int(where[-1]) + 1) for where in extents)
        region = tuple(slice(side.start + first, side.stop + first) for side, first in zip(inner, origin, strict=True))
        dtype = np.min_scalar_type(max(int(old[inner].max()), int(new[inner].max())))
        return cls(region, dtype.name, _packed(old[inner], dtype), _packed(new[inner], dtype), int(differs.sum()))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the box."""
        return tuple(side.stop - side.start for side in self.region)

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return len(self.old) + len(self.new)

    @property
    def before(self) -> npt.NDArray[Any]:
        """The values that stood there."""
        return self._unpacked(self.old)

    @property
    def after(self) -> npt.NDArray[Any]:
        """The values that stand there now."""
        return self._unpacked(self.new)

    def _unpacked(self, packed: bytes) -> npt.NDArray[Any]:
        return np.frombuffer(zlib.decompress(packed), dtype=self.dtype).reshape(self.shape)


class LabelMap:
    """Ids of objects on a grid, 0 is background.

    The array has the smallest unsigned type that held all ids when it was made, and widens when a patch needs it.

    Parameters
    ----------
    shape : (S), 2 or 3 axes
    labels : (S) ids to start from; copied
    """

    def __init__(self, shape: tuple[int, ...], labels: npt.ArrayLike | None = None) -> None:
        self._array: npt.NDArray[Any] = np.zeros(shape, np.uint8) if labels is None else np.array(as_ids(labels, shape))

    @property
    def array(self) -> npt.NDArray[Any]:
        """(S) ids; a read-only view that later changes show in until the type widens."""
        view = self._array.view()
        view.flags.writeable = False
        return view

    def ids(self) -> tuple[int, ...]:
        """All ids in use, ascending."""
        layers = [np.unique(layer) for layer in self._array]
        return tuple(int(i) for i in np.unique(np.concatenate(layers)) if i)

    def plane(self, plane: Plane) -> npt.NDArray[Any]:
        """(H, W) ids of one plane; a read-only view."""
        return self.array[self._index(plane)]

    def layers_with(self, label: int) -> slice | None:
        """Between which indices of the first axis an object lies; None if it has no voxel."""
        found = [i for i, layer in enumerate(self._array) if (layer == label).any()]
        return slice(found[0], found[-1] + 1) if found else None

    def patch(self, region: Sequence[slice], values: npt.NDArray[Any]) -> Patch | None:
        """What would change if ``values`` stood in ``region``; nothing changes yet."""
        region = as_region(region, self._array.shape)
        return Patch.between(self._array[region], values, tuple(side.start for side in region))

    def plane_patch(self, plane: Plane, values: npt.NDArray[Any]) -> Patch | None:
        """What would change if the (H, W) ``values`` stood in ``plane``."""
        region = tuple(slice(i, i + 1) if isinstance(i, int) else i for i in self._index(plane))
        return self.patch(region, values.reshape(self._array[region].shape))

    def widen(self, dtype: npt.DTypeLike) -> None:
        """Make room for values of ``dtype``; no id changes."""
        self._array = self._array.astype(np.result_type(self._array, dtype), copy=False)

    def write(self, region: tuple[slice, ...], values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Write one side of a patch, for which there has to be room. Returns the values in the map's own type."""
        values = values.astype(self._array.dtype, casting="safe")
        self._array[region] = values
        return values

    def _index(self, plane: Plane) -> tuple[int | slice, ...]:
        index: list[int | slice] = [slice(None)] * self._array.ndim
        if self._array.ndim == 3:
            index[plane.axis] = int(plane.index)
        return tuple(index)


def as_ids(values: npt.ArrayLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """``values`` in the smallest unsigned type that holds them.

    Raises
    ------
    LabelsError : another shape, or anything but whole numbers from 0 to `LARGEST_ID`
    """
    array = np.asarray(values)
    if array.shape != shape:
        raise LabelsError(f"labels of shape {array.shape} arrived; expected {shape}")
    if array.dtype != bool and not np.issubdtype(array.dtype, np.integer):
        raise LabelsError(f"labels of type {array.dtype} arrived; expected integers")
    if not array.size:
        return array.astype(np.uint8)
    lowest, highest = int(array.min()), int(array.max())
    if lowest < 0 or highest > LARGEST_ID:
        raise LabelsError(f"labels from {lowest} to {highest} arrived; expected ids from 0 (background) to {LARGEST_ID}")
    return array.astype(np.min_scalar_type(highest), copy=False)


def as_region(region: Sequence[slice], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """``region`` with a start and a stop on every axis; missing axes are whole.

    Raises
    ------
    LabelsError : not slices of consecutive voxels inside ``shape``
    """
    sides = (*region, *[slice(None)] * (len(shape) - len(region)))
    if len(sides) != len(shape) or not all(isinstance(side, slice) for side in sides):
        raise LabelsError(f"the region {tuple(region)} arrived; expected one slice for each of {len(shape)} axes")
    whole = tuple(slice(*side.indices(size)[:2]) for side, size in zip(sides, shape, strict=True))
    if any(side.step not in (None, 1) or inner.stop <= inner.start for side, inner in zip(sides, whole, strict=True)):
        raise LabelsError(f"the region {tuple(region)} arrived; expected at least one voxel along every axis of {shape}, without steps")
    return whole


def _packed(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> bytes:
    return zlib.compress(np.ascontiguousarray(values, dtype=dtype).tobytes(), level=1)
