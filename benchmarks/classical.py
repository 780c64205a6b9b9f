"""Classical methods that answer clicks: random walker, GrabCut, graph cut. What `peers.py` measures.

They are scikit-image's random walker (Grady, 2006), OpenCV's GrabCut (Rother et al., 2004) and a graph cut (Boykov and Jolly, 2001, on
PyMaxflow). A single click tells them little, so they get:

- a square window about the positive clicks, ``side_px`` wide or `GROWTH` times as wide as their extent, at most the whole slice, shown at
  ``size`` pixels, or at its own size if that is less: a whole slice of 768² would keep a random walker busy for half a minute a click;
- the frame of the window, and all of it that lies beyond the slice, as background; disks of ``seed_px`` about the clicks, of both kinds;
- the clicked pixels as hard constraints, and for the two cuts only such parts as hold a positive click;
- GrabCut its own previous mask beside the surroundings of the clicks.

`SETTINGS` are the best that were found by the mean of NoC@0.85 (at most 8 clicks) over two to four objects of each of nine training sets,
none of them measured in `docs/peers.md`. Tried was `GRIDS`, one setting after the other (`peers.py --tune`), and by hand: a random walker
in the wide window with a stiffer ``beta`` (6.72 against 6.83 in the narrow one); GrabCut that begins a later click from its previous mask
alone (6.89), from the surroundings of the clicks alone (6.22), or from both (6.11, kept). The graph cut needed 5.78, and 6.50 without
``nearness``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from napari_apprentice.guidance import WindowClick
from napari_apprentice.types import Box, Click, ImageSlice, InputError, Prediction, Prompt
from napari_apprentice.windows import click_in_window, cut, inside, paste, square

GROWTH = 2.5
UNKNOWN, FOREGROUND, BACKGROUND = 0, 1, 2
EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)

Floats = npt.NDArray[np.float32]
Seeds = npt.NDArray[np.uint8]

# --- the methods: pixels (h, w, C) in 0..1, seeds (h, w) and the previous answer -> answer (h, w), foreground above 0 ---


class Method(Protocol):
    def __call__(self, pixels: Floats, seeds: Seeds, previous: Floats | None, /) -> Floats: ...


def random_walker(pixels: Floats, seeds: Seeds, previous: Floats | None = None, *, beta: float) -> Floats:
    """Log odds that a walker from a pixel meets a foreground seed before a background one."""
    from skimage.segmentation import random_walker as walk

    chances = walk(pixels, seeds.astype(np.int32), beta=beta, mode="bf", channel_axis=-1, return_full_prob=True)
    share = np.clip(chances[0], 1e-6, 1 - 1e-6)
    return np.asarray(np.log(share / (1 - share)), dtype=np.float32)


def grabcut(pixels: Floats, seeds: Seeds, previous: Floats | None = None, *, iterations: int, start: float) -> Floats:
    """±1. Begins with the previous mask, and all within ``start`` times the window's side of a positive seed, as likely foreground."""
    cv2 = library(*NEEDS["GrabCut"])
    likely = ndimage.distance_transform_edt(seeds != FOREGROUND) < start * max(seeds.shape)
    if previous is not None:
        likely = likely | (previous > 0)
    mask = np.where(likely, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    mask[seeds == FOREGROUND], mask[seeds == BACKGROUND] = cv2.GC_FGD, cv2.GC_BGD
    colours = np.ascontiguousarray(np.broadcast_to((255 * pixels).round().astype(np.uint8), (*seeds.shape, 3)))
    cv2.setNumThreads(torch.get_num_threads())
    cv2.setRNGSeed(0)  # its mixtures start from random centres
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(colours, mask, (0, 0, 1, 1), *models, iterations, cv2.GC_INIT_WITH_MASK)
    return signed(with_seeds((mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD), seeds))


def graph_cut(pixels: Floats, seeds: Seeds, previous: Floats | None = None, *, colour: float, nearness: float, sample_px: float) -> Floats:
    """±1: the cheapest cut. Region costs are log odds of colour histograms and of the distance to either kind of seed.

    Colours are learnt from all pixels within ``sample_px`` of a seed; boundary costs are exp(-|ΔI|² / 2 mean |ΔI|²) over eight neighbours.
    """
    away = {kind: ndimage.distance_transform_edt(seeds != kind) for kind in (FOREGROUND, BACKGROUND)}
    foreground = (away[FOREGROUND] <= sample_px) & (away[FOREGROUND] < away[BACKGROUND])
    background = (away[BACKGROUND] <= sample_px) & (away[BACKGROUND] <= away[FOREGROUND])
    odds = colour_odds(pixels, foreground, background)
    odds = colour * odds + nearness * np.log((1 + away[BACKGROUND]) / (1 + away[FOREGROUND]))
    odds[seeds == FOREGROUND], odds[seeds == BACKGROUND] = 1e6, -1e6
    return signed(with_seeds(cheapest_cut(pixels, odds), seeds))


def cheapest_cut(pixels: Floats, odds: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """The (h, w) mask of least cost: of every pixel |odds| where it goes against their sign, of neighbours on two sides what ties them."""
    maxflow = library(*NEEDS["graph cut"])
    graph = maxflow.GraphFloat()
    nodes = graph.add_grid_nodes(odds.shape)
    steps = ((0, 1), (1, 0), (1, 1), (1, -1))
    unlike = [np.square(pixels - np.roll(pixels, (-down, -right), (0, 1))).sum(-1) for down, right in steps]
    scale = 2 * np.mean(unlike[:2]) + 1e-12
    for (down, right), difference in zip(steps, unlike, strict=True):
        structure = np.zeros((3, 3))
        structure[1 + down, 1 + right] = 1
        graph.add_grid_edges(nodes, np.exp(-difference / scale) / np.hypot(down, right), structure, symmetric=True)
    graph.add_grid_tedges(nodes, np.maximum(odds, 0), np.maximum(-odds, 0))
    graph.maxflow()
    return np.asarray(~graph.get_grid_segments(nodes))


def colour_odds(pixels: Floats, foreground: npt.NDArray[np.bool_], background: npt.NDArray[np.bool_]) -> Floats:
    """(h, w) log odds of every pixel's colour by the smoothed histograms of two samples, of 64 greys or 16³ colours."""
    levels, blur = (64, 3.0) if pixels.shape[-1] == 1 else (16, 1.0)
    shape = (levels,) * pixels.shape[-1]
    bins = np.ravel_multi_index(tuple(np.moveaxis(np.minimum(pixels * levels, levels - 1).astype(np.intp), -1, 0)), shape)
    counts = (np.bincount(bins[sample], minlength=int(np.prod(shape))).reshape(shape) for sample in (foreground, background))
    shares = [ndimage.gaussian_filter(count / max(count.sum(), 1), blur).ravel() + 1e-4 for count in counts]
    return np.asarray(np.log(shares[0] / shares[1])[bins], dtype=np.float32)


def with_seeds(mask: npt.NDArray[np.bool_], seeds: Seeds) -> npt.NDArray[np.bool_]:
    """The parts of the mask that hold a positive seed."""
    parts, _ = ndimage.label(mask | (seeds == FOREGROUND), EIGHT_CONNECTED)
    return np.isin(parts, np.unique(parts[seeds == FOREGROUND]))


def signed(mask: npt.NDArray[np.bool_]) -> Floats:
    return np.where(mask, 1.0, -1.0).astype(np.float32)


METHODS: Mapping[str, Any] = {"random walker": random_walker, "GrabCut": grabcut, "graph cut": graph_cut}
NEEDS: Mapping[str, tuple[str, str]] = {"GrabCut": ("cv2", "opencv-python-headless"), "graph cut": ("maxflow", "PyMaxflow")}
SETTINGS: Mapping[str, Mapping[str, float]] = {
    "random walker": {"side_px": 256, "size": 128, "seed_px": 2.0, "beta": 1000.0},
    "GrabCut": {"side_px": 256, "size": 128, "seed_px": 4.0, "iterations": 5, "start": 0.25},
    "graph cut": {"side_px": 256, "size": 192, "seed_px": 2.0, "colour": 0.03, "nearness": 0.1, "sample_px": 3.0},
}
GRIDS: Mapping[str, Mapping[str, Sequence[float]]] = {
    "random walker": {"side_px": (64, 128, 256), "seed_px": (1.0, 2.0, 4.0), "beta": (130.0, 300.0, 1000.0, 3000.0)},
    "GrabCut": {"side_px": (64, 128, 256), "seed_px": (1.0, 2.0, 4.0), "iterations": (1, 5), "start": (0.1, 0.25)},
    "graph cut": {
        "side_px": (64, 128, 256, 1024),
        "seed_px": (1.0, 2.0, 4.0),
        "colour": (0.03, 0.1, 0.3, 1.0),
        "nearness": (0.0, 0.1, 0.3),
        "sample_px": (3.0, 5.0, 10.0),
    },
}


class ClassicalSegmenter:
    """A method that follows from pixels and seeds alone (implements `types.Segmenter`; there is nothing for it to learn).

    Parameters
    ----------
    name : one of `METHODS`
    settings : in place of those in `SETTINGS`

    Raises
    ------
    InputError : the library that it needs is not installed
    """

    def __init__(self, name: str, settings: Mapping[str, float] | None = None) -> None:
        if name in NEEDS:
            library(*NEEDS[name])
        chosen = dict(settings or SETTINGS[name])
        self.name = name
        self.side_px, self.size, self.seed_px = chosen.pop("side_px"), int(chosen.pop("size")), chosen.pop("seed_px")
        self.method: Method = partial(METHODS[name], **chosen)

    def predict(self, image_slice: ImageSlice, prompt: Prompt) -> Prediction:
        """The mask for all clicks so far."""
        clicks = standing(prompt.clicks)
        positive = [c.voxel for c in clicks if c.positive]
        if not positive:
            return Prediction(np.zeros((0, 0), np.float32), Box(0, 0, 0, 0), image_slice.shape)
        window = window_about(positive, image_slice.shape, self.side_px)
        size = min(window.shape[0], self.size)
        seeds = seeds_in(window, size, image_slice.shape, clicks, self.seed_px)
        previous = None if prompt.previous is None else answer_in(prompt.previous, window, size)
        answer = self.method(pixels_in(image_slice, window, size), seeds, previous)
        logits, box = paste(torch.from_numpy(answer), window, image_slice.shape)
        return Prediction(obeying(logits, box, clicks), box, image_slice.shape, view=window)

    def snapshot(self) -> None:
        """Nothing is ever learnt."""

    def restore(self, snapshot: None) -> None:
        """Nothing was learnt."""


def standing(clicks: Sequence[Click]) -> list[Click]:
    """The newest click of every pixel."""
    return list({click.voxel: click for click in clicks}.values())


def window_about(points: Sequence[tuple[int, ...]], shape: tuple[int, int], side_px: float) -> Box:
    """The square about the points; about the whole slice, and a frame of one pixel, where it would be as large as that."""
    low, high = np.min(points, axis=0), np.max(points, axis=0)
    side = max(side_px, GROWTH * float(np.max(high - low)))
    if side >= max(shape):
        return square(((shape[0] - 1) / 2, (shape[1] - 1) / 2), max(shape) + 2)
    row, col = (low + high) / 2
    return square((float(row), float(col)), side)


def pixels_in(image_slice: ImageSlice, window: Box, size: int) -> Floats:
    """(size, size, C) in 0..1, the middle 99 % of the values spread over it."""
    pixels = cut(image_slice.data, window, size).numpy()
    low, high = np.percentile(pixels, (0.5, 99.5))
    return np.asarray(np.moveaxis(np.clip((pixels - low) / ((high - low) or 1.0), 0, 1), 0, -1), dtype=np.float32)


def seeds_in(window: Box, size: int, shape: tuple[int, int], clicks: Sequence[Click], radius_px: float) -> Seeds:
    """(size, size): background on the frame and beyond the slice, and about every click what the user said; the nearest click counts."""
    inner = cut(np.ones((1, *shape), np.float32), window, size, fill=0.0)[0].numpy() > 0.5
    inner[[0, -1]] = inner[:, [0, -1]] = False
    seeds = np.where(inner, UNKNOWN, BACKGROUND).astype(np.uint8)
    shown = [click_in_window(c, window, size) for c in clicks if within(c.voxel, window)]
    rows, cols = np.ogrid[:size, :size]
    distances = np.array([np.hypot(rows - c.row, cols - c.col) for c in shown])
    kinds = np.array([FOREGROUND if c.positive else BACKGROUND for c in shown], dtype=np.uint8)
    close = distances.min(0) <= radius_px
    seeds[close] = kinds[distances.argmin(0)][close]
    for click in (c for c in shown if c.positive):  # it keeps its pixel where a negative one shares it at this size
        seeds[nearest(click, size)] = FOREGROUND
    return seeds


def nearest(click: WindowClick, size: int) -> tuple[int, int]:
    row, col = (min(max(round(v), 0), size - 1) for v in (click.row, click.col))
    return row, col


def answer_in(previous: Prediction, window: Box, size: int) -> Floats:
    """(size, size) the previous logits in a window, background where it said nothing."""
    box = previous.box
    shifted = Box(window.top - box.top, window.left - box.left, window.bottom - box.top, window.right - box.left)
    part = inside(shifted, box.shape)
    if part.top >= part.bottom or part.left >= part.right:
        return np.full((size, size), -1.0, np.float32)
    return cut(previous.logits[None], shifted, size, fill=-1.0)[0].numpy()


def obeying(logits: Floats, box: Box, clicks: Sequence[Click]) -> Floats:
    """The same logits, with every clicked pixel as the user said."""
    for click in clicks:
        if within(click.voxel, box):
            at = click.voxel[0] - box.top, click.voxel[1] - box.left
            logits[at] = max(logits[at], 0.1) if click.positive else min(logits[at], -0.1)
    return logits


def within(voxel: tuple[int, ...], box: Box) -> bool:
    return box.top <= voxel[0] < box.bottom and box.left <= voxel[1] < box.right


def library(module: str, distribution: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise InputError(f"{distribution} is not installed; expected it to be: pip install {distribution}") from None
