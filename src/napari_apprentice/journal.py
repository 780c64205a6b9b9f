"""The append-only record of a session: every action is on disk before it counts.

A journal is a text file of JSON lines. The first line says what was worked on (`Header`), every other line is one action (`Event`), in
order. Each line ends in a checksum of itself. A line is flushed to the disk before the action that it records returns, so a process
that dies loses at most the action it was in the middle of; what such a death leaves of a line is recognised and cut off. The first line
and those that say what the session began with come to be in one step: there is no journal before a session has begun whole.

The label changes are in the journal itself. The labels can therefore be had back without any model (`replay_labels`), and every click
stands there with its time, place in voxels and in world units, object, and effect, for whoever studies how the work was done.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
import operator
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from napari_apprentice.blocks import is_large
from napari_apprentice.computers import Computer
from napari_apprentice.geometry import PLACE_TOLERANCE_VOXELS, spaced, spacing_of, voxel_to_world, voxels_apart
from napari_apprentice.labelmap import LabelMap, Patch, Tile
from napari_apprentice.legend import Legend
from napari_apprentice.locks import FolderLock
from napari_apprentice.origins import Origin
from napari_apprentice.types import ApprenticeError, Click, Image, LearningReport, Plane, ReadError, SessionError, WriteError
from napari_apprentice.versions import Effort, Version

__all__ = [
    "FORMAT",
    "JOURNAL_NAME",
    "KINDS",
    "Entry",
    "Event",
    "Header",
    "Journal",
    "displacement",
    "effective",
    "fingerprint",
    "journal_path",
    "labels_of",
    "models",
    "package_version",
    "read_journal",
    "replay_labels",
    "standing_as",
]

FORMAT = 1
"""Version of the format. A reader refuses newer ones."""

JOURNAL_NAME = "journal.jsonl"

"""What the journal is called in its folder."""

KINDS = (
    *("open", "add", "choose", "accept", "learn", "select", "paint", "discard", "propagate", "approve", "undo", "redo"),
    *("delete", "relabel", "merge", "split", "name"),
    *("forget", "go_back", "pin", "unpin"),
)
"""What an event can be: ``open`` lays down the labels that a session began with, the others are the actions of the same name."""

_CHECK = ', "check": "'


@dataclass(frozen=True)
class Header:
    """What a journal is about.

    Attributes
    ----------
    image, path : name of the image, and the file it was read from ("" if none)
    shape, affine, units : its spatial shape and geometry
    fingerprint : see `fingerprint`
    policy, model : how the model learns, and which one it is (name or digest), as given by whoever began the journal (see `models`)
    cohort : name of the study that the model belongs to; "" if there is none
    package : version of this package
    time : when it was begun, ISO 8601 in UTC
    format : version of the file format
    computer : what the model ran on; None where nobody said
    """

    image: str
    path: str
    shape: tuple[int, ...]
    affine: tuple[tuple[float, ...], ...]
    units: str
    fingerprint: str
    policy: str = ""
    model: str = ""
    cohort: str = ""
    package: str = ""
    time: str = ""
    format: int = FORMAT
    computer: Computer | None = None

    def in_folder(self, folder: Path) -> str:
        """What tells the session in a folder from all others, copies of it in other folders, too."""
        return f"{self.fingerprint} {self.time} {hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]}"

    @classmethod
    def of(cls, image: Image, *, policy: str = "", model: str = "", cohort: str = "", computer: Computer | None = None) -> Header:
        """The header of a journal that begins now."""
        affine = tuple(tuple(float(v) for v in row) for row in image.affine)
        path = "" if image.path is None else str(Path(image.path).absolute())
        about = (image.name, path, image.shape, affine, image.units, fingerprint(image))
        return cls(*about, policy, model, cohort, package_version(), _now(), computer=computer)


@dataclass(frozen=True, eq=False)
class Event:
    """One action.

    Attributes
    ----------
    kind : one of `KINDS`
    label : id of the object that it was done to
    changed : number of voxels whose label changed
    latency_s : from the call to the moment of writing
    click : for ``add``
    patch : the change of the labels; its ``old`` side is not written. ``undo`` and ``redo`` write none, they follow from the rest
    taught : whether the model is another one than before
    report : for ``learn``
    checkpoint : file beside the journal that holds the model as it was afterwards
    version : for ``learn`` the version of the model that it made, for ``open`` the one that the session began with, for ``redo`` the one
        that the study has learnt again, see `teaching.Apprentice.follow`
    effort : for ``learn``: see `versions.Effort`
    number : for ``go_back``, ``pin`` and ``unpin``: of the version; for ``choose`` the rank of the mask, 0 for the best
    axis, carried, ended : for ``propagate``: across which axis, the index and expected error of its slices, and the indices of those before
        which it ended (which older journals do not tell)
    planes : for ``approve``
    into : for ``relabel`` and ``merge``: the id that the object's voxels have now
    seeds : for ``split``: a voxel of every part
    name, color : for ``name``: of the object's class; "" and None for none. For ``accept`` the class that the next object
        is to have, for ``add`` and ``paint`` the one that it got so
    legend, origins : for ``open``: what the objects that the session began with are called, and where their slices come from
    computer, model : of the first action after the session was resumed: what the model has been running on since, and which one it is if
        that is another one than before
    by : "run" for what the run of a project did, in its own time; None for what a person did (or for all that older journals tell)
    sequence, time : position in the journal from 1, and ISO 8601 in UTC; set on writing
    """

    kind: str
    label: int
    changed: int = 0
    latency_s: float = 0.0
    click: Click | None = None
    patch: Patch | None = None
    taught: bool = False
    report: LearningReport | None = None
    checkpoint: str | None = None
    version: Version | None = None
    effort: Effort | None = None
    number: int | None = None
    axis: int | None = None
    carried: tuple[tuple[int, float], ...] = ()
    ended: tuple[int, ...] = ()
    planes: tuple[Plane, ...] = ()
    into: int | None = None
    seeds: tuple[tuple[int, ...], ...] = ()
    name: str | None = None
    color: str | None = None
    legend: Legend | None = None
    origins: Mapping[int, Origin] = field(default_factory=dict)
    computer: Computer | None = None
    model: str | None = None
    by: str | None = None
    sequence: int = 0
    time: str = ""

    @property
    def names(self) -> bool:
        """Whether it says what the object is called: ``name``, or the first click or stroke in one whose class was kept."""
        return self.kind == "name" or (self.kind in ("add", "paint") and bool(self.name))


class Journal:
    """A journal that is being written, by one process at a time: it holds the lock of its folder until it is closed.

    Make one with `create` or `reopen`; a context manager that closes the file. A new one is there for others from the first `append` on,
    which may be one of no events.
    """

    def __init__(
        self,
        path: Path,
        header: Header,
        file: BinaryIO,
        length: int,
        sequence: int,
        lock: FolderLock,
        unseen: Path | None = None,
        by: str | None = None,
    ) -> None:
        self.path = path
        self.header = header
        self.sequence = sequence
        self._file = file
        self._length = length
        self._resumed_on: Computer | None = None
        self._resumed_with: str | None = None
        self._by = by
        self._lock = lock
        self._unseen = unseen  # what the file is called until it is there for others

    @classmethod
    def create(
        cls,
        path: Path | str,
        image: Image,
        *,
        policy: str = "",
        model: str = "",
        cohort: str = "",
        computer: Computer | None = None,
        by: str | None = None,
    ) -> Journal:
        """Begin a journal in a folder (made if need be), or under a path that ends in ``.jsonl``.

        Parameters
        ----------
        policy, model, cohort, computer : see `Header`
        by : who acts until the journal is closed, see `Event`; whoever reopens it is a person

        Raises
        ------
        WriteError : there is a journal already, or the place cannot be written
        InUseError : somebody else begins or has one there
        """
        path = journal_path(path)
        header = Header.of(image, policy=policy, model=model, cohort=cohort, computer=computer)
        line = _line(asdict(header))
        lock = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(path.parent)
            if path.exists():
                raise WriteError(f"{path} is the journal of an earlier session; expected a folder without one (or resume that session)")
            written = path.with_name(path.name + ".new")
            with written.open("wb") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            return cls(path, header, written.open("r+b", buffering=0), len(line), 0, lock, written, by)
        except BaseException as error:
            if lock is not None:
                lock.release()
            if isinstance(error, ApprenticeError) or not isinstance(error, OSError):
                raise
            raise WriteError(f"the journal {path} cannot be begun ({error.strerror}); expected a folder that can be written") from error

    @classmethod
    def reopen(cls, path: Path | str, computer: Computer | None = None, model: str = "") -> tuple[Journal, tuple[Event, ...]]:
        """Go on with a journal, and what happened so far. A torn last line is cut off at the first `append`.

        Parameters
        ----------
        path : the journal or its folder
        computer : what the model runs on now; the next event says so
        model : which one it is now; the next event says so if it is another one than before

        Raises
        ------
        ReadError : there is no journal, or it is damaged
        WriteError : it cannot be written
        InUseError : somebody else has it open
        """
        path = journal_path(path)
        lock = FolderLock(path.parent) if path.exists() else None
        try:
            header, events, length = _read(path)
            assert lock is not None
            journal = cls(path, header, path.open("r+b", buffering=0), length, len(events), lock)
        except BaseException as error:
            if lock is not None:
                lock.release()
            if isinstance(error, ApprenticeError) or not isinstance(error, OSError):
                raise
            raise WriteError(f"the journal {path} cannot be continued ({error.strerror}); expected a file that can be written") from error
        journal._resumed_on = computer
        journal._resumed_with = model if model and model != models(header, events)[-1] else None
        return journal, events

    def append(self, *events: Event) -> tuple[Event, ...]:
        """Write events and wait until they are on the disk; either all of them or, on an error, none.

        Returns
        -------
        the events with their sequence numbers and time

        Raises
        ------
        WriteError : they cannot be written; the journal is as before
        """
        now = _now() if events else ""
        if events and (self._resumed_on is not None or self._resumed_with is not None):
            events = (replace(events[0], computer=self._resumed_on, model=self._resumed_with), *events[1:])
        events = tuple(replace(event, by=self._by, sequence=self.sequence + i, time=now) for i, event in enumerate(events, start=1))
        data = memoryview(b"".join(_line(_encoded(event, self.header)) for event in events))
        length = self._length + len(data)
        try:
            self._file.truncate(self._length)  # whatever an earlier failure or a crash left there
            self._file.seek(self._length)
            while data:
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
            self._appear()
        except BaseException as error:
            with contextlib.suppress(OSError, ValueError):
                self._file.truncate(self._length)
            if not isinstance(error, OSError | ValueError):
                raise
            reason = getattr(error, "strerror", None) or error
            raise WriteError(
                f"the journal {self.path} cannot be written ({reason}), so the action was not done; expected free space and permission"
            ) from error
        self._length, self.sequence = length, self.sequence + len(events)
        if events:
            self._resumed_on = self._resumed_with = None
        return events

    def close(self) -> None:
        """Close the file, and let others go on with it; nothing can be appended afterwards. A new one is there then, with no action."""
        with contextlib.suppress(OSError):
            self._appear()
        self._file.close()
        self._lock.release()

    def _appear(self) -> None:
        """Give a new file its name, in one step."""
        if self._unseen is not None:
            self._file.close()  # some systems rename no open file
            os.replace(self._unseen, self.path)
            self._unseen = None
            _flush_folder(self.path.parent)
            self._file = self.path.open("r+b", buffering=0)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._unseen is not None:  # nothing has begun
            self._file.close()
            self._unseen.unlink(missing_ok=True)
            self._unseen = None
        self.close()


def read_journal(path: Path | str) -> tuple[Header, tuple[Event, ...]]:
    """What a journal says, from its folder or its path. A torn last line is left out.

    Raises
    ------
    ReadError : there is no journal, it is damaged before its last line, or it was written by a newer version
    """
    header, events, _ = _read(journal_path(path))
    return header, events


@dataclass(frozen=True, eq=False)
class Entry:
    """An action that can be undone, and what was learnt after it and before the next one."""

    action: Event
    learn: Event | None = None

    @property
    def taught(self) -> bool:
        """Whether the model is another one than before."""
        return self.action.taught or (self.learn is not None and self.learn.taught)


def models(header: Header, events: Iterable[Event]) -> tuple[str, ...]:
    """The models that answered in a session, oldest first: the one that it was begun with, and those that it was gone on with instead."""
    return (header.model, *(event.model for event in events if event.model))


def effective(events: Iterable[Event]) -> tuple[list[Entry], int]:
    """The actions that undo and redo leave, and how many of them are done; those beyond that number can be redone."""
    entries: list[Entry] = []
    done = 0
    for event in events:
        if event.kind in ("undo", "redo"):
            done += 1 if event.kind == "redo" else -1
        elif event.kind == "learn":
            entries[done - 1 :] = [replace(entries[done - 1], learn=event)]
        elif event.kind != "open":
            entries[done:] = [Entry(event)]
            done += 1
    return entries, done


def replay_labels(path: Path | str) -> npt.NDArray[Any]:
    """The labels that a journal leads to, as a (S) array of the smallest unsigned type. Needs neither image nor model.

    Labels that are too large for memory are a `blocks.BlockArray`.

    Raises
    ------
    ReadError : as for `read_journal`
    WriteError : the disk has no room for labels that are too large for memory
    """
    return labels_of(*read_journal(path))


def labels_of(header: Header, events: Sequence[Event]) -> npt.NDArray[Any]:
    """The same as `replay_labels`, for a journal that was read already."""
    entries, done = effective(events)
    patches = [event.patch for event in (*(e for e in events if e.kind == "open"), *(e.action for e in entries[:done]))]
    labels = LabelMap(header.shape)
    for patch in patches:
        if patch is not None:
            labels.widen(patch.dtype)
            labels.write(patch.after)
            labels.settle()
    array: npt.NDArray[Any] = labels.array
    return array if is_large(header.shape) else array.astype(np.min_scalar_type(int(array.max())))


def fingerprint(image: Image) -> str:
    """A digest that tells images apart at little cost: of the shape and of blocks of voxels on a regular grid.

    At most 3 blocks of 32 voxels along every axis are read, at the start, the middle and the end: all of a small image, a sample of a
    large one. Where the labels do not fit into memory, the blocks are one layer thin: the image is on the disk, perhaps layer by layer.
    """
    digest = hashlib.blake2b(repr(tuple(image.data.shape)).encode(), digest_size=16)
    first, *rest = image.shape
    for block in product(_blocks(first, 1 if is_large(image.shape) else 32), *map(_blocks, rest)):
        digest.update(np.ascontiguousarray(image.data[(slice(None), *block)], dtype="<f8").tobytes())
    return digest.hexdigest()


def _blocks(size: int, side: int = 32) -> tuple[slice, ...]:
    if size <= 3 * side:
        return (slice(0, size),)
    return tuple(slice(start, start + side) for start in (0, (size - side) // 2, size - side))


def standing_as(header: Header, image: Image) -> Image:
    """``image`` as the session knew it: with the recorded geometry where the file states no spacing, but somebody did.

    Raises
    ------
    SessionError : the journal is about another image, or the voxels have changed
    """
    if header.shape != image.shape or header.fingerprint != fingerprint(image):
        raise SessionError(
            f"the image {image.name!r} of shape {image.shape} arrived; expected {header.image!r} of shape {header.shape} "
            f"with the same voxels as when the session began"
        )
    if image.units == "pixel" and header.units != "pixel":
        return replace(image, affine=np.array(header.affine), units=header.units)
    return image


def displacement(header: Header, image: Image) -> str:
    """How an image lies otherwise than when the session began, in words; "" where it does not."""
    before = spacing_of(header.affine)
    if image.units != header.units or not np.allclose(before, image.spacing, rtol=1e-3, atol=0):
        now, then = f"{spaced(image.spacing)} {image.units}", f"{spaced(before)} {header.units}"
        return f"has a spacing of {now} now; it had {then} when the session began"
    apart = voxels_apart(image.shape, header.affine, image.affine)
    return f"lies up to {apart:.3g} voxels away from where it lay when the session began" if apart > PLACE_TOLERANCE_VOXELS else ""


def journal_path(path: Path | str) -> Path:
    """Of the journal in a folder; a path that ends in ``.jsonl`` is one already."""
    path = Path(path)
    return path if path.suffix == ".jsonl" else path / JOURNAL_NAME


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def package_version() -> str:
    """Of this package, "" where it is not installed."""
    try:
        return metadata.version("napari-apprentice")
    except metadata.PackageNotFoundError:
        return ""


def _flush_folder(folder: Path) -> None:
    """Make a new name in a folder survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- one line ---


