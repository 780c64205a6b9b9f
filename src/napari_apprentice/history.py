"""The states that a session went through, and the steps between them that can be taken back."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from napari_apprentice.labelmap import Patch, Tile, extent, spanned
from napari_apprentice.legend import Legend
from napari_apprentice.origins import Origin
from napari_apprentice.types import Click, LearningReport, Lesson, Plane, Prediction
from napari_apprentice.versions import Catalogue, Effort, Version

__all__ = ["History", "State", "Step"]


@dataclass(frozen=True, eq=False)
class State:
    """All of a session but the labels.

    Attributes
    ----------
    label : id of the open object
    snapshot : what the model has learnt (opaque)
    highest : the highest id in use so far
    clicks : of the open object, in order
    predictions : the newest answer in every plane of the open object
    finished : accepted ids, in order
    pending : accepted slices that were not learnt from yet
    origins : where the slices of each object come from, by id; of ids that are not there nothing is known
    firsts : the answers to the first click in every plane of the open object in which there was nothing of it yet
    versions : the versions of the model
    legend : what objects are called
    strokes : planes in which the open object was painted by hand, by strokes that lie in one plane
    kept : the class of the object before it, which the open object gets with its first click or stroke; empty for none
    """

    label: int
    snapshot: Any
    highest: int
    clicks: tuple[Click, ...] = ()
    predictions: Mapping[Plane, Prediction] = field(default_factory=dict)
    finished: tuple[int, ...] = ()
    pending: tuple[Lesson, ...] = ()
    origins: Mapping[int, Origin] = field(default_factory=dict)
    firsts: Mapping[Plane, Prediction] = field(default_factory=dict)
    versions: Catalogue = field(default_factory=Catalogue)
    legend: Legend = field(default_factory=Legend)
    strokes: tuple[Plane, ...] = ()
    kept: str = ""

    @property
    def worked_in(self) -> tuple[Plane, ...]:
        """Planes in which the user clicked for the open object, or painted it."""
        return tuple(dict.fromkeys((*(click.plane for click in self.clicks), *self.strokes)))

    def origin(self, label: int) -> Origin:
        """Where the slices of an object come from."""
        return self.origins.get(label, Origin())

    @property
    def kind(self) -> str:
        """What the class of the open object is called, or will be with its first click; empty where it has none."""
        return self.legend.names.get(self.label, self.kept)

    def clicks_in(self, plane: Plane) -> tuple[Click, ...]:
        """The 2D clicks that were made in a plane."""
        return tuple(click.in_plane for click in self.clicks if click.plane == plane)

    def clicked(self, click: Click) -> State:
        """The same with one more click, and no answer to it."""
        origins = {**self.origins, self.label: self.origin(self.label).corrected([click.plane])}
        begun = replace(self, clicks=(*self.clicks, click), highest=max(self.highest, self.label), origins=origins)
        return begun._of_kept_class()

    def answered(self, plane: Plane, answer: Prediction, snapshot: Any) -> State:
        """The same with a new answer in a plane, by a model that has learnt on the way."""
        return replace(self, predictions={**self.predictions, plane: answer}, snapshot=snapshot)

    @property
    def newest_answer(self) -> Prediction | None:
        """The answer in the plane of the newest click; None without one."""
        return self.predictions.get(self.clicks[-1].plane) if self.clicks else None

    def choosing(self, rank: int) -> State:
        """The same with another of the masks that the newest answer proposed; as it is where that proposed fewer."""
        answer = self.newest_answer
        if answer is None or not 0 <= rank < len(answer.proposed):
            return self
        return replace(self, predictions={**self.predictions, self.clicks[-1].plane: answer.choosing(rank)})

    def opening(self, label: int) -> State:
        """The same with another object open, or the same object afresh."""
        finished = tuple(i for i in self.finished if i != label)
        return replace(self, label=label, clicks=(), predictions={}, firsts={}, finished=finished, strokes=(), kept="")

    def accepted(self, lessons: tuple[Lesson, ...], kept: str = "") -> State:
        """The same with the open object finished and the next free id open, for an object of the class ``kept``, if it is not empty."""
        highest = max(self.highest, self.label)
        finished = (*(i for i in self.finished if i != self.label), self.label)
        anew = {(lesson.label, lesson.image_slice.key) for lesson in lessons}
        pending = (*(old for old in self.pending if (old.label, old.image_slice.key) not in anew), *lessons)
        return replace(self.opening(highest + 1), highest=highest, finished=finished, pending=pending, kept=kept)

    def learnt(self, snapshot: Any, label: int, version: Version | None, report: LearningReport | None, effort: Effort | None) -> State:
        """The same after learning from what was pending, objects up to ``label``, which may have made a version of the model."""
        return replace(self, snapshot=snapshot, pending=(), versions=self.versions.learnt(version, label, report, effort))

    def painted(self, patch: Patch) -> State:
        """The same after a change of the labels by hand, in the planes of the axis along which it is thinnest."""
        planes = self._planes_of(patch)
        ids = {i for tile in patch.tiles for i in _changed(tile)}
        origins = {**self.origins, **{label: self.origin(label).corrected(planes) for label in sorted(ids) if label}}
        flat = planes if len(planes) == 1 else ()
        strokes = tuple(dict.fromkeys((*self.strokes, *flat))) if self.label in ids else self.strokes
        there = patch.ids
        painted = replace(self, highest=max(self.highest, *there), origins=origins, strokes=strokes)
        return painted._of_kept_class() if self.label in there else painted

    def _planes_of(self, patch: Patch) -> tuple[Plane, ...]:
        """The planes that a change by hand was made in. Equally thin along several axes, it was where the open object is worked on."""
        if len(patch.region) == 2:
            return (Plane(0, 0),)
        thinnest = min(patch.shape)
        sides = [(axis, side) for axis, side in enumerate(patch.region) if side.stop - side.start == thinnest]
        ways = [tuple(Plane(axis, index) for index in range(side.start, side.stop)) for axis, side in sides]
        worked = {*self.worked_in, *self.predictions}
        return next((planes for planes in ways if worked.intersection(planes)), ways[0])

    def propagated(self, label: int, axis: int, carried: Mapping[int, float], ended: Iterable[int]) -> State:
        """The same after an object was propagated across ``axis``, see `Origin.refilled`."""
        return replace(self, origins={**self.origins, label: self.origin(label).refilled(axis, carried, ended)})

    def discarded(self) -> State:
        """The same without the open object's clicks, whatever is known of its slices, and what was still to be learnt of it."""
        origins, pending = _without(self.origins, self.label), self._pending_without(self.label)
        return replace(self.opening(self.label), origins=origins, pending=pending)

    def approved(self, label: int, planes: Iterable[Plane]) -> State:
        """The same with slices of an object that the user found good."""
        return replace(self, origins={**self.origins, label: self.origin(label).taken(planes)})

    def named(self, label: int, name: str, color: str | None) -> State:
        """The same with an object in a class, see `Legend.naming`."""
        return replace(self, legend=self.legend.naming(label, name, color), kept="" if label == self.label else self.kept)

    def deleted(self, label: int) -> State:
        """The same without an object; if it is the open one, its id stays open."""
        after = self.opening(label) if label == self.label else self
        return replace(
            after,
            finished=tuple(i for i in after.finished if i != label),
            pending=self._pending_without(label),
            origins=_without(self.origins, label),
            legend=self.legend.without(label),
        )

    def relabelled(self, label: int, to: int) -> State:
        """The same with another id for an object; of what had that id, nothing is left. If it is open, the next free one is opened."""
        highest, after = max(self.highest, to), self.deleted(to)
        after = after.opening(max(highest, label) + 1) if to == self.label else after
        return replace(
            after,
            label=to if label == self.label else after.label,
            highest=highest,
            finished=tuple(to if i == label else i for i in after.finished),
            pending=tuple(replace(lesson, label=to) if lesson.label == label else lesson for lesson in after.pending),
            origins=_without(after.origins, label) | ({to: self.origins[label]} if label in self.origins else {}),
            legend=self.legend.copying(label, to).without(label),
        )

    def merged(self, label: int, into: int, origin: Origin) -> State:
        """The same with an object as a part of another one, of which ``origin`` is true then. If it was open, the next id is opened."""
        highest = max(self.highest, self.label)
        after = replace(self.opening(highest + 1), highest=highest) if label == self.label else self
        legend = self.legend if into in self.legend.names else self.legend.copying(label, into)
        return replace(
            after,
            finished=tuple(i for i in after.finished if i != label),
            pending=self._pending_without(label, into),
            origins=_without(self.origins, label) | {into: origin},
            legend=legend.without(label),
        )

    @property
    def next_id(self) -> int:
        """The lowest id above all that are in use or open."""
        return max(self.highest, self.label) + 1

    def split(self, label: int, patch: Patch, rest: tuple[slice, ...]) -> State:
        """The same with the objects that ``patch`` makes of parts of another one; they are finished.

        The other one's clicks are dropped; ``rest`` holds what is left of it.
        """
        after, boxes = self.deleted(label), _boxes_of_changed(patch)
        origins, legend = {**self.origins, label: self.origin(label).within(rest)}, self.legend
        for i in boxes:
            origins[i] = self.origin(label).within(boxes[i])
            legend = legend.copying(label, i)
        return replace(after, highest=max(self.highest, *boxes), finished=(*self.finished, *boxes), origins=origins, legend=legend)

    def _of_kept_class(self) -> State:
        """The same with the open object in the class that was kept for it."""
        return self.named(self.label, self.kept, None) if self.kept else self

    def _pending_without(self, *labels: int) -> tuple[Lesson, ...]:
        return tuple(lesson for lesson in self.pending if lesson.label not in labels)


