"""The model of one session: it answers clicks, learns from lessons, and is kept on the disk and shared with its study as it learns.

`Apprentice` holds the segmenter and whatever stands around it. It decides nothing about the labels or the history: it takes the state of a
session and gives back the next one, and the `ledger` makes that count.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_apprentice.checkpoints import Checkpoints, SnapshotStore
from napari_apprentice.cohorts import Cohort
from napari_apprentice.history import History, State
from napari_apprentice.journal import Event, fingerprint
from napari_apprentice.labelmap import LabelMap
from napari_apprentice.painting import implied, only_crossed, previous_answer
from napari_apprentice.types import (
    AdaptationPolicy,
    ApprenticeError,
    Click,
    Image,
    ImageError,
    LearningReport,
    Lesson,
    Plane,
    Prediction,
    Prompt,
    Segmenter,
    SessionError,
    outcome,
)
from napari_apprentice.versions import KEPT_VERSIONS, Catalogue, Comparison, Effort, Version, iou, measured, untaught_answer

__all__ = ["Apprentice", "lessons_of"]


def lessons_of(image: Image, labels: LabelMap, state: State) -> tuple[Lesson, ...]:
    """What there is to learn from the open object as it is now: every plane that was clicked or painted in and holds some of it.

    A plane without contrast is none: one may paint there, but the model has nothing to look at.
    """
    lessons, case = [], _told_apart(image)
    for plane in state.worked_in:
        ids = labels.plane(plane)
        mask, others = ids == state.label, (ids != 0) & (ids != state.label)
        if mask.any():
            first = iou(state.firsts[plane].mask & ~others, mask) if plane in state.firsts else math.nan
            with suppress(ImageError):
                clicks = state.clicks_in(plane)
                lessons.append(Lesson(image.slice(plane), clicks, mask, case, state.label, first, others, state.kind))
    return tuple(lessons)


def _told_apart(image: Image) -> str:
    """What tells an image from others of the same name, which those in folders of patients often have; nothing is read for it."""
    if image.path is not None:
        return f"{os.path.abspath(image.path)} {image.name}"
    return fingerprint(image) if isinstance(image.data, np.ndarray) else image.name


class Apprentice:
    """The model that one session teaches.

    Parameters
    ----------
    image : what the session is about
    segmenter, policy : the model, and how it learns
    start : the version to begin with; by default the segmenter as it comes

    Attributes
    ----------
    untaught : the model as shipped
    saved : the model as it is on the disk, or as it was at the start
    checkpoints : beside the journal; None where nothing is kept
    again : versions that the study has learnt again after a redo (see `follow`), by the file of the study that held each of them before
    """

    def __init__(self, image: Image, segmenter: Segmenter, policy: AdaptationPolicy, start: Version | None = None) -> None:
        self.image, self.segmenter, self.policy = image, segmenter, policy
        self.untaught = segmenter.snapshot()
        if start is not None and start.snapshot is not None:
            segmenter.restore(start.snapshot)
        self.saved = segmenter.snapshot()
        self.checkpoints: Checkpoints | None = None
        self.again: dict[str, Version] = {}
        self._store: SnapshotStore | None = None
        self._cohort: Cohort | None = None
        self._by = ""
        self._known_on_disk: frozenset[str] = frozenset()

    def attach(
        self, folder: Path | None, store: SnapshotStore | None, cohort: Cohort | None, by: str = "", known: Iterable[Catalogue] = ()
    ) -> None:
        """From now on keep checkpoints in ``folder``, as files that ``store`` writes, and share what is learnt with ``cohort``.

        Parameters
        ----------
        by : what tells this session from all others
        known : of a session that is gone on with: the versions that an undo can lead back to. Memory does not have them, so their
            checkpoints stay as long as the session lives
        """
        self._store, self._cohort, self._by = store, cohort, by
        self._known_on_disk = frozenset(v.checkpoint for catalogue in known for v in catalogue.kept if v.checkpoint)
        self.checkpoints = None if folder is None or store is None else Checkpoints(store, folder)

    # --- answering ---

    def answered(self, labels: LabelMap, state: State, click: Click) -> State:
        """The state after the model's answer to a click."""
        after, plane = state.clicked(click), click.plane
        anew = click.positive and only_crossed(labels, state, plane)
        previous = None if anew else previous_answer(labels, state, plane)
        prompt = Prompt(implied(after.clicks_in(plane), previous), previous, state.kind)
        answer = self.policy.on_click(self.segmenter, self.image.slice(plane), prompt)
        first = {plane: answer} if prompt.previous is None and len(prompt.clicks) == 1 and click.box is None else {}
        return replace(after.answered(plane, answer, self.segmenter.snapshot()), firsts={**after.firsts, **first})

    def untaught_answer(self, plane: Plane, clicks: Sequence[Click], kind: str) -> Prediction:
        """What the model as shipped would have said to 2D clicks in a plane, on an object of a class."""
        return untaught_answer(self.segmenter, self.untaught, self.image.slice(plane), clicks, kind)

    # --- learning ---

    def learning(self, state: State, number: Callable[[], int]) -> Generator[None, None, Event]:
        """Learn from the lessons of ``state``, step by step; the event that says so, but for its latency.

        Between the steps the segmenter may be put to other use, if it is given back as it was.

        Parameters
        ----------
        number : tells what the checkpoint is called by, if one is written in the end

        Raises
        ------
        WriteError : the checkpoint cannot be written
        """
        label, effort = state.pending[-1].label, measured(self.segmenter, self.untaught, state.pending)
        yield
        report, version = yield from self.taught(state, effort)
        try:
            snapshot, checkpoint = self.segmenter.snapshot(), None
            if self.checkpoints is not None and snapshot is not self.saved:
                checkpoint = f"model-{number():06d}.checkpoint"
                version = version and replace(version, checkpoint=checkpoint)
                self.checkpoints.save(snapshot, checkpoint)
        except BaseException:
            self.withdraw(state.versions.learnt(version, label, report, None), state.versions)
            raise
        taught = snapshot is not state.snapshot
        return Event("learn", label, taught=taught, report=report, checkpoint=checkpoint, version=version, effort=effort)

    def after(self, state: State, event: Event) -> State:
        """``state`` after the learning that ended with ``event``, just now."""
        return state.learnt(self.segmenter.snapshot(), event.label, event.version, event.report, event.effort)

    def taught(self, state: State, effort: Effort | None) -> Generator[None, None, tuple[LearningReport, Version | None]]:
        """Let the policy learn from the lessons of ``state``, step by step: what it says, and the version that this makes, if it makes one.

        With a study, on top of whatever other sessions have taught it meanwhile; should one of them be faster, once more on top of that.
        """
        own = state.versions.current
        basis, known, begun = own.shared, own.snapshot, state.snapshot
        while True:
            if self._cohort is not None and (newest := self._cohort.head) != basis:
                basis = newest
                known = begun = self.untaught if basis is None else self._cohort.load(basis)
            if begun is not state.snapshot:
                self.segmenter.restore(begun)
            reports = []
            for lesson in state.pending:
                reports.append((yield from self.policy.learning(self.segmenter, lesson)))
            report = _combined(reports)
            if report.refused or self.segmenter.snapshot() is known:
                if begun is not state.snapshot:
                    self.segmenter.restore(state.snapshot)
                return report, None
            version = state.versions.next(state.pending, self.image.name, report, effort)
            version = replace(version, basis=basis, snapshot=self.segmenter.snapshot())
            if self._cohort is None:
                return report, version
            if (shared := self._cohort.append(version, basis, self._by)) is not None:
                try:
                    return report, replace(version, shared=shared)
                except BaseException:
                    self._cohort.withdraw(shared, basis)
                    raise
            self.segmenter.restore(begun)

    # --- versions ---

    def of_version(self, version: Version) -> Any:
        """What is known in a version.

        Raises
        ------
        SessionError : it is no longer kept
        """
        if version.snapshot is not None:
            return version.snapshot
        kept = self.checkpoints.load(version.checkpoint) if self.checkpoints is not None and version.checkpoint else None
        if kept is None:
            raise _let_go(version)
        return kept

    def using(self, state: State, number: int) -> State:
        """``state`` with a version of the model in use; SessionError if there is none of that number, or it is no longer kept."""
        version = state.versions[number]
        if version not in state.versions.kept:  # an undo may bring it back, so its file may still be there
            raise _let_go(version)
        snapshot = self.of_version(version)
        self.segmenter.restore(snapshot)
        return replace(state, snapshot=snapshot, versions=state.versions.using(number).holding(number, snapshot))

    def export(self, version: Version, path: Path, *, pictures: bool = False) -> None:
        """Write a version to a file that a session can start from; SessionError if it is no longer kept, or there is no store."""
        facts = {key: str(value) for key, value in version.facts().items() if value}
        self._known_store.save(self.of_version(version), path, facts, pictures=pictures)

    def compare(self, versions: Catalogue, first: int, second: int) -> Comparison:
        """How two versions differ; SessionError if one of them is no longer kept, or there is no store."""
        distance = self._known_store.distance(self.of_version(versions[first]), self.of_version(versions[second]))
        passed = [getattr(versions[number].report, "remembered_after", math.nan) for number in (first, second)]
        return Comparison(first, second, distance, versions.objects_between(first, second), *passed)

    @property
    def _known_store(self) -> SnapshotStore:
        if self._store is None:
            raise SessionError("this session has no store for models; expected one, as `open_session` gives it")
        return self._store

    # --- the study and the disk ---

    def follow(self, before: Catalogue, after: Catalogue, waiting: Callable[[], State] | None = None) -> Version | None:
        """Let the study go along from one catalogue to another.

        Where a lesson is done again, and other sessions have taught the study without it meanwhile, the study learns it again on top of
        that. The session has its own model back, as it was; its next lesson is learnt on top of the study's in any case.

        Parameters
        ----------
        waiting : for a redo: gives the state before it, with what was learnt from still waiting

        Returns
        -------
        the version that the study has learnt again; None where there was no need, or it was refused there
        """
        if self._cohort is None or self._cohort.follow(self._in_study(before), self._in_study(after)) or waiting is None:
            return None
        state, shared, known = waiting(), after.current.shared, self.segmenter.snapshot()
        if shared is None or not state.pending:
            return None
        self.segmenter.restore(state.snapshot)
        _, version = outcome(self.taught(state, after.current.effort))
        self.segmenter.restore(known)
        if version is not None:
            self.again[shared] = version
        return version

    def _in_study(self, versions: Catalogue) -> Catalogue:
        """The versions with the files that the study has them in now."""
        now = (self.again.get(version.shared or "", version) for version in versions.versions)
        moved = zip(versions.versions, now, strict=True)
        return replace(versions, versions=tuple(replace(version, shared=to.shared, basis=to.basis) for version, to in moved))

    def withdraw(self, after: Catalogue, before: Catalogue) -> None:
        """Let the study go back with what could not be finished, if it can."""
        with suppress(ApprenticeError):
            self.follow(after, before)

    def written(self, state: State, history: History) -> None:
        """A checkpoint of the model of ``state`` was written: clear away those that are no longer needed."""
        if self.checkpoints is not None:
            self.saved = state.snapshot
            needed = {v.checkpoint for v in state.versions.kept if v.checkpoint}
            self.checkpoints.keep_newest(history.checkpoints, needed | self._known_on_disk)

    def ensure(self, state: State, history: History) -> None:
        """Write the checkpoints that are needed again after an undo or a redo, and had been cleared away."""
        if self.checkpoints is None:
            return
        if newest := history.newest_checkpoint:
            name, snapshot = newest
            self.checkpoints.ensure(snapshot, name)
        kept: Mapping[str, Any] = {v.checkpoint: v.snapshot for v in state.versions.kept if v.checkpoint and v.snapshot is not None}
        for name, snapshot in kept.items():
            self.checkpoints.ensure(snapshot, name)


def _let_go(version: Version) -> SessionError:
    return SessionError(f"version {version.number} is no longer kept; expected a pinned one or one of the newest {KEPT_VERSIONS}")


def _combined(reports: Sequence[LearningReport]) -> LearningReport:
    """One report of several lessons: accepted if any was, with one sentence, mean losses, all the time.

    The sentence is the newest of those that matter most: that something was learnt, else that it was refused.
    """
    if len(reports) == 1:
        return reports[0]
    accepted = sum(report.accepted for report in reports)
    telling = max(reversed(reports), key=lambda report: (report.accepted, report.refused))
    share = f" ({accepted} of {len(reports)} slices)" if 0 < accepted < len(reports) else ""
    return LearningReport(
        accepted > 0,
        telling.message + share,
        float(np.mean([report.loss_before for report in reports])),
        float(np.mean([report.loss_after for report in reports])),
        sum(report.elapsed_s for report in reports),
        any(report.refused for report in reports) and not accepted,
        reports[0].remembered_before,
        reports[-1].remembered_after,
        sum(report.practised for report in reports),
    )
