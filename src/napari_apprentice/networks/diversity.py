"""Latent Diversity (Li, Chen & Koltun, 2018): one network proposes M masks, another one chooses among them.

The first network, f, sees the image, its features in an image classifier at every resolution (a hypercolumn), the clicks and the distances
to them; *hindsight* lets only the best of its masks learn, so that each can stand for another meaning of the same clicks. The second, g,
sees image, clicks and masks, and scores the masks. Instead of g the masks may be ranked by the order in which they are proposed.

Ours beside the paper's: the previous mask as a further input, groups that normalise f, bodies at a part of the resolution, and a g that
sees one mask at a time, and distances that end nearer to the clicks.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_apprentice.losses import hindsight, iou_distance, ranked_diversity
from napari_apprentice.networks._interface import CLICKED_PX, IoUHead, Output, clicks_at
from napari_apprentice.types import WeightsError

__all__ = ["VGG", "Diversity", "DiversityConfig"]

LEAK = 0.2
"""Slope of the leaky rectifiers below 0."""


@dataclass(frozen=True)
class DiversityConfig:
    """Every width and depth.

    Attributes
    ----------
    masks : M, how many masks are proposed
    selection : what chooses among them: "network" (g as in the paper, which sees all of them), "shared" (ours: g sees one at a time, and
        learns from each of them what a good one looks like) or "rank" (no g: the first one is to be the best)
    body : of f: "can" (context aggregation: dilated convolutions at one resolution) or "unet"
    width, choice_width : channels of f and of g
    dilations : of the convolutions of a context aggregation
    shrink, choice_shrink : f and g work at one part in this many of the resolution: 1, 2 or 4, g not more finely than f
    encoder : channels of the five stages of the image encoder, a VGG-19 up to its conv5_2
    groups : channel groups of the normalisation of f; 0 for none, as in the paper
    sees_previous : the previous mask is an input too; the paper does without
    guidance, disk_radius_px : the click encoding it was made for (`napari_apprentice.guidance`), and where that truncates
    """

    masks: int = 6
    selection: str = "shared"
    body: str = "can"
    width: int = 32
    choice_width: int = 16
    dilations: tuple[int, ...] = (1, 2, 4, 8, 16, 1)
    shrink: int = 2
    choice_shrink: int = 4
    encoder: tuple[int, ...] = (8, 24, 48, 96, 96)
    groups: int = 4
    sees_previous: bool = True
    guidance: str = "distance"
    disk_radius_px: float = 48.0

    def __post_init__(self) -> None:
        choices: dict[str, tuple[Any, ...]] = {
            "selection": ("network", "shared", "rank"),
            "body": ("can", "unet"),
            "guidance": ("distance",),
        }
        choices |= {"shrink": (1, 2, 4), "choice_shrink": tuple(n for n in (1, 2, 4) if n >= self.shrink)}
        for name, allowed in choices.items():
            if (value := getattr(self, name)) not in allowed:
                raise WeightsError(f"{name} = {value!r} arrived for 'diversity'; expected one of {', '.join(map(repr, allowed))}")
        if self.masks < 1 or len(self.encoder) != 5:
            raise WeightsError(f"{self.masks} masks and {len(self.encoder)} encoder stages arrived; expected 1 mask or more, and 5 stages")

    @property
    def stride(self) -> int:
        """The working size must be a multiple of this."""
        return 16


def _normalised(width: int, groups: int) -> list[nn.Module]:
    return [nn.GroupNorm(groups, width)] if groups else []


class VGG(nn.Module):
    """The convolutions of VGG-19 (Simonyan & Zisserman, 2015) up to conv5_2: image (B, 3, h, w) to the five features of a hypercolumn.

    These are conv1_2, conv2_2, ... conv5_2 after their rectifiers, at 1, 1/2, 1/4, 1/8 and 1/16 of the resolution. Without groups
    ``features`` is laid out and named as torchvision's ``vgg19().features``, up to its end.

    Parameters
    ----------
    widths : channels of the five stages
    groups : of a group normalisation behind every convolution; 0 for none
    """

    CONVOLUTIONS = (2, 2, 4, 4, 2)

    def __init__(self, widths: tuple[int, ...] = (64, 128, 256, 512, 512), groups: int = 0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.taps = []
        entering = 3
        for stage, (width, count) in enumerate(zip(widths, self.CONVOLUTIONS, strict=True)):
            if stage:
                layers.append(nn.MaxPool2d(2))
            for number in range(count):
                layers += [nn.Conv2d(entering, width, 3, padding=1), *_normalised(width, groups), nn.ReLU()]
                entering = width
                if number == 1:
                    self.taps.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> list[Tensor]:
        """The five features."""
        found, x = [], image
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.taps:
                found.append(x)
        return found


class ContextAggregation(nn.Sequential):
    """(B, in, h, w) -> (B, width, h, w): 3×3 convolutions of growing dilation (Yu & Koltun, 2016), each with a leaky rectifier."""

    def __init__(self, entering: int, width: int, dilations: tuple[int, ...], groups: int) -> None:
        layers: list[nn.Module] = []
        for dilation in dilations:
            layers += [nn.Conv2d(entering, width, 3, padding=dilation, dilation=dilation)]
            layers += [*_normalised(width, groups), nn.LeakyReLU(LEAK)]
            entering = width
        super().__init__(*layers)


class UNetBody(nn.Module):
    """(B, width, h, w) -> the same: a U-Net (Ronneberger et al., 2015) of as many levels as divide the smallest working size."""

    def __init__(self, config: DiversityConfig) -> None:
        super().__init__()
        levels = {1: 5, 2: 4, 4: 3}[config.shrink]
        widths = [config.width * 2**level for level in range(levels)]
        self.down = nn.ModuleList(_twice(before, w, config.groups) for before, w in pairwise([config.width, *widths]))
        self.up = nn.ModuleList(_twice(w + below, w, config.groups) for w, below in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Down, and up again."""
        seen = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            seen.append(x)
        for block, skip in zip(reversed(list(self.up)), seen[-2::-1], strict=True):
            x = block(torch.cat([skip, _resized(x, skip)], dim=1))
        return x


