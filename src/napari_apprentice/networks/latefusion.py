"""The default network with its clicks late: the image is seen once, by most of the network, and every click pays for a light trunk only.

The division of labour of Segment Anything (Kirillov et al., 2023), with convolutions and few channels: what decision 2 compares with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_apprentice.networks._interface import Output
from napari_apprentice.networks.unet import Headed, Trunk

__all__ = ["LateFusion", "LateFusionConfig"]


@dataclass(frozen=True)
class LateFusionConfig:
    """Every width and depth.

    Attributes
    ----------
    widths, blocks : channels and residual blocks at 1/2, 1/4, ... of the trunk that sees the image alone
    light, light_blocks : of the trunk that sees its features, the clicks and the previous mask
    head_width : channels at full resolution
    groups : channel groups of the normalisation
    guidance, disk_radius_px : the click encoding it was made for (`napari_apprentice.guidance`)
    """

    widths: tuple[int, ...] = (24, 48, 96, 160, 192)
    blocks: tuple[int, ...] = (1, 2, 2, 2, 1)
    light: tuple[int, ...] = (16, 32, 48, 64)
    light_blocks: tuple[int, ...] = (1, 1, 1, 1)
    head_width: int = 8
    groups: int = 8
    guidance: str = "disk"
    disk_radius_px: float = 3.0

    @property
    def stride(self) -> int:
        """The working size must be a multiple of this."""
        return int(2 ** max(len(self.widths), len(self.light)))


class LateFusion(Headed):
    """See the module. Inputs: image (B, 3, h, w) standardised, guidance (B, 2, h, w) in 0..1, previous (B, 1, h, w) probability."""

    SIZES: ClassVar[dict[str, LateFusionConfig]] = {"small": LateFusionConfig()}

    def __init__(self, config: LateFusionConfig | None = None) -> None:
        config = config or LateFusionConfig()
        super().__init__(config.widths[0] + 12, config.light, config.light_blocks, config.groups, config.head_width, halve=False)
        self.config = config
        self.image = Trunk(3, config.widths, config.blocks, config.groups)
        self.initialise()

    def encode(self, image: Tensor) -> Tensor:
        """(B, widths[0] + 12, h/2, w/2): what the trunk sees in the image, and the image itself, four pixels to one."""
        return torch.cat([self.image.seen(image)[0], F.pixel_unshuffle(image, 2)], dim=1)

    def decode(self, features: Tensor, guidance: Tensor, previous: Tensor) -> Output:
        """Mask and estimated IoU for one set of clicks per image."""
        seen, image = features[:, :-12], F.pixel_shuffle(features[:, -12:], 2)
        asked = torch.cat([guidance, previous], dim=1)
        return self.said(torch.cat([seen, F.pixel_unshuffle(asked, 2)], dim=1), torch.cat([image, asked], dim=1))

    def forward(self, image: Tensor, guidance: Tensor, previous: Tensor) -> Output:
        """`decode` of `encode`."""
        return self.decode(self.encode(image), guidance, previous)
