"""What the objects of a label map measure, in the units of the image: size, surface, place, intensity.

Everything is taken in the world of the affine, whatever it is: anisotropic, rotated, mirrored or sheared. The label map is read once,
in slabs of some million voxels, and every object of a slab is measured at once; what slabs say of an object is then added up. So neither
the number of objects matters much, nor whether the arrays fit into memory.

- *Size* is the number of voxels times the volume (area, in 2D) of one, the determinant of the affine.
- *Surface* (in 2D the perimeter) is the estimate of Cauchy and Crofton, see `crofton`. It is closed where the image ends, and where objects
  touch each of them has its own.
- *Intensity* is that of all voxels of the object; the standard deviation is that of a sample (n - 1), as in ITK.

What is measured is in millimetres. A table is in the unit in which people read objects of such voxels, see `in_unit`.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from napari_apprentice.crofton import border_per_crossing, crossings, half_of_the_neighbours
from napari_apprentice.geometry import voxel_to_world
from napari_apprentice.types import Image, InputError, LabelsError

__all__ = ["UNITS", "Measures", "Row", "Work", "as_csv", "columns", "in_unit", "measure", "table", "usual_unit"]

Row = dict[str, int | float | str | None]
"""A line of a table by the names of its columns; None is an empty cell."""

_PER_M = {"mm": 10**3, "um": 10**6, "nm": 10**9}
UNITS: tuple[str, ...] = tuple(_PER_M)
"""Units of length that a table can be in."""

_LENGTH = re.compile(rf"(.+)_({'|'.join(UNITS)})([23]?)")
_FINE_MM = 0.01
"""Voxels smaller than a cube (in 2D a square) of this edge are those of a microscope. Of its objects, micrometres are reported."""

_SLAB_VOXELS = 2**22
_Spread = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]
_CHANNELS = {1: ("",), 3: ("_red", "_green", "_blue")}


@dataclass(frozen=True)
class Measures:
    """One object.

    Attributes
    ----------
    label : its id
    units : of what follows: "mm", or "pixel" where the image states no physical spacing
    voxels : how many it has
    size : volume in ``units``³, or in 2D area in ``units``²
    border : surface in ``units``², or in 2D perimeter in ``units``
    first, last : corners of its bounding box, both inside of it, in voxels
    centroid : n world coordinates of its centre of mass, slowest axis first
    mean, std, lowest, highest : intensity of its voxels in every channel; ``std`` is NaN for a single voxel, and where one is infinite
    slices : in 3D the number of its voxels in every slice of the first axis from ``first`` to ``last``; in 2D empty
    """

    label: int
    units: str
    voxels: int
    size: float
    border: float
    first: tuple[int, ...]
    last: tuple[int, ...]
    centroid: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    slices: tuple[int, ...] = ()


@dataclass(frozen=True)
class Work:
    """What an object cost.

    Attributes
    ----------
    clicks : that were made for it, also those that were taken back
    active_s : seconds of work on it, without pauses
    version : number of the version of the model that was in use when it was last worked on; None where nobody knows
    """

    clicks: int
    active_s: float
    version: int | None = None


def measure(labels: Any, image: Image, *, on_layers: Callable[[int, int], None] | None = None) -> tuple[Measures, ...]:
    """Measure every object of a label map.

    Parameters
    ----------
    labels : (S) ids, 0 is background: an array, or anything that slices to one (dask, zarr)
    image : what they are labels of
    on_layers : called with the number of layers of the first axis that are done, and with that of all; may raise to stop

    Returns
    -------
    One for each object, by ascending id.

    Raises
    ------
    LabelsError : another shape than the image's, or anything but whole numbers from 0
    """
    _check(labels, image)
    directions = half_of_the_neighbours(image.ndim)
    tallies = []
    for start, stop in _slabs(image.shape):
        tally = _tally(labels, image, start, stop, directions)
        if tally is not None:
            tallies.append(tally)
        if on_layers is not None:
            on_layers(min(stop, image.shape[0]), image.shape[0])
    return tuple(_measures(tallies, image, directions)) if tallies else ()


def table(
    measures: Iterable[Measures],
    *,
    case: str = "",
    labels: str = "",
    classes: Mapping[int, str] | None = None,
    work: Mapping[int, Work] | None = None,
    unit: str | None = None,
) -> list[Row]:
    """Rows of a table, units in the names of its columns. The table of a cohort is the rows of its cases, one after the other, `in_unit`.

    Parameters
    ----------
    case, labels : names of the image and of the label map
    classes : what objects are, by id; instances of a class are numbered from 1
    work : what objects cost, by id; columns for it are there only if this is given
    unit : see `in_unit`
    """
    counts: dict[str, int] = {}
    rows = []
    for one in measures:
        kind = (classes or {}).get(one.label, "")
        counts[kind] = counts.get(kind, 0) + 1
        row: Row = {"case": case, "labels": labels, "label": one.label, "class": kind, "instance": counts[kind], **_figures(one)}
        if work is not None:
            row |= _cost(work.get(one.label))
        rows.append(row)
    return in_unit(rows, unit)


def in_unit(rows: Sequence[Row], unit: str | None = None) -> list[Row]:
    """The rows of a whole table, with every length, area and volume in one unit. What counts pixels goes on doing so.

    Parameters
    ----------
    unit : one of `UNITS`; by default the `usual_unit` of the finest voxels, or, where rows do not say how large voxels are, "um" if any
        of them is in another unit than millimetres

    Raises
    ------
    InputError : there is no such unit

    >>> in_unit([{"voxels": 4, "volume_mm3": 5e-13}])
    [{'voxels': 4, 'volume_um3': 0.0005}]
    """
    if unit is None:
        unit = usual_unit(min(map(_voxel_edge_mm, rows), default=math.inf))
    if unit not in UNITS:
        raise InputError(f"the unit {unit!r} arrived; expected one of {', '.join(UNITS)}")
    renamed = {name: _renamed(name, unit) for name in {name for row in rows for name in row}}
    return [{renamed[name][0]: _scaled(value, renamed[name][1]) for name, value in row.items()} for row in rows]


def usual_unit(voxel_edge_mm: float) -> str:
    """The unit in which people read lengths: "um" where a voxel is smaller than a cube (in 2D a square) of 10 µm, else "mm".

    Parameters
    ----------
    voxel_edge_mm : of a cube (square) as large as a voxel
    """
    return "um" if voxel_edge_mm < _FINE_MM else "mm"


def columns(image: Image, *, work: bool = False, unit: str | None = None) -> list[str]:
    """What the columns of a `table` of objects of an image are called, for one without any object.

    Parameters
    ----------
    work : whether it says what objects cost
    unit : see `in_unit`
    """
    somewhere, values = (0,) * image.ndim, (0.0,) * image.data.shape[0]
    size = abs(float(np.linalg.det(image.affine[:-1, :-1])))
    one = Measures(1, image.units, 1, size, 0.0, somewhere, somewhere, somewhere, values, values, values, values)
    return list(table([one], work={} if work else None, unit=unit)[0])


def as_csv(rows: Sequence[Row], columns: Sequence[str] = ("case",)) -> str:
    """Comma-separated values with a line of column names: columns in the order in which rows first name them, ten digits of a number.

    Parameters
    ----------
    columns : of a table without rows

    >>> as_csv([{"label": 1, "volume_mm3": 2 / 3}, {"label": 2, "surface_mm2": None}])
    'label,volume_mm3,surface_mm2\\n1,0.6666666667,\\n2,,\\n'
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)) or columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return stream.getvalue()