def _line(record: dict[str, Any]) -> bytes:
    """JSON, with the checksum of what stands before it as the last entry."""
    text = json.dumps(record, allow_nan=False, default=operator.index)[:-1]  # numpy's integers are told as plain ones
    return f'{text}{_CHECK}{zlib.crc32(text.encode()):08x}"}}\n'.encode()


def _record(line: bytes) -> dict[str, Any]:
    """The inverse of `_line`; ValueError if the line is not whole."""
    text, _, check = line.decode().rpartition(_CHECK)
    if check != f'{zlib.crc32(text.encode()):08x}"}}\n':
        raise ValueError("checksum")
    record = json.loads(text + "}")
    if not isinstance(record, dict):
        raise ValueError("not an object")
    return record


_PLAIN = ("checkpoint", "number", "into", "name", "color", "model", "by")


def _encoded(event: Event, header: Header) -> dict[str, Any]:
    """What is written of an event: nothing that is None, and for people the world position and the plane of a click."""
    record: dict[str, Any] = {"sequence": event.sequence, "time": event.time, "kind": event.kind, "label": event.label}
    if (click := event.click) is not None:
        world = voxel_to_world(click.voxel, header.affine)
        record["click"] = {"voxel": click.voxel, "world": world.tolist(), "positive": click.positive, "axis": int(click.axis)}
        if click.box is not None:
            record["click"]["box"] = click.box
        record["plane"] = tuple(int(v) for v in click.plane)
    record |= {"changed": event.changed, "latency_s": round(event.latency_s, 6), "taught": event.taught}
    if event.report is not None:
        record["report"] = {key: None if value != value else value for key, value in asdict(event.report).items()}
    record |= {key: value for key in _PLAIN if (value := getattr(event, key)) is not None}
    record |= {key: value for key in ("planes", "seeds") if (value := getattr(event, key))}
    if event.version is not None:
        record["version"] = event.version.facts()
    if event.effort is not None:
        record["effort"] = asdict(event.effort)
    if event.computer is not None:
        record["computer"] = asdict(event.computer)
    if event.axis is not None:
        record |= {"axis": event.axis, "carried": event.carried, "ended": event.ended}
    if event.legend is not None:
        record["legend"] = {"names": list(event.legend.names.items()), "colors": dict(event.legend.colors)}
    if event.origins:
        record["origins"] = [(label, origin.facts()) for label, origin in event.origins.items()]
    if (patch := event.patch) is not None:
        tiles = [_encoded_tile(tile) for tile in patch.tiles]
        record["patch"] = tiles[0] if len(tiles) == 1 else {"tiles": tiles}
    return record


