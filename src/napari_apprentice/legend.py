"""What the objects of a label map are called: classes with colours, of which every object is an instance of at most one.

A `Legend` is an immutable value. Beside a label file it is written as a table of tab-separated values, ``index``, ``name`` and
``color``, as BIDS has it for segmentations (Gorgolewski et al. 2016): one line for every named object, to be read by any program.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from napari_apprentice.texts import write_text
from napari_apprentice.types import LabelsError, ReadError, WriteError

__all__ = ["PALETTE", "Legend", "check_beside", "legend_path", "read_legend", "write_beside", "write_legend"]

PALETTE = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#999999")
"""Okabe and Ito's colours, told apart by colour-blind people; classes get them in turn."""

_LONGEST_NAME = 80
_COLUMNS = ("index", "name", "color")
_NO_COLOR = (None, "", "n/a")  # the last is BIDS for what is missing
_UNPRINTED = {"Cc", "Cs", "Zl", "Zp"}  # control characters, halves of surrogate pairs, and what ends a line or a paragraph
_COLOR = re.compile(r"#[0-9a-f]{6}")


@dataclass(frozen=True)
class Legend:
    """Names of objects and colours of classes.

    Attributes
    ----------
    names : id of the object -> name of its class
    colors : name of the class -> "#rrggbb"; a class keeps its colour when its last object goes
    """

    names: Mapping[int, str] = field(default_factory=dict)
    colors: Mapping[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> dict[str, tuple[int, ...]]:
        """Name of every class -> ids of its objects, ascending; classes in the order in which they came up."""
        members: dict[str, list[int]] = {name: [] for name in self.colors}
        for label in sorted(self.names):
            members[self.names[label]].append(label)
        return {name: tuple(labels) for name, labels in members.items()}

    def color(self, label: int) -> str | None:
        """Of an object's class; None if it has none."""
        name = self.names.get(label)
        return None if name is None else self.colors[name]

    def naming(self, label: int, name: str, color: str | None = None) -> Legend:
        """The same with an object in a class, or in none if ``name`` is empty; ``color`` becomes that of the whole class.

        Raises
        ------
        LabelsError : the name is not one line of at most 80 characters, or the colour is not like "#e69f00"
        """
        if not isinstance(name, str) or len(name := _spaced(name)) > _LONGEST_NAME or not _UNPRINTED.isdisjoint(_categories(name)):
            raise LabelsError(f"the class name {name!r} arrived; expected one line of at most {_LONGEST_NAME} characters")
        if color is not None and not (isinstance(color, str) and _COLOR.fullmatch(color := color.lower())):
            raise LabelsError(f"the colour {color!r} arrived; expected one like {PALETTE[0]!r}")
        if not name:
            return self.without(label)
        colors = {**self.colors, name: color or self.colors.get(name) or self._next_color()}
        return Legend({**self.names, label: name}, colors)

    def without(self, label: int) -> Legend:
        """The same with an object in no class."""
        return Legend({i: name for i, name in self.names.items() if i != label}, self.colors)

    def copying(self, label: int, to: int) -> Legend:
        """The same with object ``to`` in the class of ``label``, or in none."""
        names = self.without(to).names
        return Legend({**names, to: self.names[label]} if label in self.names else names, self.colors)

    def _next_color(self) -> str:
        """The colour that the fewest classes have."""
        taken = list(self.colors.values())
        return min(PALETTE, key=taken.count)


def _spaced(name: str) -> str:
    """Without what a word processor writes instead of spaces, which nobody sees, and without spaces around it."""
    return "".join(" " if unicodedata.category(letter) == "Zs" else letter for letter in name).strip()


def _categories(name: str) -> set[str]:
    return {unicodedata.category(letter) for letter in name}


def legend_path(labels: Path | str) -> Path:
    """Where the legend of a label file lies: ``scan_labels.nii.gz`` has ``scan_labels.tsv``."""
    labels = Path(labels)
    stem = re.sub(r"\.ome$", "", Path(re.sub(r"\.gz$", "", labels.name, flags=re.IGNORECASE)).stem, flags=re.IGNORECASE)
    return labels.with_name(f"{stem}.tsv")


def check_beside(labels: Path | str) -> None:
    """Refuse beforehand to write names beside a label file where some other table lies.

    Raises
    ------
    WriteError : what is there is no legend
    """
    _known(legend_path(labels))


def write_beside(labels: Path | str, legend: Legend) -> None:
    """Write the legend of a label file; one without names only over older names, of objects that the file no longer calls so.

    Raises
    ------
    WriteError : it cannot be written
    """
    path = legend_path(labels)
    if not legend.names:
        try:
            if not read_legend(path).names:
                return
        except ReadError:  # there is none, or some other table is called so
            return
    write_legend(path, legend)


def write_legend(path: Path | str, legend: Legend) -> Path:
    """Write a legend; the old file stays whole until the new one is complete, and what else it says of the same objects stays.

    Raises
    ------
    WriteError : it cannot be written, or what is there is no legend
    """
    path, text = Path(path), io.StringIO()
    columns, known = _known(path)
    others = {_number(row): {key: value for key, value in row.items() if key and value} for row in known}
    writer = csv.DictWriter(text, [*_COLUMNS, *(c for c in columns if c not in _COLUMNS)], delimiter="\t", lineterminator="\n")
    writer.writeheader()
    if 0 in others:  # the background, which some programs list
        writer.writerow(others[0])
    for label in sorted(legend.names):
        said = dict(zip(_COLUMNS, (label, legend.names[label], legend.color(label)), strict=True))
        writer.writerow(others.get(label, {}) | said)
    write_text(path, text.getvalue())
    return path


def _known(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of the legend that is to be replaced; none if there is none."""
    try:
        return _rows(path)
    except FileNotFoundError:
        return [], []
    except ReadError as error:
        raise WriteError(f"the names of the objects cannot be written to {path}, which is something else: {error}") from error


def _number(row: Mapping[str, str]) -> int | None:
    """Of the object that a row is about."""
    try:
        return int(row["index"])
    except (TypeError, ValueError):
        return None


def _rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a legend; FileNotFoundError if there is none."""
    try:
        table = csv.DictReader(path.read_text("utf-8-sig").splitlines(), delimiter="\t")
        rows, columns = list(table), list(table.fieldnames or ())
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ReadError(f"the names in {path} cannot be read ({error}); expected a table with the columns index and name") from error
    if rows and not {"index", "name"} <= set(columns):
        raise ReadError(f"{path} has the columns {', '.join(columns)}; expected index and name, separated by tabs")
    return columns, rows


def read_legend(path: Path | str) -> Legend:
    """The inverse of `write_legend`; without colours in the file, classes get those of the `PALETTE`.

    Raises
    ------
    ReadError : the file is not there, or is no such table
    """
    path, legend = Path(path), Legend()
    try:
        _, rows = _rows(path)
    except FileNotFoundError as error:
        raise ReadError(f"the names in {path} cannot be read ({error}); expected a table with the columns index and name") from error
    met: set[int] = set()
    for number, row in enumerate(rows, start=2):
        try:
            if (label := int(row["index"])) < 0:
                raise ValueError
            if label in met:
                raise ReadError(f"line {number} of {path} names {label} again; expected one line for every object")
            met.add(label)
            if label:  # 0 is background, which some programs list
                legend = legend.naming(label, row["name"], None if row.get("color") in _NO_COLOR else row["color"])
        except LabelsError as error:
            raise ReadError(f"line {number} of {path} cannot be used: {error}") from error
        except (TypeError, ValueError) as error:
            found = ", ".join(repr(row[column]) for column in ("index", "name"))
            raise ReadError(f"line {number} of {path} says {found}; expected the number of an object, and what it is called") from error
    return legend
