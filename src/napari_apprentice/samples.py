"""Training samples: one image window, one object in it, drawn at random from scenes real and synthetic.

Real images keep their own truths and gain new ones (superpixels, unions of neighbours), the way ScribblePrompt (Wong et al., 2024) does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from skimage.segmentation import felzenszwalb
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from napari_apprentice.datasets import LabelledSet, open_set
from napari_apprentice.synthetic import Scene, scene
from napari_apprentice.types import Plane
from napari_apprentice.windows import cut, square, standardise

__all__ = ["VIEWS", "Sample", "SampleStream", "draw_sample", "held_out_scenes", "real_scenes", "split_cases"]

Rng = np.random.Generator
MIN_OBJECT_PX = 20
VIEWS = ((0.4, 0.55, 0.9), (0.4, 0.1, 0.6), (0.2, 0.9, 5.0))
"""Kinds of windows: chance, and least and largest extent of the object over the window's side. Zoomed, from afar, and cutting it off."""
LARGEST_SIDE_PX = 512


@dataclass(frozen=True, eq=False)
class Sample:
    """``image`` (3, n, n) standardised float32 and ``target`` (1, n, n) in {0, 1}."""

    image: Tensor
    target: Tensor


def split_cases(cases: Sequence[str], held_out: float) -> tuple[list[str], list[str]]:
    """Training cases and held-out ones: every round(1 / held_out)-th case by name, and none of a set with a single case."""
    if held_out <= 0 or len(cases) < 2:
        return list(cases), []
    step = max(round(1 / held_out), 2)
    return [c for i, c in enumerate(cases) if i % step], [c for i, c in enumerate(cases) if i % step == 0]


def _planes(shape: tuple[int, ...], axes: Sequence[int], labels: npt.NDArray[np.integer], at_most: int, rng: Rng) -> list[Plane]:
    """Planes that hold some object; at most ``at_most``, spread at random over the axes."""
    if len(shape) == 2:
        return [Plane(0, 0)]
    planes = [
        Plane(axis, int(index))
        for axis in axes
        for index in np.flatnonzero((labels != 0).any(axis=tuple(a for a in range(3) if a != axis)))
    ]
    return [planes[i] for i in sorted(rng.permutation(len(planes))[:at_most])]


