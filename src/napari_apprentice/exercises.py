"""What a network is asked in training, and what its answers are worth: clicks as users make them, rounds of corrections, losses.

As in RITM (Sofiiuk et al., 2022): first clicks (`training_clicks`), then rounds of prediction and correction without gradient, and one
forward pass with gradient at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_apprentice.guidance import WindowClick, click_maps
from napari_apprentice.losses import LOSSES, OF_CANDIDATES, soft_dice
from napari_apprentice.networks import Output, Recalled
from napari_apprentice.samples import Drawn
from napari_apprentice.training_clicks import a_pixel, bent, careless_click, clicks_on, drawn_box, first_clicks, next_click

__all__ = ["Asked", "Exercises", "answered", "asked", "corrected", "iou", "loss_of", "maps", "recollected"]


@dataclass(frozen=True)
class Exercises:
    """What decides over the clicks and the losses of training.

    Attributes
    ----------
    rounds : chances of 0, 1, 2, ... rounds of corrections before the pass with gradient
    given : chance that a batch is about masks that the network did not make: the true ones, bent, as when they are carried to a slice
    careless : share of the users who click anywhere in the largest error (`training_clicks.careless_click`), also at first
    boxed : share of the users who draw a box around the object first, where all of it is in the window and no mask was given
    loss : a name in `losses.LOSSES`; empty for the network's own objective, or "nfl" where it has none
    terms : losses that are added, by name -> weight, such as ``{ ccg = 0.17 }``
    dice_weight, iou_weight : weights of soft Dice (not beside a network's own objective) and of the error of the estimated IoU
    """

    rounds: tuple[float, ...] = (0.3, 0.25, 0.2, 0.15, 0.1)
    given: float = 0.0
    careless: float = 0.0
    boxed: float = 0.0
    loss: str = ""
    terms: dict[str, float] = field(default_factory=dict)
    dice_weight: float = 0.5
    iou_weight: float = 0.2


def maps(clicks: Sequence[Sequence[WindowClick]], size: int, network: nn.Module, device: torch.device) -> Tensor:
    """(B, 2, size, size) click maps as a network was made for."""
    config: Any = network.config
    return torch.stack([click_maps(c, (size, size), config.guidance, config.disk_radius_px) for c in clicks]).to(device)


def corrected(
    network: nn.Module,
    features: Tensor,
    target: Tensor,
    clicks: list[list[WindowClick]],
    rounds: int,
    rng: np.random.Generator,
    deep: float,
    previous: Tensor | None = None,
    careless: Sequence[bool] = (),
    known: Sequence[Recalled] = (),
) -> tuple[Tensor, list[Tensor]]:
    """``rounds`` predictions without gradient, each followed by a correction in every image; the newest probability, and all masks.

    ``careless`` : the images whose users click anywhere in the largest error; by default none
    """
    size = target.shape[-1]
    previous = torch.zeros_like(target) if previous is None else previous
    masks = []
    truths = target[:, 0].cpu().numpy() > 0.5
    for _ in range(rounds):
        with torch.no_grad():
            previous = torch.sigmoid(
                answered(network, features, maps(clicks, size, network, target.device), previous, known).logits.float()
            )
        masks.append(previous > 0.5)
        found = masks[-1][:, 0].cpu().numpy()
        for image, truth in enumerate(truths):
            anywhere = bool(careless) and careless[image]
            click = careless_click(rng, truth, found[image]) if anywhere else next_click(rng, truth, found[image], deep)
            if click is not None:
                clicks[image].append(click)
    return previous, masks


def answered(network: nn.Module, features: Tensor, guidance: Tensor, previous: Tensor, known: Sequence[Recalled]) -> Output:
    """The answer of a network, with examples if there are any."""
    decode: Any = network.decode
    said: Output = decode(features, guidance, previous, known) if known else decode(features, guidance, previous)
    return said


def recollected(network: nn.Module, drawn: Drawn, rng: np.random.Generator) -> Sequence[Recalled]:
    """What the network makes of the examples of a batch, with one click in each; nothing if there are none."""
    batch, number = drawn.example_image.shape[:2]
    if not number:
        return ()
    size = drawn.image.shape[-1]
    clicks = [
        [WindowClick(*at, True)] if (at := a_pixel(rng, mask, 0.5)) else []
        for mask in drawn.example_target[:, :, 0].flatten(0, 1).cpu().numpy() > 0.5
    ]
    guidance = maps(clicks, size, network, drawn.image.device).unflatten(0, (batch, number))
    recollect: Any = network.recollect
    return cast(Sequence[Recalled], recollect(drawn.example_image, guidance, drawn.example_target))


class Asked(NamedTuple):
    """What a network is asked: click maps (B, 2, h, w), previous masks (B, 1, h, w), and the clicks of each image."""

    guidance: Tensor
    previous: Tensor
    clicks: list[list[WindowClick]]


def asked(
    network: nn.Module, how: Exercises, features: Tensor, target: Tensor, rng: np.random.Generator, known: Sequence[Recalled] = ()
) -> Asked:
    """Clicks and boxes as simulated users make them, after rounds of corrections without gradient; or those on masks that were given."""
    truths = target[:, 0].cpu().numpy() > 0.5
    careless = list(rng.random(len(truths)) < how.careless) if how.careless else []
    given = None
    if how.given and rng.random() < how.given:
        masks = [bent(rng, truth) for truth in truths]
        clicks = [clicks_on(rng, truth, mask) for truth, mask in zip(truths, masks, strict=True)]
        given = torch.from_numpy(np.stack(masks)[:, None]).to(target)
    else:
        clicks = [first_clicks(rng, truth) for truth in truths]
        for image in np.flatnonzero(careless):
            if (click := careless_click(rng, truths[image], np.zeros_like(truths[image]))) is not None:
                clicks[image] = [click]
        if how.boxed:
            begun = np.zeros(target.shape, np.float32)
            for image in np.flatnonzero(rng.random(len(truths)) < how.boxed):
                if (box := drawn_box(rng, truths[image])) is not None:
                    clicks[image], begun[image, 0] = box
            given = torch.from_numpy(begun).to(target)
    rounds = int(rng.choice(len(how.rounds), p=np.asarray(how.rounds) / sum(how.rounds)))
    previous, _ = corrected(network, features.detach(), target, clicks, rounds, rng, 0.5, given, careless, known)
    return Asked(maps(clicks, target.shape[-1], network, target.device), previous, clicks)


def iou(mask: Tensor, target: Tensor) -> Tensor:
    """(B,) IoU of boolean masks."""
    m, t = mask.flatten(1), target.flatten(1) > 0.5
    return (m & t).sum(1) / (m | t).sum(1).clamp_min(1)


def loss_of(network: nn.Module, output: Output, target: Tensor, asked: Asked, how: Exercises) -> Tensor:
    """The loss that is named, or the network's own objective; and beside it the error of the estimated IoU."""
    logits = output.logits.float()
    estimate = F.binary_cross_entropy_with_logits(output.iou_logits.float(), iou(logits > 0, target))
    if hasattr(network, "loss") and not how.loss:
        total = cast(Any, network).loss(output, target, asked.guidance)
    else:
        total = _named(how.loss or "nfl", output, target, asked) + how.dice_weight * soft_dice(logits, target)
    for name, weight in how.terms.items():
        total = total + weight * _named(name, output, target, asked)
    return total + how.iou_weight * estimate


def _named(name: str, output: Output, target: Tensor, asked: Asked) -> Tensor:
    """One of `LOSSES`: of the candidates if it is about several and the network proposes them, else of the mask."""
    candidates = output.candidates if name in OF_CANDIDATES else None
    return LOSSES[name]((output.logits if candidates is None else candidates).float(), target, asked.clicks)
