"""What is true of a session now, and how it becomes something else: whole, recorded, and so that it can be taken back.

An action hands over the next state and the change of the labels. Both are written to the journal before they count; whatever raises on the
way leaves clicks, labels and model as they were.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from napari_apprentice.history import History, State, Step
from napari_apprentice.journal import Event, Header, Journal
from napari_apprentice.labelmap import LARGEST_ID, LabelMap, Patch, Piece
from napari_apprentice.legend import Legend
from napari_apprentice.objects import fresh_ids
from napari_apprentice.teaching import Apprentice, lessons_of
from napari_apprentice.types import Click, SessionError
from napari_apprentice.versions import Version

__all__ = ["Change", "Ledger"]


@dataclass(frozen=True, eq=False)
class Change:
    """What an action changed in the labels.

    Attributes
    ----------
    label : id of the object that is open now
    patch : None if nothing changed
    taken_back : whether the patch was, by an undo
    """

    label: int
    patch: Patch | None = None
    taken_back: bool = False

    @property
    def region(self) -> tuple[slice, ...] | None:
        """The smallest box that holds all that changed, one slice per axis; None if nothing did."""
        return None if self.patch is None else self.patch.region

    @property
    def pieces(self) -> Iterator[Piece]:
        """Boxes in that region which do not overlap and hold all that changed, and what stood in each after it; one, unless it is large."""
        if self.patch is not None:
            yield from self.patch.before if self.taken_back else self.patch.after


class Ledger:
    """Labels, state, history and journal of a session, which only change together.

    Parameters
    ----------
    labels, state : to begin with
    model : follows the state
    history : empty

    Attributes
    ----------
    header : what the journal is about; None where none is kept
    refusal : why nothing may be changed; empty where it may
    made_with : which model answered so far, where it is another one than answers now; empty where it is the same
    """

    def __init__(self, labels: LabelMap, state: State, model: Apprentice, history: History) -> None:
        self.labels, self.model, self.history = labels, model, history
        self.state = self._with_an_id(state)
        self.journal: Journal | None = None
        self.header: Header | None = None
        self.refusal = ""
        self.made_with = ""

    def begin(self, journal: Journal | None, start: Version | None, legend: Legend | None) -> None:
        """Record from now on, and at once what the session begins with: its labels, and what was given beside them."""
        self.journal, self.header = journal, journal.header if journal is not None else None
        events: list[Event] = []
        if self.state.finished or self.state.origins or start is not None or legend is not None:
            patches: list[Patch | None] = [*self.labels.patches()] or [None]
            events = [Event("open", self.state.label, patch.changed if patch else 0, patch=patch) for patch in patches]
            events[0] = replace(events[0], version=start, legend=legend, origins=self.state.origins)
        self.write(self.state, *events)

    @property
    def nothing(self) -> Change:
        """What an action returns that had nothing to do."""
        return Change(self.state.label)

    @contextmanager
    def safely(self) -> Iterator[float]:
        """For an action: gives the time it began, and puts the model back if anything raises; a refusal comes before anything is done."""
        if self.refusal:
            raise SessionError(self.refusal)
        with self.unchanged():
            yield time.perf_counter()

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """For a look: puts the model back if anything raises."""
        try:
            yield
        except BaseException:
            self.model.segmenter.restore(self.state.snapshot)
            raise

    def write(self, after: State, *events: Event, waiting: Callable[[], State] | None = None) -> None:
        """Let the study go along with what leads to ``after``, and record it; neither if one of them fails.

        ``waiting`` : for a redo, see `Apprentice.follow`
        """
        before = self.state.versions
        try:
            if any(event.changed for event in events):
                self.labels.settle()  # now, for once it is recorded nothing may keep the labels from following
            if (version := self.model.follow(before, after.versions, waiting)) is not None:
                events = (replace(events[0], version=version), *events[1:])
            if self.journal is not None:
                self.journal.append(*events)
        except BaseException:
            self.model.withdraw(after.versions, before)
            raise

    def learning(self, state: State, began: float, wanted: Callable[[], bool]) -> Generator[None, None, Event | None]:
        """Learn from the lessons of ``state``; the event that says so.

        Where ``wanted`` says so, it yields between two steps, with the model as it is in force. Whatever is done then, learning goes on
        from where it was, or, where that has taught the model something, begins again on top of it; but if the lessons are no longer those
        that wait, or something was undone that learning would keep from being redone, it returns None, and the model stays as it is in
        force.
        """
        model, undone = self.model.segmenter, self.history.undone

        def number() -> int:
            return self.journal.sequence + 1 if self.journal is not None else 0

        steps = self.model.learning(state, number)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                event: Event = end.value
                return replace(event, latency_s=time.perf_counter() - began)
            if wanted():
                reached = model.snapshot()
                model.restore(self.state.snapshot)
                yield
                if self.state.pending is not state.pending or self.history.undone > undone:
                    return None
                if self.state.snapshot is not state.snapshot:
                    state = self.state
                    steps = self.model.learning(state, number)
                else:
                    model.restore(reached)

    def commit(
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
        """Record an action, then let it count.

        Parameters
        ----------
        kind : as in `journal.KINDS`
        after, patch : the next state, and the change of the labels if there is one
        began : see `safely`
        learn : what was learnt as a part of the action
        facts : further attributes of the `journal.Event`
        """
        before, after = self.state, self._with_an_id(after, patch)
        if patch is not None:
            self.labels.widen(patch.dtype)
        taught = learn is None and after.snapshot is not before.snapshot
        label = after.label if kind == "select" else before.label
        if kind in ("add", "paint") and after.legend is not before.legend:
            facts["name"] = before.kept
        event = replace(Event(kind, label, patch.changed if patch else 0, time.perf_counter() - began, click, patch, taught), **facts)
        self.write(after, event, *([learn] if learn else []))
        self.state = after
        self.history.push(Step(before, after, patch, event.checkpoint))
        if learn is not None:
            self.amend(after, learn.checkpoint)
        return self._show(patch)

    def amend(self, after: State, checkpoint: str | None) -> None:
        """Make ``after`` the outcome of the newest action."""
        self.state = after
        self.history.amend(after, checkpoint)
        if checkpoint is not None:
            self.model.written(after, self.history)

    def undo(self) -> Change:
        """Take back the newest action; SessionError if there is none."""
        if not self.history.done:
            raise SessionError("an undo arrived, but there is no action to undo; expected one after an action")
        step = self.history.back()
        return self._move("undo", step, step.before)

    def redo(self) -> Change:
        """Do the newest undone action again; SessionError if there is none."""
        if not self.history.undone:
            raise SessionError("a redo arrived, but there is no undone action; expected one after an undo")
        step = self.history.forth()
        return self._move("redo", step, step.after)

    def _move(self, kind: str, step: Step, state: State) -> Change:
        patch, waiting = step.patch, partial(self._waiting, step) if kind == "redo" else None
        with self.safely() as began:
            taught = state.snapshot is not self.state.snapshot
            if taught:
                self.model.segmenter.restore(state.snapshot)
            label = (state if kind == "undo" else self.state).label
            event = Event(kind, label, patch.changed if patch else 0, time.perf_counter() - began, taught=taught)
            self.write(state, event, waiting=waiting)
        self.state = state
        self.history.move(1 if kind == "redo" else -1)
        self.model.ensure(state, self.history)
        return self._show(patch, taken_back=kind == "undo")

    def _waiting(self, step: Step) -> State:
        """The state before an undone step, with all waiting that was learnt from with it; the labels are as they were then."""
        accepted = step.patch is None and step.before.label in step.after.finished
        return step.before.accepted(lessons_of(self.model.image, self.labels, step.before)) if accepted else step.before

    def _with_an_id(self, state: State, patch: Patch | None = None) -> State:
        """The state with a free id open where the one that is open would be too large."""
        return state if state.label <= LARGEST_ID else replace(state, label=fresh_ids(self.labels, state, patch=patch)[0])

    def _show(self, patch: Patch | None, *, taken_back: bool = False) -> Change:
        """Write one side of a patch into the labels and say so."""
        change = Change(self.state.label, patch, taken_back)
        self.labels.write(change.pieces)
        return change
