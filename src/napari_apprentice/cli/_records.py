"""Commands about what sessions recorded: ``report`` and ``replay``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_apprentice.cli._arguments import add_device, add_time, add_unit, by_case, check_texts, is_folder, of_case, progress_bar
from napari_apprentice.types import InputError, ReadError

if TYPE_CHECKING:
    from napari_apprentice.journal import Event, Header

__all__ = ["add_replay", "add_report"]


# --- report ---


def add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "report",
        help="make a page and tables of what sessions recorded: clicks, time, learning",
        description="Make one HTML page, and tables, of what sessions recorded: clicks per object over time, what teaching brought, time "
        "per case, and Dice where there is a truth. The page holds all it needs and shows no image.",
    )
    parser.add_argument("journals", type=Path, nargs="+", metavar="JOURNAL", help="journals of sessions, or folders that hold some")
    parser.add_argument("--out", type=Path, metavar="REPORT.html", help="the page to write")
    parser.add_argument("--csv", type=Path, metavar="CLICKS.csv", help="a table to write, a row for every click")
    parser.add_argument("--objects", type=Path, metavar="OBJECTS.csv", help="a table to write, a row for every object")
    parser.add_argument(
        "--truth", type=Path, metavar="LABELS", help="label file to compare with, or a folder of them, named as the images of the sessions"
    )
    add_time(parser)
    add_unit(parser)
    parser.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> None:
    from napari_apprentice.measure import as_csv, in_unit
    from napari_apprentice.record import case_record, click_rows, journals_in, object_rows
    from napari_apprentice.record_page import page
    from napari_apprentice.texts import counted, write_text

    wished = [path for path in (arguments.out, arguments.csv, arguments.objects) if path is not None]
    if not wished:
        raise InputError("neither --out nor --csv nor --objects arrived; expected at least one file to write")
    check_texts(*wished)
    journals = journals_in(arguments.journals)
    truth = _truth(arguments.truth, len(journals), arguments.time) if arguments.truth is not None else None
    with progress_bar() as progress:
        task = progress.add_task("sessions", total=len(journals))
        cases = []
        for journal in journals:
            cases.append(case_record(journal, truth))
            progress.advance(task)
    used = [case for case in cases if case.events]
    if not used:
        raise ReadError(f"nothing was done in {counted(len(cases), 'session')}; expected at least one with an action")
    worked = [case for case in used if case.is_work]
    if arguments.out is not None:
        if not worked:
            raise ReadError(f"a run did all in {counted(len(used), 'session')}; expected one in which a person worked, or no --out")
        write_text(arguments.out, page(worked))
    for path, rows in ((arguments.csv, click_rows), (arguments.objects, object_rows)):
        if path is not None:
            write_text(path, as_csv(in_unit([row for case in used for row in rows(case)], arguments.unit)))
    if empty := len(cases) - len(used):
        print(f"Sessions without an action, left out: {empty}")
    if alone := len(used) - len(worked):
        print(f"Sessions that only a run did, not counted: {alone}")
    if truth is not None and (without := [case.name for case in used if case.agreement is None]):
        print(f"Without a truth: {', '.join(dict.fromkeys(without))}")
    print(f"Cases: {len(worked)}, clicks: {sum(len(case.by_hand) for case in worked)}. Written: {', '.join(map(str, wished))}")


def _truth(path: Path, journals: int, time: int | None) -> Callable[[Header], Any]:
    """Reads the truth of a case, on the grid of its image; None where a folder has none of that name."""
    if not is_folder(path):
        if journals > 1:
            raise InputError(f"the truth {path} and {journals} sessions arrived; expected a folder of truths, named as the images")
        return lambda header: _labels_like(path, header)
    found = by_case(path, labels=True)

    def of(header: Header) -> Any:
        own = of_case(found, header.image, time)
        return None if own is None else _labels_like(own, header)

    return of


def _labels_like(path: Path, header: Header) -> Any:
    from napari_apprentice import files

    image_path = Path(header.path) if header.path else None
    return files.read_labels(path, like=files.stand_in(header.image, image_path, header.shape, header.affine, header.units))


# --- replay ---


def add_replay(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "replay",
        help="do a recorded session again and compare the labels",
        description="Do the work of a session again, with the model and the way of learning that it had, and write the labels. With the "
        "same weights, version and computer they are the same bit for bit; what stands against that is said.",
        epilog="With --check the exit status is 1 if a voxel differs.",
    )
    parser.add_argument("journal", type=Path, metavar="JOURNAL", help="the journal of a session, or its folder")
    parser.add_argument("image", type=Path, metavar="IMAGE", help="the image that it is about")
    parser.add_argument("--out", type=Path, required=True, metavar="LABELS", help="label file to write; its extension is the format")
    parser.add_argument("--check", type=Path, metavar="LABELS", help="label file to compare with")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights of a network (default: those that the journal names)")
    add_time(parser)
    add_device(parser)
    parser.set_defaults(run=_replay)


def _replay(arguments: argparse.Namespace) -> int:
    from napari_apprentice import assembly, files
    from napari_apprentice.agreement import differing_voxels
    from napari_apprentice.journal import read_journal
    from napari_apprentice.legend import check_beside, write_beside
    from napari_apprentice.replay import obstacles, read_recording, replay

    if arguments.check is not None and arguments.check.resolve() == arguments.out.resolve():
        raise InputError(f"{arguments.out} arrived both to write and to compare with; expected two files")
    image = files.read(arguments.image, time=arguments.time)
    files.check_place(arguments.out, like=image)
    header, events = read_journal(arguments.journal)
    if any(event.name or (event.legend is not None and event.legend.names) for event in events):
        check_beside(arguments.out)
    check = files.read_labels(arguments.check, like=image) if arguments.check is not None else None
    assembly.compute_as(header.computer)
    session, segmenter = assembly.begin_again(arguments.journal, image, weights=arguments.weights, device=_device(arguments, header))
    actions = read_recording(arguments.journal)
    against = obstacles(header, events, assembly.model_of(segmenter), assembly.computer_of(segmenter), session.image)
    if against:
        print(f"The labels may come out otherwise than recorded: {'; '.join(against)}.")
    with progress_bar() as progress:
        task = progress.add_task("replaying", total=len(actions))
        departed = replay(session, actions, lambda: progress.advance(task))
    written = files.write(arguments.out, session.labels, like=session.image)
    write_beside(written, session.legend)
    print(f"Actions: {len(actions)}. Labels: {written}")
    if departed is None:
        print("All labels are as they were recorded, bit for bit.")
    else:
        unexplained = "" if against else " Nothing that the journal says explains that."
        print(f"The labels are not as they were recorded, from {_named(departed)} on.{unexplained}")
    if check is None:
        return 0
    count, first = differing_voxels(session.labels, check)
    if not count:
        print(f"They are those of {arguments.check}.")
        return 0
    where = f", the first of them in slice {first}" if image.ndim == 3 else f", the first of them in row {first}"
    print(f"apprentice: {count} of {session.labels.size} voxels differ from {arguments.check}{where}", file=sys.stderr)
    return 1


def _device(arguments: argparse.Namespace, header: Header) -> str:
    """The asked one; left to the program, the processor where that did the work."""
    on_processor = header.computer is not None and header.computer.repeatable
    return "cpu" if arguments.device == "auto" and on_processor else str(arguments.device)


def _named(event: Event) -> str:
    """An action, for people."""
    click = (
        "" if event.click is None else f" at {event.click.voxel}" if event.click.box is None else f" in the box {tuple(event.click.box)}"
    )
    return f"action {event.sequence} ({event.kind} of object {event.label}{click})"
