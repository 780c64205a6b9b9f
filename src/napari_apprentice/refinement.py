"""Refinement of an answer on top of any network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_apprentice.guidance import WindowClick, squared_distance

__all__ = ["pixel_diffusion"]

DILATIONS = (1, 2, 4, 8)


def pixel_diffusion(
    logits: Tensor, image: Tensor, clicks: Sequence[WindowClick], *, sigma_px: float = 10.0, amplitude: float = 1.0, iterations: int = 10
) -> Tensor:
    """Let clicks spread to pixels that look alike. Source: the pixel diffusion module of CDNet (Chen et al., 2021).

    The answer, brought to -1..1, is raised around positive clicks and lowered around negative ones by Gaussians; then each pixel becomes
    the mean of its 32 neighbours (3×3 at dilations 1, 2, 4, 8), weighted by softmax(-|I_i - I_j| / σ_i²), a few times over. The
    paper does not say what σ_i is: here σ_i² is the variance of the 32 differences; the authors' code takes the pixels' standard deviation.

    Parameters
    ----------
    logits : (n, n)
    image : (C, n, n) standardised pixels
    clicks : in window pixels
    sigma_px, amplitude : of the Gaussians
    iterations : of the diffusion

    Returns
    -------
    (n, n) diffused answer, mostly in -1..1; CDNet adds it to the logits
    """
    size = (int(logits.shape[-2]), int(logits.shape[-1]))
    answer = 2 * torch.sigmoid(logits) - 1
    for positive in (True, False):
        points = [(c.row, c.col) for c in clicks if c.positive is positive]
        if points:
            near = torch.exp(-squared_distance(points, size, logits.device) / (2 * sigma_px**2)).amax(0)
            answer = answer + (amplitude if positive else -amplitude) * near
    reach = max(DILATIONS)
    offsets = [(reach + a * d, reach + b * d) for d in DILATIONS for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b]
    around = F.pad(image[None], (reach,) * 4, mode="replicate")[0]
    differences = torch.stack([(around[:, r : r + size[0], c : c + size[1]] - image).abs().mean(0) for r, c in offsets])
    weights = torch.softmax(-differences / differences.var(0, keepdim=True).clamp_min(1e-3), dim=0)
    for _ in range(iterations):
        around = F.pad(answer[None, None], (reach,) * 4, mode="replicate")[0, 0]
        answer = torch.stack([around[r : r + size[0], c : c + size[1]] for r, c in offsets]).mul_(weights).sum(0)
    return answer
