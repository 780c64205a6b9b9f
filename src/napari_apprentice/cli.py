"""The command line: ``apprentice demo | segment | propagate | measure | benchmark | train | info | cohort``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from napari_apprentice import __version__
from napari_apprentice.types import ApprenticeError, InputError, ReadError, SessionError

if TYPE_CHECKING:
    import numpy.typing as npt

    from napari_apprentice.cohorts import Cohort
    from napari_apprentice.types import Image, Segmenter

__all__ = ["main"]

# What a command needs is imported when it runs, so that --help answers at once.

_DEVICES = ("auto", "cpu", "cuda", "mps")
_POLICIES = "none, ia, sa, ia+sa, mi, pi, mi+pi or ia+pi"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : what stands after ``apprentice``; by default what the process was started with

    Returns
    -------
    0 when it was done, 2 when something cannot be used (one sentence on stderr says what), 130 when it was interrupted
    """
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except ApprenticeError as error:
        print(f"apprentice: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("apprentice: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="apprentice",
        description="Interactive segmentation that learns from every click.",
        epilog="`apprentice COMMAND --help` says more about a command.",
    )
    parser.add_argument("-V", "--version", action="version", version=f"napari-apprentice {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (_add_demo, _add_segment, _add_propagate, _add_measure, _add_benchmark, _add_train, _add_info, _add_cohort):
        add(commands)
    return parser


# --- demo ---


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
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
    with _progress() as progress:
        task = progress.add_task("clicking", total=None)
        results = demo.run_headless(
            arguments.out, on_start=lambda total: progress.update(task, total=total), on_slice=lambda: progress.advance(task)
        )
    print(demo.table(results.slices))
    print("\n".join(f"{what}: {path}" for what, path in results.files))


# --- segment ---


def _add_segment(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "segment",
        help="replay recorded clicks on an image and write the labels",
        description="Replay recorded clicks on an image and write the labels, in the geometry of the image. Every object is accepted, and "
        "learnt from, after its last click.",
        epilog='Clicks are JSON, {"clicks": [{"voxel": [z, y, x], "positive": true, "axis": 0, "object": 1}, ...]}, '
        "or the journal.jsonl of a session.",
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="NIfTI, TIFF, MHA, NRRD, PNG or JPEG file")
    parser.add_argument("--clicks", type=Path, required=True, metavar="CLICKS.json", help="the recorded clicks, or a session's journal")
    parser.add_argument("--out", type=Path, required=True, metavar="LABELS", help="label file to write; its extension is the format")
    _add_each(parser)
    parser.add_argument("--policy", default="mi+pi", metavar="P", help=f"how the model learns: {_POLICIES} (default: %(default)s)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights of a network (default: the ones that come with the program)")
    parser.add_argument("--cohort", metavar="NAME", help="begin with what this study has learnt, and add to it")
    parser.add_argument("--knowledge", type=Path, metavar="FILE", help="begin with a version of the model that was exported")
    _add_device(parser)
    parser.set_defaults(run=_segment)


def _segment(arguments: argparse.Namespace) -> None:
    from napari_apprentice import assembly, files
    from napari_apprentice.replay import read_recording, replay, starting_labels

    image = files.read(arguments.image)
    events = read_recording(arguments.clicks)
    labels = starting_labels(arguments.clicks)
    session = assembly.open_session(
        image,
        weights=arguments.weights,
        policy=arguments.policy,
        device=arguments.device,
        labels=labels,
        knowledge=arguments.knowledge,
        cohort=arguments.cohort,
    )
    with _progress() as progress:
        task = progress.add_task("replaying", total=len(events))
        replay(session, events, lambda: progress.advance(task))
    print(f"Objects: {len(session.finished)}. {_write_labels(arguments, session.labels, image)}")
    if arguments.cohort is not None:
        print(f"Study {arguments.cohort}: {len(session.versions.versions) - 1} versions known to this session.")


# --- propagate ---


def _add_propagate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "propagate",
        help="carry labelled slices of a volume to the slices between and beyond them",
        description="Carry objects from the slices in which they are labelled to those between and beyond them, and write the labels in "
        "the geometry of the image. Labelled slices stay as they are, and no object is written over another one.",
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="NIfTI, TIFF, MHA or NRRD volume")
    parser.add_argument("--labels", type=Path, required=True, metavar="IN", help="label file; slices that hold an object are given ones")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="label file to write; its extension is the format")
    _add_each(parser)
    parser.add_argument("--label", type=int, metavar="N", help="only this object (default: all of them, in the order of their numbers)")
    parser.add_argument("--axis", type=int, choices=(0, 1, 2), default=0, help="the slices lie across it (default: %(default)s, z)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights of a network (default: the ones that come with the program)")
    _add_device(parser)
    parser.set_defaults(run=_propagate)


