"""Learning from a user: policies that turn clicks and accepted masks into changes of the weights, and the guards that keep them safe.

The two updates follow You Point, I Learn (2025): *mid-interaction* after a click (what the model says with the click teaches it to need the
click less) and *post-interaction* after a finished mask. Ours on top: the hard click constraint, normalised click weights, rehearsal of
remembered objects, corrections to practise on so that the model keeps listening, and a gate that
refuses what makes remembered objects worse.

A policy is a frozen configuration. All that is learnt lives in the segmenter's `Knowledge`, which is never changed in place: an undo is a
`restore`, and it is exact.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from napari_apprentice.guidance import WindowClick, squared_distance
from napari_apprentice.knowledge import Knowledge, Remembered, Tensors
from napari_apprentice.losses import click_centred_gaussian, dice_focal
from napari_apprentice.segmenter import NetworkSegmenter
from napari_apprentice.types import Box, Click, ImageSlice, InputError, LearningReport, Lesson, Prediction, Prompt
from napari_apprentice.windows import click_in_window, cut

__all__ = ["POLICIES", "Adaptation", "make_policy"]


@dataclass(frozen=True)
class Adaptation:
    """What is learnt, and when (implements `types.AdaptationPolicy`).

    Attributes
    ----------
    name : as the command line calls it
    mid, post : learn after a click; learn after a finished mask
    mid_rate, post_rate : Adam's step sizes
    mid_steps, post_rounds : steps after a click; rounds of two steps after a mask
    size : working size of the windows that are learnt from
    click_weight : weight of the click-centred Gaussian term beside dice-focal
    click_form, click_normalised : see `losses.click_centred_gaussian`
    hard_radius_px : around every click the target says what the user said, in window pixels
    anchor : share of the way back to the shipped weights in every step
    remembered : objects kept to rehearse and to judge by
    rehearsed : of these, how many join every step
    gate_margin : an update is refused if remembered objects lose more than this mean IoU
    """

    name: str
    mid: bool = False
    post: bool = False
    mid_rate: float = 1e-4
    post_rate: float = 2e-4
    mid_steps: int = 1
    post_rounds: int = 2
    size: int = 128
    click_weight: float = 0.2
    click_form: str = "ce"
    click_normalised: bool = True
    hard_radius_px: float = 3.0
    anchor: float = 2e-3
    remembered: int = 8
    rehearsed: int = 2
    gate_margin: float = 0.01

    # --- the two moments of learning ---

    def on_click(self, segmenter: NetworkSegmenter, image_slice: ImageSlice, prompt: Prompt) -> Prediction:
        """Predict; after the second click and later ones learn from the newest click and predict again."""
        prediction = segmenter.predict(image_slice, prompt)
        if not self.mid or len(prompt.clicks) < 2:
            return prediction
        before = segmenter.snapshot()
        with segmenter.timed("adapt"):
            learnt = self._learn_click(segmenter, image_slice, prompt, prediction)
        if not learnt:
            segmenter.restore(before)
            return prediction
        again = segmenter.predict(image_slice, prompt)
        if _satisfaction(again, prompt.clicks[-1]) < min(_satisfaction(prediction, prompt.clicks[-1]), 0.0):
            segmenter.restore(before)
            return prediction
        return again

    def _learn_click(self, segmenter: NetworkSegmenter, image_slice: ImageSlice, prompt: Prompt, prediction: Prediction) -> bool:
        """Teach what was said with the newest click to the model that has not seen that click."""
        window = prediction.view or segmenter.grown_window(replace(prompt, previous=prediction), image_slice.shape)
        known = segmenter.look(image_slice, Prompt(prompt.clicks[:-1]), window, self.size)
        clicks = tuple(click_in_window(c, window, self.size) for c in prompt.clicks)
        target = _hardened(_mask_in_window(prediction.mask, window, self.size), clicks, self.hard_radius_px).to(segmenter.device)
        for _ in range(self.mid_steps):
            logits, _ = segmenter.run(known.image, known.guidance, known.previous)
            loss = dice_focal(logits, target) + self.click_weight * self._click_term(logits, target, clicks[-1:])
            if not _advance(segmenter, loss, self.mid_rate, self.anchor):
                return False
        return True

    def _click_term(self, logits: Tensor, target: Tensor, clicks: Sequence[WindowClick]) -> Tensor:
        return click_centred_gaussian(logits, target, clicks, form=self.click_form, normalised=self.click_normalised)

    def on_accept(self, segmenter: NetworkSegmenter, lesson: Lesson) -> LearningReport:
        """Learn from a finished mask, unless the gate refuses."""
        if not self.post or not lesson.mask.any() or lesson.mask.all():
            return LearningReport(False, "nothing to learn")
        began, before = time.perf_counter(), segmenter.snapshot()
        with segmenter.timed("adapt"):
            learner = _Learner(self, segmenter, remember(segmenter, lesson, self.size))
            report = learner.learn()
        if report.accepted:
            now = segmenter.snapshot()
            segmenter.restore(replace(now, extent_log=_extent_log(before.extent_log, lesson.mask), memory=learner.memory()))
        else:
            segmenter.restore(replace(before, extent_log=_extent_log(before.extent_log, lesson.mask), memory=learner.memory()))
        return replace(report, elapsed_s=time.perf_counter() - began)


POLICIES: Mapping[str, Adaptation] = {
    "none": Adaptation("none"),
    "mi": Adaptation("mi", mid=True),
    "pi": Adaptation("pi", post=True),
    "mi+pi": Adaptation("mi+pi", mid=True, post=True),
}
"""The policies by name."""


def make_policy(name: str) -> Adaptation:
    """The policy of that name.

    Raises
    ------
    InputError : there is none
    """
    if name not in POLICIES:
        raise InputError(f"a policy called {name!r} was asked for; expected one of {', '.join(POLICIES)}")
    return POLICIES[name]


# --- remembered objects -----------------------------------------------------------------------------------------------------------------


def remember(segmenter: NetworkSegmenter, lesson: Lesson, size: int) -> Remembered:
    """The views of an accepted object that the model should get right from one click on."""
    clicks = lesson.clicks or (_middle(lesson.mask),)
    windows = lesson_windows(segmenter, lesson.mask, clicks)
    views = [segmenter.look(lesson.image_slice, Prompt(clicks), window, size) for window in windows]
    targets = torch.cat([_mask_in_window(lesson.mask, window, size) for window in windows])
    return Remembered(torch.cat([v.image for v in views]).half().cpu(), targets > 0.5, tuple(v.clicks for v in views))


def lesson_windows(segmenter: NetworkSegmenter, mask: npt.NDArray[np.bool_], clicks: Sequence[Click]) -> tuple[Box, Box]:
    """The first window that shows the object best, and the zoomed one."""
    anchor = next((c for c in clicks if c.positive), clicks[0])
    zoomed = segmenter.grown_window(Prompt((anchor,), Prediction.from_mask(mask)), _shape(mask))
    windows = segmenter.first_windows(anchor, _shape(mask))
    return min(windows, key=lambda w: abs(math.log((w.bottom - w.top) / (1.6 * (zoomed.bottom - zoomed.top))))), zoomed


def _shape(mask: npt.NDArray[np.bool_]) -> tuple[int, int]:
    return int(mask.shape[0]), int(mask.shape[1])


def _middle(mask: npt.NDArray[np.bool_]) -> Click:
    """A positive click in the middle of the largest inscribed circle."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, col = np.unravel_index(int(depth.argmax()), depth.shape)
    return Click((int(row), int(col)))


