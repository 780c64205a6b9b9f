"""TIFF through tifffile: OME-TIFF, ImageJ stacks, and plain files."""

from __future__ import annotations

import hashlib
import math
import struct
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import zarr

from napari_apprentice import lazy
from napari_apprentice.files._content import Content, RefusedError, Source, Watched, chosen_time, details_of, is_length, stated
from napari_apprentice.files._lengths import MM_PER, is_print_density, unit_for, unit_named
from napari_apprentice.geometry import affine_from_spacing
from napari_apprentice.lazy import LazyArray
from napari_apprentice.types import Image

_OME_TYPES = ("u1", "u2", "u4", "i1", "i2", "i4", "f4", "f8")
_LARGEST_IMAGEJ_BYTES = 2**32 - 2**25
# Without one of these the voxels or their spacing would be others: size, type, layout, description, density.
_DECISIVE_TAGS = {*range(256, 260), 262, 270, 273, *range(277, 280), *range(282, 285), 296, *range(322, 326), 339}
_COLOURS = {0: 1, 1: 1, 2: 3, 6: 3}  # samples of a pixel: minus and plus black, RGB, YCbCr
_LOSSY = (6, 7, 33007, 34892)
_RESOLUTION_UNITS = {2: "in", 3: "cm"}


@dataclass(frozen=True)
class _Calibration:
    """What a TIFF says of its voxels.

    Attributes
    ----------
    spacing : (z, y, x) in ``unit``, or in pixels; z is NaN where the file does not state it
    unit : key of `MM_PER`, None for pixels
    density : XResolution, YResolution, ResolutionUnit of a file whose density says nothing of the specimen
    """

    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    unit: str | None = None
    density: tuple[float, float, int] | None = None


