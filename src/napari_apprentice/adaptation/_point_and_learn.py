"""You Point, I Learn (2025): mid-interaction (MI) after a click, post-interaction (PI) after a finished mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from napari_apprentice.adaptation._memory import Batch, Update
from napari_apprentice.adaptation._object import for_this_object
from napari_apprentice.adaptation._settings import Settings
from napari_apprentice.adaptation._step import advance
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
    clicks = tuple(click_in_window(c, window, settings.size) for c in prompt.clicks)
    target = hardened(mask_in_window(prediction.mask, window, settings.size), clicks, settings.hard_radius_px).to(segmenter.device)
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
    """PI: one update from a finished object and some that are remembered.

    Parameters
    ----------
    before : what was known before the object
    new : the object
    known : how right its first click was answered before, 0..1
    """

    def __init__(self, settings: Settings, segmenter: NetworkSegmenter, before: Knowledge, new: Remembered, known: float) -> None:
        self.settings, self.segmenter, self.before, self.new, self.known = settings, segmenter, before, new, known
        self.rng = np.random.default_rng([17, before.steps, len(before.memory)])

    def steps(self) -> Update:
        """Rounds of two steps."""
        rounds, rate = [], self.settings.post_rate * self._need()
        for _ in range(self.settings.post_rounds):
            losses = yield from self._round(rate)
            if losses is None:
                return None
            rounds.append(losses)
        return (rounds[0][0], rounds[-1][1]) if rounds else (float("nan"), float("nan"))

    def _need(self) -> float:
        """How much there is to learn, 0..1: the error of the answers to the first click, as long as it is small."""
        return min((1 - self.known) / self.settings.full_error, 1.0) if self.settings.full_error else 1.0

    def _round(self, rate: float) -> Update:
        """One step from first clicks and one from corrections, on the new object and a few remembered ones, in one view of each."""
        yield
        memory = self.before.memory
        objects = [self.new, *(memory[i] for i in self.rng.permutation(len(memory))[: self.settings.rehearsed])]
        batch = Batch([o.view(int(self.rng.integers(len(o.clicks)))) for o in objects], self.segmenter.device)
        radius = self.settings.hard_radius_px
        targets = torch.stack([hardened(t[None], c, radius)[0] for t, c in zip(batch.targets, batch.clicks, strict=True)])
        logits = batch.logits(self.segmenter, batch.firsts)
        loss = click_loss(self.settings, logits, targets, batch.firsts)
        if not advance(self.segmenter, loss, rate, self.settings.anchor):
            return None
        yield
        probability = torch.sigmoid(logits.detach())
        corrected = [
            [*f, *corrections(p > 0.5, t > 0.5, self.rng)]
            for f, p, t in zip(batch.firsts, probability[:, 0].cpu().numpy(), targets[:, 0].cpu().numpy(), strict=True)
        ]
        second = click_loss(self.settings, batch.logits(self.segmenter, corrected, probability), targets, corrected)
        if not advance(self.segmenter, second, rate, self.settings.anchor):
            return None
        return float(loss.detach()), float(second.detach())


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
