"""What several commands share: options, how their values are read, the progress bar, and how labels are written."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    import numpy.typing as npt

    from napari_apprentice.legend import Legend
    from napari_apprentice.types import Image

__all__ = [
    "DEVICES",
    "POLICIES",
    "add_device",
    "add_each",
    "add_time",
    "add_unit",
    "by_case",
    "check_names",
    "check_output",
    "check_texts",
    "count",
    "ious",
    "is_folder",
    "model_file",
    "names",
    "of_case",
    "orders",
    "progress_bar",
    "read_image",
    "remark",
    "seed",
    "threads",
    "write_labels",
]

DEVICES = ("auto", "cpu", "cuda", "mps")
_MOST_THREADS = 1024
UNITS = ("mm", "um", "nm")
_READ = (".jsonl", ".toml", ".safetensors", ".checkpoint")
POLICIES = "none, ia, sa, ia+sa, mi, pi, mi+pi, ia+pi, recall or practice"


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=DEVICES, default="auto", help="what computes (default: %(default)s)")


def add_each(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--each", action="store_true", help="write every object to a file of its own, named with its number")


def add_unit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--unit", choices=UNITS, help="unit of length of the whole table (default: um if any image has voxels finer than 10 µm, else mm)"
    )


def add_time(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--time", type=seed, metavar="T", help="which time point of a series, counted from 0")


def read_image(path: Path, *, time: int | None = None) -> Image:
    """Read an image; where nothing says how large its voxels are, that is said on stderr."""
    from napari_apprentice import files

    image = files.read(path, time=time)
    remark(files.unstated_spacing(image))
    return image


def remark(sentence: str) -> None:
    """Say on stderr what does not keep the work from being done; nothing where there is nothing to say."""
    if sentence:
        print(f"apprentice: {sentence}", file=sys.stderr)


def check_texts(*paths: Path | None, json: Path | None = None) -> None:
    """Refuse beforehand tables and pages that cannot be written, or would take the place of something else; None is one that nobody wants.

    Parameters
    ----------
    json : one that may be named as clicks are

    Raises
    ------
    WriteError : one is named as what the program reads, or as the names of a label file beside it; or as of `check_output`
    InputError : two are the same file
    """
    from napari_apprentice import files
    from napari_apprentice.legend import legend_path
    from napari_apprentice.types import InputError, WriteError

    wished = [path for path in (*paths, json) if path is not None]
    for path in wished:
        if path.name.lower().endswith((*files.READABLE, *_READ, *([".json"] if path != json else []))):
            such = ".csv" if path != json else ".json"
            raise WriteError(f"{path} was asked for, which is named as images, clicks or records are; expected a text file such as {such}")
        beside = sorted(path.parent.glob("*")) if path.suffix == ".tsv" else []
        if named := [each.name for each in beside if each.name.lower().endswith(files.READABLE) and legend_path(each).name == path.name]:
            raise WriteError(f"{path} was asked for, where the names of the objects in {named[0]!r} belong; expected another name")
    for path in wished:
        if [each.resolve() for each in wished].count(path.resolve()) > 1:
            raise InputError(f"{path} arrived for several files to write; expected a file for each")
    check_output(*wished)


def check_names(arguments: argparse.Namespace) -> None:
    """Refuse ``--out`` where some other table lies in the place of the names that are to be written beside the labels."""
    from napari_apprentice.legend import check_beside

    if not arguments.each:
        check_beside(arguments.out)


def write_labels(arguments: argparse.Namespace, labels: npt.NDArray[Any], image: Image, legend: Legend) -> str:
    """Write labels as ``--out`` and ``--each`` say, and what the objects are called beside them; a sentence about where they are."""
    import numpy as np

    from napari_apprentice import files
    from napari_apprentice.legend import Legend, write_beside

    if not arguments.each:
        path = files.write(arguments.out, labels, like=image)
        write_beside(path, legend)
        return f"Labels: {path}"
    paths = files.write_objects(arguments.out, labels, like=image)
    ids = [label for label in np.unique(np.asarray(labels)).tolist() if label]
    for path, label in zip(paths, ids, strict=True):
        own = Legend().naming(1, legend.names.get(label, ""), legend.color(label))  # in a file of its own every object is 1
        write_beside(path, own)
    return f"Labels: {', '.join(map(str, paths)) or 'none'}"


def check_output(*paths: Path | None) -> None:
    """Refuse files beforehand that could not be written at the end of long work, as far as that can be known.

    Raises
    ------
    WriteError : one of the paths is a folder, or nothing can be written where it lies
    """
    from napari_apprentice.types import WriteError

    for path in filter(None, paths):
        if os.path.isdir(path):
            raise WriteError(f"{path} is a folder; expected the name of a file")
        try:
            if path.exists() and not path.is_file():  # a pipe, say, beside which nothing is written
                continue
            TemporaryFile(dir=next(folder for folder in path.resolve().parents if folder.exists())).close()
        except OSError as error:
            raise WriteError(f"{path} cannot be written ({error.strerror}); expected free space and permission") from error


def count(text: str) -> int:
    return _from(1, text)


def threads(text: str) -> int:
    """More of them than this, and the process may end without a word."""
    if (number := count(text)) > _MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text!r} arrived; expected a whole number from 1 to {_MOST_THREADS}")
    return number


def seed(text: str) -> int:
    return _from(0, text)


def _from(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} arrived; expected a whole number from {least}")
    return int(text)


def model_file(text: str) -> Path:
    if not text.lower().endswith(".safetensors"):
        raise argparse.ArgumentTypeError(f"{text!r} arrived; expected a file whose name ends with .safetensors")
    return Path(text)


def names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def ious(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} arrived; expected IoUs such as 0.80,0.85,0.90") from None


def orders(text: str) -> tuple[Literal["sorted"] | int, ...]:
    try:
        return tuple("sorted" if part == "sorted" else seed(part) for part in names(text))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} arrived; expected sorted or a whole number from 0") from None


def by_case(folder: Path, *, labels: bool) -> dict[str, Path]:
    """The images or the label files of a folder, by their names without extension and ``_labels``.

    Of files named alike, as where labels lie beside their images, those with that ending are the labels.

    Raises
    ------
    ReadError : several files could be those of one case
    """
    from napari_apprentice import files
    from napari_apprentice.types import ReadError

    named: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.lower().endswith(files.READABLE) and not path.name.startswith("."):
            named.setdefault(files.stem(path).removesuffix("_labels"), []).append(path)
    found = {case: [path for path in paths if files.stem(path).endswith("_labels") == labels] or paths for case, paths in named.items()}
    for paths in found.values():
        if len(paths) > 1:
            kind = "label file" if labels else "image"
            raise ReadError(f"{' and '.join(repr(path.name) for path in paths)} in {folder} are of one case; expected one {kind} for each")
    return {case: path for case, (path,) in found.items()}


def of_case(found: dict[str, Path], case: str, time: int | None) -> Path | None:
    """The label file of a case, of those that `by_case` found; of a time point the one of that name, as `files.labels_path` gives it."""
    own = found.get(f"{case}_t{time}") if time is not None else None
    return own or found.get(case)


def is_folder(path: Path) -> bool:
    """Whether it is a folder of files, not a single image that is stored as a folder."""
    from napari_apprentice import files

    return path.is_dir() and not path.name.lower().endswith(files.READABLE)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar on stderr, where it does not get into what is printed."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield progress
