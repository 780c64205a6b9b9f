"""The default network: a residual U-Net that sees the image, two click maps and the previous mask together (early fusion).

Group normalisation throughout: nothing depends on the batch, so that a step on a batch of one is safe and training equals inference.
A stride-2 stem keeps full-resolution work light; the last level is global enough to see the whole window. Besides the mask it estimates
its own IoU with the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_apprentice.networks._interface import Output

__all__ = ["Headed", "Trunk", "UNet", "UNetConfig"]


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
    """

    widths: tuple[int, ...] = (24, 48, 96, 160, 192)
    blocks: tuple[int, ...] = (1, 2, 2, 2, 1)
    head_width: int = 8
    groups: int = 8
    guidance: str = "disk"
    disk_radius_px: float = 3.0
    sees_previous: bool = True

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

    def seen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The features, and the mean of the deepest level (B, widths[-1])."""
        x = self.stem(x)
        skips = []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
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
        nn.init.normal_(self.to_logits.weight, std=0.05)

    def said(self, x: Tensor, inputs: Tensor) -> Output:
        """The answer, from what the trunk takes, and from image, clicks and previous mask at full resolution (B, 6, h, w)."""
        x, deepest = self.seen(x)
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

    def __init__(self, config: UNetConfig | None = None) -> None:
        config = config or UNetConfig()
        super().__init__(6, config.widths, config.blocks, config.groups, config.head_width)
        self.config = config
        self.initialise()

    def encode(self, image: Tensor) -> Tensor:
        """Nothing depends on the image alone in early fusion: the image itself."""
        return image

    def decode(self, features: Tensor, guidance: Tensor, previous: Tensor) -> Output:
        """Mask and estimated IoU for one set of clicks per image."""
        if not self.config.sees_previous:
            previous = torch.zeros_like(previous)
        inputs = torch.cat([features, guidance, previous], dim=1)
        return self.said(inputs, inputs)

    def forward(self, image: Tensor, guidance: Tensor, previous: Tensor) -> Output:
        """`decode` of `encode`."""
        return self.decode(self.encode(image), guidance, previous)
