"""Where the two wings meet: the only file that knows sessions and networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_apprentice import adaptation
from napari_apprentice.adaptation import make_policy
from napari_apprentice.cohorts import Cohort
from napari_apprentice.files import read
from napari_apprentice.journal import Journal, read_journal
from napari_apprentice.knowledge import KnowledgeStore
from napari_apprentice.labelmap import as_ids
from napari_apprentice.networks import NETWORKS
from napari_apprentice.segmenter import NetworkSegmenter
from napari_apprentice.session import Session, resume
from napari_apprentice.types import Image, Plane, SessionError, WeightsError
from napari_apprentice.versions import Version
from napari_apprentice.weights import DEFAULT_WEIGHTS

__all__ = ["DEFAULT_POLICY", "POLICIES", "export_cohort", "load_segmenter", "make_policy", "open_session", "resume_session"]

POLICIES: tuple[str, ...] = tuple(adaptation.POLICIES)
"""Names of the adaptation policies."""

DEFAULT_POLICY = "mi+pi"


def load_segmenter(weights: Path | str | None = None, network: str | None = None, device: str = "auto") -> NetworkSegmenter:
    """A segmenter ready to click with.

    Parameters
    ----------
    weights : a weights file; by default the one shipped for ``network``
    network : name of a network; by default the one of ``weights``, or the default network
    device : "auto", "cpu", "cuda" or "mps"

    Raises
    ------
    WeightsError : the weights do not fit, are damaged, or are of another network than asked for
    DeviceError : the device is not there
    """
    if weights is None and network is not None:
        weights = DEFAULT_WEIGHTS.with_name(f"{network}.safetensors")
        if network not in NETWORKS or not weights.exists():
            shipped = sorted(p.stem for p in DEFAULT_WEIGHTS.parent.glob("*.safetensors"))
            raise WeightsError(f"weights for a network called {network!r} were asked for; shipped are those of {', '.join(shipped)}")
    segmenter = NetworkSegmenter(weights, device)
    if network is not None and segmenter.name != network:
        raise WeightsError(f"{weights} holds the network {segmenter.name!r}; expected {network!r}")
    return segmenter


def open_session(
    image: Image | npt.NDArray[Any],
    *,
    weights: Path | str | None = None,
    policy: str = DEFAULT_POLICY,
    device: str = "auto",
    labels: npt.NDArray[np.integer[Any]] | None = None,
    folder: Path | str | None = None,
    knowledge: Path | str | None = None,
    cohort: str | None = None,
) -> Session:
    """Start segmenting an image.

    Parameters
    ----------
    image : an `Image`, or a grey array (rows, cols) or (z, y, x)
    weights : a weights file; by default the shipped one
    policy : how the model learns: one of `POLICIES`
    device : "auto", "cpu", "cuda" or "mps"
    labels : (S) finished objects to start from; they are protected
    folder : where the journal of the session is kept (made if need be); None keeps none
    knowledge : what an earlier session learnt, a file written by `Session.export`, to begin with
    cohort : name of the study that the model belongs to: the session begins with what it has learnt, and adds to it (see `cohorts`)

    Returns
    -------
    a `Session`; its ``labels`` have the image's spatial shape

    Raises
    ------
    ImageError, LabelsError, WeightsError, DeviceError, InputError, WriteError : something handed over cannot be used
    """
    if not isinstance(image, Image):
        image = Image(np.asarray(image)[None])
    if image.ndim == 2:
        image.slice(Plane(0, 0))
    chosen = make_policy(policy)
    segmenter = load_segmenter(weights, device=device)
    digest = segmenter.loaded.digest
    store = KnowledgeStore(segmenter.base, digest)
    study = None if cohort is None else Cohort(cohort, digest, store)
    start = study.start() if study is not None else None
    if knowledge is not None:
        if start is not None:
            raise SessionError(f"a file to begin with arrived, but the study {cohort!r} has a model already; expected only one of them")
        start = Version(1, origin=f"file {Path(knowledge).name}", snapshot=store.load(Path(knowledge)))
    if labels is not None:
        labels = as_ids(labels, image.shape)  # before a journal is begun: a refusal must not leave one behind
    journal = None
    if folder is not None:
        journal = Journal.create(Path(folder), image, policy=policy, model=f"{segmenter.name}:{digest}", cohort=cohort or "")
    return Session(image, segmenter, chosen, labels=labels, journal=journal, store=store, start=start, cohort=study)


def export_cohort(name: str, path: Path | str, *, weights: Path | str | None = None, pictures: bool = False) -> Path:
    """Write the model that a study has now to a file that a session can begin with.

    Parameters
    ----------
    name : of the study
    path : the file, usually ``.safetensors``; it is overwritten
    weights : what the study was taught on top of; by default the shipped ones
    pictures : take along the small views of accepted cases that the gate judges by

    Raises
    ------
    SessionError : the study has no model of its own on top of these weights
    WriteError : the file cannot be written
    """
    segmenter = load_segmenter(weights, device="cpu")
    store = KnowledgeStore(segmenter.base, segmenter.loaded.digest)
    version = Cohort(name, store.digest, store).start()
    if version is None:
        raise SessionError(f"the study {name!r} has no model on top of the weights {store.digest}; expected one that was taught")
    store.save(version.snapshot, Path(path), {"study": name, "time": version.time}, pictures=pictures)
    return Path(path)


def resume_session(folder: Path | str, image: Image | None = None, *, weights: Path | str | None = None, device: str = "auto") -> Session:
    """Go on where a session stopped or was killed.

    Parameters
    ----------
    folder : the folder that `open_session` was given
    image : the same image; by default it is read again from where it was
    weights : the weights file that the session was opened with, if not the shipped one
    device : "auto", "cpu", "cuda" or "mps"

    Raises
    ------
    SessionError : the image is not the one of the session, or the weights are not
    ReadError : the journal is missing or damaged
    """
    header, _ = read_journal(Path(folder))
    if image is None:
        if not header.path:
            raise SessionError(f"the session in {folder} names no image file; expected the image to be handed over")
        image = read(header.path)
    segmenter = load_segmenter(weights, device=device)
    model = f"{segmenter.name}:{segmenter.loaded.digest}"
    if header.model and header.model != model:
        raise SessionError(f"the session in {folder} was made with the weights {header.model}; expected these, but {model} arrived")
    store = KnowledgeStore(segmenter.base, segmenter.loaded.digest)
    study = Cohort(header.cohort, segmenter.loaded.digest, store) if header.cohort else None
    return resume(Path(folder), image, segmenter, make_policy(header.policy or DEFAULT_POLICY), store, study)
