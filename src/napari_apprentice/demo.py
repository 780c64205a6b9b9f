"""What `apprentice demo` shows: a window on a real head scan or, without a screen, a simulated user at work on generated samples.

The simulated user does what a person does in the window: click until the mask is good, accept, go on to the next slice of the object.
The model learns from every accepted slice, so that later slices need fewer clicks.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image as Picture
from PIL import ImageDraw

from napari_apprentice import assembly, files
from napari_apprentice.session import Session
from napari_apprentice.simulation import CentreRobot
from napari_apprentice.types import Click, Image, ImageSlice, Plane, ReadError, WriteError

__all__ = ["Results", "SliceResult", "open_window", "run_headless", "samples", "table", "why_no_window"]

Mask = npt.NDArray[np.bool_]

CONTENT_AT_IOU = 0.9
MAX_CLICKS = 6
"""The simulated user accepts a slice at this IoU, or after so many clicks."""

OBJECTS_PER_SAMPLE = 2
SLICES_PER_OBJECT = 2

_SMALLEST_SIDE_PX = 480
_MASK_COLOUR = (255, 190, 40)
_TRUTH_COLOUR = (80, 220, 255)
_CLICK_COLOURS = {True: (60, 220, 80), False: (240, 60, 60)}


@dataclass(frozen=True)
class SliceResult:
    """What it took to segment one object in one slice: IoU after the first and after the last click."""

    sample: str
    object: int
    slice: int
    clicks: int
    iou_first: float
    iou: float


@dataclass(frozen=True)
class Results:
    """Of a headless run: a line for every slice, and what was written, with a name for people."""

    slices: tuple[SliceResult, ...]
    files: tuple[tuple[str, Path], ...]


class _Task(NamedTuple):
    """One object in one slice: of a volume across axis 0, of a picture the picture itself."""

    label: int
    plane: Plane

    def cut(self, labels: npt.NDArray[Any]) -> Mask:
        """(H, W) where the object lies in ``labels``."""
        return np.asarray((labels if labels.ndim == 2 else labels[self.plane.index]) == self.label)


def why_no_window() -> str:
    """The reason why no window can be opened; "" if one can."""
    if importlib.util.find_spec("napari") is None or importlib.util.find_spec("qtpy") is None:
        return "napari is not installed (pip install 'napari-apprentice[all]')"
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "this machine has no screen"
    return ""


def open_window() -> None:
    """Open napari with the widget on a real, anisotropic head scan (it comes with nibabel); returns when the window is closed."""
    from nibabel.testing import data_path

    from napari_apprentice._napari.launch import launch

    image = files.read(Path(data_path) / "example4d.nii.gz", time=0)
    # Labels are not to be saved into nibabel's own folder.
    launch(replace(image, path=None, name="MRI"), upright=True)


def samples() -> tuple[tuple[Path, Path], ...]:
    """The generated volumes that come with the program, each with its truth.

    Raises
    ------
    ReadError : the installation lacks them
    """
    folder = Path(str(resources.files("napari_apprentice"))) / "sample_data"
    found = [(path, files.labels_path(Image(np.zeros((1, 1, 1)), path=path))) for path in sorted(folder.glob("*"))]
    pairs = tuple((path, truth) for path, truth in found if path.name.endswith(files.READABLE) and truth.exists())
    if not pairs:
        raise ReadError(f"{folder} holds no sample with its truth; expected the ones that the program was installed with")
    return pairs


def run_headless(
    out: Path, *, on_start: Callable[[int], None] = lambda total: None, on_slice: Callable[[], None] = lambda: None
) -> Results:
    """Let a simulated user segment the largest objects of every sample, in some of their slices.

    Parameters
    ----------
    out : folder for labels, table and pictures; made if need be
    on_start, on_slice : told the number of slices at the beginning, and called after each: for a progress bar

    Raises
    ------
    ReadError : the samples are not there
    WriteError : the results cannot be written
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_written(out, error) from error
    work = [(files.read(path), files.read_labels(truth)) for path, truth in samples()]
    plans = [tuple(_plan(truth)) for _, truth in work]
    on_start(sum(map(len, plans)))
    slices: list[SliceResult] = []
    written: list[tuple[str, Path]] = []
    for (image, truth), plan in zip(work, plans, strict=True):
        session = assembly.open_session(image)
        for task in plan:
            clicks, result = _segment(session, truth, task)
            slices.append(result)
            picture = _draw(image.slice(task.plane), task.cut(session.labels), task.cut(truth), clicks)
            _save(out / f"{image.name}_object{task.label}_slice{task.plane.index:03d}.png", picture)
            on_slice()
        target = out / files.labels_path(image).name
        written.append((f"Labels of {image.name}", files.write(target, session.labels, like=image)))
    written.append(("Table", _write_csv(out / "clicks.csv", slices)))
    written.append(("Pictures (mask yellow, truth blue, clicks green and red)", out / "*.png"))
    return Results(tuple(slices), tuple(written))


