"""Commands that work on images: ``demo``, ``segment``, ``propagate``, ``measure``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress, TaskID

from napari_apprentice.cli._arguments import (
    POLICIES,
    add_device,
    add_each,
    add_time,
    add_unit,
    by_case,
    check_names,
    check_texts,
    count,
    is_folder,
    of_case,
    progress_bar,
    read_image,
    remark,
    write_labels,
)
from napari_apprentice.types import DEFAULT_POLICY, ApprenticeError, ReadError, SessionError

if TYPE_CHECKING:
    from napari_apprentice.legend import Legend

__all__ = ["add_demo", "add_measure", "add_propagate", "add_segment"]

_LISTED = 10  # so many objects of a label file are listed in a sentence


# --- demo ---


def add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="open napari on a sample volume; without a screen a simulated user clicks",
        description="Open napari with the plugin on a sample volume. Without a screen, or with --headless, a simulated user works on "
        "generated samples; their labels, a table of the clicks it took, and pictures are written to DIR.",
    )
    parser.add_argument("--headless", action="store_true", help="let a simulated user click, without a window")
    parser.add_argument("--out", type=Path, default=Path("demo-output"), metavar="DIR", help="where the results go (default: %(default)s)")
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> None:
    from napari_apprentice import demo

    reason = "" if arguments.headless else demo.why_no_window()
    if not arguments.headless and not reason:
        print("Opening napari with the Apprentice widget; click on an object in the image.")
        demo.open_window()
        return
    if reason:
        print(f"No window: {reason}. A simulated user does the clicking instead.")
    with progress_bar() as progress:
        task = progress.add_task("clicking", total=None)
        results = demo.run_headless(
            arguments.out, on_start=lambda total: progress.update(task, total=total), on_slice=lambda: progress.advance(task)
        )
    print(demo.table(results.slices))
    print("\n".join(f"{what}: {path}" for what, path in results.files))


# --- segment ---


def add_segment(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "segment",
        help="replay recorded clicks on an image and write the labels",
        description="Replay recorded clicks on an image and write the labels, in the geometry of the image. Every object is accepted, and "
        "learnt from, after its last click. Stopped before the end, it leaves no labels, but with --cohort those that it has got so far.",
        epilog='Clicks are JSON, {"clicks": [{"voxel": [z, y, x], "positive": true, "axis": 0, "object": 1}, ...]}, '
        "or the journal.jsonl of a session.",
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="NIfTI, TIFF, OME-Zarr, MHA, NRRD, PNG or JPEG")
    parser.add_argument("--clicks", type=Path, required=True, metavar="CLICKS.json", help="the recorded clicks, or a session's journal")
    parser.add_argument("--out", type=Path, required=True, metavar="LABELS", help="label file to write; its extension is the format")
    add_each(parser)
    add_time(parser)
    parser.add_argument("--policy", default=DEFAULT_POLICY, metavar="P", help=f"how the model learns: {POLICIES} (default: %(default)s)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights of a network (default: the ones that come with the program)")
    parser.add_argument("--cohort", metavar="NAME", help="begin with what this study has learnt, and add to it")
    parser.add_argument("--knowledge", type=Path, metavar="FILE", help="begin with a version of the model that was exported")
    add_device(parser)
    parser.set_defaults(run=_segment)


def _segment(arguments: argparse.Namespace) -> None:
    from napari_apprentice import assembly, files
    from napari_apprentice.replay import beginning, read_recording, replay

    image = read_image(arguments.image, time=arguments.time)
    events = read_recording(arguments.clicks, like=image)
    labels, legend, origins = beginning(arguments.clicks)
    highest = max([0 if labels is None else int(labels.max()), *(max(event.label, event.into or 0) for event in events)])
    files.check_place(arguments.out, like=image, highest=highest, each=arguments.each)
    if legend.names or any(event.name for event in events):
        check_names(arguments)
    session = assembly.open_session(
        image,
        weights=arguments.weights,
        policy=arguments.policy,
        device=arguments.device,
        labels=labels,
        knowledge=arguments.knowledge,
        cohort=arguments.cohort,
        legend=legend,
        origins=origins,
    )
    if arguments.cohort is not None and arguments.policy == "none" and len(session.versions.versions) == 1:
        raise SessionError(
            f"the study {arguments.cohort!r} has learnt nothing, and the policy none teaches it nothing; expected another policy, or study"
        )
    done: list[str] = []

    def on_action() -> None:
        done.append(events[len(done)].kind)
        progress.advance(task)

    try:
        with progress_bar() as progress:
            task = progress.add_task("replaying", total=len(events))
            replay(session, events, on_action)
    except (ApprenticeError, KeyboardInterrupt):
        if arguments.cohort is not None and "accept" in done:  # what the study has learnt stays, so what it learnt from does, too
            print(f"Stopped after {len(done)} of {len(events)} actions. {write_labels(arguments, session.labels, image, session.legend)}")
        raise
    print(f"Objects: {len(session.finished)}. {write_labels(arguments, session.labels, image, session.legend)}")
    if arguments.cohort is not None:
        print(f"Study {arguments.cohort}: {len(session.versions.versions) - 1} versions known to this session.")


# --- propagate ---


def add_propagate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "propagate",
        help="carry labelled slices of a volume to the slices between and beyond them",
        description="Carry objects from the slices in which they are labelled to those between and beyond them, and write the labels in "
        "the geometry of the image. Labelled slices stay as they are, and no object is written over another one.",
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="NIfTI, TIFF, OME-Zarr, MHA or NRRD volume")
    parser.add_argument("--labels", type=Path, required=True, metavar="IN", help="label file; slices that hold an object are given ones")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="label file to write; its extension is the format")
    add_each(parser)
    add_time(parser)
    parser.add_argument("--label", type=count, metavar="N", help="only this object (default: all of them, in the order of their numbers)")
    parser.add_argument("--axis", type=int, choices=(0, 1, 2), default=0, help="the slices lie across it (default: %(default)s, z)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights of a network (default: the ones that come with the program)")
    add_device(parser)
    parser.set_defaults(run=_propagate)


def _propagate(arguments: argparse.Namespace) -> None:
    from napari_apprentice import assembly, files

    image = read_image(arguments.image, time=arguments.time)
    labels = files.read_labels(arguments.labels, like=image)
    files.check_place(arguments.out, like=image, each=arguments.each)
    if (legend := _legend_beside(arguments.labels)).names:
        check_names(arguments)
    session = assembly.open_session(image, weights=arguments.weights, policy="none", device=arguments.device, labels=labels, legend=legend)
    if not session.finished:
        raise SessionError(f"{arguments.labels.name!r} holds no object; expected at least one to carry")
    if arguments.label not in (None, *session.finished):
        held = ", ".join(map(str, session.finished[:_LISTED])) + ", ..." * (len(session.finished) > _LISTED)
        raise SessionError(f"object {arguments.label} is not in {arguments.labels.name!r}; expected one of {held}")
    lines = []
    with progress_bar() as progress:
        for label in session.finished if arguments.label is None else (arguments.label,):
            task = progress.add_task(f"object {label}", total=None)
            _, outcome = session.propagate(label, arguments.axis, on_slice=partial(_show_slices, progress, task))
            first = [f"look at slice {doubt.plane.index} first" for doubt in session.advised(label, arguments.axis)[:1]]
            lines.append("; ".join([f"Object {label}: {outcome.sentence}", *first]))
    print("\n".join([*lines, write_labels(arguments, session.labels, image, session.legend)]))


def _legend_beside(labels: Path) -> Legend:
    """What the objects of a label file are called; some other table that lies there is told of."""
    from napari_apprentice.legend import Legend, legend_path, read_legend

    path = legend_path(labels)
    try:
        return read_legend(path) if path.exists() else Legend()
    except ReadError as error:
        remark(str(error))
        return Legend()


def _show_slices(progress: Progress, task: TaskID, done: int, total: int) -> None:
    progress.update(task, completed=done, total=total)


# --- measure ---


def add_measure(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "measure",
        help="write a table of what labelled objects measure",
        description="Write a table with one row for every object: volume, surface, centroid and bounding box, intensity, and what it is "
        "called where a .tsv file beside the labels says so. Units are in the names of the columns: millimetres, or micrometres for what "
        "a microscope has seen; they are pixels where the image states no spacing. Given two folders, all cases whose files are named "
        "alike come into one table.",
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="the image, or a folder of images")
    parser.add_argument("labels", type=Path, nargs="+", metavar="LABELS", help="label files on the image's grid, or the folder of them")
    parser.add_argument("--out", type=Path, required=True, metavar="TABLE.csv", help="the table to write")
    parser.add_argument("--journal", type=Path, metavar="JOURNAL", help="a session's journal: adds clicks, seconds and model of an object")
    add_time(parser)
    add_unit(parser)
    parser.set_defaults(run=_measure)


def _measure(arguments: argparse.Namespace) -> None:
    from napari_apprentice import files
    from napari_apprentice.journal import read_journal, standing_as
    from napari_apprentice.legend import legend_path, read_legend
    from napari_apprentice.measure import as_csv, columns, in_unit, measure, table
    from napari_apprentice.texts import write_text
    from napari_apprentice.work import work_in

    check_texts(arguments.out)
    cases = list(_cases(arguments.image, arguments.labels, arguments.time))
    if arguments.journal is not None and len(cases) > 1:
        raise SessionError(f"a journal and {len(cases)} images arrived; expected the one image that the journal is about")
    rows, unstated = [], []
    with progress_bar() as progress:
        task = progress.add_task("label maps", total=sum(len(paths) for _, paths in cases))
        for image_path, paths in cases:
            image = files.read(image_path, time=arguments.time)
            work = work_in(arguments.journal, image) if arguments.journal is not None else None
            if arguments.journal is not None:
                image = standing_as(read_journal(arguments.journal)[0], image)
            unstated += [image.name] if files.unstated_spacing(image) else []
            for path in paths:
                if path.exists() and path.samefile(image_path):
                    raise ReadError(f"{path.name!r} arrived as the image and as its labels; expected a label file beside the image")
                legend = legend_path(path)
                names = read_legend(legend).names if legend.exists() else {}
                measures = measure(files.read_labels(path, like=image), image)
                rows += table(measures, case=image.name, labels=path.name, classes=names, work=work)
                progress.advance(task)
    remark(files.unstated_spacings(unstated, len(cases)))
    heads = columns(image, work=arguments.journal is not None, unit=arguments.unit)
    write_text(arguments.out, as_csv(in_unit(rows, arguments.unit), heads))
    print(f"Objects: {len(rows)}. Table: {arguments.out}")


def _cases(image: Path, labels: Sequence[Path], time: int | None) -> Iterator[tuple[Path, Sequence[Path]]]:
    """Every image with its label files; those in two folders are paired by name, with or without an ending ``_labels``, see `of_case`."""
    from napari_apprentice import files

    if not is_folder(image):
        yield image, labels
        return
    if len(labels) != 1 or not is_folder(labels[0]):
        raise ReadError(f"the folder {image} and {labels[0]} arrived; expected a folder of images and a folder of their label files")
    images, found = by_case(image, labels=False), by_case(labels[0], labels=True)
    pairs = {path: own for case, path in images.items() if (own := of_case(found, case, time)) not in (None, path)}
    if not pairs:
        raise ReadError(f"no image in {image} has a label file in {labels[0]}; expected files of the same name")
    for path, own in pairs.items():
        yield path, (own,)
    if left := [path for path in images.values() if path not in pairs and not files.stem(path).endswith("_labels")]:
        print(f"Images without a label file, left out: {len(left)}")
