"""DeepLabV3+ (Chen et al., 2018) as the network of Learning from Corrections (Kontogianni et al., 2020).

The image and two click maps enter together (early fusion, five channels). A dilated encoder keeps an output stride of 8, atrous spatial
pyramid pooling (ASPP) looks at it at several reaches, and a decoder joins that with the encoder's features at stride 4.

Ours beside the paper's, in the small size: the previous mask as a further input, groups that normalise, a narrow ResNet-18, and reaches for
small windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from napari_apprentice.networks._atrous import AtrousConfig, AtrousDecoder, AtrousPyramid, enlarged
from napari_apprentice.networks._interface import IoUHead, Output
from napari_apprentice.networks._resnet import RESNETS, ResNet
from napari_apprentice.networks._xception import Xception
from napari_apprentice.types import WeightsError

__all__ = ["DeepLab", "DeepLabConfig"]


@dataclass(frozen=True)
class DeepLabConfig(AtrousConfig):
    """Every width and depth: those of `_atrous.AtrousConfig`; the encoder may be "xception65" too."""

    encoder: str = "resnet18"
    width: int = 28
    norm: str = "group"
    output_stride: int = 8
    atrous: tuple[int, ...] = (3, 6, 9)
    aspp_width: int = 128
    low_width: int = 48
    separable: bool = True
    sees_previous: bool = True
    guidance: str = "disk"
    disk_radius_px: float = 3.0


class DeepLab(nn.Module):
    """See the module. Inputs: image (B, 3, h, w) standardised, guidance (B, 2, h, w) in 0..1, previous (B, 1, h, w) probability.

    Where batches normalise they do so in training mode alone: a model that adapts is in evaluation mode, and one image is enough. The
    papers state no count of parameters; a public DeepLabV3+ with Xception-65 (SegmenTron) has 41.26 M with 21 classes, the size "paper"
    41.10 M with one mask.
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
        elif config.encoder in RESNETS:
            resnet = ResNet(RESNETS[config.encoder], entering, config.output_stride, config.norm, config.width)
            self.encoder, low, deep = resnet, resnet.widths[0], resnet.widths[-1]
        else:
            raise WeightsError(f"an encoder called {config.encoder!r} was asked for; expected 'xception65' or one of {', '.join(RESNETS)}")
        self.aspp = AtrousPyramid(deep, config)
        self.decoder = AtrousDecoder(low, config)
        self.to_logits = nn.Conv2d(config.aspp_width, 1, 1)
        self.to_iou = IoUHead(config.aspp_width)
        nn.init.normal_(self.to_logits.weight, std=0.05)

    def encode(self, image: Tensor) -> Tensor:
        """Nothing depends on the image alone in early fusion: the image itself."""
        return image

    def decode(self, features: Tensor, guidance: Tensor, previous: Tensor) -> Output:
        """Mask and estimated IoU for one set of clicks per image."""
        inputs = [features, guidance, previous] if self.config.sees_previous else [features, guidance]
        low, *_, deep = self.encoder(torch.cat(inputs, dim=1))
        joined = self.decoder(self.aspp(deep), low)  # (B, aspp_width, h/4, w/4)
        logits = enlarged(self.to_logits(joined), guidance)
        return Output(logits, self.to_iou(joined, logits)[:, 0])

    def forward(self, image: Tensor, guidance: Tensor, previous: Tensor) -> Output:
        """`decode` of `encode`."""
        return self.decode(self.encode(image), guidance, previous)