def begins(head: bytes, path: Path) -> bool:
    """Whether these are the first bytes of a TIFF or BigTIFF file."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def check(path: Path) -> None:
    """Look at the directories of the pages, and whether what they point to lies in the file."""
    with _opened(path) as file:
        _image_in(file, None, exact=False)


def _opened(path: Path) -> tifffile.TiffFile:
    """A file whose pages were written one by one is one image, though tifffile notes the shape of each and takes it for an image."""
    file = tifffile.TiffFile(path)
    if not file.is_shaped or len(file.series) == 1 or any(len(series.pages) > 1 for series in file.series):
        return file
    file.close()
    return tifffile.TiffFile(path, is_shaped=False)


def _image_in(file: tifffile.TiffFile, time: int | None, *, exact: bool) -> tuple[tifffile.TiffPageSeries, str, int]:
    """The image of a whole file, our letters of its axes, and the chosen time point. Smaller pictures of it beside it are passed over."""
    if not file.series:
        raise RefusedError("holds no image; expected at least one page")
    series = file.series[0]
    beside = [other for other in file.series[1:] if _pixels_of(other) >= _pixels_of(series)]
    if beside:
        shapes = ", ".join(str(one.shape) for one in (series, *beside))
        raise RefusedError(
            f"holds {1 + len(beside)} images, the first of which is not the largest, or unlike pages ({shapes}); expected one image"
        )
    _check_complete(file, series)
    _check_compression(series.keyframe, exact=exact)
    if not exact and _is_painted_by_number(file, series.keyframe):
        if series.nbytes > lazy.LARGE_BYTES:
            raise RefusedError("has a table of colours, and is too large to be turned into RGB here; expected grey or RGB")
        tables = {np.asarray(page.aspage().colormap).tobytes() for page in series.pages if page is not None}
        if len(tables) > 1:
            raise RefusedError(f"has {len(tables)} tables of colours, one for some of its pages; expected a single one, or grey or RGB")
    names = _axes(series.axes, series.shape)
    return series, names, chosen_time(series.shape[names.index("T")] if "T" in names else 1, time)


def load(path: Path, time: int | None, *, exact: bool) -> Content:
    """Read the image of a TIFF file."""
    with _opened(path) as file:
        series, names, chosen = _image_in(file, time, exact=exact)
        shape = series.shape
        array = _mapped(file, path, series) if series.nbytes > lazy.LARGE_BYTES else series.asarray()
        if array.shape != shape:
            raise ValueError(f"{shape} voxels are stated, {array.shape} are there")
        if not exact and _is_painted_by_number(file, series.keyframe):
            array, names = _coloured(np.asarray(array), series.keyframe), names + "S"
        calibration, alpha = _calibration(file), _has_alpha(series.keyframe)
    if "T" in names:
        at, names = names.index("T"), names.replace("T", "")
        array = array.at(at, chosen) if isinstance(array, LazyArray) else array.take(chosen, at)
    n = 3 if "Z" in names else 2
    scale = MM_PER[calibration.unit] if calibration.unit else 1.0
    said = affine_from_spacing([length * scale for length in calibration.spacing[-n:]])
    affine, units = stated(said, "mm" if calibration.unit else "pixel")
    return Content(array, names, affine, units, Source(affine, calibration), alpha=alpha)


def _pixels_of(series: tifffile.TiffPageSeries) -> int:
    """How many pixels a plane of a series has."""
    return math.prod(size for axis, size in zip(series.axes, series.shape, strict=True) if axis in "YX")


def _mapped(file: tifffile.TiffFile, path: Path, series: tifffile.TiffPageSeries) -> LazyArray:
    """A series that stays on the disk: mapped where it lies there as one piece, else read page by page, or tile by tile."""
    alone = len(series.pages) == 1 or file.is_shaped or file.is_imagej or file.is_ome  # else `memmap` may take a page for the image
    in_one_piece = alone and series.dataoffset is not None and not series.is_multifile and series.keyframe.parent is file
    if in_one_piece and series.keyframe.is_memmappable:
        return LazyArray(tifffile.memmap(path, series=0, mode="r"))
    return LazyArray(zarr.open_array(_opened(path).aszarr(series=0, level=0), mode="r"))


def save(path: Path, array: npt.NDArray[Any], image: Image, *, labels: bool, go_on: Callable[[], None]) -> None:
    """Write (C, *S) data as OME-TIFF where the name says so, else as an ImageJ stack where that format holds it."""
    axes = "ZYX"[-image.ndim :]
    colour = len(array) == 3
    data = np.ascontiguousarray(np.moveaxis(array, 0, -1)) if colour else array[0]
    calibration = details_of(image, _Calibration) or _calibration_for(image)
    options: dict[str, Any] = {"photometric": "rgb" if colour else "minisblack", "compression": "zlib"}
    *_, y, x = calibration.spacing
    options["resolution"] = (1 / x, 1 / y)
    if calibration.density:
        options["resolution"], options["resolutionunit"] = calibration.density[:2], calibration.density[2]
    elif calibration.unit in ("in", "cm"):  # the two units that a program can read which knows nothing but TIFF itself
        options["resolutionunit"] = 2 if calibration.unit == "in" else 3
    options.update(_flavour(path, data, axes + "S" * colour, calibration))
    with Watched(path, go_on) as file:
        tifffile.imwrite(file, data, **options)


def _axes(axes: str, shape: tuple[int, ...]) -> str:
    """The axes of a series in our letters; three channels are colours, pages of unknown meaning are z slices."""
    names = axes
    if "S" not in names and "C" in names:
        names = names.replace("C", "S")
    if "Z" not in names:
        names = names.replace("I" if "I" in names else "Q", "Z", 1)
    if len(set(names)) != len(names) or not set("YX") <= set(names) <= set("TZYXS"):
        raise RefusedError(f"has axes {axes} of shape {shape}; expected YX, ZYX or TZYX, grey or RGB")
    samples = shape[names.index("S")] if "S" in names else 1
    if samples > 4 or ("C" in axes and samples != 3):
        raise RefusedError(f"has {samples} channels (axes {axes}, shape {shape}); expected 1 (grey) or 3 (RGB)")
    return names


def _has_alpha(page: tifffile.TiffPage) -> bool:
    """Whether the samples of a pixel are grey or RGB, and one more that is said to be alpha."""
    return page.samplesperpixel == _COLOURS.get(page.photometric, 0) + 1 and page.extrasamples in ((1,), (2,))


def _is_painted_by_number(file: tifffile.TiffFile, page: tifffile.TiffPage) -> bool:
    """Whether values are places in a table of colours, which say nothing themselves.

    The tables of ImageJ and OME are what intensities are shown in (Fire, say, or green), and intensities are what is there.
    """
    painted = page.photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None and page.samplesperpixel == 1
    return painted and not (file.is_imagej or file.is_ome)


def _coloured(array: npt.NDArray[Any], page: tifffile.TiffPage) -> npt.NDArray[Any]:
    """(*S, 3) 8-bit RGB: the colours that an array (*S) names."""
    table = np.asarray(page.colormap).T  # (2^bits, 3) of 16 bits; some programs write 8
    numbers = array.astype(np.uint8) if array.dtype == bool else array
    colours: npt.NDArray[Any] = (table >> 8 if table.max() > 255 else table).astype(np.uint8)[numbers]
    return colours


def _check_complete(file: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> None:
    """Raise ValueError if a file was cut: tifffile logs that pages and tags are missing, and fills missing voxels with zeros."""
    _check_directories(file)
    pages = [page for page in series.pages if page is not None]
    if len(pages) < len(series.pages):
        raise ValueError(f"{len(series.pages)} pages are stated, {len(pages)} are there")
    for other in {id(page.parent): page.parent for page in pages if page.parent is not file}.values():  # of an OME-TIFF in several files
        with other.filehandle as handle:
            handle.open()
            _check_directories(other)
    for page in pages:
        _check_inside(page.parent, zip(page.dataoffsets, page.databytecounts, strict=False))
    if series.dataoffset is not None:
        _check_inside(pages[0].parent, [(series.dataoffset, series.nbytes)])


def _check_directories(file: tifffile.TiffFile) -> None:
    """Raise ValueError if a tag of the first page, or a page, is stated but not there."""
    size, name = file.filehandle.size, file.filehandle.name
    stated, _ = _directory(file, file.pages.first.offset)
    lost = sorted(code for code in stated if code in _DECISIVE_TAGS and code not in file.pages.first.tags)
    if lost:
        raise ValueError(f"tag {lost[0]} lies beyond the end of {name}, {size} bytes")
    if _directory(file, file.pages[-1].offset)[1]:
        raise ValueError(f"pages beyond the {len(file.pages)}th are stated, but lie beyond the end of {name}, {size} bytes")


def _check_inside(file: tifffile.TiffFile, extents: Iterable[tuple[int, int]]) -> None:
    """Raise ValueError if something that begins at an offset and has a number of bytes is not all in the file."""
    size = file.filehandle.size
    if any(offset + count > size for offset, count in extents):
        raise ValueError(f"voxels lie beyond the end of {file.filehandle.name}, {size} bytes")


def _check_compression(page: tifffile.TiffPage, *, exact: bool) -> None:
    """Refuse what nothing here decompresses, before it is left on the disk, and labels that compression has changed."""
    known, kind = tifffile.TIFF.DECOMPRESSORS, getattr(page.compression, "name", page.compression)
    if page.compression not in known:
        raise RefusedError(f"is compressed in a way that cannot be read here ({kind}); expected a usual one, such as Deflate, or none")
    if exact and page.compression in _LOSSY:
        raise RefusedError(
            f"is compressed as a JPEG ({kind}), which changes labels; expected a lossless compression, such as Deflate, or none"
        )


def _directory(file: tifffile.TiffFile, offset: int) -> tuple[list[int], int]:
    """Tag codes that a page's directory states, and the offset of the next directory (0 after the last)."""
    layout, handle = file.tiff, file.filehandle
    handle.seek(offset)
    (count,) = struct.unpack(layout.tagnoformat, handle.read(layout.tagnosize))
    entries = handle.read(count * layout.tagsize)
    codes = [struct.unpack_from(layout.byteorder + "H", entries, i * layout.tagsize)[0] for i in range(count)]
    (following,) = struct.unpack(layout.offsetformat, handle.read(layout.offsetsize))
    return codes, following