def table(slices: Sequence[SliceResult]) -> str:
    """The lines as text with aligned columns, and what they say in one sentence."""
    heads = ["sample", "object", "slice", "clicks", "IoU@1", "IoU"]
    rows = [heads] + [[s.sample, str(s.object), str(s.slice), str(s.clicks), f"{s.iou_first:.3f}", f"{s.iou:.3f}"] for s in slices]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    clicks, iou = np.mean([s.clicks for s in slices]), np.mean([s.iou for s in slices])
    return "\n".join([*lines, f"{len(slices)} slices, {clicks:.1f} clicks a slice, mean IoU {iou:.3f}."])


def _plan(truth: npt.NDArray[Any]) -> Iterator[_Task]:
    """Slices spread over the middle of the largest objects, object by object."""
    volume = truth if truth.ndim == 3 else truth[None]
    sizes = np.bincount(volume.ravel())
    sizes[0] = 0
    for label in np.argsort(-sizes, kind="stable")[:OBJECTS_PER_SAMPLE]:
        if sizes[label]:
            areas = (volume == label).sum(axis=(1, 2))
            there = np.flatnonzero(areas >= areas.max() / 3)
            chosen = np.unique(np.linspace(0, len(there) - 1, min(SLICES_PER_OBJECT, len(there))).round().astype(int))
            yield from (_Task(int(label), Plane(0, int(there[i]))) for i in chosen)


def _segment(session: Session, truth: npt.NDArray[Any], task: _Task) -> tuple[tuple[Click, ...], SliceResult]:
    """Click until content, accept, and let the model learn; the 2D clicks and what came of them."""
    session.select(task.label)
    goal = task.cut(truth)
    robot = CentreRobot()
    clicks: tuple[Click, ...] = ()
    ious: list[float] = []
    mask = np.zeros_like(goal)
    while len(clicks) < MAX_CLICKS and (not ious or ious[-1] < CONTENT_AT_IOU):
        click = robot.click(goal, mask, clicks)
        if click is None:
            break
        clicks = (*clicks, click)
        session.add(Click((task.plane.index, *click.voxel) if truth.ndim == 3 else click.voxel, click.positive))
        mask = task.cut(session.labels)
        ious.append(float((mask & goal).sum() / (mask | goal).sum()))
    session.accept()
    return clicks, SliceResult(session.image.name, task.label, task.plane.index, len(clicks), ious[0], ious[-1])


def _draw(image_slice: ImageSlice, mask: Mask, truth: Mask, clicks: Sequence[Click]) -> Picture.Image:
    """The slice in its true proportions with mask, outline of the truth, and clicks."""
    grey = image_slice.data.astype(np.float32)
    low, high = np.percentile(grey, (0.5, 99.5))
    grey = np.clip((grey - low) / max(high - low, 1e-6), 0, 1) * 255
    colours = np.broadcast_to(grey, (3, *grey.shape[1:])).transpose(1, 2, 0).copy()
    colours[mask] = 0.6 * colours[mask] + 0.4 * np.array(_MASK_COLOUR)
    extent = np.array(image_slice.shape) * np.array(image_slice.spacing)
    height, width = (max(round(float(side)), 1) for side in extent / extent.min() * _SMALLEST_SIDE_PX)
    picture = Picture.fromarray(colours.round().astype(np.uint8)).resize((width, height), Picture.Resampling.BICUBIC)
    large = np.asarray(Picture.fromarray(truth.astype(np.uint8) * 255).resize((width, height), Picture.Resampling.NEAREST)) > 0
    inner = large.copy()
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        inner &= np.roll(large, step, axis)
    picture.paste(_TRUTH_COLOUR, mask=Picture.fromarray((large & ~inner).astype(np.uint8) * 255))
    pen = ImageDraw.Draw(picture)
    for click in clicks:
        y, x = ((voxel + 0.5) * side / size for voxel, side, size in zip(click.voxel, (height, width), image_slice.shape, strict=True))
        pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=_CLICK_COLOURS[click.positive], outline=(0, 0, 0))
    return picture


def _save(path: Path, picture: Picture.Image) -> None:
    try:
        picture.save(path)
    except OSError as error:
        raise _not_written(path, error) from error


def _write_csv(path: Path, slices: Sequence[SliceResult]) -> Path:
    text = StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(SliceResult)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(one) for one in slices)
    try:
        path.write_text(text.getvalue(), encoding="utf-8")
    except OSError as error:
        raise _not_written(path, error) from error
    return path


def _not_written(path: Path, error: OSError) -> WriteError:
    return WriteError(f"{path} cannot be written ({error.strerror}); expected a folder with room that can be written to")
