"""Where the two wings meet: the only file that knows sessions and networks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from napari_apprentice import adaptation
from napari_apprentice.adaptation import make_policy
from napari_apprentice.blocks import is_large
from napari_apprentice.cohorts import Cohort
from napari_apprentice.computers import Computer
from napari_apprentice.files import read
from napari_apprentice.journal import Event, Journal, journal_path, models, read_journal, standing_as
from napari_apprentice.knowledge import KnowledgeStore
from napari_apprentice.labelmap import as_ids, check_shape
from napari_apprentice.lazy import LARGE_BYTES, LazyArray
from napari_apprentice.legend import Legend
from napari_apprentice.networks import NETWORKS
from napari_apprentice.origins import Origin
from napari_apprentice.replay import beginning
from napari_apprentice.segmenter import NetworkSegmenter
from napari_apprentice.session import Session, resume
from napari_apprentice.types import DEFAULT_POLICY, Image, ImageError, Plane, SessionError, WeightsError
from napari_apprentice.versions import Version
from napari_apprentice.weights import DEFAULT_WEIGHTS

__all__ = [
    "DEFAULT_POLICY",
    "POLICIES",
    "begin_again",
    "compute_as",
    "computer_of",
    "export_cohort",
    "find_weights",
    "load_segmenter",
    "make_policy",
    "model_of",
    "open_session",
    "resume_session",
]

POLICIES: tuple[str, ...] = tuple(adaptation.POLICIES)
"""Names of the adaptation policies."""

UNDO_BUDGET_BYTES = 2**30
"""Memory for what the model knew before; more than that waits on the disk."""

_SPARING_BUDGET_BYTES = 2**28


def find_weights(network: str) -> Path:
    """The weights of a network: the shipped ones, or else those trained here, ``runs/NAME.safetensors`` in the working folder.

    Raises
    ------
    WeightsError : there is no such network, or no weights of it
    """
    if network not in NETWORKS:
        raise WeightsError(f"a network called {network!r} was asked for; expected one of {', '.join(NETWORKS)}")
    trained, shipped = Path("runs") / f"{network}.safetensors", DEFAULT_WEIGHTS.with_name(f"{network}.safetensors")
    for path in (shipped, trained):
        if path.exists():
            return path
    recipe = "default" if network == DEFAULT_WEIGHTS.stem else network
    raise WeightsError(
        f"there are no weights of the network {network!r}, neither shipped nor in {trained}; expected a file of them, "
        f"as `apprentice train recipes/{recipe}.toml --data DIR --out {trained}` makes it"
    )


def load_segmenter(
    weights: Path | str | None = None, network: str | None = None, device: str = "auto", *, undo_budget_bytes: int = UNDO_BUDGET_BYTES
) -> NetworkSegmenter:
    """A segmenter ready to click with.

    Parameters
    ----------
    weights : a weights file; by default the one that `find_weights` finds for ``network``, or the shipped one
    network : name of a network; by default the one of ``weights``, or the default network
    device : "auto", "cpu", "cuda" or "mps"
    undo_budget_bytes : memory for what was learnt before, see `knowledge.Shelf`

    Raises
    ------
    WeightsError : the weights do not fit, are damaged, or are of another network than asked for
    DeviceError : the device is not there
    """
    if weights is None and network is not None:
        weights = find_weights(network)
    segmenter = NetworkSegmenter(weights, device, undo_budget_bytes=undo_budget_bytes)
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
    legend: Legend | None = None,
    origins: Mapping[int, Origin] | None = None,
) -> Session:
    """Start segmenting an image.

    Parameters
    ----------
    image : an `Image`, or a grey array (rows, cols) or (z, y, x); a large zarr or dask array stays where it is
    weights : a weights file; by default the shipped one
    policy : how the model learns: one of `POLICIES`
    device : "auto", "cpu", "cuda" or "mps"
    labels : (S) finished objects to start from; they are protected
    folder : where the journal of the session is kept (made if need be; one without an earlier session); None keeps none
    knowledge : what an earlier session learnt, a file written by `Session.export`, to begin with; of one that was written on top of other
        weights, what it remembers
    cohort : name of the study that the model belongs to: the session begins with what it has learnt, and adds to it (see `cohorts`)
    legend : what the objects in ``labels`` are called, as `legend.read_legend` reads it
    origins : where their slices come from, as another session has it (`Session.origins`): what was propagated and nobody looked at stays
        doubtful. Without them all of the labels count as looked at

    Returns
    -------
    a `Session`; its ``labels`` have the image's spatial shape

    Raises
    ------
    ImageError, LabelsError, WeightsError, DeviceError, InputError, WriteError, SessionError : something handed over cannot be used
    """
    if not isinstance(image, Image):
        if not (hasattr(image, "shape") and hasattr(image, "dtype")):
            raise ImageError(f"{image!r:.80} arrived; expected an image, as `read` makes it of a file, or an array of grey values")
        on_disk = not isinstance(image, np.ndarray) and image.nbytes > LARGE_BYTES
        image = Image(LazyArray(image).with_axis() if on_disk else np.asarray(image)[None])
    if image.ndim == 2:
        image.slice(Plane(0, 0))
    chosen = make_policy(policy)
    segmenter = load_segmenter(weights, device=device, undo_budget_bytes=_undo_budget(image))
    digest = segmenter.loaded.digest
    store = KnowledgeStore(segmenter.base, digest)
    study = None if cohort is None else Cohort(cohort, digest, store)
    start = study.start() if study is not None else None
    if knowledge is not None:
        if start is not None:
            raise SessionError(f"a file to begin with arrived, but the study {cohort!r} has a model already; expected only one of them")
        if Path(knowledge).is_dir():
            raise WeightsError(
                f"{knowledge} is a folder; expected the file of a model, as a session or `apprentice cohort export` writes it"
            )
        start = _begun_with(store, Path(knowledge))
    if labels is not None:
        # Before a journal is begun: a refusal must not leave one behind. What does not fit into memory is looked at as it is copied.
        check_shape(labels, image.shape)
        labels = labels if is_large(image.shape) else as_ids(labels, image.shape)
    with ExitStack() as begun:
        journal = None
        if folder is not None:
            about = {"policy": policy, "model": model_of(segmenter), "cohort": cohort or ""}
            journal = begun.enter_context(Journal.create(Path(folder), image, **about, computer=computer_of(segmenter)))
        session = Session(
            image, segmenter, chosen, labels=labels, legend=legend, origins=origins, journal=journal, store=store, start=start, cohort=study
        )
        begun.pop_all()
    return session


def _begun_with(store: KnowledgeStore, file: Path) -> Version:
    """The version that a session begins with which is given the file of a model."""
    try:
        return Version(1, origin=f"file {file.name}", snapshot=store.load(file))
    except WeightsError as whole:
        try:
            known = store.carry(file)
        except WeightsError:
            raise whole from None
        return Version(1, origin=f"file {file.name}, what it remembers from another network", snapshot=known)


def _undo_budget(image: Image) -> int:
    """Who works in a volume that does not fit into memory needs the memory for its slices."""
    return _SPARING_BUDGET_BYTES if is_large(image.shape) else UNDO_BUDGET_BYTES


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

    Where the weights that it was made with are not found, as after another release of the program, it goes on with others: labels, objects
    and clicks stay as they are, and what was learnt from them is learnt again (`Session.made_with` tells).

    Parameters
    ----------
    folder : the folder that `open_session` was given
    image : the same image; by default it is read again from where it was
    weights : the weights file that the session was opened with; by default, and where it is another one, the shipped one, or what
        `find_weights` finds for its network, if the session was opened with that; else the session goes on with ``weights``
    device : "auto", "cpu", "cuda" or "mps"

    Raises
    ------
    SessionError, ImageError : the image is not the one of the session
    ReadError : the journal is missing or damaged
    """
    header, events = read_journal(Path(folder))
    if image is None:
        if not header.path:
            raise SessionError(f"the session in {folder} names no image file; expected the image to be handed over")
        image = read(header.path)
    if not isinstance(image, Image):
        raise ImageError(f"{image!r:.80} arrived; expected the image of the session, as `read` makes it of a file")
    *_, made_with = models(header, events)
    segmenter = _segmenter_of(made_with, weights, device, _undo_budget(image))
    store = KnowledgeStore(segmenter.base, segmenter.loaded.digest)
    study = Cohort(header.cohort, segmenter.loaded.digest, store) if header.cohort else None
    if study is not None and model_of(segmenter) != made_with:
        study.adopt()
    policy, model = make_policy(header.policy or DEFAULT_POLICY), model_of(segmenter) if made_with else ""
    return resume(Path(folder), image, segmenter, policy, store, study, computer_of(segmenter), model)


