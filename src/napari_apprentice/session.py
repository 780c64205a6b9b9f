"""The session: clicks in, labels out, and a model that learns; the only object of the package that changes.

What the user has done is a chain of immutable states. Every action computes the next state and the change of the labels first, writes
both to the journal, and only then makes them count; whatever raises on the way leaves clicks, labels and model as they were. Undo and
redo move along the chain and restore all three exactly: the states hold the model's snapshots by reference, and the change of the
labels is kept as the old and the new values of the smallest box around it.

An object may be clicked in several planes, across different axes, before it is accepted. `painting` has the rules of what an answer may
write; `Session.paint` is the user's own hand and may write any label anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_apprentice.checkpoints import Checkpoints, SnapshotStore
from napari_apprentice.history import History, State, Step
from napari_apprentice.journal import Entry, Event, Journal, effective, fingerprint
from napari_apprentice.labelmap import LARGEST_ID, LabelMap, Patch, as_ids, as_region
from napari_apprentice.painting import previous_answer, repainting
from napari_apprentice.types import (
    AdaptationPolicy,
    Click,
    Image,
    LabelsError,
    LearningReport,
    Lesson,
    Plane,
    Prediction,
    Prompt,
    Segmenter,
    SessionError,
)

__all__ = ["UNDO_MEMORY_BYTES", "Change", "Session", "SnapshotStore", "resume"]

UNDO_MEMORY_BYTES = 2 * 1024**3
"""What the undo history may take by default: label patches, predictions, lessons, and snapshots that tell their ``nbytes``."""

_Load = Callable[[str], Any]


@dataclass(frozen=True, eq=False)
class Change:
    """What an action changed in the labels.

    Attributes
    ----------
    region : the smallest box, one slice per axis; None if nothing changed
    values : what stands there now, in the labels' type; None if nothing changed
    label : id of the object that is open now
    """

    region: tuple[slice, ...] | None
    values: npt.NDArray[Any] | None
    label: int


class Session:
    """Segments one image, object by object.

    Parameters
    ----------
    image : what is segmented
    segmenter, policy : the model, and how it learns. The segmenter belongs to the session as long as that lives
    labels : (S) integers to start from, 0 is background; their ids are protected and count as finished
    journal : a new one; None keeps no record
    store : how the model is written beside the journal after every `learn`, which makes `resume` fast
    undo_memory_bytes : when the undo history outgrows this, the oldest actions can no longer be undone

    Raises
    ------
    LabelsError : labels of another shape than the image, or not ids
    SessionError : the journal holds an earlier session (see `resume`)
    WriteError : the journal cannot be written
    """

    def __init__(
        self,
        image: Image,
        segmenter: Segmenter,
        policy: AdaptationPolicy,
        *,
        labels: npt.ArrayLike | None = None,
        journal: Journal | None = None,
        store: SnapshotStore | None = None,
        undo_memory_bytes: int = UNDO_MEMORY_BYTES,
    ) -> None:
        if journal is not None and journal.sequence:
            raise SessionError(f"a journal with {journal.sequence} actions arrived; expected a new one (resume continues an old one)")
        self.image = image
        self._segmenter, self._policy = segmenter, policy
        self._labels = LabelMap(image.shape, labels)
        ids = self._labels.ids() if labels is not None else ()
        highest = max(ids, default=0)
        self._untaught = segmenter.snapshot()
        self._state = State(highest + 1, self._untaught, highest, finished=ids)
        self._history = History(undo_memory_bytes)
        self._saved = self._untaught
        self._attach(journal, store)
        if ids:
            patch = Patch.between(np.zeros_like(self.labels), self.labels, (0,) * image.ndim)
            self._write(Event("open", highest + 1, patch.changed if patch else 0, patch=patch))

    # --- what there is ---

    @property
    def labels(self) -> npt.NDArray[Any]:
        """(S) ids of all objects, the open one included; a read-only view that later actions show in.

        The type is the smallest unsigned one at first and widens when an id needs it: the array is a new one then.
        """
        return self._labels.array

    @property
    def label(self) -> int:
        """Id of the open object."""
        return self._state.label

    @property
    def clicks(self) -> tuple[Click, ...]:
        """Of the open object, in order."""
        return self._state.clicks

    @property
    def predictions(self) -> Mapping[Plane, Prediction]:
        """The newest answer in every plane of the open object that was clicked in."""
        return MappingProxyType(dict(self._state.predictions))

    @property
    def finished(self) -> tuple[int, ...]:
        """Ids of the accepted objects, in order."""
        return self._state.finished

    @property
    def pending(self) -> tuple[Lesson, ...]:
        """Accepted slices that `learn` will learn from."""
        return self._state.pending

    @property
    def can_undo(self) -> bool:
        """Whether there is an action to undo."""
        return self._history.done > 0

    @property
    def can_redo(self) -> bool:
        """Whether there is an undone action to do again."""
        return self._history.undone > 0

    # --- what can be done ---

    def add(self, click: Click) -> Change:
        """Answer a click. It may repeat or contradict earlier ones: the model is told all of them, newest last.

        Raises
        ------
        ClickError : it does not lie in the image
        ImageError : its slice cannot be used
        WriteError : the journal cannot be written
        """
        self.image.check_click(click)
        with self._safely() as began:
            after = self._answered(click)
            patch = repainting(self._labels, self._state, click, after.predictions[click.plane])
            return self._commit("add", after, patch, began, click=click)

    def accept(self, *, learn: bool = True) -> Change:
        """Finish the open object and open the next id. With ``learn``, `learn` is part of the action.

        Every plane that was clicked in and holds some of the object becomes a lesson.

        Raises
        ------
        SessionError : the open object has neither a click nor a voxel
        WriteError : the journal or the checkpoint cannot be written
        """
        if not self.clicks:
            self._layers_of_open_object()
        with self._safely() as began:
            after, event = self._state.accepted(self._lessons()), None
            if learn and after.pending:
                after, event = self._learnt(after, began)
            return self._commit("accept", after, None, began, learn=event)

    def learn(self) -> LearningReport | None:
        """Learn from all pending lessons, in order; None if there are none.

        What was learnt belongs to the newest action: undoing that action brings back both the model before and the lessons. Actions
        that were undone cannot be redone afterwards.

        Raises
        ------
        WriteError : the journal or the checkpoint cannot be written
        """
        if not self._state.pending:
            return None
        with self._safely() as began:
            after, event = self._learnt(self._state, began)
            self._write(event)
        self._amend(after, event.checkpoint)
        return event.report

    def forget(self) -> Change:
        """Make the model what it was before this session taught it anything. Clicks and labels stay."""
        with self._safely() as began:
            self._segmenter.restore(self._untaught)
            return self._commit("forget", replace(self._state, snapshot=self._untaught), None, began)

    def undo(self) -> Change:
        """Take back the newest action: labels, clicks and model.

        Raises
        ------
        SessionError : there is none
        """
        if not self.can_undo:
            raise SessionError("an undo arrived, but there is no action to undo; expected one after an action")
        step = self._history.back()
        return self._move("undo", step.before, step.patch, step.patch.before if step.patch else None)

    def redo(self) -> Change:
        """Do the newest undone action again, with the same outcome.

        Raises
        ------
        SessionError : there is none
        """
        if not self.can_redo:
            raise SessionError("a redo arrived, but there is no undone action; expected one after an undo")
        step = self._history.forth()
        return self._move("redo", step.after, step.patch, step.patch.after if step.patch else None)

    def select(self, label: int) -> Change:
        """Open an object, to correct it or to begin it under an id of your choice. The voxels of the object open so far stay.

        Raises
        ------
        LabelsError : not an id
        """
        if int(label) != label or not 1 <= label <= LARGEST_ID:
            raise LabelsError(f"label {label} arrived; expected a whole number from 1 to {LARGEST_ID} (0 is background)")
        if label == self.label:
            return Change(None, None, self.label)
        with self._safely() as began:
            return self._commit("select", self._state.opening(int(label)), None, began)

    def paint(self, region: Sequence[slice], values: npt.ArrayLike) -> Change:
        """Write labels by hand, over whatever is there.

        Parameters
        ----------
        region : one slice per axis, without steps
        values : integers of the region's shape, 0 is background

        Raises
        ------
        LabelsError : the values do not fit the region, or are not ids
        WriteError : the journal cannot be written
        """
        region = as_region(region, self.image.shape)
        values = as_ids(values, tuple(side.stop - side.start for side in region))
        with self._safely() as began:
            patch = self._labels.patch(region, values)
            if patch is None:
                return Change(None, None, self.label)
            return self._commit("paint", self._state.painted(patch), patch, began)

    def discard(self) -> Change:
        """Drop the clicks and the voxels of the open object; its id stays open, and the model keeps what the clicks taught it.

        Raises
        ------
        SessionError : it has neither
        WriteError : the journal cannot be written
        """
        layers, patch = self._layers_of_open_object(), None
        with self._safely() as began:
            if layers is not None:
                here = self.labels[layers]
                patch = self._labels.patch((layers,), np.where(here == self.label, 0, here))
            return self._commit("discard", self._state.opening(self.label), patch, began)

    def close(self) -> None:
        """Close the journal."""
        if self._journal is not None:
            self._journal.close()

    # --- the next state ---

    def _layers_of_open_object(self) -> slice | None:
        """Layers of the first axis that hold the open object; SessionError if it has neither voxels nor clicks."""
        layers = self._labels.layers_with(self.label)
        if layers is None and not self.clicks:
            raise SessionError(f"object {self.label} has neither clicks nor voxels; expected at least one of them")
        return layers

    def _answered(self, click: Click) -> State:
        """The state after the model's answer to a click."""
        state, plane = self._state.clicked(click), click.plane
        prompt = Prompt(state.clicks_in(plane), previous_answer(self._labels, state, plane))
        answer = self._policy.on_click(self._segmenter, self.image.slice(plane), prompt)
        return state.answered(plane, answer, self._segmenter.snapshot())

    def _lessons(self) -> tuple[Lesson, ...]:
        """What there is to learn from the open object as it is now."""
        state = self._state
        masks = {plane: self._labels.plane(plane) == state.label for plane in dict.fromkeys(click.plane for click in state.clicks)}
        return tuple(
            Lesson(self.image.slice(plane), state.clicks_in(plane), mask, self.image.name) for plane, mask in masks.items() if mask.any()
        )

    def _learnt(self, state: State, began: float) -> tuple[State, Event]:
        """``state`` after learning from its lessons, and the event that says so."""
        report = _combined([self._policy.on_accept(self._segmenter, lesson) for lesson in state.pending])
        after = replace(state, snapshot=self._segmenter.snapshot(), pending=())
        checkpoint = None
        if self._journal is not None and self._checkpoints is not None and after.snapshot is not self._saved:
            checkpoint = f"model-{self._journal.sequence + 1:06d}.checkpoint"
            self._checkpoints.save(after.snapshot, checkpoint)
        taught = after.snapshot is not state.snapshot
        seconds = time.perf_counter() - began
        return after, Event("learn", self.label, latency_s=seconds, taught=taught, report=report, checkpoint=checkpoint)

    # --- making it count ---

    def _attach(self, journal: Journal | None, store: SnapshotStore | None) -> None:
        self._journal = journal
        self._checkpoints = None if journal is None or store is None else Checkpoints(store, journal.path.parent)

    @contextmanager
    def _safely(self) -> Iterator[float]:
        """Gives the time it began; puts the model back if anything raises."""
        try:
            yield time.perf_counter()
        except BaseException:
            self._segmenter.restore(self._state.snapshot)
            raise

    def _write(self, *events: Event) -> None:
        if self._journal is not None:
            self._journal.append(*events)

    def _commit(
        self, kind: str, after: State, patch: Patch | None, began: float, *, click: Click | None = None, learn: Event | None = None
    ) -> Change:
        """Record an action, then let it count."""
        before, values = self._state, None
        if patch is not None:
            values = patch.after
            self._labels.widen(patch.dtype)
        taught = learn is None and after.snapshot is not before.snapshot
        label = after.label if kind == "select" else before.label
        event = Event(kind, label, patch.changed if patch else 0, time.perf_counter() - began, click, patch, taught)
        self._write(event, *([learn] if learn else []))
        self._state = after
        self._history.push(Step(before, after, patch))
        if learn is not None:
            self._amend(after, learn.checkpoint)
        return self._show(patch, values)

    def _amend(self, after: State, checkpoint: str | None) -> None:
        """Make ``after`` the outcome of the newest action."""
        self._state = after
        self._history.amend(after, checkpoint)
        if checkpoint is not None and self._checkpoints is not None:
            self._saved = after.snapshot
            self._checkpoints.keep_newest(self._history.checkpoints)

    def _move(self, kind: str, state: State, patch: Patch | None, values: npt.NDArray[Any] | None) -> Change:
        """Undo or redo."""
        with self._safely() as began:
            taught = state.snapshot is not self._state.snapshot
            if taught:
                self._segmenter.restore(state.snapshot)
            label = (state if kind == "undo" else self._state).label
            self._write(Event(kind, label, patch.changed if patch else 0, time.perf_counter() - began, taught=taught))
        self._state = state
        self._history.move(1 if kind == "redo" else -1)
        if self._checkpoints is not None and (newest := self._history.newest_checkpoint):
            name, snapshot = newest
            self._checkpoints.ensure(snapshot, name)
        return self._show(patch, values)

    def _show(self, patch: Patch | None, values: npt.NDArray[Any] | None) -> Change:
        """Write values into the labels and say so."""
        if patch is None or values is None:
            return Change(None, None, self.label)
        return Change(patch.region, self._labels.write(patch.region, values), self.label)

    # --- living through it again ---

    def _relive(self, entries: Sequence[Entry], done: int, load: _Load) -> None:
        """Do journaled actions again (see `resume`): the first ``done`` of ``entries`` to stay, the others to be redone."""
        start, snapshot = _known_model(entries[:done], load)
        for entry in entries[:start]:
            self._repeat(entry)
        if snapshot is not None:
            self._segmenter.restore(snapshot)
            self._state, self._saved = replace(self._state, snapshot=snapshot), snapshot
        self._history.forget(self._state.snapshot, [e.learn.checkpoint for e in entries[:start] if e.learn and e.learn.checkpoint])
        for entry in entries[start:]:
            self._repeat(entry, load)
        while self._history.done > done - start:
            self.undo()

    def _repeat(self, entry: Entry, load: _Load | None = None) -> None:
        """Do one journaled action again, with its journaled labels; without ``load`` the model is left out of it."""
        event, state = entry.action, self._state
        patch = self._labels.patch(event.patch.region, event.patch.after) if event.patch is not None else None
        if event.kind == "add" and event.click is not None:
            after = state.clicked(event.click) if load is None else self._answered(event.click)
        elif event.kind == "accept":
            after = state.accepted(self._lessons() if load is not None or entry.learn is None else ())
        elif event.kind == "paint" and patch is not None:
            after = state.painted(patch)
        elif event.kind == "forget":
            self._segmenter.restore(self._untaught)
            after = replace(state, snapshot=self._untaught)
        else:
            after = state.opening(event.label)
        self._commit(event.kind, after, patch, 0.0)
        if entry.learn is not None:
            self._repeat_learning(entry.learn, load)

    def _repeat_learning(self, event: Event, load: _Load | None) -> None:
        """Learn again what was learnt, from the checkpoint if there is one; without ``load`` only clear the lessons."""
        after = replace(self._state, pending=())
        snapshot = load(event.checkpoint) if load is not None and event.checkpoint else None
        if snapshot is not None:
            self._segmenter.restore(snapshot)
            after = replace(after, snapshot=snapshot)
            self._saved = snapshot
        elif load is not None:
            after, _ = self._learnt(self._state, 0.0)
        self._amend(after, event.checkpoint)


