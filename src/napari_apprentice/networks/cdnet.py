"""CDNet, the conditional diffusion network (Chen et al., 2021): what clicks say spreads to places that look alike.

DeepLabV3+ with two things added. *Feature diffusion* lets every place at stride 8 gather the features of clicked places that resemble it,
of positive ones as far as a first guess calls it foreground, of negative ones for the rest. *Diversified training* adds latent heads, of
which only the best learns, so that the main one is not torn between the meanings of few clicks; nothing of it remains in an answer.

The third part of the paper, pixel diffusion, works on the answer of any network: `refinement.pixel_diffusion`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_apprentice.losses import cross_entropy, diversified_training
from napari_apprentice.networks._atrous import AtrousConfig, AtrousDecoder, AtrousPyramid, convolution, enlarged, initialise
from napari_apprentice.networks._interface import CLICKED_PX, IoUHead, Output, clicks_at
from napari_apprentice.networks._resnet import RESNETS, ResNet
from napari_apprentice.types import WeightsError

__all__ = ["CDNet", "CDNetConfig", "conditional_affinity"]

GUESS_WEIGHT = 0.4
"""Of the loss of the first guess beside the others; the paper does not say, the authors' code has this."""
LEAK = 0.2
"""Slope of the leaky rectifier below 0."""


@dataclass(frozen=True)
class CDNetConfig(AtrousConfig):
    """Every width and depth. Those of `_atrous.AtrousConfig`, with a ResNet as the encoder, and beside them:

    Attributes
    ----------
    feature_diffusion : False leaves it out
    source_sigma : of the Gaussians about clicks that features spread from, in cells of the deepest features
    latent_heads : of diversified training; 0 for training by cross-entropy alone
    """

    encoder: str = "resnet18"
    width: int = 28
    norm: str = "group"
    output_stride: int = 8
    atrous: tuple[int, ...] = (2, 4, 6)
    aspp_width: int = 64
    low_width: int = 32
    separable: bool = False
    sees_previous: bool = True
    guidance: str = "gaussian"
    disk_radius_px: float = 10.0
    feature_diffusion: bool = True
    source_sigma: float = 1.0
    latent_heads: int = 4

    def __post_init__(self) -> None:
        if self.encoder not in RESNETS:
            raise WeightsError(f"an encoder called {self.encoder!r} was asked for; expected one of {', '.join(RESNETS)}")
        if self.guidance != "gaussian":
            raise WeightsError(f"guidance = {self.guidance!r} arrived for 'cdnet'; expected 'gaussian', which says how far away clicks are")


def conditional_affinity(affinity: Tensor, sources: Tensor, destinations: Tensor) -> Tensor:
    """CA_F + CA_B, where CA = softmax(S ⊙ A) ⊙ D: how much of each place's features each place gathers. Source: CDNet, equations 3 and 4.

    Every row sums to the sum of its destinations: to 1 where D_B = 1 − D_F.

    Parameters
    ----------
    affinity : (B, N, N), how much place i (row) resembles place j
    sources : (B, 2, N) in 0..1, what may spread: foreground, background
    destinations : (B, 2, N) in 0..1, where it may go

    Returns
    -------
    (B, N, N)
    """
    flows = torch.softmax(affinity[:, None] * sources[:, :, None, :], dim=-1)
    return (flows * destinations[..., None]).sum(1)