def _extent_log(log: tuple[float, float, float], mask: npt.NDArray[np.bool_]) -> tuple[float, float, float]:
    """Sums for the mean and spread of log object extents (root of the area over the slice's longer side), old ones fading."""
    value = math.log(float(mask.sum()) ** 0.5 / max(mask.shape))
    total, squares, count = (0.9 * v for v in log)
    return total + value, squares + value**2, count + 1


# --- the step ---------------------------------------------------------------------------------------------------------------------------


def _advance(segmenter: NetworkSegmenter, loss: Tensor, rate: float, anchor: float) -> bool:
    """One Adam step (Kingma & Ba, 2015; β = 0.9, 0.999) and a pull towards the shipped weights; False and no change if not finite."""
    old = segmenter.snapshot()
    parameters = dict(segmenter.network.named_parameters())
    grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    if not bool(torch.isfinite(loss)):
        return False
    steps = old.steps + 1
    weights, firsts, seconds = dict(old.weights), dict(old.first), dict(old.second)
    for key, grad in zip(parameters, grads, strict=True):
        if grad is None:
            continue
        zero = torch.zeros_like(grad)
        first = firsts.get(key, zero).lerp(grad, 0.1)
        second = seconds.get(key, zero).lerp(grad.square(), 0.001)
        step = (first / (1 - 0.9**steps)) / ((second / (1 - 0.999**steps)).sqrt() + 1e-8)
        weights[key] = (old.weights[key] - rate * step).lerp(segmenter.base.weights[key], anchor)
        firsts[key], seconds[key] = first, second
    # An infinite second moment would pass unseen (its step is 0) and end all learning from then on.
    if not all(bool(torch.isfinite(v).all()) for values in (weights, seconds) for v in values.values()):
        return False
    segmenter.restore(replace(old, weights=Tensors(weights), first=Tensors(firsts), second=Tensors(seconds), steps=steps))
    return True


