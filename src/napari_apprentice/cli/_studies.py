"""Commands about studies of many images: ``cohort``; what it does with projects is in `_projects`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from napari_apprentice.cli._arguments import model_file, remark
from napari_apprentice.cli._projects import add_projects
from napari_apprentice.types import ReadError, SessionError

if TYPE_CHECKING:
    from napari_apprentice.cohorts import Cohort

__all__ = ["add_cohort"]


def add_cohort(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "cohort",
        help="projects of many cases, and the studies that teach their model",
        description="A study is a model that grows from session to session, apart from all others. It stays on this disk, with small "
        "pictures of accepted cases, by which the model is judged. A project is a folder with many cases of a study: a few are done by "
        "hand, and the others by what the model has learnt from them.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    add_projects(actions)
    listing = actions.add_parser(
        "list",
        help="all studies",
        description="List all studies on this disk: how many versions of the model each has made, on top of which weights, and when it "
        "changed last.",
    )
    listing.set_defaults(run=_list_cohorts)
    show = actions.add_parser(
        "show",
        help="the versions of a study",
        description="List the records of a study, oldest first: what its model learnt from, and how right the answer to the first click "
        "was, taught and untaught (IoU@1).",
    )
    forget = actions.add_parser(
        "forget",
        help="begin with the model as shipped next time; the versions stay",
        description="Let a study begin with the model as shipped next time. Its versions stay on the disk, unless --erase is given.",
    )
    forget.add_argument(
        "--erase",
        action="store_true",
        help="delete all of the study from the disk, with its pictures; the sessions that taught it keep theirs",
    )
    export = actions.add_parser(
        "export",
        help="write the model of a study to a file, for --knowledge",
        description="Write the model that a study has now to a file, with which `apprentice segment --knowledge` can begin. Nothing of any "
        "image is in it, unless --pictures is given.",
    )
    for action, run in ((show, _show_cohort), (forget, _forget_cohort), (export, _export_cohort)):
        action.add_argument("name", metavar="NAME", help="the study")
        action.set_defaults(run=run)
    export.add_argument("file", type=model_file, metavar="FILE.safetensors", help="file to write")
    export.add_argument("--weights", type=Path, metavar="WEIGHTS", help="what it was taught on top of (default: those of the program)")
    export.add_argument("--pictures", action="store_true", help="with the small pictures of accepted cases")


def _list_cohorts(arguments: argparse.Namespace) -> None:
    from napari_apprentice.cohorts import cohorts

    for cohort in cohorts():
        try:
            records = cohort.records
        except ReadError as error:
            remark(str(error))
            continue
        taught = sum(record.cause == "learnt" for record in records)
        print(
            f"{cohort.name}  {taught} versions, on top of the weights {cohort.digest}, last changed {records[-1].time if records else '-'}"
        )


def _show_cohort(arguments: argparse.Namespace) -> None:
    for cohort in _cohorts_named(arguments.name):
        print(f"Study {cohort.name}, on top of the weights {cohort.digest}, in {cohort.folder}")
        for record in cohort.records:
            facts = record.facts
            line = f"{record.number:4}  {record.time}  {record.cause:<9}  {facts.get('case', '')}".rstrip()
            effort = facts.get("effort")
            known = [effort.get(key) for key in ("taught_iou", "untaught_iou")] if isinstance(effort, dict) else []
            compared = known and all(isinstance(value, float | int) for value in known)
            print(f"{line}  IoU@1 {known[0]:.2f}, untaught {known[1]:.2f}" if compared else line)


def _forget_cohort(arguments: argparse.Namespace) -> None:
    found = _cohorts_named(arguments.name)
    for cohort in found if arguments.erase else [cohort for cohort in found if cohort.head is not None] or found:
        cohort.erase() if arguments.erase else cohort.forget()
    print(f"Study {arguments.name} {'is deleted' if arguments.erase else 'begins with the model as shipped next time'}.")


def _export_cohort(arguments: argparse.Namespace) -> None:
    from napari_apprentice import assembly

    print(f"Model: {assembly.export_cohort(arguments.name, arguments.file, weights=arguments.weights, pictures=arguments.pictures)}")


def _cohorts_named(name: str) -> tuple[Cohort, ...]:
    """The study, on top of whatever weights."""
    from napari_apprentice.cohorts import cohorts

    found = tuple(cohort for cohort in cohorts() if cohort.name == name)
    if not found:
        raise SessionError(
            f"there is no study called {name!r}; expected {', '.join(sorted({c.name for c in cohorts()})) or 'one to be taught'}"
        )
    return found
