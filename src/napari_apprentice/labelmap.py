"""A label map that only changes by patches, each of which can be taken back exactly."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_apprentice.blocks import BlockArray, is_large
from napari_apprentice.types import LabelsError, Plane

__all__ = [
    "LARGEST_ID",
    "LabelMap",
    "Patch",
    "Piece",
    "Tile",
    "as_id",
    "as_ids",
    "as_region",
    "check_shape",
    "extent",
    "slabs",
    "spanned",
]

LARGEST_ID = int(np.iinfo(np.uint32).max)
"""Ids are whole numbers from 1 to this; 0 is background."""

Piece = tuple[tuple[slice, ...], npt.NDArray[Any]]
"""A region, and the values in it."""

_TILE_VOXELS = 2**24
"""What is done at once: a slice of 4096² voxels."""


@dataclass(frozen=True, eq=False)
class Tile:
    """An exact change of a box of a label map: what stood there and what stands there now, compressed.

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
    def between(cls, old: npt.NDArray[Any], new: npt.NDArray[Any], corner: Sequence[int]) -> Tile | None:
        """The smallest tile that turns ``old`` into ``new``, both of one shape with their first voxel at ``corner``; None if equal."""
        differs = old != new
        if not differs.any():
            return None
        inner, region = extent(differs), extent(differs, corner)
        dtype = np.min_scalar_type(max(int(old[inner].max()), int(new[inner].max())))
        return cls(region, dtype.name, _packed(old[inner], dtype), _packed(new[inner], dtype), int(np.count_nonzero(differs)))

    @property
    def before(self) -> npt.NDArray[Any]:
        """The values that stood there."""
        return self._unpacked(self.old)

    @property
    def after(self) -> npt.NDArray[Any]:
        """The values that stand there now."""
        return self._unpacked(self.new)

    def _unpacked(self, packed: bytes) -> npt.NDArray[Any]:
        shape = [side.stop - side.start for side in self.region]
        return np.frombuffer(zlib.decompress(packed), dtype=self.dtype).reshape(shape)


@dataclass(frozen=True, eq=False)
class Patch:
    """An exact change of a label map: tiles that do not overlap, one unless the change is large, so that nothing is as large as that.

    Attributes
    ----------
    tiles : at least one
    """

    tiles: tuple[Tile, ...]

    @classmethod
    def of(cls, pieces: Iterable[tuple[npt.NDArray[Any], npt.NDArray[Any], Sequence[int]]]) -> Patch | None:
        """What turns the first array of every piece into its second one, each at its corner, see `Tile.between`; None if all are equal."""
        tiles = tuple(tile for piece in pieces if (tile := Tile.between(*piece)) is not None)
        return cls(tiles) if tiles else None

    @classmethod
    def between(cls, old: npt.NDArray[Any], new: npt.NDArray[Any], corner: Sequence[int]) -> Patch | None:
        """The patch that turns ``old`` into ``new``, see `Tile.between`."""
        inside = slabs(tuple(slice(0, size) for size in old.shape))
        return cls.of((old[slab], new[slab], [corner[0] + slab[0].start, *corner[1:]]) for slab in inside)

    @cached_property
    def region(self) -> tuple[slice, ...]:
        """The smallest box that holds all tiles."""
        return spanned([tile.region for tile in self.tiles])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of that box."""
        return tuple(side.stop - side.start for side in self.region)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type that holds all values of both sides."""
        return np.result_type(*(tile.dtype for tile in self.tiles))

    @property
    def changed(self) -> int:
        """Number of voxels that differ."""
        return sum(tile.changed for tile in self.tiles)

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(len(tile.old) + len(tile.new) for tile in self.tiles)

    @property
    def ids(self) -> frozenset[int]:
        """All that stands in its tiles now, 0 included."""
        return frozenset(i for tile in self.tiles for i in np.unique(tile.after).tolist())

    @property
    def before(self) -> Iterator[Piece]:
        """The values that stood there, tile by tile."""
        return ((tile.region, tile.before) for tile in self.tiles)

    @property
    def after(self) -> Iterator[Piece]:
        """The values that stand there now, tile by tile."""
        return ((tile.region, tile.after) for tile in self.tiles)