def _twice(entering: int, width: int, groups: int) -> nn.Sequential:
    """Two 3×3 convolutions."""
    layers: list[nn.Module] = []
    for before in (entering, width):
        layers += [nn.Conv2d(before, width, 3, padding=1), *_normalised(width, groups), nn.LeakyReLU(LEAK)]
    return nn.Sequential(*layers)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class Diversity(nn.Module):
    """See the module. Inputs: image (B, 3, h, w) standardised, guidance (B, 2, h, w) distances, previous (B, 1, h, w) probability."""

    SIZES: ClassVar[dict[str, DiversityConfig]] = {
        "small": DiversityConfig(),
        "paper": DiversityConfig(
            selection="network",
            width=64,
            choice_width=64,
            dilations=(1, 2, 4, 8, 16, 32, 64, 128, 1),
            shrink=1,
            choice_shrink=1,
            encoder=(64, 128, 256, 512, 512),
            groups=0,
            sees_previous=False,
            disk_radius_px=255.0,
        ),
    }

    def __init__(self, config: DiversityConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DiversityConfig()
        per_pixel = config.shrink**2
        seen = (3 + 4 + config.sees_previous) * per_pixel  # image, clicks and distances, perhaps the previous mask
        self.encoder = VGG(config.encoder, config.groups)
        self.project = nn.Conv2d(seen, config.width, 1)  # with the next ones the affine projection of the whole hypercolumn
        self.project_features = nn.ModuleList(nn.Conv2d(width, config.width, 1, bias=False) for width in config.encoder)
        self.body: nn.Module = UNetBody(config)
        if config.body == "can":
            self.body = ContextAggregation(config.width, config.width, config.dilations, config.groups)
        self.to_masks = nn.Conv2d(config.width, config.masks * per_pixel, 1)
        self.selects = config.selection != "rank" and config.masks > 1
        if self.selects:
            # Never normalised: g averages over the image, and that is what a normalisation takes away.
            # Its first convolution is in two parts: what one says of the image does for all masks.
            together, width, first = config.masks if config.selection == "network" else 1, config.choice_width, config.dilations[0]
            finer = (config.choice_shrink // config.shrink) ** 2
            self.selection_of_image = nn.Conv2d(seen * finer, width, 3, padding=first, dilation=first)
            self.selection_of_masks = nn.Conv2d(together * per_pixel * finer, width, 3, padding=first, dilation=first, bias=False)
            self.selection = ContextAggregation(width, width, config.dilations[1:], groups=0)
            self.to_scores = nn.Conv2d(config.choice_width, together, 1)
        self.to_iou = IoUHead(config.width)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=LEAK)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.to_masks.weight, std=0.05)

    def encode(self, image: Tensor) -> Tensor:
        """(B, 3·shrink² + width, h/shrink, w/shrink): the image, and its hypercolumn as the first layer of f sees it.

        A 1×1 convolution of resized features is the resized 1×1 convolution of features: each is done at the smaller of the two sizes, and
        full resolution never holds all channels.
        """
        pixels = F.pixel_unshuffle(image, self.config.shrink)
        projected = torch.zeros((), dtype=image.dtype, device=image.device)
        for project, feature in zip(self.project_features, self.encoder(image), strict=True):
            finer = feature.shape[-1] > pixels.shape[-1]
            projected = projected + (project(_resized(feature, pixels)) if finer else _resized(project(feature), pixels))
        return torch.cat([pixels, projected], dim=1)

    def decode(self, features: Tensor, guidance: Tensor, previous: Tensor) -> Output:
        """M masks and their scores, and the mask with the best score."""
        config = self.config
        pixels, projected = features.tensor_split([features.shape[1] - config.width], dim=1)
        said = torch.cat([self._clicked(guidance).float(), guidance, *([previous] if config.sees_previous else [])], dim=1)
        seen = torch.cat([pixels, F.pixel_unshuffle(said, config.shrink)], dim=1)
        x = self.body(self.project(seen) + projected)
        candidates = F.pixel_shuffle(self.to_masks(x), config.shrink)  # (B, M, h, w)
        scores = self._scores(seen, candidates)
        best = scores.argmax(1, keepdim=True)
        logits = candidates.gather(1, best[:, :, None, None].expand(-1, 1, *candidates.shape[-2:]))
        ious = self.to_iou(x, candidates)
        return Output(logits, ious.gather(1, best)[:, 0], candidates, scores, candidate_iou_logits=ious)

    def _scores(self, seen: Tensor, candidates: Tensor) -> Tensor:
        """(B, M) log of the chance to be best, by g; or a constant that falls with the rank."""
        count = candidates.shape[1]
        if not self.selects:
            return torch.log_softmax(-torch.arange(count, dtype=candidates.dtype, device=candidates.device), 0).expand(len(candidates), -1)
        masks = torch.sigmoid(candidates.detach())
        if self.config.selection == "shared":
            each = masks.flatten(0, 1)[:, None]  # (B·M, 1, h, w)
            return torch.log_softmax(self._judged(seen, each).reshape(-1, count), dim=1)
        if not (self.training and torch.is_grad_enabled()):
            return torch.log_softmax(self._judged(seen, masks), dim=1)
        # In training the masks come in ever another order, so that g looks at what they show.
        order = torch.rand(masks.shape[:2], device=masks.device).argsort(1)
        scores = self._judged(seen, masks.gather(1, order[:, :, None, None].expand_as(masks)))
        return torch.log_softmax(scores, dim=1).gather(1, order.argsort(1))

    def _judged(self, seen: Tensor, masks: Tensor) -> Tensor:
        """One number for each of the masks that g sees together, (B·k, ...) where (B, ...) is seen of the images."""
        shrink = self.config.choice_shrink
        of_masks = self.selection_of_masks(F.pixel_unshuffle(masks, shrink))
        of_image = self.selection_of_image(F.pixel_unshuffle(seen, shrink // self.config.shrink)).repeat_interleave(
            len(masks) // len(seen), dim=0
        )
        x = self.selection(F.leaky_relu(of_image + of_masks, LEAK))
        return self.to_scores(x).mean((2, 3))  # type: ignore[no-any-return]

    def loss(self, output: Output, target: Tensor, guidance: Tensor) -> Tensor:
        """Hindsight over the masks, and cross-entropy of the scores against the mask that is best; or the ranked diversity loss."""
        if output.candidates is None or output.scores is None:
            raise WeightsError("an output without candidates arrived; expected one of this network")
        candidates, clicks = output.candidates.float(), clicks_at(self._clicked(guidance))
        if self.config.selection == "rank":
            return ranked_diversity(candidates, target, clicks)
        best = iou_distance(candidates.detach(), target).argmin(1)
        return hindsight(candidates, target, clicks) + F.nll_loss(output.scores.float(), best)

    def _clicked(self, guidance: Tensor) -> Tensor:
        """(B, 2, h, w) bool: the clicked pixels, from the distances to them."""
        return guidance * self.config.disk_radius_px < CLICKED_PX

    def forward(self, image: Tensor, guidance: Tensor, previous: Tensor) -> Output:
        """`decode` of `encode`."""
        return self.decode(self.encode(image), guidance, previous)