def _calibration(file: tifffile.TiffFile) -> _Calibration:
    """The most specific statement of the spacing that the file makes."""
    if file.is_ome and file.ome_metadata:
        return _ome_calibration(tifffile.xml2dict(file.ome_metadata))
    page = file.pages.first
    density = tuple(_ratio(page.tags.valueof(code)) for code in (282, 283))
    unit_tag = int(page.tags.valueof(296, default=2))
    described = dict(file.imagej_metadata or (file.shaped_metadata or ({},))[0])
    if "unit" in described or (file.is_imagej and unit_tag not in _RESOLUTION_UNITS):
        x, y = (1 / per_unit if per_unit else math.nan for per_unit in density)
        z = abs(float(described.get("spacing", math.nan)))  # ImageJ, too, takes it without its sign
        units = [unit_named(described.get(key, described.get("unit"))) for key in ("zunit", "yunit", "unit")]
        return _calibrated(_length(z, units[0], units[2]), _length(y, units[1], units[2]), x, units[2])
    unit = _RESOLUTION_UNITS.get(unit_tag)
    if unit is None or not all(density) or all(is_print_density(per_unit * 25.4 / MM_PER[unit]) for per_unit in density):
        return _Calibration(density=(*density, unit_tag) if all(density) else None)  # type: ignore[arg-type]
    return _calibrated(math.nan, 1 / density[1], 1 / density[0], unit)  # nothing in such a file states the distance of slices