def _encoded_tile(tile: Tile) -> dict[str, Any]:
    region = [(side.start, side.stop) for side in tile.region]
    return {"region": region, "dtype": tile.dtype, "values": base64.b64encode(tile.new).decode()}


def _decoded_tile(tile: dict[str, Any], changed: int) -> Tile:
    """``changed`` : in all tiles of the patch"""
    region = tuple(slice(start, stop) for start, stop in tile["region"])
    return Tile(region, tile["dtype"], b"", base64.b64decode(tile["values"]), changed)


def _known(kind: type[Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What this version knows of it; what later ones add is left out."""
    known = {field.name for field in fields(kind)}
    return {key: value for key, value in facts.items() if key in known}


def _decoded(record: dict[str, Any]) -> Event:
    """The inverse of `_encoded`."""
    facts = _known(Event, record)
    facts["carried"] = tuple((index, error) for index, error in record.get("carried", ()))
    facts["ended"] = tuple(record.get("ended", ()))
    facts["planes"] = tuple(Plane(*plane) for plane in record.get("planes", ()))
    facts["seeds"] = tuple(tuple(seed) for seed in record.get("seeds", ()))
    if legend := record.get("legend"):
        facts["legend"] = Legend(dict(map(tuple, legend["names"])), legend["colors"])
    facts["origins"] = {label: Origin.from_facts(origin) for label, origin in record.get("origins", ())}
    if click := record.get("click"):
        facts["click"] = Click(click["voxel"], click["positive"], click["axis"], click.get("box"))
    if report := record.get("report"):
        measured: dict[str, Any] = {key: math.nan if value is None else value for key, value in report.items()}
        facts["report"] = LearningReport(**_known(LearningReport, measured))
    if effort := record.get("effort"):
        facts["effort"] = Effort(**_known(Effort, effort))
    if computer := record.get("computer"):
        facts["computer"] = Computer.from_facts(computer)
    if version := record.get("version"):
        facts["version"] = Version.from_facts(version, facts.get("report"), facts.get("effort"))
    if patch := record.get("patch"):
        facts["patch"] = Patch(tuple(_decoded_tile(tile, record["changed"]) for tile in patch.get("tiles", [patch])))
    return Event(**facts)


# --- the whole file ---


def _read(path: Path) -> tuple[Header, tuple[Event, ...], int]:
    """Header, events and the number of bytes that are whole."""
    try:
        with path.open("rb") as file:
            lines = list(_whole_lines(file, path))
    except NotADirectoryError as error:
        raise ReadError(f"{path.parent} is no journal; expected the folder of a session, or the file {JOURNAL_NAME} in it") from error
    except OSError as error:
        if isinstance(error, ReadError):
            raise
        raise ReadError(f"the journal {path} cannot be read ({error.strerror}); expected the journal of a session") from error
    if not lines or "fingerprint" not in lines[0][0]:
        raise ReadError(f"{path} does not begin like a journal; expected the journal of a session")
    header = _header(lines[0][0], path)
    events = []
    for number, (record, _) in enumerate(lines[1:], start=1):
        if record.get("sequence") != number:
            raise ReadError(f"the journal {path} is damaged in line {number + 1}; expected action {number} of a session")
        if (kind := record.get("kind")) not in KINDS:
            raise _of_another_version(path, number + 1, f"an action {kind!r}", header.package)
        try:
            events.append(_decoded(record))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise _of_another_version(path, number + 1, f"{type(error).__name__}: {error}", header.package) from error
    return header, tuple(events), sum(size for _, size in lines)


def _of_another_version(path: Path, line: int, what: str, package: Any) -> ReadError:
    """Of a line that came through unharmed, as its checksum says."""
    by = f"version {package}" if package else "another version"
    return ReadError(
        f"the journal {path} was written by {by} of this program, and this one, {package_version()}, does not understand line {line} of it "
        f"({what}); expected a journal of this version or an older one"
    )


def _whole_lines(file: BinaryIO, path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Record and size of every line. The last line may be torn, no other one."""
    torn = 0
    for number, line in enumerate(file, start=1):
        if torn or line.count(_CHECK.encode()) > 1:  # more than one: the end of the line before is damaged
            raise ReadError(f"the journal {path} is damaged in line {torn or number}; expected at most a torn last line")
        try:
            yield _record(line), len(line)
        except ValueError:
            torn = number


def _header(record: dict[str, Any], path: Path) -> Header:
    if record.get("format") != FORMAT:
        raise ReadError(f"the journal {path} has format {record.get('format')}; expected format {FORMAT}, which this version understands")
    facts = _known(Header, record)
    try:
        facts["shape"] = tuple(record["shape"])
        facts["affine"] = tuple(map(tuple, record["affine"]))
        if computer := record.get("computer"):
            facts["computer"] = Computer.from_facts(computer)
        return Header(**facts)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _of_another_version(path, 1, f"{type(error).__name__}: {error}", record.get("package")) from error
