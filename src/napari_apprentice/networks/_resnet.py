"""Residual encoders (He et al., 2016) with dilation in place of the last strides (Chen et al., 2017), for networks that need a backbone.

The state dict has the names of torchvision's ``resnet18``, ``resnet34`` and ``resnet50`` without ``fc``, so that their weights fit
(`napari_apprentice.foreign`).
"""

from __future__ import annotations

from typing import Final

import torch.nn.functional as F
from torch import Tensor, nn

from napari_apprentice.types import WeightsError

__all__ = ["RESNETS", "ResNet", "normalisation"]

RESNETS: Final = {"resnet18": 18, "resnet34": 34, "resnet50": 50}
"""name -> depth."""

_BLOCKS: Final = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
_DILATIONS: Final = {32: (1, 1), 16: (1, 2), 8: (2, 4)}  # of the third and the fourth stage, by output stride


def normalisation(kind: str, channels: int) -> nn.Module:
    """Batch normalisation ("batch"), or group normalisation ("group") with at most 32 groups of at least 8 channels.

    Only groups are independent of the batch; batch statistics belong to evaluation mode whenever a model adapts to batches of one.
    """
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        groups = next((g for g in (32, 16, 8, 4, 2) if channels % g == 0 and channels // g >= 8), 1)
        return nn.GroupNorm(groups, channels)
    raise WeightsError(f"a normalisation called {kind!r} was asked for; expected 'batch' or 'group'")


class _Basic(nn.Module):
    """(B, in, h, w) -> (B, width, h/stride, w/stride): two 3×3 convolutions of dilations ``before`` and ``dilation`` around a shortcut."""

    expansion = 1

    def __init__(self, width_in: int, width: int, stride: int, before: int, dilation: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=before, dilation=before, bias=False)
        self.bn1 = normalisation(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = normalisation(norm, width)
        self.downsample = _shortcut(width_in, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + (x if self.downsample is None else self.downsample(x)))


class _Bottleneck(nn.Module):
    """(B, in, h, w) -> (B, 4·width, h/stride, w/stride): 1×1, 3×3 (of dilation ``before``) and 1×1 convolutions around a shortcut."""

    expansion = 4

    def __init__(self, width_in: int, width: int, stride: int, before: int, dilation: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 1, bias=False)
        self.bn1 = normalisation(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=before, dilation=before, bias=False)
        self.bn2 = normalisation(norm, width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = normalisation(norm, 4 * width)
        self.downsample = _shortcut(width_in, 4 * width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        inner = F.relu(self.bn2(self.conv2(inner)))
        return F.relu(self.bn3(self.conv3(inner)) + (x if self.downsample is None else self.downsample(x)))


def _shortcut(width_in: int, width_out: int, stride: int, norm: str) -> nn.Sequential | None:
    if stride == 1 and width_in == width_out:
        return None
    return nn.Sequential(nn.Conv2d(width_in, width_out, 1, stride, bias=False), normalisation(norm, width_out))


class ResNet(nn.Module):
    """The convolutional part of a residual network.

    Parameters
    ----------
    depth : 18, 34 or 50
    in_channels : of what enters
    output_stride : 8, 16 or 32; dilations make up for the strides that are left out, in such a way that the same weights say the same
        at the places where both look (the first 3×3 convolution of a stage still has the dilation of the stage before)
    norm : see `normalisation`
    width : channels of the first stage, 64 in the paper

    Attributes
    ----------
    widths : channels of the four features that `forward` returns

    Raises
    ------
    WeightsError : there is no such depth, output stride or normalisation
    """

    def __init__(self, depth: int, in_channels: int = 3, output_stride: int = 32, norm: str = "batch", width: int = 64) -> None:
        super().__init__()
        if depth not in _BLOCKS or output_stride not in _DILATIONS:
            raise WeightsError(f"a ResNet-{depth} of output stride {output_stride} was asked for; expected 18, 34 or 50 and 8, 16 or 32")
        block = _Bottleneck if depth == 50 else _Basic
        self.widths = tuple(width * 2**stage * block.expansion for stage in range(4))
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = normalisation(norm, width)
        dilations = (1, 1, *_DILATIONS[output_stride])
        entering, before = width, 1
        stages = []
        for stage, (blocks, dilation) in enumerate(zip(_BLOCKS[depth], dilations, strict=True)):
            stride = 2 if stage > 0 and dilation == before else 1
            inner = width * 2**stage
            first = block(entering, inner, stride, before, dilation, norm)
            entering = inner * block.expansion
            stages.append(nn.Sequential(first, *(block(entering, inner, 1, dilation, dilation, norm) for _ in range(blocks - 1))))
            before = dilation
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        """The features of the four stages of (B, in, h, w), at strides 4, 8, 16 and 32, the last two at most at the output stride."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        return features
