"""How training moves weights: AdamW, and Muon for the kernels of hidden layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from napari_apprentice.types import RecipeError

__all__ = ["BETAS", "OPTIMISERS", "Kernels", "are_matrices", "optimisers"]

OPTIMISERS = ("adamw", "muon")
BETAS = (0.9, 0.99)

_NARROW = 8  # channels; kernels from or to so few are of the first or the last layer


def are_matrices(parameter: nn.Parameter) -> bool:
    """Whether a parameter maps many channels to many: what Muon is for."""
    return parameter.ndim > 1 and min(parameter.shape[:2]) > _NARROW


class Kernels:
    """Kernels (out, in, ...) of any number of axes as the matrices (out, ...) that `torch.optim.Muon` takes, in the same memory.

    The order of the columns, that of the memory, makes no difference to Muon.

    Muon: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon.

    Parameters
    ----------
    kernels : on the device where they stay, without gaps in memory; those of one output lie together
    others : keyword arguments of `torch.optim.Muon`

    Attributes
    ----------
    optimiser : over the matrices
    """

    def __init__(self, kernels: Iterable[nn.Parameter], **others: Any) -> None:
        self._kernels = tuple(kernels)
        self._orders = [(0, *(1 + np.argsort(-np.array(k.stride()[1:]), kind="stable")).tolist()) for k in self._kernels]
        self._matrices = [
            nn.Parameter(k.detach().permute(order).view(len(k), -1)) for k, order in zip(self._kernels, self._orders, strict=True)
        ]
        self.optimiser = torch.optim.Muon(self._matrices, **others)

    def take_gradients(self) -> None:
        """Those of the kernels are those of the matrices from now on. Whoever has gone backward calls this before the step."""
        for matrix, kernel, order in zip(self._matrices, self._kernels, self._orders, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.permute(order).reshape(matrix.shape)


def optimisers(network: nn.Module, name: str, rates: Mapping[str, float], weight_decay: float) -> tuple[torch.optim.AdamW, Kernels | None]:
    """AdamW for all parameters that learn, or Muon beside it, for those that `are_matrices`. Vectors and numbers do not decay.

    The rate of each group of parameters is under "full" in the group, for whoever lowers it by and by.

    Parameters
    ----------
    network : on the device where it is trained
    name : one of `OPTIMISERS`
    rates : of each optimiser
    weight_decay : of matrices and kernels

    Raises
    ------
    RecipeError : this PyTorch has no Muon
    """
    learning = [p for p in network.parameters() if p.requires_grad]
    kernels = [p for p in learning if name == "muon" and are_matrices(p)]
    taken = set(map(id, kernels))
    others = [p for p in learning if id(p) not in taken]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": weight_decay, "full": rates["adamw"]},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0, "full": rates["adamw"]},
    ]
    adamw = torch.optim.AdamW([group for group in groups if group["params"]] or groups, lr=rates["adamw"], betas=BETAS)
    if not kernels:
        return adamw, None
    if not hasattr(torch.optim, "Muon"):
        raise RecipeError(f"the recipe trains with muon, which PyTorch {torch.__version__} does not have; expected PyTorch 2.9 or newer")
    muon = Kernels(kernels, lr=rates["muon"], weight_decay=weight_decay)
    for group in muon.optimiser.param_groups:
        group["full"] = rates["muon"]
    return adamw, muon