def _segmenter_of(model: str, weights: Path | str | None, device: str, budget: int) -> NetworkSegmenter:
    """A segmenter that is ``model`` (see `model_of`), of ``weights`` or of what is found for its network; else one of ``weights``."""
    given = None if weights is None else load_segmenter(weights, device=device, undo_budget_bytes=budget)
    if given is not None and model in ("", model_of(given)):
        return given
    try:
        found = load_segmenter(_weights_of(model), device=device, undo_budget_bytes=budget)
    except WeightsError:
        found = load_segmenter(device=device, undo_budget_bytes=budget)
    return found if given is None or model_of(found) == model else given


def begin_again(
    recording: Path | str, image: Image, *, weights: Path | str | None = None, device: str = "auto"
) -> tuple[Session, NetworkSegmenter]:
    """A session that begins as a recorded one did, to replay what it did (see `replay`). It keeps no journal and belongs to no study.

    Parameters
    ----------
    recording : the journal or its folder
    image : the one that it is about
    weights, device : as for `resume_session`; other weights than the recorded ones are taken, too

    Returns
    -------
    session and its segmenter

    Raises
    ------
    SessionError : it is about another image, or what its model knew at the start is gone
    ReadError : the journal is missing or damaged
    WeightsError, DeviceError : as for `load_segmenter`
    """
    header, events = read_journal(recording)
    image = standing_as(header, image)
    segmenter = load_segmenter(weights or _weights_of(header.model), device=device, undo_budget_bytes=_undo_budget(image))
    store = KnowledgeStore(segmenter.base, segmenter.loaded.digest)
    opened = next((event for event in events if event.kind == "open"), Event("open", 1))
    start = opened.version
    if start is not None:
        known = journal_path(recording).parent / (start.checkpoint or "")
        if not known.is_file():
            raise SessionError(
                f"the session began with a model that had been taught ({start.origin}); expected it in {known}, to replay it"
            )
        start = replace(start, snapshot=store.load(known))
    policy = make_policy(header.policy or DEFAULT_POLICY)
    labels, legend, origins = beginning(recording)
    return Session(image, segmenter, policy, labels=labels, legend=legend, origins=origins, store=store, start=start), segmenter


def model_of(segmenter: NetworkSegmenter) -> str:
    """Which model a segmenter is before it learns, as journals name it: network and digest of the weights."""
    return f"{segmenter.name}:{segmenter.loaded.digest}"


def computer_of(segmenter: NetworkSegmenter) -> Computer:
    """What a segmenter runs on."""
    device = str(segmenter.device)
    if segmenter.device.type == "cuda":
        device = torch.cuda.get_device_name(segmenter.device)
    return Computer.here(device, torch.get_num_threads(), torch.__version__)


def compute_as(computer: Computer | None) -> None:
    """Let operations of this process use as many threads as they did there: sums that are split otherwise round otherwise."""
    if computer is not None and computer.threads:
        torch.set_num_threads(computer.threads)


def _weights_of(model: str) -> Path | None:
    """The weights that a session was made with, as far as the name of its network says; None for the default ones."""
    network = model.partition(":")[0]
    return find_weights(network) if network in NETWORKS and network != DEFAULT_WEIGHTS.stem else None
