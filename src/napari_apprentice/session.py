"""The session: clicks in, labels out, and a model that learns; the only object of the package that changes.

What the user has done is a chain of immutable states. Every action computes the next state and the change of the labels first, writes
both to the journal, and only then makes them count; whatever raises on the way leaves clicks, labels and model as they were. Undo and
redo move along the chain and restore all three exactly: the states hold the model's snapshots by reference, and the change of the
labels is kept as the old and the new values of the smallest box around it.

An object may be clicked in several planes, across different axes, before it is accepted. `painting` has the rules of what an answer may
write; `Session.paint` is the user's own hand and may write any label anywhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from napari_apprentice.checkpoints import Checkpoints, SnapshotStore
from napari_apprentice.cohorts import Cohort
from napari_apprentice.history import History, State, Step
from napari_apprentice.journal import Entry, Event, Journal, effective, fingerprint
from napari_apprentice.labelmap import LARGEST_ID, LabelMap, Patch, as_ids, as_region
from napari_apprentice.painting import previous_answer, repainting
from napari_apprentice.propagation import Outcome, propagate
from napari_apprentice.types import (
    AdaptationPolicy,
    ApprenticeError,
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
from napari_apprentice.versions import KEPT_VERSIONS, Catalogue, Comparison, Effort, Version, iou, measured, untaught_answer

__all__ = ["UNDO_MEMORY_BYTES", "Change", "Doubt", "Session", "SnapshotStore", "resume"]

UNDO_MEMORY_BYTES = 2 * 1024**3
"""What the undo history may take by default: label patches, predictions, lessons, and snapshots that tell their ``nbytes``."""

_Load = Callable[[str], Any]
_BESIDE = ("paint", "forget", "go_back", "pin", "unpin", "propagate")  # what may happen while an object has clicks, and leaves them


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


class Doubt(NamedTuple):
    """A slice that propagation filled or ended before: of which object, and the error (1 - IoU) that is expected there."""

    plane: Plane
    label: int
    error: float


class Session:
    """Segments one image, object by object.

    Parameters
    ----------
    image : what is segmented
    segmenter, policy : the model, and how it learns. The segmenter belongs to the session as long as that lives
    labels : (S) integers to start from, 0 is background; their ids are protected and count as finished
    journal : a new one; None keeps no record
    store : how the model is written beside the journal after every `learn`, which makes `resume` fast
    start : the version of the model to begin with; by default the segmenter as it comes, which is version 0 in any case
    cohort : the study that learns what this session learns
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
        start: Version | None = None,
        cohort: Cohort | None = None,
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
        if start is not None and start.snapshot is not None:
            segmenter.restore(start.snapshot)
        self._saved = segmenter.snapshot()
        self._attach(journal, store, cohort)
        if start is not None and self._checkpoints is not None:
            start = replace(start, checkpoint="model-000000.checkpoint")
            self._checkpoints.save(self._saved, "model-000000.checkpoint")
        versions = Catalogue.beginning(self._untaught, start)
        self._state = State(highest + 1, self._saved, highest, finished=ids, versions=versions)
        self._history = History(undo_memory_bytes)
        if ids or start is not None:
            patch = Patch.between(np.zeros_like(self.labels), self.labels, (0,) * image.ndim)
            self._write(self._state, Event("open", highest + 1, patch.changed if patch else 0, patch=patch, version=start))

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
    def candidate(self) -> int:
        """The object that `propagate` takes by default: the open one if it has voxels, else the one that was accepted last."""
        if not self.finished or self._labels.layers_with(self.label) is not None:
            return self.label
        return self.finished[-1]

    @property
    def versions(self) -> Catalogue:
        """The versions of the model, the one in use, what the gate refused and the effort saved so far."""
        return self._state.versions

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
            self._write(after, event)
        self._amend(after, event.checkpoint)
        return event.report

    def forget(self) -> Change:
        """Make the model what it was as shipped, version 0. Clicks, labels and all versions stay."""
        return self._use("forget", 0)

    def go_back(self, number: int) -> Change:
        """Use an older (or newer) version of the model. Clicks, labels and all versions stay.

        Raises
        ------
        SessionError : there is no such version, or it is no longer kept (see `versions.KEPT_VERSIONS`)
        WriteError : the journal cannot be written
        """
        return self._use("go_back", number)

    def pin(self, number: int, pinned: bool = True) -> Change:
        """Keep a version whatever the budget; or, where ``pinned`` is False, no longer.

        Raises
        ------
        SessionError : there is no such version, or it is no longer kept
        WriteError : the journal cannot be written
        """
        version = self._state.versions[number]
        if version.pinned == pinned:
            return Change(None, None, self.label)
        with self._safely() as began:
            versions = self._state.versions.holding(number, self._model_of(version)).pinning(number, pinned)
            return self._commit("pin" if pinned else "unpin", replace(self._state, versions=versions), None, began, number=number)

    def export(self, number: int, path: Path | str, *, pictures: bool = False) -> Path:
        """Write a version to a file that a session can start from.

        Parameters
        ----------
        number : of the version
        path : the file, usually ``.safetensors``; it is overwritten
        pictures : take along the small views of accepted cases that the gate judges by

        Raises
        ------
        SessionError : there is no such version, it is no longer kept, or this session has no store
        WriteError : it cannot be written
        """
        version, path = self._state.versions[number], Path(path)
        facts = {key: str(value) for key, value in version.facts().items() if value}
        self._known_store.save(self._model_of(version), path, facts, pictures=pictures)
        return path

    def compare(self, first: int, second: int) -> Comparison:
        """How two versions of the model differ.

        Raises
        ------
        SessionError : there is no such version, it is no longer kept, or this session has no store
        """
        versions = self._state.versions
        distance = self._known_store.distance(self._model_of(versions[first]), self._model_of(versions[second]))
        passed = [getattr(versions[number].report, "remembered_after", math.nan) for number in (first, second)]
        return Comparison(first, second, distance, versions.objects_between(first, second), *passed)

    def peek(self, plane: Plane | None = None) -> Prediction:
        """What the model as shipped would have said to the clicks of the open object, in the plane of the newest one by default.

        Nothing changes. As many predictions as there are clicks in the plane.

        Raises
        ------
        SessionError : no click was made there
        """
        plane = self.clicks[-1].plane if plane is None and self.clicks else plane
        clicks = () if plane is None else self._state.clicks_in(plane)
        if plane is None or not clicks:
            raise SessionError("a look at the untaught model arrived, but no click was made there; expected at least one click to answer")
        with self._safely():
            return untaught_answer(self._segmenter, self._untaught, self.image.slice(plane), clicks)

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

    def propagate(
        self, label: int | None = None, axis: int = 0, *, on_slice: Callable[[int, int], None] | None = None
    ) -> tuple[Change, Outcome]:
        """Carry an object from the slices across ``axis`` that were clicked or painted in to those between and beyond them.

        What an earlier propagation across this axis filled is filled anew or emptied. The model stays as it is. See `propagation`.

        Parameters
        ----------
        label : of the object; by default the open one if it has voxels, else the one that was accepted last
        on_slice : called with the numbers of slices that are done and that there are; whatever it raises cancels

        Raises
        ------
        SessionError : the object has no slice to start from, or the image is no volume
        WriteError : the journal cannot be written
        """
        with self._safely() as began:
            label = self.candidate if label is None else label
            outcome = propagate(self.image, self._segmenter, self._labels, self._state.origin(label), label, axis, on_slice)
            after = self._state.propagated(label, axis, outcome.carried)
            if outcome.patch is None and after.origin(label).carried == self._state.origin(label).carried:
                return Change(None, None, self.label), outcome
            carried = tuple(outcome.carried.items())
            return self._commit("propagate", after, outcome.patch, began, label=label, axis=axis, carried=carried), outcome

    def doubtful(self) -> list[Doubt]:
        """The slices that propagation filled or ended before, the one with the largest expected error first."""
        doubts = [Doubt(plane, label, error) for label, origin in self._state.origins.items() for plane, error in origin.carried.items()]
        return sorted(doubts, key=lambda doubt: (-doubt.error, doubt.label, doubt.plane))

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
            return self._commit("discard", self._state.discarded(), patch, began)

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
        first = {plane: answer} if prompt.previous is None and len(prompt.clicks) == 1 else {}
        return replace(state.answered(plane, answer, self._segmenter.snapshot()), firsts={**state.firsts, **first})

    def _lessons(self) -> tuple[Lesson, ...]:
        """What there is to learn from the open object as it is now."""
        state = self._state
        lessons = []
        for plane in dict.fromkeys(click.plane for click in state.clicks):
            ids = self._labels.plane(plane)
            mask, others = ids == state.label, (ids != 0) & (ids != state.label)
            if mask.any():
                first = iou(state.firsts[plane].mask & ~others, mask) if plane in state.firsts else math.nan
                lessons.append(Lesson(self.image.slice(plane), state.clicks_in(plane), mask, self.image.name, state.label, first, others))
        return tuple(lessons)

    def _learnt(self, state: State, began: float) -> tuple[State, Event]:
        """``state`` after learning from its lessons, and the event that says so."""
        label, effort = state.pending[-1].label, measured(self._segmenter, self._untaught, state.pending)
        report, version = self._taught(state, effort)
        snapshot, checkpoint = self._segmenter.snapshot(), None
        if self._journal is not None and self._checkpoints is not None and snapshot is not self._saved:
            checkpoint = f"model-{self._journal.sequence + 1:06d}.checkpoint"
            version = version and replace(version, checkpoint=checkpoint)
            try:
                self._checkpoints.save(snapshot, checkpoint)
            except ApprenticeError:
                self._withdraw(state.versions.learnt(version, label, report, None), state.versions)
                raise
        taught = snapshot is not state.snapshot
        seconds = time.perf_counter() - began
        event = Event("learn", label, 0, seconds, taught=taught, report=report, checkpoint=checkpoint, version=version, effort=effort)
        return state.learnt(snapshot, label, version, report, effort), event

    # --- making it count ---

    def _attach(self, journal: Journal | None, store: SnapshotStore | None, cohort: Cohort | None = None) -> None:
        self._journal, self._store, self._cohort = journal, store, cohort
        self._checkpoints = None if journal is None or store is None else Checkpoints(store, journal.path.parent)

    @contextmanager
    def _safely(self) -> Iterator[float]:
        """Gives the time it began; puts the model back if anything raises."""
        try:
            yield time.perf_counter()
        except BaseException:
            self._segmenter.restore(self._state.snapshot)
            raise

    def _write(self, after: State, *events: Event) -> None:
        """Let the study go along with what leads to ``after``, and record it; neither if one of them fails."""
        before = self._state.versions
        try:
            if self._cohort is not None:
                self._cohort.follow(before, after.versions)
            if self._journal is not None:
                self._journal.append(*events)
        except ApprenticeError:
            self._withdraw(after.versions, before)
            raise

    def _withdraw(self, after: Catalogue, before: Catalogue) -> None:
        """Let the study go back with what could not be finished, if it can."""
        if self._cohort is not None:
            with suppress(ApprenticeError):
                self._cohort.follow(after, before)

    def _commit(
        self,
        kind: str,
        after: State,
        patch: Patch | None,
        began: float,
        *,
        click: Click | None = None,
        learn: Event | None = None,
        **facts: Any,
    ) -> Change:
        """Record an action, then let it count."""
        before, values = self._state, None
        if patch is not None:
            values = patch.after
            self._labels.widen(patch.dtype)
        taught = learn is None and after.snapshot is not before.snapshot
        label = after.label if kind == "select" else before.label
        event = replace(Event(kind, label, patch.changed if patch else 0, time.perf_counter() - began, click, patch, taught), **facts)
        self._write(after, event, *([learn] if learn else []))
        self._state = after
        self._history.push(Step(before, after, patch, event.checkpoint))
        if learn is not None:
            self._amend(after, learn.checkpoint)
        return self._show(patch, values)

    def _amend(self, after: State, checkpoint: str | None) -> None:
        """Make ``after`` the outcome of the newest action."""
        self._state = after
        self._history.amend(after, checkpoint)
        if checkpoint is not None and self._checkpoints is not None:
            self._saved = after.snapshot
            self._checkpoints.keep_newest(self._history.checkpoints, [v.checkpoint for v in after.versions.kept if v.checkpoint])

    def _move(self, kind: str, state: State, patch: Patch | None, values: npt.NDArray[Any] | None) -> Change:
        """Undo or redo."""
        with self._safely() as began:
            taught = state.snapshot is not self._state.snapshot
            if taught:
                self._segmenter.restore(state.snapshot)
            label = (state if kind == "undo" else self._state).label
            self._write(state, Event(kind, label, patch.changed if patch else 0, time.perf_counter() - began, taught=taught))
        self._state = state
        self._history.move(1 if kind == "redo" else -1)
        if self._checkpoints is not None and (newest := self._history.newest_checkpoint):
            name, snapshot = newest
            self._checkpoints.ensure(snapshot, name)
        self._ensure_versions()
        return self._show(patch, values)

    def _show(self, patch: Patch | None, values: npt.NDArray[Any] | None) -> Change:
        """Write values into the labels and say so."""
        if patch is None or values is None:
            return Change(None, None, self.label)
        return Change(patch.region, self._labels.write(patch.region, values), self.label)

    # --- versions of the model ---

    @property
    def _known_store(self) -> SnapshotStore:
        if self._store is None:
            raise SessionError("this session has no store for models; expected one, as `open_session` gives it")
        return self._store

    def _model_of(self, version: Version) -> Any:
        """What is known in a version; SessionError if that is no longer kept."""
        if version.snapshot is not None:
            return version.snapshot
        kept = self._checkpoints.load(version.checkpoint) if self._checkpoints is not None and version.checkpoint else None
        if kept is None:
            raise SessionError(f"version {version.number} is no longer kept; expected a pinned one or one of the newest {KEPT_VERSIONS}")
        return kept

    def _use(self, kind: str, number: int) -> Change:
        """Work with a version from now on."""
        version = self._state.versions[number]
        with self._safely() as began:
            snapshot = self._model_of(version)
            self._segmenter.restore(snapshot)
            versions = self._state.versions.using(number).holding(number, snapshot)
            after = replace(self._state, snapshot=snapshot, versions=versions)
            return self._commit(kind, after, None, began, checkpoint=version.checkpoint, number=number)

    def _ensure_versions(self) -> None:
        """Write the checkpoints of versions that are back after they had been cleared away."""
        for version in self._state.versions.kept:
            if self._checkpoints is not None and version.snapshot is not None and version.checkpoint:
                self._checkpoints.ensure(version.snapshot, version.checkpoint)

    def _taught(self, state: State, effort: Effort | None) -> tuple[LearningReport, Version | None]:
        """Let the policy learn from the lessons of ``state``: what it says, and the version that this makes, if it makes one.

        With a study, on top of whatever other sessions have taught it meanwhile; should one of them be faster, once more on top of that.
        """
        own = state.versions.current
        basis, known, begun = own.shared, own.snapshot, state.snapshot
        while True:
            if self._cohort is not None and (newest := self._cohort.head) != basis:
                basis = newest
                known = begun = self._untaught if basis is None else self._cohort.load(basis)
            if begun is not state.snapshot:
                self._segmenter.restore(begun)
            report = _combined([self._policy.on_accept(self._segmenter, lesson) for lesson in state.pending])
            if report.refused or self._segmenter.snapshot() is known:
                if begun is not state.snapshot:
                    self._segmenter.restore(state.snapshot)
                return report, None
            version = state.versions.next(state.pending, self.image.name, report, effort)
            version = replace(version, basis=basis, snapshot=self._segmenter.snapshot())
            if self._cohort is None:
                return report, version
            if (shared := self._cohort.append(version, basis)) is not None:
                return report, replace(version, shared=shared)
            self._segmenter.restore(begun)

    # --- living through it again ---

    def _relive(self, entries: Sequence[Entry], done: int, load: _Load) -> None:
        """Do journaled actions again (see `resume`): the first ``done`` of ``entries`` to stay, the others to be redone."""
        start, snapshot = _known_model(entries[:done], load, self._untaught)
        for entry in entries[:start]:
            self._repeat(entry)
        if snapshot is not None:
            self._segmenter.restore(snapshot)
            self._state, self._saved = replace(self._state, snapshot=snapshot), snapshot
        current = self._state.versions.current
        if current.snapshot is None and current.checkpoint and (known := load(current.checkpoint)) is not None:
            self._state = replace(self._state, versions=self._state.versions.holding(current.number, known))
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
        elif event.kind == "propagate" and event.axis is not None:
            after = state.propagated(event.label, event.axis, dict(event.carried))
        elif event.kind == "discard":
            after = state.discarded()
        elif event.kind in ("go_back", "forget"):
            after = self._used(event.number or 0, load)
        elif event.kind in ("pin", "unpin") and event.number is not None:
            after = replace(state, versions=state.versions.pinning(event.number, event.kind == "pin"))
        else:
            after = state.opening(event.label)
        self._commit(event.kind, after, patch, 0.0, checkpoint=event.checkpoint)
        if entry.learn is not None:
            self._repeat_learning(entry.learn, load)

    def _used(self, number: int, load: _Load | None) -> State:
        """The state after going to a version again; where that is not kept any more the model stays, without ``load`` in any case."""
        state, version = self._state, self._state.versions[number]
        versions, snapshot = state.versions.using(number), version.snapshot
        if snapshot is None and load is not None and version.checkpoint:
            snapshot = load(version.checkpoint)
        if snapshot is None or load is None:
            return replace(state, versions=versions)
        self._segmenter.restore(snapshot)
        return replace(state, snapshot=snapshot, versions=versions.holding(number, snapshot))

    def _repeat_learning(self, event: Event, load: _Load | None) -> None:
        """Learn again what was learnt, from the checkpoint if there is one; without ``load`` only clear the lessons."""
        state, version, known = self._state, event.version, None
        snapshot = load(event.checkpoint) if load is not None and event.checkpoint else None
        if snapshot is not None:
            self._segmenter.restore(snapshot)
            known = self._saved = snapshot
        elif load is not None:
            self._taught(state, None)
            known = self._segmenter.snapshot()
        if version is not None:
            version = replace(version, snapshot=known)
        snapshot = state.snapshot if known is None else known
        self._amend(state.learnt(snapshot, event.label, version, event.report, event.effort), event.checkpoint)


