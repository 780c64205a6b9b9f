"""Procedural training images: scenes that no microscope made, with the truths of everything in them.

What fundus photographs, MRI, electron microscopy, ultrasound and stained cells share is put together at random: dense partitions, cells
with membranes, blobs with parts, tubes, polygons and many look-alikes, under random textures, contrast, blur, bias fields, speckle, colour,
clipped fields of view and burnt-in marks. A model trained on these alone already follows clicks on images nobody showed it; see also
ScribblePrompt (Wong et al., 2024) and SynthSeg (Billot et al., 2023) for the idea of training on synthesis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from skimage import draw

__all__ = ["Scene", "scene"]

Float = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]
Rng = np.random.Generator


@dataclass(frozen=True, eq=False)
class Scene:
    """One training image.

    Attributes
    ----------
    image : (3, H, W) uint8
    layers : label maps (H, W) int32, each non-zero id one possible object; layers overlap (wholes, parts, surroundings)
    weights : how often to draw a target from each layer, relative
    kinds : what is shown by the objects of each layer, where ``{}`` stands for the id; empty where other images do not show the same
    """

    image: npt.NDArray[np.uint8]
    layers: tuple[Labels, ...]
    weights: tuple[float, ...]
    kinds: tuple[str, ...] = ()


def smooth_noise(rng: Rng, size: int, scale_px: float, channels: int = 1) -> Float:
    """(channels, size, size) random field of unit variance whose features are about ``scale_px`` wide."""
    grid = max(2, round(size / max(scale_px, 1.0)) + 1)
    coarse = torch.from_numpy(rng.standard_normal((1, channels, min(grid, size), min(grid, size)), dtype=np.float32))
    field = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)[0].numpy()
    return np.asarray(field / (field.std() + 1e-6), dtype=np.float32)


def _partition(rng: Rng, size: int) -> Labels:
    """Regions where one of several smooth fields is the largest, split into connected pieces."""
    fields = smooth_noise(rng, size, np.exp(rng.uniform(np.log(12), np.log(size))), int(rng.integers(2, 7)))
    fields += 0.15 * rng.random() * smooth_noise(rng, size, 6.0, len(fields))
    winner = fields.argmax(0)
    labels = np.zeros((size, size), np.int32)
    for value in range(len(fields)):
        pieces, _ = ndimage.label(winner == value)
        labels[pieces > 0] = pieces[pieces > 0] + labels.max()
    return labels


def _cells(rng: Rng, size: int) -> tuple[Labels, Float]:
    """Voronoi cells of a jittered grid under a smooth warp, and the distance to the membrane between them in pixels."""
    pitch = float(np.exp(rng.uniform(np.log(size / 12), np.log(size / 2.5))))
    ticks = np.arange(-0.5, size / pitch + 1.0) * pitch
    seeds = np.stack(np.meshgrid(ticks, ticks, indexing="ij"), -1).reshape(-1, 2)
    seeds = seeds + rng.uniform(-0.45, 0.45, seeds.shape) * pitch
    stretch = np.exp(rng.uniform(-0.5, 0.5))
    half = (size + 1) // 2
    warp = smooth_noise(rng, half, pitch / 2 * rng.uniform(0.5, 2.0), 2) * pitch * rng.uniform(0.02, 0.15)
    rows, cols = np.mgrid[:half, :half].astype(np.float32) * 2
    at = torch.from_numpy(np.stack([rows + warp[0], cols + warp[1]], -1).reshape(-1, 2)) * torch.tensor([1.0, stretch])
    distance = torch.cdist(at, torch.from_numpy(seeds.astype(np.float32)) * torch.tensor([1.0, stretch]))
    nearest = distance.topk(2, dim=1, largest=False)
    owner = nearest.indices[:, 0].reshape(half, half).numpy().astype(np.int32) + 1
    gap = ((nearest.values[:, 1] - nearest.values[:, 0]) / 2).reshape(1, 1, half, half)
    gap_full = F.interpolate(gap, size=(size, size), mode="bilinear", align_corners=False)[0, 0].numpy()
    labels = np.repeat(np.repeat(owner, 2, 0), 2, 1)[:size, :size]
    return labels, np.asarray(gap_full, dtype=np.float32)


def _star(rng: Rng, radius: float, rough: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Outline (rows, cols) of a random star-shaped body of about ``radius`` pixels about the origin."""
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    r = np.ones_like(angle)
    for k in range(2, 8):
        r += rough * rng.normal() / k * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    r = radius * np.clip(r, 0.35, 2.2)
    stretch, turn = np.exp(rng.uniform(0, 0.7)), rng.uniform(0, 2 * np.pi)
    y, x = r * np.sin(angle) * np.sqrt(stretch), r * np.cos(angle) / np.sqrt(stretch)
    return y * np.cos(turn) - x * np.sin(turn), y * np.sin(turn) + x * np.cos(turn)


