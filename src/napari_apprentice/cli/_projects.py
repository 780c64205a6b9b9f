"""Actions of ``cohort`` about projects of many cases: ``new``, ``add``, ``status``, ``next``, ``teach``, ``take``, ``run``, ``table``."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from napari_apprentice.cli._arguments import POLICIES, add_device, add_unit, check_texts, count, progress_bar, remark, threads
from napari_apprentice.texts import counted
from napari_apprentice.types import PROJECT_POLICY, InputError, ReadError, SessionError

if TYPE_CHECKING:
    from napari_apprentice.casework import Outcome
    from napari_apprentice.project_file import Settings
    from napari_apprentice.projects import Project

__all__ = ["add_projects"]

TABLE_NAME = "cohort.csv"


def add_projects(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    new = _action(actions, "new", "begin a project: a folder with the list of the cases and all that comes of them", _new)
    new.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image of a case")
    new.add_argument("--study", required=True, metavar="NAME", help="the study whose model all cases teach and use")
    _add_settings(new)
    add = _action(actions, "add", "add cases to a project", _add)
    add.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image of a case")
    _action(actions, "status", "say where the cases of a project stand", _status)
    follow = _action(actions, "next", "say which case to look at next, and where its image lies", _next)
    by = "the first one that is not done; or of those that a run has done, the one with the largest expected error (default: %(default)s)"
    follow.add_argument("--by", choices=("order", "error"), default="order", help=by)
    teach = _action(actions, "teach", "do a case with recorded clicks, and teach the study with it", _teach)
    teach.add_argument("case", metavar="CASE", help="name of the case")
    teach.add_argument("--clicks", type=Path, required=True, metavar="CLICKS.json", help="the recorded clicks, or a session's journal")
    take = _action(actions, "take", "take over a case that was done elsewhere, in the window say", _take)
    take.add_argument("case", metavar="CASE", help="name of the case")
    take.add_argument("--journal", type=Path, required=True, metavar="FOLDER", help="folder of the session, or its journal")
    for parser in (teach, take):
        add_device(parser)
    table = _action(actions, "table", "write a table of all objects of the cases that are done", _table)
    table.add_argument("--out", type=Path, metavar="TABLE.csv", help=f"the table to write (default: {TABLE_NAME} in the project)")
    add_unit(table)
    _add_run(actions)


def _action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, about: str, run: Callable[[argparse.Namespace], int | None]
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
    parser.add_argument("project", type=Path, metavar="PROJECT", help="folder of the project")
    parser.set_defaults(run=run)
    return parser


_SETTINGS = ("policy", "weights", "axis", "no_propagate", "name")


def _add_settings(parser: argparse.ArgumentParser, of: str = "") -> None:
    """The options of a project that does not exist yet (`_SETTINGS`); None where they are not given."""
    about = f"{of}how the model learns: {POLICIES} (default: {PROJECT_POLICY})"
    parser.add_argument("--policy", metavar="P", help=about)
    about = f"{of}weights of a network (default: the ones that come with the program)"
    parser.add_argument("--weights", type=Path, metavar="FILE", help=about)
    about = f"{of}in volumes, objects are carried through the slices across it (default: 0, z)"
    parser.add_argument("--axis", type=int, choices=(0, 1, 2), help=about)
    about = f"{of}in volumes, leave objects in the slices that were clicked in"
    parser.add_argument("--no-propagate", action="store_true", default=None, help=about)
    parser.add_argument("--name", action="append", metavar="N=NAME", help=f"{of}what object N is called; may be repeated")


def _add_run(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser(
        "run",
        help="do the cases that are left by what the study has learnt",
        description="Do the cases of a project that are left, by what its study has learnt so far, and write labels and a report for each "
        "of them and a table of all. Clicks come from a file or, without one, from the newest cases that were done by hand. Nothing is "
        "taught by it. Interrupted and started again it goes on where it stopped.",
    )
    parser.add_argument("paths", type=Path, nargs="+", metavar="PROJECT|IMAGE", help="folder of a project; or images, with --out")
    parser.add_argument("--out", type=Path, metavar="DIR", help="images: the project to make of them, or to go on with")
    parser.add_argument("--study", metavar="NAME", help="images: the study whose model is used")
    _add_settings(parser, "a new project: ")
    parser.add_argument("--clicks", type=Path, metavar="CLICKS", help="click file for all cases, or a folder with CASE.json for each")
    parser.add_argument("--only", nargs="+", default=(), metavar="CASE", help="only these cases")
    parser.add_argument("--again", action="store_true", help="also those that a run has done already")
    parser.add_argument("--jobs", type=count, default=1, metavar="N", help="cases at once, each in a process (default: %(default)s)")
    parser.add_argument("--threads", type=threads, default=2, metavar="N", help="threads of a process (default: %(default)s)")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="do it on the Dask cluster of this scheduler, such as tcp://10.0.0.1:8786")
    parser.add_argument("--table", type=Path, metavar="TABLE.csv", help=f"the table to write (default: {TABLE_NAME} in the project)")
    add_device(parser)
    parser.set_defaults(run=_run)


def _settings(arguments: argparse.Namespace, study: str) -> Settings:
    from napari_apprentice import assembly
    from napari_apprentice.project_file import Settings

    policy = arguments.policy or PROJECT_POLICY
    assembly.make_policy(policy)  # a misspelt one is told now
    if arguments.weights is not None:
        assembly.load_segmenter(arguments.weights, device="cpu")  # likewise
    names: dict[int, str] = {}
    for text in arguments.name or ():
        label, given, name = text.partition("=")
        if not given or not label.isdecimal() or not int(label):
            raise InputError(f"--name {text} arrived; expected N=NAME with a number from 1, such as 1=disc")
        if int(label) in names:
            raise InputError(f"--name {label}={names[int(label)]} and --name {text} arrived; expected one name for an object")
        names[int(label)] = name
    weights = "" if arguments.weights is None else str(arguments.weights.absolute())
    settings = Settings(study, policy, weights, arguments.axis or 0, not arguments.no_propagate, names=names)
    settings.legend  # noqa: B018 (names that cannot be one are told now)
    return settings


def _usable(images: Sequence[Path]) -> list[Path]:
    """Those that can be cases; of the others it is said on stderr why not."""
    from napari_apprentice.projects import usable

    good, refused = usable(images)
    if not good:
        raise refused[0]
    for error in refused:
        remark(f"{error}; it was not added")
    return good


def _new(arguments: argparse.Namespace) -> int:
    from napari_apprentice.projects import create_project

    settings = _settings(arguments, arguments.study)
    images = _usable(arguments.images)
    project = create_project(arguments.project, settings, images)
    print(f"Project: {project.folder}, {counted(len(project.cases), 'case')}.")
    return int(len(images) < len(arguments.images))


def _add(arguments: argparse.Namespace) -> int:
    from napari_apprentice.projects import open_project

    before = open_project(arguments.project)
    images = _usable(arguments.images)
    after = before.with_images(images)
    print(f"Project: {after.folder}, {counted(len(after.cases), 'case')}, {len(after.cases) - len(before.cases)} of them new.")
    return int(len(images) < len(arguments.images))


def _status(arguments: argparse.Namespace) -> int:
    from napari_apprentice.projects import open_project

    project = open_project(arguments.project)
    width = max((len(case.name) for case in project.cases), default=0)
    states = {case.name: project.status(case.name) for case in project.cases}
    for name, status in states.items():
        by = f" by {status.by}" if status.by and status.state in ("begun", "done") else ""
        trust = "" if math.isnan(status.expected_error) else f"{status.expected_error:.2f}"
        print(f"{name:<{width}}  {status.state + by:<14}  {trust:>5}  {status.reason}".rstrip())
    print(f"Study {project.settings.study}. {_counted(project)}")
    return int(any(status.state == "damaged" for status in states.values()))


def _counted(project: Project) -> str:
    """How many cases stand where."""
    from napari_apprentice.projects import STATES

    counts = Counter(project.status(case.name).state for case in project.cases)
    return f"Cases: {len(project.cases)}" + "".join(f", {state} {counts[state]}" for state in STATES if counts[state]) + "."


def _next(arguments: argparse.Namespace) -> int:
    from napari_apprentice.projects import open_project

    project = open_project(arguments.project)
    case = project.next_case(arguments.by)
    if case is None:
        raise SessionError(
            f"no case of {project.folder.name!r} is left to look at ({_counted(project)[:-1]}); expected one that is not done"
        )
    print(f"{case.name}\t{case.image}")
    damaged = [status for other in project.cases if (status := project.status(other.name)).state == "damaged"]
    for status in damaged:
        remark(status.reason)
    return int(bool(damaged))


def _teach(arguments: argparse.Namespace) -> None:
    from napari_apprentice import workbench
    from napari_apprentice.projects import open_project

    project = open_project(arguments.project)
    with progress_bar() as progress:
        task = progress.add_task("replaying", total=None)
        status = workbench.teach_case(
            project,
            arguments.case,
            arguments.clicks,
            device=arguments.device,
            on_action=lambda done, total: progress.update(task, completed=done, total=total),
        )
    print(f"Labels: {project.folder / status.labels}")


def _take(arguments: argparse.Namespace) -> None:
    from napari_apprentice import workbench
    from napari_apprentice.projects import open_project

    project = open_project(arguments.project)
    status = workbench.take_case(project, arguments.case, arguments.journal, device=arguments.device)
    print(f"Labels: {project.folder / status.labels}" + (f" ({status.reason})" if status.reason else ""))


def _table(arguments: argparse.Namespace) -> int:
    from napari_apprentice.projects import open_project

    sentence, whole = _written_table(open_project(arguments.project), arguments.out, arguments.unit)
    print(sentence)
    return int(not whole)


def _written_table(project: Project, path: Path | None, unit: str | None = None) -> tuple[str, bool]:
    """Write the table of a project; a sentence about it, and whether all cases could be read. It is said on stderr why not."""
    from napari_apprentice.measure import as_csv
    from napari_apprentice.outcomes import cohort_table
    from napari_apprentice.texts import write_text

    check_texts(path)  # by now labels may lie there that were not there before
    damage: list[ReadError] = []
    rows, path = cohort_table(project, unit, damage.append), path or project.folder / TABLE_NAME
    write_text(path, as_csv(rows))
    for error in damage:
        remark(f"{error}; the case is not in the table")
    return f"Objects: {len(rows)}. Table: {path}", not damage


def _run(arguments: argparse.Namespace) -> int:
    from napari_apprentice import workbench

    check_texts(arguments.table)
    project = _project_of(arguments)
    names = list(arguments.only) or [case.name for case in project.cases]
    outcomes: list[Outcome] = []
    with progress_bar() as progress:
        task = progress.add_task("cases", total=len(names))
        for outcome in workbench.run_project(
            project,
            names,
            clicks=arguments.clicks,
            jobs=arguments.jobs,
            threads=arguments.threads,
            scheduler=arguments.scheduler,
            device=arguments.device,
            again=arguments.again,
        ):
            outcomes.append(outcome)
            progress.advance(task)
            if outcome.state not in ("left", "damaged"):  # the latter is told with the table
                progress.console.print(
                    f"{outcome.case}: {outcome.state}, {outcome.sentence}", soft_wrap=True, highlight=False, markup=False
                )
    counts = Counter(outcome.state for outcome in outcomes)
    states = ("done", "failed", "missing", "damaged", "left")
    print("This run: " + ", ".join(f"{state} {counts[state]}" for state in states if counts[state]) + ".")
    sentence, whole = _written_table(project, arguments.table)
    print(f"{_counted(project)}\n{sentence}")
    return 1 if counts["failed"] or counts["missing"] or not whole else 0


def _project_of(arguments: argparse.Namespace) -> Project:
    """The project that is named, or the one that is made of images."""
    from napari_apprentice.project_file import PROJECT_NAME
    from napari_apprentice.projects import create_project, open_project

    first = arguments.paths[0]
    if len(arguments.paths) == 1 and (first.name == PROJECT_NAME or (first / PROJECT_NAME).exists()):
        return _opened(first, arguments)
    if arguments.out is None:
        if first.is_dir() and len(arguments.paths) == 1:
            return open_project(first)  # which says what is wrong with it
        if not first.exists():
            raise ReadError(f"{str(first)!r} does not exist; expected a project, or images")
        some = "an image" if len(arguments.paths) == 1 else f"{len(arguments.paths)} images"
        raise InputError(f"{some} arrived without --out; expected a folder for what comes of them, or one project")
    if (arguments.out / PROJECT_NAME).exists():
        return _opened(arguments.out, arguments).with_images(arguments.paths)
    if arguments.study is None:
        raise InputError("images arrived without --study; expected the study whose model is to be used")
    return create_project(arguments.out, _settings(arguments, arguments.study), arguments.paths)


def _opened(folder: Path, arguments: argparse.Namespace) -> Project:
    """The project that lies there; an error if options were given that it answers itself."""
    from napari_apprentice.project_file import PROJECT_NAME
    from napari_apprentice.projects import open_project

    project = open_project(folder)
    if arguments.study not in (None, project.settings.study):
        raise InputError(f"the study {arguments.study!r} arrived for a project of {project.settings.study!r}; expected that one, or none")
    if given := [f"--{name.replace('_', '-')}" for name in _SETTINGS if getattr(arguments, name) is not None]:
        raise InputError(f"{' and '.join(given)} arrived for a project that there is already; expected its settings in {PROJECT_NAME}")
    return project
