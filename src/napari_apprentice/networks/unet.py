"""The default network: a residual U-Net that sees the image, two click maps and the previous mask together (early fusion).

Convolutions carry what is under a click only so far. So it may also be told, for every place, how much that looks like what was clicked
(`Likeness`): by what the image alone looks like there, and by what the network has made of it.

Group normalisation throughout: nothing depends on the batch, so that a step on a batch of one is safe and training equals inference.
A stride-2 stem keeps full-resolution work light; the last level is global enough to see the whole window. Besides the mask it estimates
its own IoU with the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_apprentice.networks._interface import Output
from napari_apprentice.networks._recall import Recall, Recalled

__all__ = ["Headed", "Likeness", "Trunk", "UNet", "UNetConfig"]


@dataclass(frozen=True)
class UNetConfig:
    """Every width and depth.

    Attributes
    ----------
    widths : channels at 1/2, 1/4, 1/8, ... of the working size
    blocks : residual blocks per encoder level
    head_width : channels at full resolution
    groups : channel groups of the normalisation
    guidance : the click encoding it was made for (`napari_apprentice.guidance`)
    disk_radius_px : radius of that encoding, in pixels of the working size
    sees_previous : whether it looks at the previous mask; for comparison
    likeness : channels of each of the four ways in which a place can look like a clicked one (`Likeness`); 0 does without
    likeness_level : level of the encoder whose features are compared too
    recall : dimensions of each head that reads examples (`Recall`); 0 does without
    recall_levels : levels of the encoder that read them
    """

    widths: tuple[int, ...] = (24, 48, 96, 160, 192)
    blocks: tuple[int, ...] = (1, 2, 2, 2, 1)
    head_width: int = 8
    groups: int = 8
    guidance: str = "disk"
    disk_radius_px: float = 3.0
    sees_previous: bool = True
    likeness: int = 0
    likeness_level: int = 2
    recall: int = 0
    recall_levels: tuple[int, ...] = (2, 3)

    @property
    def stride(self) -> int:
        """The working size must be a multiple of this."""
        return int(2 ** len(self.widths))


class Residual(nn.Module):
    """(B, in, h, w) -> (B, out, h, w): two 3×3 convolutions around a shortcut, normalised before each."""

    def __init__(self, width_in: int, width_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1, bias=False)
        self.shortcut = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(F.relu(self.norm1(x)))
        inner = self.conv2(F.relu(self.norm2(inner)))
        return self.shortcut(x) + inner  # type: ignore[no-any-return]


_CELL = 2  # pixels of the features over which what is under a click is averaged
_FAR = 30.0  # squared distance to what was clicked where nothing was
_NEVER = 1e6  # a squared distance that is never the smallest
_FLAT = 1e-3  # standard deviation of a channel that says nothing


class Likeness(nn.Module):
    """How much every place looks like the places that were clicked: features (B, in, h, w), clicks (B, 2, ., .) -> (B, out, h, w).

    In each of four learnt spaces, every place gets its squared distance to the nearest clicked one of either sign, as a Gaussian and as
    which of the two is nearer. What it makes of them begins at nothing, so that a trained network can be given it.

    The idea, of matching pixels to those that were marked, is as old as marking (Boykov & Jolly 2001 by colour); in learnt spaces, nearest
    neighbour: Oh et al. 2019 (space-time memory) and Voigtlaender et al. 2019 (FEELVOS), between frames.

    Parameters
    ----------
    width_in, width_out : channels that come in and go out
    dimensions : of each space
    """

    SPACES = 4

    def __init__(self, width_in: int, width_out: int, dimensions: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(width_in, self.SPACES * dimensions, 1)
        self.log_sharpness = nn.Parameter(torch.full((self.SPACES,), -1.5))
        self.mix = nn.Conv2d(3 * self.SPACES, width_out, 1)

    def forward(self, features: Tensor, guidance: Tensor) -> Tensor:
        """See the class."""
        with torch.autocast(features.device.type, enabled=False):  # differences of squares need full precision
            return self._likeness(features.float(), guidance.float())

    def _likeness(self, features: Tensor, guidance: Tensor) -> Tensor:
        batch, _, height, width = features.shape
        found = self.embed(features)
        places = found.reshape(batch * self.SPACES, -1, height * width)
        clicked = F.adaptive_avg_pool2d(guidance, (height, width))
        positive, negative = (self._distance(found, places, of_sign) for of_sign in (clicked[:, :1], clicked[:, 1:]))
        sharpness = self.log_sharpness.exp()[None, :, None]
        like, unlike = torch.exp(-sharpness * positive), torch.exp(-sharpness * negative)
        nearer = (negative - positive) / (negative + positive + 1.0)
        return self.mix(torch.cat([like, unlike, nearer], dim=1).reshape(batch, -1, height, width))  # type: ignore[no-any-return]

    def _distance(self, found: Tensor, places: Tensor, clicked: Tensor) -> Tensor:
        """(B, spaces, h w): squared distance of every place to the nearest mean under ``clicked`` (B, 1, h, w) in cells of few pixels."""
        batch, spaces = len(found), self.SPACES
        weight = F.avg_pool2d(clicked, _CELL)
        means = F.avg_pool2d(found * clicked, _CELL) / weight.clamp_min(1e-6)
        filled = weight.flatten(1)
        count = int((filled > 0).sum(1).max())
        if count == 0:
            return places.new_full((batch, spaces, places.shape[-1]), _FAR)
        chosen = filled.topk(count, dim=1)
        index = chosen.indices[:, None, :].expand(-1, means.shape[1], -1)
        keys = means.flatten(2).gather(2, index).reshape(batch * spaces, -1, count)
        empty = (chosen.values <= 0).repeat_interleave(spaces, 0)
        own = keys.square().sum(1).masked_fill(empty, _NEVER)
        apart = torch.baddbmm(own[:, :, None], keys.transpose(1, 2), places, alpha=-2.0).amin(1) + places.square().sum(1)
        return apart.clamp(0, _FAR).reshape(batch, spaces, -1)


class Trunk(nn.Module):
    """(B, in, h, w) -> (B, widths[0], h/2, w/2): a stem that halves the resolution at once, an encoder, global context, and a decoder.

    Parameters
    ----------
    width_in : channels that come in
    widths, blocks, groups : as in `UNetConfig`
    halve : whether the stem halves the resolution; else it keeps what comes in, (B, in, h/2, w/2)
    """

    def __init__(self, width_in: int, widths: Sequence[int], blocks: Sequence[int], groups: int, *, halve: bool = True) -> None:
        super().__init__()
        if halve:
            self.stem = nn.Conv2d(width_in, widths[0], 4, stride=2, padding=1, bias=False)
        else:
            self.stem = nn.Conv2d(width_in, widths[0], 1, bias=False)
        self.encoder = nn.ModuleList()
        for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            above = widths[max(level - 1, 0)]
            down = nn.Identity() if level == 0 else nn.Conv2d(above, width, 2, stride=2, bias=False)
            self.encoder.append(nn.Sequential(down, *(Residual(width, width, groups) for _ in range(count))))
        self.context = nn.Linear(widths[-1], widths[-1])
        self.lateral, self.decoder = nn.ModuleList(), nn.ModuleList()
        for level in range(len(widths) - 2, -1, -1):
            self.lateral.append(nn.Conv2d(widths[level + 1], widths[level], 1, bias=False))
            self.decoder.append(Residual(widths[level], widths[level], groups))
        self.norm = nn.GroupNorm(groups, widths[0])

    def levels(
        self, x: Tensor, beside: Mapping[int, Callable[[Tensor], Tensor]] = MappingProxyType({}), most: int | None = None
    ) -> list[Tensor]:
        """The features of every level of the encoder, or of the first ``most`` ones; ``beside`` as in `seen`."""
        x = self.stem(x)
        x = x + beside[0](x) if 0 in beside else x
        found = []
        for passed, level in enumerate(self.encoder[:most], 1):
            x = level(x)
            x = x + beside[passed](x) if passed in beside else x
            found.append(x)
        return found

    def seen(self, x: Tensor, beside: Mapping[int, Callable[[Tensor], Tensor]] = MappingProxyType({})) -> tuple[Tensor, Tensor]:
        """The features, and the mean of the deepest level (B, widths[-1]).

        ``beside`` : number of encoder levels passed -> what is added there, made of the features (B, widths[...], ...)
        """
        skips = self.levels(x, beside)
        x = skips[-1]
        deepest = x.mean(dim=(2, 3))
        x = x + self.context(deepest)[:, :, None, None]
        for lateral, block, skip in zip(self.lateral, self.decoder, skips[-2::-1], strict=True):
            x = F.interpolate(lateral(x), size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = block(x + skip)
        return F.relu(self.norm(x)), deepest


class Headed(Trunk):
    """A trunk that goes on to the mask and its estimated IoU.

    Parameters
    ----------
    head_width : channels at full resolution
    others : as in `Trunk`
    """

    def __init__(
        self, width_in: int, widths: Sequence[int], blocks: Sequence[int], groups: int, head_width: int, *, halve: bool = True
    ) -> None:
        super().__init__(width_in, widths, blocks, groups, halve=halve)
        self.to_full = nn.Conv2d(widths[0], 4 * head_width, 3, padding=1)
        self.fine = nn.Conv2d(head_width + 6, head_width, 3, padding=1)
        self.to_logits = nn.Conv2d(head_width, 1, 3, padding=1)
        self.to_iou = nn.Sequential(nn.Linear(widths[-1] + 2 * widths[0] + 4, 64), nn.ReLU(), nn.Linear(64, 1))

    def initialise(self) -> None:
        """Random weights with which every residual block begins as its shortcut."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Residual):  # a zero before the rectifier instead would never get a gradient
                nn.init.zeros_(module.conv2.weight)
            if isinstance(module, Likeness):
                nn.init.zeros_(module.mix.weight)
            if isinstance(module, Recall):
                module.initialise()
        nn.init.normal_(self.to_logits.weight, std=0.05)

    def said(self, x: Tensor, inputs: Tensor, beside: Mapping[int, Callable[[Tensor], Tensor]] = MappingProxyType({})) -> Output:
        """The answer, from what the trunk takes, and from image, clicks and previous mask at full resolution (B, 6, h, w)."""
        x, deepest = self.seen(x, beside)
        full = F.relu(F.pixel_shuffle(self.to_full(x), 2))
        full = F.relu(self.fine(torch.cat([full, inputs], dim=1)))
        logits = self.to_logits(full)
        return Output(logits, self._iou_logits(deepest, x, logits))

    def _iou_logits(self, deepest: Tensor, x: Tensor, logits: Tensor) -> Tensor:
        """Estimated IoU from pooled features inside and outside the mask. Detached: judging must not change what is judged."""
        probability = torch.sigmoid(logits.detach())  # (B, 1, h, w)
        half = F.avg_pool2d(probability, 2)
        features = x.detach()
        inside = (features * half).sum((2, 3)) / half.sum((2, 3)).clamp_min(1.0)
        outside = (features * (1 - half)).sum((2, 3)) / (1 - half).sum((2, 3)).clamp_min(1.0)
        flat = probability.flatten(1)
        sure = torch.where(flat > 0.5, flat, flat.new_zeros(())).mean(1)
        share = (flat > 0.5).float().mean(1)
        doubt = torch.minimum(flat, 1 - flat).mean(1)
        facts = torch.stack([share, sure / (share + 1e-3), (doubt / (share + 1e-2)).clamp(max=4.0), sure / (flat.mean(1) + 1e-3)], dim=1)
        return self.to_iou(torch.cat([deepest.detach(), inside, outside, facts], dim=1)).squeeze(1)  # type: ignore[no-any-return]


