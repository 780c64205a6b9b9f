"""How do other methods fare on the same objects, with the same robot? One table, the network's own rows in it.

    pip install ".[peers]"
    python benchmarks/peers.py SET_DIR [SET_DIR ...] [--limit 16] [--robot centre,random] [--jobs 2] [--onnx ENCODER DECODER]
        [--json runs/peers.json] [--markdown docs/peers.md]
    python benchmarks/peers.py SET_DIR [SET_DIR ...] --tune        # tries the settings in `classical.GRIDS` and prints what each needs

`classical.py` says what the classical methods are and what they get. Where export files are given, a network of the SAM family in
segment-anything's ONNX format takes part too (that needs onnxruntime).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from classical import GRIDS, METHODS, SETTINGS, ClassicalSegmenter
from sam_onnx import SamSegmenter

from napari_apprentice import load_segmenter, make_policy, report
from napari_apprentice.benchmark import Row, Trial, run_all
from napari_apprentice.fakes import FakePolicy
from napari_apprentice.texts import write_text
from napari_apprentice.types import DEFAULT_POLICY, AdaptationPolicy, ApprenticeError, InputError, Segmenter


def build(name: str, settings: Mapping[str, float] | None, weights: Path | None, onnx: Sequence[Path] | None, threads: int) -> Segmenter:
    """The segmenter of one line of the table, in whatever process it is to work."""
    torch.set_num_threads(threads)
    if name in METHODS:
        return ClassicalSegmenter(name, settings)
    if name == SamSegmenter.name and onnx:
        return SamSegmenter.open(onnx[0], onnx[1], threads)
    return load_segmenter(weights, device="cpu")


def never_learning(_: str) -> AdaptationPolicy:
    """The policy of all methods but the network."""
    return FakePolicy(per_click=0, per_accept=0)


def trials_of(options: argparse.Namespace, policy: str = "none", **more: Any) -> list[Trial]:
    common = {"limit": options.limit, "max_clicks": options.max_clicks, "seed": options.seed, "policy": policy}
    return [Trial(folder=folder, robot=robot, **{**common, **more}) for folder, robot in product(options.sets, options.robot)]


def measure(options: argparse.Namespace, name: str, trials: Sequence[Trial], settings: Mapping[str, float] | None = None) -> list[Row]:
    """Rows in the order of the trials."""
    make = partial(build, name, settings, options.weights, options.onnx, options.threads)
    policy: Callable[[str], AdaptationPolicy] = make_policy if name == "network" else never_learning
    return [row for _, row in sorted(run_all(trials, make, policy, jobs=options.jobs), key=lambda pair: pair[0])]


def tune(options: argparse.Namespace) -> None:
    """Print the mean of NoC@0.85 over the sets for the settings of `GRIDS`, one varied after the other from the best so far."""
    for name in (n for n in METHODS if n in options.methods):
        known: dict[tuple[float, ...], float] = {}
        best = dict(SETTINGS[name])
        for key, values in GRIDS[name].items():
            for value in (best[key], *values):
                setting = {**best, key: value}
                tried = tuple(setting.values())
                if tried not in known:
                    rows = measure(options, name, trials_of(options, targets=(0.85,)), setting)
                    known[tried] = float(np.mean([row.noc["0.85"] for row in rows]))
                    print(f"{name}: {setting}: NoC@0.85 {known[tried]:.3f}", flush=True)
                if known[tried] < known[tuple(best.values())]:
                    best = setting
        print(f"{name}: best {best}: NoC@0.85 {known[tuple(best.values())]:.3f}", flush=True)


def method_of(row: Row) -> str:
    known = (*METHODS, SamSegmenter.name)
    return row.network if row.network in known else f"{row.network}, {'frozen' if row.policy == 'none' else row.policy}"


def best_classical(rows: Sequence[Row], name: str) -> float:
    """The fewest clicks that a classical method needs for IoU 0.85 on a set; NaN where none was measured."""
    return min((row.noc["0.85"] for row in rows if row.set == name and row.network in METHODS), default=float("nan"))


def lines_of(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The cells of one robot's table; networks are set against the best classical method on the same set."""
    lines = []
    for row in rows:
        cells = {"set": row.set, "method": method_of(row), "objects": str(row.n_objects)}
        cells |= {f"NoC@{q}": f"{value:.2f}" for q, value in row.noc.items()}
        cells |= {f"IoU@{k}": f"{value:.3f}" for k, value in row.iou_at.items() if k in ("1", "3", "5")}
        cells |= {"s a click": f"{sum(row.seconds_per_click.values()):.2f}"}
        ratio = row.noc["0.85"] / best_classical(rows, row.set)
        compared = row.network not in METHODS and not isnan(ratio)
        lines.append(cells | ({"NoC@0.85 to best classical": f"{ratio:.2f}"} if compared else {}))
    return lines