def _shrunk(image: npt.NDArray[np.uint8], labels: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Both with the longer side at most `LARGEST_SIDE_PX`."""
    factor = LARGEST_SIDE_PX / max(labels.shape)
    if factor >= 1:
        return image, labels
    size = [max(round(s * factor), 1) for s in labels.shape]
    smooth = F.interpolate(torch.from_numpy(image.astype(np.float32))[None], size=size, mode="bilinear", antialias=True)[0]
    coarse = F.interpolate(torch.from_numpy(labels.astype(np.float64))[None, None], size=size, mode="nearest-exact")[0, 0]
    return smooth.round().to(torch.uint8).numpy(), coarse.numpy().astype(np.int32)


def _layers(labels: npt.NDArray[np.int32], dataset: LabelledSet) -> list[npt.NDArray[np.int32]]:
    """Every way in which the set's description makes objects of one slice."""
    layers = [labels]
    if dataset.objects_are == "components":
        layers = [ndimage.label(labels == value, structure=np.ones((3, 3)))[0].astype(np.int32) for value in np.unique(labels[labels > 0])]
    for values in dataset.targets.values():
        if len(values) > 1:
            layers.append(np.isin(labels, list(values)).astype(np.int32))
    return layers


def _superpixels(image: npt.NDArray[np.uint8], rng: Rng) -> npt.NDArray[np.int32]:
    scale = float(np.exp(rng.uniform(np.log(60), np.log(800))))
    found = felzenszwalb(image.transpose(1, 2, 0), scale=scale, sigma=float(rng.uniform(0.5, 1.5)), min_size=40)
    return found.astype(np.int32) + 1


def real_scenes(folder: Path, names: Sequence[str], held_out: float, seed: int, slices_per_volume: int = 12) -> dict[str, list[Scene]]:
    """The training scenes of every named set below ``folder``; the held-out cases of `split_cases` are left out.

    Sets with one volume give ten times as many slices.
    """
    rng = np.random.default_rng(seed)
    out: dict[str, list[Scene]] = {}
    for name in names:
        dataset = open_set(folder / name)
        cases, _ = split_cases(dataset.cases, held_out)
        at_most = slices_per_volume * (10 if len(dataset.cases) == 1 else 1)
        out[name] = [found for case in cases for found in _scenes_of(dataset, case, at_most, rng)]
    return out


def held_out_scenes(folder: Path, names: Sequence[str], held_out: float, seed: int) -> dict[str, list[Scene]]:
    """The scenes of the cases that `real_scenes` leaves out, two slices of a volume, true objects only."""
    rng = np.random.default_rng(seed)
    out: dict[str, list[Scene]] = {}
    for name in names:
        dataset = open_set(folder / name)
        _, cases = split_cases(dataset.cases, held_out)
        found = [s for case in cases[:12] for s in _scenes_of(dataset, case, 2, rng, superpixels=False)]
        out[name] = found
    return out


def _scenes_of(dataset: LabelledSet, case: str, at_most: int, rng: Rng, superpixels: bool = True) -> Iterator[Scene]:
    image, labels = dataset.image(case), dataset.labels(case)
    for plane in _planes(image.shape, dataset.slice_axes, labels, at_most, rng):
        where = (slice(None),) * plane.axis + (plane.index,) if image.ndim == 3 else ()
        pixels = np.asarray(image.data[(slice(None), *where)], dtype=np.float32)
        if pixels.max() == pixels.min():
            continue
        grey = np.clip((pixels - pixels.min()) / (pixels.max() - pixels.min()) * 255, 0, 255).round().astype(np.uint8)
        colours, truth = _shrunk(np.broadcast_to(grey, (3, *grey.shape[1:])), np.asarray(labels[where], dtype=np.int32))
        layers = _layers(truth, dataset)
        weights = [1.0] * len(layers)
        if superpixels and min(truth.shape) >= 64:
            layers.append(_superpixels(colours, rng))
            weights.append(0.15 * len(weights))
        yield Scene(np.ascontiguousarray(colours), tuple(layers), tuple(weights))


def _target(rng: Rng, chosen: Scene) -> npt.NDArray[np.bool_] | None:
    """One object: a label of one layer, now and then with a touching neighbour."""
    weights = np.asarray(chosen.weights)
    labels = chosen.layers[rng.choice(len(weights), p=weights / weights.sum())]
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    ids = np.flatnonzero(areas >= MIN_OBJECT_PX)
    ids = ids[areas[ids] < 0.9 * labels.size]
    if len(ids) == 0:
        return None
    chance = areas[ids] ** 0.33
    mask = labels == rng.choice(ids, p=chance / chance.sum())
    if rng.random() < 0.04:
        around = np.unique(labels[ndimage.binary_dilation(mask, iterations=3) & ~mask])
        around = around[around > 0]
        if len(around):
            mask = mask | (labels == rng.choice(around))
    return mask


def _view(rng: Rng, mask: npt.NDArray[np.bool_], views: Sequence[Sequence[float]]) -> tuple[tuple[float, float], float]:
    """Centre and side of a window on the object, of one of the kinds of ``views``.

    Windows that cut the object off teach where a window is too small: the mask then reaches its border.
    """
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    extent = max(rows[-1] - rows[0], cols[-1] - cols[0]) + 1
    chances = np.array([view[0] for view in views])
    _, low, high = views[int(np.searchsorted(np.cumsum(chances / chances.sum()), rng.random()))]
    share = np.exp(rng.uniform(np.log(low), np.log(high)))
    side = float(np.clip(extent / share, 24, max(1.15 * max(mask.shape), 24)))
    if low < 0.9:
        middle = np.array([(rows[0] + rows[-1]) / 2, (cols[0] + cols[-1]) / 2])
        slack = max(side - extent, 0.15 * side) / 2 * rng.uniform(0, 0.9)
    else:
        inside = np.flatnonzero(mask)
        middle = np.array(np.unravel_index(inside[int(rng.integers(len(inside)))], mask.shape), dtype=float)
        slack = 0.3 * side
    row, col = middle + rng.uniform(-1, 1, 2) * slack
    return (float(row), float(col)), side


def _vary(rng: Rng, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror, turn, and change contrast, colour, sharpness and noise."""
    turns = int(rng.integers(0, 4))
    both = torch.rot90(torch.cat([image, target]), turns, (1, 2))
    both = both.flip(2) if rng.random() < 0.5 else both
    if rng.random() < 0.3:
        angle, zoom = rng.uniform(-0.7, 0.7), np.exp(rng.uniform(-0.15, 0.15, 2))
        matrix = torch.tensor(
            [[[np.cos(angle) * zoom[0], -np.sin(angle), 0], [np.sin(angle), np.cos(angle) * zoom[1], 0]]], dtype=torch.float32
        )
        grid = F.affine_grid(matrix, [1, 4, *both.shape[1:]], align_corners=False)
        both[:3] -= both[:3].mean()
        both = F.grid_sample(both[None], grid, align_corners=False)[0]
    image, target = both[:3], (both[3:] > 0.5).float()
    if rng.random() < 0.25:
        image = image.mean(0, keepdim=True).expand(3, -1, -1)
    elif rng.random() < 0.2:
        image = image[torch.from_numpy(rng.permutation(3))]
    if rng.random() < 0.5:
        low, high = image.min(), image.max()
        image = ((image - low) / (high - low + 1e-6)) ** float(np.exp(rng.normal(0, 0.4)))
    if rng.random() < 0.15:
        image = -image
    image = (image - image.mean()) / (image.std() + 1e-6)
    if rng.random() < 0.25:
        kernel = int(rng.integers(1, 3)) * 2 + 1
        image = F.avg_pool2d(image, kernel, stride=1, padding=kernel // 2, count_include_pad=False)
    if rng.random() < 0.3:
        image = image + float(np.exp(rng.uniform(np.log(0.02), np.log(0.4)))) * torch.from_numpy(
            rng.standard_normal(tuple(image.shape), dtype=np.float32)
        )
    return image, target


def draw_sample(rng: Rng, chosen: Scene, size: int, vary: bool = True, views: Sequence[Sequence[float]] = VIEWS) -> Sample | None:
    """A random object of the scene in a random window at ``size`` × ``size``; None if the draw held too little of an object."""
    mask = _target(rng, chosen)
    if mask is None:
        return None
    centre, side = _view(rng, mask, views)
    window = square(centre, side)
    image = cut(chosen.image, window, size)
    target = (cut(mask[None], window, size, fill=0.0) > 0.5).float()
    if vary:
        image, target = _vary(rng, image, target)
    if float(target.sum()) < MIN_OBJECT_PX:
        return None
    return Sample(standardise(image).contiguous(), target.contiguous())


class SampleStream(IterableDataset[tuple[Tensor, Tensor]]):
    """An endless stream of batches ``(image (B, 3, n, n), target (B, 1, n, n))``.

    Every batch draws a working size from ``sizes`` (n -> B). A share ``synthetic`` of the samples is procedural; each worker keeps a
    pool of procedural scenes and replaces a scene after about ``reuse`` draws. Given seed, number of workers
    and ``start``, the stream is fixed.
    """

    def __init__(
        self,
        scenes: Mapping[str, Sequence[Scene]],
        shares: Mapping[str, float],
        synthetic: float,
        sizes: Sequence[tuple[int, int]],
        seed: int,
        start: int = 0,
        pool: int = 150,
        reuse: float = 6.0,
        views: Sequence[Sequence[float]] = VIEWS,
    ) -> None:
        self.scenes, self.shares, self.synthetic = scenes, shares, synthetic
        self.sizes, self.seed, self.start, self.pool_size, self.reuse = sizes, seed, start, pool, reuse
        self.views = views

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if worker := get_worker_info():
            torch.set_num_threads(1)
        rng = np.random.default_rng([self.seed, self.start, worker.id if worker else 0])
        names = [n for n in self.shares if self.scenes.get(n)]
        chance = np.array([self.shares[n] for n in names], dtype=float)
        chance = chance / chance.sum() if len(names) else chance
        pool: list[Scene] = []
        while True:
            size, batch = self.sizes[int(rng.integers(len(self.sizes)))]
            found: list[Sample] = []
            while len(found) < batch:
                if not names or rng.random() < self.synthetic:
                    if len(pool) < self.pool_size or rng.random() < 1 / self.reuse:
                        pool = [*pool[-self.pool_size + 1 :], scene(rng)]
                        chosen = pool[-1]
                    else:
                        chosen = pool[int(rng.integers(len(pool)))]
                else:
                    of_set = self.scenes[names[rng.choice(len(names), p=chance)]]
                    chosen = of_set[int(rng.integers(len(of_set)))]
                sample = draw_sample(rng, chosen, size, views=self.views)
                if sample is not None:
                    found.append(sample)
            yield torch.stack([s.image for s in found]), torch.stack([s.target for s in found])
