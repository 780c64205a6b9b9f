"""What networks in the manner of DeepLabV3+ (Chen et al., 2018) have in common: configuration, spatial pyramid pooling, decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_apprentice.networks._resnet import normalisation
from napari_apprentice.networks._xception import Separable

__all__ = ["AtrousConfig", "AtrousDecoder", "AtrousPyramid", "convolution", "enlarged", "initialise"]


@dataclass(frozen=True)
class AtrousConfig:
    """Every width and depth.

    Attributes
    ----------
    encoder : "resnet18", "resnet34", "resnet50", or another one that the network knows
    width : channels of the encoder's first stage; 64 in the papers, all others are in proportion
    norm : "batch" (running statistics, for weights of others and for long training with large batches) or "group" (nothing depends on the
        batch)
    output_stride : of the encoder: 8 or 16, for ResNets also 32
    atrous : dilations of the pyramid; the published ones, 12, 24 and 36, are meant for maps of 65 pixels and ours, of 16, would hardly see
        more than their middle
    aspp_width, low_width : channels of pyramid and decoder, and of the features at stride 4 that join them
    separable : depthwise separable 3×3 convolutions in pyramid and decoder
    sees_previous : the previous mask enters as a sixth channel; not so in the papers
    guidance, disk_radius_px : the click encoding it was made for (`napari_apprentice.guidance`)
    """

    encoder: str
    width: int
    norm: str
    output_stride: int
    atrous: tuple[int, ...]
    aspp_width: int
    low_width: int
    separable: bool
    sees_previous: bool
    guidance: str
    disk_radius_px: float

    @property
    def stride(self) -> int:
        """The working size must be a multiple of this."""
        return self.output_stride


def convolution(width_in: int, width_out: int, config: AtrousConfig, kernel: int, dilation: int = 1) -> nn.Sequential:
    """Convolution, normalisation, rectifier; depthwise separable where ``config`` says so."""
    if kernel == 3 and config.separable:
        return Separable(width_in, width_out, config.norm, dilation=dilation)
    layer = nn.Conv2d(width_in, width_out, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=False)
    return nn.Sequential(layer, normalisation(config.norm, width_out), nn.ReLU())


def initialise(part: nn.Module) -> None:
    """Random weights for convolutions in front of rectifiers (He et al., 2015)."""
    for layer in part.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")


def enlarged(x: Tensor, like: Tensor) -> Tensor:
    """``x`` (B, C, h', w') at the resolution of ``like`` (..., h, w)."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling (ASPP): (B, in, h, w) -> (B, aspp_width, h, w), seen at several reaches and as a whole."""

    def __init__(self, width_in: int, config: AtrousConfig) -> None:
        super().__init__()
        width = config.aspp_width
        self.near = convolution(width_in, width, config, 1)
        self.atrous = nn.ModuleList(convolution(width_in, width, config, 3, dilation) for dilation in config.atrous)
        self.whole = convolution(width_in, width, config, 1)
        self.merge = convolution((2 + len(config.atrous)) * width, width, config, 1)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """What lies near, at each of the dilations, and everywhere, merged."""
        whole = self.whole(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        return self.merge(torch.cat([self.near(x), *(branch(x) for branch in self.atrous), whole], dim=1))  # type: ignore[no-any-return]


class AtrousDecoder(nn.Module):
    """Joins deep features (B, aspp_width, h', w') with those of a finer resolution: (B, aspp_width, h, w).

    Parameters
    ----------
    width_in : channels of the finer features
    """

    def __init__(self, width_in: int, config: AtrousConfig) -> None:
        super().__init__()
        width = config.aspp_width
        self.low = convolution(width_in, config.low_width, config, 1)
        self.join = nn.Sequential(convolution(width + config.low_width, width, config, 3), convolution(width, width, config, 3))
        initialise(self)

    def forward(self, deep: Tensor, low: Tensor) -> Tensor:
        """``deep`` at the resolution of ``low`` (B, width_in, h, w), with its detail."""
        low = self.low(low)
        return self.join(torch.cat([enlarged(deep, low), low], dim=1))  # type: ignore[no-any-return]
