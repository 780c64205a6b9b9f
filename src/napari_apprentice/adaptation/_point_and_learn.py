"""You Point, I Learn (2025): mid-interaction (MI) after a click, post-interaction (PI) after a finished mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from napari_apprentice.adaptation._gate import Update
from napari_apprentice.adaptation._memory import Batch
from napari_apprentice.adaptation._object import for_this_object
from napari_apprentice.adaptation._settings import Settings
from napari_apprentice.adaptation._source import Source
from napari_apprentice.adaptation._step import advance, learning
from napari_apprentice.adaptation._targets import hardened, mask_in_window
from napari_apprentice.guidance import WindowClick
from napari_apprentice.knowledge import Knowledge, Remembered
from napari_apprentice.losses import click_centred_gaussian, dice_focal
from napari_apprentice.segmenter import NetworkSegmenter
from napari_apprentice.types import ImageSlice, Prediction, Prompt
from napari_apprentice.windows import click_in_window

__all__ = ["PostInteraction", "learn_click"]


def learn_click(settings: Settings, segmenter: NetworkSegmenter, image_slice: ImageSlice, prompt: Prompt, prediction: Prediction) -> bool:
    """MI: teach ``prediction``, which was said with the newest click, to the model that has not seen that click; False if a step failed."""
    if not settings.mid_lasts:
        for_this_object(segmenter)
    window = prediction.view or segmenter.zoom.grown_window(replace(prompt, previous=prediction), image_slice.shape)
    known = segmenter.look(image_slice, Prompt(prompt.clicks[:-1]), window, settings.size)
    clicks = tuple(click_in_window(c, window, settings.size) for c in prompt.points)
    target = hardened(mask_in_window(prediction.mask, window, settings.size), clicks, settings.hard_radius_px).to(segmenter.device)
    with learning(segmenter, settings.mid_part):
        for _ in range(settings.mid_steps):
            logits, _ = segmenter.run(known.image, known.guidance, known.previous)
            if not advance(segmenter, click_loss(settings, logits, target, [clicks[-1:]]), settings.mid_rate, settings.anchor):
                return False
    return True


def click_loss(settings: Settings, logits: Tensor, targets: Tensor, clicks: Sequence[Sequence[WindowClick]]) -> Tensor:
    """Dice-focal and the click-centred term over a batch (B, 1, n, n), with the clicks of every image."""
    terms = [
        click_centred_gaussian(z[None], t[None], c, form=settings.click_form, normalised=settings.click_normalised)
        for z, t, c in zip(logits, targets, clicks, strict=True)
    ]
    return dice_focal(logits, targets) + settings.click_weight * torch.stack(terms).mean()


class PostInteraction:
    """PI: one update from a finished object, and in turn from one that is remembered and from a procedural one.

    Parameters
    ----------
    before : what was known before the object
    new : the object
    known : how right its first click was answered before, 0..1
    source : procedural objects; None to rehearse remembered ones alone
    """

    def __init__(
        self, settings: Settings, segmenter: NetworkSegmenter, before: Knowledge, new: Remembered, known: float, source: Source | None
    ) -> None:
        self.settings, self.segmenter, self.new, self.source = settings, segmenter, new, source
        self.rate = settings.post_rate * (min((1 - known) / settings.full_error, 1.0) if settings.full_error else 1.0)
        self.memory = before.memory[-settings.remembered :]
        self.rng = np.random.default_rng([17, before.steps, len(self.memory)])

    def steps(self) -> Update:
        """Rounds of two steps."""
        rounds = []
        for number in range(self.settings.post_rounds):
            losses = yield from self._round(number)
            if losses is None:
                return None
            rounds.append(losses)
        return (rounds[0][0], rounds[-1][1]) if rounds else (float("nan"), float("nan"))

    def _round(self, number: int) -> Update:
        """One step from first clicks and one from corrections, on the new object and an old one, in one view of each."""
        yield
        new = self.new.view(int(self.rng.integers(len(self.new.clicks))))
        old, said = self._rehearsed(number)
        batch = Batch([new, *old], self.segmenter.device)
        known = 1 if said is not None else len(batch.clicks)  # rows whose mask is known
        pairs = zip(batch.targets[:known], batch.clicks[:known], strict=True)
        targets = torch.stack([hardened(t[None], c, self.settings.hard_radius_px)[0] for t, c in pairs])
        logits = batch.logits(self.segmenter, batch.firsts)
        loss = self._loss(logits, targets, batch.firsts, None if said is None else said[0])
        if not advance(self.segmenter, loss, self.rate, self.settings.anchor):
            return None
        yield
        probability = torch.sigmoid(logits.detach())
        clicks = [
            [*f, *corrections(p > 0.5, t > 0.5, self.rng)]
            for f, p, t in zip(batch.firsts, probability[:known, 0].cpu().numpy(), targets[:, 0].cpu().numpy(), strict=False)
        ]
        if said is not None:
            clicks.append(list(batch.clicks[-1]))
            probability[-1, 0] = said[0]
        second = self._loss(batch.logits(self.segmenter, clicks, probability), targets, clicks, None if said is None else said[1])
        if not advance(self.segmenter, second, self.rate, self.settings.anchor):
            return None
        return float(loss.detach()), float(second.detach())

    def _rehearsed(self, number: int) -> tuple[list[Remembered], Tensor | None]:
        """What a round repeats: a procedural object and what the untaught model said of it (2, n, n), or remembered ones."""
        memory = self.memory
        if self.source is not None and (number % 2 == 0 or not memory):
            which = int(self.rng.integers(len(self.source.objects)))
            return [self.source.objects[which]], self.source.answers[which]
        chosen = [memory[i] for i in self.rng.permutation(len(memory))[: self.settings.rehearsed]]
        return [o.view(int(self.rng.integers(len(o.clicks)))) for o in chosen], None

    def _loss(self, logits: Tensor, targets: Tensor, clicks: Sequence[Sequence[WindowClick]], said: Tensor | None) -> Tensor:
        """The loss on the rows whose masks are known, and on the last one against the probabilities that the untaught model ``said``."""
        known = len(targets)
        loss = click_loss(self.settings, logits[:known], targets, clicks[:known])
        if said is None:
            return loss
        return loss + self.settings.replay_weight * F.binary_cross_entropy_with_logits(logits[-1, 0], said)


def corrections(mask: npt.NDArray[np.bool_], target: npt.NDArray[np.bool_], rng: np.random.Generator, most: int = 10) -> list[WindowClick]:
    """One random pixel from each of the largest 8-connected errors, at most ``most`` of them."""
    labels, count = ndimage.label(mask != target, structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel())[1:]
    found = []
    for part in np.argsort(-areas)[: min(count, most)]:
        if areas[part] < 4:
            break
        rows, cols = np.nonzero(labels == part + 1)
        i = int(rng.integers(len(rows)))
        found.append(WindowClick(float(rows[i]), float(cols[i]), bool(target[rows[i], cols[i]])))
    return found
