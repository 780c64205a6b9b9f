"""Fit the weights of `expectation`: how wrong is a slice that propagation filled or left empty, by the signs that were noticed on the way?

    python benchmarks/propagation_errors.py SET_DIR... [--objects 8] [--policy pi] [--jobs 2] [--weights FILE]

Labelled volumes to train on, never those to measure on. The simulated user of `propagation.py` works on every object, with three clicks
for each of its slices, and every slice that a propagation filled meanwhile is a sample. The weights minimise the cross-entropy of 1 - IoU,
every set counting as much as any other, and in it every object; none of them may be negative, since every sign is one of doubt. The area
under the curve of "IoU < 0.85" is told for each set, once with the weights that were fitted to all sets, once with those of the others.
Where the object seemed to be gone, the same is done for whether it was there.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from propagation import WRONG_IOU, Key, auc, keys, volume, with_propagation
from scipy import optimize

from napari_apprentice import Session, load_segmenter, make_policy
from napari_apprentice.datasets import open_set
from napari_apprentice.expectation import Ending, Signs
from napari_apprentice.propagation import Outcome
from napari_apprentice.shapes import overlap
from napari_apprentice.types import DEFAULT_POLICY, Image

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.float64]

CLICKS = 3  # for every slice of an object
GOOD_IOU = 0.9
BEYOND = 12  # slices of the image at either end of an object
RIDGE = 3e-4


class Samples(NamedTuple):
    """Signs in columns, after them what was wrong (0..1), and last how much the sample counts.

    ``filled`` : of slices that were filled; ``gone`` : of places where the object seemed to be gone
    """

    filled: Rows
    gone: Rows


def samples(folder: Path, key: Key, options: argparse.Namespace) -> Samples:
    """Of one object."""
    torch.set_num_threads(options.threads)
    image, truth = about(*volume(open_set(folder), key))
    session = Session(image, load_segmenter(options.weights, device=options.device), make_policy(options.policy))
    filled: list[tuple[float, ...]] = []
    gone: list[tuple[float, ...]] = []

    def noticed(outcome: Outcome) -> None:
        labels = session.labels == session.label
        filled.extend((*signs, 1 - overlap(labels[index], truth[index])) for index, signs in outcome.signs.items())
        gone.extend((*logs(stop.ending), float(truth[stop.index].any())) for stop in outcome.stops if stop.ending is not None)

    with_propagation(session, truth, CLICKS * int(truth.any(axis=(1, 2)).sum()), GOOD_IOU, noticed)
    return Samples(*(weighed(found, columns) for found, columns in ((filled, len(Signs._fields)), (gone, len(Ending._fields)))))


def logs(ending: Ending) -> tuple[float, float, float]:
    """What `expectation.expected_to_go_on` adds up."""
    return math.log1p(ending.passed), math.log(ending.shrunk), ending.doubted


def weighed(found: Sequence[tuple[float, ...]], columns: int) -> Rows:
    """Rows of one object, which together count as one."""
    rows = np.array(found, float).reshape(-1, columns + 1)
    return np.c_[rows, np.full(len(rows), 1 / max(len(rows), 1))]


def about(image: Image, truth: Mask) -> tuple[Image, Mask]:
    """The slices that hold an object, and those next to them: a long way through a volume that it is only a part of would outweigh it."""
    there = np.flatnonzero(truth.any(axis=(1, 2)))
    part = slice(max(there[0] - BEYOND, 0), there[-1] + 1 + BEYOND)
    return Image(image.data[:, part], np.diag([*image.spacing, 1.0]), image.units), truth[part]


def fitted(sets: Sequence[Rows], *, doubts: bool) -> npt.NDArray[np.float64]:
    """Bias and weights, which add to the error where they are ``doubts``, and take from it otherwise."""
    every = np.concatenate(sets)
    shares = np.concatenate([some[:, -1] / some[:, -1].sum() / len(sets) for some in sets])
    signs, errors = np.c_[np.ones(len(every)), every[:, :-2]], every[:, -2]

    def loss(weights: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        told = signs @ weights
        value = shares @ (np.logaddexp(0, told) - errors * told) + RIDGE * (weights[1:] ** 2).sum()
        slope = signs.T @ (shares * (1 / (1 + np.exp(-told)) - errors))
        return float(value), slope + 2 * RIDGE * np.r_[0, weights[1:]]

    bounds = [(None, None)] + [(0, None) if doubts else (None, 0)] * (signs.shape[1] - 1)
    return np.asarray(optimize.minimize(loss, np.zeros(signs.shape[1]), jac=True, bounds=bounds, method="L-BFGS-B").x)


def ranked(rows: Rows, weights: npt.NDArray[np.float64]) -> float:
    """Area under the curve."""
    told = weights[0] + rows[:, :-2] @ weights[1:]
    return auc(list(zip(told.tolist(), (rows[:, -2] > 1 - WRONG_IOU).tolist(), strict=True)))


def tell(what: str, names: Sequence[str], sets: dict[str, Rows], *, doubts: bool) -> None:
    """Print the weights of one of the two functions, and how well it ranks."""
    weights = fitted(list(sets.values()), doubts=doubts)
    print(f"{what}: {sum(map(len, sets.values()))} samples; bias {weights[0]:.2f}")
    print(", ".join(f"{name} {weight:.2f}" for name, weight in zip(names, weights[1:], strict=True)))
    for name, some in sets.items():
        others = fitted([s for n, s in sets.items() if n != name], doubts=doubts) if len(sets) > 1 else weights
        wrong = float((some[:, -2] > 1 - WRONG_IOU).mean())
        aucs = f"AUC {ranked(some, weights):.3f}, with the weights of the others {ranked(some, others):.3f}"
        print(f"    {name}: {len(some)} samples, {100 * wrong:.0f} % wrong, mean error {some[:, -2].mean():.2f}, {aucs}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET_DIR")
    parser.add_argument("--objects", type=int, default=8, help="of each set, spread evenly (default: %(default)s)")
    parser.add_argument("--at-most", type=int, default=60, help="slices that an object reaches through (default: %(default)s)")
    parser.add_argument("--policy", default=DEFAULT_POLICY)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="objects at the same time (default: %(default)s)")
    options = parser.parse_args()
    found: dict[str, list[Samples]] = {}
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        tasks = []
        for folder in options.sets:
            labelled = open_set(folder)
            chosen = keys(labelled, range(5, options.at_most + 1), options.objects)
            if not chosen:
                raise SystemExit(f"{folder} has no object that reaches through at least 5 slices; expected sets of labelled volumes")
            tasks += [(labelled.name, pool.submit(samples, folder, key, options)) for key in chosen]
        for name, task in tasks:
            found.setdefault(name, []).append(task.result())
            print(name, *map(len, found[name][-1]), flush=True)
    filled = {name: np.concatenate([one.filled for one in of_set]) for name, of_set in found.items()}
    tell("filled", Signs._fields, filled, doubts=True)
    gone = {name: rows for name, of_set in found.items() if len(rows := np.concatenate([one.gone for one in of_set]))}
    tell("gone, though there", Ending._fields, gone, doubts=False)


if __name__ == "__main__":
    main()