def _length(size: float, own: str | None, unit: str | None) -> float:
    """A size in another unit; NaN where only one of the two is a unit of length."""
    if own is None or unit is None:
        return size if own is unit else math.nan
    return size * MM_PER[own] / MM_PER[unit]


def _calibrated(z: float, y: float, x: float, unit: str | None) -> _Calibration:
    """What a file says if these are its lengths, of which some may be none."""
    if not (is_length(y) and is_length(x)):
        return _Calibration()
    if unit is None:
        return _Calibration((z if is_length(z) else 1.0, y, x))
    return _Calibration((z if is_length(z) else math.nan, y, x), unit)


def _ome_calibration(ome: Mapping[str, Any]) -> _Calibration:
    """The physical size of the first image of an OME-XML description."""
    images = ome.get("OME", {}).get("Image", {})
    pixels = (images[0] if isinstance(images, list) else images).get("Pixels", {})
    units = {axis: unit_named(pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "XYZ"}
    z, y, x = (_length(float(pixels.get(f"PhysicalSize{axis}") or math.nan), units[axis], units["X"]) for axis in "ZYX")
    return _calibrated(z, y, x, units["X"])


def _calibration_for(image: Image) -> _Calibration:
    """What to write for an image that did not come out of a TIFF file."""
    unit = unit_for(min(image.spacing)) if image.units == "mm" else None
    spacing = [length / MM_PER[unit] if unit else length for length in (1.0, *image.spacing)[-3:]]
    return _Calibration((spacing[0], spacing[1], spacing[2]), unit)


def _flavour(path: Path, data: npt.NDArray[Any], axes: str, calibration: _Calibration) -> dict[str, Any]:
    """Options of tifffile that choose the dialect and state the spacing in it."""
    z, y, x = calibration.spacing
    unit = calibration.unit
    wants_ome = ".ome." in path.name.lower()
    imagej_types = ("u1",) if "S" in axes else ("u1", "u2", "f4")
    of_columns = "Z" in axes and data.shape[axes.index("X")] == 1  # which tifffile writes as an ImageJ stack that has lost its slices
    if not wants_ome and not of_columns and data.dtype.str[1:] in imagej_types and data.nbytes < _LARGEST_IMAGEJ_BYTES:
        described = {"axes": axes, **({"spacing": z} if "Z" in axes and is_length(z) else {})}
        names = {"µm": "um", "in": "inch", "Å": "angstrom", None: "pixel"}
        return {"imagej": True, "metadata": described if calibration.density else {**described, "unit": names.get(unit, unit)}}
    if data.dtype.str[1:] in _OME_TYPES:
        sizes = {"X": x, "Y": y, **({"Z": z} if "Z" in axes and is_length(z) else {})}
        metadata: dict[str, Any] = {"axes": axes, "UUID": str(uuid.UUID(bytes=hashlib.md5(data.tobytes()).digest()))}
        if calibration.density is None:
            for axis, size in sizes.items():
                metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": unit or "pixel"}
        return {"ome": True, "metadata": metadata, **(_density_per_cm(calibration) if calibration.density is None else {})}
    if wants_ome:
        raise RefusedError(f"cannot hold values of type {data.dtype}; expected at most 32-bit integers, or a name that ends in .tif")
    return {"metadata": {"axes": axes, **({"spacing": z} if is_length(z) else {}), "unit": unit or "pixel"}}


def _density_per_cm(calibration: _Calibration) -> dict[str, Any]:
    """Options of tifffile that tell the spacing in a slice to programs which know nothing but TIFF itself."""
    if calibration.unit is None:
        return {"resolution": (1, 1), "resolutionunit": 1}
    *_, y, x = (length * MM_PER[calibration.unit] / MM_PER["cm"] for length in calibration.spacing)
    return {"resolution": (1 / x, 1 / y), "resolutionunit": 3}


def _ratio(value: Any) -> float:
    """A TIFF rational as a number; 0 where there is none."""
    return value[0] / value[1] if isinstance(value, tuple) and len(value) == 2 and value[1] else 0.0
