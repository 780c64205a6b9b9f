"""From clicks to a mask: look at the right window, run the network, paste back. The one home of network weights at work.

A prediction depends on nothing but the weights, the slice and the prompt, so that a session can be replayed. `zoom` says where to look,
`scales` which of the first looks to believe, `merging` what becomes of the previous answer, `proposals` which other masks there are.
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
import torch
from torch import Tensor, nn

from napari_apprentice.boxes import beside, inscribed
from napari_apprentice.guidance import WindowClick, click_maps
from napari_apprentice.knowledge import ENOUGH_TO_COMPARE, Knowledge, Remembered, Shelf, Tensors, kind_of
from napari_apprentice.merging import HELD_LOGIT, changed_near, extent_of_change, laid_over, probability_in_window, without_piece
from napari_apprentice.networks import Output, Recalled
from napari_apprentice.proposals import OTHER_SCALE_IOU, Proposal, distinct, of_scale, outdoes
from napari_apprentice.refinement import pixel_diffusion
from napari_apprentice.scales import credibilities
from napari_apprentice.types import Box, Click, DeviceError, ImageSlice, InputError, Prediction, Prompt
from napari_apprentice.weights import LoadedWeights, load_weights
from napari_apprentice.windows import click_in_window, cut, paste, seen_through, standardise
from napari_apprentice.zoom import ZoomConfig, widened

__all__ = ["HELD_LOGIT", "NetworkSegmenter", "View", "ZoomConfig", "pick_device"]


@dataclass(frozen=True, eq=False)
class View:
    """What the network is shown: a window, its pixels, the clicks and the previous probability in it, all (1, C, n, n)."""

    window: Box
    image: Tensor
    guidance: Tensor
    previous: Tensor
    clicks: tuple[WindowClick, ...]


class _Read(NamedTuple):
    """What the network makes of R examples: each in its closest view, and what each looks like from farther away (R, F)."""

    recalled: Sequence[Recalled]
    appearance: Tensor


_NOTHING_READ = _Read((), torch.zeros(0, 1))


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
    parameters : of the network, by name
    importance : parameter name -> how much each value matters to the source domain, see `weights.LoadedWeights`; empty if that is unknown
    """

    CACHED_VIEWS = 8
    CACHED_EXAMPLES = 4

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
        self.parameters = dict(self.network.named_parameters())
        self._knowledge = Knowledge(Tensors({k: v.detach().clone() for k, v in self.parameters.items()}, stays=True))
        self.base = self._knowledge
        self._recalled: list[tuple[Tensors, Sequence[Tensor], _Read]] = []

    @property
    def weights_path(self) -> Path | None:
        """The file that the weights come from, if they come from one."""
        return self.loaded.path

    # --- what is learnt ---

    def snapshot(self) -> Knowledge:
        """All that was learnt so far, by reference."""
        return self._knowledge

    def restore(self, snapshot: Knowledge) -> None:
        """Go back to ``snapshot``, bit for bit."""
        current = self._knowledge.weights
        with torch.no_grad():
            for key, value in snapshot.weights.items():
                if current[key] is not value:
                    self.parameters[key].copy_(value)
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
        window = window or self.zoom.window(prompt, image_slice.shape)
        size = size or self.zoom.size
        boxes = [click.box for click in prompt.clicks if click.box is not None]
        spoken_of = boxes[-1:] if not self.zoom.late_clicks or len(prompt.clicks) < self.zoom.late_clicks else []
        said = [*(c for box in spoken_of for c in beside(box, image_slice.shape)), *_standing(prompt.points)]
        clicks = tuple(click_in_window(c, window, size) for c in said)
        previous = torch.zeros(1, 1, size, size)
        if prompt.previous is not None:
            previous = probability_in_window(prompt.previous, window, size)
        return View(window, self._image(image_slice, window, size), self.maps(clicks, size), previous.to(self.device), clicks)

    @property
    def reads_examples(self) -> bool:
        """Whether the network makes something of remembered objects that it is shown."""
        config: Any = self.network.config
        return bool(getattr(config, "recall", 0))

    def recollected(self, examples: int | None = None, kind: str = "") -> Sequence[Recalled]:
        """What the network makes of remembered objects, each in its closest view; empty where there are none, or it reads none.

        The newest few sets of examples are kept, as objects of several kinds take turns.

        Parameters
        ----------
        examples : how many of them; None for as many as it is to be shown (`Knowledge.examples`)
        kind : of the object that they are for, see `Knowledge.like`
        """
        return self._read(examples, kind).recalled

    def _read(self, examples: int | None, kind: str) -> _Read:
        known = self._knowledge
        objects = known.like(kind, known.examples if examples is None else examples) if self.reads_examples else ()
        if not objects:
            return _NOTHING_READ
        weights, pictures = known.weights, [one.images for one in objects]
        kept = [one for one in self._recalled if one[0] is weights]
        found = next((one for one in kept if _same(one[1], pictures)), None) or (weights, pictures, self._recollect(objects))
        self._recalled = [*(one for one in kept if one is not found), found][-self.CACHED_EXAMPLES :]
        return found[2]

    def _recollect(self, objects: Sequence[Remembered]) -> _Read:
        network: Any = self.network
        closest, farthest = [one.view(len(one.clicks) - 1) for one in objects], [one.view(0) for one in objects]
        targets = torch.cat([one.targets for one in closest]).float().to(self.device)
        with torch.no_grad():
            recalled = network.recollect(*(part[None] for part in (*self._clicked_once(closest), targets)))
            return _Read(recalled, network.appearance(*self._clicked_once(farthest)))

    def _clicked_once(self, views: Sequence[Remembered]) -> tuple[Tensor, Tensor]:
        """Pixels (R, 3, n, n) of remembered objects in one view each, and a map (R, 2, n, n) of the first positive click in each."""
        images = torch.cat([one.images for one in views]).float().to(self.device)
        firsts = [next((c for c in one.clicks[0] if c.positive), one.clicks[0][0]) for one in views]
        return images, torch.cat([self.maps([click], images.shape[-1]) for click in firsts])

    def _examples(self, prompt: Prompt) -> Sequence[Recalled]:
        """What the network is shown beside the clicks of a slice: nothing where that is not like the examples."""
        known = prompt.previous is None or prompt.previous.familiar
        return self.recollected(kind=kind_of(prompt.kind)) if known else ()

    def _compares(self, kind: str) -> bool:
        """Whether there are enough examples to tell what is like them."""
        known = self._knowledge
        return self.reads_examples and len(known.like(kind, known.examples)) >= ENOUGH_TO_COMPARE

    def _is_familiar(self, image: Tensor, guidance: Tensor, kind: str) -> bool:
        """Whether any of the first looks (V, C, n, n) looks like any of the examples; true of too few examples."""
        if not self._compares(kind):
            return True
        network: Any = self.network
        apart = network.appearance(image, guidance)[:, None] - self._read(None, kind).appearance
        return float(apart.square().mean(2).sqrt().min()) <= self.zoom.familiar

    def run(self, image: Tensor, guidance: Tensor, previous: Tensor, examples: Sequence[Recalled] = ()) -> tuple[Tensor, Tensor]:
        """``(logits (B, 1, n, n), estimated IoU (B,))``, with gradient if the caller wants one; ``examples`` as of `recollected`."""
        output = self._say(image, guidance, previous, examples)
        return output.logits, torch.sigmoid(output.iou_logits)

    def _say(self, image: Tensor, guidance: Tensor, previous: Tensor, examples: Sequence[Recalled] = ()) -> Output:
        network: Any = self.network
        shown = (examples,) if examples else ()  # most networks read none
        return network.decode(network.encode(image), guidance, previous, *shown)

    # --- the answer ---

    def predict(self, image_slice: ImageSlice, prompt: Prompt) -> Prediction:
        """The mask for all clicks so far; at the first click it looks at several scales and takes the most credible one.

        Where the network proposes several masks, the others are candidates: as it said them, neither averaged nor refined. Where it does
        not, the masks of the other scales are, as long as there is no scale to go by.
        """
        if not prompt.clicks:
            raise InputError("a prompt without clicks arrived; expected at least one click")
        if (box := prompt.clicks[-1].box) is not None:
            with torch.no_grad(), self.timed("decode"):
                return self._boxed(image_slice, prompt, box)
        if prompt.previous is not None and self.zoom.is_denied(prompt):
            return without_piece(prompt.previous, prompt.clicks[-1])
        with torch.no_grad(), self.timed("decode"):
            if self.zoom.is_lost(prompt):
                return self._searched(image_slice, prompt)
            previous = prompt.previous
            assert previous is not None
            drawn = previous.view is None
            diffusion = self.zoom.given_diffusion if drawn else self.zoom.diffusion
            lean = 0.0 if drawn or previous.given else self.zoom.lean(prompt.clicks)
            answer, newest = self._answer(image_slice, prompt, self.zoom.window(prompt, image_slice.shape), diffusion, lean)
            answer = replace(answer, candidates=distinct(answer, newest, len(newest) - 1))
            return self._outgrown(image_slice, prompt, answer) if self.zoom.is_outgrown(prompt) else answer

    def _boxed(self, image_slice: ImageSlice, prompt: Prompt, box: Box) -> Prediction:
        """The answer to a box: what is in it, whatever was said so far; the ellipse in it where the network sees nothing."""
        shape, kind = image_slice.shape, kind_of(prompt.kind)
        middle, familiar = Click(prompt.clicks[-1].voxel), True
        if self._compares(kind):
            looks = self.zoom.first_windows(middle, shape)
            views = [self.look(image_slice, Prompt((middle,)), w, self.zoom.first_size) for w in looks]
            parts = _together(views)
            familiar = self._is_familiar(parts[0], parts[1], kind)
        outline = inscribed(box, shape, familiar=familiar)
        window = self.zoom.grown_window(Prompt((middle,), outline), shape)
        windows = [window, *(w for f in self.zoom.wider if (w := widened(window, f, shape)) != window)]
        asked = Prompt((*prompt.points, *beside(box, shape), middle), outline, prompt.kind)
        word, score, output = self._word(image_slice, asked, windows, self.zoom.size, 0.0, 0.0)
        answer = self._pasted(word, Prompt(prompt.points), window, shape, score)
        answer = replace(answer, familiar=familiar)
        if not answer.mask_in_box.any():
            return replace(outline, view=window, score=score)
        newest = self._proposals(output, 0, Prompt(prompt.points), window, shape)
        newest = [one._replace(prediction=replace(one.prediction, familiar=familiar)) for one in newest]
        return replace(answer, candidates=distinct(answer, newest, len(newest) - 1))

    def _searched(self, image_slice: ImageSlice, prompt: Prompt) -> Prediction:
        """The answer in a window about the most credible of the first looks; what was so far is not looked at."""
        first, proposals = self._first(image_slice, prompt)
        prompt, lean = replace(prompt, previous=first), self.zoom.lean(prompt.clicks)
        answer, newest = self._answer(image_slice, prompt, self.zoom.window(prompt, image_slice.shape), self.zoom.diffusion, lean)
        if newest:
            return replace(answer, candidates=distinct(answer, [*newest, *proposals], len(newest) - 1))
        return replace(answer, candidates=distinct(answer, proposals, self.zoom.first_others, OTHER_SCALE_IOU))

    def _outgrown(self, image_slice: ImageSlice, prompt: Prompt, answer: Prediction) -> Prediction:
        """``answer``, or the one of another scale where that is far more credible; the other one of the two is a candidate."""
        assert prompt.previous is not None
        larger = self._searched(image_slice, prompt)
        if outdoes(larger, answer, prompt.previous, prompt.clicks, self.zoom.larger):
            answer, larger = larger, answer
        other = Proposal(0.0, replace(larger, candidates=()), bool(larger.mask_in_box.any()))
        return replace(answer, candidates=(*answer.candidates, *distinct(answer, [other], 1, OTHER_SCALE_IOU)))

    def _answer(
        self, image_slice: ImageSlice, prompt: Prompt, window: Box, diffusion: float, lean: float
    ) -> tuple[Prediction, list[Proposal]]:
        """The network's mean word on a window and a wider one, each also mirrored, pasted over the previous prediction; and proposals."""
        late = self.zoom.is_late(prompt, self.zoom.late_clicks)
        wider = [] if late else [w for f in self.zoom.wider if (w := widened(window, f, image_slice.shape)) != window]
        size = self.zoom.late_size if late else self.zoom.size
        word, score, output = self._word(image_slice, prompt, [window, *wider], size, diffusion, lean)
        answer = self._pasted(word, prompt, window, image_slice.shape, score)
        if self.zoom.closer and len(prompt.clicks) >= self.zoom.closer_clicks and prompt.previous is not None:
            answer = self._closer(image_slice, prompt, answer, lean)
        return answer, self._proposals(output, 0, prompt, window, image_slice.shape)

    def _word(
        self, image_slice: ImageSlice, prompt: Prompt, windows: Sequence[Box], size: int, diffusion: float, lean: float
    ) -> tuple[Tensor, float, Output]:
        """The network's mean word on the first of ``windows`` (n, n), refined; its estimated IoU; and all that it said."""
        views = [self.look(image_slice, prompt, w, size) for w in windows]
        parts = _together(views)
        if self.zoom.mirror:
            parts = [torch.cat([p, p.flip(3)]) for p in parts]
        output = self._say(parts[0], parts[1], parts[2], self._examples(prompt))
        logits, iou = output.logits, torch.sigmoid(output.iou_logits)
        if self.zoom.mirror:
            logits = (logits[: len(views)] + logits[len(views) :].flip(3)) / 2
        words = [seen_through(z, w, windows[0]) for z, w in zip(logits[:, 0].float(), windows, strict=True)]
        word = torch.stack(words).mean(0) - lean
        if diffusion:
            word = word + diffusion * pixel_diffusion(word, views[0].image[0], views[0].clicks)
        return word, float(iou.mean()), output

    def _closer(self, image_slice: ImageSlice, prompt: Prompt, answer: Prediction, lean: float) -> Prediction:
        """The answer again, from a closer window about what the newest click changed. After the focus crop of FocalClick (2022)."""
        assert prompt.previous is not None
        seen = answer.view
        assert seen is not None
        window = self.zoom.closer_window(extent_of_change(answer, prompt.previous, prompt.clicks[-1]), seen)
        if window is None:
            return answer
        now = replace(prompt, previous=answer)
        word, _, _ = self._word(image_slice, now, [window], self.zoom.size, self.zoom.diffusion, lean)
        known = torch.logit(probability_in_window(answer, window, self.zoom.size)[0, 0].clamp(1e-6, 1 - 1e-6)).to(word)
        pasted, box = paste((word + known) / 2, window, image_slice.shape)
        return self._local(laid_over(answer, pasted, box, image_slice.shape, seen, answer.score, prompt.clicks), prompt)

    def _pasted(self, word: Tensor, prompt: Prompt, window: Box, shape: tuple[int, int], score: float) -> Prediction:
        """What the network said of a window (n, n), over the previous prediction."""
        pasted, box = paste(word, window, shape)
        return self._local(laid_over(prompt.previous, pasted, box, shape, window, score, prompt.clicks), prompt)

    def _local(self, answer: Prediction, prompt: Prompt) -> Prediction:
        """The answer, where the click was late as far as it changes the previous one near that click."""
        if prompt.previous is None or not self.zoom.is_late(prompt, self.zoom.local_clicks):
            return answer
        return changed_near(answer, prompt.previous, prompt.clicks[-1], self.zoom.local_reach)

    def _proposals(self, output: Output, view: int, prompt: Prompt, window: Box, shape: tuple[int, int]) -> list[Proposal]:
        """All masks that the network proposed in one of the views; none if it says only one."""
        if output.candidates is None or output.scores is None:
            return []
        ious = output.candidate_iou_logits
        scores = [math.nan] * output.scores.shape[1] if ious is None else torch.sigmoid(ious[view]).tolist()
        return [
            Proposal(chance, self._pasted(word.float(), prompt, window, shape, score), bool((word > 0).any()))
            for word, chance, score in zip(output.candidates[view], output.scores[view].tolist(), scores, strict=True)
        ]

    def _first(self, image_slice: ImageSlice, prompt: Prompt) -> tuple[Prediction, list[Proposal]]:
        """The most credible of the first looks, and the masks that were proposed in the same look, or else those of the other looks."""
        size, shape = self.zoom.first_size, image_slice.shape
        windows = self.zoom.first_looks(prompt.clicks, shape)
        views = [self.look(image_slice, Prompt(prompt.clicks), w, size) for w in windows]
        parts = _together(views)
        kind = kind_of(prompt.kind)
        familiar = self._is_familiar(parts[0], parts[1], kind)
        output = self._say(parts[0], parts[1], parts[2], self.recollected(kind=kind) if familiar else ())
        logits, iou = output.logits[:, 0], torch.sigmoid(output.iou_logits)
        known = self._knowledge.extent_log if familiar else (0.0, 0.0, 0.0)
        scores = credibilities(logits, iou, windows, shape, stability_power=self.zoom.first_stability, extent_log=known)
        best = int(np.argmax(scores))
        pasted, box = paste(logits[best].float(), windows[best], shape)
        proposals = self._proposals(output, best, Prompt(prompt.clicks), windows[best], shape)
        if not proposals and self.zoom.first_others:
            found = zip(scores, logits.float(), windows, iou.tolist(), strict=True)
            others = [of_scale(*one, shape, prompt.clicks) for number, one in enumerate(found) if number != best]
            proposals = [other for other in others if other is not None]
        proposals = [one._replace(prediction=replace(one.prediction, familiar=familiar)) for one in proposals]
        return Prediction(pasted, box, shape, None, float(iou[best]), familiar=familiar), proposals

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


def _together(views: Sequence[View]) -> list[Tensor]:
    """The images, click maps and previous probabilities of all views, (V, C, n, n) each."""
    return [torch.cat([getattr(v, name) for v in views]) for name in ("image", "guidance", "previous")]


def _same(first: Sequence[object], second: Sequence[object]) -> bool:
    """Whether both hold the very same objects."""
    return len(first) == len(second) and all(a is b for a, b in zip(first, second, strict=True))


def _standing(clicks: Sequence[Click]) -> list[Click]:
    """The clicks without those that a later click on the same pixel took back."""
    newest = {c.voxel: i for i, c in enumerate(clicks)}
    return [c for i, c in enumerate(clicks) if newest[c.voxel] == i]
