"""Recorded work, done again: a list of clicks, or the journal of a session, on whatever model a new session has."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_apprentice.journal import Event, effective, read_journal
from napari_apprentice.session import Session
from napari_apprentice.types import Click, ClickError, ReadError, SessionError

__all__ = ["read_recording", "replay", "starting_labels"]

_EXPECTED = 'expected {"clicks": [{"voxel": [z, y, x], "positive": true, "axis": 0, "object": 1}, ...]}'


def read_recording(path: Path | str) -> tuple[Event, ...]:
    """The actions of a recording, undone ones left out.

    Parameters
    ----------
    path : a session's journal (``.jsonl``, or the folder that holds it), or a JSON file of clicks::

        {"clicks": [{"voxel": [12, 80, 64], "positive": true, "axis": 0, "object": 1}, ...]}

        ``voxel`` counts voxels, slowest axis first; ``positive`` (default true), ``axis`` of the plane clicked in (default 0) and
        ``object`` (default 1), the label it gets, may be left out. An object is accepted, and learnt from, after its last click in a row.

    Raises
    ------
    ReadError : the file is missing, damaged, or says something else
    ClickError : a click is not one
    """
    path = Path(path)
    if path.is_dir() or path.suffix == ".jsonl":
        return tuple(_events(path))
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ReadError(f"the clicks in {path} cannot be read ({error.strerror}); expected a JSON file or a journal") from error
    except ValueError as error:
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


def starting_labels(path: Path | str) -> npt.NDArray[np.unsignedinteger] | None:
    """(S) the labels that a journal's session began with; None if there were none, or if it is a list of clicks."""
    path = Path(path)
    if not (path.is_dir() or path.suffix == ".jsonl"):
        return None
    header, events = read_journal(path)
    patches = [event.patch for event in events if event.kind == "open" and event.patch is not None]
    if not patches:
        return None
    labels = np.zeros(header.shape, dtype=np.result_type(np.uint8, *(patch.dtype for patch in patches)))
    for patch in patches:
        labels[patch.region] = patch.after
    return labels


def replay(session: Session, events: Sequence[Event], on_action: Callable[[], None] | None = None) -> None:
    """Do the actions again.

    Parameters
    ----------
    on_action : called after each, for a progress bar

    Raises
    ------
    ApprenticeError : as the session's methods; the actions before it are done
    """
    for event in events:
        _do(session, event)
        if on_action is not None:
            on_action()


def _do(session: Session, event: Event) -> None:
    if event.kind == "add" and event.click is not None:
        session.add(event.click)
    elif event.kind == "choose" and event.number is not None:
        with suppress(SessionError):  # this model may propose fewer masks
            session.choose(event.number)
    elif event.kind == "accept":
        session.accept(learn=False)  # what was learnt, and when, is an action of its own
    elif event.kind == "learn":
        session.learn()
    elif event.kind == "select":
        session.select(event.label)
    elif event.kind == "discard":
        session.discard()
    elif event.kind == "forget":
        session.forget()
    elif event.kind in ("go_back", "pin", "unpin") and event.number in {version.number for version in session.versions.versions}:
        _do_to_version(session, event.kind, event.number)
    elif event.kind == "propagate" and event.axis is not None:
        session.propagate(event.label, event.axis)
    elif event.kind == "paint" and event.patch is not None:
        session.paint(event.patch.region, event.patch.after)
    elif event.kind == "approve":
        session.approve(*event.planes, label=event.label)
    elif event.kind == "name":
        session.name(event.label, event.name or "", event.color)
    else:
        with suppress(SessionError):  # what this model did not find can be neither deleted nor split
            _do_to_object(session, event)


def _do_to_object(session: Session, event: Event) -> None:
    if event.kind == "delete":
        session.delete(event.label)
    elif event.kind == "relabel" and event.into is not None:
        session.relabel(event.label, event.into)
    elif event.kind == "merge" and event.into is not None:
        session.merge(event.label, event.into)
    elif event.kind == "split":
        session.split(event.label, event.seeds)


def _do_to_version(session: Session, kind: str, number: int) -> None:
    """Only where there is one of that number: a model that learns less than the recorded one makes fewer versions."""
    if kind == "go_back":
        session.go_back(number)
    else:
        session.pin(number, kind == "pin")


def _events(path: Path) -> Iterator[Event]:
    entries, done = effective(read_journal(path)[1])
    for entry in entries[:done]:
        yield entry.action
        if entry.learn is not None:
            yield entry.learn


def _click(record: Any, number: int, path: Path) -> tuple[int, Click]:
    """Object and click of one record."""
    try:
        voxel, label = tuple(record["voxel"]), record.get("object", 1)
        positive, axis = record.get("positive", True), record.get("axis", 0)
        if not (isinstance(label, int) and label > 0 and isinstance(positive, bool) and isinstance(axis, int)):
            raise TypeError
        return label, Click(voxel, positive, axis)
    except ClickError as error:
        raise ClickError(f"click {number} of {path.name}: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ReadError(f"click {number} of {path} is {json.dumps(record)}; {_EXPECTED}") from error
