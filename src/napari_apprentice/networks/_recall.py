"""What a network makes of examples: objects whose masks are known, in images like the one at hand.

Attention from every place to all places of the examples, whose masks are part of what is read there: the space-time memory of Oh et al.
(2019), from earlier frames of a video to earlier objects of a study.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Recall", "Recalled"]


class Recalled(NamedTuple):
    """Examples as one `Recall` reads them.

    Attributes
    ----------
    keys, values : (B, heads, places, dimensions) of all places of all examples; B may be 1 where all images have the same examples
    """

    keys: Tensor
    values: Tensor


class Recall(nn.Module):
    """What examples say about every place: features (B, width, h, w) -> what is added to them, of the same shape.

    It begins at nothing, so that a trained network can be given it; and where nothing of the examples is like a place, it may say nothing.

    Parameters
    ----------
    width : channels of the features
    cell : pixels of a mask along the side of one place of the features
    dimensions : of the keys and values of each of the heads
    groups : of the normalisation
    """

    HEADS = 4

    def __init__(self, width: int, cell: int, dimensions: int, groups: int) -> None:
        super().__init__()
        inner = self.HEADS * dimensions
        self.cell = cell
        self.norm = nn.GroupNorm(groups, width)
        self.key = nn.Conv2d(width, inner, 1)
        self.value = nn.Conv2d(width + cell**2, inner, 1)
        self.log_sharpness = nn.Parameter(torch.full((self.HEADS,), 2.0))
        self.nothing = nn.Parameter(torch.zeros(self.HEADS))  # likeness from which on an example counts
        self.mix = nn.Sequential(nn.Conv2d(inner, width, 1), nn.ReLU(), nn.Conv2d(width, width, 1))

    def initialise(self) -> None:
        """Say nothing at first."""
        for parameter in self.mix[-1].parameters():
            nn.init.zeros_(parameter)

    def examples(self, features: Tensor, targets: Tensor) -> Recalled:
        """Of features (B, R, width, h, w) of R examples for each image, and their masks (B, R, 1, cell h, cell w)."""
        batch, count = features.shape[:2]
        normed = self._normed(features.flatten(0, 1))
        masks = F.pixel_unshuffle(targets.flatten(0, 1), self.cell)
        keys, values = self.key(normed), self.value(torch.cat([normed, 2 * masks - 1], dim=1))
        return Recalled(*(self._places(part, batch, count) for part in (F.normalize(self._heads(keys), dim=3), self._heads(values))))

    def forward(self, features: Tensor, known: Recalled) -> Tensor:
        """See the class."""
        batch, _, height, width = features.shape
        sharpness = self.log_sharpness.exp()[None, :, None, None]
        # One more place says nothing: all ask for the last dimension equally, and it alone has anything there.
        none = sharpness * self.nothing[None, :, None, None] + math.log(known.keys.shape[2])
        wanted = F.normalize(self._heads(self.key(self._normed(features))), dim=3)  # (B, heads, h w, d)
        wanted = F.pad(sharpness * wanted, (0, 1), value=1.0)
        keys = torch.cat([F.pad(known.keys, (0, 1)), F.pad(none, (wanted.shape[3] - 1, 0)).expand(len(known.keys), -1, -1, -1)], dim=2)
        values = F.pad(known.values, (0, 1, 0, 1))
        keys, values = (part.expand(batch, -1, -1, -1) for part in (keys, values))
        said = F.scaled_dot_product_attention(wanted, keys, values, scale=1.0)[..., :-1]  # (B, heads, h w, d)
        return self.mix(said.transpose(2, 3).reshape(batch, -1, height, width))  # type: ignore[no-any-return]

    def _normed(self, x: Tensor) -> Tensor:
        """Of contiguous features: in channels_last, a gradient of the norm without one of the features ends the process (PyTorch 2.13)."""
        return self.norm(x.contiguous())  # type: ignore[no-any-return]

    def _heads(self, x: Tensor) -> Tensor:
        """(B, heads d, h, w) -> (B, heads, h w, d)."""
        return x.permute(0, 2, 3, 1).reshape(len(x), x.shape[2] * x.shape[3], self.HEADS, -1).transpose(1, 2)

    @staticmethod
    def _places(x: Tensor, batch: int, count: int) -> Tensor:
        """(B R, heads, h w, d) -> (B, heads, R h w, d)."""
        return x.reshape(batch, count, *x.shape[1:]).transpose(1, 2).flatten(2, 3)
