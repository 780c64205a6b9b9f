"""Projects: a folder with many cases of one study, where each of them stands, and where its results lie.

::

    project.toml             what the project is about, and its cases; made to be read and edited by people
    cases/<name>/state.json  where a case stands; cases/<name>/session-... is the record of the work on it (see `journal`)
    labels/, reports/        the results: a label file and a report for every case that is done
    models/                  what the study had learnt when a run began

A case is *waiting*; *begun*, by hand or by a run; *done*; *failed*, with the reason; *missing*: its image is not there; or *damaged*: its
state cannot be read. These two are never written down: a case whose image comes back is what it was.

There is one small state file for every case, replaced in one step, and whoever works on a case holds a lock on that case alone, which
the operating system lets go of when the process dies. Any number of processes may therefore work on one project at the same time, on
several machines too where these share a file system with locks.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from napari_apprentice import files
from napari_apprentice.locks import FolderLock
from napari_apprentice.project_file import PROJECT_NAME, Case, Settings, add_cases, place_of, read_project_file, write_project_file
from napari_apprentice.texts import is_utf8, write_text
from napari_apprentice.types import Image, InputError, InUseError, ReadError, WriteError

__all__ = ["STATES", "Project", "Status", "create_project", "open_project", "usable"]

STATES = ("waiting", "begun", "done", "failed", "missing", "damaged")

_LOOKED_S, _CHANGED_S = 1.0, 10.0  # so long another process may hold a case to look at it, and the project to change its list


@dataclass(frozen=True)
class Status:
    """Where a case stands.

    Attributes
    ----------
    state : one of `STATES`
    reason : one sentence, where there is something to say
    by : "hand" or "run": who began it; "" for nobody
    session : folder of the work on it, within that of the case; "" if there is none
    labels : its label file, within the folder of the project; "" if there is none
    expected_error : 1 - IoU that is expected, from 0 to 1; NaN where nobody estimated it
    written : digests of the label file and its names that the project wrote, or was about to write, with spaces between them; "" if it
        wrote none, or did so before this was written down
    time : of the last change, ISO 8601 in UTC
    """

    state: str = "waiting"
    reason: str = ""
    by: str = ""
    session: str = ""
    labels: str = ""
    expected_error: float = math.nan
    written: str = ""
    time: str = ""


@dataclass(frozen=True)
class Project:
    """A project on the disk. The value holds what ``project.toml`` said; the states of cases are read whenever they are asked for.

    Attributes
    ----------
    folder : absolute
    settings, cases : see there; cases in the order of the file
    """

    folder: Path
    settings: Settings
    cases: tuple[Case, ...] = ()

    def __getitem__(self, name: str) -> Case:
        for case in self.cases:
            if case.name == name:
                return case
        names = ", ".join(case.name for case in self.cases[:8]) + (", ..." if len(self.cases) > 8 else "")
        raise InputError(f"the project {self.folder.name!r} has no case {name!r}; expected one of {names or '(it has none)'}")

    # --- places ---

    def case_folder(self, name: str) -> Path:
        """Where what is known of a case lies."""
        return self.folder / "cases" / name

    def session_folder(self, name: str, session: str) -> Path:
        """Where the record of the work on a case lies."""
        return self.case_folder(name) / session

    def labels_path(self, name: str, image: Image) -> Path:
        """Where the labels of a case go: in the format of its image, or one that holds labels."""
        beside = files.labels_path(image).name
        return self.folder / "labels" / f"{name}_labels{beside[beside.rindex('_labels') + len('_labels') :]}"

    def report_path(self, name: str) -> Path:
        """Where its report goes."""
        return self.folder / "reports" / f"{name}.json"

    def clicks_of(self, name: str) -> Path | None:
        """The click file of a case, its own or the one for all."""
        case = self[name]
        return case.clicks or (self.folder / self.settings.clicks if self.settings.clicks else None)

    # --- states ---

    def status(self, name: str) -> Status:
        """Where a case stands; "missing" if it is not done and its image is not there, "damaged" if its state cannot be read."""
        image = self[name].image
        try:
            known = self.stored(name)
        except ReadError as error:
            return Status("damaged", str(error))
        if known.state != "done" and not image.exists():
            return replace(known, state="missing", reason=f"its image {image} is not there; expected it where it was, or another path")
        return known

    def stored(self, name: str) -> Status:
        """Where a case stood when that was last written down.

        Raises
        ------
        ReadError : the state file is damaged
        """
        path = self.case_folder(name) / "state.json"
        try:
            record = json.loads(path.read_text("utf-8"))
            known = Status(**{f.name: record[f.name] for f in fields(Status) if record.get(f.name) is not None})
            for field in fields(Status):
                if not isinstance(value := getattr(known, field.name), float | int if field.name == "expected_error" else str):
                    raise ValueError(f"{field.name} {value!r}")
            if known.state not in STATES:
                raise ValueError(f"state {known.state!r}")
        except FileNotFoundError:
            return Status()
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ReadError(
                f"the state of case {name!r} in {path} is damaged ({error}); expected one that was written by this project: without that "
                f"file the case waits again (the sessions beside it stay, and can be taken over)"
            ) from error
        return known

    def set_status(self, name: str, status: Status) -> Status:
        """Write down where a case stands: whole, or as it was before. Whoever does so holds the case.

        Raises
        ------
        WriteError : it cannot be written
        """
        self[name]
        status = replace(status, time=datetime.now(UTC).isoformat(timespec="seconds"))
        record = {key: value for key, value in asdict(status).items() if value == value}
        write_text(self.case_folder(name) / "state.json", json.dumps(record, indent=1) + "\n")
        return status

    @contextmanager
    def held(self, name: str, wait_s: float = _LOOKED_S) -> Iterator[Status]:
        """Work on a case as long as this context lasts; gives where it stands.

        Parameters
        ----------
        wait_s : for another process that only looks at it

        Raises
        ------
        InUseError : another process, or another thread, works on it
        WriteError : the folder of the case cannot be made
        ReadError : where it stands cannot be read
        """
        with _locked(self.case_folder(self[name].name), wait_s):
            status = self.status(name)
            if status.state == "damaged":
                raise ReadError(status.reason)
            yield status

    def next_case(self, by: Literal["order", "error"] = "order") -> Case | None:
        """The case to look at next; None if there is none.

        Parameters
        ----------
        by : "order": the first that is waiting, failed, or begun by hand. "error": of those that a run has done, the one with the largest
            expected error; cases that failed come before them
        """
        found = [(case, self.status(case.name)) for case in self.cases]
        if by == "order":
            return next((case for case, status in found if status.state in ("waiting", "failed") or _by_hand(status)), None)
        unseen = [(case, status) for case, status in found if status.state == "failed" or (status.state, status.by) == ("done", "run")]
        return max(unseen, key=lambda pair: _urgency(pair[1]))[0] if unseen else None

    # --- the list of cases ---

    def with_images(self, images: Iterable[Path | str]) -> Project:
        """The project with more cases, written down. Images that it has already stay the cases that they are.

        Raises
        ------
        ReadError : an image is not there, or of no format that can be read; or the project's file cannot be added to
        WriteError : the list cannot be written
        """
        added = [_image(Path(image)) for image in images]
        with _locked(self.folder, _CHANGED_S):
            now = open_project(self.folder)
            known, names = {case.image for case in now.cases}, {case.name.lower() for case in now.cases}
            more = [Case(_free_name(image, names), image) for image in dict.fromkeys(added) if image not in known]
            if more:
                add_cases(self.folder / PROJECT_NAME, more)
        return replace(now, cases=(*now.cases, *more))


def create_project(folder: Path | str, settings: Settings, images: Iterable[Path | str] = ()) -> Project:
    """Begin a project.

    Parameters
    ----------
    folder : made if need be; it may hold the images
    images : of its cases, in order

    Raises
    ------
    WriteError : there is a project already, or the folder cannot be written
    ReadError : as `Project.with_images`
    """
    folder, images = Path(folder).absolute(), [_image(Path(image)) for image in images]
    with _locked(folder, _CHANGED_S):
        if (folder / PROJECT_NAME).exists():
            raise WriteError(f"{folder} holds a project already; expected a folder without one (or add cases to that one)")
        write_project_file(folder / PROJECT_NAME, settings)
    return open_project(folder).with_images(images) if images else open_project(folder)


def open_project(folder: Path | str) -> Project:
    """Read a project.

    Parameters
    ----------
    folder : that holds ``project.toml``, or the path of that file

    Raises
    ------
    ReadError : there is none, or it says something that cannot be used
    """
    path = Path(folder).absolute()
    path = path if path.name == PROJECT_NAME else path / PROJECT_NAME
    settings, cases = read_project_file(path)
    return Project(path.parent, settings, cases)


def usable(images: Iterable[Path | str]) -> tuple[list[Path], list[ReadError]]:
    """The images that can be cases, as far as that can be known without reading their voxels, and why the others cannot.

    Raises
    ------
    ReadError : as `Project.with_images`
    """
    good: list[Path] = []
    refused: list[ReadError] = []
    for path in [_image(Path(image)) for image in images]:
        try:
            files.check_image(path)
            good.append(path)
        except ReadError as error:
            refused.append(error)
    return good, refused


# --- inside ---


@contextmanager
def _locked(folder: Path, wait_s: float) -> Iterator[None]:
    """Hold a folder, made if need be; InUseError if another process does for longer than that."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{folder} cannot be made ({error.strerror}); expected free space and permission") from error
    until = time.monotonic() + wait_s
    while True:
        try:
            lock = FolderLock(folder)
            break
        except InUseError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.05)
    try:
        yield
    finally:
        lock.release()