def _bodies(rng: Rng, size: int) -> tuple[Labels, Labels]:
    """Star-shaped bodies or polygons that do not overlap, and their inner parts (nuclei, cups, lumens)."""
    wholes, parts = np.zeros((size, size), np.int32), np.zeros((size, size), np.int32)
    radius = float(np.exp(rng.uniform(np.log(5), np.log(size / 3.0))))
    wanted = int(np.clip(rng.uniform(0.2, 0.8) * size**2 / (5 * radius**2), 1, 45))
    rough, spread = rng.uniform(0, 0.5), rng.uniform(0, 0.5)
    polygonal, nested = rng.random() < 0.2, rng.random() < 0.55
    inner, touching = rng.uniform(0.3, 0.8), rng.random() < 0.4
    for number in range(1, wanted + 1):
        rows, cols = _star(rng, radius * np.exp(rng.normal() * spread), rough)
        if polygonal:
            corners = np.sort(rng.choice(len(rows), int(rng.integers(3, 9)), replace=False))
            rows, cols = rows[corners], cols[corners]
        centre = rng.uniform(-0.05, 1.05, 2) * size
        rr, cc = draw.polygon(rows + centre[0], cols + centre[1], (size, size))
        taken = wholes[rr, cc] > 0
        if len(rr) < 12 or taken.mean() > (0.3 if touching else 0.0):
            continue
        rr, cc = rr[~taken], cc[~taken]
        wholes[rr, cc] = number
        if nested:
            shift = rng.uniform(-0.3, 0.3, 2) * radius * (1 - inner)
            rr, cc = draw.polygon(rows * inner + centre[0] + shift[0], cols * inner + centre[1] + shift[1], (size, size))
            keep = wholes[rr, cc] == number
            parts[rr[keep], cc[keep]] = number
    return wholes, parts


def _tubes(rng: Rng, size: int) -> Labels:
    """Wandering tubes, some of them branching; crossing tubes join."""
    paths = np.ones((size, size), bool)
    for _ in range(int(rng.integers(1, 7))):
        at, heading = rng.uniform(0, size, 2), rng.uniform(0, 2 * np.pi)
        for turn in rng.normal(0, rng.uniform(0.05, 0.35), int(rng.uniform(0.4, 1.6) * size / 2)):
            heading += turn
            step = at + 2 * np.array([np.sin(heading), np.cos(heading)])
            rr, cc = draw.line(int(at[0]), int(at[1]), int(step[0]), int(step[1]))
            inside = (rr >= 0) & (rr < size) & (cc >= 0) & (cc < size)
            paths[rr[inside], cc[inside]] = False
            at = step
    width = np.exp(rng.uniform(np.log(1.2), np.log(9))) * (1 + 0.3 * smooth_noise(rng, size, size / 4)[0])
    labels, _ = ndimage.label(ndimage.distance_transform_edt(paths) < width, structure=np.ones((3, 3)))
    return labels.astype(np.int32)


def _textures(rng: Rng, size: int, count: int) -> Float:
    """(count, size, size) textures: smooth, fine, striped or grainy, unit variance."""
    out = []
    for _ in range(count):
        kind = rng.random()
        field = smooth_noise(rng, size, np.exp(rng.uniform(np.log(1.5), np.log(20))))[0]
        if kind < 0.2:
            phase = smooth_noise(rng, size, size / 3)[0] * rng.uniform(2, 8)
            field = np.sin(phase * rng.uniform(1, 4) + np.arange(size) * rng.uniform(0.1, 1.0)).astype(np.float32)
        elif kind < 0.4:
            field = field + smooth_noise(rng, size, 2.0)[0]
        elif kind < 0.55:
            field = (field > rng.uniform(0.5, 1.5)).astype(np.float32) * 2
        out.append(field / (field.std() + 1e-6))
    return np.stack(out).astype(np.float32)


