"""What the format modules hand over, before it becomes an image: an array with named axes.

Every format module has four functions:

- ``begins(head, path) -> bool``: whether the first bytes are those of such a file;
- ``check(path)``: raise what ``load`` would of an image without a chosen time, as far as can be told without reading the voxels, and any
  error where something seems to be missing, which ``load`` then finds out;
- ``load(path, time, *, exact) -> Content``: read it; ``exact`` for label maps (no rounding, no colour tables);
- ``save(path, array, image, *, labels, go_on) -> None``: write ``array`` (C, *S) with the geometry of ``image``; calls ``go_on`` as
  often as the library that writes allows, and lets out what that raises.

Arrays larger than `lazy.LARGE_BYTES` stay on the disk where the format allows that: as a `LazyArray`.

Axis names are those of tifffile: T time, Z, Y, X space, S samples (colours).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_apprentice.lazy import LazyArray
from napari_apprentice.types import Image, invertible


class RefusedError(Exception):
    """The predicate of a sentence whose subject is the file: "has 7 channels; expected 1 or 3"."""


class SeriesError(RefusedError):
    """There are several time points, and none was chosen."""

    def __init__(self, count: int) -> None:
        super().__init__(f"has {count} time points; expected one volume, or time= from 0 to {count - 1} (in commands --time) to choose one")
        self.count = count


@dataclass(frozen=True, eq=False)
class Source:
    """What a writer needs to give back a file's geometry field for field.

    Attributes
    ----------
    affine : what the reader made of ``details``; an image whose affine is another one must not get them
    details : of the format's own class
    unnamed : the file says where voxels lie, in a unit that it does not name
    """

    affine: npt.NDArray[np.float64]
    details: Any
    unnamed: bool = False


@dataclass(frozen=True, eq=False)
class Content:
    """What a file holds.

    Attributes
    ----------
    array : numpy array or `LazyArray`, one axis for each letter of ``axes``
    axes : letters of "ZYXS" in any order, each at most once; no T
    affine, units : as in `Image`, for the spatial axes among ``axes``
    source : what the format's writer wants to find again
    coarser : the same at lower resolutions, finest first
    alpha : the last of the samples is none of the image's, but says how opaque it is
    """

    array: Any
    axes: str
    affine: npt.NDArray[np.float64]
    units: str
    source: Source
    coarser: tuple[Any, ...] = ()
    alpha: bool = False


class Watched(io.BufferedRandom):
    """A new file that calls ``go_on`` before anything is written to it."""

    def __init__(self, path: Path, go_on: Callable[[], None]) -> None:
        super().__init__(io.FileIO(path, "w+"))
        self._go_on = go_on

    def write(self, data: Any) -> int:
        """As of any file."""
        self._go_on()
        return super().write(data)


def details_of(image: Image, kind: type) -> Any | None:
    """The details of class ``kind`` that the image's reader left, if the image's geometry still is what they say."""
    source = image.source
    if isinstance(source, Source) and isinstance(source.details, kind) and np.array_equal(source.affine, image.affine):
        return source.details
    return None


def chosen_time(count: int, time: int | None) -> int:
    """The index of the time point to read out of ``count``.

    Raises
    ------
    RefusedError : none was chosen and there are several, or the chosen one does not exist
    """
    if time is None and count > 1:
        raise SeriesError(count)
    chosen = time or 0
    if not isinstance(chosen, Integral) or not 0 <= chosen < count:
        raise RefusedError(
            f"has {count} time point{'s' if count > 1 else ''}, but time={time} was asked for; expected {'0 to ' * (count > 1)}{count - 1}"
        )
    return chosen


def stated(affine: npt.NDArray[np.float64], units: str = "mm") -> tuple[npt.NDArray[np.float64], str]:
    """The affine and its units if the file says how large a voxel is; else voxels of size 1 at the origin, in "pixel".

    Parameters
    ----------
    affine : (n+1, n+1), made of what the file states; an axis of which it states nothing usable has zeros, NaN or infinite numbers
    units : what a usable one is in
    """
    n = len(affine) - 1
    return (affine, units) if np.isfinite(affine).all() and invertible(affine[:n, :n]) else (np.eye(n + 1), "pixel")


def is_length(value: object) -> bool:
    """Whether a number that a file states can be the distance of two voxels: it is finite and above zero."""
    return isinstance(value, float | int | np.number) and bool(np.isfinite(value)) and float(value) > 0


def channels_first(content: Content) -> Any:
    """(C, *S) data in native byte order, without alpha: a numpy array or a `LazyArray`.

    Raises
    ------
    RefusedError : not a grey or RGB image of 2 or 3 axes
    """
    return _channels_first(content.array, content.axes, content.alpha)


def coarser_channels_first(content: Content) -> tuple[Any, ...]:
    """The lower resolutions, each as `channels_first` gives the finest one."""
    return tuple(_channels_first(array, content.axes, content.alpha) for array in content.coarser)


def _channels_first(array: Any, axes: str, alpha: bool) -> Any:
    if array.dtype.kind not in "biuf":
        raise RefusedError(f"holds {array.dtype} values; expected integers or real numbers")
    if "S" not in axes:
        array, axes = array.with_axis() if isinstance(array, LazyArray) else array[None], "S" + axes
    order = [axes.index(axis) for axis in "SZYX" if axis in axes]
    array = array.transposed(order) if isinstance(array, LazyArray) else np.transpose(array, order)
    if alpha:
        array = array.head(len(array) - 1) if isinstance(array, LazyArray) else array[:-1]
    if len(array) not in (1, 3):
        raise RefusedError(f"has {len(array)} channels; expected 1 (grey) or 3 (RGB)")
    if isinstance(array, LazyArray):
        return array
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    # In memory the colours of a pixel lie beside each other: a window that draws them needs no copy, for which it would stand still.
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 0, -1), dtype=array.dtype.newbyteorder("=")), -1, 0)