class _Learner:
    """One post-interaction update: the new object, what it is rehearsed with, and how the result is judged."""

    def __init__(self, policy: Adaptation, segmenter: NetworkSegmenter, new: Remembered) -> None:
        self.policy, self.segmenter, self.new = policy, segmenter, new
        self.before: Knowledge = segmenter.snapshot()
        self.rng = np.random.default_rng([17, self.before.steps, len(self.before.memory)])

    def memory(self) -> tuple[Remembered, ...]:
        """What is remembered from now on: the newest objects."""
        return (*self.before.memory, self.new)[-self.policy.remembered :]

    def learn(self) -> LearningReport:
        """Rounds of two steps (one click; corrections), halving the rate once before giving up at the gate."""
        old: Sequence[Remembered] = self.before.memory
        standard = self._score(old) if old else (1.0, 1.0)
        for rate in (self.policy.post_rate, self.policy.post_rate / 4):
            first = last = float("nan")
            for _ in range(self.policy.post_rounds):
                losses = self._round(rate)
                if losses is None:
                    self.segmenter.restore(self.before)
                    return LearningReport(False, "learning was refused: the update was not finite; the model stays as it was")
                first = losses[0] if math.isnan(first) else first
                last = losses[1]
            reached = self._score(old) if old else (1.0, 1.0)
            lost = max(a - b for a, b in zip(standard, reached, strict=True))
            if lost <= self.policy.gate_margin:
                return LearningReport(True, f"learnt from this object (loss {first:.3f} to {last:.3f})", first, last)
            self.segmenter.restore(self.before)
        return LearningReport(
            False,
            f"learning was refused: {len(old)} remembered objects would have lost {100 * lost:.1f} points of IoU; the model stays",
        )

    def _round(self, rate: float) -> tuple[float, float] | None:
        """One step from first clicks and one from corrections, on the new object and a few remembered ones."""
        count = min(self.policy.rehearsed, len(self.before.memory))
        chosen = [self.before.memory[i] for i in self.rng.permutation(len(self.before.memory))[:count]]
        objects = [self.new, *chosen]
        device = self.segmenter.device
        images = torch.cat([o.images for o in objects]).float().to(device)
        targets = torch.cat([o.targets for o in objects]).float().to(device)
        user = [clicks for o in objects for clicks in o.clicks]
        firsts = [[next((c for c in clicks if c.positive), clicks[0])] for clicks in user]
        targets = torch.stack([_hardened(t[None], c, self.policy.hard_radius_px)[0] for t, c in zip(targets.cpu(), user, strict=True)]).to(
            device
        )
        previous = torch.zeros_like(targets)
        loss, probability = self._loss(images, targets, firsts, previous)
        if not _advance(self.segmenter, loss, rate, self.policy.anchor):
            return None
        corrections = [
            [*f, *_corrections(p > 0.5, t > 0.5, self.rng)]
            for f, p, t in zip(firsts, probability.numpy(), targets[:, 0].cpu().numpy(), strict=True)
        ]
        second, _ = self._loss(images, targets, corrections, probability[:, None].to(device))
        if not _advance(self.segmenter, second, rate, self.policy.anchor):
            return None
        return float(loss.detach()), float(second.detach())

    def _loss(self, images: Tensor, targets: Tensor, clicks: Sequence[Sequence[WindowClick]], previous: Tensor) -> tuple[Tensor, Tensor]:
        """Dice-focal and the click-centred term over the batch; and (B, n, n) probabilities."""
        guidance = torch.cat([self.segmenter.maps(c, images.shape[-1]) for c in clicks])
        logits, _ = self.segmenter.run(images, guidance, previous)
        click_term = torch.stack(
            [self.policy._click_term(z[None], t[None], c) for z, t, c in zip(logits, targets, clicks, strict=True)]
        ).mean()
        return dice_focal(logits, targets) + self.policy.click_weight * click_term, torch.sigmoid(logits.detach()[:, 0]).cpu()

    def _score(self, objects: Sequence[Remembered]) -> tuple[float, float]:
        """Mean IoU of remembered objects from the first click alone, and from all the user's clicks."""
        with torch.no_grad():
            images = torch.cat([o.images for o in objects]).float().to(self.segmenter.device)
            targets = torch.cat([o.targets for o in objects]).to(self.segmenter.device)
            user = [clicks for o in objects for clicks in o.clicks]
            firsts = [[next((c for c in clicks if c.positive), clicks[0])] for clicks in user]
            scores, previous = [], torch.zeros(targets.shape, device=targets.device)
            for clicks in (firsts, user):
                guidance = torch.cat([self.segmenter.maps(c, images.shape[-1]) for c in clicks])
                logits, _ = self.segmenter.run(images, guidance, previous)
                found, wanted = (logits > 0).flatten(1), targets.flatten(1)
                scores.append(float(((found & wanted).sum(1) / (found | wanted).sum(1).clamp_min(1)).mean()))
                previous = torch.sigmoid(logits)
        return scores[0], scores[1]


