"""Learning from Corrections (Kontogianni et al., 2020): image adaptation (IA) with every click, sequence adaptation (SA) after an object.

Clicks are sparse labels: the loss asks for the clicked pixels, for the mask that there was at first, and that weights which matter to the
source domain stay. IA begins a copy of what is known (`Knowledge.before_object` keeps the original) at the first click of an object in a
slice, and `_object.after_object` goes back to it. The optimiser of IA begins afresh with every object; that of SA is the segmenter's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_apprentice.adaptation._gate import Update
from napari_apprentice.adaptation._memory import Batch, lesson_windows, told
from napari_apprentice.adaptation._object import for_this_object
from napari_apprentice.adaptation._settings import Settings
from napari_apprentice.adaptation._step import advance
from napari_apprentice.adaptation._targets import mask_in_window
from napari_apprentice.guidance import WindowClick
from napari_apprentice.knowledge import Knowledge, Remembered
from napari_apprentice.segmenter import NetworkSegmenter
from napari_apprentice.types import ImageSlice, Lesson, Prediction, Prompt

__all__ = ["SequenceAdaptation", "adapt_to_image"]


# --- the loss ---------------------------------------------------------------------------------------------------------------------------


def clicked_pixels(clicks: Sequence[WindowClick], size: tuple[int, int]) -> dict[tuple[int, int], bool]:
    """What was said of which pixel (row, col) of a window of ``size``; of two clicks on a pixel the later one counts, none outside."""
    at = {(round(c.row), round(c.col)): c.positive for c in clicks}
    return {(row, col): positive for (row, col), positive in at.items() if 0 <= row < size[0] and 0 <= col < size[1]}


def click_cross_entropy(logits: Tensor, clicks: Sequence[WindowClick]) -> Tensor:
    """Mean cross-entropy over the clicked pixels alone, for one image (1, 1, h, w); 0 if no click lies in it."""
    said = clicked_pixels(clicks, (int(logits.shape[-2]), int(logits.shape[-1])))
    if not said:
        return logits.sum() * 0
    rows, cols = zip(*said, strict=True)
    return F.binary_cross_entropy_with_logits(logits[0, 0, list(rows), list(cols)], logits.new_tensor([float(v) for v in said.values()]))


def drift(weights: Mapping[str, Tensor], start: Mapping[str, Tensor], importance: Mapping[str, Tensor]) -> Tensor:
    """Σ Ω (θ − θ*)²; Ω is 1 for all weights where nothing is known of their importance."""
    moved = {key: (value - start[key]).square() for key, value in weights.items()}
    return torch.stack([(importance[key] * square if importance else square).sum() for key, square in moved.items()]).sum()


def correction_loss(
    logits: Tensor, masks: Tensor, clicks: Sequence[Sequence[WindowClick]], held: Tensor, lam: float, gamma: float
) -> Tensor:
    """λ·CE(clicked pixels) + (1 − λ)·CE(all pixels, ``masks``) + γ·``held`` over a batch (B, 1, h, w), with the clicks of every image."""
    told = torch.stack([click_cross_entropy(z[None], c) for z, c in zip(logits, clicks, strict=True)]).mean()
    return lam * told + (1 - lam) * F.binary_cross_entropy_with_logits(logits, masks) + gamma * held


def _drift_of(segmenter: NetworkSegmenter, start: Mapping[str, Tensor]) -> Tensor:
    return drift(segmenter.parameters, start, segmenter.importance)


# --- one object -------------------------------------------------------------------------------------------------------------------------


def adapt_to_image(
    settings: Settings, segmenter: NetworkSegmenter, image_slice: ImageSlice, prompt: Prompt, prediction: Prediction
) -> bool:
    """IA: make the model obey all clicks, on the view that it answered them from; False if a step failed or there is nothing to obey.

    θ* is what the object began with. The mask of the term 1 − λ is the one before the newest click (``prediction`` at the first click).
    """
    window = prediction.view or segmenter.zoom.grown_window(prompt, image_slice.shape)
    view = segmenter.look(image_slice, prompt, window, settings.size)
    if not clicked_pixels(view.clicks, (settings.size, settings.size)):
        return False
    start = for_this_object(segmenter, afresh=True).weights
    mask = mask_in_window((prompt.previous or prediction).mask, window, settings.size).to(segmenter.device)
    for _ in range(settings.ia_steps):
        logits, _ = segmenter.run(view.image, view.guidance, view.previous)
        held = _drift_of(segmenter, start)
        loss = correction_loss(logits, mask, [view.clicks], held, settings.ia_lambda, settings.ia_gamma)
        if not advance(segmenter, loss, settings.ia_rate, anchor=0.0):
            return False
    return True


# --- a sequence of objects --------------------------------------------------------------------------------------------------------------


class SequenceAdaptation:
    """SA: one step from the clicks of a finished object; the network is shown only some of the clicks that the loss asks for.

    Otherwise it would learn to copy its guidance. At least one click is shown, and a positive one among them. θ* are the shipped
    weights.

    Parameters
    ----------
    before : what was known before the object, and is known now
    new : the object as ``lesson`` shows it
    """

    def __init__(self, settings: Settings, segmenter: NetworkSegmenter, before: Knowledge, new: Remembered, lesson: Lesson) -> None:
        self.settings, self.segmenter = settings, segmenter
        self.batch = Batch([new], segmenter.device)
        self.rng = np.random.default_rng([19, before.steps, len(before.memory[-settings.remembered :])])
        mask, clicks = lesson.mask, told(lesson)
        if settings.sa_regularise_to == "initial":
            mask = segmenter.predict(lesson.image_slice, Prompt(clicks[:1], kind=lesson.kind)).mask
        windows = lesson_windows(segmenter, lesson.mask, clicks)
        self.masks = torch.cat([mask_in_window(mask, window, settings.size) for window in windows]).to(segmenter.device)

    def steps(self) -> Update:
        """The steps."""
        losses, settings = [], self.settings
        for _ in range(settings.sa_steps):
            yield
            logits = self.batch.logits(self.segmenter, self._shown())
            held = _drift_of(self.segmenter, self.segmenter.base.weights)
            loss = correction_loss(logits, self.masks, self.batch.clicks, held, settings.sa_lambda, settings.sa_gamma)
            if not advance(self.segmenter, loss, settings.sa_rate, anchor=0.0):
                return None
            losses.append(float(loss.detach()))
        return (losses[0], losses[-1]) if losses else (float("nan"), float("nan"))

    def _shown(self) -> list[list[WindowClick]]:
        """The clicks in the guidance, the same ones in every view."""
        clicks = self.batch.clicks
        if self.settings.sa_guidance == "all":
            return [list(c) for c in clicks]
        signs = [c.positive for c in clicks[0]]
        shown = set(self.rng.permutation(len(signs))[: int(self.rng.integers(1, len(signs) + 1))].tolist())
        if not any(signs[i] for i in shown):
            shown.add(signs.index(True))
        return [[c for i, c in enumerate(view) if i in shown] for view in clicks]