class FeatureDiffusion(nn.Module):
    """The feature diffusion module (FDM): (B, width, h, w) -> the same.

    What is gathered is added to what was there, through a last 1×1 convolution, as in the authors' code (which has one for each sign);
    equation 3 of the paper says only what is gathered. The affinities are divided by the root of the width. The first guess learns from
    what it lets through, as far as the paper goes; the authors' code stops that gradient.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.theta = nn.Conv2d(width, width, 1, bias=False)
        self.phi = nn.Conv2d(width, width, 1, bias=False)
        self.g = nn.Conv2d(width, width, 1, bias=False)
        self.out = nn.Conv2d(width, width, 1, bias=False)
        self.to_guess = nn.Conv2d(width, 1, 3, padding=1)
        nn.init.normal_(self.to_guess.weight, std=0.02)

    def forward(self, x: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
        """Diffused features, and the logits (B, 1, h, w) of the first guess.

        Parameters
        ----------
        sources : (B, 2, h, w) in 0..1, near positive and near negative clicks
        """
        guess: Tensor = self.to_guess(x)
        foreground = torch.sigmoid(guess)
        destinations = torch.cat([foreground, 1 - foreground], dim=1)
        affinity = self.theta(x).flatten(2).mT @ self.phi(x).flatten(2) / math.sqrt(x.shape[1])
        gathered = conditional_affinity(affinity, sources.flatten(2), destinations.flatten(2)) @ self.g(x).flatten(2).mT
        return x + self.out(gathered.mT.reshape(x.shape)), guess


class MapFusion(nn.Module):
    """Image, click maps and perhaps the previous mask as three channels, for an encoder of colour images: (B, in, h, w) -> (B, 3, h, w).

    Two 1×1 convolutions around a leaky rectifier. At first they let the image through, with some of the clicks mixed in.
    """

    def __init__(self, entering: int) -> None:
        super().__init__()
        self.spread, self.join = nn.Conv2d(entering, 16, 1), nn.Conv2d(16, 3, 1)
        both_signs = torch.cat([torch.eye(3), -torch.eye(3)])  # (6, 3)
        with torch.no_grad():
            self.spread.weight.normal_(std=0.5)
            self.spread.weight[:6] = 0
            self.spread.weight[:6, :3, 0, 0] = both_signs
            self.join.weight.normal_(std=0.1)
            self.join.weight[:, :6, 0, 0] += both_signs.T / (1 + LEAK)  # x rectified less -x rectified is (1 + LEAK)·x
            self.spread.bias.zero_()  # type: ignore[union-attr]
            self.join.bias.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """Three channels."""
        return self.join(F.leaky_relu(self.spread(x), LEAK))  # type: ignore[no-any-return]


def _head(width: int, masks: int, config: CDNetConfig) -> nn.Sequential:
    """(B, width, h, w) -> (B, masks, h, w) logits."""
    last = nn.Conv2d(width // 2, masks, 1)
    head = nn.Sequential(convolution(width, width // 2, config, 3), last)
    initialise(head)
    nn.init.normal_(last.weight, std=0.05)
    return head


class CDNet(nn.Module):
    """See the module. Inputs: image (B, 3, h, w) standardised, guidance (B, 2, h, w) Gaussians, previous (B, 1, h, w) probability."""

    SIZES: ClassVar[dict[str, CDNetConfig]] = {
        "small": CDNetConfig(),
        "paper": CDNetConfig(
            "resnet34", width=64, norm="batch", atrous=(12, 24, 36), aspp_width=128, low_width=32, sees_previous=False
        ),  # the paper states no count; the authors' weights of this size take 89.72 MiB, which is 23.5 M values
        "resnet50": CDNetConfig("resnet50", width=64, norm="batch", atrous=(12, 24, 36), aspp_width=256, low_width=48, sees_previous=False),
    }

    def __init__(self, config: CDNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CDNetConfig()
        width = config.aspp_width
        self.fuse = MapFusion(5 + config.sees_previous)
        self.encoder = ResNet(RESNETS[config.encoder], 3, config.output_stride, config.norm, config.width)
        self.aspp = AtrousPyramid(self.encoder.widths[-1], config)
        self.diffusion = FeatureDiffusion(width) if config.feature_diffusion else None
        self.decoder = AtrousDecoder(self.encoder.widths[0], config)
        self.to_logits = _head(width, 1, config)
        self.to_latent = _head(width, config.latent_heads, config) if config.latent_heads else None
        self.to_iou = IoUHead(width)

    def encode(self, image: Tensor) -> Tensor:
        """Nothing depends on the image alone in early fusion: the image itself."""
        return image

    def decode(self, features: Tensor, guidance: Tensor, previous: Tensor) -> Output:
        """Mask and estimated IoU for one set of clicks per image; in training also what `loss` looks at."""
        inputs = [features, guidance, previous] if self.config.sees_previous else [features, guidance]
        low, *_, deep = self.encoder(self.fuse(torch.cat(inputs, dim=1)))
        deep, details = self.aspp(deep), {}
        if self.diffusion is not None:
            deep, details["guess"] = self.diffusion(deep, self.sources(guidance, (deep.shape[-2], deep.shape[-1])))
        joined = self.decoder(deep, low)  # (B, aspp_width, h/4, w/4)
        logits = enlarged(self.to_logits(joined), guidance)
        if self.training and self.to_latent is not None:
            details["latent"] = enlarged(self.to_latent(joined), guidance)
        return Output(logits, self.to_iou(joined, logits)[:, 0], details=details if self.training else None)

    def sources(self, guidance: Tensor, cells: tuple[int, int]) -> Tensor:
        """(B, 2, *cells): Gaussians about the clicks, ``source_sigma`` cells wide, from those that are ``disk_radius_px`` pixels wide.

        A power of a Gaussian is a narrower one; every cell takes its largest, so that the one with the click in it has 1.
        """
        cell_px = guidance.shape[-1] / cells[1]
        exponent = (self.config.disk_radius_px / (self.config.source_sigma * cell_px)) ** 2
        return F.adaptive_max_pool2d(guidance, cells) ** exponent

    def loss(self, output: Output, target: Tensor, guidance: Tensor) -> Tensor:
        """Diversified training, and cross-entropy of the first guess."""
        details = output.details or {}
        logits = torch.cat([output.logits, details["latent"]], dim=1) if "latent" in details else output.logits
        clicked = guidance > math.exp(-0.5 * (CLICKED_PX / self.config.disk_radius_px) ** 2)
        total = diversified_training(logits.float(), target, clicks_at(clicked), sigma_px=self.config.disk_radius_px)
        if "guess" in details:
            guess = details["guess"].float()
            total = total + GUESS_WEIGHT * cross_entropy(guess, F.interpolate(target, size=guess.shape[-2:], mode="area"))
        return total

    def forward(self, image: Tensor, guidance: Tensor, previous: Tensor) -> Output:
        """`decode` of `encode`."""
        return self.decode(self.encode(image), guidance, previous)