class LabelMap:
    """Ids of objects on a grid, 0 is background; in memory, or in blocks on the disk where there are too many voxels for that.

    The array has the smallest unsigned type that held all ids when it was made, and widens when a patch needs it.

    Parameters
    ----------
    shape : (S), 2 or 3 axes
    labels : (S) ids to start from; copied
    folder : where blocks are kept, see `blocks.BlockArray`
    """

    def __init__(self, shape: tuple[int, ...], labels: Any = None, folder: Path | None = None) -> None:
        self._array: npt.NDArray[Any] | BlockArray
        if is_large(shape):
            self._array = BlockArray(shape, folder=folder)
            if labels is not None:
                _copy(labels, self._array)
        else:
            self._array = np.zeros(shape, np.uint8) if labels is None else np.array(as_ids(labels, shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """(S)."""
        return self._array.shape

    @property
    def array(self) -> Any:
        """(S) ids; a read-only view that later changes show in until the type widens.

        A numpy array, or a `BlockArray`: numpy arrays come out of that by indexing.
        """
        if isinstance(self._array, BlockArray):
            return self._array.readonly()
        view = self._array.view()
        view.flags.writeable = False
        return view

    def ids(self) -> tuple[int, ...]:
        """All ids in use, ascending."""
        return tuple(sorted({int(i) for _, values in self.pieces() for i in np.unique(values)} - {0}))

    def plane(self, plane: Plane) -> npt.NDArray[Any]:
        """(H, W) ids of one plane; a read-only view."""
        here: npt.NDArray[Any] = self.array[self._index(plane)]
        return here

    def box_of(self, label: int) -> tuple[slice, ...] | None:
        """The smallest box that holds an object; None if it has no voxel."""
        boxes = []
        for region, values in self.pieces(label):
            held = values == label
            if held.any():
                boxes.append(extent(held, [side.start for side in region]))
        return spanned(boxes) if boxes else None

    def pieces_of(self, label: int) -> Iterator[Piece]:
        """Region and values of parts that together hold all there is of an object: one, unless the box around it is large."""
        box = self.box_of(label)
        if box is None:
            return
        if isinstance(self._array, BlockArray) and math.prod(side.stop - side.start for side in box) > _TILE_VOXELS:
            yield from self._array.pieces(label)
        else:
            yield from ((slab, self._array[slab]) for slab in slabs(box))

    def layers_with(self, label: int) -> slice | None:
        """Between which indices of the first axis an object lies; None if it has no voxel."""
        box = self.box_of(label)
        return None if box is None else box[0]

    def patch(self, region: Sequence[slice], values: npt.NDArray[Any]) -> Patch | None:
        """What would change if ``values`` stood in ``region``; nothing changes yet."""
        region = as_region(region, self._array.shape)
        return Patch.between(self._array[region], values, [side.start for side in region])

    def plane_patch(self, plane: Plane, values: npt.NDArray[Any]) -> Patch | None:
        """What would change if the (H, W) ``values`` stood in ``plane``."""
        region = tuple(slice(i, i + 1) if isinstance(i, int) else i for i in self._index(plane))
        whole = as_region(region, self._array.shape)
        return self.patch(region, values.reshape([side.stop - side.start for side in whole]))

    def renumbering(self, label: int, to: int) -> Patch | None:
        """What would change if an object got another id, 0 to delete it; None if it has no voxel."""
        pieces = self.pieces_of(label)
        return Patch.of((here, _renumbered(here, label, to), [side.start for side in region]) for region, here in pieces)

    def again(self, patch: Patch) -> Patch | None:
        """What would change if what a patch left stood there again; None if it does."""
        return Patch.of((self._array[region], values, [side.start for side in region]) for region, values in patch.after)

    def patches(self) -> Iterator[Patch]:
        """What makes this map out of an empty one; no patch is larger than memory."""
        if isinstance(self._array, BlockArray):
            pieces: Iterable[Piece] = self.pieces()
        else:
            pieces = [(tuple(slice(0, size) for size in self.shape), self._array)]
        for region, values in pieces:
            if (patch := Patch.between(np.zeros_like(values), values, [side.start for side in region])) is not None:
                yield patch

    def widen(self, dtype: npt.DTypeLike) -> None:
        """Make room for values of ``dtype``; no id changes."""
        if isinstance(self._array, BlockArray):
            self._array.widen(dtype)
        else:
            self._array = self._array.astype(np.result_type(self._array, dtype), copy=False)

    def settle(self) -> None:
        """Before an action that changes labels: see to it that the disk takes what memory cannot hold; `WriteError` if it does not."""
        if isinstance(self._array, BlockArray):
            self._array.settle()

    def write(self, pieces: Iterable[Piece]) -> None:
        """Write one side of a patch, for which there has to be room."""
        for region, values in pieces:
            self._array[region] = values.astype(self._array.dtype, casting="safe")

    def pieces(self, label: int | None = None) -> Iterator[Piece]:
        """Region and values of parts that together hold all there is, or all there is of one object."""
        if isinstance(self._array, BlockArray):
            yield from self._array.pieces(label)
        else:
            rest = tuple(slice(0, size) for size in self._array.shape[1:])
            for i in range(len(self._array)):
                yield (slice(i, i + 1), *rest), self._array[i : i + 1]

    def _index(self, plane: Plane) -> tuple[int | slice, ...]:
        index: list[int | slice] = [slice(None)] * self._array.ndim
        if self._array.ndim == 3:
            index[plane.axis] = int(plane.index)
        return tuple(index)


def _copy(labels: Any, blocks: BlockArray) -> None:
    """Write ids from an array that may be larger than memory into empty blocks."""
    check_shape(labels, blocks.shape)
    for region in blocks.regions():
        values = np.asarray(labels[region])
        if values.any():
            ids = as_ids(values, values.shape)
            blocks.widen(ids.dtype)
            blocks[region] = ids
            blocks.settle()


def check_shape(labels: Any, shape: tuple[int, ...]) -> None:
    """Raise `LabelsError` unless ``labels`` are integers of a shape."""
    if not (hasattr(labels, "shape") and hasattr(labels, "dtype")):
        raise LabelsError(f"{labels!r:.80} arrived as labels; expected an array, as `read_labels` makes it of a file")
    if tuple(labels.shape) != shape:
        raise LabelsError(f"labels of shape {tuple(labels.shape)} arrived; expected {shape}")
    if labels.dtype != bool and not np.issubdtype(labels.dtype, np.integer):
        raise LabelsError(f"labels of type {labels.dtype} arrived; expected integers")


def extent(held: npt.NDArray[np.bool_], corner: Sequence[int] | None = None) -> tuple[slice, ...]:
    """The smallest box that holds what is True, of which there is some; ``corner`` is where the first voxel lies, by default 0."""
    axes = range(held.ndim)
    found = [np.flatnonzero(held.any(axis=tuple(a for a in axes if a != axis))) for axis in axes]
    corner = [0] * held.ndim if corner is None else corner
    return tuple(slice(first + int(where[0]), first + int(where[-1]) + 1) for where, first in zip(found, corner, strict=True))


def spanned(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...]:
    """The smallest box that holds one box or more."""
    return tuple(slice(min(side.start for side in along), max(side.stop for side in along)) for along in zip(*boxes, strict=True))


def slabs(region: tuple[slice, ...], axis: int = 0) -> Iterator[tuple[slice, ...]]:
    """A region in parts across an axis that are not too large to be in memory several times."""
    whole, area = region[axis], math.prod(side.stop - side.start for other, side in enumerate(region) if other != axis)
    thick = max(_TILE_VOXELS // max(area, 1), 1)
    for start in range(whole.start, whole.stop, thick):
        yield (*region[:axis], slice(start, min(start + thick, whole.stop)), *region[axis + 1 :])


def as_ids(values: npt.ArrayLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """``values`` in the smallest unsigned type that holds them.

    Raises
    ------
    LabelsError : another shape, or anything but whole numbers from 0 to `LARGEST_ID`
    """
    array = np.asarray(values)
    check_shape(array, shape)
    if not array.size:
        return array.astype(np.uint8)
    lowest, highest = int(array.min()), int(array.max())
    if lowest < 0 or highest > LARGEST_ID:
        raise LabelsError(f"labels from {lowest} to {highest} arrived; expected ids from 0 (background) to {LARGEST_ID}")
    return array.astype(np.min_scalar_type(highest), copy=False)


def as_id(label: int) -> int:
    """``label``, of whatever integer type, as a plain number; `LabelsError` unless an object may have this id."""
    with suppress(TypeError, ValueError, OverflowError):
        if int(label) == label and 1 <= label <= LARGEST_ID and not isinstance(label, bool):
            return int(label)
    raise LabelsError(f"label {label} arrived; expected a whole number from 1 to {LARGEST_ID} (0 is background)")


def as_region(region: Sequence[slice], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """``region`` with a start and a stop on every axis; missing axes are whole.

    Raises
    ------
    LabelsError : not slices of consecutive voxels inside ``shape``
    """
    sides = (*region, *[slice(None)] * (len(shape) - len(region))) if isinstance(region, Sequence) else ()
    if len(sides) != len(shape) or not all(isinstance(side, slice) for side in sides):
        raise LabelsError(f"the region {region} arrived; expected one slice for each of {len(shape)} axes")
    try:
        whole = tuple(slice(*side.indices(size)[:2]) for side, size in zip(sides, shape, strict=True))
    except (TypeError, ValueError) as error:  # a part is no whole number, or the step is 0
        raise LabelsError(f"the region {tuple(region)} arrived; expected whole numbers as starts and stops, without steps") from error
    if any(side.step not in (None, 1) or inner.stop <= inner.start for side, inner in zip(sides, whole, strict=True)):
        raise LabelsError(f"the region {tuple(region)} arrived; expected at least one voxel along every axis of {shape}, without steps")
    return whole


def _renumbered(values: npt.NDArray[Any], label: int, to: int) -> npt.NDArray[Any]:
    wide = values.astype(np.result_type(values, np.min_scalar_type(to)))
    wide[values == label] = to
    return wide


def _packed(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> bytes:
    return zlib.compress(np.ascontiguousarray(values, dtype=dtype).tobytes(), level=1)