def _corrections(mask: npt.NDArray[np.bool_], target: npt.NDArray[np.bool_], rng: np.random.Generator, most: int = 10) -> list[WindowClick]:
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


def _mask_in_window(mask: npt.NDArray[np.bool_], window: Box, size: int) -> Tensor:
    """(1, 1, size, size) float in {0, 1}."""
    return (cut(mask[None], window, size, fill=0.0) > 0.5).float()[None]


def _hardened(target: Tensor, clicks: Sequence[WindowClick], radius_px: float) -> Tensor:
    """The target (1, 1, n, n) with every click's own word in a small disk around it; where disks meet, the nearest click counts."""
    if not clicks:
        return target
    size = (int(target.shape[-2]), int(target.shape[-1]))
    distance = squared_distance([(c.row, c.col) for c in clicks], size, target.device)
    nearest, owner = distance.min(0)
    said = torch.tensor([float(c.positive) for c in clicks], device=target.device)[owner]
    return torch.where(nearest <= radius_px**2, said, target)


def _satisfaction(prediction: Prediction, click: Click) -> float:
    """The logit at the click, signed so that positive means the click is obeyed."""
    row, col = click.voxel[0] - prediction.box.top, click.voxel[1] - prediction.box.left
    inside = 0 <= row < prediction.box.shape[0] and 0 <= col < prediction.box.shape[1]
    logit = float(prediction.logits[row, col]) if inside else -20.0
    return logit if click.positive else -logit
