"""What ``project.toml`` says of a project: what holds for all of its cases, and which these are."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from napari_apprentice.cohorts import Cohort
from napari_apprentice.legend import Legend
from napari_apprentice.texts import is_utf8, write_text
from napari_apprentice.types import PROJECT_POLICY, InputError, ReadError

__all__ = ["PROJECT_NAME", "Case", "Settings", "add_cases", "place_of", "read_project_file", "write_project_file"]

PROJECT_NAME = "project.toml"
"""What the file is called in the folder of a project."""


@dataclass(frozen=True)
class Settings:
    """What holds for all cases of a project.

    Attributes
    ----------
    study : name of the one model that all cases teach and use, see `cohorts`
    policy : how it learns, see `adaptation`
    weights : the weights file that it is taught on top of; "" for the one that comes with the program
    axis : of volumes, the axis that the slices lie across along which objects are carried
    propagate : whether objects of volumes are carried through the slices
    clicks : click file for all cases without one of their own; "" for none. Relative paths are relative to the project's folder
    names : what objects are called, by id
    """

    study: str
    policy: str = PROJECT_POLICY
    weights: str = ""
    axis: int = 0
    propagate: bool = True
    clicks: str = ""
    names: Mapping[int, str] = field(default_factory=dict)

    @property
    def legend(self) -> Legend:
        """The names, with colours."""
        legend = Legend()
        for label, name in self.names.items():
            legend = legend.naming(label, name)
        return legend

    def __post_init__(self) -> None:
        Cohort(self.study, "")  # refuses what cannot be a name
        if self.axis not in (0, 1, 2):
            raise InputError(f"axis {self.axis} arrived for a project; expected 0, 1 or 2")
        for path in (self.weights, self.clicks):
            if not is_utf8(path):
                raise InputError(f"the file {path!r} arrived for a project; expected a name in UTF-8, as {PROJECT_NAME} has to be")


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes
    ----------
    name : unique in the project, and fit for the name of a folder
    image : where the image lies
    clicks : click file of its own; None if it has none
    """

    name: str
    image: Path
    clicks: Path | None = None


def place_of(path: Path) -> Path:
    """A path under its own name in the folder that it really lies in: ``..`` after a link leads to where the system goes."""
    path = path.absolute()
    return Path(os.path.realpath(path.parent)) / path.name


def read_project_file(path: Path) -> tuple[Settings, tuple[Case, ...]]:
    """What a project's file says.

    Raises
    ------
    ReadError : there is none, or it says something that cannot be used
    """
    try:
        content = tomllib.loads(path.read_text("utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ReadError(f"there is no project in {path.parent}; expected a folder with {PROJECT_NAME}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ReadError(f"the project {path} cannot be read ({error}); expected TOML with a study and cases") from error
    try:
        settings = _settings(content)
        records = content.get("case", [])
        if not (isinstance(records, list) and all(isinstance(record, dict) for record in records)):
            raise ValueError(f"case = {records!r}, which is no list of [[case]]")
        cases = tuple(_case(record, path.parent) for record in records)
    except (KeyError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ReadError(f"the project {path} cannot be used ({what}); expected a study, and cases with a name and an image") from error
    names = [case.name.lower() for case in cases]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ReadError(f"the project {path} names the case {twice[0]!r} twice; expected a name of its own for each")
    return settings, cases


def write_project_file(path: Path, settings: Settings) -> None:
    """Begin a project's file; it has no cases so far.

    Raises
    ------
    WriteError : it cannot be written; the old one stays
    """
    plain = {key: value for key, value in asdict(settings).items() if key != "names" and value != ""}
    lines = ["# A project of napari-apprentice. It may be edited; where its cases stand is in cases/.", ""]
    lines += [f"{key} = {_toml(value)}" for key, value in plain.items()]
    if settings.names:
        lines += ["", "[names]", *(f"{label} = {_toml(name)}" for label, name in sorted(settings.names.items()))]
    write_text(path, "\n".join(lines) + "\n")


def add_cases(path: Path, cases: Iterable[Case]) -> None:
    """Write more cases at the end of a project's file, whose text stays as people wrote it; paths are relative to it where there is a way.

    Raises
    ------
    ReadError : it lists its cases in a way that cannot be gone on with
    WriteError : it cannot be written; the old one stays
    """
    text, lines = path.read_text("utf-8-sig"), [""]
    for case in cases:
        lines += ["", "[[case]]", f"name = {_toml(case.name)}", f"image = {_toml(_relative(case.image, path.parent))}"]
        lines += [f"clicks = {_toml(_relative(case.clicks, path.parent))}"] if case.clicks else []
    longer = text.rstrip("\n") + "\n".join(lines) + "\n"
    try:
        tomllib.loads(longer)
    except ValueError as error:
        raise ReadError(f"no case can be added to {path}, which lists its cases in one line; expected a [[case]] for each") from error
    write_text(path, longer)


def _settings(content: Mapping[str, Any]) -> Settings:
    known = {key: value for key, value in content.items() if key != "case"}
    names = known.pop("names", {})
    if not isinstance(names, dict):
        raise ValueError(f"names = {names!r}")
    for label, name in names.items():
        if not (label.isdecimal() and int(label) and isinstance(name, str)):
            raise ValueError(f"{label} = {name!r} among the names")
    _check_kinds(known, _KINDS)
    settings = Settings(known.pop("study"), **known, names={int(label): name for label, name in names.items()})
    settings.legend  # noqa: B018 (names that cannot be one are told now)
    return settings


_KINDS = {"axis": int, "propagate": bool, **dict.fromkeys(("study", "policy", "weights", "clicks"), str)}


def _case(record: Mapping[str, Any], folder: Path) -> Case:
    _check_kinds(record, dict.fromkeys(("name", "image", "clicks"), str))
    name, image, clicks = record["name"], record["image"], record.get("clicks")
    if not re.fullmatch(r"\w([\w .-]*[\w-])?", name):
        raise ValueError(f"case {name!r}")
    return Case(name, _absolute(folder, image), None if clicks is None else _absolute(folder, clicks))


def _check_kinds(record: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    for key, value in record.items():
        if type(value) is not kinds.get(key):
            raise ValueError(f"{key} = {value!r}")


def _absolute(folder: Path, path: str) -> Path:
    """From where the folder really is; from how it was reached, as this was once meant, where the file is only there."""
    place, plain = place_of(Path(os.path.realpath(folder)) / path), Path(os.path.normpath(folder / path))
    return place if place == plain or os.path.exists(place) or not os.path.exists(plain) else place_of(plain)


def _toml(value: Any) -> str:
    """A text, number or truth value in TOML, which takes JSON's but for one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _relative(path: Path, folder: Path) -> str:
    with suppress(ValueError):  # another drive
        return Path(os.path.relpath(path, os.path.realpath(folder))).as_posix()
    return path.as_posix()