def goal_of(rows: Sequence[Row]) -> str:
    """On how many sets the frozen network is as good as it is meant to be."""
    pairs = [(row.set, row.noc["0.85"], best_classical(rows, row.set)) for row in rows if method_of(row).endswith(", frozen")]
    met = [name for name, ours, best in pairs if ours <= 2.0 or 2 * ours <= best]
    aim = "at most half the NoC@0.85 of the best classical method, or at most 2.0"
    return f"The frozen network needs {aim}, on {len(met)} of {len(pairs)} sets" + (f" ({', '.join(met)})." if met else ".")


def page(about: Mapping[str, Any], rows: Sequence[Row], command: str) -> str:
    settings = [f"- {name}: {', '.join(f'{key} {value:g}' for key, value in SETTINGS[name].items())}." for name in METHODS]
    versions = ", ".join(
        f"{key} {about[key]}" for key in ("scikit-image", "opencv-python-headless", "PyMaxflow", "onnxruntime") if about[key]
    )
    intro = [
        *report.provenance(about, rows),
        f"- Peers: {versions}. Weights of the network: {about['weights']}. Seconds are model time for one click, all of it.",
        "- Settings of the classical methods, chosen on other sets; `benchmarks/classical.py` says what they mean and what was tried:",
        *(f"  {line}" for line in settings),
        "- `NoC@0.85 to best classical` is the number of clicks over that of the classical method that needs fewest on the same set.",
    ]
    parts = ["# Peers", f"Written by `{command}`.", "\n".join(intro)]
    for robot in dict.fromkeys(row.robot for row in rows):
        chosen = [row for row in rows if row.robot == robot]
        parts += [f"## Robot `{robot}`", report.table(lines_of([*chosen, *report.means(chosen)])), goal_of(chosen)]
    return "\n\n".join(parts) + "\n"


def check(names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise InputError(f"a method called {name!r} was asked for; expected one of {', '.join(known)}")


def run(options: argparse.Namespace) -> None:
    ours = load_segmenter(options.weights, device="cpu")
    lines = [(name, "none") for name in (*METHODS, *([SamSegmenter.name] if options.onnx else [])) if name in options.methods]
    lines += [("network", policy) for policy in ("none", DEFAULT_POLICY) if "network" in options.methods]
    for name, _ in lines:
        build(name, None, options.weights, options.onnx, options.threads)  # what is missing is told before the work begins
    about = report.machine("cpu", options.threads) | report.versions("scikit-image", "opencv-python-headless", "PyMaxflow", "onnxruntime")
    about |= {"weights": f"{ours.name} {ours.loaded.digest}", "settings": SETTINGS}
    found: list[Row] = []
    for name, policy in lines:
        for row in measure(options, name, trials_of(options, policy)):
            found.append(row)
            print(f"{row.set}, {row.robot}: {method_of(row)}: NoC@0.85 {row.noc['0.85']:.2f}, IoU@1 {row.iou_at['1']:.3f}", flush=True)
        if options.json is not None:
            report.write_json(options.json, about, found)
    rows = sorted(found, key=lambda row: (options.robot.index(row.robot), [r.set for r in found].index(row.set)))
    words = f"python benchmarks/peers.py SET_DIR ... --robot {','.join(options.robot)} --max-clicks {options.max_clicks}"
    text = page(about, rows, words + (f" --limit {options.limit}" if options.limit else ""))
    print(text, end="")
    if options.markdown is not None:
        write_text(options.markdown, text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET_DIR")
    parser.add_argument("--robot", type=lambda text: tuple(text.split(",")), default=("centre",), metavar="R")
    parser.add_argument(
        "--methods", type=lambda text: tuple(text.split(",")), default=(*METHODS, SamSegmenter.name, "network"), metavar="M"
    )
    parser.add_argument("--onnx", type=Path, nargs=2, metavar=("ENCODER", "DECODER"))
    parser.add_argument("--weights", type=Path, metavar="FILE")
    parser.add_argument("--limit", type=int, metavar="N")
    parser.add_argument("--max-clicks", type=int, default=20, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--jobs", type=int, default=1, metavar="N")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    try:
        check(options.methods, (*METHODS, SamSegmenter.name, "network"))
        (tune if options.tune else run)(options)
    except ApprenticeError as error:
        print(f"peers: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
