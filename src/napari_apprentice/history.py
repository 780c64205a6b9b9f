"""The states that a session went through, and the steps between them that can be taken back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from napari_apprentice.labelmap import Patch
from napari_apprentice.types import Click, Lesson, Plane, Prediction

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
    """

    label: int
    snapshot: Any
    highest: int
    clicks: tuple[Click, ...] = ()
    predictions: Mapping[Plane, Prediction] = field(default_factory=dict)
    finished: tuple[int, ...] = ()
    pending: tuple[Lesson, ...] = ()

    def clicks_in(self, plane: Plane) -> tuple[Click, ...]:
        """The 2D clicks that were made in a plane."""
        return tuple(click.in_plane for click in self.clicks if click.plane == plane)

    def clicked(self, click: Click) -> State:
        """The same with one more click, and no answer to it."""
        return replace(self, clicks=(*self.clicks, click), highest=max(self.highest, self.label))

    def answered(self, plane: Plane, answer: Prediction, snapshot: Any) -> State:
        """The same with a new answer in a plane, by a model that has learnt on the way."""
        return replace(self, predictions={**self.predictions, plane: answer}, snapshot=snapshot)

    def opening(self, label: int) -> State:
        """The same with another object open, or the same object afresh."""
        return replace(self, label=label, clicks=(), predictions={}, finished=tuple(i for i in self.finished if i != label))

    def accepted(self, lessons: tuple[Lesson, ...]) -> State:
        """The same with the open object finished and the next free id open."""
        highest = max(self.highest, self.label)
        finished = (*(i for i in self.finished if i != self.label), self.label)
        return replace(self.opening(highest + 1), highest=highest, finished=finished, pending=(*self.pending, *lessons))

    def painted(self, patch: Patch) -> State:
        """The same after a change of the labels by hand."""
        return replace(self, highest=max(self.highest, int(patch.after.max())))


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