def _propagate(arguments: argparse.Namespace) -> None:
    from napari_apprentice import assembly, files

    image, labels = files.read(arguments.image), files.read_labels(arguments.labels)
    session = assembly.open_session(image, weights=arguments.weights, policy="none", device=arguments.device, labels=labels)
    lines = []
    with _progress() as progress:
        for label in session.finished if arguments.label is None else (arguments.label,):
            task = progress.add_task(f"object {label}", total=None)
            _, outcome = session.propagate(label, arguments.axis, on_slice=partial(_show_slices, progress, task))
            lines.append(f"Object {label}: {outcome.sentence}")
    print("\n".join([*lines, _write_labels(arguments, session.labels, image)]))


def _show_slices(progress: Progress, task: TaskID, done: int, total: int) -> None:
    progress.update(task, completed=done, total=total)


# --- measure ---


def _add_measure(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "measure",
        help="write a table of what labelled objects measure, in millimetres",
        description="Write a table with one row for every object: volume, surface, centroid and bounding box, intensity, and what it is "
        "called where a .tsv file beside the labels says so. Units are in the names of the columns; they are pixels where the image "
        "states no spacing. Given two folders, all cases whose files are named alike come into one table.",
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="the image, or a folder of images")
    parser.add_argument("labels", type=Path, nargs="+", metavar="LABELS", help="label files on the image's grid, or the folder of them")
    parser.add_argument("--out", type=Path, required=True, metavar="TABLE.csv", help="the table to write")
    parser.add_argument("--journal", type=Path, metavar="JOURNAL", help="a session's journal: adds clicks, seconds and model of an object")
    parser.set_defaults(run=_measure)


def _measure(arguments: argparse.Namespace) -> None:
    from napari_apprentice import files, report
    from napari_apprentice.legend import legend_path, read_legend
    from napari_apprentice.measure import as_csv, measure, table
    from napari_apprentice.work import work_in

    cases = list(_cases(arguments.image, arguments.labels))
    if arguments.journal is not None and len(cases) > 1:
        raise SessionError(f"a journal and {len(cases)} images arrived; expected the one image that the journal is about")
    rows = []
    with _progress() as progress:
        task = progress.add_task("label maps", total=sum(len(paths) for _, paths in cases))
        for image_path, paths in cases:
            image = files.read(image_path)
            work = work_in(arguments.journal, image) if arguments.journal is not None else None
            for path in paths:
                legend = legend_path(path)
                names = read_legend(legend).names if legend.exists() else {}
                measures = measure(files.read_labels(path, like=image), image)
                rows += table(measures, case=image.name, labels=path.name, classes=names, work=work)
                progress.advance(task)
    report.write_text(arguments.out, as_csv(rows))
    print(f"Objects: {len(rows)}. Table: {arguments.out}")


def _cases(image: Path, labels: Sequence[Path]) -> Iterator[tuple[Path, Sequence[Path]]]:
    """Every image with its label files; those in two folders are paired by name, with or without an ending ``_labels``."""
    if not _is_folder(image):
        yield image, labels
        return
    if len(labels) != 1 or not _is_folder(labels[0]):
        raise ReadError(f"the folder {image} and {labels[0]} arrived; expected a folder of images and a folder of their label files")
    images, found = _by_case(image), _by_case(labels[0])
    pairs = {case: path for case, path in images.items() if case in found and path != found[case]}
    if not pairs:
        raise ReadError(f"no image in {image} has a label file in {labels[0]}; expected files of the same name")
    for case, path in pairs.items():
        yield path, (found[case],)
    if left := len(images) - len(pairs):
        print(f"Images without a label file, left out: {left}")


def _by_case(folder: Path) -> dict[str, Path]:
    """The images or label files of a folder, by their names without extension."""
    from napari_apprentice import files

    found = {}
    for path in sorted(folder.iterdir()):
        extension = next((extension for extension in files.READABLE if path.name.lower().endswith(extension)), None)
        if extension is not None and not path.name.startswith("."):
            found[path.name[: -len(extension)].removesuffix("_labels")] = path
    return found


