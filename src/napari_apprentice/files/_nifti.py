"""NIfTI-1 and NIfTI-2 through nibabel."""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import unit_codes
from nibabel.spatialimages import HeaderDataError

from napari_apprentice import lazy
from napari_apprentice.files._content import Content, RefusedError, Source, Watched, chosen_time, details_of, is_length, stated
from napari_apprentice.geometry import reverse_axes, spacing_of
from napari_apprentice.lazy import LazyArray
from napari_apprentice.types import Image

_MM_PER_UNIT = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}
_LARGEST_NIFTI1_AXIS = 32767
_LABEL_INTENT = 1002
_UNIT_OF_LENGTH = 0b111  # the other bits of xyzt_units are those of time
_COMPRESSION = 1
_SLAB_BYTES = 2**24
_HEADER_ROUNDING = 1e-6  # of a turned affine, in single precision
_HEADER_SIZES = (348, 540)  # of NIfTI-1 and NIfTI-2; they stand at the beginning of every file


def begins(head: bytes, path: Path) -> bool:
    """Whether these are the first bytes of a NIfTI file (compressed, if its name says so)."""
    if path.name.lower().endswith(".gz"):
        return head.startswith(b"\x1f\x8b")
    return not _both_orders(head[:4]).isdisjoint(_HEADER_SIZES)


def _both_orders(number: bytes) -> set[int]:
    """What four bytes mean in either byte order."""
    return {int.from_bytes(number, "little"), int.from_bytes(number, "big")}


def check(path: Path) -> None:
    """Look at the header, and whether all voxels are there: of a compressed file by the size that stands at its end."""
    packed = path.name.lower().endswith(".gz")
    with gzip.open(path) if packed else path.open("rb") as stream:
        loaded = _kind(stream).from_stream(stream)
    _check_axes(loaded.shape)
    chosen_time(loaded.shape[3] if len(loaded.shape) > 3 else 1, None)
    needed = loaded.dataobj.offset + math.prod(loaded.shape) * loaded.get_data_dtype().itemsize
    with path.open("rb") as file:
        size = file.seek(-4 if packed else 0, os.SEEK_END)
        said = int.from_bytes(file.read(), "little")
    if said != needed % 2**32 if packed else size < needed:
        raise ValueError(f"{needed} bytes are stated, {said if packed else size} are there")


def _kind(stream: gzip.GzipFile | BinaryIO) -> Any:
    """nibabel's class for the version that a stream begins with; the stream is back at its beginning."""
    size_of_header = stream.read(4)
    stream.seek(0)
    return nibabel.Nifti2Image if _HEADER_SIZES[1] in _both_orders(size_of_header) else nibabel.Nifti1Image


def load(path: Path, time: int | None, *, exact: bool) -> Content:
    """Read a NIfTI file."""
    # Read through a stream, and memory-mapped only where it is too large for that: another program that rewrites the file must not
    # change, or crash, what is on the screen.
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as stream:
        kind = _kind(stream)
        said = kind.header_class.from_fileobj(stream, check=False)  # nibabel makes 1 of a voxel size of 0, and 2 of -2
        stream.seek(0)
        loaded = kind.from_stream(stream)
        mapped = _mapped(path, kind, loaded, time)
        n_axes, array = mapped or _volume(loaded, time, exact)
        while not mapped and stream.read(2**20):  # the checksum of a compressed file stands at its end
            pass
    axes = "XYZ"[:n_axes]
    if not isinstance(array, LazyArray) and array.dtype.fields:  # RGB24 and RGBA32
        array, axes = np.stack([array[channel] for channel in "RGB"], axis=-1), axes + "S"
    affine, units = stated(_affine(loaded.header, said, n_axes))
    places = units == "mm" and bool(loaded.header["sform_code"] or loaded.header["qform_code"])
    source = Source(affine, loaded.header.copy() if units == "mm" else None, places and _unit(loaded.header) == "unknown")
    return Content(array, axes, affine, "pixel" if _as_made_up(loaded.header, affine) else units, source)


def save(path: Path, array: npt.NDArray[Any], image: Image, *, labels: bool, go_on: Callable[[], None]) -> None:
    """Write (C, *S) data as NIfTI."""
    header = details_of(image, nibabel.Nifti1Header)
    header = _new_header(image) if header is None else header.copy()
    if image.units == "mm" and _as_made_up(header, image.affine):  # somebody has stated since that these are mm
        header["xyzt_units"] = int(header["xyzt_units"]) & ~_UNIT_OF_LENGTH | unit_codes["mm"]
    data = array[0].T
    if len(array) == 3:
        if array.dtype != np.uint8:
            raise RefusedError(f"cannot hold RGB of type {array.dtype}; expected uint8, or another format")
        data = np.ascontiguousarray(np.moveaxis(array, 0, -1)).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0].T
    # What the header says of intensities is not true of labels: display range, meaning, attached notes.
    header["cal_min"] = header["cal_max"] = 0
    header.extensions.clear()
    header.set_intent(_LABEL_INTENT if labels else 0)
    try:
        header.set_data_dtype(data.dtype)
    except HeaderDataError as error:
        raise RefusedError(f"cannot hold values of type {data.dtype}; expected integers, float32 or float64, or TIFF") from error
    kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    # Without an affine nibabel leaves qform, sform, their codes and pixdim as they are in the header.
    written = kind(data, None, header)
    with Watched(path, go_on) as file:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile("", "wb", _COMPRESSION, file, mtime=0) as packed:  # no name and no time: the same labels are the same bytes
                written.to_stream(packed)
        else:
            written.to_stream(file)


