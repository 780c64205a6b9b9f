"""From clicks to a mask: look at the right window, run the network, paste back. The one home of network weights at work.

A prediction depends on nothing but the weights, the slice and the prompt, so that a session can be replayed. Zoom-in follows RITM and
SimpleClick (see ``look``); outside the window the previous answer stays, so that parts of a large object never vanish.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from napari_apprentice.guidance import WindowClick, click_maps
from napari_apprentice.knowledge import Knowledge, Shelf, Tensors
from napari_apprentice.networks import Output
from napari_apprentice.refinement import pixel_diffusion
from napari_apprentice.types import Box, Click, DeviceError, ImageSlice, InputError, Prediction, Prompt
from napari_apprentice.weights import LoadedWeights, load_weights
from napari_apprentice.windows import click_in_window, cut, inside, paste, paste_part, square, standardise

__all__ = ["HELD_LOGIT", "NetworkSegmenter", "View", "ZoomConfig", "pick_device"]

HELD_LOGIT = 0.1
"""Where the network does not obey a click, the answer is held there at plus or minus this."""


@dataclass(frozen=True)
class ZoomConfig:
    """Where the network looks.

    Attributes
    ----------
    size : working size in pixels of a window about an object that was found
    first_size : working size of the windows among which the first click chooses
    first_steps : ratio between the sides of neighbouring first windows
    first_stability : power to which the stability of a first look counts beside its estimated IoU; 0 for not at all
    first_others : at most so many answers of other scales are candidates beside the first answer
    smallest_side_px : no window is narrower, in slice pixels
    margin : side of the window over the extent of the object in it
    wider : factors of further windows about the same centre, whose answers are averaged in
    mirror : average in the answers to mirrored windows
    diffusion : weight of `refinement.pixel_diffusion` beside the logits; 0 for none
    keep_overlap : the window stays while the new one overlaps it by at least this IoU
    first_clicks : so many clicks may start the search for the object's scale again, by falling outside of the window
    local_clicks : from this click on an answer changes the mask only near the newest click; 0 for never
    local_reach : how near, over the root of the mask's area
    closer : a click after the first is also answered in a closer window about what it changed, whose side is that much wider than the
        change; 0 for never
    closer_clicks : from which click on
    late_clicks : from this click on the window is looked at at ``late_size``, and no wider one beside it; 0 for never
    late_size : working size then
    """

    size: int = 128
    first_size: int = 128
    first_steps: float = 2.0
    first_stability: float = 2.0
    first_others: int = 3
    smallest_side_px: int = 24
    margin: float = 1.7
    wider: tuple[float, ...] = (1.8,)
    mirror: bool = False
    diffusion: float = 0.0
    keep_overlap: float = 0.5
    first_clicks: int = 3
    local_clicks: int = 7
    local_reach: float = 0.1
    closer: float = 2.0
    closer_clicks: int = 2
    late_clicks: int = 7
    late_size: int = 192


@dataclass(frozen=True, eq=False)
class View:
    """What the network is shown: a window, its pixels, the clicks and the previous probability in it, all (1, C, n, n)."""

    window: Box
    image: Tensor
    guidance: Tensor
    previous: Tensor
    clicks: tuple[WindowClick, ...]


def pick_device(name: str) -> torch.device:
    """ "auto" is the best one there is.

    Raises
    ------
    DeviceError : that device is not there
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if there["cuda"] else "mps" if there["mps"] else "cpu")
    if name not in there:
        raise DeviceError(f"a device called {name!r} was asked for; expected auto, cpu, cuda or mps")
    if not there[name]:
        raise DeviceError(
            f"the device {name!r} was asked for, but PyTorch finds none here; expected one of {', '.join(k for k in there if there[k])}"
        )
    return torch.device(name)


