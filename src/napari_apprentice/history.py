"""The states that a session went through, and the steps between them that can be taken back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from napari_apprentice.labelmap import Patch
from napari_apprentice.types import Click, LearningReport, Lesson, Plane, Prediction
from napari_apprentice.versions import Catalogue, Effort, Version

__all__ = ["History", "Origin", "State", "Step"]


@dataclass(frozen=True, eq=False)
class Origin:
    """Where the slices of one object come from.

    Attributes
    ----------
    own : planes that the user clicked or painted in for this object
    carried : planes that propagation filled or ended before, and the error (1 - IoU) that is expected there
    """

    own: frozenset[Plane] = frozenset()
    carried: Mapping[Plane, float] = field(default_factory=dict)

    def taken(self, planes: Iterable[Plane]) -> Origin:
        """The same with planes that are the user's from now on."""
        own = self.own | frozenset(planes)
        return Origin(own, {plane: error for plane, error in self.carried.items() if plane not in own})

    def refilled(self, axis: int, carried: Mapping[int, float]) -> Origin:
        """The same after another propagation across ``axis``; ``carried`` has the expected error of every index that it filled."""
        others = {plane: error for plane, error in self.carried.items() if plane.axis != axis}
        return Origin(self.own, others | {Plane(axis, index): error for index, error in carried.items()})


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

    def origin(self, label: int) -> Origin:
        """Where the slices of an object come from."""
        return self.origins.get(label, Origin())

    def clicks_in(self, plane: Plane) -> tuple[Click, ...]:
        """The 2D clicks that were made in a plane."""
        return tuple(click.in_plane for click in self.clicks if click.plane == plane)

    def clicked(self, click: Click) -> State:
        """The same with one more click, and no answer to it."""
        origins = {**self.origins, self.label: self.origin(self.label).taken([click.plane])}
        return replace(self, clicks=(*self.clicks, click), highest=max(self.highest, self.label), origins=origins)

    def answered(self, plane: Plane, answer: Prediction, snapshot: Any) -> State:
        """The same with a new answer in a plane, by a model that has learnt on the way."""
        return replace(self, predictions={**self.predictions, plane: answer}, snapshot=snapshot)

    def opening(self, label: int) -> State:
        """The same with another object open, or the same object afresh."""
        finished = tuple(i for i in self.finished if i != label)
        return replace(self, label=label, clicks=(), predictions={}, firsts={}, finished=finished)

    def accepted(self, lessons: tuple[Lesson, ...]) -> State:
        """The same with the open object finished and the next free id open."""
        highest = max(self.highest, self.label)
        finished = (*(i for i in self.finished if i != self.label), self.label)
        return replace(self.opening(highest + 1), highest=highest, finished=finished, pending=(*self.pending, *lessons))

    def learnt(self, snapshot: Any, label: int, version: Version | None, report: LearningReport | None, effort: Effort | None) -> State:
        """The same after learning from what was pending, objects up to ``label``, which may have made a version of the model."""
        return replace(self, snapshot=snapshot, pending=(), versions=self.versions.learnt(version, label, report, effort))

    def painted(self, patch: Patch) -> State:
        """The same after a change of the labels by hand, in the planes of the axis along which it is thinnest."""
        thinnest = min(patch.shape)
        sides = [(axis, side) for axis, side in enumerate(patch.region) if side.stop - side.start == thinnest]
        planes = [Plane(axis, index) for axis, side in sides for index in range(side.start, side.stop)]
        before, after = patch.before, patch.after
        ids = np.union1d(before[before != after], after[before != after]).tolist()
        origins = {**self.origins, **{label: self.origin(label).taken(planes) for label in ids if label}}
        return replace(self, highest=max(self.highest, int(after.max())), origins=origins)

    def propagated(self, label: int, axis: int, carried: Mapping[int, float]) -> State:
        """The same after an object was propagated across ``axis``, see `Origin.refilled`."""
        return replace(self, origins={**self.origins, label: self.origin(label).refilled(axis, carried)})

    def discarded(self) -> State:
        """The same without the open object's clicks and whatever is known of its slices."""
        return replace(self.opening(self.label), origins={k: v for k, v in self.origins.items() if k != self.label})


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
        fresh = sum(p.logits.nbytes for p in self.after.predictions.values() if id(p) not in known)
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