def _without(origins: Mapping[int, Origin], label: int) -> dict[int, Origin]:
    return {i: origin for i, origin in origins.items() if i != label}


def _changed(tile: Tile) -> set[int]:
    """The ids, 0 included, that lost voxels or got some."""
    before, after = tile.before, tile.after
    return {*np.unique(before[before != after]).tolist(), *np.unique(after[before != after]).tolist()}


def _boxes_of_changed(patch: Patch) -> dict[int, tuple[slice, ...]]:
    """The ids that got voxels, in order, and the smallest box that holds each in the tiles where it did."""
    found: dict[int, list[tuple[slice, ...]]] = {}
    for tile in patch.tiles:
        before, after = tile.before, tile.after
        for i in np.unique(after[before != after]).tolist():
            found.setdefault(i, []).append(extent(after == i, [side.start for side in tile.region]))
    return {i: spanned(found[i]) for i in sorted(found)}


@dataclass(frozen=True, eq=False)
class Step:
    """One action: the states around it, the change of the labels, and the file that holds the model of ``after``, if there is one."""

    before: State
    after: State
    patch: Patch | None
    checkpoint: str | None = None

    @cached_property
    def nbytes(self) -> int:
        """Memory that goes when this step is forgotten; of snapshots what they tell by an attribute ``nbytes``."""
        known = {id(prediction) for prediction in self.before.predictions.values()}
        fresh = sum(p.nbytes for p in self.after.predictions.values() if id(p) not in known)
        lessons = sum(lesson.mask.nbytes for lesson in self.after.pending[len(self.before.pending) :])
        snapshot = getattr(self.after.snapshot, "nbytes", 0) if self.after.snapshot is not self.before.snapshot else 0
        return int((self.patch.nbytes if self.patch else 0) + fresh + lessons + snapshot)


