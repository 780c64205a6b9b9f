"""DeepLabV3+ (Chen et al., 2018) as the network of Learning from Corrections (Kontogianni et al., 2020).

The image and two click maps enter together (early fusion, five channels). A dilated encoder keeps an output stride of 8, atrous spatial
pyramid pooling (ASPP) looks at it at several reaches, and a decoder joins that with the encoder's features at stride 4.

Ours beside the paper's, in the small size: the previous mask as a further input, groups that normalise, and reaches for small windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_apprentice.networks._interface import IoUHead, Output
from napari_apprentice.networks._resnet import ResNet, normalisation
from napari_apprentice.networks._xception import Separable, Xception
from napari_apprentice.types import WeightsError

__all__ = ["DeepLab", "DeepLabConfig"]

_RESNETS: Final = {"resnet18": 18, "resnet34": 34, "resnet50": 50}


@dataclass(frozen=True)
class DeepLabConfig:
    """Every width and depth.

    Attributes
    ----------
    encoder : "resnet18", "resnet34", "resnet50" or "xception65"
    width : channels of the encoder's first stage; 64 in the papers, all others are in proportion
    norm : "batch" (running statistics, for weights of others and for long training with large batches) or "group" (nothing depends on the
        batch)
    output_stride : of the encoder: 8 or 16, for ResNets also 32
    atrous : dilations of the ASPP; the published ones, 12, 24 and 36, are meant for maps of 65 pixels and ours, of 16, would hardly see
        more than their middle
    aspp_width, low_width : channels of ASPP and decoder, and of the features at stride 4 that join them
    separable : depthwise separable 3×3 convolutions in ASPP and decoder
    sees_previous : the previous mask enters as a sixth channel; not so in the paper
    guidance, disk_radius_px : the click encoding it was made for (`napari_apprentice.guidance`)
    """

    encoder: str = "resnet34"
    width: int = 32
    norm: str = "group"
    output_stride: int = 8
    atrous: tuple[int, ...] = (3, 6, 9)
    aspp_width: int = 128
    low_width: int = 48
    separable: bool = True
    sees_previous: bool = True
    guidance: str = "disk"
    disk_radius_px: float = 3.0

    @property
    def stride(self) -> int:
        """The working size must be a multiple of this."""
        return self.output_stride


def _convolution(width_in: int, width_out: int, config: DeepLabConfig, kernel: int, dilation: int = 1) -> nn.Sequential:
    """Convolution, normalisation, rectifier."""
    if kernel == 3 and config.separable:
        return Separable(width_in, width_out, config.norm, dilation=dilation)
    convolution = nn.Conv2d(width_in, width_out, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=False)
    return nn.Sequential(convolution, normalisation(config.norm, width_out), nn.ReLU())


class _Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: (B, in, h, w) -> (B, aspp_width, h, w)."""

    def __init__(self, width_in: int, config: DeepLabConfig) -> None:
        super().__init__()
        width = config.aspp_width
        self.near = _convolution(width_in, width, config, 1)
        self.atrous = nn.ModuleList(_convolution(width_in, width, config, 3, dilation) for dilation in config.atrous)
        self.whole = _convolution(width_in, width, config, 1)
        self.merge = _convolution((2 + len(config.atrous)) * width, width, config, 1)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.whole(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        return self.merge(torch.cat([self.near(x), *(branch(x) for branch in self.atrous), whole], dim=1))  # type: ignore[no-any-return]


class DeepLab(nn.Module):
    """See the module. Inputs: image (B, 3, h, w) standardised, guidance (B, 2, h, w) in 0..1, previous (B, 1, h, w) probability.

    Where batches normalise they do so in training mode alone: a model that adapts is in evaluation mode, and one image is enough. The
    size "paper" has 41 M parameters, the known count of DeepLabV3+ with Xception-65; the paper itself states none.
    """

    SIZES: ClassVar[dict[str, DeepLabConfig]] = {
        "small": DeepLabConfig(),
        **{
            size: DeepLabConfig(encoder, width=64, norm="batch", atrous=(12, 24, 36), aspp_width=256, sees_previous=False)
            for size, encoder in {"paper": "xception65", "resnet34": "resnet34", "resnet50": "resnet50"}.items()
        },
    }

    def __init__(self, config: DeepLabConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DeepLabConfig()
        entering = 6 if config.sees_previous else 5
        self.encoder: nn.Module
        if config.encoder == "xception65":
            xception = Xception(entering, config.output_stride, config.norm, config.width)
            self.encoder, low, deep = xception, xception.widths[0], xception.widths[-1]
        elif config.encoder in _RESNETS:
            resnet = ResNet(_RESNETS[config.encoder], entering, config.output_stride, config.norm, config.width)
            self.encoder, low, deep = resnet, resnet.widths[0], resnet.widths[-1]
        else:
            raise WeightsError(f"an encoder called {config.encoder!r} was asked for; expected 'xception65' or one of {', '.join(_RESNETS)}")
        width = config.aspp_width
        self.aspp = _Pyramid(deep, config)
        self.low = _convolution(low, config.low_width, config, 1)
        self.decoder = nn.Sequential(
            _convolution(width + config.low_width, width, config, 3),
            _convolution(width, width, config, 3),
        )
        self.to_logits = nn.Conv2d(width, 1, 1)
        self.to_iou = IoUHead(width)
        for module in (self.aspp, self.low, self.decoder):
            for layer in module.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.normal_(self.to_logits.weight, std=0.05)

    def encode(self, image: Tensor) -> Tensor:
        """Nothing depends on the image alone in early fusion: the image itself."""
        return image

    def decode(self, features: Tensor, guidance: Tensor, previous: Tensor) -> Output:
        """Mask and estimated IoU for one set of clicks per image."""
        inputs = [features, guidance, previous] if self.config.sees_previous else [features, guidance]
        low, *_, deep = self.encoder(torch.cat(inputs, dim=1))
        low = self.low(low)  # (B, low_width, h/4, w/4)
        deep = F.interpolate(self.aspp(deep), size=low.shape[-2:], mode="bilinear", align_corners=False)
        joined = self.decoder(torch.cat([deep, low], dim=1))
        logits = F.interpolate(self.to_logits(joined), size=guidance.shape[-2:], mode="bilinear", align_corners=False)
        return Output(logits, self.to_iou(joined, logits))

    def forward(self, image: Tensor, guidance: Tensor, previous: Tensor) -> Output:
        """`decode` of `encode`."""
        return self.decode(self.encode(image), guidance, previous)
