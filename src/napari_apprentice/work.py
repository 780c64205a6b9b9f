"""What every object of a session cost, as its journal tells: clicks, active seconds, and the version of the model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from napari_apprentice.journal import Event, Header, effective, fingerprint, read_journal
from napari_apprentice.measure import Work
from napari_apprentice.types import Image, ReadError

__all__ = ["PAUSE_S", "active_seconds", "final_label", "seconds_between", "versions_in_use", "work_in", "work_of"]

PAUSE_S = 20.0
"""Who does nothing for longer does something else: such a gap between two actions is no work."""

_SHAPING = ("add", "accept", "paint", "propagate")
_BY_ITSELF = ("open", "learn")


def work_in(path: Path | str, image: Image) -> dict[int, Work]:
    """What the objects of a session cost, by id.

    Parameters
    ----------
    path : of the journal, or of its folder
    image : what the journal has to be about

    Raises
    ------
    ReadError : as `journal.read_journal`; or it is about another image
    """
    header, events = read_journal(path)
    if header.fingerprint != fingerprint(image):
        raise ReadError(f"the journal {path} is about {header.image!r} of shape {header.shape}; expected one about {image.name!r}")
    return work_of(header, events)


def work_of(header: Header, events: Sequence[Event]) -> dict[int, Work]:
    """What objects cost, by the ids that they have in the end: what was merged cost what its parts did.

    Clicks count, a run's too, and take time, whether or not they were taken back. The version is the one in use at the last action that
    shaped the object and was not taken back.
    """
    final = final_label(events)
    clicks = Counter(final(event) for event in events if event.kind == "add")
    seconds: dict[int, float] = {}
    for event, active_s in active_seconds(header, events):
        seconds[final(event)] = seconds.get(final(event), 0.0) + active_s
    entries, done = effective(events)
    shaping = {entry.action.sequence for entry in entries[:done] if entry.action.kind in _SHAPING}
    versions = {final(e): number for e, number in zip(events, versions_in_use(events), strict=True) if e.sequence in shaping}
    return {label: Work(clicks[label], seconds[label], versions.get(label)) for label in sorted(seconds) if label}


def final_label(events: Sequence[Event]) -> Callable[[Event], int]:
    """Tells the id that the object of an event has in the end: actions that stand may have renumbered it, or merged it into another."""
    entries, done = effective(events)
    standing = [entry.action for entry in entries[:done]]
    renamed = [(event.sequence, event.label, event.into) for event in standing if event.kind in ("relabel", "merge") and event.into]

    def final(event: Event) -> int:
        label = event.label
        for sequence, before, after in renamed:
            label = after if label == before and event.sequence <= sequence else label
        return label

    return final


def versions_in_use(events: Iterable[Event]) -> list[int]:
    """The version of the model that every event found in use, whether or not it was taken back later; 0 is the model as shipped."""
    found, after, done = [], [0], 0  # after every action that can be taken back or was; how many of them are done
    for event in events:
        if event.kind == "open" and event.version is not None:
            after = [event.version.number]
        found.append(after[done])
        if event.kind in ("undo", "redo"):
            done += 1 if event.kind == "redo" else -1
        elif event.kind == "learn":
            after[done:] = [event.version.number if event.version is not None else after[done]]
        elif event.kind != "open":
            after[done + 1 :] = [(event.number or 0) if event.kind in ("go_back", "forget") else after[done]]
            done += 1
    return found


def active_seconds(header: Header, events: Iterable[Event]) -> Iterator[tuple[Event, float]]:
    """Every action and the seconds of a person's work that led to it, from the action before; 0 after a pause (see `PAUSE_S`).

    Learning is no action. What a run does takes nobody's time, and who goes on with it begins to work at the first action of their own.
    """
    before = header.time
    for event in events:
        if event.by is not None:
            before = ""
        if event.kind not in _BY_ITSELF:
            gap = seconds_between(before, event.time)
            yield event, gap if 0 <= gap <= PAUSE_S else 0.0
            before = event.time if event.by is None else ""


def seconds_between(before: str, after: str) -> float:
    """Between two times in ISO 8601; NaN where one of them was not written down, or only one of them says in which zone."""
    try:
        return (datetime.fromisoformat(after) - datetime.fromisoformat(before)).total_seconds()
    except (ValueError, TypeError):
        return math.nan
