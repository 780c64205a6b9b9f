"""Work on one case of a project: by hand, resumed where it stopped, or without anybody, by what the study has learnt so far.

A *run* clicks where a click file says, or where an accepted case suggests it (see `examples`), carries the objects of a volume through its
slices, and writes labels and a report. It teaches the study nothing, and it accepts nothing: what it leaves is a session that a person
can go on with.

Everything that counts is written before the state of the case is, which is the last thing and a single file: whoever is killed on the
way leaves a case that the next run begins anew. A case that is done again stays done as it was until that is finished.
"""

from __future__ import annotations

import math
import os
import pickle
import shutil
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from napari_apprentice import files
from napari_apprentice.checkpoints import SnapshotStore
from napari_apprentice.cohorts import Cohort
from napari_apprentice.computers import Computer
from napari_apprentice.examples import Example, Found, find
from napari_apprentice.expectation import expected_of_answer, hindsight
from napari_apprentice.journal import JOURNAL_NAME, Event, Journal
from napari_apprentice.outcomes import Finished, check_replaceable, finish
from napari_apprentice.projects import Project, Status, open_project
from napari_apprentice.replay import read_recording, replay
from napari_apprentice.session import Session
from napari_apprentice.shapes import overlap
from napari_apprentice.types import (
    AdaptationPolicy,
    ApprenticeError,
    Image,
    InUseError,
    Plane,
    Prompt,
    ReadError,
    Segmenter,
    SessionError,
    WriteError,
)
from napari_apprentice.versions import Version

__all__ = [
    "NEWEST_EXAMPLES",
    "Model",
    "Outcome",
    "Plan",
    "fresh_session",
    "publish_model",
    "release",
    "run_case",
    "tried_on_each_other",
]

NEWEST_EXAMPLES = 3
"""So many of the newest cases that were done by hand are looked at for where to click, those that cannot be read passed over."""


class Model(NamedTuple):
    """A segmenter as shipped, how what it learns becomes a file, which one it is ("name:digest"), and what it runs on."""

    segmenter: Segmenter
    store: SnapshotStore
    name: str
    computer: Computer | None = None