def _figures(one: Measures) -> Row:
    """The columns of what was measured; world axes are called x, y and z as in NIfTI, voxel axes as in the image."""
    n, unit = len(one.centroid), one.units
    axes = "zyx"[-n:]
    sizes, borders = (f"volume_{unit}3", f"surface_{unit}2") if n == 3 else (f"area_{unit}2", f"perimeter_{unit}")
    row: Row = {"voxels": one.voxels, sizes: one.size, borders: one.border}
    row |= {f"centroid_{axis}_{unit}": value for axis, value in reversed([*zip(axes, one.centroid, strict=True)])}
    for name, values in (("mean", one.mean), ("std", one.std), ("min", one.lowest), ("max", one.highest)):
        row |= {f"{name}_intensity{channel}": value for channel, value in zip(_CHANNELS[len(values)], values, strict=True)}
    for name, corner in (("first", one.first), ("last", one.last)):
        row |= {f"{name}_{axis}_voxel": index for axis, index in reversed([*zip(axes, corner, strict=True)])}
    return row | ({"voxels_per_z_slice": " ".join(map(str, one.slices))} if n == 3 else {})


def _cost(work: Work | None) -> Row:
    if work is None:
        return {"clicks": None, "active_s": None, "model_version": None}
    return {"clicks": work.clicks, "active_s": round(work.active_s, 3), "model_version": work.version}


