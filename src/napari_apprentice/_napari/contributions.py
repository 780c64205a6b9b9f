"""Readers, writers and sample data, which napari waits for in its main thread: whatever takes time is done aside."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from napari.layers import Labels
from napari.utils.notifications import show_info, show_warning

from napari_apprentice import files
from napari_apprentice._napari.answers import CalledOffError, Cancellable
from napari_apprentice._napari.aside import aside
from napari_apprentice._napari.placement import LEGEND_KEY, METADATA_KEY, SERIES_KEY, layer_arguments, standing_image
from napari_apprentice._napari.saver import NOT_SAVED
from napari_apprentice.blocks import BlockArray
from napari_apprentice.lazy import LazyArray
from napari_apprentice.legend import legend_path, read_legend
from napari_apprentice.types import Image, ReadError, WriteError

__all__ = ["LayerTuple", "em_sample", "fundus_sample", "get_reader", "image_layer", "mri_sample", "write_labels"]

LayerTuple = tuple[Any, dict[str, Any], str]

_Remark = tuple[Callable[[str], None], str]
"""What to tell the user when the file has been read, and how."""

_LABELS_ENDING = "_labels"
_SAMPLES_PER_AXIS = 128
_EM_SAMPLE = "em_stack.ome.tif"


def get_reader(path: str | Sequence[str]) -> Callable[[Any], list[LayerTuple]] | None:
    """A reader of ``path``, or None if we cannot use what is in it: a stack of seven channels, say, or half a file.

    Only the content tells, so the file is read here already. Why a file is not claimed is told here as well, since what
    napari says of a file that nobody claims does not tell the user what is wrong with it.
    """
    if not isinstance(path, str):
        return None
    remarks: list[_Remark] = []
    try:
        layer = aside(lambda: _read(Path(path), remarks))
    except ReadError as error:
        show_warning(f"{error}.")
        return None
    for tell, sentence in remarks:
        tell(sentence)
    return lambda _: [layer]


def image_layer(image: Image) -> LayerTuple:
    """The napari image layer of an image; the image itself goes along in the metadata, so nothing of it is lost.

    What stays on the disk is shown at the resolution that the view needs, if it has several.
    """
    if isinstance(image.data, LazyArray):
        return _lazy_layer(image)
    if image.data.shape[0] == 1:
        return image.data[0], {**layer_arguments(image), "contrast_limits": _contrast(image.data[0])}, "image"
    return _displayable(np.moveaxis(image.data, 0, -1)), {**layer_arguments(image), "rgb": True}, "image"


def _lazy_layer(image: Image) -> LayerTuple:
    grey = image.data.shape[0] == 1
    levels = [level.at(0, 0) if grey else level.transposed((*range(1, level.ndim), 0)) for level in (image.data, *image.coarser)]
    several = len(levels) > 1
    arguments = {**layer_arguments(image), "multiscale": several, **({"contrast_limits": _contrast(levels[-1])} if grey else {"rgb": True})}
    return levels if several else levels[0], arguments, "image"


def write_labels(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """Write a labels layer. One that belongs to an image of ours gets that image's geometry, any other its own place.

    Raises
    ------
    WriteError, LabelsError : as `files.write`
    WriteError : the user called it off
    """
    like = attributes.get("metadata", {}).get(METADATA_KEY)
    if not isinstance(data, BlockArray):  # a copy: an answer of our worker may come meanwhile, and must not be half in the file
        data = data.copy() if isinstance(data, np.ndarray) else aside(lambda: np.asarray(data))
    if not isinstance(like, Image) or like.shape != tuple(data.shape):
        like = _image_like(data, attributes)
    way, name = Cancellable(), Path(path).name
    try:
        written = aside(lambda: files.write(path, data, like=like, go_on=way.go_on), words=f"Saving {name} …", cancel=way.cancel)
    except CalledOffError:
        raise WriteError(f"saving {name} was called off: {NOT_SAVED}") from None
    return [str(written)]


def fundus_sample() -> list[LayerTuple]:
    """The fundus photograph that comes with scikit-image (public domain)."""
    return aside(_fundus)


def _fundus() -> list[LayerTuple]:
    from skimage.data import retina

    return [image_layer(Image(np.moveaxis(retina(), -1, 0), name="fundus"))]


def mri_sample() -> list[LayerTuple]:
    """The first time point of the 2 × 2 × 2.2 mm, oblique head scan that comes with nibabel."""
    return aside(_mri)


def _mri() -> list[LayerTuple]:
    from nibabel.testing import data_path

    image = files.read(Path(data_path) / "example4d.nii.gz", time=0)
    # Labels are not to be saved into nibabel's own folder.
    return [image_layer(replace(image, path=None, name="MRI"))]


def em_sample() -> list[LayerTuple]:
    """A generated stack that looks like an electron micrograph of cells."""
    return aside(lambda: [image_layer(replace(files.read(_em_path()), path=None, name="EM stack"))])


def _read(path: Path, remarks: list[_Remark]) -> LayerTuple:
    """The layer of a file; what there is to say of it goes into ``remarks``."""
    if _says_labels(path):
        try:
            return files.read_labels(path), _with_legend(layer_arguments(files.read(path)), legend_path(path), remarks), "labels"
        except ReadError:
            pass  # an image that happens to be called so
    try:
        return image_layer(files.read(path))
    except ReadError:
        first = files.read(path, time=0)  # raises the same, unless what was wrong is that there are several
    count = files.time_points(path)
    opened = f"{path.name} is a series of {count} time points; the first one was opened. The Apprentice widget opens others."
    remarks.append((show_info, opened))
    data, arguments, kind = image_layer(first)
    arguments["metadata"][SERIES_KEY] = (count, 0)
    return data, arguments, kind


def _with_legend(arguments: dict[str, Any], path: Path, remarks: list[_Remark]) -> dict[str, Any]:
    """The arguments of a labels layer with the names of its objects, if there are any beside the file."""
    if not path.exists():
        return arguments
    try:
        legend = read_legend(path)
    except ReadError as error:
        remarks.append((show_warning, f"{error}."))  # some other table that happens to be called so
        return arguments
    named = {"index": list(legend.names), "class": list(legend.names.values())}
    return {**arguments, "features": named, "metadata": {**arguments["metadata"], LEGEND_KEY: legend}}


def _says_labels(path: Path) -> bool:
    return any(path.name.lower().endswith(_LABELS_ENDING + extension) for extension in files.READABLE)


def _contrast(values: npt.NDArray[Any] | LazyArray) -> tuple[float, float] | None:
    """Display range without the brightest few voxels, which would leave all others in the dark; None leaves it to napari.

    Of what stays on the disk only the middle slice is looked at.
    """
    if isinstance(values, LazyArray):
        values = values[values.shape[0] // 2] if values.ndim == 3 else values[...]
        return _contrast(values) or (0.0, 255.0 if values.dtype == np.uint8 else max(float(values.max()), 1.0))
    if values.dtype == np.uint8 or values.dtype == bool:
        return None
    sample = values[tuple(slice(None, None, max(size // _SAMPLES_PER_AXIS, 1)) for size in values.shape)]
    finite = sample[np.isfinite(sample)]
    low, high = np.percentile(finite, (0.1, 99.9)) if finite.size else (0.0, 0.0)
    return (float(low), float(high)) if low < high else None


def _displayable(colours: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(*S, 3) colours as napari shows them: uint8, or floats from 0 to 1."""
    if colours.dtype == np.uint8:
        return colours
    low, high = float(np.nanmin(colours)), float(np.nanmax(colours))
    width = max(high - low, float(np.finfo(np.float32).tiny))
    return ((colours - low) / width).astype(np.float32)


def _image_like(data: Any, attributes: dict[str, Any]) -> Image:
    """An image that stands where a labels layer with these attributes stands."""
    place = ("scale", "translate", "rotate", "shear", "affine", "units", "axis_labels")
    layer = Labels(data, **{name: attributes[name] for name in place if name in attributes})
    return standing_image(layer)


def _em_path() -> Path:
    return Path(str(importlib.resources.files("napari_apprentice"))) / "sample_data" / _EM_SAMPLE
