"""Training samples: one image window, one object in it, drawn at random from scenes real and synthetic.

Real images keep their own truths and gain new ones (superpixels, unions of neighbours), the way ScribblePrompt (Wong et al., 2024) does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path
from typing import Any, NamedTuple

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
from napari_apprentice.types import Plane, finite
from napari_apprentice.windows import cut, square, standardise

__all__ = ["VIEWS", "Drawn", "Sample", "SampleStream", "draw_sample", "has_objects", "held_out_scenes", "real_scenes", "split_cases"]

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
    planes = [Plane(axis, index) for axis in axes for index in range(shape[axis]) if labels[(slice(None),) * axis + (index,)].any()]
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


def _layers(labels: npt.NDArray[np.int32], dataset: LabelledSet) -> dict[str, npt.NDArray[np.int32]]:
    """Every way in which the set's description makes objects of one slice, by kind (`Scene.kinds`)."""
    layers = {"class {}" if dataset.objects_are == "class" else "any": labels}
    if dataset.objects_are == "components":
        values = np.unique(labels[labels > 0])
        layers = {f"part of {v}": ndimage.label(labels == v, structure=np.ones((3, 3)))[0].astype(np.int32) for v in values}
    for name, of_target in dataset.targets.items():
        if len(of_target) > 1:
            layers[f"target {name}"] = np.isin(labels, list(of_target)).astype(np.int32)
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


def has_objects(one: Scene) -> bool:
    """Whether a scene holds an object that samples can be of: one that is neither too small nor all there is."""
    return any(len(_ids(layer)[0]) for layer in one.layers)


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
        pixels = finite(np.asarray(image.data[(slice(None), *where)])).astype(np.float32)
        if pixels.max() == pixels.min():
            continue
        grey = np.clip((pixels - pixels.min()) / (pixels.max() - pixels.min()) * 255, 0, 255).round().astype(np.uint8)
        colours, truth = _shrunk(np.broadcast_to(grey, (3, *grey.shape[1:])), np.asarray(labels[where], dtype=np.int32))
        named = _layers(truth, dataset)
        layers, weights, kinds = list(named.values()), [1.0] * len(named), [f"{dataset.name}: {kind}" for kind in named]
        if superpixels and min(truth.shape) >= 64:
            layers.append(_superpixels(colours, rng))
            weights.append(0.15 * len(weights))
            kinds.append("")
        yield Scene(np.ascontiguousarray(colours), tuple(layers), tuple(weights), tuple(kinds))


class _Chosen(NamedTuple):
    """An object of a scene: which one, and where it is."""

    scene: Scene
    layer: int
    id: int
    mask: npt.NDArray[np.bool_]

    @property
    def kind(self) -> str:
        """What it shows; empty if no other image shows the same."""
        return self.scene.kinds[self.layer].format(self.id) if self.scene.kinds else ""