def _voxel_edge_mm(row: Row) -> float:
    """Edge of a cube (in 2D a square) as large as a voxel of this object; where the row does not say it, 0 if its unit is finer than
    millimetres (whoever chose that knew the voxels), else infinite."""
    finer = False
    for name, value in row.items():
        found, voxels = _LENGTH.fullmatch(name), row.get("voxels")
        finer |= found is not None and found[2] != "mm"
        if found and found[1] in ("volume", "area") and isinstance(value, float | int) and isinstance(voxels, int):
            return float((value / voxels) ** (1 / int(found[3])) * _PER_M["mm"] / _PER_M[found[2]])
    return 0.0 if finer else math.inf


def _renamed(name: str, unit: str) -> tuple[str, float]:
    """The name of a column in a unit, and what its values are to be multiplied by."""
    found = _LENGTH.fullmatch(name)
    if found is None:
        return name, 1.0
    return f"{found[1]}_{unit}{found[3]}", (_PER_M[unit] / _PER_M[found[2]]) ** int(found[3] or 1)


def _scaled(value: float | str | None, factor: float) -> float | str | None:
    return value * factor if factor != 1 and isinstance(value, float | int) else value


def _cell(value: float | str | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.10g}" if isinstance(value, float) else str(value)


# --- slabs ---


@dataclass(frozen=True, eq=False)
class _Tally:
    """What one slab adds to its K objects.

    Attributes
    ----------
    ids, counts : (K)
    sums : (K, n) of voxel coordinates
    first, last : (K, n) voxel coordinates; of objects without a voxel here, beyond any
    means, squares, lowest, highest : (K, C) of intensities; ``squares`` is the sum of squared deviations from the mean
    crossings : (K, D) of its border by lines along every direction
    start, per_layer : first layer, and (K, layers) number of voxels in every layer
    """

    ids: npt.NDArray[Any]
    counts: npt.NDArray[np.int64]
    sums: npt.NDArray[np.float64]
    first: npt.NDArray[np.int64]
    last: npt.NDArray[np.int64]
    means: npt.NDArray[np.float64]
    squares: npt.NDArray[np.float64]
    lowest: npt.NDArray[np.float64]
    highest: npt.NDArray[np.float64]
    crossings: npt.NDArray[np.int64]
    start: int
    per_layer: npt.NDArray[np.int64]


def _check(labels: Any, image: Image) -> None:
    shape = tuple(getattr(labels, "shape", ()))
    if shape != image.shape:
        raise LabelsError(f"labels of shape {shape} arrived for {image.name!r}; expected its shape, {image.shape}")
    if np.dtype(labels.dtype).kind not in "bui":
        raise LabelsError(f"labels of type {labels.dtype} arrived; expected whole numbers from 0")