class History:
    """The undo stack. The steps below the cursor are done, those above it can be redone.

    Parameters
    ----------
    memory_bytes : when the steps take more, the oldest ones are forgotten; the newest one never is
    """

    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._steps: list[Step] = []
        self._done = 0
        self._forgotten_checkpoints: list[str] = []
        self._floor: Any = None

    @property
    def done(self) -> int:
        """How many steps can be undone."""
        return self._done

    @property
    def undone(self) -> int:
        """How many steps can be redone."""
        return len(self._steps) - self._done

    def push(self, step: Step) -> None:
        """A new action: what was undone can no longer be redone."""
        self._steps[self._done :] = [step]
        self._done += 1
        held = sum(step.nbytes for step in self._steps)
        while held > self._memory_bytes and len(self._steps) > 1:
            held -= self._steps[0].nbytes
            self._forget_oldest()

    @contextmanager
    def keeping_all(self) -> Iterator[None]:
        """Forget nothing meanwhile, however much it is."""
        bound, self._memory_bytes = self._memory_bytes, sys.maxsize
        try:
            yield
        finally:
            self._memory_bytes = bound

    def amend(self, after: State, checkpoint: str | None) -> None:
        """Give the newest action another outcome; what was undone can no longer be redone."""
        if not self._done:
            self._steps.clear()
            return
        self._done -= 1
        newest = self._steps[self._done]
        self.push(Step(newest.before, after, newest.patch, checkpoint or newest.checkpoint))

    def back(self) -> Step:
        """The newest step that is done. Does not move."""
        return self._steps[self._done - 1]

    def forth(self) -> Step:
        """The newest step that was undone. Does not move."""
        return self._steps[self._done]

    def move(self, by: int) -> None:
        """Move the cursor: -1 after an undo, +1 after a redo."""
        self._done += by

    def forget(self, snapshot: Any, checkpoints: list[str]) -> None:
        """Begin anew at a model that the last of ``checkpoints`` holds."""
        self._steps, self._done = [], 0
        self._forgotten_checkpoints, self._floor = checkpoints, snapshot

    @property
    def checkpoints(self) -> list[str]:
        """Of all actions that are done, oldest first."""
        return [*self._forgotten_checkpoints, *(step.checkpoint for step in self._steps[: self._done] if step.checkpoint)]

    @property
    def newest_checkpoint(self) -> tuple[str, Any] | None:
        """The newest checkpoint of an action that is done, and the snapshot it holds."""
        for step in reversed(self._steps[: self._done]):
            if step.checkpoint:
                return step.checkpoint, step.after.snapshot
        return (self._forgotten_checkpoints[-1], self._floor) if self._forgotten_checkpoints else None

    def _forget_oldest(self) -> None:
        oldest = self._steps.pop(0)
        self._done -= 1
        if oldest.checkpoint:
            self._forgotten_checkpoints.append(oldest.checkpoint)
            self._floor = oldest.after.snapshot
