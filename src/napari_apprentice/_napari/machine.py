"""What the process takes of the machine, in words."""

from __future__ import annotations

import sys
from functools import cache

import psutil

__all__ = ["memory_in_use"]

_GIB = 2**30


def memory_in_use() -> str:
    """Memory of this process and, once the model is on a graphics card, of that card: "1.2 of 15.6 GB  ·  GPU 0.4 of 8.0 GB".

    Asks PyTorch only if that has been imported already; importing it is nothing for the main thread.
    """
    words = f"{psutil.Process().memory_info().rss / _GIB:.1f} of {_installed():.1f} GB"
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)  # missing while another thread is just importing it
    if cuda is None or not hasattr(cuda, "is_initialized") or not cuda.is_initialized():
        return words
    total = cuda.get_device_properties(cuda.current_device()).total_memory
    return f"{words}  ·  GPU {cuda.memory_reserved() / _GIB:.1f} of {total / _GIB:.1f} GB"


@cache
def _installed() -> float:
    return psutil.virtual_memory().total / _GIB