class NetworkSegmenter:
    """A network that answers clicks in one slice (implements `types.Segmenter`).

    Parameters
    ----------
    weights : a file, loaded weights, or None for the shipped ones
    device : "auto", "cpu", "cuda" or "mps"
    zoom : where it looks
    undo_budget_bytes : memory for what was learnt before, see `knowledge.Shelf`; more than that waits on disk

    Attributes
    ----------
    importance : parameter name -> how much each value matters to the source domain, see `weights.LoadedWeights`; empty if that is unknown
    """

    CACHED_VIEWS = 8

    def __init__(
        self,
        weights: Path | str | LoadedWeights | None = None,
        device: str = "auto",
        zoom: ZoomConfig | None = None,
        undo_budget_bytes: int = 1 << 30,
    ) -> None:
        self.device = pick_device(device)
        self.loaded = weights if isinstance(weights, LoadedWeights) else load_weights(weights)
        self.network: nn.Module = self.loaded.network.to(self.device).eval()
        self.zoom = zoom or ZoomConfig()
        self.name = self.loaded.name
        self.importance = {k: v.to(self.device) for k, v in self.loaded.importance.items()}
        self.clock: dict[str, float] = {"encode": 0.0, "decode": 0.0, "adapt": 0.0}
        self._pixels: OrderedDict[Any, Tensor] = OrderedDict()
        self._shelf = Shelf(undo_budget_bytes)
        self._knowledge = Knowledge(Tensors({k: v.detach().clone() for k, v in self.network.named_parameters()}))
        self.base = self._knowledge

    # --- what is learnt ---

    def snapshot(self) -> Knowledge:
        """All that was learnt so far, by reference."""
        return self._knowledge

    def restore(self, snapshot: Knowledge) -> None:
        """Go back to ``snapshot``, bit for bit."""
        current = self._knowledge.weights
        parameters = dict(self.network.named_parameters())
        with torch.no_grad():
            for key, value in snapshot.weights.items():
                if current[key] is not value:
                    parameters[key].copy_(value)
        self._knowledge = snapshot
        self._shelf.keep(snapshot)

    def describe(self) -> dict[str, Any]:
        """Facts for people: the network, its size, where the weights come from."""
        count = sum(p.numel() for p in self.network.parameters())
        facts = {
            "network": self.name,
            "parameters": count,
            "digest": self.loaded.digest,
            "device": str(self.device),
            "working size": self.zoom.size,
            "importance of weights": "known" if self.importance else "not known: learning from corrections (ia, sa) holds all alike",
        }
        return facts | dict(self.loaded.facts)

    # --- where to look ---

    def grown_window(self, prompt: Prompt, shape: tuple[int, int]) -> Box:
        """The window about the previous mask and the positive clicks."""
        points = [c.voxel for c in prompt.clicks if c.positive] or [c.voxel for c in prompt.clicks]
        rows, cols = [p[0] for p in points], [p[1] for p in points]
        previous = prompt.previous
        if previous is not None and (mask := previous.mask_in_box).any():
            where_rows, where_cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            rows += [previous.box.top + int(where_rows[0]), previous.box.top + int(where_rows[-1])]
            cols += [previous.box.left + int(where_cols[0]), previous.box.left + int(where_cols[-1])]
        extent = max(max(rows) - min(rows), max(cols) - min(cols)) + 1
        side = max(extent * self.zoom.margin, self.zoom.smallest_side_px)
        side = min(side, 1.15 * max(shape))
        return square(((min(rows) + max(rows)) / 2, (min(cols) + max(cols)) / 2), side)

    def _window(self, prompt: Prompt, shape: tuple[int, int]) -> Box:
        """The grown window, or the one of the previous look while it still does."""
        new = self.grown_window(prompt, shape)
        old = prompt.previous.view if prompt.previous is not None else None
        if old is None:
            return new
        row, col = prompt.clicks[-1].voxel
        holds = old.top <= row < old.bottom and old.left <= col < old.right
        return old if holds and _overlap(old, new) >= self.zoom.keep_overlap else new

    def first_windows(self, click: Click, shape: tuple[int, int]) -> list[Box]:
        """From the whole slice down to a small window about the first click."""
        side, windows = float(max(shape)), []
        while True:
            centre = tuple(
                (s - 1) / 2 if side >= s else min(max(v, side / 2 - 0.5), s - side / 2 - 0.5)
                for v, s in zip(click.voxel, shape, strict=True)
            )
            windows.append(square(centre, side))  # type: ignore[arg-type]
            side /= self.zoom.first_steps
            if side < self.zoom.smallest_side_px:
                return windows

    # --- what the network is shown ---

    def _image(self, image_slice: ImageSlice, window: Box, size: int) -> Tensor:
        """(1, 3, size, size) standardised pixels on the device; the newest few are kept."""
        key = (image_slice.key, window, size) if image_slice.key is not None else None
        if key is not None and key in self._pixels:
            self._pixels.move_to_end(key)
            return self._pixels[key]
        began = time.perf_counter()
        pixels = standardise(cut(image_slice.data, window, size))[None].to(self.device)
        if key is not None:
            self._pixels[key] = pixels
            while len(self._pixels) > self.CACHED_VIEWS:
                self._pixels.popitem(last=False)
        self.clock["encode"] += time.perf_counter() - began
        return pixels

    def maps(self, clicks: Sequence[WindowClick], size: int) -> Tensor:
        """(1, 2, size, size) click maps as this network was made for."""
        config: Any = self.network.config
        return click_maps(clicks, (size, size), config.guidance, config.disk_radius_px)[None].to(self.device)

    def look(self, image_slice: ImageSlice, prompt: Prompt, window: Box | None = None, size: int | None = None) -> View:
        """What the network would be shown for ``prompt``; ``window`` and ``size`` default to what `predict` would choose."""
        window = window or self._window(prompt, image_slice.shape)
        size = size or self.zoom.size
        clicks = tuple(click_in_window(c, window, size) for c in _standing(prompt.clicks))
        previous = torch.zeros(1, 1, size, size)
        if prompt.previous is not None:
            previous = _previous_in_window(prompt.previous, window, size)
        return View(window, self._image(image_slice, window, size), self.maps(clicks, size), previous.to(self.device), clicks)

    def run(self, image: Tensor, guidance: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """``(logits (B, 1, n, n), estimated IoU (B,))``, with gradient if the caller wants one."""
        output = self._say(image, guidance, previous)
        return output.logits, torch.sigmoid(output.iou_logits)

    def _say(self, image: Tensor, guidance: Tensor, previous: Tensor) -> Output:
        network: Any = self.network
        return network.decode(network.encode(image), guidance, previous)

    # --- the answer ---

    def predict(self, image_slice: ImageSlice, prompt: Prompt) -> Prediction:
        """The mask for all clicks so far; at the first click it looks at several scales and takes the most credible one.

        Where the network proposes several masks, the others are candidates: as it said them, neither averaged nor refined. Where it does
        not, the masks of the other scales are, as long as there is no scale to go by.
        """
        if not prompt.clicks:
            raise InputError("a prompt without clicks arrived; expected at least one click")
        with torch.no_grad(), self.timed("decode"):
            proposals: list[_Proposal] = []
            if self._lost(prompt):
                first, proposals = self._first(image_slice, prompt)
                prompt = replace(prompt, previous=first)
            answer, newest = self._answer(image_slice, prompt, self._window(prompt, image_slice.shape))
            if newest:
                return replace(answer, candidates=_distinct(answer, [*newest, *proposals], len(newest) - 1))
            return replace(answer, candidates=_distinct(answer, proposals, self.zoom.first_others, _OTHER_SCALE_IOU))

    def _answer(self, image_slice: ImageSlice, prompt: Prompt, window: Box) -> tuple[Prediction, list[_Proposal]]:
        """The network's mean word on a window and a wider one, each also mirrored, pasted over the previous prediction; and proposals."""
        late = 0 < self.zoom.late_clicks <= len(prompt.clicks)
        wider = [] if late else [w for f in self.zoom.wider if (w := _widened(window, f, image_slice.shape)) != window]
        word, score, output = self._word(image_slice, prompt, [window, *wider], self.zoom.late_size if late else self.zoom.size)
        answer = self._pasted(word, prompt, window, image_slice.shape, score)
        if self.zoom.closer and len(prompt.clicks) >= self.zoom.closer_clicks and prompt.previous is not None:
            answer = self._closer(image_slice, prompt, answer)
        return answer, self._proposals(output, 0, prompt, window, image_slice.shape)

    def _word(self, image_slice: ImageSlice, prompt: Prompt, windows: Sequence[Box], size: int) -> tuple[Tensor, float, Output]:
        """The network's mean word on the first of ``windows`` (n, n), refined; its estimated IoU; and all that it said."""
        views = [self.look(image_slice, prompt, w, size) for w in windows]
        parts = [torch.cat([getattr(v, name) for v in views]) for name in ("image", "guidance", "previous")]
        if self.zoom.mirror:
            parts = [torch.cat([p, p.flip(3)]) for p in parts]
        output = self._say(*parts)
        logits, iou = output.logits, torch.sigmoid(output.iou_logits)
        if self.zoom.mirror:
            logits = (logits[: len(views)] + logits[len(views) :].flip(3)) / 2
        words = [_seen_through(z, w, windows[0]) for z, w in zip(logits[:, 0].float(), windows, strict=True)]
        word = torch.stack(words).mean(0)
        if self.zoom.diffusion:
            word = word + self.zoom.diffusion * pixel_diffusion(word, views[0].image[0], views[0].clicks)
        return word, float(iou.mean()), output

    def _closer(self, image_slice: ImageSlice, prompt: Prompt, answer: Prediction) -> Prediction:
        """The answer again, from a closer window about what the newest click changed. After the focus crop of FocalClick (2022)."""
        assert prompt.previous is not None
        extent = _extent_of_change(answer, prompt.previous, prompt.clicks[-1])
        side = max(extent.shape[0], extent.shape[1]) * self.zoom.closer
        seen = answer.view
        assert seen is not None
        if extent.shape == (0, 0) or max(side, self.zoom.smallest_side_px) > 0.7 * seen.shape[0]:
            return answer
        centre = (extent.top + extent.bottom - 1) / 2, (extent.left + extent.right - 1) / 2
        window = square(centre, max(side, self.zoom.smallest_side_px))
        now = replace(prompt, previous=answer)
        word, _, _ = self._word(image_slice, now, [window], self.zoom.size)
        known = torch.logit(_previous_in_window(answer, window, self.zoom.size)[0, 0].clamp(1e-6, 1 - 1e-6)).to(word)
        pasted, box = paste((word + known) / 2, window, image_slice.shape)
        return _over(answer, pasted, box, image_slice.shape, seen, answer.score, prompt.clicks)

    def _pasted(self, word: Tensor, prompt: Prompt, window: Box, shape: tuple[int, int], score: float) -> Prediction:
        """What the network said of a window (n, n), over the previous prediction; a late click changes that near itself alone."""
        pasted, box = paste(word, window, shape)
        answer = _over(prompt.previous, pasted, box, shape, window, score, prompt.clicks)
        if prompt.previous is None or not 0 < self.zoom.local_clicks <= len(prompt.clicks):
            return answer
        return _changed_near(answer, prompt.previous, prompt.clicks[-1], self.zoom.local_reach)

    def _proposals(self, output: Output, view: int, prompt: Prompt, window: Box, shape: tuple[int, int]) -> list[_Proposal]:
        """All masks that the network proposed in one of the views; none if it says only one."""
        if output.candidates is None or output.scores is None:
            return []
        ious = output.candidate_iou_logits
        scores = [math.nan] * output.scores.shape[1] if ious is None else torch.sigmoid(ious[view]).tolist()
        return [
            _Proposal(chance, self._pasted(word.float(), prompt, window, shape, score), bool((word > 0).any()))
            for word, chance, score in zip(output.candidates[view], output.scores[view].tolist(), scores, strict=True)
        ]

    def _lost(self, prompt: Prompt) -> bool:
        """Whether to look for the object's scale: at the start, and when an early click says that it was wrong.

        A positive one outside of what was looked at says that the object is larger, a negative one deep inside the mask that it is smaller.
        """
        previous = prompt.previous
        if previous is None or not previous.mask_in_box.any():
            return True
        newest = prompt.clicks[-1]
        if previous.view is None or len(prompt.clicks) > self.zoom.first_clicks:
            return False
        if not newest.positive:
            return _deep_inside(previous, newest)
        row, col = newest.voxel
        view = previous.view
        return not (view.top <= row < view.bottom and view.left <= col < view.right)

    def _first(self, image_slice: ImageSlice, prompt: Prompt) -> tuple[Prediction, list[_Proposal]]:
        """The most credible of the first looks: by its estimated IoU, its outline's sharpness, its margin to the border, and usual sizes.

        With it the masks that were proposed in the same look, or else those of the other looks.
        """
        size, shape = self.zoom.first_size, image_slice.shape
        anchor = next((c for c in prompt.clicks if c.positive), prompt.clicks[-1])
        windows = [w for i, w in enumerate(self.first_windows(anchor, shape)) if i == 0 or _holds(w, prompt.clicks)]
        windows = [w for w in windows if w.bottom - w.top <= _reach(anchor, prompt.clicks)] or windows[-1:]
        views = [self.look(image_slice, Prompt(prompt.clicks), w, size) for w in windows]
        output = self._say(
            torch.cat([v.image for v in views]), torch.cat([v.guidance for v in views]), torch.cat([v.previous for v in views])
        )
        logits, iou = output.logits, torch.sigmoid(output.iou_logits)
        agreement = _agreement(logits[:, 0] > 0, windows)
        scores = [
            float(i)
            * _stability(found) ** self.zoom.first_stability
            * _credibility(found > 0, window, shape)
            * self._usual(found > 0, window, shape)
            * (0.2 + 0.8 * agreed)
            for i, found, window, agreed in zip(iou, logits[:, 0], windows, agreement, strict=True)
        ]
        best = int(np.argmax(scores))
        pasted, box = paste(logits[best, 0].float(), windows[best], shape)
        proposals = self._proposals(output, best, Prompt(prompt.clicks), windows[best], shape)
        if not proposals and self.zoom.first_others:
            found = zip(scores, logits[:, 0].float(), windows, iou.tolist(), strict=True)
            others = [_of_scale(*one, shape, prompt.clicks) for number, one in enumerate(found) if number != best]
            proposals = [other for other in others if other is not None]
        return Prediction(pasted, box, shape, None, float(iou[best])), proposals

    def _usual(self, mask: Tensor, window: Box, shape: tuple[int, int]) -> float:
        """How well the mask's extent fits the extents of accepted objects, 0..1; 1 before anything was accepted."""
        total, squares, count = self._knowledge.extent_log
        if count < 1 or not bool(mask.any()):
            return 1.0
        extent = math.log(max(float(mask.sum()), 1.0) ** 0.5 * (window.bottom - window.top) / mask.shape[-1] / max(shape))
        mean = total / count
        spread = max(squares / count - mean**2, 0.0) + 0.6**2 + 1.0 / count**2
        return math.exp(-0.5 * (extent - mean) ** 2 / spread)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Count the seconds of a block under ``name``, less what inner blocks and encoding counted."""
        began, counted = time.perf_counter(), sum(self.clock.values())
        try:
            yield
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.clock[name] += time.perf_counter() - began - (sum(self.clock.values()) - counted)


class _Proposal(NamedTuple):
    """A mask that the network proposed, how likely it is meant in comparison with others, and whether there is anything in it."""

    chance: float
    prediction: Prediction
    full: bool


_OTHER_SCALE_IOU = 0.8
"""Masks of two scales that are more alike than this say the same."""
_LARGEST_OTHER_PX = 1 << 21
"""No mask of another scale is offered that would take longer to paste than a click should."""


def _of_scale(chance: float, word: Tensor, window: Box, score: float, shape: tuple[int, int], clicks: Sequence[Click]) -> _Proposal | None:
    """What was said of a window (n, n) as a proposal, in the box of its mask alone; None if there is none, or far too large a one."""
    rows, cols = (np.flatnonzero((word > 0).any(axis).cpu().numpy()) for axis in (1, 0))
    if len(rows) == 0:
        return None
    scale = (window.bottom - window.top) / word.shape[-1]
    about = Box(
        math.floor(window.top + (rows[0] - 1) * scale),
        math.floor(window.left + (cols[0] - 1) * scale),
        math.ceil(window.top + (rows[-1] + 2) * scale),
        math.ceil(window.left + (cols[-1] + 2) * scale),
    )
    part = inside(_shared(about, window), shape)
    if part.shape[0] * part.shape[1] > _LARGEST_OTHER_PX:
        return None
    return _Proposal(chance, _over(None, paste_part(word, window, part), part, shape, window, score, clicks), True)


def _distinct(answer: Prediction, proposals: Sequence[_Proposal], most: int, same_iou: float = 0.95) -> tuple[Prediction, ...]:
    """At most ``most`` proposals, the likeliest first, that are not empty and differ from the answer and from each other."""
    kept: list[Prediction] = []
    for proposal in sorted(proposals, key=lambda p: -p.chance):
        found = proposal.prediction
        if proposal.full and len(kept) < most and all(_iou(found, other) < same_iou for other in (answer, *kept)):
            kept.append(found)
    return tuple(kept)


def _iou(a: Prediction, b: Prediction) -> float:
    """IoU of the masks of two predictions of a slice."""
    shared = _shared(a.box, b.box)
    both = int((a.mask_in_box[_within(shared, a.box)] & b.mask_in_box[_within(shared, b.box)]).sum())
    return both / max(int(a.mask_in_box.sum()) + int(b.mask_in_box.sum()) - both, 1)


def _reach(anchor: Click, clicks: Sequence[Click]) -> float:
    """Largest side of a window about an object that does not reach from ``anchor`` to the nearest negative click; infinite without one."""
    away = [math.dist(anchor.voxel, c.voxel) for c in clicks if not c.positive]
    return 3.0 * min(away) if away and anchor.positive else math.inf


def _deep_inside(prediction: Prediction, click: Click) -> bool:
    """Whether the mask goes on around the click on all sides, for a fifth of its own extent."""
    mask, box = prediction.mask_in_box, prediction.box
    row, col = click.voxel[0] - box.top, click.voxel[1] - box.left
    reach = max(round(0.2 * float(mask.sum()) ** 0.5), 1)
    if row < reach or col < reach or row + reach >= mask.shape[0] or col + reach >= mask.shape[1]:
        return False
    return float(mask[row - reach : row + reach + 1, col - reach : col + reach + 1].mean()) > 0.95


def _standing(clicks: Sequence[Click]) -> list[Click]:
    """The clicks without those that a later click on the same pixel took back."""
    newest = {c.voxel: i for i, c in enumerate(clicks)}
    return [c for i, c in enumerate(clicks) if newest[c.voxel] == i]


def _holds(window: Box, clicks: Sequence[Click]) -> bool:
    """Whether all positive clicks lie in the window."""
    return all(window.top <= c.voxel[0] < window.bottom and window.left <= c.voxel[1] < window.right for c in clicks if c.positive)


def _overlap(a: Box, b: Box) -> float:
    """IoU of two boxes."""
    height = min(a.bottom, b.bottom) - max(a.top, b.top)
    width = min(a.right, b.right) - max(a.left, b.left)
    shared = max(height, 0) * max(width, 0)
    return shared / (a.shape[0] * a.shape[1] + b.shape[0] * b.shape[1] - shared)


def _credibility(mask: Tensor, window: Box, shape: tuple[int, int]) -> float:
    """Lower for a mask that is empty, tiny at this scale, or cut off by the window where the slice goes on."""
    if not bool(mask.any()):
        return 0.01
    cut_off = [
        window.top > 0 and mask[0],
        window.left > 0 and mask[:, 0],
        window.bottom < shape[0] and mask[-1],
        window.right < shape[1] and mask[:, -1],
    ]
    touching = sum(float(side.float().mean()) for side in cut_off if isinstance(side, Tensor))
    tiny = min(1.0, float(mask.sum()) / (0.006 * mask.numel()))
    return max(1.0 - 2.5 * touching, 0.05) * (0.4 + 0.6 * tiny)


def _widened(window: Box, factor: float, shape: tuple[int, int]) -> Box:
    """The window grown about its centre, though hardly beyond the slice."""
    side = window.bottom - window.top
    wider = max(min(side * factor, 1.15 * max(shape)), side)
    return square(((window.top + window.bottom - 1) / 2, (window.left + window.right - 1) / 2), wider)


def _seen_through(values: Tensor, wide: Box, narrow: Box) -> Tensor:
    """The part of ``values`` (n, n), seen in the window ``wide``, that lies in ``narrow``, again (n, n)."""
    if wide == narrow:
        return values
    side = wide.bottom - wide.top
    zoom = (narrow.bottom - narrow.top) / side
    down, right = (narrow.top + narrow.bottom - wide.top - wide.bottom) / side, (narrow.left + narrow.right - wide.left - wide.right) / side
    grid = F.affine_grid(values.new_tensor([[[zoom, 0.0, right], [0.0, zoom, down]]]), [1, 1, *values.shape], align_corners=False)
    return F.grid_sample(values[None, None], grid, padding_mode="border", align_corners=False)[0, 0]


def _stability(logits: Tensor) -> float:
    """IoU of the masks at thresholds a little higher and lower than 0: how sharp the outline is. Source: Segment Anything (2023)."""
    return float((logits > 1).sum()) / max(float((logits > -1).sum()), 1.0)


def _agreement(masks: Tensor, windows: Sequence[Box]) -> list[float]:
    """How far each look (masks (V, n, n), from wide to narrow windows) agrees with its neighbours: the better of two IoUs, in 0..1.

    Where the scale is right, the next wider or narrower look finds the same thing; a guess that only follows the window does not.
    """
    if len(windows) == 1:
        return [1.0]
    ious = []
    for wide, narrow, seen, found in zip(windows, windows[1:], masks, masks[1:], strict=False):
        part = _seen_through(seen.float(), wide, narrow) > 0.5
        ious.append(float((part & found).sum()) / max(float((part | found).sum()), 1.0))
    return [max(left, right) for left, right in zip([0.0, *ious], [*ious, 0.0], strict=True)]


def _previous_in_window(previous: Prediction, window: Box, size: int) -> Tensor:
    """(1, 1, size, size) probability of the previous prediction, 0 outside what it covered."""
    box = previous.box
    shifted = Box(window.top - box.top, window.left - box.left, window.bottom - box.top, window.right - box.left)
    if shifted.top >= box.shape[0] or shifted.left >= box.shape[1] or shifted.bottom <= 0 or shifted.right <= 0:
        return torch.zeros(1, 1, size, size)
    return torch.sigmoid(cut(previous.logits[None], shifted, size, fill=-20.0))[None]


def _over(
    previous: Prediction | None,
    logits: npt.NDArray[np.float32],
    box: Box,
    shape: tuple[int, int],
    view: Box,
    score: float,
    clicks: Sequence[Click],
) -> Prediction:
    """New logits over the previous ones; every clicked pixel says what the user said."""
    if previous is not None and previous.mask_in_box.any():
        previous = _trimmed(previous)
        whole = Box(
            min(box.top, previous.box.top),
            min(box.left, previous.box.left),
            max(box.bottom, previous.box.bottom),
            max(box.right, previous.box.right),
        )
        if whole != box:
            canvas = np.full(whole.shape, -20.0, dtype=np.float32)
            canvas[_within(previous.box, whole)] = previous.logits
            canvas[_within(box, whole)] = logits
            logits, box = canvas, whole
    for click in clicks:
        row, col = click.voxel[0] - box.top, click.voxel[1] - box.left
        if 0 <= row < logits.shape[0] and 0 <= col < logits.shape[1]:
            logits[row, col] = max(logits[row, col], HELD_LOGIT) if click.positive else min(logits[row, col], -HELD_LOGIT)
    return Prediction(logits, box, shape, view, score)


def _changed_near(new: Prediction, old: Prediction, click: Click, reach: float) -> Prediction:
    """``new`` where its mask changes in one piece with the click, or within ``reach`` times the root of the old area; else as it was.

    A late correction is about one place, and what was finished elsewhere stays so: the progressive merge of FocalClick (Chen et al., 2022).
    """
    before = np.full(new.logits.shape, -20.0, dtype=np.float32)
    shared = _shared(new.box, old.box)
    if not old.mask_in_box.any() or 0 in shared.shape:
        return new
    before[_within(shared, new.box)] = old.logits[_within(shared, old.box)]
    pieces, count = ndimage.label((before > 0) != new.mask_in_box, structure=np.ones((3, 3)))
    rows, cols = np.ogrid[: pieces.shape[0], : pieces.shape[1]]
    distance = np.hypot(rows + new.box.top - click.voxel[0], cols + new.box.left - click.voxel[1])
    nearest = ndimage.minimum(distance, pieces, np.arange(1, count + 1))
    stays = np.concatenate([[False], nearest > reach * float((before > 0).sum()) ** 0.5])
    return replace(new, logits=np.where(stays[pieces], before, new.logits))


def _extent_of_change(new: Prediction, old: Prediction, click: Click) -> Box:
    """The box of what changed in one piece with the click, or nearest to it; an empty one where nothing changed."""
    before = np.zeros(new.logits.shape, dtype=bool)
    box, shared = new.box, _shared(new.box, old.box)
    before[_within(shared, box)] = old.mask_in_box[_within(shared, old.box)]
    pieces, count = ndimage.label(before != new.mask_in_box, structure=np.ones((3, 3)))
    if not count:
        return Box(click.voxel[0], click.voxel[1], click.voxel[0], click.voxel[1])
    rows, cols = np.nonzero(pieces)
    nearest = np.argmin(np.hypot(rows + box.top - click.voxel[0], cols + box.left - click.voxel[1]))
    where = ndimage.find_objects(pieces)[pieces[rows[nearest], cols[nearest]] - 1]
    return Box(box.top + where[0].start, box.left + where[1].start, box.top + where[0].stop, box.left + where[1].stop)


def _shared(a: Box, b: Box) -> Box:
    """Where both are; an empty box if nowhere."""
    top, left = max(a.top, b.top), max(a.left, b.left)
    return Box(top, left, max(min(a.bottom, b.bottom), top), max(min(a.right, b.right), left))


def _trimmed(prediction: Prediction) -> Prediction:
    """The same masks in the smallest box that holds the foreground."""
    mask = prediction.mask_in_box
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    inner = Box(int(rows[0]), int(cols[0]), int(rows[-1]) + 1, int(cols[-1]) + 1)
    box = Box(
        prediction.box.top + inner.top,
        prediction.box.left + inner.left,
        prediction.box.top + inner.bottom,
        prediction.box.left + inner.right,
    )
    return replace(prediction, logits=prediction.logits[inner.slices], box=box)


def _within(box: Box, whole: Box) -> tuple[slice, slice]:
    return Box(box.top - whole.top, box.left - whole.left, box.bottom - whole.top, box.right - whole.left).slices
