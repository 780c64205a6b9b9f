"""Fit the weights of `expectation`: how wrong is a slice that propagation filled, by the signs that were noticed on the way?

    python benchmarks/propagation_errors.py SET_DIR... [--objects 8] [--rounds 2] [--weights FILE] [--rows FILE]

Labelled volumes to train on, never those to measure on. Some slices of an object, anywhere, are accepted, up to a third of all: its true
mask there, bent until about as much of it is right as of what a person clicks, in few clicks or in many. Sometimes an empty slice beyond
an end is accepted too. The object is propagated, and the IoU of every slice that was filled is its error. The weights minimise the
cross-entropy of 1 - IoU, every set counting as much as any other; none of them may be negative, since every sign is one of doubt. The area
under the curve of "IoU < 0.85" is told for each set, once with the weights that were fitted to all sets, once with those of the others. Of
the places where propagation ended, it tells how often the object went on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from propagation import WRONG_IOU, auc, objects
from rich.progress import track
from scipy import ndimage, optimize

from napari_apprentice import load_segmenter
from napari_apprentice.datasets import open_set
from napari_apprentice.expectation import Signs
from napari_apprentice.history import Origin
from napari_apprentice.labelmap import LabelMap
from napari_apprentice.propagation import propagate
from napari_apprentice.shapes import overlap, signed_distance
from napari_apprentice.types import Image, Plane, Segmenter

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.float64]

CLICKED_IOU = 0.7, 0.95  # of accepted slices
BEYOND = 12  # slices of the image at either end of an object
RIDGE = 3e-4


def bent(mask: Mask, generator: np.random.Generator) -> Mask:
    """(H, W) mask, smoothly bent, of an IoU within `CLICKED_IOU` with the one that it was."""
    aim = generator.uniform(*CLICKED_IOU)
    extent = float(np.sqrt(mask.sum()))
    field = [ndimage.gaussian_filter(generator.normal(size=mask.shape), 0.2 * extent + 0.5) for _ in range(2)]
    field = [part / part.std() for part in field]
    distance = signed_distance(mask)
    found, grid = mask, np.indices(mask.shape)
    for amplitude in np.arange(0.1, 8, 0.1):
        last = found
        found = ndimage.map_coordinates(distance, grid + amplitude * np.stack(field), order=1, mode="nearest") > 0
        if overlap(found, mask) < aim:
            return last
    return found


def rows(image: Image, truth: Mask, segmenter: Segmenter, generator: np.random.Generator) -> tuple[Rows, list[tuple[str, bool]]]:
    """(N, signs and IoU) of one propagation, and reasons for its ends with whether the object went on."""
    image, truth = about(image, truth)
    there = np.flatnonzero(truth.any(axis=(1, 2)))
    full = generator.choice(there, int(generator.integers(1, max(len(there) // 3, 1) + 1)), replace=False)
    beyond = there[0] - generator.integers(1, 5), there[-1] + generator.integers(1, 5)
    empty = [index for index in beyond if 0 <= index < len(truth) and generator.random() < 0.5]
    labels = np.zeros(image.shape, np.uint8)
    for index in full:
        labels[index] = bent(truth[index], generator)
    origin = Origin(frozenset(Plane(0, int(index)) for index in (*full, *empty)))
    outcome = propagate(image, segmenter, LabelMap(image.shape, labels), origin, 1)
    if outcome.patch is not None:
        labels[outcome.patch.region] = outcome.patch.after
    found = [(*signs, overlap(labels[index] == 1, truth[index])) for index, signs in outcome.signs.items()]
    return np.array(found).reshape(-1, len(Signs._fields) + 1), [(stop.reason, bool(truth[stop.index].any())) for stop in outcome.stops]


def about(image: Image, truth: Mask) -> tuple[Image, Mask]:
    """The slices that hold an object, and those next to them: a long way through a volume that it is only a part of would outweigh it."""
    there = np.flatnonzero(truth.any(axis=(1, 2)))
    part = slice(max(there[0] - BEYOND, 0), there[-1] + 1 + BEYOND)
    return Image(image.data[:, part], np.diag([*image.spacing, 1.0]), image.units), truth[part]


def fitted(*sets: Rows) -> npt.NDArray[np.float64]:
    """Bias and weights."""
    samples, shares = np.concatenate(sets), np.concatenate([np.full(len(some), 1 / len(some) / len(sets)) for some in sets])
    signs, errors = np.c_[np.ones(len(samples)), samples[:, :-1]], 1 - samples[:, -1]

    def loss(weights: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        told = signs @ weights
        value = shares @ (np.logaddexp(0, told) - errors * told) + RIDGE * (weights[1:] ** 2).sum()
        slope = signs.T @ (shares * (1 / (1 + np.exp(-told)) - errors))
        return float(value), slope + 2 * RIDGE * np.r_[0, weights[1:]]

    bounds = [(None, None)] + [(0, None)] * (signs.shape[1] - 1)
    return np.asarray(optimize.minimize(loss, np.zeros(signs.shape[1]), jac=True, bounds=bounds, method="L-BFGS-B").x)


def ranked(samples: Rows, weights: npt.NDArray[np.float64]) -> float:
    """Area under the curve."""
    told = weights[0] + samples[:, :-1] @ weights[1:]
    return auc(list(zip(told.tolist(), (samples[:, -1] < WRONG_IOU).tolist(), strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET_DIR")
    parser.add_argument("--objects", type=int, default=8, help="of each set, spread evenly (default: %(default)s)")
    parser.add_argument("--at-most", type=int, default=80, help="slices that an object reaches through (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="propagations of each object (default: %(default)s)")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=Path, help="keep what was found in this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    segmenter, generator = load_segmenter(options.weights, device=options.device), np.random.default_rng(0)
    samples: dict[str, Rows] = {}
    ends: list[tuple[str, bool]] = []
    for folder in options.sets:
        labelled, parts = open_set(folder), []
        for image, truth in track(objects(labelled, range(5, options.at_most + 1), options.objects), labelled.name, options.objects):
            for _ in range(options.rounds):
                found, ended = rows(image, truth, segmenter, generator)
                parts.append(found)
                ends += ended
        if not parts:
            raise SystemExit(f"{folder} has no object that reaches through at least 5 slices; expected sets of labelled volumes")
        samples[labelled.name] = np.concatenate(parts)
        if options.rows is not None:
            np.savez(options.rows, **samples)
    every = np.concatenate(list(samples.values()))
    weights = fitted(*samples.values())
    print(f"{len(every)} slices; bias {weights[0]:.2f}")
    for name, weight, mean in zip(Signs._fields, weights[1:], every.mean(axis=0), strict=False):
        print(f"{name:8} weight {weight:5.2f}, mean {mean:.2f}")
    for name, some in samples.items():
        others = fitted(*(s for n, s in samples.items() if n != name)) if len(samples) > 1 else weights
        wrong = float((some[:, -1] < WRONG_IOU).mean())
        aucs = f"AUC {ranked(some, weights):.3f}, with the weights of the others {ranked(some, others):.3f}"
        print(f"{name}: {len(some)} slices, {100 * wrong:.0f} % wrong, {aucs}")
    print(f"all: AUC {ranked(every, weights):.3f}")
    for reason in sorted({reason for reason, _ in ends}):
        went_on = [on for other, on in ends if other == reason]
        print(f"{reason}: {len(went_on)} times, the object went on in {100 * float(np.mean(went_on)):.0f} %")


if __name__ == "__main__":
    main()