def resume(
    path: Path | str,
    image: Image,
    segmenter: Segmenter,
    policy: AdaptationPolicy,
    store: SnapshotStore | None = None,
    cohort: Cohort | None = None,
) -> Session:
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
    policy, store, cohort : as for `Session`

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
        load = cache(Checkpoints(store, journal.path.parent).load) if store is not None else _nothing
        opened = next((e for e in events if e.kind == "open"), Event("open", 1))
        labels, start = None, opened.version
        if opened.patch is not None:
            labels = np.zeros(image.shape, opened.patch.dtype)
            labels[opened.patch.region] = opened.patch.after
        if start is not None and start.checkpoint:
            start = replace(start, snapshot=load(start.checkpoint))
        session = Session(image, segmenter, policy, labels=labels, start=start)
        session._relive(*effective(events), load)
        session._attach(journal, store, cohort)
        return session
    except BaseException:
        journal.close()
        raise


def _known_model(entries: Sequence[Entry], load: _Load, untaught: Any) -> tuple[int, Any]:
    """The newest position between two objects at which the model is on the disk, and that model; None if it is as at the start."""
    between, clicked = [0], False
    for position, entry in enumerate(entries, start=1):
        clicked = entry.action.kind == "add" or (clicked and entry.action.kind in _BESIDE)
        if not clicked:
            between.append(position)
    for position in reversed(between):
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
        any(report.refused for report in reports) and not any(report.accepted for report in reports),
        reports[0].remembered_before,
        reports[-1].remembered_after,
    )
