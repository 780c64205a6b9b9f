"""How the face gets sessions: injected, so that the face is tested without torch, and torch loads only in the worker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from napari_apprentice.legend import Legend
from napari_apprentice.types import Image

if TYPE_CHECKING:
    from napari_apprentice.session import Session

__all__ = ["DEVICES", "POLICIES", "Engine", "Wish", "default_engine", "shipped_networks"]

POLICIES = {
    "mi+pi": "clicks + objects",
    "pi": "accepted objects",
    "mi": "clicks",
    "sa": "clicks, after the object",
    "ia": "clicks, for the object",
    "ia+sa": "clicks, for the object + after",
    "ia+pi": "clicks, for the object + objects",
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
    legend : what the objects in ``labels`` are called, or None
    """

    policy: str = "mi+pi"
    device: str = "auto"
    labels: npt.NDArray[np.integer] | None = None
    resume: Path | None = None
    cohort: str | None = None
    knowledge: Path | None = None
    weights: Path | None = None
    legend: Legend | None = None


def shipped_networks() -> dict[str, Path]:
    """Name of every network whose weights are shipped -> its file."""
    return {path.stem: path for path in sorted((Path(__file__).parents[1] / "weights").glob("*.safetensors"))}


class Engine(Protocol):
    """Opens sessions. Called in the worker thread."""

    def __call__(self, image: Image, wish: Wish, folder: Path) -> Session:
        """A session of ``image`` as wished, journaled in ``folder`` (which a resumed session does not use)."""


def default_engine(image: Image, wish: Wish, folder: Path) -> Session:
    """Sessions with the wished weights, or the shipped ones."""
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
        folder=folder,
        knowledge=wish.knowledge,
        cohort=wish.cohort,
    )
