"""How much work does propagation save? A simulated user on labelled volumes, with and without it.

    python benchmarks/propagation.py SET_DIR... [--objects 4] [--good 0.9] [--policy pi] [--jobs 2] [--markdown docs/propagation.md]

In both ways to work the user clicks in a slice until it is good (``--good``), or 20 clicks were made, or 3 in a row raised its IoU by less
than two points each, and goes back by undo to the best of its masks; what was taken back counts as clicks all the same.

*Slice by slice*: every slice of an object is worked on, accepted and learnt from, in order; of long objects an evenly spread sample of
slices, whose clicks are counted for all. *With propagation*: the middle slice is worked on and propagated; then the user goes to the
slice that the session advises (`Session.advised`), works on it or approves it if it is good already, which costs a look and no click,
and goes on with the next. After every tenth of the carried slices the user propagates again, until a share of the clicks of slice by
slice is used up, or no slice is left to look at. Both ways start from the same weights for every object.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import rankdata

from napari_apprentice import Click, Image, Session, load_segmenter, make_policy
from napari_apprentice.datasets import LabelledSet, open_set
from napari_apprentice.propagation import Outcome
from napari_apprentice.report import host, machine, table
from napari_apprentice.simulation import CentreRobot
from napari_apprentice.texts import write_text
from napari_apprentice.types import DEFAULT_POLICY, ImageError

Mask = npt.NDArray[np.bool_]
Key = tuple[str, str, int]

MOST_CLICKS, PATIENCE, USEFUL_IOU, WRONG_IOU = 20, 3, 0.02, 0.85
ROBOT = CentreRobot()


@dataclass(frozen=True, eq=False)
class Work:
    """What came of one object: 3D Dice and clicks of each way to work, and how the ranking did."""

    slices: int
    dice_alone: float
    clicks_alone: float
    dice_first: float
    clicks_first: int
    dice_end: float
    clicks_end: int
    looks: int
    ranked: tuple[tuple[float, bool], ...]  # expected error, whether the slice was wrong
    seconds: float  # of propagation, for one slice


def objects(labelled: LabelledSet, slices: range, most: int) -> Iterator[tuple[Image, Mask]]:
    """Images and (S) masks of 3D objects that reach through so many slices, spread evenly over the set."""
    for key in keys(labelled, slices, most):
        yield volume(labelled, key)


def keys(labelled: LabelledSet, slices: range, most: int) -> list[Key]:
    """Case, target and id of these objects."""
    refs = [ref for ref in labelled.objects() if ref.plane.axis == 0]
    runs: dict[Key, int] = {}
    for ref in refs:
        key = (ref.case, ref.target, ref.id)
        runs[key] = runs.get(key, 0) + 1
    long = [key for key, count in runs.items() if count in slices]
    return [long[i] for i in sorted(set(np.linspace(0, len(long) - 1, min(most, len(long))).round().astype(int)))]


def volume(labelled: LabelledSet, key: Key) -> tuple[Image, Mask]:
    """Image and (S) mask of one object."""
    case, target, number = key
    labels = labelled.labels(case)
    return labelled.image(case), labels == number if labelled.objects_are == "id" else np.isin(labels, labelled.targets[target])


def click_slice(session: Session, truth: Mask, index: int, label: int, good: float, most: int = MOST_CLICKS) -> int:
    """Correct one slice, and go back to the best of its masks; the number of clicks, those that were taken back too."""
    clicks: tuple[Click, ...] = ()
    ious = [_overlap(session.labels[index] == label, truth[index])[0]]
    useful = 0
    while max(ious) < good and len(clicks) < min(most, useful + PATIENCE):
        click = ROBOT.click(truth[index], session.labels[index] == label, clicks)
        if click is None:
            break
        session.add(Click((index, *click.voxel), click.positive, 0))
        clicks = (*clicks, click)
        iou = _overlap(session.labels[index] == label, truth[index])[0]
        if iou >= max(ious) + USEFUL_IOU:
            useful = len(clicks)
        ious.append(iou)
    for _ in range(len(clicks) - int(np.argmax(ious))):
        session.undo()
    return len(clicks)


def slice_by_slice(session: Session, truth: Mask, sample: int, good: float) -> tuple[float, float]:
    """3D Dice and clicks."""
    there = np.flatnonzero(truth.any(axis=(1, 2)))
    chosen = there[np.unique(np.linspace(0, len(there) - 1, min(sample, len(there))).round().astype(int))]
    clicks, label = 0, session.label
    for index in chosen:
        try:
            clicks += click_slice(session, truth, int(index), label, good)
        except ImageError:
            continue  # a constant slice
        if session.clicks:
            session.accept()
            session.select(label)
    return _overlap(session.labels[chosen] == label, truth[chosen])[1], clicks * len(there) / len(chosen)


def with_propagation(
    session: Session, truth: Mask, budget: float, good: float, noticed: Callable[[Outcome], None] = lambda _: None
) -> dict[str, Any]:
    """What `Work` says of it; ``noticed`` gets what every propagation came to."""
    there = np.flatnonzero(truth.any(axis=(1, 2)))
    label, looks, ranked, given_up, seconds, filled = session.label, 0, [], set(), 0.0, 0
    clicks = click_slice(session, truth, int(there[len(there) // 2]), label, good)
    found: dict[str, Any] = {"clicks_first": clicks}
    while True:
        if session.clicks:
            session.accept()
            session.select(label)
        began = time.perf_counter()
        noticed(session.propagate(label)[1])
        doubts = session.doubtful()
        seconds, filled = seconds + time.perf_counter() - began, filled + len(doubts)
        ious = {d.plane: _overlap(session.labels[d.plane.index] == label, truth[d.plane.index])[0] for d in doubts}
        ranked += [(d.error, ious[d.plane] < WRONG_IOU) for d in doubts]
        found["dice_end"] = _overlap(session.labels == label, truth)[1]
        found.setdefault("dice_first", found["dice_end"])
        fixed, enough = 0, 1 + len(doubts) // 10
        while fixed < enough and clicks < int(budget):
            plane = next((doubt.plane for doubt in session.advised(label) if doubt.plane not in given_up), None)
            if plane is None:
                break
            looks += 1
            clicks += click_slice(session, truth, plane.index, label, good, min(MOST_CLICKS, int(budget) - clicks))
            if _overlap(session.labels[plane.index] == label, truth[plane.index])[0] >= good:
                session.approve(plane, label=label)
            elif plane in {doubt.plane for doubt in session.doubtful()}:
                given_up.add(plane)
                continue
            fixed += 1
        if not fixed:
            break
    return found | {"clicks_end": clicks, "looks": looks, "ranked": tuple(ranked), "seconds": seconds / max(filled, 1)}


def measure(folder: Path, key: Key, options: argparse.Namespace) -> Work:
    """Both ways to work on one object."""
    torch.set_num_threads(options.threads)
    image, truth = volume(open_set(folder), key)
    segmenter, policy = load_segmenter(options.weights, device=options.device), make_policy(options.policy)
    base = segmenter.snapshot()
    dice, clicks = slice_by_slice(Session(image, segmenter, policy), truth, options.sample, options.good)
    segmenter.restore(base)
    found = with_propagation(Session(image, segmenter, policy), truth, options.share * clicks, options.good)
    return Work(slices=int(truth.any(axis=(1, 2)).sum()), dice_alone=dice, clicks_alone=clicks, **found)


def auc(ranked: list[tuple[float, bool]]) -> float:
    """Area under the curve: how often a wrong slice stands before a right one; NaN without both."""
    errors, wrong = np.array([error for error, _ in ranked]), np.array([bad for _, bad in ranked], dtype=bool)
    bad, good = int(wrong.sum()), int((~wrong).sum())
    return float((rankdata(errors)[wrong].sum() - bad * (bad + 1) / 2) / (bad * good)) if bad and good else float("nan")


def _overlap(mask: Mask, truth: Mask) -> tuple[float, float]:
    """IoU and Dice; 1 where both are empty."""
    both, sizes = int((mask & truth).sum()), int(mask.sum()) + int(truth.sum())
    return (both / (sizes - both), 2 * both / sizes) if sizes else (1.0, 1.0)


def _line(name: str, works: list[Work]) -> dict[str, str]:
    mean = lambda key: float(np.mean([getattr(work, key) for work in works]))  # noqa: E731
    spent = sum(work.clicks_end for work in works) / sum(work.clicks_alone for work in works)
    return {
        "set": name,
        "objects": str(len(works)),
        "slices": f"{mean('slices'):.1f}",
        "Dice alone": f"{mean('dice_alone'):.3f}",
        "clicks alone": f"{mean('clicks_alone'):.1f}",
        "Dice of one slice": f"{mean('dice_first'):.3f}",
        "its clicks": f"{mean('clicks_first'):.1f}",
        "Dice at the end": f"{mean('dice_end'):.3f}",
        "all clicks": f"{mean('clicks_end'):.1f}",
        "share": f"{100 * spent:.0f} %",
        "slices looked at": f"{mean('looks'):.1f}",
        "AUC": f"{auc([pair for work in works for pair in work.ranked]):.3f}",
        "s a slice": f"{mean('seconds'):.2f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET_DIR")
    parser.add_argument("--objects", type=int, default=4, help="of each set, spread evenly (default: %(default)s)")
    parser.add_argument("--at-least", type=int, default=5, help="slices that an object reaches through (default: %(default)s)")
    parser.add_argument("--sample", type=int, default=1000, help="slices clicked without propagation (default: all)")
    parser.add_argument("--share", type=float, default=1 / 3, help="of these clicks, what propagation may use (default: 1/3)")
    parser.add_argument("--good", type=float, default=0.9, help="IoU from which a slice is good (default: %(default)s)")
    parser.add_argument("--policy", default=DEFAULT_POLICY)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="objects at the same time (default: %(default)s)")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    lines, everything = [], []
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        running = {}
        for folder in options.sets:
            chosen = keys(open_set(folder), range(options.at_least, sys.maxsize), options.objects)
            running[folder.resolve().name] = [(key, pool.submit(measure, folder, key, options)) for key in chosen]
        for name, works in running.items():
            found = []
            for key, work in works:
                found.append(work.result())
                print(*key, _line("", [found[-1]]), flush=True)
            lines.append(_line(name, found))
            everything += found
    if len(options.sets) > 1:
        lines.append(_line(f"**all {len(everything)} objects**", everything))
    about = [
        *host(machine(options.device, options.threads)),
        f"- {options.objects} objects a set at most, spread evenly over those in at least {options.at_least} slices; "
        f"policy `{options.policy}`, robot centre.",
        f"- In both ways a slice is worked on until IoU {options.good:g}, or {MOST_CLICKS} clicks, or {PATIENCE} in a row of no use "
        f"(less than {USEFUL_IOU:g} more IoU); "
        "the best of its masks is accepted, and what was taken back counts as clicks.",
        f"- Alone: every slice (of at most {options.sample}, spread evenly; the clicks are counted for all).",
        f"- With propagation: the middle slice, then those that the session advises, with at most {options.share:.2f} of the clicks. "
        "A slice that is good already is approved, which counts as a look.",
        f"- AUC: of the expected error as a ranking of the slices with IoU < {WRONG_IOU}, over all propagations of all objects.",
    ]
    text = "\n\n".join(["# Propagation", "\n".join(about), table(lines)]) + "\n"
    print(text)
    if options.markdown is not None:
        write_text(options.markdown, text)


if __name__ == "__main__":
    main()