@dataclass(frozen=True)
class Plan:
    """What a run does, the same for every case. Can be sent to another process.

    Attributes
    ----------
    build : makes the model; called once in every process (thread)
    policy : how it learns from the clicks of a case, for that case alone
    model : file in the project's ``models/`` that holds what the study has learnt; None for the model as shipped
    record : number of the study's record that this is; 0 for none
    clicks : one click file for all cases, or a folder with one for each, ``<name>.json``; None for those of the project, or none
    examples : accepted cases, newest last; the `NEWEST_EXAMPLES` of them that can be read are looked at
    again : cases that a run has done are done again; one with which that fails stays as it was
    better : so much more right than elsewhere are clicks that the examples suggest, see `tried_on_each_other`
    """

    build: Callable[[], Model]
    policy: AdaptationPolicy
    model: str | None = None
    record: int = 0
    clicks: Path | None = None
    examples: tuple[str, ...] = ()
    again: bool = False
    better: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What became of a case in a run.

    Attributes
    ----------
    case : its name
    state : "done", "failed", "missing", "damaged", or "left" where there was nothing to do
    sentence : about it
    seconds : it took
    """

    case: str
    state: str
    sentence: str
    seconds: float = 0.0


def run_case(folder: Path, name: str, plan: Plan) -> Outcome:
    """Do one case of a project, if nobody else does or has done it. What goes wrong with the case makes it a failed one.

    Raises
    ------
    ReadError : the project cannot be read
    WriteError : the state of the case cannot be written
    WeightsError, DeviceError : there is no model to do it with; the case is as it was
    """
    began, project = time.perf_counter(), open_project(folder)
    model, start = _model(plan, project)
    if (known := project.status(name)).state == "damaged":
        return Outcome(name, "damaged", known.reason)
    try:
        with project.held(name) as status:
            if reason := _why_not(status, plan.again):
                return Outcome(name, "missing" if status.state == "missing" else "left", reason)
            place, done = fresh_session(project, name), status.state == "done"
            if not done:
                _forget(project, name, status)
                reason = "a run works on it, or was interrupted"
                project.set_status(name, Status("begun", reason, "run", place.name, written=status.written))
            try:
                outcome = _run(project, name, plan, model, start, place, began)
            except BaseException as error:
                if done:  # it stays as it was done before
                    shutil.rmtree(place, ignore_errors=True)
                if not isinstance(error, Exception):
                    raise
                reason = str(error) if isinstance(error, ApprenticeError) else f"{type(error).__name__}: {error}"
                if not done:
                    project.set_status(name, Status("failed", reason, "run", place.name, written=project.stored(name).written))
                kept = "; what was done before is kept" if done else ""
                return Outcome(name, "failed", reason + kept, time.perf_counter() - began)  # the other cases go on
            if done:
                _forget(project, name, status)
            return outcome
    except InUseError as error:
        return Outcome(name, "left", str(error))


def _forget(project: Project, name: str, status: Status) -> None:
    """Remove the session of an earlier run, if there was one."""
    if status.session and status.by == "run":
        shutil.rmtree(project.session_folder(name, status.session), ignore_errors=True)


def tried_on_each_other(project: Project, plan: Plan) -> float:
    """What accepted cases say of clicks that one of them suggests in another one, see `expectation.hindsight`; 0 for less than two."""
    model, start = _model(plan, project)
    untaught, settings = model.segmenter.snapshot(), project.settings
    if start is not None:
        model.segmenter.restore(start.snapshot)
    answers = []
    try:
        for known, other in permutations(_examples(project, plan)[0], 2):
            with suppress(ApprenticeError):  # what is wrong with a case is told where it is needed
                found = find(known.image, [other], settings.axis, in_all=not settings.propagate)
                for label, click in found.clicks:
                    prompt = Prompt((click.in_plane,), kind=settings.names.get(label, ""))
                    answer = model.segmenter.predict(known.image.slice(click.plane), prompt)
                    axis, index = click.plane
                    truth = known.labels if known.image.ndim == 2 else np.take(known.labels, index, axis)
                    answers.append((answer.score, overlap(answer.mask, truth == label)))
    finally:
        model.segmenter.restore(untaught)
    return hindsight(answers)


def release(project: Project) -> None:
    """Let cases wait again that a run had begun and nobody works on any more.

    Raises
    ------
    WriteError : their state cannot be written
    """
    for case in project.cases:
        with suppress(InUseError, ReadError):  # who cannot be read is told of elsewhere
            if _interrupted(project.stored(case.name)):
                with project.held(case.name, wait_s=0.0):
                    if _interrupted(stored := project.stored(case.name)):
                        project.set_status(case.name, replace(stored, state="waiting", reason="a run was interrupted"))


def _interrupted(status: Status) -> bool:
    return (status.state, status.by) == ("begun", "run")


def fresh_session(project: Project, name: str) -> Path:
    """A folder for a new session of a case; it does not exist yet."""
    return project.session_folder(name, f"session-{uuid.uuid4().hex[:8]}")


def publish_model(project: Project, study: Cohort) -> tuple[str | None, int]:
    """Lay what a study has learnt so far into the project's folder, where every machine of a cluster finds it.

    Returns
    -------
    its file in ``models/``, None if the study has none; and the number of the study's newest record, 0 for none

    Raises
    ------
    WriteError : it cannot be written
    ReadError : the study's file is gone
    """
    newest = study.newest
    if newest is None or (head := newest.model) is None:
        return None, 0
    target = project.folder / "models" / head
    if not target.exists():
        unfinished = target.with_name(f".{head}.{uuid.uuid4().hex[:8]}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(study.folder / head, unfinished)
            unfinished.replace(target)
        except FileNotFoundError as error:
            raise ReadError(f"the model {head} of the study {study.name!r} is gone from {study.folder}; expected the newest one") from error
        except OSError as error:
            raise WriteError(f"{target} cannot be written ({error.strerror}); expected free space and permission") from error
        finally:
            unfinished.unlink(missing_ok=True)
    return head, newest.number


# --- a run ---

_built = threading.local()


def _model(plan: Plan, project: Project) -> tuple[Model, Version | None]:
    """The model, and the version to begin with. The same again for the same plan: a segmenter does one case at a time in one thread."""
    key = (pickle.dumps(plan.build), str(project.folder), plan.model)
    if getattr(_built, "key", None) != key:
        model, start = plan.build(), None
        if plan.model is not None:
            study, file = project.settings.study, project.folder / "models" / plan.model
            start = Version(1, origin=f"study {study}", shared=plan.model, snapshot=model.store.load(file))
        _built.key, _built.model = key, (model, start)
    found: tuple[Model, Version | None] = _built.model
    return found


def _why_not(status: Status, again: bool) -> str:
    """Why a run leaves a case alone; "" if it does not."""
    if status.state == "missing":
        return status.reason
    if status.by == "hand" and status.state in ("begun", "done"):
        return f"it was {status.state} by hand"
    return "it is done" if status.state == "done" and not again else ""


def _run(project: Project, name: str, plan: Plan, model: Model, start: Version | None, folder: Path, began: float) -> Outcome:
    settings = project.settings
    image = files.read(project[name].image)
    check_replaceable(project, name, image)
    events, source, found = _prompts(project, name, image, plan)
    about = {"policy": settings.policy, "model": model.name, "cohort": settings.study}
    untaught = model.segmenter.snapshot()
    try:
        with Journal.create(folder, image, **about, computer=model.computer, by="run") as journal:
            session = Session(image, model.segmenter, plan.policy, legend=settings.legend, journal=journal, store=model.store, start=start)
            if plan.model is not None:
                _shared(folder / "model-000000.checkpoint", project.folder / "models" / plan.model)
            errors = _clicked(session, events, found=found is not None, better=plan.better)
            warnings = tuple(filter(None, (files.unstated_spacing(image), *(found.warnings if found else ()))))
            if settings.propagate and image.ndim == 3:
                warnings += _carried(session, tuple(errors), settings.axis)
            seconds = time.perf_counter() - began
            likeness = found.likeness if found else {}
            known = Finished("run", folder.name, source, tuple(errors), errors, likeness, warnings, plan.record, seconds)
            status = finish(project, name, session, image, known)
            return Outcome(name, "done", _told(len(errors), status), seconds)
    finally:
        model.segmenter.restore(untaught)


def _told(objects: int, status: Status) -> str:
    trust = "" if math.isnan(status.expected_error) else f", expected error {status.expected_error:.2f}"
    return f"{objects} {'object' if objects == 1 else 'objects'}{trust}" + (f" ({status.reason})" if status.reason else "")


def _shared(checkpoint: Path, model: Path) -> None:
    """Let a checkpoint that says the same as a model file be that file, where the disk knows two names for one: it is large."""
    with suppress(OSError):
        other = checkpoint.with_name(f".{checkpoint.name}.{uuid.uuid4().hex[:8]}")
        os.link(model, other)
        os.replace(other, checkpoint)


def _prompts(project: Project, name: str, image: Image, plan: Plan) -> tuple[tuple[Event, ...], str, Found | None]:
    """The clicks of a case, where they come from, and what was found out about them."""
    if (path := _click_file(project, name, plan)) is not None:
        return _lasting(read_recording(path)), str(path), None
    if not plan.examples:
        raise SessionError(f"nothing says where to click in case {name!r}; expected a click file for it, or a case that was done by hand")
    examples, passed_over = _examples(project, plan)
    if not examples:
        raise SessionError(f"nothing says where to click in case {name!r}: {'; '.join(passed_over)} (or a click file)")
    found = find(image, examples, project.settings.axis, in_all=not project.settings.propagate)
    found = replace(found, warnings=(*passed_over, *found.warnings))
    if not found.clicks:
        raise SessionError(f"no object of case {found.example!r} was found in {name!r}; expected a click file for it")
    return tuple(Event("add", label, click=click) for label, click in found.clicks), f"case {found.example}", found


def _lasting(events: Iterable[Event]) -> tuple[Event, ...]:
    """The clicks in objects that a recording ends with, and their names, under the ids that they have in the end."""
    clicks: list[Event] = []
    names: dict[int, Event] = {}
    for event in events:
        label, into = event.label, event.into
        if event.names:
            names[label] = Event("name", label, name=event.name, color=event.color)
        if event.kind in ("add", "choose"):
            clicks.append(event)
        elif event.kind in ("discard", "delete"):
            clicks = [click for click in clicks if click.label != label]
            if event.kind == "delete":
                names.pop(label, None)
        elif event.kind in ("relabel", "merge") and into is not None:
            clicks = [replace(click, label=into) if click.label == label else click for click in clicks]
            name = names.pop(label, None)
            if event.kind == "relabel" or not (into in names and names[into].name):
                names.pop(into, None)
                names |= {into: replace(name, label=into)} if name is not None else {}
    return (*clicks, *names.values())


def _click_file(project: Project, name: str, plan: Plan) -> Path | None:
    if plan.clicks is not None and plan.clicks.is_dir() and not (plan.clicks / JOURNAL_NAME).exists():
        own = plan.clicks / f"{name}.json"
        return own if own.exists() else project.clicks_of(name)
    return plan.clicks or project.clicks_of(name)


def _examples(project: Project, plan: Plan) -> tuple[list[Example], tuple[str, ...]]:
    """The newest examples that can be read, newest last; and a sentence for each that was passed over for older ones."""
    found: list[Example] = []
    passed_over = []
    for name in reversed(plan.examples):
        if len(found) < NEWEST_EXAMPLES:
            try:
                found.insert(0, _example(project, name))
            except ApprenticeError as error:
                passed_over.append(f"case {name!r} was passed over: {error}")
    return found, tuple(passed_over)


def _example(project: Project, name: str) -> Example:
    """A case that was done by hand, as it is now: somebody may correct it while cases are run."""
    labels = project.folder / project.stored(name).labels
    return _read_example(name, project[name].image, labels, labels.stat().st_mtime_ns if labels.exists() else 0)


@lru_cache(maxsize=2 * NEWEST_EXAMPLES)
def _read_example(name: str, image: Path, labels: Path, changed_ns: int) -> Example:
    read = files.read(image)
    return Example(name, read, files.read_labels(labels, like=read))


def _clicked(session: Session, events: Sequence[Event], *, found: bool, better: float) -> dict[int, dict[Plane, float]]:
    """Do clicks and what belongs to them; the expected error of the answers, by object and plane.

    Where the clicks were ``found``, an answer that takes a place where another object is to be clicked in is told that this is not its own.
    """
    errors: dict[int, dict[Plane, float]] = {}
    for event in events:
        if event.kind != "name" and event.label != session.label:
            session.select(event.label)
        replay(session, [event])
        if found:
            _told_apart(session, event, events)
        if event.kind != "name":
            clicks = Counter(click.plane for click in session.clicks)
            known = errors.setdefault(event.label, {})
            for plane, answer in session.predictions.items():
                known[plane] = expected_of_answer(answer.score, clicks[plane], found=found, better=better)
    return errors


def _told_apart(session: Session, event: Event, events: Sequence[Event]) -> None:
    for other in events:
        if other.click is None or event.click is None or other.label == event.label or other.click.plane != event.click.plane:
            continue
        if session.labels[other.click.voxel] == event.label:
            session.add(replace(other.click, positive=False, box=None))


def _carried(session: Session, labels: Sequence[int], axis: int) -> tuple[str, ...]:
    """Carry objects through the slices; a sentence for each that it did not work with."""
    told = []
    for label in labels:
        try:
            session.propagate(label, axis)
        except SessionError as error:
            told.append(f"object {label} was not carried: {error}")
    return tuple(told)
