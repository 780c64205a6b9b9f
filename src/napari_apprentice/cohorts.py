"""Studies (cohorts): named models that grow from session to session, so that what one study teaches never reaches another.

A study is a folder on the user's own disk, ``<home>/cohorts/<name>/<digest of the shipped weights>``. Nothing of it is sent anywhere. Its
model files hold weights, and small views of the accepted cases that the gate judges by: whoever hands a model on exports it, which leaves
those pictures out unless asked.

Every change is a new record, ``000007.json``, that names a model file, or none for the model as shipped; the newest record says which model
is in use. Records are made whole and exclusively, and only on top of the record that their maker knew: of two sessions that work on one
study at the same time the slower one learns again on top of what the faster one has learnt. No lesson is lost and nothing is overwritten.
A study that was taught on top of other weights, as those of an earlier release, begins on top of new ones with what it remembers: accepted
objects, shown as examples. What was learnt in weights stays with those weights.
An undo takes its lesson out of the study as long as no other session has built on it. So does whoever goes on with a session that was
killed before it had noted its lesson, and learns that again. A redo puts it in again; where the study has been taught other things
meanwhile, the lesson is learnt again on top of those (see `teaching.Apprentice.follow`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from platformdirs import user_data_dir

from napari_apprentice.checkpoints import SnapshotStore
from napari_apprentice.types import ApprenticeError, InputError, ReadError, SessionError, WriteError
from napari_apprentice.versions import KEPT_VERSIONS, Catalogue, Version

__all__ = ["Cohort", "Record", "cohorts", "home"]


_NAME = re.compile(r"\w([\w .-]{0,58}[\w-])?")
_CARRIED = "carried over"
_RECORDS, _MODELS = f"{6 * '[0-9]'}.json", "model-*.safetensors"


def home() -> Path:
    """``$APPRENTICE_HOME``, or the user's data folder of this system."""
    return Path(os.environ.get("APPRENTICE_HOME") or user_data_dir("napari-apprentice", appauthor=False))


def cohorts() -> tuple[Cohort, ...]:
    """All studies on this disk, in the order of their names. What else lies in their folder is passed over."""
    found = {path.parent for kept in (_RECORDS, _MODELS) for path in (home() / "cohorts").glob(f"*/*/{kept}")}
    return tuple(Cohort(folder.parent.name, folder.name) for folder in sorted(found) if _NAME.fullmatch(folder.parent.name))


@dataclass(frozen=True)
class Record:
    """One change of a study.

    Attributes
    ----------
    number : from 1
    model : file of the model that is in use from then on; None for the one as shipped
    cause : "learnt", "undone", "gone back", "forgotten" or "carried over" (from other weights)
    time : ISO 8601 in UTC
    facts : for "learnt": of the version (see `versions.Version`), with what the gate said and the effort saved, and by which session; for
        "carried over" the digest of the other weights and the file on top of those
    """

    number: int
    model: str | None
    cause: str
    time: str
    facts: Mapping[str, Any]