def _is_folder(path: Path) -> bool:
    """Whether it is a folder of files, not a single image that is stored as a folder."""
    from napari_apprentice import files

    return path.is_dir() and not path.name.lower().endswith(files.READABLE)


# --- benchmark ---


def _add_benchmark(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "benchmark",
        help="measure how many clicks a simulated user needs on labelled sets",
        description="Measure how many clicks a simulated user needs. Objects of a set are segmented one after the other, each scored "
        "before the model learns from it. Networks, policies, robots and orders may be lists separated by commas: every combination "
        "becomes a row. The weights of a network are those of --weights NAME=FILE, else the ones that come with the program, else of "
        "runs/NAME.safetensors.",
    )
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET_DIR", help="folder with images/, labels/ and dataset.toml")
    parser.add_argument("--network", type=_names, default=(), metavar="NAME", help="networks to compare (default: that of the weights)")
    parser.add_argument("--weights", action="append", default=[], metavar="[NAME=]FILE", help="weights of a network; may be repeated")
    parser.add_argument("--policy", type=_names, default=("none",), metavar="P", help=f"{_POLICIES} (default: none)")
    parser.add_argument("--robot", type=_names, default=("centre",), metavar="R", help="centre or random (default: centre)")
    parser.add_argument("--max-clicks", type=int, default=20, metavar="N", help="clicks until an object is given up (default: %(default)s)")
    parser.add_argument("--targets", type=_ious, default=(0.80, 0.85, 0.90), metavar="IOUS", help="IoUs to reach (default: 0.80,0.85,0.90)")
    parser.add_argument("--order", type=_orders, default=("sorted",), metavar="O", help="sorted, or seed of a shuffle (default: sorted)")
    parser.add_argument("--cases", default="*", metavar="GLOB", help="only cases whose name matches, such as '*_FLAIR'")
    parser.add_argument("--target", metavar="NAME", help="only this target of the sets")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N objects of a set, spread evenly over it")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the random robot (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here, each as soon as it is there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here too")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="rows measured at once, each in a process (default: 1)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="threads of a process (default: %(default)s)")
    _add_device(parser)
    parser.set_defaults(run=_benchmark)


def _benchmark(arguments: argparse.Namespace) -> None:
    from napari_apprentice import assembly, report
    from napari_apprentice.benchmark import Row, Trial, objects_of, run_all
    from napari_apprentice.segmenter import pick_device

    trials = [
        Trial(
            folder=folder,
            policy=policy,
            robot=robot,
            order=order,
            cases=arguments.cases,
            target=arguments.target,
            limit=arguments.limit,
            max_clicks=arguments.max_clicks,
            targets=arguments.targets,
            seed=arguments.seed,
        )
        for folder, robot, order, policy in product(arguments.sets, arguments.robot, arguments.order, arguments.policy)
    ]
    models = _models(arguments.network, arguments.weights)
    for policy in arguments.policy:
        assembly.make_policy(policy)  # a misspelt one is told before the work begins
    for network, weights in models:
        if network is not None and weights is None:
            assembly.find_weights(network)
    device = str(pick_device(arguments.device))
    about = report.machine(device, arguments.threads)
    rows: dict[tuple[int, int], Row] = {}
    with _progress() as progress:
        task = progress.add_task("objects", total=len(models) * sum(len(objects_of(trial)[1]) for trial in trials))
        for number, (network, weights) in enumerate(models):
            build = partial(_load_segmenter, weights, network, device, arguments.threads)
            for index, row in run_all(trials, build, assembly.make_policy, jobs=arguments.jobs, on_object=lambda: progress.advance(task)):
                rows[number, index] = row
                if arguments.json is not None:
                    report.write_json(arguments.json, about, [rows[i] for i in sorted(rows)])
    print(report.markdown(about, [rows[i] for i in sorted(rows)], arguments.markdown), end="")


def _models(networks: Sequence[str], weights: Sequence[str]) -> list[tuple[str | None, Path | None]]:
    """(network, weights file) of what is to be measured; None for the network that the weights are of, and for weights to be found."""
    named, plain = {}, []
    for text in weights:
        name, given, file = text.partition("=")
        if given and name.isidentifier():
            named[name] = Path(file)
        else:
            plain.append(Path(text))
    if plain and (networks or named or len(plain) > 1):
        raise InputError(f"weights {plain[0]} arrived beside other networks or weights; expected NAME=FILE for each network")
    if strange := sorted(set(named) - set(networks or named)):
        raise InputError(
            f"weights of {', '.join(strange)} arrived, but the networks asked for are {', '.join(networks)}; expected only these"
        )
    return [(name, named.get(name)) for name in dict.fromkeys(networks or named)] or [(None, plain[0] if plain else None)]