def _ids(labels: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The ids of objects that are neither too small nor all there is, and the areas of all ids."""
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    ids = np.flatnonzero(areas >= MIN_OBJECT_PX)
    return ids[areas[ids] < 0.9 * labels.size], areas


def _target(rng: Rng, scene: Scene) -> _Chosen | None:
    """One object: a label of one layer, now and then with a touching neighbour."""
    weights = np.asarray(scene.weights)
    layer = int(rng.choice(len(weights), p=weights / weights.sum()))
    labels = scene.layers[layer]
    ids, areas = _ids(labels)
    if len(ids) == 0:
        return None
    chance = areas[ids] ** 0.33
    chosen = int(rng.choice(ids, p=chance / chance.sum()))
    mask = labels == chosen
    if rng.random() < 0.04:
        around = np.unique(labels[ndimage.binary_dilation(mask, iterations=3) & ~mask])
        around = around[around > 0]
        if len(around):
            mask = mask | (labels == rng.choice(around))
    return _Chosen(scene, layer, chosen, mask)


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


def _restyled(look: Rng, image: Tensor) -> Tensor:
    """A standardised image (3, h, w) as a small random network shows it, mixed with itself: things stay where they are, looks change.

    After Ouyang et al., Causality-inspired single-source domain generalization, 2023 (global intensity non-linear augmentation).
    A grey image stays grey.
    """
    grey = bool((image == image[:1]).all())
    widths = (3, *(int(look.integers(2, 5)) for _ in range(int(look.integers(1, 4)))), 3)
    found = image[None]
    for layer, (width_in, width_out) in enumerate(pairwise(widths)):
        found = F.leaky_relu(found) if layer else found
        kernel = int(look.choice((1, 1, 3)))
        weight = look.standard_normal((width_out, width_in, kernel, kernel), dtype=np.float32)
        shift = look.standard_normal(width_out, dtype=np.float32)
        found = F.conv2d(F.pad(found, (kernel // 2,) * 4, mode="replicate"), torch.from_numpy(weight), torch.from_numpy(shift))
        found = (found - found.mean()) / (found.std() + 1e-6)
    shown = found[0].mean(0, keepdim=True).expand(3, -1, -1) if grey else found[0]
    shown = (shown - shown.mean()) / (shown.std() + 1e-6)
    share = float(look.uniform(0.2, 1.0))
    mixed = share * shown + (1 - share) * image
    return (mixed - mixed.mean()) / (mixed.std() + 1e-6)


def _vary(rng: Rng, image: Tensor, target: Tensor, look: Rng | None = None, restyled: float = 0.0) -> tuple[Tensor, Tensor]:
    """Mirror, turn, and change contrast, colour, sharpness and noise; contrast and colour as ``look`` draws them, if it is given.

    ``restyled`` : chance that a small random network decides what the image looks like
    """
    look = look or rng
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
    if look.random() < 0.25:
        image = image.mean(0, keepdim=True).expand(3, -1, -1)
    elif look.random() < 0.2:
        image = image[torch.from_numpy(look.permutation(3))]
    if look.random() < 0.5:
        low, high = image.min(), image.max()
        image = ((image - low) / (high - low + 1e-6)) ** float(np.exp(look.normal(0, 0.4)))
    if look.random() < 0.15:
        image = -image
    image = (image - image.mean()) / (image.std() + 1e-6)
    if restyled and look.random() < restyled:
        image = _restyled(look, image)
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
    found = _target(rng, chosen)
    return None if found is None else _seen(rng, found, size, vary, views)


def _grown(rng: Rng, mask: npt.NDArray[np.bool_], chance: float) -> npt.NDArray[np.bool_]:
    """The mask now and then drawn wider or tighter, by a share of its extent that only ``rng`` decides: where a border is said to be."""
    often, share = rng.random(), float(rng.uniform(-0.12, 0.12))
    if often > chance:
        return mask
    amount = share * float(np.sqrt(mask.sum()))
    if amount > 0:
        return np.asarray(ndimage.distance_transform_edt(~mask) <= amount)
    return np.asarray(ndimage.distance_transform_edt(mask) > -amount)


def _seen(
    rng: Rng,
    chosen: _Chosen,
    size: int,
    vary: bool,
    views: Sequence[Sequence[float]],
    look: Rng | None = None,
    restyled: float = 0.0,
    borders: float = 0.0,
) -> Sample | None:
    """An object in a random window; None if too little of it is there. ``look`` and ``restyled`` as in `_vary`, ``borders`` as streamed."""
    by_hand, chance = (rng, borders) if look is None else (look, _OTHER_BORDER)
    mask = _grown(by_hand, chosen.mask, chance) if chance else chosen.mask
    if mask.sum() < MIN_OBJECT_PX:
        return None
    window = square(*_view(rng, mask, views))
    image = cut(chosen.scene.image, window, size)
    target = (cut(mask[None], window, size, fill=0.0) > 0.5).float()
    if vary:
        image, target = _vary(rng, image, target, look, restyled)
    if float(target.sum()) < MIN_OBJECT_PX:
        return None
    return Sample(standardise(image).contiguous(), target.contiguous())


class Drawn(NamedTuple):
    """A batch, and R examples for each of its images: other objects of the same kind, as a rule.

    Attributes
    ----------
    image, target : (B, 3, n, n) standardised float32; (B, 1, n, n) in {0, 1}
    example_image, example_target : (B, R, 3, n, n); (B, R, 1, n, n)
    """

    image: Tensor
    target: Tensor
    example_image: Tensor
    example_target: Tensor


EXAMPLE_VIEWS = ((1.0, 0.25, 0.8),)
"""Windows of examples, as of `VIEWS`: they show objects whose extent is known."""
_OTHER_BORDER = 0.3  # chance that an object and its examples are drawn wider or tighter than they are
_WRONG, _SAME_SCENE, _SAME_OBJECT = 0.1, 0.25, 0.3  # chances of an example that is of any kind; from the same scene; that object again
_PATIENCE = 100  # draws of an example


class _Pool(Sequence[Scene]):
    """Procedural scenes by number, of which the newest ``size`` are there: made when they are asked for, and gone when they are too old."""

    def __init__(self, seeds: Sequence[int], size: int) -> None:
        self._seeds, self._size, self._first = tuple(seeds), size, 0
        self._made: dict[int, Scene] = {}

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._size:
            raise IndexError(index)
        number = self._first + index
        if number not in self._made:
            self._made[number] = scene(np.random.default_rng([*self._seeds, number, 1]))
        return self._made[number]

    def go_on_to(self, first: int) -> None:
        """The oldest one is of this number now."""
        self._first = first
        self._made = {number: one for number, one in self._made.items() if number >= first}


class SampleStream(IterableDataset[Drawn]):
    """An endless stream of batches.

    Every batch draws a working size from ``sizes`` (n -> B). A share ``synthetic`` of the samples is procedural; each worker keeps a
    pool of procedural scenes and replaces a scene after about ``reuse`` draws. Given seed and number of workers, the batch of a number is
    always the same, wherever the stream starts. ``examples`` : chances of 0, 1, 2, ... examples for each image of a batch. ``restyled`` :
    share of the samples that look as a small random network shows them, with their examples. ``borders`` : chance that an object without
    examples is drawn wider or tighter than it is; one that has examples is by a chance of its own, and they with it. ``strangers`` :
    share of the objects with examples of which all examples show something else, as those of another study do.
    """

    def __init__(
        self,
        scenes: Mapping[str, Sequence[Scene]],
        shares: Mapping[str, float],
        synthetic: float,
        sizes: Sequence[tuple[int, int]],
        seed: int | Sequence[int],
        start: int = 0,
        pool: int = 150,
        reuse: float = 6.0,
        views: Sequence[Sequence[float]] = VIEWS,
        examples: Sequence[float] = (1.0,),
        restyled: float = 0.0,
        borders: float = 0.0,
        strangers: float = 0.0,
    ) -> None:
        self.scenes, self.shares, self.synthetic = scenes, shares, synthetic
        self.seeds = (seed,) if isinstance(seed, int) else tuple(seed)
        self.sizes, self.start, self.pool_size, self.reuse = sizes, start, pool, reuse
        self.views, self.examples, self.restyled, self.borders = views, examples, restyled, borders
        self.strangers = strangers

    def __iter__(self) -> Iterator[Drawn]:
        first, every = 0, 1
        if worker := get_worker_info():
            torch.set_num_threads(1)
            first, every = worker.id, worker.num_workers
        names = [n for n in self.shares if self.scenes.get(n)]
        chance = np.array([self.shares[n] for n in names], dtype=float)
        chance = chance / chance.sum() if len(names) else chance
        alike = _alike([scene for name in names for scene in self.scenes[name]]) if len(self.examples) > 1 else {}
        fresh = self.synthetic * sum(batch for _, batch in self.sizes) / len(self.sizes) / self.reuse  # scenes for every batch
        share = (self.start + first) % every
        pool = _Pool([*self.seeds, share], self.pool_size)
        for at in count(self.start + first, every):
            rng = np.random.default_rng([*self.seeds, at])
            pool.go_on_to(int(at // every * fresh))
            size, batch = self.sizes[int(rng.integers(len(self.sizes)))]
            number = int(rng.choice(len(self.examples), p=np.asarray(self.examples) / sum(self.examples))) if len(self.examples) > 1 else 0
            found: list[Sample] = []
            beside: list[Sample] = []

            def any_object(rng: Rng = rng) -> tuple[_Chosen | None, Sequence[Scene]]:
                procedural = not names or rng.random() < self.synthetic
                others = pool if procedural else self.scenes[names[rng.choice(len(names), p=chance)]]
                return _target(rng, others[int(rng.integers(len(others)))]), others

            while len(found) < batch:
                chosen, others = any_object()
                if chosen is None:
                    continue
                look = int(rng.integers(2**31)) if number else None
                of_look = None if look is None else np.random.default_rng(look)
                sample = _seen(rng, chosen, size, True, self.views, of_look, self.restyled, self.borders)
                if sample is None:
                    continue
                found.append(sample)
                like, among = chosen, others
                strange = number and self.strangers and rng.random() < self.strangers
                if strange and (other := _stranger(chosen, any_object)):
                    (like, among), look = other, int(rng.integers(2**31))
                beside += [_example(rng, like, among, alike, size, look or 0, self.restyled) for _ in range(number)]
            yield Drawn(*_stacked(found), *(part.unflatten(0, (batch, number)) for part in _stacked(beside, size)))


def _stacked(samples: Sequence[Sample], size: int = 0) -> tuple[Tensor, Tensor]:
    """The images and the targets of some samples; of none, as they would be at ``size``."""
    if not samples:
        return torch.zeros(0, 3, size, size), torch.zeros(0, 1, size, size)
    return torch.stack([s.image for s in samples]), torch.stack([s.target for s in samples])


def _alike(scenes: Sequence[Scene]) -> dict[str, list[tuple[Scene, int, int]]]:
    """Kind -> all objects of that kind, as (scene, layer, id)."""
    found: dict[str, list[tuple[Scene, int, int]]] = {}
    for one in scenes:
        for layer, kind in enumerate(one.kinds):
            for number in _ids(one.layers[layer])[0] if kind else ():
                found.setdefault(kind.format(number), []).append((one, layer, int(number)))
    return found


def _stranger(
    chosen: _Chosen, any_object: Callable[[], tuple[_Chosen | None, Sequence[Scene]]], tries: int = 50
) -> tuple[_Chosen, Sequence[Scene]] | None:
    """An object of another kind, in another image, and the scenes that it is from; None if there seems to be none."""
    for _ in range(tries):
        other, among = any_object()
        if other is not None and other.scene is not chosen.scene and (not other.kind or other.kind != chosen.kind):
            return other, among
    return None


def _example(
    rng: Rng,
    chosen: _Chosen,
    others: Sequence[Scene],
    alike: Mapping[str, Sequence[tuple[Scene, int, int]]],
    size: int,
    look: int,
    restyled: float,
) -> Sample:
    """An example for an object: as a rule another one of its kind, in an image that was made to look alike in the same way.

    A look whose borders leave nothing of objects as thin as these is given up for another one.
    """
    tried = 0
    while True:
        found: _Chosen | None
        same_kind = alike.get(chosen.kind, ())
        if rng.random() < _WRONG:
            found = _target(rng, others[int(rng.integers(len(others)))])
        elif len(same_kind) > 1 and rng.random() >= _SAME_SCENE:
            of_scene, layer, number = same_kind[int(rng.integers(len(same_kind)))]
            found = _Chosen(of_scene, layer, number, of_scene.layers[layer] == number)
        else:
            labels = chosen.scene.layers[chosen.layer]
            ids, _ = _ids(labels)
            number = chosen.id if rng.random() < _SAME_OBJECT else int(rng.choice(ids))
            found = _Chosen(chosen.scene, chosen.layer, number, labels == number)
        sample = None if found is None else _seen(rng, found, size, True, EXAMPLE_VIEWS, np.random.default_rng(look), restyled)
        if sample is not None:
            return sample
        tried += 1
        look = int(rng.integers(2**31)) if tried % _PATIENCE == 0 else look
