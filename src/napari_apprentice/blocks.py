"""Label maps that do not fit into memory: blocks of a zarr array on disk, and knowledge of which of them are empty."""

from __future__ import annotations

import math
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from copy import copy
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary, finalize

import numpy as np
import numpy.typing as npt

from napari_apprentice.lazy import ArrayLike, basic_index
from napari_apprentice.types import WriteError

if TYPE_CHECKING:
    from filelock import FileLock

__all__ = ["BLOCK", "LARGE_VOXELS", "BlockArray", "cleared", "is_large"]

LARGE_VOXELS = 2**28
"""A label map of more voxels is kept on the disk."""

BLOCK = (4, 256, 256)
"""Shape of a block, slowest axis first: thin, since most of the work is done in planes across the first axis."""

_CACHE_BYTES = 2**27
_FOLDER_PREFIX = "blocks-"
_LOCK_NAME = "in-use.lock"

_in_use: WeakValueDictionary[Path, _Folder] = WeakValueDictionary()
"""Folders of the arrays of this process, which on some file systems is not kept out by its own locks."""

Index = tuple[int, ...]


def is_large(shape: Sequence[int]) -> bool:
    """Whether labels of shape (S) are kept on the disk."""
    return math.prod(shape) > LARGE_VOXELS


def cleared(folder: Path) -> Path:
    """A folder without the blocks that a process which was killed has left there. Only for who owns the folder now.

    Those of arrays that there still are, in a layer of this or another process for instance, stay, and go with them.
    """
    for left in folder.glob(f"{_FOLDER_PREFIX}*"):
        if left.absolute() not in _in_use and (lock := _locked(left)) is not None:
            lock.release()
            shutil.rmtree(left, ignore_errors=True)
    return folder


class _Folder:
    """A folder of blocks that goes with this object, and that other processes can tell is in use.

    The lock is the operating system's own, so it goes with the process, however that ends.
    """

    def __init__(self, parent: Path | None) -> None:
        temporary = tempfile.TemporaryDirectory(prefix=_FOLDER_PREFIX, dir=parent, ignore_cleanup_errors=True)
        self.path = Path(temporary.name).absolute()
        finalize(self, _let_go, _locked(self.path), temporary)
        _in_use[self.path] = self


