"""Recorded work, done again: a list of clicks, or the journal of a session, on whatever model a new session has."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from napari_apprentice.computers import Computer
from napari_apprentice.journal import Event, Header, displacement, effective, models, package_version, read_journal
from napari_apprentice.labelmap import Patch, as_id
from napari_apprentice.legend import Legend
from napari_apprentice.origins import Origin
from napari_apprentice.session import Change, Session
from napari_apprentice.types import Click, ClickError, Image, ImageError, LabelsError, ReadError, SessionError

__all__ = ["Beginning", "beginning", "obstacles", "read_recording", "replay"]

_EXPECTED = 'expected {"clicks": [{"voxel": [z, y, x], "positive": true, "axis": 0, "object": 1, "box": null}, ...]}'
_KEYS = ("voxel", "positive", "axis", "object", "box")


def read_recording(path: Path | str, *, like: Image | None = None) -> tuple[Event, ...]:
    """The actions of a recording, undone ones left out.

    Parameters
    ----------
    path : a session's journal (``.jsonl``, or the folder that holds it), or a JSON file of clicks::

        {"clicks": [{"voxel": [12, 80, 64], "positive": true, "axis": 0, "object": 1, "box": null}, ...]}

        ``voxel`` counts voxels, slowest axis first; ``positive`` (default true), ``axis`` of the plane clicked in (default 0),
        ``object`` (default 1), the label it gets, and ``box`` may be left out. A box ``[top, left, bottom, right]`` is drawn around the
        object in that plane, ``voxel`` somewhere in it. An object is accepted, and learnt from, after its last click in a row.
    like : the image to click in, if clicks that it cannot take are to be refused now, before anything is done

    Raises
    ------
    ReadError : the file is missing, damaged, or says something else
    ClickError : a click is not one, lies outside the image, or in a slice of it that cannot be used
    """
    path = Path(path)
    events = tuple(_events(path)) if path.is_dir() or path.suffix == ".jsonl" else _written(path)
    if like is not None:
        for number, click in enumerate((event.click for event in events if event.click is not None), start=1):
            try:
                like.check_click(click)
                like.slice(click.plane)
            except (ClickError, ImageError) as error:
                raise ClickError(f"click {number} of {path.name}: {error}") from error
    return events


class Beginning(NamedTuple):
    """What a journal says that its session began with.

    Attributes
    ----------
    labels : (S); None if there were none
    legend, origins : what these are called, and where their slices come from, as far as that is known
    """

    labels: npt.NDArray[np.unsignedinteger] | None = None
    legend: Legend = Legend()
    origins: Mapping[int, Origin] = MappingProxyType({})


def beginning(path: Path | str) -> Beginning:
    """Of a list of clicks there is none."""
    path = Path(path)
    if not (path.is_dir() or path.suffix == ".jsonl"):
        return Beginning()
    header, events = read_journal(path)
    opened = [event for event in events if event.kind == "open"]
    if not opened:
        return Beginning()
    patches, labels = [event.patch for event in opened if event.patch is not None], None
    if patches:
        labels = np.zeros(header.shape, dtype=np.result_type(np.uint8, *(patch.dtype for patch in patches)))
        for patch in patches:
            for region, values in patch.after:
                labels[region] = values
    return Beginning(labels, opened[0].legend or Legend(), opened[0].origins)


def replay(session: Session, events: Sequence[Event], on_action: Callable[[], None] | None = None) -> Event | None:
    """Do the actions again.

    Parameters
    ----------
    on_action : called after each, for a progress bar

    Returns
    -------
    the first action that changed other labels than it did in the journal; None if all labels are what they were. (A list of clicks does
    not say what they were.)

    Raises
    ------
    ApprenticeError : as the session's methods; the actions before it are done
    """
    departed = None
    for event in events:
        change = _do(session, event)
        if departed is None and not _as_recorded(session, change, event):
            departed = event
        if on_action is not None:
            on_action()
    return departed


def obstacles(header: Header, events: Sequence[Event], model: str, here: Computer, image: Image | None = None) -> tuple[str, ...]:
    """Why doing a session again may give other labels than it gave, in words; nothing where it has to give the same ones, bit for bit.

    Background learning is no reason: the journal holds the order in which actions and learning really happened.

    Parameters
    ----------
    header, events : of the journal
    model : name and digest of the model that does it again
    here : what that runs on
    image : the one that it is done on
    """
    found = []
    if image is not None and (how := displacement(header, image)):
        found.append(f"the image {how}")
    if (made := set(models(header, events))) != {model}:
        found.append(f"it was made with the weights {' and '.join(sorted(made)) or 'that it does not name'}, here are {model}")
    if header.package != package_version():
        found.append(f"it was made with version {header.package or 'unknown'} of this program, this is {package_version() or 'unknown'}")
    computers = dict.fromkeys([header.computer, *(event.computer for event in events if event.computer is not None)])
    if None in computers:
        found.append("it does not say what its model ran on")
    known = [computer for computer in computers if computer is not None]
    found += [f"its model ran on something else ({differences})" for one in known if (differences := one.differences(here))]
    if not all(computer.repeatable for computer in (*known, here)):
        found.append("a graphics card does not round the same way every time")
    if _taught_by_others(events):
        found.append(f"another session taught the study {header.cohort!r} meanwhile")
    return tuple(found)


def _taught_by_others(events: Sequence[Event]) -> bool:
    """Whether a version was learnt on top of a model of the study that this session had not made itself."""
    versions = {event.version.number: event.version for event in events if event.kind == "open" and event.version is not None}
    for event in events:
        if event.kind == "learn" and event.version is not None:
            parent = versions.get(event.version.parent or 0)
            if event.version.basis != (parent.shared if parent is not None else None):
                return True
            versions[event.version.number] = event.version
    return False


def _as_recorded(session: Session, change: Change | None, event: Event) -> bool:
    """Whether the newest change of the labels is that of the event, however either is cut into tiles."""
    patch = event.patch
    if patch is None or change is None or change.patch is None:
        return patch is None and (change is None or change.patch is None)
    if (change.patch.region, change.patch.changed) != (patch.region, event.changed):
        return False
    return all(bool((session.labels[region] == values).all()) for region, values in patch.after)


def _painted(session: Session, patch: Patch) -> npt.NDArray[Any]:
    """What stands in the region of a patch after it: where no tile of it lies, what stands there now."""
    values = session.labels[patch.region].astype(np.result_type(session.labels.dtype, patch.dtype))
    corner = [side.start for side in patch.region]
    for region, after in patch.after:
        values[tuple(slice(side.start - first, side.stop - first) for side, first in zip(region, corner, strict=True))] = after
    return values


def _do(session: Session, event: Event) -> Change | None:
    """Do an action again; None where it changes no labels, or cannot be done with this model.

    Where an object that the journal has could not be made, those after it have other numbers than a session would give them: each is
    opened under its own.
    """
    if event.kind in _TO_THE_OPEN_ONE and event.label != session.label:
        session.select(event.label)
    if event.kind == "add" and event.click is not None:
        return session.add(event.click)
    if event.kind == "choose" and event.number is not None:
        with suppress(SessionError):  # this model may propose fewer masks
            return session.choose(event.number)
    elif event.kind == "learn":
        session.practise(event.report.practised if event.report is not None else None)
        session.learn()
    elif event.kind == "select":
        return session.select(event.label)
    elif event.kind == "paint" and event.patch is not None:
        return session.paint(event.patch.region, _painted(session, event.patch))
    elif event.kind == "approve":
        return session.approve(*event.planes, label=event.label)
    elif event.kind == "name":
        return session.name(event.label, event.name or "", event.color)
    elif event.kind in ("forget", "go_back", "pin", "unpin"):
        _do_to_version(session, event)
    else:
        with suppress(LabelsError, SessionError):  # what was not found cannot be accepted or split; older journals may rename background
            return _do_to_object(session, event)
    return None


_TO_THE_OPEN_ONE = ("add", "choose", "accept", "discard")


def _do_to_object(session: Session, event: Event) -> Change | None:
    if event.kind == "accept":
        return session.accept(learn=False, keep_class=bool(event.name))  # what was learnt, and when, is an action of its own
    if event.kind == "discard":
        return session.discard()
    if event.kind == "propagate" and event.axis is not None:
        return session.propagate(event.label, event.axis)[0]
    if event.kind == "delete":
        return session.delete(event.label)
    if event.kind == "relabel" and event.into is not None:
        return session.relabel(event.label, event.into)
    if event.kind == "merge" and event.into is not None:
        return session.merge(event.label, event.into)
    if event.kind == "split":
        return session.split(event.label, event.seeds)
    return None


def _do_to_version(session: Session, event: Event) -> None:
    """Only where there is something to do it to: a model that learns less than the recorded one makes fewer versions."""
    number = event.number
    if event.kind == "forget":
        if session.taught:
            session.forget()
    elif number is not None and number in {version.number for version in session.versions.versions}:
        if event.kind == "go_back":
            session.go_back(number)
        else:
            session.pin(number, event.kind == "pin")


def _events(path: Path) -> Iterator[Event]:
    entries, done = effective(read_journal(path)[1])
    for entry in entries[:done]:
        yield entry.action
        if entry.learn is not None:
            yield entry.learn


def _written(path: Path) -> tuple[Event, ...]:
    """The actions that a list of clicks means."""
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise ReadError(f"the clicks in {path} cannot be read ({error.strerror}); expected a JSON file or a journal") from error
    except (ValueError, RecursionError) as error:
        raise ReadError(f"{path} is not JSON ({error}); {_EXPECTED}") from error
    clicks = content.get("clicks") if isinstance(content, dict) else None
    if not isinstance(clicks, list) or not clicks:
        raise ReadError(f"{path} holds no list of clicks; {_EXPECTED}")
    found = [_click(record, number, path) for number, record in enumerate(clicks, start=1)]
    events: list[Event] = []
    for label, group in groupby(found, key=lambda pair: pair[0]):
        adds = [Event("add", label, click=click) for _, click in group]
        events += [Event("select", label), *adds, Event("accept", label), Event("learn", label)]
    return tuple(events)


def _click(record: Any, number: int, path: Path) -> tuple[int, Click]:
    """Object and click of one record."""
    if isinstance(record, dict) and (unknown := [key for key in record if key not in _KEYS]):
        raise ReadError(
            f"click {number} of {path} says {unknown[0]!r}, which is not known; expected {', '.join(_KEYS[:-1])} or {_KEYS[-1]}"
        )
    try:
        voxel, label = tuple(record["voxel"]), record.get("object", 1)
        positive, axis = record.get("positive", True), record.get("axis", 0)
        if not (isinstance(label, int) and isinstance(positive, bool) and isinstance(axis, int)):
            raise TypeError
        return as_id(label), Click(voxel, positive, axis, record.get("box"))
    except (ClickError, LabelsError) as error:
        raise ClickError(f"click {number} of {path.name}: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ReadError(f"click {number} of {path} is {json.dumps(record)}; {_EXPECTED}") from error
