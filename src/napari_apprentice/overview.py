"""What a session is now, to be read: nothing here changes anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_apprentice.calibration import probability
from napari_apprentice.ground import Doubt, Slice, slices, worths
from napari_apprentice.history import State
from napari_apprentice.journal import Header
from napari_apprentice.labelmap import LabelMap
from napari_apprentice.ledger import Ledger
from napari_apprentice.legend import Legend
from napari_apprentice.origins import Origin
from napari_apprentice.types import Click, Lesson, Plane, Prediction, Segmenter, SessionError
from napari_apprentice.versions import Catalogue, Comparison

__all__ = ["Overview"]


class Overview:
    """All that can be asked of the session whose ledger this is.

    Attributes
    ----------
    image : what is segmented
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._model = ledger.model
        self.image = ledger.model.image

    # --- the labels and the open object ---

    @property
    def labels(self) -> npt.NDArray[Any]:
        """(S) ids of all objects, the open one included; a read-only view that later actions show in.

        The type is the smallest unsigned one at first and widens when an id needs it: the array is a new one then. Labels that do not fit
        into memory are a `blocks.BlockArray`: numpy arrays come out of that by indexing.
        """
        array: npt.NDArray[Any] = self._labels.array
        return array

    @property
    def label(self) -> int:
        """Id of the open object."""
        return self._state.label

    @property
    def clicks(self) -> tuple[Click, ...]:
        """Of the open object, in order."""
        return self._state.clicks

    @property
    def empty(self) -> bool:
        """Whether the open object has no voxel."""
        return self._labels.layers_with(self.label) is None

    @property
    def worked_in(self) -> tuple[Plane, ...]:
        """Planes that the user clicked or painted in for the open object: what it teaches when it is accepted."""
        return self._state.worked_in

    @property
    def predictions(self) -> Mapping[Plane, Prediction]:
        """The newest answer in every plane of the open object that was clicked in."""
        return MappingProxyType(dict(self._state.predictions))

    def probability(self, plane: Plane | None = None) -> npt.NDArray[np.float32]:
        """(H, W) how likely every pixel of a plane belongs to the open object, calibrated (see `calibration.probability`).

        Of the newest answer there, by default in the plane of the newest click; what was painted since, and other objects, do not count.

        Raises
        ------
        SessionError : nothing was answered there
        """
        plane = self.clicks[-1].plane if plane is None and self.clicks else plane
        found = None if plane is None else self._state.predictions.get(plane)
        if plane is None or found is None:
            raise SessionError("a probability was asked for where the open object has no answer; expected a plane that was clicked in")
        full = np.zeros(found.shape, np.float32)
        full[found.box.slices] = probability(found, len(self._state.clicks_in(plane)))
        return full

    @property
    def finished(self) -> tuple[int, ...]:
        """Ids of the accepted objects, in order."""
        return self._state.finished

    @property
    def kind(self) -> str:
        """What the class of the open object is called, or will be with its first click (see `session.Session.accept`); empty for none."""
        return self._state.kind

    @property
    def legend(self) -> Legend:
        """Names of the objects, and colours of their classes."""
        return self._state.legend

    @property
    def strokes(self) -> tuple[Plane, ...]:
        """Planes in which the open object was painted by hand."""
        return self._state.strokes

    @property
    def origins(self) -> Mapping[int, Origin]:
        """Where the slices of objects come from, by id; of ids that are not there nothing is known."""
        return self._state.origins

    @property
    def header(self) -> Header | None:
        """What its journal says of it as a whole: policy, model, study, image. None where none is kept."""
        return self._ledger.header

    # --- what can be done ---

    @property
    def read_only(self) -> str:
        """Why nothing may be changed: who has the session open elsewhere (see `session.resume`). Empty where it may."""
        return self._ledger.refusal

    @property
    def made_with(self) -> str:
        """Name and digest of the weights that the session was made with so far, if it was resumed with others; else empty."""
        return self._ledger.made_with

    @property
    def can_undo(self) -> bool:
        """Whether there is an action to undo."""
        return self._ledger.history.done > 0

    @property
    def can_redo(self) -> bool:
        """Whether there is an undone action to do again."""
        return self._ledger.history.undone > 0

    # --- the slices of objects ---

    @property
    def candidate(self) -> int:
        """The object that `propagate` takes by default: the open one if it has voxels, else the one that was accepted last."""
        if not self.finished or not self.empty:
            return self.label
        return self.finished[-1]

    def slices(self, label: int, axis: int = 0) -> tuple[Slice, ...]:
        """What the slices of an object across an axis are, in order: see `ground.Slice`. Goes through the object's voxels."""
        return slices(self._labels, self._state.origin(label), label, axis)

    def doubtful(self) -> list[Doubt]:
        """The slices that propagation filled or ended before, the one with the largest expected error first."""
        doubts = [Doubt(plane, label, error) for label, origin in self._state.origins.items() for plane, error in origin.carried.items()]
        return sorted(doubts, key=lambda doubt: (-doubt.error, doubt.label, doubt.plane))

    def advised(self, label: int, axis: int = 0) -> list[Doubt]:
        """The carried slices of an object across an axis, first the one whose correction helps most (see `ground.worths`).

        Goes through the object's voxels.
        """
        origin = self._state.origin(label)
        worth = worths(self._labels, origin, label, axis)
        order = sorted(worth, key=lambda index: (-worth[index], index))
        return [Doubt(Plane(axis, index), label, origin.carried[Plane(axis, index)]) for index in order]

    def outdated(self, label: int) -> tuple[int, ...]:
        """Axes across which a slice of an object was corrected since it was propagated: across them it should be propagated again."""
        return tuple(sorted(self._state.origin(label).outdated))

    # --- the model ---

    @property
    def device(self) -> str:
        """Where the model computes, such as "cpu" or "cuda:0"; "" where it does not say."""
        return str(getattr(self._segmenter, "device", ""))

    @property
    def weights(self) -> Path | None:
        """The file that holds the weights of the network; None where it does not say."""
        return getattr(self._segmenter, "weights_path", None)

    @property
    def taught(self) -> bool:
        """Whether the model is another one than as shipped: a version of it is in use, or examples or clicks have taught it since."""
        return self.versions.number != 0 or self._state.snapshot is not self._model.untaught

    @property
    def pending(self) -> tuple[Lesson, ...]:
        """Accepted slices that `learn` will learn from."""
        return self._state.pending

    @property
    def versions(self) -> Catalogue:
        """The versions of the model, the one in use, what the gate refused and the effort saved so far."""
        return self._state.versions

    def compare(self, first: int, second: int) -> Comparison:
        """How two versions of the model differ.

        Raises
        ------
        SessionError : there is no such version, it is no longer kept, or this session has no store
        """
        return self._model.compare(self._state.versions, first, second)

    def export(self, number: int, path: Path | str, *, pictures: bool = False) -> Path:
        """Write a version to a file that a session can start from.

        Parameters
        ----------
        number : of the version
        path : the file, usually ``.safetensors``; it is overwritten
        pictures : take along the small views of accepted cases that the gate judges by

        Raises
        ------
        SessionError : there is no such version, it is no longer kept, or this session has no store
        WriteError : it cannot be written
        """
        version, path = self._state.versions[number], Path(path)
        self._model.export(version, path, pictures=pictures)
        return path

    def peek(self, plane: Plane | None = None) -> Prediction:
        """What the model as shipped would have said to the clicks of the open object, in the plane of the newest one by default.

        As many predictions as there are clicks in the plane.

        Raises
        ------
        SessionError : no click was made there
        """
        plane = self.clicks[-1].plane if plane is None and self.clicks else plane
        clicks = () if plane is None else self._state.clicks_in(plane)
        if plane is None or not clicks:
            raise SessionError("a look at the untaught model arrived, but no click was made there; expected at least one click to answer")
        with self._ledger.unchanged():
            return self._model.untaught_answer(plane, clicks, self._state.kind)

    # --- inside ---

    @property
    def _labels(self) -> LabelMap:
        return self._ledger.labels

    @property
    def _state(self) -> State:
        return self._ledger.state

    @property
    def _segmenter(self) -> Segmenter:
        return self._model.segmenter
