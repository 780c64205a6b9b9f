"""How right is a run that clicks where an accepted case suggests it, and how right does the network think that it is?

    python benchmarks/run_errors.py --fit TRAINING_SET_DIR [...] [--on SET_DIR ...] [--pairs 40] [--jobs 2] [--markdown docs/runs.md]

Of every set, pairs of different cases are drawn: the true objects of the one say where to click in the other (`examples`), and the untaught
network answers each of these single clicks. A straight line of the IoU that it gives itself is fitted to the real IoU, every training set
counting as much as any other; what it says of a training set is told by the line of the others. `expectation` holds the line of all, and
moves it by what a study's own accepted cases say.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr

from napari_apprentice import load_segmenter, report
from napari_apprentice.datasets import open_set
from napari_apprentice.examples import Example, find
from napari_apprentice.shapes import overlap
from napari_apprentice.texts import write_text
from napari_apprentice.types import ImageError, Prompt, SessionError

OWN = 6  # ordered pairs of three cases, as many as a run looks at
BELIEF = 5  # as in `expectation`
MOST_OBJECTS = 12  # of a case: many that are alike cannot be told apart that way


class Seen(NamedTuple):
    """One answer: to which pair it belongs, whether the click lay in the object, what the network thought, and what was so."""

    pair: int
    hit: bool
    score: float
    iou: float


def observed(folder: Path, pairs: int, threads: int) -> list[Seen]:
    """The answers in one set; none where there is a single case, or none that can be compared."""
    torch.set_num_threads(threads)
    labelled, segmenter, rng = open_set(folder), load_segmenter(device="cpu"), np.random.default_rng(0)
    found: list[Seen] = []
    if len(labelled.cases) < 2:
        return found
    for pair, (first, second) in enumerate(rng.choice(labelled.cases, 2, replace=False).tolist() for _ in range(pairs)):
        image, truth, ids = labelled.image(second), labelled.labels(second), labelled.labels(first)
        if len(np.unique(ids)) > MOST_OBJECTS + 1:
            continue
        try:
            clicks = find(image, [Example(first, labelled.image(first), ids)]).clicks
        except SessionError:  # not comparable
            continue
        for label, click in clicks:
            plane = click.plane
            there = (truth if truth.ndim == 2 else np.take(truth, plane.index, plane.axis)) == label
            try:
                answer = segmenter.predict(image.slice(plane), Prompt((click.in_plane,)))
            except ImageError:  # a slice without contrast
                continue
            found.append(Seen(pair, bool(there[click.in_plane.voxel]), answer.score, overlap(answer.mask, there)))
    return found


def line_of(sets: Sequence[Sequence[Seen]]) -> npt.NDArray[np.float64]:
    """Slope and offset."""
    weights = np.concatenate([np.full(len(some), len(some) ** -0.5) for some in sets])
    scores, ious = np.array([(one.score, one.iou) for some in sets for one in some]).T
    return np.asarray(np.polyfit(scores, ious, 1, w=weights))


def cells(some: Sequence[Seen], line: npt.NDArray[np.float64]) -> dict[str, float]:
    """A row of the table, without its names: of all pairs but the first ones, which are the set's own accepted cases."""
    own = np.array([(one.score, one.iou) for one in some if one.pair < OWN]).reshape(-1, 2)
    better = float((own[:, 1] - np.clip(np.polyval(line, own[:, 0]), 0, 1)).sum()) / (len(own) + BELIEF)
    hits, scores, ious = np.array([one[1:] for one in some if one.pair >= OWN]).T
    told, known = (np.clip(np.polyval(line, scores) + more, 0, 1) for more in (0.0, better))
    return {
        "in the object": float(hits.mean()),
        "IoU": float(ious.mean()),
        "the network's": float(scores.mean()),
        "error": float(np.abs(scores - ious).mean()),
        "by line": float(told.mean()),
        "error by line": float(np.abs(told - ious).mean()),
        "by line and own": float(known.mean()),
        "error by both": float(np.abs(known - ious).mean()),
        "rank correlation": float(spearmanr(scores, ious)[0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", type=Path, nargs="+", required=True, metavar="SET_DIR", help="training sets")
    parser.add_argument("--on", type=Path, nargs="*", default=[], metavar="SET_DIR", help="sets that the line is only tried on")
    parser.add_argument("--pairs", type=int, default=40, help="of each set (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="sets at the same time (default: %(default)s)")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    host = report.host(report.machine("cpu", options.threads))  # before the page is written, which is a change itself
    folders = [*options.fit, *options.on]
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        tasks = [pool.submit(observed, folder, options.pairs, options.threads) for folder in folders]
        seen = {folder: task.result() for folder, task in zip(folders, tasks, strict=True)}
    seen = {folder: some for folder, some in seen.items() if some}
    fitted = [folder for folder in options.fit if folder in seen]
    line = line_of([seen[folder] for folder in fitted])
    rows = []
    for title, group in (("training sets", fitted), ("development sets", [folder for folder in options.on if folder in seen])):
        found = []
        for folder in group:
            others = [seen[other] for other in fitted if other != folder]
            values = cells(seen[folder], line_of(others) if folder in fitted and others else line)
            found.append(values)
            rows.append(
                {"set": folder.name, "of": title, "answers": str(sum(one.pair >= OWN for one in seen[folder]))}
                | {k: f"{v:.2f}" for k, v in values.items()}
            )
        if len(group) > 1:
            means = {key: f"{fmean(values[key] for values in found):.2f}" for key in found[0]}
            rows.append(
                {"set": f"**{title}**", "of": "", "answers": str(sum(one.pair >= OWN for folder in group for one in seen[folder]))} | means
            )
    text = "\n".join(
        [
            "# What runs expect",
            "",
            "Written by `python benchmarks/run_errors.py --fit TRAINING_SET_DIR ... --on SET_DIR ... --markdown docs/runs.md`.",
            "",
            *host,
            f"- {options.pairs} pairs of cases a set, drawn with seed 0: the true objects of one case say where to click in the other, one",
            f"  click an object and slice; the untaught network answers. Cases with more than {MOST_OBJECTS} objects are left out.",
            f"- The line, fitted to all training sets: IoU = {line[0]:.2f} · the network's own {line[1]:+.2f}, within 0 and 1. In the rows",
            "  of training sets it is the line of the others. `error` is the mean absolute difference to the real IoU.",
            f"- `own`: the answers of the first {OWN} pairs are taken for those of accepted cases, and all others are told to be as much",
            f"  better or worse than the line: the sum of the differences over their number and {BELIEF}. The figures are those of the",
            "  other pairs.",
            "",
            report.table(rows),
            "",
        ]
    )
    print(text)
    if options.markdown:
        write_text(options.markdown, text)


if __name__ == "__main__":
    main()