def _locked(folder: Path) -> FileLock | None:
    """The lock of a folder, which we have now; None if somebody else has it, or the file system knows no locks."""
    import filelock  # here, so that whoever has no large labels need not wait for it

    # An array may go in another thread than the one it was made in.
    lock = filelock.FileLock(folder / _LOCK_NAME, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except (OSError, NotImplementedError):  # a timeout is an OSError, too
        return None
    return lock


def _let_go(lock: FileLock | None, temporary: tempfile.TemporaryDirectory[str]) -> None:
    if lock is not None:
        lock.release()
    temporary.cleanup()


class BlockArray(ArrayLike):
    """(S) ids on disk. Indexing with integers and slices reads and writes as numpy does, but what comes out is a copy.

    Blocks without any id take neither memory nor disk. The newest blocks are kept in memory, and go to the disk when there are too many
    of them; those that the disk has no room for stay in memory until it has (see `settle`). The folder goes when the array does: what has
    to survive is in the journal. Safe to use from several threads.

    Parameters
    ----------
    shape : (S), 2 or 3 axes
    dtype : unsigned type of what is read; on the disk there is always room for the largest id
    folder : where the array gets a folder of its own; by default where the system keeps temporary files
    """

    def __init__(self, shape: Sequence[int], dtype: npt.DTypeLike = np.uint8, folder: Path | None = None) -> None:
        import zarr

        self.shape = tuple(int(side) for side in shape)
        self.dtype = np.dtype(dtype)
        self.block: tuple[int, ...] = tuple(min(side, most) for side, most in zip(self.shape, BLOCK[-len(self.shape) :], strict=True))
        self._folder = _Folder(folder)
        self._stored: Any = zarr.create_array(
            str(self._folder.path / "labels.zarr"), shape=self.shape, chunks=self.block, dtype=np.uint32, fill_value=0
        )
        self._ids: dict[Index, frozenset[int]] = {}
        self._kept: OrderedDict[Index, npt.NDArray[Any]] = OrderedDict()
        self._changed: set[Index] = set()  # what of the kept ones the disk does not know yet
        self._lock = threading.RLock()
        self._writable = True

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        where = basic_index(index, self.shape)
        region = tuple(i if isinstance(i, slice) else slice(i, i + 1) for i in where)
        with self._lock:
            found = [(block, self._load(block)) for block in self._touched(region) if block in self._ids]
        values = np.zeros([side.stop - side.start for side in region], np.result_type(self.dtype, *(held.dtype for _, held in found)))
        for block, held in found:
            inside, outside = self._overlap(block, region)
            values[outside] = held[inside]
        return values[tuple(slice(None, None, i.step) if isinstance(i, slice) else 0 for i in where)]

    def __setitem__(self, index: Any, values: npt.ArrayLike) -> None:
        if not self._writable:
            raise ValueError("a write to labels that may only be read arrived; expected actions of the session, or a copy")
        where = basic_index(index, self.shape)
        if any(isinstance(i, slice) and i.step != 1 for i in where):
            raise IndexError(f"steps in {index} arrived; expected a region without steps")
        region = tuple(i if isinstance(i, slice) else slice(i, i + 1) for i in where)
        kept = tuple(i.stop - i.start for i in where if isinstance(i, slice))
        given = np.broadcast_to(np.asarray(values), kept).reshape([side.stop - side.start for side in region])
        with self._lock:
            for block in self._touched(region):
                inside, outside = self._overlap(block, region)
                if block in self._ids or given[outside].any():
                    changed = self._load(block).astype(np.uint32)
                    changed[inside] = given[outside]
                    self._save(block, changed)

    def pieces(self, label: int | None = None) -> Iterator[tuple[tuple[slice, ...], npt.NDArray[Any]]]:
        """Region and values of every block that holds any id, or a certain one, in C order."""
        for block in sorted(self._ids):
            with self._lock:
                if label not in (None, *self._ids.get(block, ())):
                    continue
                values = self._load(block)
            yield self._region(block), values

    def regions(self) -> Iterator[tuple[slice, ...]]:
        """Of all blocks, empty or not, in C order."""
        return map(self._region, self._touched(tuple(slice(0, size) for size in self.shape)))

    def widen(self, dtype: npt.DTypeLike) -> None:
        """Read as a type that also holds values of ``dtype``; no id changes."""
        self.dtype = np.result_type(self.dtype, dtype)

    def settle(self) -> None:
        """See to it that memory holds no more than it should, before anything else is written.

        Raises
        ------
        WriteError : the disk does not take what is too much; all of that is still in memory, and nothing is lost
        """
        with self._lock:
            if (error := self._make_room()) is not None:
                place = f"the labels cannot be written to {self._folder.path}"
                raise WriteError(f"{place} ({error.strerror or error}); expected free space and permission") from error

    def readonly(self) -> BlockArray:
        """A view that cannot be written to, and that later changes show in."""
        view = copy(self)
        view._writable = False
        return view

    def duplicate(self, dtype: npt.DTypeLike) -> BlockArray:
        """A copy of the same ids, beside this one, that is read as another type."""
        other = BlockArray(self.shape, dtype, self._folder.path.parent)
        for region, values in self.pieces():
            other[region] = values
            other.settle()
        return other

    def _touched(self, region: tuple[slice, ...]) -> Iterator[Index]:
        sides = [range(side.start // n, -(-side.stop // n)) for side, n in zip(region, self.block, strict=True)]
        return product(*sides)

    def _region(self, block: Index) -> tuple[slice, ...]:
        return tuple(slice(i * n, min((i + 1) * n, size)) for i, n, size in zip(block, self.block, self.shape, strict=True))

    def _overlap(self, block: Index, region: tuple[slice, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Where block and region overlap: within the block, and within the region."""
        own = self._region(block)
        both = [(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(own, region, strict=True)]
        inside = tuple(slice(start - side.start, stop - side.start) for (start, stop), side in zip(both, own, strict=True))
        outside = tuple(slice(start - side.start, stop - side.start) for (start, stop), side in zip(both, region, strict=True))
        return inside, outside

    def _load(self, block: Index) -> npt.NDArray[Any]:
        if block not in self._ids:
            return np.zeros([side.stop - side.start for side in self._region(block)], np.uint8)
        if block not in self._kept:
            self._keep(block, np.asarray(self._stored[self._region(block)]))
        self._kept.move_to_end(block)
        return self._kept[block]

    def _save(self, block: Index, values: npt.NDArray[Any]) -> None:
        if ids := _ids_in(values):
            self._ids[block] = ids
            self._changed.add(block)
            self._keep(block, values)
        else:
            for known in (self._ids, self._kept):
                known.pop(block, None)
            self._changed.discard(block)

    def _keep(self, block: Index, values: npt.NDArray[Any]) -> None:
        """Hold a block in memory, as the smallest type that holds its ids; what there is no room for goes to the disk, if it can."""
        held = values.astype(np.min_scalar_type(max(self._ids[block])))
        held.flags.writeable = False
        self._kept[block] = held
        self._make_room()

    def _make_room(self) -> OSError | None:
        """Let go of the oldest blocks that memory has no room for, and that the disk has; what kept the others from being written."""
        room, failed = _CACHE_BYTES - sum(one.nbytes for one in self._kept.values()), None
        for oldest in [*self._kept][:-1]:
            if room >= 0:
                break
            if oldest in self._changed:
                try:
                    if failed is None:
                        self._stored[self._region(oldest)] = self._kept[oldest]
                except OSError as error:
                    failed = error
                if failed is not None:
                    continue
                self._changed.discard(oldest)
            room += self._kept.pop(oldest).nbytes
        return failed


def _ids_in(values: npt.NDArray[Any]) -> frozenset[int]:
    """All ids among ``values``."""
    counted = int(values.max(initial=0)) < 2**16
    found = np.flatnonzero(np.bincount(values.ravel())) if counted else np.unique(values)
    return frozenset(found.tolist()) - {0}
