"""What one click costs a network: parameters, floating-point operations, memory.

Counted for a click after the first one: a window of the working size and the wider ones, each also mirrored where the segmenter does that,
encoded and decoded together; and the closer look that follows where the segmenter takes one, at its most.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from napari_apprentice.segmenter import NetworkSegmenter, ZoomConfig

__all__ = ["TensorMemory", "cost_of_click"]


def cost_of_click(segmenter: NetworkSegmenter) -> Mapping[str, float]:
    """``parameters``, ``gflops`` and ``memory_mib`` of one later click.

    GFLOPs are 10⁹ multiplications and additions (one each) of convolutions, matrix products and attention, as PyTorch's counter knows them.
    Memory is the largest sum of tensors alive at once, weights and inputs among them, in MiB; what a convolution needs inside itself, the
    rest of the process and the whole image are not in it.
    """
    network: Any = segmenter.network
    given = _looks(segmenter)
    # With gradient, and attention as plain products: PyTorch's fast paths are not counted.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network.decode(network.encode(given[0]), *given[1:])
    with torch.no_grad(), TensorMemory(*given, *network.state_dict().values()) as memory:
        network.decode(network.encode(given[0]), *given[1:])
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "gflops": counter.get_total_flops() / 1e9 * (1 + _closer(segmenter.zoom)),
        "memory_mib": memory.peak_bytes / 2**20,
    }


def _closer(zoom: ZoomConfig) -> float:
    """What the closer look costs, over all others."""
    return 1 / (1 + len(zoom.wider)) if zoom.closer else 0.0


def _looks(segmenter: NetworkSegmenter) -> tuple[Tensor, Tensor, Tensor]:
    """Images, click maps and previous masks of all that one click looks at, (n, C, size, size); no pixel is anything."""
    zoom = segmenter.zoom
    looks = (1 + len(zoom.wider)) * (1 + zoom.mirror)
    maps = segmenter.maps([], zoom.size).expand(looks, -1, -1, -1).contiguous()
    return maps.new_zeros(looks, 3, zoom.size, zoom.size), maps, maps.new_zeros(looks, 1, zoom.size, zoom.size)


class TensorMemory(TorchDispatchMode):
    """Follows the tensors that are made inside of a ``with`` block, and those that it is given.

    Attributes
    ----------
    bytes, peak_bytes : of all that are alive, now and at most; tensors that share memory count once
    """

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.bytes = self.peak_bytes = 0
        self._sizes: dict[int, int] = {}
        for tensor in given:
            self._follow(tensor)

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.bytes += storage.nbytes()
            self.peak_bytes = max(self.peak_bytes, self.bytes)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what was asked for, and look at what came of it."""
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._follow(leaf)
        return found
