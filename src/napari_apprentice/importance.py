"""How much every weight matters to what a network has learnt: Memory-Aware Synapses (Aljundi et al., 2018)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["memory_aware_synapses"]


def memory_aware_synapses(network: nn.Module, samples: Iterable[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Tensor]:
    """Parameter name -> Ω, the mean over samples of abs(∂‖f(x)‖² / ∂θ), f(x) the foreground probability of all pixels.

    Parameters
    ----------
    network : speaks ``encode`` and ``decode``
    samples : (image, guidance, previous), each (1, C, h, w): what the network is shown; no truth is needed
    """
    speaks: Any = network
    parameters = dict(network.named_parameters())
    total = {key: torch.zeros_like(value) for key, value in parameters.items()}
    count = 0
    for image, guidance, previous in samples:
        output = torch.sigmoid(speaks.decode(speaks.encode(image), guidance, previous).logits).square().sum()
        grads = torch.autograd.grad(output, list(parameters.values()), allow_unused=True)
        for key, grad in zip(parameters, grads, strict=True):
            if grad is not None:
                total[key] += grad.abs()
        count += 1
    return {key: value / max(count, 1) for key, value in total.items()}