def _slabs(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Half-open ranges of layers; the last one ends one layer beyond the last one that there is, where every object has ended."""
    thickness = max(1, _SLAB_VOXELS // math.prod(shape[1:]))
    for start in range(0, shape[0] + 1, thickness):
        yield start, min(start + thickness, shape[0] + 1)


def _tally(labels: Any, image: Image, start: int, stop: int, directions: npt.NDArray[np.int64]) -> _Tally | None:
    """What the layers from ``start`` to ``stop`` add; None for nothing."""
    padded = _padded(labels, start, stop)
    found = np.unique(padded)  # sorted; 0 is the first of them, as the margin has it
    k = len(found) - 1
    if not k:
        return None
    numbers = _numbers(padded, found)
    inside = numbers[1:, *[slice(1, -1)] * (image.ndim - 1)]
    foreground = inside != 0
    codes = inside[foreground].astype(np.int64) - 1
    counts = np.bincount(codes, minlength=k)
    voxels = np.nonzero(foreground)
    sums = np.stack([np.bincount(codes, axis, k) for axis in voxels], axis=1).astype(np.float64)
    sums[:, 0] += counts * start
    first, last = _boxes(inside, k, start)
    layers = stop - start
    per_layer = (
        np.bincount(codes * layers + voxels[0], minlength=k * layers).reshape(k, layers) if image.ndim == 3 else np.zeros((k, 0), int)
    )
    means, squares, lowest, highest = _spread(_intensities(image, start, stop, voxels), codes, counts)
    crossed = crossings(numbers, k, directions)
    return _Tally(found[1:], counts, sums, first, last, means, squares, lowest, highest, crossed, start, per_layer)


def _intensities(image: Image, start: int, stop: int, voxels: tuple[npt.NDArray[np.int64], ...]) -> npt.NDArray[np.float64]:
    """(C, voxels) of voxels in the layers from ``start`` to ``stop``, which are not read for nothing."""
    if not len(voxels[0]):
        return np.zeros((image.data.shape[0], 0))
    block = np.asarray(image.data[:, start : min(stop, image.shape[0])])
    return np.stack([channel[voxels] for channel in block]).astype(np.float64)


def _padded(labels: Any, start: int, stop: int) -> npt.NDArray[Any]:
    """The layers from ``start`` - 1 to ``stop``, those that are not there as zeros, with a margin of zeros along the other axes."""
    low, high = max(start - 1, 0), min(stop, labels.shape[0])
    block = np.asarray(labels[low:high])
    if block.dtype.kind == "i" and block.size and block.min() < 0:
        raise LabelsError(f"the negative label {int(block.min())} arrived; expected whole numbers from 0")
    block = block.astype(np.uint8) if block.dtype == bool else block
    return np.pad(block, [(low - (start - 1), stop - high), *[(1, 1)] * (block.ndim - 1)])


def _numbers(padded: npt.NDArray[Any], found: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The ids as their positions in ``found``."""
    dtype = np.min_scalar_type(len(found))
    if found[-1] > _SLAB_VOXELS:
        return np.searchsorted(found, padded).astype(dtype)
    positions = np.zeros(int(found[-1]) + 1, dtype)
    positions[found] = np.arange(len(found))
    numbers: npt.NDArray[Any] = positions[padded]
    return numbers


def _boxes(numbers: npt.NDArray[Any], k: int, start: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(K, n) first and last voxel of every object."""
    nowhere = (slice(np.iinfo(np.int64).max, 0),) * numbers.ndim
    boxes = [box or nowhere for box in ndimage.find_objects(numbers, max_label=k)]
    first = np.array([[side.start for side in box] for box in boxes], np.int64)
    last = np.array([[side.stop - 1 for side in box] for box in boxes], np.int64)
    there = np.array([box is not nowhere for box in boxes])
    first[there, 0] += start
    last[there, 0] += start
    return first, last


@np.errstate(invalid="ignore")  # of infinite values
def _spread(values: npt.NDArray[np.float64], codes: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> _Spread:
    """(K, C) mean, sum of squared deviations from it, lowest and highest of (C, voxels) values."""
    k, some = len(counts), np.maximum(counts, 1)
    means = np.stack([np.bincount(codes, channel, k) / some for channel in values], axis=1)
    squares = np.stack([np.bincount(codes, (channel - mean[codes]) ** 2, k) for channel, mean in zip(values, means.T, strict=True)], axis=1)
    lowest, highest = np.full(means.shape, np.inf), np.full(means.shape, -np.inf)
    np.minimum.at(lowest, codes, values.T)
    np.maximum.at(highest, codes, values.T)
    return means, squares, lowest, highest


# --- objects ---


def _measures(tallies: Sequence[_Tally], image: Image, directions: npt.NDArray[np.int64]) -> Iterator[Measures]:
    """What the slabs say of every object, added up."""
    ids, group = np.unique(np.concatenate([tally.ids for tally in tallies]), return_inverse=True)

    def total(what: str) -> npt.NDArray[Any]:
        parts = np.concatenate([getattr(tally, what) for tally in tallies])
        added = np.zeros((len(ids), *parts.shape[1:]), parts.dtype)
        np.add.at(added, group, parts)
        return added

    def extreme(what: str, among: np.ufunc) -> npt.NDArray[Any]:
        parts = np.concatenate([getattr(tally, what) for tally in tallies])
        order = np.argsort(group, kind="stable")
        return among.reduceat(parts[order], np.searchsorted(group[order], np.arange(len(ids))))

    counts = total("counts")
    weights = np.concatenate([tally.counts for tally in tallies])[:, None]
    parts = np.concatenate([tally.means for tally in tallies])
    means = np.zeros((len(ids), parts.shape[1]))
    with np.errstate(invalid="ignore"):  # of single voxels, and of infinite values
        np.add.at(means, group, weights * parts / counts[group][:, None])
        squares = total("squares")
        np.add.at(squares, group, weights * (parts - means[group]) ** 2)  # between slabs (Chan, Golub and LeVeque, 1979)
        stds = np.sqrt(squares / (counts[:, None] - 1.0))
    centroids = voxel_to_world(total("sums") / counts[:, None], image.affine)
    borders = total("crossings") @ border_per_crossing(directions, image.affine[:-1, :-1])
    first, last = extreme("first", np.minimum), extreme("last", np.maximum)
    lowest, highest = extreme("lowest", np.minimum), extreme("highest", np.maximum)
    one = abs(float(np.linalg.det(image.affine[:-1, :-1])))
    slices = _slices(tallies, ids, first[:, 0], last[:, 0]) if image.ndim == 3 else [()] * len(ids)
    for i, label in enumerate(ids):
        yield Measures(
            label=int(label),
            units=image.units,
            voxels=int(counts[i]),
            size=int(counts[i]) * one,
            border=float(borders[i]),
            first=tuple(first[i].tolist()),
            last=tuple(last[i].tolist()),
            centroid=tuple(centroids[i].tolist()),
            mean=tuple(means[i].tolist()),
            std=tuple(stds[i].tolist()),
            lowest=tuple(lowest[i].tolist()),
            highest=tuple(highest[i].tolist()),
            slices=slices[i],
        )


def _slices(
    tallies: Sequence[_Tally], ids: npt.NDArray[Any], first: npt.NDArray[np.int64], last: npt.NDArray[np.int64]
) -> list[tuple[int, ...]]:
    """Voxels of every object in every layer from its first to its last."""
    lengths = last - first + 1
    offsets = np.cumsum(lengths) - lengths
    counts = np.zeros(int(lengths.sum()), np.int64)
    for tally in tallies:
        objects, layers = np.nonzero(tally.per_layer)
        rows = np.searchsorted(ids, tally.ids)[objects]
        counts[offsets[rows] + tally.start + layers - first[rows]] = tally.per_layer[objects, layers]
    return [tuple(part.tolist()) for part in np.split(counts, offsets[1:])]