class Cohort:
    """One study, for one network.

    Parameters
    ----------
    name : letters, digits, spaces, dots, hyphens and underscores, beginning with a letter or digit
    digest : of the shipped weights; what was learnt on top of others is kept apart
    store : reads and writes its models; a study that is only looked at needs none

    Raises
    ------
    InputError : the name cannot be one
    """

    def __init__(self, name: str, digest: str, store: SnapshotStore | None = None) -> None:
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise InputError(
                f"a study called {name!r} arrived; expected at most 60 letters, digits, spaces, dots, hyphens and underscores, "
                f"beginning with a letter or digit"
            )
        self.name, self.digest = name, digest
        self.folder = home() / "cohorts" / name / digest
        self._store = store

    # --- what there is ---

    @property
    def records(self) -> tuple[Record, ...]:
        """All changes, oldest first.

        Raises
        ------
        ReadError : one of them is damaged
        """
        return tuple(_read(path) for path in sorted(self.folder.glob(_RECORDS)))

    @property
    def newest(self) -> Record | None:
        """The newest change; None if there is none. Older ones may be damaged.

        Raises
        ------
        ReadError : it is damaged
        """
        path = max(self.folder.glob(_RECORDS), default=None)
        return _read(path) if path is not None else None

    @property
    def head(self) -> str | None:
        """File of the model in use; None for the one as shipped."""
        newest = self.newest
        return newest.model if newest else None

    def start(self) -> Version | None:
        """The version that a session begins with; None if that is the model as shipped."""
        self.adopt()
        newest = self.newest
        if newest is None or newest.model is None:
            return None
        known, pinned = self.load(newest.model), self.pinned(newest.model)
        origin = f"study {self.name}" + (", what it remembers from another network" if newest.cause == _CARRIED else "")
        return Version(1, origin=origin, time=newest.time, shared=newest.model, pinned=pinned, snapshot=known)

    def load(self, model: str) -> Any:
        """The model in a file of this study.

        Raises
        ------
        WeightsError, ReadError : it is missing or damaged
        """
        return self._kept_by.load(self.folder / model)

    def pinned(self, model: str) -> bool:
        """Whether a model is kept whatever the budget."""
        return self._pin(model).exists()

    # --- what can be done ---

    def adopt(self) -> bool:
        """Begin with what the study remembers on top of the weights that it was last taught on, if it has no record on top of these.

        Returns
        -------
        whether it did; what cannot be read is left where it is

        Raises
        ------
        WriteError : it cannot be written
        """
        if self.newest is not None or (last := self._last_elsewhere()) is None:
            return False
        folder, record = last
        if record.model is None:
            return False
        try:
            known = self._kept_by.carry(folder / record.model)
        except (ApprenticeError, OSError):
            return False
        return self._shared(_fresh_name(), known, None, _CARRIED, {"weights": folder.name, "model": record.model})

    def append(self, version: Version, basis: str | None, by: str = "") -> str | None:
        """Take a new version in, if ``basis`` is still the model in use.

        Parameters
        ----------
        by : what tells the session that taught it from all others

        Returns
        -------
        the file that holds it now; None if another session was faster

        Raises
        ------
        WriteError : it cannot be written
        """
        facts = version.facts()
        facts |= {"report": _measured(asdict(version.report))} if version.report else {}
        facts |= {"effort": asdict(version.effort)} if version.effort else {}
        facts |= {"by": by} if by else {}
        model = _fresh_name()
        try:
            if not self._shared(model, version.snapshot, basis, "learnt", facts):
                return None
            self._clear_away()
        except BaseException:
            self.withdraw(model, basis)
            raise
        return model

    def withdraw(self, model: str, basis: str | None) -> None:
        """Take a lesson out again that its session could not finish, if it is the newest; what cannot be written stays."""
        with suppress(ApprenticeError):
            self._point(basis, model, "undone", {})

    def _shared(self, model: str, snapshot: Any, basis: str | None, cause: str, facts: Mapping[str, Any]) -> bool:
        """Write a new model, which is in use from now on; False if ``basis`` no longer was."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._kept_by.save(snapshot, self.folder / model)
            with (self.folder / model).open("rb+") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise self._unwritable(error) from error
        if not self._point(model, basis, cause, facts):
            (self.folder / model).unlink(missing_ok=True)
            return False
        return True

    def take_back(self, by: str, known: Container[str | None]) -> bool:
        """Take the newest lesson out again if a session taught it that does not know of it, as it was killed in between; whether it was.

        Parameters
        ----------
        by : that session, as of `append`
        known : the models of this study that its journal names
        """
        try:
            *before, newest = [None, None, *map(_read, sorted(self.folder.glob(_RECORDS))[-2:])][-2:]
        except ReadError:
            return False  # whoever teaches next is told
        if newest is None or newest.cause != "learnt" or newest.facts.get("by") != by or newest.model in known:
            return False
        return self._point(before[0].model if before[0] is not None else None, newest.model, "undone", {})

    def follow(self, before: Catalogue, after: Catalogue) -> bool:
        """Go along with a session that has moved from one version to another (undone, redone, gone back), and with its pins.

        Where another session has built on ``before`` meanwhile, the model in use stays.

        Returns
        -------
        False where ``after`` has one more lesson, and the model in use was learnt without it

        Raises
        ------
        WriteError : it cannot be written
        """
        was = {version.number: version.pinned for version in before.versions}
        for version in after.versions:
            if version.shared is not None and version.pinned != was.get(version.number, version.pinned):
                self._set_pin(version.shared, version.pinned)
        old, new = before.current, after.current
        if old.number == new.number and old.shared == new.shared:
            return True
        expected, model, cause = old.shared, new.shared, "gone back" if new.shared else "forgotten"
        if new.parent == old.number and new.number not in {v.number for v in before.versions}:
            expected, cause = new.basis, "learnt"
        elif old.parent == new.number and old.number not in {v.number for v in after.versions}:
            model, cause = old.basis, "undone"
        if (model is None or (self.folder / model).exists()) and self._point(model, expected, cause, {}):
            return True
        return cause != "learnt" or model is None or self._builds_on(model)

    def forget(self) -> None:
        """Let the next session begin with the model as shipped. The versions stay.

        Raises
        ------
        SessionError : there is no such study, or it begins with that already
        """
        self._there()
        if (head := self.head) is None:
            raise SessionError(
                f"there is nothing to forget: the study {self.name!r} has the model as shipped; expected one that was taught"
            )
        self._point(None, head, "forgotten", {})

    def erase(self) -> None:
        """Delete all of it, pictures included.

        Raises
        ------
        SessionError : there is no such study
        WriteError : it cannot be deleted
        """
        self._there()
        try:
            shutil.rmtree(self.folder)
            with suppress(OSError):
                self.folder.parent.rmdir()  # models on top of other weights may still lie there
        except OSError as error:
            raise self._unwritable(error) from error

    # --- files ---

    @property
    def _kept_by(self) -> SnapshotStore:
        if self._store is None:
            raise SessionError(f"the study {self.name!r} was opened to look at; expected a store that reads and writes its models")
        return self._store

    def _there(self) -> None:
        if not self.folder.is_dir():
            raise SessionError(f"there is no study called {self.name!r} on top of the weights {self.digest}; expected one that was taught")

    def _whole(self) -> list[Record]:
        """All changes that are not damaged, oldest first."""
        found = []
        for path in sorted(self.folder.glob(_RECORDS)):
            with suppress(ReadError):
                found.append(_read(path))
        return found

    def _last_elsewhere(self) -> tuple[Path, Record] | None:
        """The newest change of the study on top of other weights, and the folder that it lies in; damaged ones are passed over."""
        found = []
        for folder in (each for each in self.folder.parent.glob("*/") if each != self.folder):
            if path := max(folder.glob(_RECORDS), default=None):
                with suppress(ReadError):
                    found.append((folder, _read(path)))
        return max(found, key=lambda one: one[1].time, default=None)

    def _point(self, model: str | None, expected: str | None, cause: str, facts: Mapping[str, Any]) -> bool:
        """Add a record, if the model in use is still the expected one; whether it was."""
        newest = self.newest
        if (newest.model if newest else None) != expected:
            return False
        if model == expected:
            return True
        number = newest.number + 1 if newest else 1
        record = Record(number, model, cause, datetime.now(UTC).isoformat(timespec="seconds"), facts)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return _made(self.folder / f"{number:06}.json", json.dumps(asdict(record), allow_nan=False).encode())
        except OSError as error:
            raise self._unwritable(error) from error

    def _builds_on(self, model: str) -> bool:
        """Whether the model in use is a certain one, or was learnt on top of it."""
        if (head := self.head) == model:
            return True
        basis = {record.model: record.facts.get("basis") for record in reversed(self._whole())}  # the oldest record of a model says it
        while head is not None and head != model:
            head = basis.pop(head, None)
        return head == model

    def _pin(self, model: str) -> Path:
        return self.folder / f"{model}.pinned"

    def _set_pin(self, model: str, pinned: bool) -> None:
        try:
            if pinned and (self.folder / model).exists():
                self._pin(model).touch()
            elif not pinned:
                self._pin(model).unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def _clear_away(self) -> None:
        """Delete the models of records that are neither among the newest `KEPT_VERSIONS` nor pinned. Files without a record are left."""
        models = list(dict.fromkeys(record.model for record in reversed(self._whole()) if record.model))
        for model in models[KEPT_VERSIONS:]:
            if not self.pinned(model):
                with suppress(OSError):
                    (self.folder / model).unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> WriteError:
        if isinstance(error, WriteError):
            return error
        place = f"the study {self.name!r} cannot be written in {self.folder}"
        return WriteError(f"{place} ({error.strerror}); expected free space and permission")


def _fresh_name() -> str:
    return f"model-{uuid.uuid4().hex[:12]}.safetensors"


def _made(path: Path, content: bytes) -> bool:
    """Make a file that is whole from its first moment; False if there is one already."""
    unfinished = path.with_name(f".{uuid.uuid4().hex}.unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(unfinished, path)
        except FileExistsError:
            return False
        except OSError:  # no hard links here
            with path.open("xb") as file:
                file.write(content)
    except FileExistsError:
        return False
    finally:
        with suppress(OSError):  # the record counts by now
            unfinished.unlink(missing_ok=True)
    return True


def _read(path: Path) -> Record:
    try:
        record = Record(**json.loads(path.read_text("utf-8")))
        if not (isinstance(record.model, str | None) and isinstance(record.facts, dict)):
            raise ValueError(f"model {record.model!r}, facts {record.facts!r}")
        return record
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ReadError(f"the record {path} of a study is damaged ({error}); expected one that a session wrote") from error


def _measured(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what was not measured."""
    return {key: value for key, value in values.items() if value == value}
