"""Where projects meet the model: open a case, teach the study with it, take one over from the window, and run the others.

::

    project = open_project("glaucoma")
    with open_case(project, "eye_07") as case:        # begins, or goes on where it stopped
        case.session.add(Click((120, 200)))
        case.session.accept()                         # teaches the study
        case.finish()                                 # labels and report are written, the case is done
    for outcome in run_project(project, jobs=4):      # the others, by what the study has learnt
        print(outcome.case, outcome.state, outcome.sentence)
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from napari_apprentice import assembly, files
from napari_apprentice.casework import Model, Outcome, Plan, fresh_session, publish_model, release, tried_on_each_other
from napari_apprentice.cohorts import Cohort
from napari_apprentice.dispatch import on_cluster, on_this_machine
from napari_apprentice.journal import JOURNAL_NAME, Event, journal_path, models, read_journal
from napari_apprentice.knowledge import KnowledgeStore
from napari_apprentice.outcomes import Finished, check_replaceable, finish
from napari_apprentice.projects import Project, Status
from napari_apprentice.replay import read_recording, replay
from napari_apprentice.session import Session
from napari_apprentice.types import Image, SessionError, WriteError

__all__ = ["OpenCase", "open_case", "run_project", "take_case", "teach_case"]

_WAITS = "expected one that waits (open_case in Python goes on with this one)"


class OpenCase:
    """A case that somebody works on, as `open_case` gives it.

    Attributes
    ----------
    name, image, session : its name, its image, and the session of the work on it
    """

    def __init__(self, project: Project, name: str, image: Image, session: Session, folder: str) -> None:
        self.name, self.image, self.session = name, image, session
        self._project, self._folder, self._began = project, folder, time.perf_counter()
        self._length: int | None = None  # of the journal when the case was finished

    def finish(self) -> Status:
        """Learn what is still to be learnt, write labels and report, and mark the case as done by hand. The session stays open.

        Raises
        ------
        WriteError : something cannot be written, or would replace what another program wrote, see `outcomes.check_replaceable`
        """
        self.session.learn()
        seconds = time.perf_counter() - self._began
        status = _finished(self._project, self.name, self.session, self.image, self._folder, seconds)
        self._length = _length(self._project.session_folder(self.name, self._folder))
        return status


@contextmanager
def open_case(project: Project, name: str, *, device: str = "auto") -> Iterator[OpenCase]:
    """Work on a case by hand: a new one, one that was begun, or one that is done, also by a run, to correct it.

    The case is held as long as the context lasts. Left without `OpenCase.finish`, it is begun if anything was done in it; so it is if
    anything was done after that.

    Raises
    ------
    InUseError : somebody else works on it
    ReadError : its image or its record cannot be read
    ApprenticeError : as `assembly.open_session` and `assembly.resume_session`
    """
    settings = project.settings
    with project.held(name) as status:
        image = files.read(project[name].image)
        weights = _weights(project)
        folder = project.session_folder(name, status.session) if status.session and status.state != "failed" else None
        if folder is not None and (status.state == "done" or status.by == "hand"):
            session = assembly.resume_session(folder, image, weights=weights, device=device)
        else:
            folder = fresh_session(project, name)
            policy, study = settings.policy, settings.study
            legend = settings.legend if settings.names else None
            session = assembly.open_session(
                image, weights=weights, policy=policy, device=device, folder=folder, cohort=study, legend=legend
            )
        began, case = _length(folder), OpenCase(project, name, session.image, session, folder.name)
        try:
            if status.by != "hand" or status.state != "begun":
                project.set_status(name, replace(status, state="begun", reason="", by="hand", session=folder.name))
            yield case
        finally:
            session.close()
            left, length = project.stored(name), _length(folder)
            if left.state == "begun" and status.state != "begun" and length == began:
                project.set_status(name, status)
            elif left.state == "done" and case._length not in (None, length):
                project.set_status(name, replace(left, state="begun", reason=""))


def teach_case(
    project: Project, name: str, clicks: Path | str, *, device: str = "auto", on_action: Callable[[int, int], None] | None = None
) -> Status:
    """Do a case with recorded clicks as a person would: objects are accepted, teach the study, and are carried through the slices.

    Interrupted, and called again with the same clicks, it goes on where it stopped.

    Parameters
    ----------
    clicks : a click file, or the journal of a session, see `replay.read_recording`
    on_action : called with the number of actions that are done, and of all

    Raises
    ------
    SessionError : the case is done already, or was begun with something else
    ReadError, ClickError : as `replay.read_recording`; nothing is begun, and nothing is learnt
    WriteError : somebody else's labels lie where those of the case go; likewise
    ApprenticeError : as `open_case`; the case is begun then, and can be gone on with
    """
    status = project.status(name)
    if status.state == "done" or (status.by == "hand" and status.state != "begun"):
        raise SessionError(f"case {name!r} is to be taught, but it is {status.state} already; {_WAITS}")
    image = files.read(project[name].image)
    check_replaceable(project, name, image)
    events = read_recording(clicks, like=image)
    began = _in_common(read_recording(project.session_folder(name, status.session)), events) if status.by == "hand" else 0
    if began is None:
        raise SessionError(f"case {name!r} is to be taught, but it is begun already, with other clicks; {_WAITS}")
    with open_case(project, name, device=device) as case:
        session, done = case.session, began

        def tell() -> None:
            nonlocal done
            done += 1
            if on_action is not None:
                on_action(done, len(events))

        replay(session, events[began:], tell)
        if project.settings.propagate and case.image.ndim == 3 and not any(event.kind == "propagate" for event in events):
            for label in session.finished:
                with suppress(SessionError):  # clicked across another axis only, or not found
                    session.propagate(label, project.settings.axis)
        return case.finish()


_BETWEEN = ("learn", "select")  # may be done twice, or need not be done


def _in_common(done: Sequence[Event], wanted: Sequence[Event]) -> int | None:
    """How many of the wanted actions are done; None if something else is."""
    left = [event for event in done if event.kind not in _BETWEEN]
    for number, event in enumerate(wanted):
        if not left:
            return number
        if event.kind not in _BETWEEN:
            first = left.pop(0)
            if (first.kind, first.label, first.click, first.name) != (event.kind, event.label, event.click, event.name):
                return None
    return len(wanted) if all(event.kind == "propagate" for event in left) else None


def take_case(project: Project, name: str, journal: Path | str, *, device: str = "auto") -> Status:
    """Take over a case that was done elsewhere, in the window say: a copy of its session becomes the work on the case, which is done.

    What the session taught its study it has taught already; nothing is learnt again. A session of no study is taken for its labels, and
    goes on without one when the case is opened; the `Status.reason` says so.

    Parameters
    ----------
    journal : of that session, or its folder. What it learnt is copied along where the journal is called `journal.JOURNAL_NAME`, and else
        learnt again

    Raises
    ------
    SessionError : the case was begun or done already, or the session is about another image, or of another study than the project
    WriteError : it cannot be copied, or somebody else's labels lie where those of the case go
    """
    source = journal_path(journal)
    header, study = read_journal(source)[0], project.settings.study
    if header.cohort not in ("", study):
        raise SessionError(
            f"case {name!r} is to be taken over from a session of the study {header.cohort!r}, which the case would teach from then on; "
            f"expected a session of the project's study {study!r}, or of none"
        )
    with project.held(name) as status:
        if status.state not in ("waiting", "failed"):
            raise SessionError(f"case {name!r} is to be taken over, but it is {status.state}; {_WAITS}")
        image = files.read(project[name].image)
        check_replaceable(project, name, image)
        folder = fresh_session(project, name)
        beside = source.parent.glob("model-*.checkpoint") if source.name == JOURNAL_NAME else ()
        try:
            folder.mkdir(parents=True)
            shutil.copyfile(source, folder / JOURNAL_NAME)
            for checkpoint in beside:
                with suppress(FileNotFoundError):  # cleared away meanwhile: then it is learnt again
                    shutil.copyfile(checkpoint, folder / checkpoint.name)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise WriteError(f"{source} cannot be copied into the project ({error}); expected free space and permission") from error
        try:
            session = assembly.resume_session(folder, image, weights=_weights(project), device=device)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        try:
            return _finished(project, name, session, session.image, folder.name, 0.0)
        finally:
            session.close()


def run_project(
    project: Project,
    names: Sequence[str] | None = None,
    *,
    clicks: Path | str | None = None,
    jobs: int = 1,
    threads: int = 2,
    scheduler: str | None = None,
    device: str = "auto",
    again: bool = False,
) -> Iterator[Outcome]:
    """Do the cases that are left by what the study has learnt; yields what became of each as soon as it is known.

    Interrupted at any moment and started again it goes on where it stopped. Several may run at once: no case is done twice.

    Parameters
    ----------
    names : of the cases; by default all
    clicks : one click file for all, or a folder with ``<case>.json`` for each. Cases without one are clicked in where the newest cases
        that were done by hand suggest it, see `examples`
    jobs, threads : processes on this machine, and threads of each; a script that wants several processes asks for them under
        ``if __name__ == "__main__":``
    scheduler : address of a Dask cluster that does it instead
    device : "auto", "cpu", "cuda" or "mps"
    again : cases that a run has done, too

    Raises
    ------
    SessionError : nothing says where to click, or the cluster cannot be used
    ReadError, ClickError : as `replay.read_recording`, of one click file for all
    ApprenticeError : as `casework.run_case`
    """
    settings = project.settings
    policy = assembly.make_policy(settings.policy)
    weights = _weights(project)
    build = partial(_build, weights, settings.weights == "", device, threads)
    model = build()
    study = Cohort(settings.study, model.name.partition(":")[2], model.store)
    study.adopt()
    record_of = publish_model(project, study)
    examples = tuple(case.name for case in project.cases if _done_by_hand(project.status(case.name)))
    usable = [name for name in examples if project[name].image.exists() and (project.folder / project.stored(name).labels).exists()]
    if clicks is not None and not Path(clicks).exists():
        raise SessionError(f"the clicks in {clicks} are not there; expected a click file, or a folder of them")
    given = None if clicks is None else Path(clicks).absolute()
    if given is not None and (not given.is_dir() or (given / JOURNAL_NAME).exists()):
        read_recording(given)  # one sentence at once, not one for every case
    wanted = (JOURNAL_NAME, *(f"{case.name}.json" for case in project.cases))
    if given is not None and given.is_dir() and not any((given / file).exists() for file in wanted):
        raise SessionError(f"the folder {clicks} holds no clicks of any case; expected CASE.json in it, or the journal of a session")
    if given is None and not usable and not any(project.clicks_of(case.name) for case in project.cases):
        raise SessionError(
            f"nothing says where to click in the cases of {project.folder.name!r}; expected a click file, or a case done by hand"
            + (f" whose image and labels are there (not so of {', '.join(examples)})" if examples else "")
        )
    plan = Plan(build, policy, *record_of, given, examples, again)
    chosen = [project[name].name for name in names] if names else [case.name for case in project.cases]
    if given is None and (again or any(project.status(name).state != "done" for name in chosen)):
        plan = replace(plan, better=tried_on_each_other(project, plan))
    try:
        if scheduler is None:
            yield from on_this_machine(project.folder, chosen, plan, jobs=jobs)
        else:
            yield from on_cluster(project.folder, chosen, plan, scheduler)
    finally:
        release(project)


def _build(weights: Path | None, shipped: bool, device: str, threads: int) -> Model:
    """Also in other processes: the same number of threads everywhere gives the same sums everywhere."""
    torch.set_num_threads(max(threads, 1))
    segmenter = assembly.load_segmenter(None if shipped else weights, device=device)
    store = KnowledgeStore(segmenter.base, segmenter.loaded.digest)
    return Model(segmenter, store, assembly.model_of(segmenter), assembly.computer_of(segmenter))


def _weights(project: Project) -> Path | None:
    """The weights file of a project; None for the one that comes with the program."""
    return project.folder / project.settings.weights if project.settings.weights else None


def _finished(project: Project, name: str, session: Session, image: Image, folder: str, seconds: float) -> Status:
    """Write what becomes of a case that was done by hand."""
    (header, events), study = read_journal(project.session_folder(name, folder)), project.settings.study
    other = f"its session is of {f'the study {header.cohort!r}' if header.cohort else 'no study'}: {study!r} learns nothing from it"
    known = Finished("hand", folder, "by hand", warnings=() if header.cohort == study else (other,), seconds=seconds)
    newest = Cohort(header.cohort, models(header, events)[-1].partition(":")[2]).newest if header.cohort else None
    return finish(project, name, session, image, replace(known, record=newest.number if newest else 0))


def _done_by_hand(status: Status) -> bool:
    return (status.state, status.by) == ("done", "hand")


def _length(folder: Path) -> int:
    """How many actions a session has recorded."""
    return len(read_journal(folder)[1])
