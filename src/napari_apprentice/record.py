"""The study record: what journals say of the work, as tables of clicks and of objects.

A `CaseRecord` is what one journal says of one image. Its tables have a row for every click and for every object, units in the names of
the columns, and are written by `measure.as_csv`; those of several cases follow each other in one table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_apprentice.agreement import Agreement, Match, agreement
from napari_apprentice.blocks import BlockArray
from napari_apprentice.geometry import voxel_to_world
from napari_apprentice.journal import JOURNAL_NAME, Event, Header, effective, journal_path, labels_of, models, read_journal
from napari_apprentice.legend import Legend
from napari_apprentice.measure import Row, Work, in_unit, usual_unit
from napari_apprentice.types import Click, ReadError
from napari_apprentice.versions import Effort
from napari_apprentice.work import active_seconds, final_label, seconds_between, versions_in_use, work_of

__all__ = ["CaseRecord", "ClickRecord", "ObjectRecord", "case_record", "click_rows", "journals_in", "object_rows"]


@dataclass(frozen=True, eq=False)
class ClickRecord:
    """One click.

    Attributes
    ----------
    event : what the journal says of it
    click : where it was made
    number, of_object : its place among all clicks of the case and among those of its object, from 1
    elapsed_s : seconds since the session began, pauses included
    active_s : seconds of work that led to it, from the action before; 0 after a pause, and of a run's
    active_total_s : seconds of work up to it
    object : id that its object has in the end
    version : of the model that answered
    taken_back : whether it was undone for good
    """

    event: Event
    click: Click
    number: int
    of_object: int
    elapsed_s: float
    active_s: float
    active_total_s: float
    object: int
    version: int
    taken_back: bool

    @property
    def by_hand(self) -> bool:
        """Whether a person made it, and not a run."""
        return self.event.by is None


@dataclass(frozen=True, eq=False)
class ObjectRecord:
    """One object that was worked on.

    Attributes
    ----------
    label : id that it has in the end
    name : of its class; "" for none
    work : a person's clicks and seconds, and the version of the model
    negative, taken_back : of these clicks, those that said "outside", and that were undone for good
    accepted : when it was accepted first, ISO 8601 in UTC; "" if it was not
    voxels : how many it has in the end
    effort : what its first click brought, taught and untaught; None where that was not measured
    match : with a truth
    run_clicks : that the run of a project made for it
    """

    label: int
    name: str
    work: Work
    negative: int
    taken_back: int
    accepted: str
    voxels: int
    effort: Effort | None = None
    match: Match | None = None
    run_clicks: int = 0

    @property
    def stands(self) -> bool:
        """Whether it was accepted and is there in the end."""
        return bool(self.accepted) and self.voxels > 0


@dataclass(frozen=True, eq=False)
class CaseRecord:
    """What one journal says.

    Attributes
    ----------
    session : name of the folder that the journal lies in
    header, events : of the journal
    clicks : all of them, also those that were taken back, and those of a run
    objects : by ascending id; those that are gone in the end among them
    active_s : seconds of work, without pauses
    agreement : of the labels with a truth; None without one
    """

    session: str
    header: Header
    events: tuple[Event, ...]
    clicks: tuple[ClickRecord, ...]
    objects: tuple[ObjectRecord, ...]
    active_s: float
    agreement: Agreement | None = None

    @property
    def name(self) -> str:
        """Of the image."""
        return self.header.image

    @property
    def by_hand(self) -> tuple[ClickRecord, ...]:
        """The clicks that a person made."""
        return tuple(click for click in self.clicks if click.by_hand)

    @property
    def is_work(self) -> bool:
        """Whether a person did something, and not only a run."""
        return any(event.by is None for event in self.events)

    @property
    def accepted(self) -> tuple[ObjectRecord, ...]:
        """The objects that were accepted and are there in the end, in the order of their first acceptance."""
        return tuple(sorted((one for one in self.objects if one.stands), key=lambda one: one.accepted))


def journals_in(paths: Iterable[Path]) -> list[Path]:
    """The journals that paths mean, oldest first: a journal itself, the folder of one, or any folder that has some within.

    Raises
    ------
    ReadError : there is none, or one of them is damaged
    """
    found: dict[Path, str] = {}
    for path in paths:
        direct = journal_path(path)
        below = [direct] if direct.is_file() else sorted(path.rglob(JOURNAL_NAME)) if path.is_dir() else []
        if not below:
            raise ReadError(f"{path} is no journal and holds none; expected a file called {JOURNAL_NAME}, or a folder with some")
        found |= {journal.resolve(): "" for journal in below}
    return sorted(found, key=lambda journal: (read_journal(journal)[0].time, journal))


def case_record(path: Path | str, truth: Callable[[Header], Any] | None = None) -> CaseRecord:
    """What a journal says.

    Parameters
    ----------
    path : the journal or its folder
    truth : gives the (S) ids to compare a case with, or None for none

    Raises
    ------
    ReadError : there is no journal, or it is damaged
    LabelsError : the truth has another shape
    """
    path = journal_path(path)
    header, events = read_journal(path)
    final, labels = final_label(events), labels_of(header, events)
    active = list(active_seconds(header, events))
    known = truth(header) if truth is not None else None
    agreed = agreement(labels, known) if known is not None else None
    clicks = tuple(_clicks(header, events, active, final))
    objects = tuple(_objects(header, events, clicks, _sizes(labels), agreed))
    return CaseRecord(path.absolute().parent.name, header, events, clicks, objects, sum(seconds for _, seconds in active), agreed)


# --- tables ---


def click_rows(case: CaseRecord, unit: str | None = None) -> list[Row]:
    """A row for every click; world axes are called x, y and z as in NIfTI, voxel axes as in the image.

    Parameters
    ----------
    unit : of length, one of `measure.UNITS`; by default the `measure.usual_unit` of the image's voxels. The table of several cases is
        their rows one after the other, `measure.in_unit`

    Raises
    ------
    InputError : there is no such unit
    """
    names = {label.label: label.name for label in case.objects}
    edge = abs(np.linalg.det(np.array(case.header.affine)[:-1, :-1])) ** (1 / len(case.header.shape))
    return in_unit([_click_row(case, one, names) for one in case.clicks], usual_unit(float(edge)) if unit is None else unit)


def _click_row(case: CaseRecord, one: ClickRecord, names: Mapping[int, str]) -> Row:
    header, click, event = case.header, one.click, one.event
    axes, solid = "zyx"[-len(click.voxel) :], len(click.voxel) == 3
    row: Row = _about(case) | {"click": one.number, "action": event.sequence, "time": event.time}
    row |= {"elapsed_s": _rounded(one.elapsed_s), "active_s": _rounded(one.active_s), "active_total_s": _rounded(one.active_total_s)}
    row |= {"object": event.label, "final_object": one.object, "class": names.get(one.object, ""), "click_of_object": one.of_object}
    row |= {"positive": int(click.positive), "across": axes[click.axis] if solid else "", "slice": click.plane.index if solid else None}
    row |= {"box": "" if click.box is None else " ".join(map(str, click.box))}
    world = voxel_to_world(click.voxel, header.affine).tolist()
    row |= {f"{axis}_voxel": int(v) for axis, v in reversed([*zip(axes, click.voxel, strict=True)])}
    row |= {f"{axis}_{header.units}": v for axis, v in reversed([*zip(axes, world, strict=True)])}
    row |= {"changed_voxels": event.changed, "latency_s": event.latency_s, "model_version": one.version}
    return row | {"taught": int(event.taught), "taken_back": int(one.taken_back), "done_by": one.event.by or "hand"}


def object_rows(case: CaseRecord) -> list[Row]:
    """A row for every object that was worked on; columns about a truth are there only if there is one."""
    return [_object_row(case, one) for one in case.objects]


def _object_row(case: CaseRecord, one: ObjectRecord) -> Row:
    row: Row = _about(case) | {"object": one.label, "class": one.name, "accepted": one.accepted or None, "voxels": one.voxels}
    row |= {"clicks": one.work.clicks, "negative_clicks": one.negative, "taken_back_clicks": one.taken_back}
    row |= {"active_s": _rounded(one.work.active_s), "model_version": one.work.version}
    row |= {"run_clicks": one.run_clicks}
    effort = one.effort
    row |= {"first_click_iou": effort.taught_iou if effort else None, "untaught_first_click_iou": effort.untaught_iou if effort else None}
    if case.agreement is not None:
        match, solid = one.match, len(case.header.shape) == 3
        row |= {"truth": match.truth, "dice": match.dice, "iou": match.iou} if match else {"truth": None, "dice": None, "iou": None}
        row |= {"slices_dice": match.slices_dice if match else None} if solid else {}
    return row


def _about(case: CaseRecord) -> Row:
    header, model = case.header, ", ".join(models(case.header, case.events))
    return {"case": case.name, "session": case.session, "study": header.cohort, "model": model, "policy": header.policy}


def _rounded(seconds: float) -> float:
    return round(seconds, 3)


# --- what events say ---


def _clicks(
    header: Header, events: Sequence[Event], active: Sequence[tuple[Event, float]], final: Callable[[Event], int]
) -> Iterator[ClickRecord]:
    entries, done = effective(events)
    standing = {entry.action.sequence for entry in entries[:done]}
    versions = dict(zip((event.sequence for event in events), versions_in_use(events), strict=True))
    seen: Counter[int] = Counter()
    total = 0.0
    for event, seconds in active:
        total += seconds
        if event.click is not None:
            label = final(event)
            seen[label] += 1
            yield ClickRecord(
                event,
                event.click,
                number=seen.total(),
                of_object=seen[label],
                elapsed_s=seconds_between(header.time, event.time),
                active_s=seconds,
                active_total_s=total,
                object=label,
                version=versions[event.sequence],
                taken_back=event.sequence not in standing,
            )


def _objects(
    header: Header, events: Sequence[Event], clicks: Sequence[ClickRecord], sizes: Mapping[int, int], agreed: Agreement | None
) -> Iterator[ObjectRecord]:
    entries, done = effective(events)
    final, costs, names = final_label(events), work_of(header, events), _legend(events).names
    accepted: dict[int, str] = {}
    efforts: dict[int, Effort] = {}
    for entry in entries[:done]:
        if entry.action.kind == "accept":
            accepted.setdefault(final(entry.action), entry.action.time)
        if entry.learn is not None and entry.learn.effort is not None:
            efforts.setdefault(final(entry.learn), entry.learn.effort)
    given = {int(i) for event in events if event.kind == "open" and event.patch is not None for i in event.patch.ids}
    made: dict[int, list[ClickRecord]] = {}
    for one in clicks:
        made.setdefault(one.object, []).append(one)
    matches = {match.label: match for match in agreed.matches} if agreed is not None else {}
    for label in sorted(set(made) | set(accepted) | (set(sizes) - given)):
        own = [one for one in made.get(label, []) if one.by_hand]
        negative, undone = sum(not one.click.positive for one in own), sum(one.taken_back for one in own)
        about = (label, names.get(label, ""), replace(costs.get(label, Work(0, 0.0)), clicks=len(own)), negative, undone)
        of_run = len(made.get(label, [])) - len(own)
        yield ObjectRecord(*about, accepted.get(label, ""), sizes.get(label, 0), efforts.get(label), matches.get(label), of_run)


def _sizes(labels: Any) -> Counter[int]:
    """Voxels of every id."""
    pieces = (values for _, values in labels.pieces()) if isinstance(labels, BlockArray) else [labels]
    sizes: Counter[int] = Counter()
    for values in pieces:
        ids, counts = np.unique(values, return_counts=True)
        sizes.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
    del sizes[0]
    return sizes


def _legend(events: Sequence[Event]) -> Legend:
    """What objects are called in the end."""
    entries, done = effective(events)
    opened = [event for event in events if event.kind == "open"]
    legend = next((event.legend for event in opened if event.legend is not None), Legend())
    met: set[int] = set()
    for event in [*opened, *(entry.action for entry in entries[:done])]:
        ids: frozenset[int] = event.patch.ids if event.patch is not None else frozenset()
        if event.names:
            legend = legend.naming(event.label, event.name or "", event.color)
        elif event.kind == "delete":
            legend = legend.without(event.label)
        elif event.kind == "split":
            for label in sorted(ids - met - {0}):
                legend = legend.copying(event.label, label)
        elif event.kind in ("relabel", "merge") and event.into is not None:
            if event.kind == "relabel" or event.into not in legend.names:
                legend = legend.copying(event.label, event.into)
            legend = legend.without(event.label)
        met |= ids
    return legend
