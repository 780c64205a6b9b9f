"""Losses that compare a mask with the truth, pixel by pixel or by overlap.

Shapes: ``logits`` and ``target`` (B, 1, h, w), target in {0, 1}; each returns a scalar, the mean over the images. ``p_t`` is the
probability given to the right class: p where the target is 1, 1 − p where it is 0. N is the number of pixels of an image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "adaptive_focal",
    "balanced_cross_entropy",
    "cross_entropy",
    "dice_focal",
    "focal",
    "iou_distance",
    "log_pt",
    "normalised_focal",
    "poly",
    "soft_dice",
    "soft_iou",
    "weighted_cross_entropy",
]


def log_pt(logits: Tensor, target: Tensor) -> Tensor:
    """log p_t of every pixel, stable for large logits."""
    return -F.binary_cross_entropy_with_logits(logits, target, reduction="none")


# --- cross-entropies --------------------------------------------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """mean of −log p_t: binary cross-entropy (BCE)."""
    return F.binary_cross_entropy_with_logits(logits, target)


def weighted_cross_entropy(logits: Tensor, target: Tensor, positive: float = 3.0) -> Tensor:
    """BCE with a weight on the foreground (WBCE). Source: Pihur et al., 2007, with the weight of AdaptiveClick (Lin et al., 2024)."""
    return F.binary_cross_entropy_with_logits(logits, target, pos_weight=logits.new_tensor(positive))


def balanced_cross_entropy(logits: Tensor, target: Tensor, positive: float = 3.0, negative: float = 1.0) -> Tensor:
    """(w₊·mean of −log p_t over the foreground + w₋·that over the background) / (w₊ + w₋), a class without pixels counting 0.

    Unlike `weighted_cross_entropy` it does not depend on how large the object is. Source: class balancing per image after Xie & Tu, 2015
    (HED), with the weights that AdaptiveClick (Lin et al., 2024) names for its balanced CE.
    """
    loss, y = -log_pt(logits, target).flatten(1), target.flatten(1)
    foreground = (loss * y).sum(1) / y.sum(1).clamp_min(1.0)
    background = (loss * (1 - y)).sum(1) / (1 - y).sum(1).clamp_min(1.0)
    return ((positive * foreground + negative * background) / (positive + negative)).mean()


# --- overlaps ---------------------------------------------------------------------------------------------------------------------------


def soft_dice(logits: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """1 − (2 Σ p·y + s) / (Σ p + Σ y + s), the foreground alone. Source: V-Net (Milletari et al., 2016)."""
    p = torch.sigmoid(logits).flatten(1)
    y = target.flatten(1)
    return (1 - (2 * (p * y).sum(1) + smooth) / (p.sum(1) + y.sum(1) + smooth)).mean()


def soft_iou(logits: Tensor, target: Tensor) -> Tensor:
    """1 − Σ min(p, y) / Σ max(p, y). Source: Rahman & Wang, 2016; Latent Diversity (Li et al., 2018), equation 3."""
    return iou_distance(logits, target).mean()


def iou_distance(logits: Tensor, target: Tensor) -> Tensor:
    """(B, M) soft Jaccard distance of each of M masks (B, M, h, w) to the target (B, 1, h, w)."""
    p = torch.sigmoid(logits).flatten(2)
    y = target.flatten(2)
    both = (p * y).sum(2)  # min and max of p and y, y being 0 or 1
    return 1 - both / (p.sum(2) + y.sum(2) - both).clamp_min(1e-6)


# --- focal losses -----------------------------------------------------------------------------------------------------------------------


def focal(logits: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """mean of −(1 − p_t)^γ log p_t. Source: Lin et al., 2017."""
    log_p = log_pt(logits, target)
    return (-((1 - log_p.exp()) ** gamma) * log_p).mean()


def normalised_focal(logits: Tensor, target: Tensor, alpha: float = 0.5, gamma: float = 2.0, *, weights_learn: bool = False) -> Tensor:
    """Focal loss whose weights sum to the number of pixels of each image. Source: Sofiiuk et al., 2019 (AdaptIS).

    Parameters
    ----------
    weights_learn : only what the weights are multiplied with is a constant, and the gradient goes through them as in `focal` (the authors'
        form); else (ours, which the shipped weights were trained with) they are constants, and the gradient is that of BCE, weighted
    """
    log_p = log_pt(logits, target).flatten(1)
    weight = (1 - log_p.exp()) ** gamma
    if not weights_learn:
        weight = weight.detach()
    weight = weight * (weight.shape[1] / weight.detach().sum(1, keepdim=True).clamp_min(1e-6))
    return (-alpha * weight * log_p).mean()


def poly(logits: Tensor, target: Tensor, gamma: float = 2.0, alpha: float = 1.0) -> Tensor:
    """mean of −(1 − p_t)^γ log p_t + α(1 − p_t)^(γ + 1), α being ε₁ there. Source: Leng et al., 2022 (PolyLoss)."""
    miss = 1 - log_pt(logits, target).exp()
    return focal(logits, target, gamma) + alpha * (miss ** (gamma + 1)).mean()


def adaptive_focal(
    logits: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    delta: float = 0.4,
    alpha: float = 1.0,
    *,
    adapts_difficulty: bool = True,
    adapts_gradient: bool = True,
) -> Tensor:
    """mean of −μ(1 − p_t)^γ_d log p_t + α(1 − p_t)^(γ_d + 1) (AFL). Source: AdaptiveClick (Lin et al., 2024), equations 8, 9, 19, 20.

    Both of its adaptations look at each image by itself and let no gradient through.

    Parameters
    ----------
    adapts_difficulty : γ_d = γ + γ_a, γ_a being 1 − the mean probability of the foreground (0 where there is none); else γ_a = 0
    adapts_gradient : μ = N / Σ (1 − p_t)^γ_d (1 + δγ_d); else μ = 1. Without both it is `poly`
    """
    log_p = log_pt(logits, target).flatten(1)
    miss = 1 - log_p.exp()
    exponent = logits.new_full((len(logits), 1), gamma)
    if adapts_difficulty:
        y = target.flatten(1)
        exponent = exponent + (miss.detach() * y).sum(1, keepdim=True) / y.sum(1, keepdim=True).clamp_min(1.0)
    modulator = miss**exponent
    weight = torch.ones_like(exponent)
    if adapts_gradient:
        weight = modulator.shape[1] / (modulator.detach().sum(1, keepdim=True) * (1 + delta * exponent)).clamp_min(1e-6)
    return (-weight * modulator * log_p + alpha * modulator * miss).mean()


def dice_focal(logits: Tensor, target: Tensor) -> Tensor:
    """0.7·focal(γ = 2) + 0.3·soft Dice. Source: You Point, I Learn (2025)."""
    return 0.7 * focal(logits, target) + 0.3 * soft_dice(logits, target)
