"""A journaled session, lived through again: its actions, with the labels as the journal has them, and the model from its checkpoints.

The model starts from the newest checkpoint between two objects that belongs to the actions in force. Of the actions before it only the
states are made again, and they cannot be undone; those since are done again by the model, too, as are those right before them that no
model was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from napari_apprentice.blocks import cleared
from napari_apprentice.checkpoints import Checkpoints, SnapshotStore
from napari_apprentice.cohorts import Cohort
from napari_apprentice.computers import Computer
from napari_apprentice.ground import joined
from napari_apprentice.history import State
from napari_apprentice.journal import Entry, Event, Journal, displacement, effective, journal_path, models, read_journal, standing_as
from napari_apprentice.labelmap import LabelMap, Patch
from napari_apprentice.ledger import Ledger
from napari_apprentice.legend import Legend
from napari_apprentice.objects import remainder
from napari_apprentice.origins import Origin
from napari_apprentice.teaching import lessons_of
from napari_apprentice.types import ApprenticeError, Image, InUseError, SessionError, outcome
from napari_apprentice.versions import Version

__all__ = ["Past"]

Load = Callable[[str], Any]
"""The snapshot in a checkpoint; None where there is none."""

_WITHOUT_MODEL = ("paint", "pin", "unpin", "propagate", "approve", "delete", "relabel", "merge", "split", "name")
"""What the journal alone says again, whatever the model is."""
_BESIDE = (*_WITHOUT_MODEL, "choose", "forget", "go_back")
"""What may happen while an object has clicks, and leaves them."""


class Past:
    """What a journal says of a session so far, for a new one to begin with and to live through again.

    Parameters
    ----------
    path : the journal or its folder
    image : the image that the session is about
    store : how checkpoints are read; without one none is
    computer, model : what the model runs on from now on, and which one it is ("" for the one that it was)

    Attributes
    ----------
    journal : to go on in; None where somebody else has it open
    image : as the session knew it, see `journal.standing_as`

    Raises
    ------
    SessionError : it is another image, or lies elsewhere now
    ReadError : there is no journal, or it is damaged
    WriteError : the journal cannot be continued
    """

    def __init__(self, path: Path | str, image: Image, store: SnapshotStore | None, computer: Computer | None, model: str = "") -> None:
        self.journal: Journal | None = None
        self._refusal = ""
        try:
            self.journal, self._events = Journal.reopen(path, computer, model)
            self._header = self.journal.header
        except InUseError as error:
            self._refusal = str(error)
            self._header, self._events = read_journal(path)
        self._store, self._folder, self._shape = store, journal_path(path).parent, image.shape
        *_, newest = models(self._header, self._events)
        self._made_with = newest if model not in ("", newest) else ""
        self._load: Load = cache(Checkpoints(store, self._folder).load) if store is not None else lambda _: None
        self._opened = next((event for event in self._events if event.kind == "open"), Event("open", 1))
        try:
            self.image = standing_as(self._header, image)
            if how := displacement(self._header, self.image):
                raise SessionError(
                    f"the image {image.name!r} {how}; expected it as it was; `apprentice replay` does the work on the image as it is"
                )
        except BaseException:
            self.close()
            raise

    def labels(self) -> LabelMap:
        """Those that the session began with."""
        labels = LabelMap(self._shape, folder=None if self.journal is None else cleared(self._folder))
        for patch in (event.patch for event in self._events if event.kind == "open" and event.patch is not None):
            labels.widen(patch.dtype)
            labels.write(patch.after)
            labels.settle()
        return labels

    @property
    def legend(self) -> Legend | None:
        """What the objects that the session began with are called."""
        return self._opened.legend

    @property
    def origins(self) -> Mapping[int, Origin]:
        """Where their slices come from."""
        return self._opened.origins

    @property
    def start(self) -> Version | None:
        """The version of the model that the session began with; None for the one that was shipped.

        On top of other weights it is what it remembered, if it did.
        """
        start = self._opened.version
        if start is None or not start.checkpoint or self._store is None:
            return start
        known = self._load(start.checkpoint)
        if known is None:
            with suppress(ApprenticeError, OSError):
                known = self._store.carry(self._folder / start.checkpoint)
        return replace(start, snapshot=known)

    def relive(self, ledger: Ledger, cohort: Cohort | None) -> None:
        """Do all actions again that are in force, undo those again that can be redone, and go on in the journal and for the study.

        Where somebody else has the journal open, nothing can be changed from then on.
        """
        entries, done = effective(self._events)
        ledger.made_with = self._made_with
        load, model = self._load, ledger.model
        start, snapshot = _known_model(entries, done, load, model.untaught)
        while start and entries[start - 1].action.kind in _WITHOUT_MODEL and entries[start - 1].learn is None:
            start -= 1  # so much more can be undone, for nothing
        for entry in entries[:start]:
            _repeat(ledger, entry, None)
        if snapshot is not None:
            model.segmenter.restore(snapshot)
            ledger.state, model.saved = replace(ledger.state, snapshot=snapshot), snapshot
        current = ledger.state.versions.current
        if current.snapshot is None and current.checkpoint and (known := load(current.checkpoint)) is not None:
            ledger.state = replace(ledger.state, versions=ledger.state.versions.holding(current.number, known))
        earliest = ledger.state.versions
        ledger.history.forget(ledger.state.snapshot, [e.learn.checkpoint for e in entries[:start] if e.learn and e.learn.checkpoint])
        for entry in entries[start:done]:
            _repeat(ledger, entry, load)
        with ledger.history.keeping_all():  # what is undone next is no more than memory held before
            for entry in entries[done:]:
                _repeat(ledger, entry, load)
            for _ in entries[done:]:
                ledger.undo()
        ledger.journal, ledger.header, ledger.refusal = self.journal, self._header, self._refusal
        by = self._header.in_folder(self._folder)
        here = self.journal is not None
        if cohort is not None and here:
            cohort.take_back(by, {event.version.shared for event in self._events if event.version is not None})
        known, model.again = (earliest, ledger.state.versions), _learnt_again(self._events)
        model.attach(self._folder if here else None, self._store, cohort if here else None, by, known)

    def close(self) -> None:
        """Close the journal, where it is open."""
        if self.journal is not None:
            self.journal.close()


def _repeat(ledger: Ledger, entry: Entry, load: Load | None) -> None:
    """Do one journaled action again, with its journaled labels; without ``load`` the model is left out of it."""
    event = entry.action
    patch = ledger.labels.again(event.patch) if event.patch is not None else None
    ledger.commit(event.kind, _after(ledger, entry, patch, load), patch, 0.0, checkpoint=event.checkpoint)
    if entry.learn is not None:
        _repeat_learning(ledger, entry.learn, load)


def _after(ledger: Ledger, entry: Entry, patch: Patch | None, load: Load | None) -> State:
    """The state that an action led to."""
    event, state, labels = entry.action, ledger.state, ledger.labels
    if event.kind == "add" and event.click is not None:
        return state.clicked(event.click) if load is None else ledger.model.answered(labels, state, event.click)
    if event.kind == "choose" and event.number is not None:
        return state.choosing(event.number)
    if event.kind == "accept":
        lessons = lessons_of(ledger.model.image, labels, state) if load is not None or entry.learn is None else ()
        return state.accepted(lessons, event.name or "")
    if event.kind == "paint" and patch is not None:
        return state.painted(patch)
    if event.kind == "propagate" and event.axis is not None:
        return state.propagated(event.label, event.axis, dict(event.carried), event.ended)
    if event.kind == "discard":
        return state.discarded()
    if event.kind == "approve":
        return state.approved(event.label, event.planes)
    if event.kind in ("delete", "relabel", "merge", "split", "name"):
        return _after_naming_or_renumbering(labels, state, event, patch)
    if event.kind in ("go_back", "forget"):
        return _used(ledger, event.number or 0, load)
    if event.kind in ("pin", "unpin") and event.number is not None:
        return replace(state, versions=state.versions.pinning(event.number, event.kind == "pin"))
    return state.opening(event.label)


def _after_naming_or_renumbering(labels: LabelMap, state: State, event: Event, patch: Patch | None) -> State:
    if event.kind == "name":
        return state.named(event.label, event.name or "", event.color)
    if event.kind == "relabel" and event.into is not None:
        return state.relabelled(event.label, event.into)
    if event.kind == "merge" and event.into is not None:
        return state.merged(event.label, event.into, joined(labels, state, event.label, event.into))
    if event.kind == "split" and patch is not None:
        return state.split(event.label, patch, remainder(labels, event.label, patch))
    return state.deleted(event.label)


def _used(ledger: Ledger, number: int, load: Load | None) -> State:
    """The state after going to a version again; where that is not kept any more the model stays, without ``load`` in any case."""
    state, version = ledger.state, ledger.state.versions[number]
    versions, snapshot = state.versions.using(number), version.snapshot
    if snapshot is None and load is not None and version.checkpoint:
        snapshot = load(version.checkpoint)
    if snapshot is None or load is None:
        return replace(state, versions=versions)
    ledger.model.segmenter.restore(snapshot)
    return replace(state, snapshot=snapshot, versions=versions.holding(number, snapshot))


def _repeat_learning(ledger: Ledger, event: Event, load: Load | None) -> None:
    """Learn again what was learnt, from the checkpoint if there is one; without ``load`` only clear the lessons."""
    state, model, version, known = ledger.state, ledger.model, event.version, None
    snapshot = load(event.checkpoint) if load is not None and event.checkpoint else None
    if snapshot is not None:
        model.segmenter.restore(snapshot)
        known = model.saved = snapshot
    elif load is not None:
        if event.report is not None and not ledger.made_with:  # practice takes as long as it took, and other weights will practise on
            outcome(model.policy.practising(model.segmenter, event.report.practised))
        outcome(model.taught(state, None))
        known = model.segmenter.snapshot()
    if version is not None:
        version = replace(version, snapshot=known)
    snapshot = state.snapshot if known is None else known
    ledger.amend(state.learnt(snapshot, event.label, version, event.report, event.effort), event.checkpoint)


def _learnt_again(events: Sequence[Event]) -> dict[str, Version]:
    """See `Apprentice.again`."""
    learnt: dict[int, str | None] = {}
    again = {}
    for event in events:
        if event.version is not None and event.kind == "learn":
            learnt[event.version.number] = event.version.shared
        elif event.version is not None and event.kind == "redo" and (shared := learnt.get(event.version.number)):
            again[shared] = event.version
    return again


def _known_model(entries: Sequence[Entry], done: int, load: Load, untaught: Any) -> tuple[int, Any]:
    """The newest position between two objects at which the model is on the disk, and that model; None if it is as at the start.

    No lesson waits there: what the model said first, which is part of it, only the model can say again. And from there on nothing goes back
    to an earlier version that is not on the disk: that has to be learnt again first.

    Parameters
    ----------
    done : the position lies among so many of the entries; the others can be redone
    """
    between, clicked, waits = [0], False, False
    for position, entry in enumerate(entries[:done], start=1):
        clicked = entry.action.kind == "add" or (clicked and entry.action.kind in _BESIDE)
        waits = entry.learn is None and (waits or entry.action.kind == "accept")
        if not (clicked or waits):
            between.append(position)
    for position in reversed(between):
        if not _within_reach(entries, position, load):
            continue
        for entry in reversed(entries[:position]):
            for event in (entry.learn, entry.action):
                if event is not None and event.checkpoint and (snapshot := load(event.checkpoint)) is not None:
                    return position, snapshot
                if event is not None and (event.taught or event.kind == "forget"):
                    break
            else:
                continue
            if event.kind == "forget":
                return position, untaught
            break
        else:
            return position, None
    return 0, None


def _within_reach(entries: Sequence[Entry], position: int, load: Load) -> bool:
    """Whether all versions that are gone back to from a position on are on the disk, or made from there on, or given."""
    learnt = [entry.learn.version for entry in entries[:position] if entry.learn is not None and entry.learn.version is not None]
    gone_back_to = {entry.action.number for entry in entries[position:] if entry.action.kind == "go_back"}
    return all(v.number not in gone_back_to or (v.checkpoint and load(v.checkpoint) is not None) for v in learnt)
