"""Xception-65 (Chollet, 2017) as DeepLabV3+ aligns and deepens it (Chen et al., 2018), with dilation in place of the last strides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch.nn.functional as F
from torch import Tensor, nn

from napari_apprentice.networks._resnet import normalisation
from napari_apprentice.types import WeightsError

__all__ = ["Separable", "Xception"]

_RATES: Final = {16: (1, 1, 2), 8: (2, 2, 4)}  # of the middle flow and the two blocks of the exit flow, by output stride


class Separable(nn.Sequential):
    """(B, in, h, w) -> (B, out, h/stride, w/stride): a 3×3 convolution of every channel, then a 1×1 one; each normalised.

    Parameters
    ----------
    rectified : rectify after each of the two
    """

    def __init__(self, width_in: int, width_out: int, norm: str, stride: int = 1, dilation: int = 1, *, rectified: bool = True) -> None:
        after = nn.ReLU if rectified else nn.Identity
        super().__init__(
            nn.Conv2d(width_in, width_in, 3, stride, padding=dilation, dilation=dilation, groups=width_in, bias=False),
            normalisation(norm, width_in),
            after(),
            nn.Conv2d(width_in, width_out, 1, bias=False),
            normalisation(norm, width_out),
            after(),
        )


class _Block(nn.Module):
    """Three separable convolutions, the last with the stride, around a shortcut: "conv", "sum" or "none", which rectifies behind them."""

    def __init__(self, width_in: int, widths: Sequence[int], norm: str, shortcut: str, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.rectified = shortcut == "none"
        entering = (width_in, *widths)
        self.convs = nn.ModuleList(
            Separable(entering[i], widths[i], norm, stride if i == 2 else 1, dilation, rectified=self.rectified) for i in range(3)
        )
        self.shortcut: nn.Module | None = None
        if shortcut == "conv":
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, widths[-1], 1, stride, bias=False), normalisation(norm, widths[-1]))
        elif shortcut == "sum":
            self.shortcut = nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What comes out, and what the second of the three convolutions says."""
        inner, second = x, x
        for i, conv in enumerate(self.convs):
            inner = conv(inner if self.rectified else F.relu(inner))
            second = inner if i == 1 else second
        return (inner if self.shortcut is None else inner + self.shortcut(x)), second


class Xception(nn.Module):
    """The convolutional part of Xception-65.

    Parameters
    ----------
    in_channels : of what enters
    output_stride : 8 or 16
    norm : see `_resnet.normalisation`
    width : channels of the second convolution, 64 in the paper; all others are in proportion

    Attributes
    ----------
    widths : channels of the two features that `forward` returns

    Raises
    ------
    WeightsError : there is no such output stride or normalisation
    """

    def __init__(self, in_channels: int = 3, output_stride: int = 8, norm: str = "batch", width: int = 64) -> None:
        super().__init__()
        if output_stride not in _RATES:
            raise WeightsError(f"an Xception of output stride {output_stride} was asked for; expected 8 or 16")

        def of(*channels: int) -> tuple[int, ...]:
            return tuple(max(round(c * width / 64), 1) for c in channels)

        middle, first, second = _RATES[output_stride]
        half, full = of(32, 64)
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, half, 3, stride=2, padding=1, bias=False),
            normalisation(norm, half),
            nn.ReLU(),
            nn.Conv2d(half, full, 3, padding=1, bias=False),
            normalisation(norm, full),
            nn.ReLU(),
        )
        entry = [of(*3 * [c]) for c in (128, 256, 728)]
        self.entry1 = _Block(full, entry[0], norm, "conv", stride=2)
        self.entry2 = _Block(entry[0][-1], entry[1], norm, "conv", stride=2)
        self.entry3 = _Block(entry[1][-1], entry[2], norm, "conv", stride=1 if output_stride == 8 else 2)
        self.middle = nn.ModuleList(_Block(entry[2][-1], entry[2], norm, "sum", dilation=middle) for _ in range(16))
        exits = of(728, 1024, 1024), of(1536, 1536, 2048)
        self.exit1 = _Block(entry[2][-1], exits[0], norm, "conv", dilation=first)
        self.exit2 = _Block(exits[0][-1], exits[1], norm, "none", dilation=second)
        self.widths = (entry[1][1], exits[1][-1])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        """The features of (B, in, h, w) at stride 4 (inside the second block of the entry flow) and at the output stride."""
        x, _ = self.entry1(self.stem(x))
        x, quarter = self.entry2(x)
        x, _ = self.entry3(x)
        for block in self.middle:
            x, _ = block(x)
        x, _ = self.exit1(x)
        x, _ = self.exit2(x)
        return [quarter, x]