def resume(path: Path | str, image: Image, segmenter: Segmenter, policy: AdaptationPolicy, store: SnapshotStore | None = None) -> Session:
    """Go on with a journaled session, after a normal end or a crash at any moment.

    Always exact, because the journal says it: labels, finished ids, the open object with its clicks, and which actions can be redone.

    The model starts from the newest checkpoint between two objects that belongs to the actions in force (that were not undone), or from
    ``segmenter`` as it comes where there is none. The actions since are done again, for the model's part of them; where it answers
    something else than it did, the journaled labels win. Model and predictions are the same bit for bit if ``segmenter`` comes with the
    weights that the session began with, ``policy`` is the same, and both compute deterministically (the same machine and software; some
    GPU operations do not).

    What can be undone reaches back to that checkpoint: what the model was before it is not on the disk. Learning right after accepting,
    and a ``store``, keep the way from there short; without a store everything is learnt again from the first action.

    Parameters
    ----------
    path : the journal or its folder
    image : the image that the session is about
    segmenter : as it was when the session began
    policy, store : as for `Session`

    Raises
    ------
    SessionError : it is another image
    ReadError : there is no journal, or it is damaged
    WriteError : the journal cannot be continued
    """
    journal, events = Journal.reopen(path)
    try:
        header = journal.header
        if header.shape != image.shape or header.fingerprint != fingerprint(image):
            raise SessionError(
                f"the image {image.name!r} of shape {image.shape} arrived; expected {header.image!r} of shape {header.shape} "
                f"with the same voxels as when the session began"
            )
        opened = next((e.patch for e in events if e.kind == "open" and e.patch is not None), None)
        labels = None
        if opened is not None:
            labels = np.zeros(image.shape, opened.dtype)
            labels[opened.region] = opened.after
        session = Session(image, segmenter, policy, labels=labels)
        load = cache(Checkpoints(store, journal.path.parent).load) if store is not None else _nothing
        session._relive(*effective(events), load)
        session._attach(journal, store)
        return session
    except BaseException:
        journal.close()
        raise