def _paint(rng: Rng, canvas: Float, labels: Labels, kinds: int, contrast: float) -> Float:
    """``canvas`` (3, H, W) with every labelled region painted in the look of its kind; look-alikes share a kind."""
    size, top = canvas.shape[-1], int(labels.max())
    if top == 0:
        return canvas
    kind = rng.integers(0, kinds, top + 1)
    colour = rng.normal(0, contrast, (kinds, 1)) + rng.normal(0, contrast * 0.4, (kinds, 3))
    individual = rng.normal(0, contrast * rng.uniform(0, 0.25), (top + 1, 1))
    mean = (colour[kind] + individual).astype(np.float32)  # (ids, 3)
    textures = _textures(rng, size, min(kinds, 3))
    amplitude = (np.abs(rng.normal(0, 0.1, kinds))).astype(np.float32)
    alpha = (labels > 0).astype(np.float32)
    soft = rng.uniform(0.3, 2.5) if rng.random() < 0.6 else 0.0
    look = mean[labels].transpose(2, 0, 1) + canvas.mean(axis=(1, 2), keepdims=True)
    look = look + (amplitude[kind][labels] * textures[kind[labels] % len(textures), np.arange(size)[:, None], np.arange(size)])[None]
    if soft and rng.random() < 0.7:
        alpha = ndimage.gaussian_filter(alpha, soft)
    see_through = rng.uniform(0.0, 0.5) if rng.random() < 0.5 else 0.0
    painted = canvas + alpha[None] * (1 - see_through) * (look - canvas)
    if rng.random() < 0.45:
        edge = np.zeros(labels.shape, np.float32)
        edge[1:][labels[1:] != labels[:-1]] = 1
        edge[:, 1:][labels[:, 1:] != labels[:, :-1]] = 1
        edge = ndimage.gaussian_filter(edge, rng.uniform(0.5, 1.8))
        painted = painted + rng.normal(0, contrast * 1.2) * edge / (edge.max() + 1e-6)
    return np.asarray(painted, dtype=np.float32)


def _degrade(rng: Rng, image: Float) -> Float:
    """Blur, bias field, noise, speckle, loss of resolution along one axis, and a curve of contrast."""
    size = image.shape[-1]
    if rng.random() < 0.7:
        sigma = (
            np.exp(rng.uniform(np.log(0.3), np.log(2.2), 2))
            if rng.random() < 0.3
            else np.repeat(np.exp(rng.uniform(np.log(0.3), np.log(1.8))), 2)
        )
        image = ndimage.gaussian_filter(image, (0, sigma[0], sigma[1]))
    if rng.random() < 0.5:
        image = image * np.exp(rng.uniform(0, 0.5) * smooth_noise(rng, size, size * rng.uniform(0.5, 1.5)))
    if rng.random() < 0.3:
        image = image + rng.uniform(0, 0.5) * smooth_noise(rng, size, size * rng.uniform(0.4, 1.5))
    if rng.random() < 0.2:
        grain = smooth_noise(rng, size, rng.uniform(1, 4))
        image = image * (1 + rng.uniform(0.1, 0.5) * grain)
    if rng.random() < 0.8:
        channels = 3 if rng.random() < 0.3 else 1
        image = image + np.exp(rng.uniform(np.log(0.01), np.log(0.25))) * rng.standard_normal((channels, size, size), dtype=np.float32)
    if rng.random() < 0.15:
        step = int(rng.integers(2, 5))
        axis = int(rng.integers(1, 3))
        image = np.repeat(np.take(image, np.arange(0, size, step), axis), step, axis)[:, :size, :size]
    return image


