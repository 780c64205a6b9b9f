"""One step of the optimiser, all of it or nothing."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from napari_apprentice.knowledge import Tensors
from napari_apprentice.segmenter import NetworkSegmenter

__all__ = ["advance"]


def advance(segmenter: NetworkSegmenter, loss: Tensor, rate: float, anchor: float) -> bool:
    """One Adam step (Kingma & Ba, 2015; β = 0.9, 0.999) and a pull towards the shipped weights; False and no change if not finite."""
    old = segmenter.snapshot()
    parameters = dict(segmenter.network.named_parameters())
    grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    if not bool(torch.isfinite(loss)):
        return False
    steps = old.steps + 1
    weights, firsts, seconds = dict(old.weights), dict(old.first), dict(old.second)
    for key, grad in zip(parameters, grads, strict=True):
        if grad is None:
            continue
        zero = torch.zeros_like(grad)
        first = firsts.get(key, zero).lerp(grad, 0.1)
        second = seconds.get(key, zero).lerp(grad.square(), 0.001)
        step = (first / (1 - 0.9**steps)) / ((second / (1 - 0.999**steps)).sqrt() + 1e-8)
        weights[key] = (old.weights[key] - rate * step).lerp(segmenter.base.weights[key], anchor)
        firsts[key], seconds[key] = first, second
    # An infinite second moment would pass unseen (its step is 0) and end all learning from then on.
    if not all(bool(torch.isfinite(v).all()) for values in (weights, seconds) for v in values.values()):
        return False
    segmenter.restore(replace(old, weights=Tensors(weights), first=Tensors(firsts), second=Tensors(seconds), steps=steps, marks=()))
    return True
