"""The session: clicks in, labels out, and a model that learns; the only object of the package that changes.

What the user has done is a chain of immutable states. Every action computes the next state and the change of the labels first, writes
both to the journal, and only then makes them count; whatever raises on the way leaves clicks, labels and model as they were. Undo and
redo move along the chain and restore all three exactly: the states hold the model's snapshots by reference, and the change of the
labels is kept as the old and the new values of the smallest box around it.

An object may be clicked in several planes, across different axes, before it is accepted. `painting` has the rules of what an answer may
write; `Session.paint` is the user's own hand and may write any label anywhere.

Beneath it stand the `ledger`, which makes actions count, the `teaching` of the model, and the `resuming` of what was journaled; what can
be asked of it is its `overview`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy.typing as npt

from napari_apprentice.checkpoints import SnapshotStore
from napari_apprentice.cohorts import Cohort
from napari_apprentice.computers import Computer
from napari_apprentice.ground import Doubt, joined, unapproved
from napari_apprentice.history import History, State
from napari_apprentice.journal import Journal
from napari_apprentice.labelmap import LabelMap, as_id, as_ids, as_region
from napari_apprentice.ledger import Change, Ledger
from napari_apprentice.legend import Legend
from napari_apprentice.objects import deletion, merger, relabelling, splitting
from napari_apprentice.origins import Origin
from napari_apprentice.overview import Overview
from napari_apprentice.painting import repainting
from napari_apprentice.propagation import Outcome, propagate
from napari_apprentice.resuming import Past
from napari_apprentice.teaching import Apprentice, lessons_of
from napari_apprentice.types import AdaptationPolicy, Click, Image, LabelsError, LearningReport, Plane, Segmenter, SessionError, outcome
from napari_apprentice.versions import Catalogue, Version

__all__ = ["UNDO_MEMORY_BYTES", "Change", "Doubt", "Session", "SnapshotStore", "resume"]

UNDO_MEMORY_BYTES = 2 * 1024**3
"""What the undo history may take by default: label patches, predictions, lessons, and snapshots that tell their ``nbytes``."""


class Session(Overview):
    """Segments one image, object by object.

    An action counts when the journal has it: every one raises a `WriteError` where that cannot be written, and a `SessionError` where
    somebody else has the session open (see `read_only`). Whatever an action raises, clicks, labels and model are as they were before.

    Parameters
    ----------
    image : what is segmented
    segmenter, policy : the model, and how it learns. The segmenter belongs to the session as long as that lives
    labels : (S) integers to start from, 0 is background; their ids are protected and count as finished. A `LabelMap` is taken
        over, not copied
    legend, origins : what these are called, and where their slices come from: what propagation filled counts as not looked at
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
        labels: npt.ArrayLike | LabelMap | None = None,
        legend: Legend | None = None,
        origins: Mapping[int, Origin] | None = None,
        journal: Journal | None = None,
        store: SnapshotStore | None = None,
        start: Version | None = None,
        cohort: Cohort | None = None,
        undo_memory_bytes: int = UNDO_MEMORY_BYTES,
    ) -> None:
        if journal is not None and journal.sequence:
            raise SessionError(f"a journal with {journal.sequence} actions arrived; expected a new one (resume continues an old one)")
        folder = None if journal is None else journal.path.parent
        known = labels if isinstance(labels, LabelMap) else LabelMap(image.shape, labels, folder)
        model = Apprentice(image, segmenter, policy, start)
        model.attach(folder, store, cohort, "" if journal is None else journal.header.in_folder(journal.path.parent))
        ids = known.ids() if labels is not None else ()
        highest = max(ids, default=0)
        if start is not None and model.checkpoints is not None:
            start = replace(start, checkpoint="model-000000.checkpoint")
            model.checkpoints.save(model.saved, "model-000000.checkpoint")
        versions = Catalogue.beginning(model.untaught, start)
        state = State(highest + 1, model.saved, highest, finished=ids, versions=versions, legend=legend or Legend(), origins=origins or {})
        super().__init__(Ledger(known, state, model, History(undo_memory_bytes)))
        self._ledger.begin(journal, start, legend)

    # --- clicks and masks ---

    def add(self, click: Click) -> Change:
        """Answer a click, or a box around the object. It may repeat or contradict earlier ones: the model is told all of them, newest last.

        Raises
        ------
        ClickError : it does not lie in the image
        ImageError : its slice cannot be used
        """
        self.image.check_click(click)
        with self._ledger.safely() as began:
            after = self._model.answered(self._labels, self._state, click)
            patch = repainting(self._labels, self._state, click, after.predictions[click.plane])
            return self._ledger.commit("add", after, patch, began, click=click)

    def choose(self, rank: int) -> Change:
        """Take another of the masks that the model proposed in the plane of the newest click (see `Prediction.proposed`); 0 is the best.

        The next click goes on from it, and once accepted it is what the model learns.

        Raises
        ------
        SessionError : no click was made, or the model proposed fewer masks
        """
        answer = self._state.newest_answer
        if answer is None:
            raise SessionError(f"mask {rank + 1} was asked for, but no click was made; expected at least one click to answer")
        if not 0 <= rank < len(answer.proposed):
            raise SessionError(f"mask {rank + 1} was asked for; expected one of the {len(answer.proposed)} that the model proposed")
        if rank == answer.rank:
            return self._ledger.nothing
        with self._ledger.safely() as began:
            after, click = self._state.choosing(rank), self.clicks[-1]
            patch = repainting(self._labels, self._state, click, after.predictions[click.plane])
            return self._ledger.commit("choose", after, patch, began, number=rank)

    def accept(self, *, learn: bool = True, keep_class: bool = False) -> Change:
        """Finish the open object and open the next id. With ``learn``, `learn` is part of the action.

        Every plane that was clicked or painted in and holds some of the object becomes a lesson, if the image shows anything there. With
        ``keep_class`` the next object is one of the same class, unless it is called something else.

        Raises
        ------
        SessionError : the open object has neither a click nor a voxel
        """
        self._check_open_object()
        with self._ledger.safely() as began:
            kept = self._state.kind if keep_class else ""
            after, event = self._state.accepted(lessons_of(self.image, self._labels, self._state), kept), None
            if learn and after.pending:
                event = outcome(self._ledger.learning(after, began, lambda: False))
                after = after if event is None else self._model.after(after, event)
            return self._ledger.commit("accept", after, None, began, learn=event, name=kept or None)

    def learn(self) -> LearningReport | None:
        """`learning`, without a pause."""
        return outcome(self.learning())

    def learning(self, wanted: Callable[[], bool] = lambda: False) -> Generator[None, None, LearningReport | None]:
        """Learn from all pending lessons, in order; None if there are none.

        It pauses between two steps where ``wanted`` says that the session is: whatever is done then is done with the model as it was,
        and learning goes on afterwards. If something was undone by then, it ends, and nothing was learnt: what was undone can still be
        redone, and the lessons, unless they were taken back themselves, wait for the next time.

        What was learnt belongs to the newest action: undoing that action brings back both the model before and the lessons. Actions
        that were undone cannot be redone afterwards.

        Raises
        ------
        WriteError : the journal or the checkpoint cannot be written
        """
        if not self._state.pending:
            return None
        with self._ledger.safely() as began:
            event = yield from self._ledger.learning(self._state, began, wanted)
            if event is None:
                return None
            after = self._model.after(self._state, event)
            self._ledger.write(after, event)
        self._ledger.amend(after, event.checkpoint)
        return event.report

    def practising(self, most: int | None = None) -> Generator[None, None, int]:
        """Let the model practise on what it remembers, if its policy does so: for whoever has time between two actions.

        It may be left between any two steps, whatever is done then, and taken up again or not. Nothing of it counts before the
        next `learn`, which judges it; where the model changes meanwhile, it ends.

        Parameters
        ----------
        most : steps to have been done in the end, those of earlier calls included; by default as many as the policy says

        Returns
        -------
        how many have been done since the model last changed
        """
        return 0 if self.read_only else (yield from self._model.policy.practising(self._segmenter, most))

    def practise(self, most: int | None = None) -> int:
        """`practising`, without a pause."""
        return outcome(self.practising(most))

    def forget(self) -> Change:
        """Make the model what it was as shipped, version 0. Clicks, labels and all versions stay.

        Raises
        ------
        SessionError : it is so already, see `taught`
        """
        if not self.taught:
            raise SessionError("there is nothing to forget: the model is as it was shipped; expected one that has learnt something")
        return self._use("forget", 0)

    def go_back(self, number: int) -> Change:
        """Use an older (or newer) version of the model. Clicks, labels and all versions stay.

        Raises
        ------
        SessionError : there is no such version, or it is no longer kept (see `versions.KEPT_VERSIONS`)
        """
        return self._use("go_back", number)

    def pin(self, number: int, pinned: bool = True) -> Change:
        """Keep a version whatever the budget; or, where ``pinned`` is False, no longer.

        Raises
        ------
        SessionError : there is no such version, or it is no longer kept
        """
        version = self._state.versions[number]
        if version.pinned == pinned:
            return self._ledger.nothing
        with self._ledger.safely() as began:
            versions = self._state.versions.holding(number, self._model.of_version(version)).pinning(number, pinned)
            return self._ledger.commit("pin" if pinned else "unpin", replace(self._state, versions=versions), None, began, number=number)

    def undo(self) -> Change:
        """Take back the newest action: labels, clicks and model.

        Raises
        ------
        SessionError : there is none
        """
        return self._ledger.undo()

    def redo(self) -> Change:
        """Do the newest undone action again, with the same outcome.

        Raises
        ------
        SessionError : there is none
        """
        return self._ledger.redo()

    def select(self, label: int) -> Change:
        """Open an object, to correct it or to begin it under an id of your choice. The voxels of the object open so far stay.

        Raises
        ------
        LabelsError : not an id
        """
        label = as_id(label)
        if label == self.label:
            return self._ledger.nothing
        with self._ledger.safely() as began:
            return self._ledger.commit("select", self._state.opening(label), None, began)

    def paint(self, region: Sequence[slice], values: npt.ArrayLike) -> Change:
        """Write labels by hand, over whatever is there.

        Parameters
        ----------
        region : one slice per axis, without steps
        values : integers of the region's shape, 0 is background

        Raises
        ------
        LabelsError : the values do not fit the region, or are not ids
        """
        region = as_region(region, self.image.shape)
        values = as_ids(values, tuple(side.stop - side.start for side in region))
        with self._ledger.safely() as began:
            patch = self._labels.patch(region, values)
            if patch is None:
                return self._ledger.nothing
            return self._ledger.commit("paint", self._state.painted(patch), patch, began)

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
        LabelsError : not an id
        SessionError : the object has no slice to start from, or the image is no volume
        """
        label = self.candidate if label is None else as_id(label)
        with self._ledger.safely() as began:
            kind, origin = self.legend.names.get(label, ""), self._state.origin(label)
            outcome = propagate(self.image, self._segmenter, self._labels, origin, label, axis, on_slice, kind=kind)
            carried, ended = tuple(outcome.carried.items()), tuple(stop.index for stop in outcome.stops)
            after = self._state.propagated(label, axis, outcome.carried, ended)
            if outcome.patch is None and after.origin(label) == origin:
                return self._ledger.nothing, outcome
            change = self._ledger.commit("propagate", after, outcome.patch, began, label=label, axis=axis, carried=carried, ended=ended)
            return change, outcome

    def approve(self, *planes: Plane, label: int | None = None) -> Change:
        """Find slices of an object good as they are, empty ones too: as if they had been clicked in, propagation never touches them again.

        Parameters
        ----------
        planes : of the volume; by default all that propagation filled
        label : of the object; by default the one that `propagate` takes

        Raises
        ------
        LabelsError : not an id
        InputError : something else than planes arrived
        SessionError : there is no such plane, or nothing was carried and no plane is named
        """
        label = self.candidate if label is None else as_id(label)
        fresh = unapproved(self._state.origin(label), label, planes, self.image.shape)
        if not fresh:
            return self._ledger.nothing
        with self._ledger.safely() as began:
            return self._ledger.commit("approve", self._state.approved(label, fresh), None, began, label=label, planes=fresh)

    # --- whole objects ---

    def delete(self, label: int) -> Change:
        """Drop an object. The model keeps what it taught.

        Raises
        ------
        LabelsError : not an id
        SessionError : it has neither voxels nor clicks
        """
        label = as_id(label)
        with self._ledger.safely() as began:
            return self._ledger.commit("delete", *deletion(self._labels, self._state, label), began, label=label)

    def relabel(self, label: int, to: int) -> Change:
        """Give an object another id, which nothing has so far.

        Raises
        ------
        LabelsError : not an id
        SessionError : the object has no voxels, or the other id has
        """
        label, to = as_id(label), as_id(to)
        if label == to:
            return self._ledger.nothing
        with self._ledger.safely() as began:
            return self._ledger.commit("relabel", *relabelling(self._labels, self._state, label, to), began, label=label, into=to)

    def merge(self, label: int, into: int) -> Change:
        """Make an object a part of another one, whose id and class it gets.

        Raises
        ------
        LabelsError : not an id
        SessionError : one of them has no voxels, or both are the same
        """
        label, into = as_id(label), as_id(into)
        if label == into:
            raise SessionError(f"a merge of object {label} with itself arrived; expected two objects")
        with self._ledger.safely() as began:
            origin = joined(self._labels, self._state, label, into)
            return self._ledger.commit("merge", *merger(self._labels, self._state, label, into, origin), began, label=label, into=into)

    def split(self, label: int, seeds: Sequence[tuple[int, ...]]) -> Change:
        """Make several objects of one. The part of the first seed keeps the id; the others get new ones, in order, and are finished.

        Parameters
        ----------
        seeds : a voxel of the object in every part

        Raises
        ------
        LabelsError : not an id, or no voxels
        SessionError : there are fewer than two seeds, or one lies outside of the object
        """
        label = as_id(label)
        try:
            seeds = tuple(dict.fromkeys(tuple(int(v) for v in seed) for seed in seeds))
        except (TypeError, ValueError) as error:
            raise LabelsError(f"the seeds {seeds!r:.80} arrived; expected voxels of the object, such as (12, 80, 64)") from error
        with self._ledger.safely() as began:
            after, patch = splitting(self._labels, self._state, label, seeds, self.image.spacing)
            return self._ledger.commit("split", after, patch, began, label=label, seeds=seeds)

    def name(self, label: int, name: str, color: str | None = None) -> Change:
        """Say what an object is: one of a class, or of none if ``name`` is empty.

        Parameters
        ----------
        color : of the class, like "#e69f00"; by default the one that it has, or a new one

        Raises
        ------
        LabelsError : not an id, not one line, or not a colour
        """
        label = as_id(label)
        after = self._state.named(label, name, color)
        if (after.legend, after.kept) == (self.legend, self._state.kept):
            return self._ledger.nothing
        with self._ledger.safely() as began:
            return self._ledger.commit("name", after, None, began, label=label, name=name.strip(), color=color)

    def discard(self) -> Change:
        """Drop the clicks and the voxels of the open object; its id stays open, and the model keeps what the clicks taught it.

        Raises
        ------
        SessionError : it has neither
        """
        self._check_open_object()
        with self._ledger.safely() as began:
            return self._ledger.commit("discard", self._state.discarded(), self._labels.renumbering(self.label, 0), began)

    def close(self) -> None:
        """Close the journal."""
        if self._ledger.journal is not None:
            self._ledger.journal.close()

    # --- inside ---

    @property
    def _journal(self) -> Journal | None:
        return self._ledger.journal

    def _check_open_object(self) -> None:
        if not self.clicks and self._labels.layers_with(self.label) is None:
            raise SessionError(f"object {self.label} has neither clicks nor voxels; expected at least one of them")

    def _use(self, kind: str, number: int) -> Change:
        """Work with a version from now on."""
        version = self._state.versions[number]
        with self._ledger.safely() as began:
            after = self._model.using(self._state, number)
            return self._ledger.commit(kind, after, None, began, checkpoint=version.checkpoint, number=number)


def resume(
    path: Path | str,
    image: Image,
    segmenter: Segmenter,
    policy: AdaptationPolicy,
    store: SnapshotStore | None = None,
    cohort: Cohort | None = None,
    computer: Computer | None = None,
    model: str = "",
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
    image : the image that the session is about; where its file states no spacing, but somebody did, what was stated counts
    segmenter : as it was when the session began
    policy, store, cohort : as for `Session`
    computer : what the model runs on; the journal says so with the next action
    model : which one it is (name and digest), likewise; "" for the one that the session was made with. On top of other weights only those
        checkpoints are of use that hold nothing but remembered objects; all else is learnt again

    Returns
    -------
    the session; where somebody else has it open, a copy of it as it is now, to look at, measure and save: its actions raise a SessionError
    that says who has it (`Session.read_only`)

    Raises
    ------
    SessionError : it is another image, or has another geometry now
    ReadError : there is no journal, or it is damaged
    WriteError : the journal cannot be continued
    """
    past = Past(path, image, store, computer, model)
    try:
        session = Session(past.image, segmenter, policy, labels=past.labels(), legend=past.legend, origins=past.origins, start=past.start)
        past.relive(session._ledger, cohort)
        return session
    except BaseException:
        past.close()
        raise
