"""How the face gets sessions: injected, so that the face is tested without torch, and torch loads only in the worker."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module, util
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from napari_apprentice.legend import Legend
from napari_apprentice.origins import Origin
from napari_apprentice.types import DEFAULT_POLICY, Image

if TYPE_CHECKING:
    from napari_apprentice.session import Session

__all__ = ["DEVICES", "POLICIES", "Engine", "Wish", "default_engine", "load_libraries", "shipped_networks"]

POLICIES = {
    "recall": "accepted objects, as examples",
    "practice": "accepted objects, examples + practice",
    "pi": "accepted objects, its weights",
    "mi+pi": "clicks (mi) + accepted objects, its weights",
    "mi": "clicks (mi)",
    "sa": "clicks of accepted objects (sa)",
    "ia": "clicks, for the object (ia)",
    "ia+sa": "clicks, for the object + after it (ia+sa)",
    "ia+pi": "clicks, for the object (ia) + accepted objects, its weights",
    "none": "nothing",
}
"""Policy name → what the model learns from; the names are those of `napari_apprentice.assembly.POLICIES`, which imports torch."""

DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True, eq=False)
class Wish:
    """What kind of session the user asked for.

    Attributes
    ----------
    policy, device : names as in `POLICIES` and `DEVICES`
    labels : (S) integer array to start from, or None
    resume : continue this folder's session instead of starting one
    cohort : name of the study that the model belongs to, or None
    knowledge : file of what the model has learnt, to begin with, or None
    weights : file of the network, or None for the shipped default
    legend, origins : what the objects in ``labels`` are called, and where their slices come from, or None
    """

    policy: str = DEFAULT_POLICY
    device: str = "auto"
    labels: npt.NDArray[np.integer] | None = None
    resume: Path | None = None
    cohort: str | None = None
    knowledge: Path | None = None
    weights: Path | None = None
    legend: Legend | None = None
    origins: Mapping[int, Origin] | None = None


def shipped_networks() -> dict[str, Path]:
    """Name of every network whose weights are shipped -> its file."""
    return {path.stem: path for path in sorted((Path(__file__).parents[1] / "weights").glob("*.safetensors"))}


class Engine(Protocol):
    """Opens sessions. Called in the worker thread."""

    def __call__(self, image: Image, wish: Wish, folder: Path) -> Session:
        """A session of ``image`` as wished, journaled in ``folder`` (which a resumed session does not use)."""


def default_engine(image: Image, wish: Wish, folder: Path) -> Session:
    """Sessions with the wished weights, or the shipped ones."""
    load_libraries()
    from napari_apprentice import assembly

    if wish.resume is not None:
        return assembly.resume_session(wish.resume, image, weights=wish.weights, device=wish.device)
    return assembly.open_session(
        image,
        weights=wish.weights,
        policy=wish.policy,
        device=wish.device,
        labels=wish.labels,
        legend=wish.legend,
        origins=wish.origins,
        folder=folder,
        knowledge=wish.knowledge,
        cohort=wish.cohort,
    )


def load_libraries() -> None:
    """Import what takes long, for the worker, and without holding the main thread up for longer than a picture takes.

    Python holds its lock while the system loads a library, and while it looks for garbage, of which imports make it do a lot. So the
    system is asked for PyTorch's libraries first, without that lock, and nobody looks for garbage meanwhile; freezing and unfreezing makes
    the new objects old ones without looking at them. napari imports pandas in the main thread when it makes a layer with features,
    which by then is there.
    """
    if "torch" in sys.modules and "pandas" in sys.modules:
        return
    collecting = gc.isenabled()
    gc.disable()
    try:
        _map_pytorch()
        for name in ("torch", "pandas", "napari_apprentice.assembly"):
            with suppress(ImportError):  # whoever needs it says so better
                import_module(name)
    finally:
        if collecting:
            gc.freeze()
            gc.unfreeze()
            gc.enable()


def _map_pytorch() -> None:
    """Let the system load the libraries of PyTorch; if it cannot, the import does it as it always does."""
    found = util.find_spec("torch")
    if "torch" in sys.modules or found is None or found.origin is None or sys.platform == "win32":  # there the import itself does this
        return
    ending = ".dylib" if sys.platform == "darwin" else ".so"
    load = ctypes.CDLL(None).dlopen  # a foreign function: called without Python's lock
    load.restype, load.argtypes = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_int)
    # In the order and with the flags of PyTorch itself.
    for name, flags in (("libtorch_global_deps", os.RTLD_NOW | os.RTLD_GLOBAL), ("libtorch", os.RTLD_NOW)):
        load(os.fsencode(Path(found.origin).parent / "lib" / f"{name}{ending}"), flags)