def _occlude(rng: Rng, image: Float) -> tuple[Float, npt.NDArray[np.bool_]]:
    """Clipped fields of view, hair-like lines, burnt-in marks; and (H, W) what is still in view."""
    size = image.shape[-1]
    low, high = image.min(), image.max()
    in_view = np.ones((size, size), bool)
    if rng.random() < 0.12:
        rows, cols = np.mgrid[:size, :size]
        centre, radius = rng.uniform(0.35, 0.65, 2) * size, rng.uniform(0.45, 0.75) * size
        in_view = (rows - centre[0]) ** 2 + (cols - centre[1]) ** 2 <= radius**2
        image = np.where(in_view, image, low)
    if rng.random() < 0.1:
        image = image.copy()
        for _ in range(int(rng.integers(1, 10))):
            ends = rng.integers(0, size, 4)
            rr, cc = draw.line(*ends)
            image[:, rr, cc] = low if rng.random() < 0.7 else high
    if rng.random() < 0.08:
        image = image.copy()
        for _ in range(int(rng.integers(1, 12))):
            r, c = rng.integers(0, size - 10, 2)
            image[:, r : r + 7, c : c + int(rng.integers(1, 6))] = high
    return np.asarray(image, dtype=np.float32), in_view


def _to_uint8(rng: Rng, image: Float) -> npt.NDArray[np.uint8]:
    if rng.random() < 0.55:
        image = np.broadcast_to(image.mean(0, keepdims=True), image.shape)
    elif rng.random() < 0.7:
        image = image + rng.normal(0, 0.5, (3, 1, 1)).astype(np.float32)
    low, high = np.percentile(image, [0.5, 99.5])
    curve = np.clip((image - low) / (high - low + 1e-6), 0, 1) ** np.exp(rng.normal(0, 0.35))
    if rng.random() < 0.3:
        curve = 1 - curve
    return np.asarray(np.round(curve * 255), dtype=np.uint8)


def scene(seed: int | Rng, size: int = 224) -> Scene:
    """One random scene of ``size`` × ``size`` pixels; equal seeds give equal scenes."""
    rng = np.random.default_rng(seed)
    contrast = float(np.exp(rng.uniform(np.log(0.12), np.log(0.8))))
    canvas = np.zeros((3, size, size), np.float32) + 0.15 * _textures(rng, size, 1) * rng.random()
    layers: list[Labels] = []
    weights: list[float] = []
    ground = rng.random()
    if ground < 0.3:
        layers.append(_partition(rng, size))
        weights.append(1.0)
        canvas = _paint(rng, canvas, layers[-1], int(rng.integers(2, 6)), contrast)
    elif ground < 0.6:
        cells, gap = _cells(rng, size)
        membrane = rng.uniform(0.5, 3.5)
        inside = np.where(gap > membrane, cells, 0).astype(np.int32)
        layers.append(inside)
        weights.append(1.5)
        canvas = _paint(rng, canvas, inside, int(rng.integers(1, 4)), contrast)
        if rng.random() < 0.7:
            line = np.exp(-((gap / membrane) ** 2)).astype(np.float32)
            canvas = canvas + rng.choice([-1, 1]) * rng.uniform(0.5, 1.5) * contrast * line
    if ground >= 0.6 or rng.random() < 0.6:
        wholes, parts = _bodies(rng, size)
        if rng.random() < 0.15:
            wholes, parts = _tubes(rng, size), np.zeros((size, size), np.int32)
        kinds = int(rng.integers(1, 4))
        canvas = _paint(rng, canvas, wholes, kinds, contrast)
        canvas = _paint(rng, canvas, parts, kinds, contrast)
        layers = [np.where(wholes > 0, 0, layer).astype(np.int32) for layer in layers] + [wholes, parts]
        weights += [3.0, 1.5]
    canvas, in_view = _occlude(rng, _degrade(rng, canvas))
    layers = [np.where(in_view, layer, 0).astype(np.int32) for layer in layers]
    kept = [(layer, weight) for layer, weight in zip(layers, weights, strict=True) if layer.any()]
    if not kept:
        return scene(rng, size)
    return Scene(_to_uint8(rng, canvas), tuple(k[0] for k in kept), tuple(k[1] for k in kept))