def _mapped(path: Path, kind: Any, loaded: nibabel.Nifti1Image, time: int | None) -> tuple[int, LazyArray] | None:
    """Number of spatial axes, and one time point that stays on the disk; None where it is small, compressed, or has colours."""
    shape, stored = loaded.shape, loaded.get_data_dtype()
    if math.prod(shape[:3]) * stored.itemsize <= lazy.LARGE_BYTES or stored.fields or path.name.lower().endswith(".gz"):
        return None
    _check_axes(shape)
    chosen, n_axes = chosen_time(shape[3] if len(shape) > 3 else 1, time), min(len(shape), 3)
    proxy = kind.from_filename(path, mmap="r").dataobj
    raw, slope, inter = proxy.get_unscaled(), float(proxy.slope), float(proxy.inter)
    as_stored = (slope, inter) == (1, 0)
    array = LazyArray(raw) if as_stored else LazyArray(raw, convert=lambda values: values * slope + inter, dtype=np.float32)
    for axis in reversed(range(3, len(shape))):
        array = array.at(axis, chosen if axis == 3 else 0)
    return n_axes, array


def _check_axes(shape: tuple[int, ...]) -> None:
    if len(shape) < 2 or any(length != 1 for length in shape[4:]):
        raise RefusedError(f"has {len(shape)} axes, of shape {shape}; expected (x, y), (x, y, z) or (x, y, z, time)")


def _volume(loaded: nibabel.Nifti1Image, time: int | None, exact: bool) -> tuple[int, npt.NDArray[Any]]:
    """Number of spatial axes (2 or 3), and the array (x, y[, z]) of one time point, scaled if the header says so."""
    shape = loaded.shape
    _check_axes(shape)
    chosen = chosen_time(shape[3] if len(shape) > 3 else 1, time)
    n_axes, stored = min(len(shape), 3), loaded.get_data_dtype()
    # Only the chosen volume is read. Axes beyond the fourth have length one.
    chosen_volume = (chosen, *[0] * (len(shape) - 4))[: max(len(shape) - 3, 0)]
    # Slab by slab: nibabel scales in eight bytes a voxel. To give gigabytes of them back keeps Python's lock for half a second, for which
    # the window would wait.
    thickness = max(_SLAB_BYTES // max(math.prod(shape[: n_axes - 1]) * stored.itemsize, 1), 1)
    array = None
    for first in range(0, max(shape[n_axes - 1], 1), thickness):
        along = slice(first, first + thickness)
        slab = np.asanyarray(loaded.dataobj[(*[slice(None)] * (n_axes - 1), along, *chosen_volume)])
        if array is None:
            was_scaled = slab.dtype != stored
            array = np.empty(shape[:n_axes], np.float32 if was_scaled and not exact else slab.dtype, order="F")
        array[..., along] = slab
    assert array is not None
    return n_axes, array


def _affine(header: nibabel.Nifti1Header, said: nibabel.Nifti1Header, n_axes: int) -> npt.NDArray[np.float64]:
    """Voxel -> world in mm, slowest axis first; NaN where ``said``, the header before nibabel mended it, states no voxel size.

    Where the sform, which some programs leave empty, says no direction for an axis, and there is a qform, that one counts.
    """
    whole = bool(header.get_sform()[:3, :n_axes].any(axis=0).all())
    by_qform = bool(header["qform_code"]) and not (header["sform_code"] and whole)
    affine = np.array(header.get_qform() if by_qform else header.get_best_affine(), dtype=np.float64)
    affine[:3] *= _MM_PER_UNIT.get(_unit(header), 1.0)
    if by_qform or not header["sform_code"]:  # then the sizes are those of pixdim
        affine[:3, [axis for axis in range(n_axes) if not is_length(said["pixdim"][axis + 1])]] = np.nan
    if n_axes == 3:
        return reverse_axes(affine)
    in_plane = affine[np.ix_([0, 1, 3], [0, 1, 3])]
    # A 2D slice across another direction than S has no 2D affine; the header still goes into its label map.
    lies_across_s = not affine[2, :2].any() and not affine[:2, 2].any()
    return reverse_axes(in_plane if lies_across_s else np.diag([*spacing_of(affine)[:2], 1.0]))


def _unit(header: nibabel.Nifti1Header) -> str:
    """What the header's lengths are in; "unknown" also where its code means nothing."""
    try:
        return str(header.get_xyzt_units()[0])
    except KeyError:
        return "unknown"


def _as_made_up(header: nibabel.Nifti1Header, affine: npt.NDArray[np.float64]) -> bool:
    """Whether voxels of 1 × 1 × 1 of no unit are what a program wrote that was told of none, and nobody's measurement."""
    return _unit(header) == "unknown" and np.allclose(spacing_of(affine), 1, rtol=0, atol=_HEADER_ROUNDING)


def _new_header(image: Image) -> nibabel.Nifti1Header:
    """A header for an image that did not come out of a NIfTI file."""
    header = nibabel.Nifti1Header() if max(image.shape) <= _LARGEST_NIFTI1_AXIS else nibabel.Nifti2Header()
    n = image.ndim
    affine = np.eye(4)
    kept = [*range(n), 3]
    affine[np.ix_(kept, kept)] = reverse_axes(image.affine)
    header.set_data_shape(image.shape[::-1])
    header.set_xyzt_units("mm" if image.units == "mm" else "unknown")
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner")
    # The quaternion holds no shear: say that it is not to be used rather than to say something false.
    if not np.allclose(header.get_qform(), affine, rtol=1e-4, atol=1e-5 * max(spacing_of(affine))):
        header.set_qform(None, code="unknown")
    return header
