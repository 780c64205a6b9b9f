"""What the network should say in a window."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from napari_apprentice.guidance import WindowClick, squared_distance
from napari_apprentice.types import Box
from napari_apprentice.windows import cut

__all__ = ["hardened", "mask_in_window"]


def mask_in_window(mask: npt.NDArray[np.bool_], window: Box, size: int) -> Tensor:
    """(1, 1, size, size) float in {0, 1}."""
    return (cut(mask[None], window, size, fill=0.0) > 0.5).float()[None]


def hardened(target: Tensor, clicks: Sequence[WindowClick], radius_px: float) -> Tensor:
    """The target (1, 1, n, n) with every click's own word in a small disk around it; where disks meet, the nearest click counts."""
    if not clicks:
        return target
    size = (int(target.shape[-2]), int(target.shape[-1]))
    distance = squared_distance([(c.row, c.col) for c in clicks], size, target.device)
    nearest, owner = distance.min(0)
    said = torch.tensor([float(c.positive) for c in clicks], device=target.device)[owner]
    return torch.where(nearest <= radius_px**2, said, target)
