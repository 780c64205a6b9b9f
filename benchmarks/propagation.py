"""How much work does propagation save? A simulated user on labelled volumes, with and without it.

    python benchmarks/propagation.py SET_DIR... [--objects 4] [--policy mi+pi] [--weights FILE] [--markdown docs/propagation.md]

*Slice by slice*: every slice of an object is clicked until IoU 0.9 or 10 clicks, accepted and learnt from, in order; of long objects an
evenly spread sample of slices, whose clicks are counted for all. *With propagation*: the middle slice is clicked the same way and
propagated; then the user goes to the slice that the session ranks worst, corrects it until IoU 0.9 or 10 clicks, accepts and propagates
again, until a share of the clicks of slice by slice is used up or no slice is left to look at. A slice that is good enough already costs
a look, not a click. Both start from the same weights for every object.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from scipy.stats import rankdata

from napari_apprentice import Click, Image, Session, load_segmenter, make_policy
from napari_apprentice.datasets import LabelledSet, open_set
from napari_apprentice.report import host, machine, table, write_text
from napari_apprentice.simulation import CentreRobot
from napari_apprentice.types import AdaptationPolicy, ImageError, Segmenter

Mask = npt.NDArray[np.bool_]

GOOD_IOU, MOST_CLICKS, WRONG_IOU = 0.9, 10, 0.85
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


def objects(labelled: LabelledSet, at_least: int, most: int) -> Iterator[tuple[Image, Mask]]:
    """Images and (S) masks of 3D objects that reach through enough slices, spread evenly over the set."""
    refs = [ref for ref in labelled.objects() if ref.plane.axis == 0]
    runs: dict[tuple[str, str, int], int] = {}
    for ref in refs:
        key = (ref.case, ref.target, ref.id)
        runs[key] = runs.get(key, 0) + 1
    long = [key for key, count in runs.items() if count >= at_least]
    for i in sorted(set(np.linspace(0, len(long) - 1, min(most, len(long))).round().astype(int))):
        case, target, number = long[i]
        labels = labelled.labels(case)
        yield labelled.image(case), labels == number if labelled.objects_are == "id" else np.isin(labels, labelled.targets[target])


def click_slice(session: Session, truth: Mask, index: int, label: int, most: int) -> int:
    """Correct one slice; the number of clicks."""
    clicks: tuple[Click, ...] = ()
    while len(clicks) < most:
        mask = session.labels[index] == label
        if _overlap(mask, truth[index])[0] >= GOOD_IOU or (click := ROBOT.click(truth[index], mask, clicks)) is None:
            break
        session.add(Click((index, *click.voxel), click.positive, 0))
        clicks = (*clicks, click)
    return len(clicks)


def slice_by_slice(session: Session, truth: Mask, sample: int) -> tuple[float, float]:
    """3D Dice and clicks."""
    there = np.flatnonzero(truth.any(axis=(1, 2)))
    chosen = there[np.unique(np.linspace(0, len(there) - 1, min(sample, len(there))).round().astype(int))]
    clicks, label = 0, session.label
    for index in chosen:
        try:
            clicks += click_slice(session, truth, int(index), label, MOST_CLICKS)
        except ImageError:
            continue  # a constant slice
        session.accept()
        session.select(label)
    return _overlap(session.labels[chosen] == label, truth[chosen])[1], clicks * len(there) / len(chosen)


def with_propagation(session: Session, truth: Mask, budget: float) -> dict[str, Any]:
    """What `Work` says of it."""
    there = np.flatnonzero(truth.any(axis=(1, 2)))
    label, looked, ranked = session.label, set(), []
    clicks = click_slice(session, truth, int(there[len(there) // 2]), label, MOST_CLICKS)
    found: dict[str, Any] = {"clicks_first": clicks}
    seconds, filled = 0.0, 0
    while True:
        session.accept()
        began = time.perf_counter()
        session.propagate(label)
        doubts = session.doubtful()
        seconds, filled = seconds + time.perf_counter() - began, filled + len(doubts)
        ious = {d.plane: _overlap(session.labels[d.plane.index] == label, truth[d.plane.index])[0] for d in doubts}
        ranked += [(d.error, ious[d.plane] < WRONG_IOU) for d in doubts]
        found["dice_end"] = _overlap(session.labels == label, truth)[1]
        found.setdefault("dice_first", found["dice_end"])
        fixed = 0
        session.select(label)
        for doubt in doubts:
            left = min(MOST_CLICKS, int(budget) - clicks)
            if left < 1:
                break
            if doubt.plane in looked:
                continue
            looked.add(doubt.plane)
            fixed = click_slice(session, truth, doubt.plane.index, label, left)
            if fixed:
                clicks += fixed
                break
        if not fixed:
            break
    return found | {"clicks_end": clicks, "looks": len(looked), "ranked": tuple(ranked), "seconds": seconds / max(filled, 1)}


def measure(image: Image, truth: Mask, segmenter: Segmenter, policy: AdaptationPolicy, share: float, sample: int) -> Work:
    """Both ways to work on one object."""
    base = segmenter.snapshot()
    try:
        dice, clicks = slice_by_slice(Session(image, segmenter, policy), truth, sample)
        segmenter.restore(base)
        found = with_propagation(Session(image, segmenter, policy), truth, share * clicks)
    finally:
        segmenter.restore(base)
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
    parser.add_argument("--policy", default="mi+pi")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    segmenter, policy = load_segmenter(options.weights, device=options.device), make_policy(options.policy)
    lines, everything = [], []
    for folder in options.sets:
        labelled = open_set(folder)
        todo = objects(labelled, options.at_least, options.objects)
        works = [measure(*one, segmenter, policy, options.share, options.sample) for one in track(todo, labelled.name, options.objects)]
        lines.append(_line(labelled.name, works))
        everything += works
        print(lines[-1], flush=True)
    if len(options.sets) > 1:
        lines.append(_line(f"**all {len(everything)} objects**", everything))
    about = [
        *host(machine(options.device, options.threads)),
        f"- At most {options.objects} objects a set, in at least {options.at_least} slices each; policy `{options.policy}`, robot centre.",
        f"- Alone: every slice (of at most {options.sample}) until IoU {GOOD_IOU} or {MOST_CLICKS} clicks.",
        f"- With propagation: the middle slice likewise, then those that are ranked worst, with at most {options.share:.2f} of the clicks.",
        f"- AUC: of the expected error as a ranking of the slices with IoU < {WRONG_IOU}, over all propagations.",
    ]
    text = "\n\n".join(["# Propagation", "\n".join(about), table(lines)]) + "\n"
    print(text)
    if options.markdown is not None:
        write_text(options.markdown, text)


if __name__ == "__main__":
    main()