class UNet(Headed):
    """See the module. Inputs: image (B, 3, h, w) standardised, guidance (B, 2, h, w) in 0..1, previous (B, 1, h, w) probability."""

    SIZES: ClassVar[dict[str, UNetConfig]] = {"small": UNetConfig()}
    ENCODER: ClassVar[tuple[str, ...]] = ("stem", "encoder", "patches", "like_patches", "like_features", "recall")

    def __init__(self, config: UNetConfig | None = None) -> None:
        config = config or UNetConfig()
        super().__init__(6, config.widths, config.blocks, config.groups, config.head_width)
        self.config = config
        if config.likeness:
            halved, compared = config.widths[0], config.widths[config.likeness_level]
            self.patches = nn.Sequential(
                nn.Conv2d(3, halved, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(halved, halved, 3, padding=1), nn.ReLU()
            )
            self.like_patches = Likeness(halved, halved, config.likeness)
            self.like_features = Likeness(compared, compared, config.likeness)
        if config.recall:
            reads = [Recall(config.widths[level], 2 ** (level + 1), config.recall, config.groups) for level in config.recall_levels]
            self.recall = nn.ModuleList(reads)
        self.initialise()

    def encode(self, image: Tensor) -> Tensor:
        """Nothing depends on the image alone in early fusion: the image itself."""
        return image

    def recollect(self, image: Tensor, guidance: Tensor, target: Tensor) -> tuple[Recalled, ...]:
        """Examples as `decode` takes them: images (B, R, 3, h, w), a click in each (B, R, 2, h, w), masks (B, R, 1, h, w) in {0, 1}.

        What the trunk makes of them is not learnt from.
        """
        if not self.config.recall:
            raise ValueError("examples arrived at a network that reads none; expected one with recall")
        batch = image.shape[:2]
        with torch.no_grad():
            image, guidance = image.flatten(0, 1), guidance.flatten(0, 1)
            x = torch.cat([image, guidance, torch.zeros_like(image[:, :1])], dim=1)
            found = self.levels(x, self._beside(image, guidance, ()), max(self.config.recall_levels) + 1)
        return tuple(
            cast(Recall, read).examples(found[level].reshape(*batch, *found[level].shape[1:]), target)
            for read, level in zip(self.recall, self.config.recall_levels, strict=True)
        )

    def appearance(self, image: Tensor, guidance: Tensor) -> Tensor:
        """(B, 2 widths[1]) what images (B, 3, h, w) with clicks (B, 2, h, w) look like, whatever is where in them.

        Mean and standard deviation of every channel of an early level are an image's style (Huang & Belongie 2017, adaptive instance
        normalisation). Here it is the mean over the deviation, and the logarithm of the deviation.
        """
        x = torch.cat([image, guidance, torch.zeros_like(image[:, :1])], dim=1)
        deviation, mean = torch.std_mean(self.levels(x, self._beside(image, guidance, ()), 2)[1], dim=(2, 3))
        return torch.cat([mean / (deviation + _FLAT), torch.log(deviation + _FLAT)], dim=1)

    def decode(self, features: Tensor, guidance: Tensor, previous: Tensor, known: Sequence[Recalled] = ()) -> Output:
        """Mask and estimated IoU for one set of clicks per image; ``known`` : examples, as `recollect` reads them."""
        if not self.config.sees_previous:
            previous = torch.zeros_like(previous)
        inputs = torch.cat([features, guidance, previous], dim=1)
        return self.said(inputs, inputs, self._beside(features, guidance, known))

    def _beside(self, image: Tensor, guidance: Tensor, known: Sequence[Recalled]) -> dict[int, Callable[[Tensor], Tensor]]:
        """What is added to the features of the trunk: what looks like what was clicked, and what examples say."""
        found: dict[int, list[Callable[[Tensor], Tensor]]] = {}
        if self.config.likeness:
            found[0] = [lambda _: self.like_patches(self.patches(image), guidance)]
            found[self.config.likeness_level + 1] = [lambda x: self.like_features(x, guidance)]
        if known:
            for read, level, of_level in zip(self.recall, self.config.recall_levels, known, strict=True):
                found.setdefault(level + 1, []).append(partial(cast(Recall, read), known=of_level))
        return {passed: partial(_sum, parts) for passed, parts in found.items()}

    def forward(self, image: Tensor, guidance: Tensor, previous: Tensor) -> Output:
        """`decode` of `encode`."""
        return self.decode(self.encode(image), guidance, previous)


def _sum(parts: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    total = parts[0](x)
    for part in parts[1:]:
        total = total + part(x)
    return total
