"""AdaptiveClick (Lin et al., 2024): a transformer whose queries propose several masks for the same clicks, each with its chance.

Clicks and previous mask are embedded as patches and added to the patches of the image; a plain vision transformer (ViT) sees both. A
feature pyramid, made of its last layer alone, is refined by multi-scale deformable attention (the pixel decoder), and Q queries look at it
from coarse to fine, each inside its own newest mask and drawn to the positive clicks (the click-aware decoder).

In training every positive click is a target of its own, and the Hungarian algorithm gives it to the query that fits best: the other
queries stay free to propose something else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from napari_apprentice.losses import adaptive_focal, soft_dice
from napari_apprentice.networks._interface import IoUHead, Output
from napari_apprentice.types import InputError, WeightsError

__all__ = ["AdaptiveClick", "AdaptiveClickConfig", "deformable_attention", "matched"]

STRIDES = (4, 8, 16, 32)
"""Of the feature pyramid: the first for the masks, the others for the queries to look at."""


@dataclass(frozen=True)
class AdaptiveClickConfig:
    """Every width and depth.

    Attributes
    ----------
    patch : side of the encoder's patches in pixels: 4, 8, 16 or 32
    width, depth, heads : of the encoder
    grid : patches along each side for which positions are learnt; other sizes interpolate them
    hidden : channels of pixel decoder and queries
    hidden_heads : attention heads there
    points : places that each head of the pixel decoder looks at in every level
    pixel_layers, pixel_ffn : depth of the pixel decoder, and inner width of its feed-forward parts
    blocks, ffn : rounds of the queries through the three levels, and inner width of their feed-forward parts
    queries : masks that are proposed
    groups : channel groups of the pyramid's normalisation
    guidance, disk_radius_px : the click encoding it was made for (`napari_apprentice.guidance`)
    """

    patch: int = 8
    width: int = 128
    depth: int = 5
    heads: int = 2
    grid: int = 16
    hidden: int = 96
    hidden_heads: int = 4
    points: int = 2
    pixel_layers: int = 2
    pixel_ffn: int = 256
    blocks: int = 1
    ffn: int = 512
    queries: int = 10
    groups: int = 8
    guidance: str = "disk"
    disk_radius_px: float = 5.0

    def __post_init__(self) -> None:
        if self.patch not in STRIDES:
            raise WeightsError(f"a patch of {self.patch} pixels was asked for; expected one of {', '.join(map(str, STRIDES))}")

    @property
    def stride(self) -> int:
        """The working size must be a multiple of this."""
        return STRIDES[-1]


# --- the encoder ------------------------------------------------------------------------------------------------------------------------


class _PatchEmbed(nn.Module):
    """(B, in, h, w) -> (B, width, h/patch, w/patch)."""

    def __init__(self, width_in: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(width_in, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)  # type: ignore[no-any-return]


class _Attention(nn.Module):
    """Self-attention of tokens (B, N, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (_by_head(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class _MLP(nn.Module):
    """Two layers on each token."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Attention and a feed-forward part, normalised before each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _MLP(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class _VisionTransformer(nn.Module):
    """A plain ViT (Dosovitskiy et al., 2021) without class token; parameters are named as in timm and MAE (He et al., 2022)."""

    def __init__(self, config: AdaptiveClickConfig) -> None:
        super().__init__()
        self.patch_embed = _PatchEmbed(3, config.width, config.patch)
        self.pos_embed = nn.Parameter(torch.empty(1, config.grid**2, config.width))
        self.blocks = nn.ModuleList(_Block(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def embed(self, image: Tensor) -> Tensor:
        """(B, 3, h, w) -> patches (B, width, h/patch, w/patch) that know their place."""
        patches = self.patch_embed(image)
        side = math.isqrt(self.pos_embed.shape[1])
        place = self.pos_embed.transpose(1, 2).reshape(1, -1, side, side)
        if place.shape[-2:] != patches.shape[-2:]:
            place = F.interpolate(place, size=patches.shape[-2:], mode="bicubic", align_corners=False)
        return patches + place  # type: ignore[no-any-return]

    def forward(self, patches: Tensor) -> Tensor:
        """Patches in, patches out, (B, width, h/patch, w/patch)."""
        tokens = patches.flatten(2).transpose(1, 2)  # (B, N, width)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens).transpose(1, 2).unflatten(2, patches.shape[-2:])  # type: ignore[no-any-return]


class _Pyramid(nn.ModuleList):
    """The simple feature pyramid of ViTDet (Li et al., 2022): (B, width, h/patch, w/patch) -> (B, hidden, h/s, w/s) for s in `STRIDES`."""

    def __init__(self, config: AdaptiveClickConfig) -> None:
        super().__init__()
        for stride in STRIDES:
            layers: list[nn.Module] = []
            width, at = config.width, config.patch
            while at != stride:
                finer = at > stride
                step = nn.ConvTranspose2d(width, width // 2, 2, stride=2) if finer else nn.Conv2d(width, width, 2, stride=2)
                width, at = (width // 2, at // 2) if finer else (width, at * 2)
                layers += [step, nn.GroupNorm(1, width), nn.GELU()]
            layers += [nn.Conv2d(width, config.hidden, 1, bias=False), nn.GroupNorm(config.groups, config.hidden)]
            self.append(nn.Sequential(*layers))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [level(x) for level in self]


# --- the pixel decoder ------------------------------------------------------------------------------------------------------------------


def deformable_attention(values: Sequence[Tensor], points: Tensor, weights: Tensor) -> Tensor:
    """For every token and head, the weighted sum of what lies at a few points of some maps. Source: Deformable DETR (Zhu et al., 2021).

    Parameters
    ----------
    values : L maps (B, H, c, h_l, w_l), H heads
    points : (B, N, H, L, P, 2), (row, col) over the sides of the map, 0 and 1 at its borders; beyond them lies 0
    weights : (B, N, H, L, P)

    Returns
    -------
    (B, N, H·c)
    """
    batch, _, heads = points.shape[:3]
    parts = []
    for level, value in enumerate(values):
        grid = (2 * points[:, :, :, level] - 1).flip(-1).transpose(1, 2).flatten(0, 1)  # (B·H, N, P, 2), columns first
        seen = F.grid_sample(value.flatten(0, 1), grid, align_corners=False)  # (B·H, c, N, P)
        parts.append((seen * weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1))
    return torch.stack(parts).sum(0).reshape(batch, heads, -1, points.shape[1]).permute(0, 3, 1, 2).flatten(2)


class _PixelLayer(nn.Module):
    """Every pixel of every level looks at a few points of all levels, then a feed-forward part."""

    def __init__(self, config: AdaptiveClickConfig, levels: int) -> None:
        super().__init__()
        d, self.shape = config.hidden, (config.hidden_heads, levels, config.points)
        count = math.prod(self.shape)
        self.value = nn.Linear(d, d)
        self.offset = nn.Linear(d, 2 * count)
        self.weight = nn.Linear(d, count)
        self.proj = nn.Linear(d, d)
        self.norm1 = nn.LayerNorm(d)
        self.fc1 = nn.Linear(d, config.pixel_ffn)
        self.fc2 = nn.Linear(config.pixel_ffn, d)
        self.norm2 = nn.LayerNorm(d)
        # At first each head looks in a direction of its own, the p-th point p pixels away, at all points alike.
        angles = 2 * math.pi * torch.arange(config.hidden_heads) / config.hidden_heads
        away = torch.stack([angles.sin(), angles.cos()], -1)
        away = away / away.abs().amax(-1, keepdim=True)
        reach = torch.arange(1, config.points + 1)
        with torch.no_grad():
            self.offset.bias.copy_((away[:, None, None] * reach[None, None, :, None]).expand(*self.shape, 2).flatten())
        for layer in (self.offset, self.weight):
            nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(self.weight.bias)

    def forward(self, tokens: Tensor, place: Tensor, centres: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """``tokens`` (B, N, d) of all levels of ``sizes`` (rows, cols); their ``place`` (N, d) and ``centres`` (N, 2) in their level."""
        heads = self.shape[0]
        asks = tokens + place
        extent = tokens.new_tensor([list(size) for size in sizes])[None, None, None, :, None]  # (1, 1, 1, L, 1, 2)
        points = centres[None, :, None, None, None] + self.offset(asks).unflatten(-1, (*self.shape, 2)) / extent
        weights = self.weight(asks).unflatten(-1, (heads, -1)).softmax(-1).unflatten(-1, self.shape[1:])
        maps = [_as_map(level, size).reshape(len(tokens), heads, -1, *size) for level, size in _levels(self.value(tokens), sizes)]
        tokens = self.norm1(tokens + self.proj(deformable_attention(maps, points, weights)))
        return self.norm2(tokens + self.fc2(F.relu(self.fc1(tokens))))  # type: ignore[no-any-return]


class _PixelDecoder(nn.Module):
    """Refines the levels at 1/8, 1/16, 1/32 together; makes the embedding of every pixel at 1/4. After Mask2Former (Cheng et al., 2022)."""

    def __init__(self, config: AdaptiveClickConfig) -> None:
        super().__init__()
        d, levels = config.hidden, len(STRIDES) - 1
        self.level = nn.Parameter(torch.randn(levels, d))
        self.layers = nn.ModuleList(_PixelLayer(config, levels) for _ in range(config.pixel_layers))
        self.merge = nn.Sequential(nn.Conv2d(d, d, 3, padding=1, bias=False), nn.GroupNorm(config.groups, d), nn.ReLU(), nn.Conv2d(d, d, 1))

    def forward(self, quarter: Tensor, levels: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The embedding (B, d, h/4, w/4), and the refined levels, finest first."""
        sizes = [_size(level) for level in levels]
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)  # (B, N, d)
        place = torch.cat([_sine(size, tokens) + own for size, own in zip(sizes, self.level, strict=True)])
        centres = torch.cat([_centres(size, tokens) for size in sizes])
        for layer in self.layers:
            tokens = layer(tokens, place, centres, sizes)
        refined = [_as_map(level, size) for level, size in _levels(tokens, sizes)]
        upsampled = F.interpolate(refined[0], size=quarter.shape[-2:], mode="bilinear", align_corners=False)
        return self.merge(quarter + upsampled), refined


# --- the click-aware decoder ------------------------------------------------------------------------------------------------------------


class _Drawn(nn.Module):
    """How much more a query attends to a clicked pixel: ψ[relu(ω(c_j)·q_i/√d)] for query i and pixel j.

    c_j says whether there is a positive click. ω takes it to the queries' width, ψ takes the one value to the attention heads; neither has
    a constant part, so that without a click only the mask matters.
    """

    def __init__(self, config: AdaptiveClickConfig) -> None:
        super().__init__()
        self.omega = nn.Linear(1, config.hidden, bias=False)
        self.psi = nn.Linear(1, config.hidden_heads, bias=False)

    def forward(self, q: Tensor, clicked: Tensor) -> Tensor:
        """(B, heads, Q, N) from ``q`` (B, Q, d) and ``clicked`` (B, N)."""
        fit = F.relu(q @ self.omega(clicked[..., None]).transpose(1, 2) / math.sqrt(q.shape[-1]))
        return self.psi(fit[..., None]).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class _ClickAwareLayer(nn.Module):
    """Queries look at one level, at each other, and think about it.

    The attention of query i to pixel j is q_i·k_j/√c, and more where it is drawn to a click; there is none outside of its newest mask.
    """

    def __init__(self, config: AdaptiveClickConfig) -> None:
        super().__init__()
        d, self.heads = config.hidden, config.hidden_heads
        self.to_q = nn.Linear(d, d)
        self.to_k = nn.Linear(d, d, bias=False)
        self.to_v = nn.Linear(d, d)
        self.proj = nn.Linear(d, d)
        self.norm1 = nn.LayerNorm(d)
        self.attn = nn.MultiheadAttention(d, self.heads, batch_first=True)
        self.norm2 = nn.LayerNorm(d)
        self.fc1 = nn.Linear(d, config.ffn)
        self.fc2 = nn.Linear(config.ffn, d)
        self.norm3 = nn.LayerNorm(d)

    def forward(
        self, queries: Tensor, query_place: Tensor, pixels: Tensor, place: Tensor, clicked: Tensor, hidden: Tensor, drawn: _Drawn
    ) -> Tensor:
        """``queries`` (B, Q, d) after a look at ``pixels`` (B, N, d).

        Parameters
        ----------
        query_place, place : (Q, d) and (N, d), added where attention is decided
        clicked : (B, N), 1 where there is a positive click
        hidden : (B, Q, N), True where a query must not look
        drawn : the same one in all layers
        """
        q = self.to_q(queries + query_place)
        bias = drawn(q, clicked).masked_fill(hidden[:, None], -math.inf)
        q, k, v = (_by_head(x, self.heads) for x in (q, self.to_k(pixels + place), self.to_v(pixels)))
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
        queries = self.norm1(queries + self.proj(seen))
        asks = queries + query_place
        queries = self.norm2(queries + self.attn(asks, asks, queries, need_weights=False)[0])
        return self.norm3(queries + self.fc2(F.relu(self.fc1(queries))))  # type: ignore[no-any-return]


class _ClickAwareDecoder(nn.Module):
    """Queries that go through the levels from coarse to fine, some times over; before the first and after every layer they say masks."""

    def __init__(self, config: AdaptiveClickConfig) -> None:
        super().__init__()
        d, levels = config.hidden, len(STRIDES) - 1
        self.queries = nn.Parameter(torch.randn(config.queries, d))
        self.place = nn.Parameter(torch.randn(config.queries, d))
        self.level = nn.Parameter(torch.randn(levels, d))
        self.drawn = _Drawn(config)
        self.layers = nn.ModuleList(_ClickAwareLayer(config) for _ in range(levels * config.blocks))
        self.norm = nn.LayerNorm(d)
        self.to_click = nn.Linear(d, 2)
        self.to_mask = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d))

    def forward(self, embedding: Tensor, levels: Sequence[Tensor], positive: Tensor) -> tuple[Tensor, Tensor]:
        """Masks (A, B, Q, h/4, w/4) and clicks (A, B, Q, 2: a click's, no click's), the newest of A last, as logits.

        Parameters
        ----------
        embedding, levels : of the pixel decoder
        positive : (B, 1, h, w) map of the positive clicks
        """
        queries = self.queries.repeat(embedding.shape[0], 1, 1)
        said = [self._say(queries, embedding)]
        for number, layer in enumerate(self.layers):
            which = -1 - number % len(levels)
            level, size = levels[which], _size(levels[which])
            pixels = level.flatten(2).transpose(1, 2) + self.level[which]
            clicked = F.adaptive_max_pool2d(positive, size).flatten(1)
            queries = layer(queries, self.place, pixels, _sine(size, pixels), clicked, _outside(said[-1][0], size), self.drawn)
            said.append(self._say(queries, embedding))
        masks, clicks = zip(*said, strict=True)
        return torch.stack(masks), torch.stack(clicks)

    def _say(self, queries: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        queries = self.norm(queries)
        return torch.einsum("bqd,bdhw->bqhw", self.to_mask(queries), embedding), self.to_click(queries)


# --- the network ------------------------------------------------------------------------------------------------------------------------


class AdaptiveClick(nn.Module):
    """See the module. Inputs: image (B, 3, h, w) standardised, guidance (B, 2, h, w) in 0..1, previous (B, 1, h, w) probability.

    The single answer is the sum of all proposed masks, each weighted with its chance to be meant; the candidates are the proposed masks.
    """

    SIZES: ClassVar[dict[str, AdaptiveClickConfig]] = {
        "small": AdaptiveClickConfig(),
        "paper": AdaptiveClickConfig(
            patch=16, width=768, depth=12, heads=12, grid=28,
            hidden=256, hidden_heads=8, points=4, pixel_layers=6, pixel_ffn=1024, blocks=3, ffn=2048, groups=32,
        ),
    }  # fmt: skip

    FOCAL_WEIGHT, DICE_WEIGHT, CLICK_WEIGHT, NO_CLICK_WEIGHT = 5.0, 5.0, 2.0, 0.1

    def __init__(self, config: AdaptiveClickConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or AdaptiveClickConfig()
        self.vit = _VisionTransformer(config)
        self.click_embed = _PatchEmbed(3, config.width, config.patch)
        self.pyramid = _Pyramid(config)
        self.pixels = _PixelDecoder(config)
        self.decoder = _ClickAwareDecoder(config)
        self.to_iou = IoUHead(config.hidden)

    def encode(self, image: Tensor) -> Tensor:
        """The patches of the image; all that follows sees the clicks too."""
        return self.vit.embed(image)

    def decode(self, features: Tensor, guidance: Tensor, previous: Tensor) -> Output:
        """Masks, their chances and estimated IoUs for one set of clicks per image."""
        x = self.vit(features + self.click_embed(torch.cat([guidance, previous], dim=1)))
        quarter, *levels = self.pyramid(x)
        embedding, levels = self.pixels(quarter, levels)
        masks, clicks = self.decoder(embedding, levels, guidance[:, :1])
        meant = clicks[-1].softmax(-1)[..., 0]  # (B, Q)
        logits = torch.einsum("bq,bqhw->bhw", meant, masks[-1])[:, None]
        iou_logits = self.to_iou(levels[0], torch.cat([logits, masks[-1]], dim=1))
        logits, candidates = (F.interpolate(z, size=guidance.shape[-2:], mode="bilinear", align_corners=False) for z in (logits, masks[-1]))
        details = {"masks": masks, "clicks": clicks} if self.training else None
        return Output(logits, iou_logits[:, 0], candidates, meant, details, iou_logits[:, 1:])

    def forward(self, image: Tensor, guidance: Tensor, previous: Tensor) -> Output:
        """`decode` of `encode`."""
        return self.decode(self.encode(image), guidance, previous)

    def loss(self, output: Output, target: Tensor, guidance: Tensor) -> Tensor:
        """5·AFL + 5·Dice of the matched masks + 2·CE of the click class, mean over layers; and the estimated IoU of the candidates.

        Raises
        ------
        InputError : the output was not said in training mode
        """
        if output.details is None:
            raise InputError("an answer without the words of every layer arrived; expected one that was given in training mode")
        masks, clicks = output.details["masks"].float(), output.details["clicks"].float()
        layer, image, query = self._matches(masks.detach(), clicks.detach(), target, guidance)
        meant = F.interpolate(masks[layer, image, query][:, None], size=target.shape[-2:], mode="bilinear", align_corners=False)
        mask_loss = self.FOCAL_WEIGHT * adaptive_focal(meant, target[image]) + self.DICE_WEIGHT * soft_dice(meant, target[image])
        kind = torch.ones(clicks.shape[:-1], dtype=torch.long, device=clicks.device)
        kind[layer, image, query] = 0
        click_loss = F.cross_entropy(clicks.flatten(0, 2), kind.flatten(), weight=clicks.new_tensor([1.0, self.NO_CLICK_WEIGHT]))
        return mask_loss + self.CLICK_WEIGHT * click_loss + self._iou_loss(output, target)

    def _matches(self, masks: Tensor, clicks: Tensor, target: Tensor, guidance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which layer, image and query go with a target, each (K,): in every layer one query for each positive click of an image.

        The cost is that of the mask less `CLICK_WEIGHT` times the chance of a click, as in DETR (Carion et al., 2020) and Mask2Former.
        """
        layers, batch, queries = clicks.shape[:3]
        small = (F.adaptive_avg_pool2d(target, _size(masks)) > 0.5).float()
        truth = small[None, :, None].expand(layers, -1, queries, -1, -1, -1).flatten(0, 2)
        price = torch.vmap(_price)(masks.flatten(0, 2)[:, None], truth).reshape(layers, batch, queries)
        cost = (price - self.CLICK_WEIGHT * clicks.softmax(-1)[..., 0]).cpu().numpy()
        counts = [min(max(count, 1), queries) for count in _pieces(guidance[:, 0])]
        found = [
            (layer, image, query)
            for layer in range(layers)
            for image, count in enumerate(counts)
            for query, _ in matched(np.repeat(cost[layer, image][:, None], count, axis=1))
        ]
        return tuple(torch.tensor(found, device=masks.device).unbind(1))  # type: ignore[return-value]

    def _iou_loss(self, output: Output, target: Tensor) -> Tensor:
        """How far the estimated IoUs of the candidates are off."""
        assert output.candidates is not None
        assert output.candidate_iou_logits is not None
        found, truth = output.candidates > 0, target > 0.5
        iou = (found & truth).sum((2, 3)) / (found | truth).sum((2, 3)).clamp_min(1)
        return F.binary_cross_entropy_with_logits(output.candidate_iou_logits.float(), iou)


def matched(cost: npt.NDArray[np.floating]) -> list[tuple[int, int]]:
    """(row, column) pairs of ``cost`` (Q, n), each column once (n ≤ Q) and no row twice, of the least total cost (Hungarian algorithm)."""
    rows, columns = linear_sum_assignment(cost)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def _price(logits: Tensor, target: Tensor) -> Tensor:
    """What a mask (1, h', w') costs as the answer to a target."""
    return AdaptiveClick.FOCAL_WEIGHT * adaptive_focal(logits[None], target[None]) + AdaptiveClick.DICE_WEIGHT * soft_dice(
        logits[None], target[None]
    )


def _pieces(maps: Tensor) -> list[int]:
    """How many 8-connected pieces each of ``maps`` (B, h, w) has: clicks whose disks do not touch."""
    return [int(ndimage.label(each, structure=np.ones((3, 3)))[1]) for each in (maps > 0.5).cpu().numpy()]


def _outside(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, Q, N), N = rows·cols of ``size``: True outside of the masks (B, Q, h', w'); False everywhere for one that is empty."""
    seen = F.interpolate(masks.detach(), size=size, mode="bilinear", align_corners=False).flatten(2) > 0
    return ~seen & seen.any(-1, keepdim=True)


def _size(maps: Tensor) -> tuple[int, int]:
    """Rows and columns."""
    return maps.shape[-2], maps.shape[-1]


def _by_head(x: Tensor, heads: int) -> Tensor:
    """(B, N, d) -> (B, heads, N, d/heads)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _levels(tokens: Tensor, sizes: Sequence[tuple[int, int]]) -> list[tuple[Tensor, tuple[int, int]]]:
    """The tokens (B, N, d) of all levels, level by level, with its size."""
    return list(zip(torch.split(tokens, [rows * cols for rows, cols in sizes], dim=1), sizes, strict=True))


def _as_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, rows·cols, d) -> (B, d, rows, cols)."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *size)


def _centres(size: tuple[int, int], like: Tensor) -> Tensor:
    """(rows·cols, 2): (row, col) of the pixel centres over the sides of the map, in 0..1."""
    rows, cols = ((torch.arange(n, device=like.device, dtype=like.dtype) + 0.5) / n for n in size)
    return torch.stack(torch.meshgrid(rows, cols, indexing="ij"), dim=-1).flatten(0, 1)


def _sine(size: tuple[int, int], like: Tensor) -> Tensor:
    """(rows·cols, d): where a pixel is, as waves of d/4 lengths along either axis (Carion et al., 2020); d is that of ``like`` (..., d)."""
    quarter = like.shape[-1] // 4
    lengths = 10000 ** (torch.arange(quarter, device=like.device, dtype=like.dtype) / quarter)
    phase = 2 * math.pi * _centres(size, like)[..., None] / lengths  # (rows·cols, 2, d/4)
    return torch.cat([phase.sin(), phase.cos()], dim=-1).flatten(1)