def _known_model(entries: Sequence[Entry], load: _Load) -> tuple[int, Any]:
    """The newest position between two objects at which the model is on the disk, and what it had learnt; None if that is nothing."""
    between, clicked = [0], False
    for position, entry in enumerate(entries, start=1):
        clicked = entry.action.kind == "add" or (clicked and entry.action.kind in ("paint", "forget"))
        if not clicked:
            between.append(position)
    for position in reversed(between):
        for entry in reversed(entries[:position]):
            if entry.learn is not None and entry.learn.checkpoint and (snapshot := load(entry.learn.checkpoint)) is not None:
                return position, snapshot
            if entry.action.kind == "forget" and not (entry.learn is not None and entry.learn.taught):
                return position, None
            if entry.taught:
                break
        else:
            return position, None
    return 0, None


def _nothing(_name: str) -> None:
    """Where there is no store, no checkpoint can be loaded."""


def _combined(reports: Sequence[LearningReport]) -> LearningReport:
    """One report of several lessons: accepted if any was, mean losses, all the time."""
    if len(reports) == 1:
        return reports[0]
    return LearningReport(
        any(report.accepted for report in reports),
        "; ".join(dict.fromkeys(report.message for report in reports if report.message)),
        float(np.mean([report.loss_before for report in reports])),
        float(np.mean([report.loss_after for report in reports])),
        sum(report.elapsed_s for report in reports),
    )