def _image(path: Path) -> Path:
    path = place_of(path)
    if not path.exists():
        raise ReadError(f"{str(path)!r} does not exist; expected an image")
    if not path.name.lower().endswith(files.READABLE):
        if path.is_dir():
            raise ReadError(f"{str(path)!r} is a folder; expected the image of a case, such as {path.name}/*.nii.gz for all in it")
        raise ReadError(f"{path.name!r} arrived, whose extension is not known; expected one of {', '.join(files.READABLE)}")
    if not is_utf8(str(path)):
        raise ReadError(f"{str(path)!r} is not UTF-8, as {PROJECT_NAME} has to be; expected other names of the image and its folders")
    return path


def _free_name(image: Path, taken: set[str]) -> str:
    """A name for a case that none has so far; it is taken from then on."""
    plain = re.sub(r"[^\w.-]+", "_", files.stem(image)).strip("._-")[:60].rstrip("._-") or "case"
    number, name = 1, plain
    while name.lower() in taken:
        number += 1
        name = f"{plain}_{number}"
    taken.add(name.lower())
    return name


def _by_hand(status: Status) -> bool:
    return (status.state, status.by) == ("begun", "hand")


def _urgency(status: Status) -> float:
    """How urgent it is to look at a case."""
    if status.state == "failed":
        return 2.0
    return 1.0 if math.isnan(status.expected_error) else status.expected_error
