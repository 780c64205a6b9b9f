"""Commands about networks and their weights: ``benchmark``, ``train``, ``info``."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_apprentice.cli._arguments import (
    POLICIES,
    add_device,
    check_output,
    check_texts,
    count,
    ious,
    model_file,
    names,
    orders,
    progress_bar,
    seed,
    threads,
)
from napari_apprentice.types import InputError, WeightsError

if TYPE_CHECKING:
    from napari_apprentice.segmenter import ZoomConfig
    from napari_apprentice.types import Segmenter

__all__ = ["add_benchmark", "add_info", "add_train"]


# --- benchmark ---


def add_benchmark(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "benchmark",
        help="measure how many clicks a simulated user needs on labelled sets",
        description="Measure how many clicks a simulated user needs. Objects of a set are segmented one after the other, each scored "
        "before the model learns from it. Networks, policies, robots and orders may be lists separated by commas: every combination "
        "becomes a row. The weights of a network are those of --weights NAME=FILE, else the ones that come with the program, else of "
        "runs/NAME.safetensors. A NAME that no network has is only what its rows are called, to compare several weights of one network.",
    )
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET_DIR", help="folder with images/, labels/ and dataset.toml")
    parser.add_argument("--network", type=names, default=(), metavar="NAME", help="networks to compare (default: that of the weights)")
    parser.add_argument("--weights", action="append", default=[], metavar="[NAME=]FILE", help="weights of a network; may be repeated")
    parser.add_argument(
        "--zoom",
        action="append",
        default=[],
        metavar="NAME=VALUE[,...]",
        help="other values of segmenter.ZoomConfig, such as diffusion=5,mirror=true; may be repeated for more rows; "
        "empty for the usual ones",
    )
    parser.add_argument("--policy", type=names, default=("none",), metavar="P", help=f"{POLICIES} (default: none)")
    parser.add_argument("--robot", type=names, default=("centre",), metavar="R", help="centre, random or box (default: centre)")
    parser.add_argument(
        "--max-clicks", type=count, default=20, metavar="N", help="clicks until an object is given up (default: %(default)s)"
    )
    parser.add_argument("--targets", type=ious, default=(0.80, 0.85, 0.90), metavar="IOUS", help="IoUs to reach (default: 0.80,0.85,0.90)")
    parser.add_argument("--order", type=orders, default=("sorted",), metavar="O", help="sorted, or seed of a shuffle (default: sorted)")
    parser.add_argument("--cases", default="*", metavar="GLOB", help="only cases whose name matches, such as '*_FLAIR'")
    parser.add_argument("--target", metavar="NAME", help="only this target of the sets")
    parser.add_argument("--limit", type=count, metavar="N", help="at most N objects of a set, spread evenly over it")
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="seed of the robots that draw: random, box (default: %(default)s)"
    )
    parser.add_argument("--told", action="store_true", help="the user names the class of every object before clicking")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here, each as soon as it is there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here too")
    parser.add_argument("--jobs", type=count, default=1, metavar="N", help="rows measured at once, each in a process (default: 1)")
    parser.add_argument("--threads", type=threads, default=2, metavar="N", help="threads of a process (default: %(default)s)")
    add_device(parser)
    parser.set_defaults(run=_benchmark)


def _benchmark(arguments: argparse.Namespace) -> None:
    from napari_apprentice import assembly, report
    from napari_apprentice.benchmark import Row, Trial, objects_of, run_all
    from napari_apprentice.segmenter import pick_device
    from napari_apprentice.simulation import make_robot
    from napari_apprentice.texts import write_text

    check_texts(arguments.markdown, json=arguments.json)
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
            told=arguments.told,
        )
        for folder, robot, order, policy in product(arguments.sets, arguments.robot, arguments.order, arguments.policy)
    ]
    models = list(product(_models(arguments.network, arguments.weights), arguments.zoom or [""]))
    for zoom in arguments.zoom:
        _zoom(zoom)  # likewise for what is told too late otherwise
    for policy in arguments.policy:
        assembly.make_policy(policy)  # a misspelt one is told before the work begins
    for robot in arguments.robot:
        make_robot(robot)
    for (network, weights), _ in models:
        if network is not None and weights is None:
            assembly.find_weights(network)
        if weights is not None and not weights.is_file():
            raise WeightsError(f"the weights {weights} are not there; expected a file of them")
    device = str(pick_device(arguments.device))
    for (network, weights), zoom in models:
        if zoom:
            _load_segmenter(weights, network, device, arguments.threads, zoom)  # which sizes there can be, the network knows
    about = report.machine(device, arguments.threads)
    rows: dict[tuple[int, int], Row] = {}
    with progress_bar() as progress:
        task = progress.add_task("objects", total=len(models) * sum(len(objects_of(trial)[1]) for trial in trials))
        for number, ((network, weights), zoom) in enumerate(models):
            build = partial(_load_segmenter, weights, network, device, arguments.threads, zoom)
            for index, row in run_all(
                trials,
                build,
                assembly.make_policy,
                jobs=arguments.jobs,
                on_object=lambda: progress.advance(task),
                cost_of=_cost_of,
            ):
                rows[number, index] = row
                if arguments.json is not None:
                    report.write_json(arguments.json, about, [rows[i] for i in sorted(rows)])
    text = report.markdown(about, [rows[i] for i in sorted(rows)])
    print(text, end="")
    if arguments.markdown is not None:
        write_text(arguments.markdown, text)


def _models(networks: Sequence[str], weights: Sequence[str]) -> list[tuple[str | None, Path | None]]:
    """(name, weights file) of what is to be measured; None for the network that the weights are of, and for weights to be found."""
    named, plain = {}, []
    for text in weights:
        name, given, file = text.partition("=")
        if given and re.fullmatch(r"[\w+.-]+", name):
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


def _zoom(text: str) -> ZoomConfig:
    """The usual way to look, but for what ``text`` says (``name=value``, separated by commas)."""
    from napari_apprentice.segmenter import ZoomConfig

    usual, values = ZoomConfig(), {}
    for part in filter(None, names(text)):
        name, _, value = part.partition("=")
        kinds = {f.name: type(getattr(usual, f.name)) for f in fields(ZoomConfig)}
        try:
            values[name] = read = _READ[kinds[name]](value)
        except (KeyError, ValueError):
            raise InputError(
                f"--zoom {part} arrived; expected NAME=VALUE with one of {', '.join(f'{k} ({v.__name__})' for k, v in kinds.items())}"
            ) from None
        numbers, least = read if isinstance(read, tuple) else (read,), _LEAST.get(name, 0)
        above = name == "first_steps"
        if not all(least <= number < math.inf for number in numbers) or (above and read == least):
            some = "finite numbers" if isinstance(read, tuple) else "a finite number"
            raise InputError(f"--zoom {part} arrived; expected {some} {'above' if above else 'from'} {least}")
    return replace(usual, **values)


_READ: Mapping[type, Callable[[str], Any]] = {
    int: int,
    float: float,
    bool: {"true": True, "false": False}.__getitem__,
    tuple: lambda text: tuple(float(part) for part in text.split("+") if part),
}
"""How a value of `ZoomConfig` is read; several numbers are separated by plus signs."""
_SIZES = ("size", "first_size", "late_size")
_LEAST = dict.fromkeys((*_SIZES, "smallest_side_px", "first_steps"), 1)
"""Values of `ZoomConfig` that cannot be 0; ``first_steps`` cannot be 1 either, or windows would never get smaller."""


def _load_segmenter(weights: Path | None, name: str | None, device: str, threads: int, zoom: str) -> Segmenter:
    """Also in the processes of ``--jobs``: the same number of threads everywhere gives the same sums everywhere."""
    import torch

    from napari_apprentice import assembly
    from napari_apprentice.networks import NETWORKS
    from napari_apprentice.segmenter import NetworkSegmenter

    torch.set_num_threads(threads)
    segmenter = assembly.load_segmenter(weights, name if weights is None or name in NETWORKS else None, device)
    segmenter.name = name or segmenter.name
    if zoom:
        segmenter.zoom = _zoom(zoom)
        stride = segmenter.network.config.stride if isinstance(segmenter, NetworkSegmenter) else 1
        for name in _SIZES:
            if (size := getattr(segmenter.zoom, name)) % stride:
                raise InputError(f"--zoom {name}={size} arrived; expected a multiple of {stride} for the network {segmenter.name!r}")
        segmenter.name += f" ({zoom})"
    return segmenter


def _cost_of(segmenter: Segmenter) -> Mapping[str, float]:
    """Nothing of one that has no network."""
    from napari_apprentice.costs import cost_of_click
    from napari_apprentice.segmenter import NetworkSegmenter

    return cost_of_click(segmenter) if isinstance(segmenter, NetworkSegmenter) else {}


# --- train ---


def add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "train",
        help="train a network by a recipe",
        description="Train a network by a recipe, with simulated clicks. Killed or interrupted, it goes on with --resume.",
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE.toml", help="what to train, and how")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder that holds the sets which the recipe names")
    parser.add_argument("--out", type=model_file, required=True, metavar="FILE", help="the .safetensors file to write")
    parser.add_argument("--resume", action="store_true", help="go on where an earlier run with this FILE stopped")
    parser.add_argument("--threads", type=threads, metavar="N", help="CPU threads (default: PyTorch's choice)")
    add_device(parser)
    parser.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> None:
    from napari_apprentice import training

    check_output(arguments.out)
    training.train(
        arguments.recipe, arguments.data, arguments.out, resume=arguments.resume, device=arguments.device, threads=arguments.threads
    )
    print(f"Weights: {arguments.out}")


# --- info ---


def add_info(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("info", help="say what a weights file holds", description="Say what a weights file holds.")
    parser.add_argument("weights", type=Path, nargs="?", metavar="WEIGHTS", help="the file (default: the one that comes with the program)")
    parser.set_defaults(run=_info)


def _info(arguments: argparse.Namespace) -> None:
    from napari_apprentice import assembly

    facts = assembly.load_segmenter(arguments.weights, device="cpu").describe()
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        print(f"{key:<{width}}  {f'{value:,}' if isinstance(value, int) else value}")