def _load_segmenter(weights: Path | None, network: str | None, device: str, threads: int) -> Segmenter:
    """Also in the processes of ``--jobs``: the same number of threads everywhere gives the same sums everywhere."""
    import torch

    from napari_apprentice import assembly

    torch.set_num_threads(max(threads, 1))
    return assembly.load_segmenter(weights, network, device)


# --- train ---


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "train",
        help="train a network by a recipe",
        description="Train a network by a recipe, with simulated clicks. Killed or interrupted, it goes on with --resume.",
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE.toml", help="what to train, and how")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder that holds the sets which the recipe names")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")
    parser.add_argument("--resume", action="store_true", help="go on where an earlier run with this FILE stopped")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's choice)")
    _add_device(parser)
    parser.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> None:
    from napari_apprentice import training

    training.train(
        arguments.recipe, arguments.data, arguments.out, resume=arguments.resume, device=arguments.device, threads=arguments.threads
    )
    print(f"Weights: {arguments.out}")


# --- info ---


def _add_info(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("info", help="say what a weights file holds", description="Say what a weights file holds.")
    parser.add_argument("weights", type=Path, nargs="?", metavar="WEIGHTS", help="the file (default: the one that comes with the program)")
    parser.set_defaults(run=_info)


def _info(arguments: argparse.Namespace) -> None:
    from napari_apprentice import assembly

    facts = assembly.load_segmenter(arguments.weights, device="cpu").describe()
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        print(f"{key:<{width}}  {f'{value:,}' if isinstance(value, int) else value}")


# --- cohort ---


def _add_cohort(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "cohort",
        help="list, show, forget or export what studies have taught the model",
        description="Studies are models that grow from session to session, each apart from the others. They stay on this disk, with small "
        "pictures of accepted cases, by which the model is judged.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="all studies")
    listing.set_defaults(run=_list_cohorts)
    show = actions.add_parser("show", help="the versions of a study")
    forget = actions.add_parser("forget", help="begin with the model as shipped next time; the versions stay")
    forget.add_argument("--erase", action="store_true", help="delete all of the study from the disk, pictures included")
    export = actions.add_parser("export", help="write the model of a study to a file, for --knowledge")
    for action, run in ((show, _show_cohort), (forget, _forget_cohort), (export, _export_cohort)):
        action.add_argument("name", metavar="NAME", help="the study")
        action.set_defaults(run=run)
    export.add_argument("file", type=Path, metavar="FILE.safetensors", help="file to write")
    export.add_argument("--weights", type=Path, metavar="WEIGHTS", help="what it was taught on top of (default: those of the program)")
    export.add_argument("--pictures", action="store_true", help="with the small pictures of accepted cases")


def _list_cohorts(arguments: argparse.Namespace) -> None:
    from napari_apprentice.cohorts import cohorts

    for cohort in cohorts():
        records = cohort.records
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
            print(f"{line}  IoU@1 {effort['taught_iou']:.2f}, untaught {effort['untaught_iou']:.2f}" if effort else line)


def _forget_cohort(arguments: argparse.Namespace) -> None:
    for cohort in _cohorts_named(arguments.name):
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


# --- shared ---


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=_DEVICES, default="auto", help="what computes (default: %(default)s)")


def _add_each(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--each", action="store_true", help="write every object to a file of its own, named with its number")


def _write_labels(arguments: argparse.Namespace, labels: npt.NDArray[Any], image: Image) -> str:
    """Write labels as ``--out`` and ``--each`` say; a sentence about where they are."""
    from napari_apprentice import files

    if not arguments.each:
        return f"Labels: {files.write(arguments.out, labels, like=image)}"
    return f"Labels: {', '.join(map(str, files.write_objects(arguments.out, labels, like=image))) or 'none'}"


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _ious(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} arrived; expected IoUs such as 0.80,0.85,0.90") from None


def _orders(text: str) -> tuple[Literal["sorted"] | int, ...]:
    try:
        return tuple("sorted" if part == "sorted" else int(part) for part in _names(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} arrived; expected sorted or a whole number") from None


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on stderr, where it does not get into what is printed."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield progress
