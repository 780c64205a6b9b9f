"""The values, protocols and errors that every other module speaks in. Imports nothing of the package.

Conventions that hold everywhere:

- *voxel* coordinates count array elements, slowest axis first: ``(row, col)`` in 2D, ``(z, y, x)`` in 3D; integers name voxel centres;
- *world* coordinates are millimetres in the same order (slowest first), related to voxels by ``Image.affine``;
- an image is ``(C, *S)``: channels first, then the spatial shape ``S`` of length ``n`` = 2 or 3;
- a *plane* is one 2D slice of an image; a 2D image has exactly one, ``Plane(0, 0)``.

The errors (each message is one sentence that says what arrived and what was expected)::

    ApprenticeError
    ├── InputError (also ValueError)   something the caller handed over cannot be used
    │   ├── ImageError                 the image
    │   ├── ClickError                 a click
    │   └── LabelsError                a label map
    ├── FileError (also OSError)       a file on disk
    │   ├── ReadError
    │   └── WriteError
    ├── WeightsError                   network weights of another network, or damaged
    ├── DeviceError                    a compute device that is not there
    ├── RecipeError                    a training recipe or data-set description
    └── SessionError                   an action that the session's state does not allow
        └── InUseError                 somebody else works in the folder of the session
"""

from __future__ import annotations

import math
from collections.abc import Generator, Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

__all__ = [
    "DEFAULT_POLICY",
    "PROJECT_POLICY",
    "THRESHOLD_LOGIT",
    "AdaptationPolicy",
    "ApprenticeError",
    "Box",
    "Click",
    "ClickError",
    "DeviceError",
    "FileError",
    "Image",
    "ImageError",
    "ImageSlice",
    "InUseError",
    "InputError",
    "LabelsError",
    "LearningReport",
    "Lesson",
    "Plane",
    "Prediction",
    "Prompt",
    "ReadError",
    "RecipeError",
    "Segmenter",
    "SessionError",
    "User",
    "WeightsError",
    "WriteError",
    "finite",
    "invertible",
    "outcome",
]

DEFAULT_POLICY = "recall"
"""How the model learns unless somebody says otherwise: accepted objects are its examples. Measured in ``docs/decisions/0015``."""

PROJECT_POLICY = "pi"
"""The same for projects, whose runs nobody corrects: changed weights are better at first answers. Measured in ``docs/decisions/0015``."""

THRESHOLD_LOGIT = 0.0
"""A pixel is foreground where its logit is strictly above this (probability > 0.5)."""


class ApprenticeError(Exception):
    """Whatever this package refuses, in one sentence."""


class InputError(ApprenticeError, ValueError):
    """Something handed over cannot be used."""


class ImageError(InputError):
    """The image cannot be used."""


class ClickError(InputError):
    """The click cannot be used."""


class LabelsError(InputError):
    """The label map cannot be used."""


class FileError(ApprenticeError, OSError):
    """A file on disk cannot be used."""


class ReadError(FileError):
    """The file cannot be read."""


class WriteError(FileError):
    """The file cannot be written."""


class WeightsError(ApprenticeError):
    """The network weights do not fit, or are damaged."""


class DeviceError(ApprenticeError):
    """The compute device that was asked for is not there."""


class RecipeError(ApprenticeError):
    """A training recipe or a data-set description cannot be used."""


class SessionError(ApprenticeError):
    """The session's state does not allow the action."""


class InUseError(SessionError):
    """Somebody else works in the folder of the session."""


class Box(NamedTuple):
    """A half-open rectangle of pixels in one slice: rows ``[top, bottom)``, columns ``[left, right)``."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """``(rows, cols)``."""
        return self.bottom - self.top, self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the box in a ``(..., H, W)`` array, used as ``array[(..., *box.slices)]``."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


class Plane(NamedTuple):
    """One 2D slice of an image: the spatial axis it is orthogonal to, and the index along that axis."""

    axis: int
    index: int  # type: ignore[assignment] # a plane is no sequence to search in


def _as_box(box: Any) -> Box:
    """ClickError if it is none."""
    try:
        given: tuple[Any, ...] = tuple(box)
        checked = Box(*(int(v) for v in given))
        whole = checked == given and not any(isinstance(v, bool) for v in given)
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole or not (checked.top < checked.bottom and checked.left < checked.right):
        raise ClickError(f"a box {box!r:.80} arrived; expected 4 whole numbers (top, left, bottom, right) around at least one pixel")
    return checked


@dataclass(frozen=True)
class Click:
    """One click of the user, or one box that the user drew around the object.

    Attributes
    ----------
    voxel : tuple of n ints, slowest axis first
    positive : True if the voxel belongs to the object, False if it does not
    axis : in 3D the spatial axis orthogonal to the plane that was clicked in; ignored in 2D
    box : the rows and columns of that plane between which the object lies; ``voxel`` is then a place in the box and says nothing else.
        None for a click
    """

    voxel: tuple[int, ...]
    positive: bool = True
    axis: int = 0
    box: Box | None = None

    def __post_init__(self) -> None:
        try:
            given: tuple[Any, ...] = tuple(self.voxel)
            voxel = tuple(int(v) for v in given)
            whole = len(voxel) in (2, 3) and voxel == given and not any(isinstance(v, bool) for v in given)
        except (TypeError, ValueError, OverflowError):
            whole = False
        if not whole:
            raise ClickError(f"a click at {self.voxel} arrived; expected 2 or 3 whole voxel coordinates, slowest axis first")
        if isinstance(self.axis, bool) or not hasattr(self.axis, "__index__"):
            raise ClickError(f"a click in a plane across axis {self.axis} arrived; expected 0, 1 or 2")
        object.__setattr__(self, "voxel", voxel)
        object.__setattr__(self, "positive", bool(self.positive))
        if self.box is not None:
            object.__setattr__(self, "box", self._checked(self.box))

    def _checked(self, box: Any) -> Box:
        checked = _as_box(box)
        row, col = self.in_plane.voxel
        if not self.positive or not (checked.top <= row < checked.bottom and checked.left <= col < checked.right):
            raise ClickError(f"a box {tuple(checked)} about {self.voxel} arrived; expected a positive one, with that place in it")
        return checked

    @classmethod
    def around(cls, box: Box, plane: Plane | None = None) -> Click:
        """A box around the object; ``plane`` in 3D: the one that it was drawn in.

        Raises
        ------
        ClickError : it is no box
        """
        box = _as_box(box)
        middle = [(box.top + box.bottom - 1) // 2, (box.left + box.right - 1) // 2]
        if plane is not None:
            middle.insert(plane.axis, plane.index)
        return cls(tuple(middle), True, 0 if plane is None else plane.axis, box)

    @property
    def plane(self) -> Plane:
        """The plane that was clicked in."""
        return Plane(0, 0) if len(self.voxel) == 2 else Plane(self.axis, self.voxel[self.axis])

    @property
    def in_plane(self) -> Click:
        """The same click in the 2D coordinates ``(row, col)`` of its plane."""
        if len(self.voxel) == 2:
            return self
        rest = tuple(v for axis, v in enumerate(self.voxel) if axis != self.axis)
        return Click(rest, self.positive, box=self.box)


@dataclass(frozen=True, eq=False)
class Image:
    """An image or volume with its geometry.

    Attributes
    ----------
    data : (C, *S) array, numpy or lazy (anything that slices to numpy); C is 1 (grey) or 3 (RGB), S has 2 or 3 axes, slowest first
    affine : (n+1, n+1) float64, voxel -> world, both slowest axis first; for n = 3 the world axes are (S, A, R) in millimetres
        when ``units`` is "mm" (that is NIfTI's RAS+ reversed)
    units : "mm" where the file states a physical spacing, else "pixel"
    name : short name for people, for example the file's stem
    path : where it was read from, if anywhere
    source : what the reader wants the writer to remember of the file (header, format); opaque to everyone else
    coarser : the same data at lower resolutions, finest first, for whoever shows all of a large image
    """

    data: Any
    affine: npt.NDArray[np.float64] = None  # type: ignore[assignment]
    units: str = "pixel"
    name: str = "image"
    path: Path | None = None
    source: Any = field(default=None, repr=False)
    coarser: tuple[Any, ...] = field(default=(), repr=False)
    _token: int = field(default_factory=count().__next__, init=False, repr=False)

    def __post_init__(self) -> None:
        shape = tuple(getattr(self.data, "shape", ()))
        if len(shape) not in (3, 4):
            raise ImageError(f"an array of shape {shape} arrived; expected (C, rows, cols) or (C, z, y, x) with C = 1 (grey) or 3 (RGB)")
        if shape[0] not in (1, 3):
            raise ImageError(
                f"an image with {shape[0]} channels arrived (shape {shape}); expected 1 (grey) or 3 (RGB) channels, first axis"
            )
        if 0 in shape:
            raise ImageError(f"an empty image of shape {shape} arrived; expected at least one voxel along every axis")
        if not (np.issubdtype(self.data.dtype, np.number) or self.data.dtype == bool) or np.iscomplexobj(np.empty(0, self.data.dtype)):
            raise ImageError(f"an image of {self.data.dtype} values arrived; expected integers or real numbers")
        n = len(shape) - 1
        affine = np.eye(n + 1) if self.affine is None else np.array(self.affine, dtype=np.float64)
        if affine.shape != (n + 1, n + 1) or not np.isfinite(affine).all() or not invertible(affine[:n, :n]):
            raise ImageError(
                f"an affine of shape {affine.shape} arrived for a {n}D image; expected an invertible ({n + 1}, {n + 1}) matrix"
            )
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)

    @property
    def ndim(self) -> int:
        """Number of spatial axes n: 2 or 3."""
        return len(self.data.shape) - 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape S, slowest axis first, without the channels."""
        return tuple(int(s) for s in self.data.shape[1:])

    @property
    def axis_labels(self) -> tuple[str, ...]:
        """``("y", "x")`` or ``("z", "y", "x")``."""
        return ("z", "y", "x")[-self.ndim :]

    @cached_property
    def spacing(self) -> tuple[float, ...]:
        """Distance between neighbouring voxel centres along every axis, in ``units``."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:-1, :-1], axis=0))

    def check_click(self, click: Click) -> None:
        """Raise `ClickError` unless the click lies inside this image."""
        if not isinstance(click, Click):
            raise ClickError(f"{click!r:.80} arrived; expected a click, such as Click((12, 80, 64))")
        if len(click.voxel) != self.ndim:
            raise ClickError(f"a {len(click.voxel)}D click at {click.voxel} arrived; this image is {self.ndim}D with shape {self.shape}")
        if not all(0 <= v < s for v, s in zip(click.voxel, self.shape, strict=True)):
            raise ClickError(f"a click at {click.voxel} arrived; expected one inside the image, whose shape is {self.shape}")
        if self.ndim == 3 and not 0 <= click.axis < 3:
            raise ClickError(f"a click in a plane across axis {click.axis} arrived; expected 0, 1 or 2")
        if click.box is not None:
            rows, cols = (size for axis, size in enumerate(self.shape) if self.ndim == 2 or axis != click.axis)
            if click.box.top < 0 or click.box.left < 0 or click.box.bottom > rows or click.box.right > cols:
                raise ClickError(f"a box {tuple(click.box)} arrived; expected one inside its slice, whose shape is {(rows, cols)}")

    def slice(self, plane: Plane) -> ImageSlice:
        """The 2D slice of one plane, read into memory. NaN, which says that nothing was measured, counts as the lowest number in it.

        Raises
        ------
        ImageError : the slice has no finite value, or all that it has are the same
        """
        axis, index = plane
        if self.ndim == 2:
            data, spacing = self.data, self.spacing
        else:
            if not (0 <= axis < 3 and 0 <= index < self.shape[axis]):
                raise ImageError(f"plane {index} across axis {axis} was asked for; this image has shape {self.shape}")
            where: list[Any] = [slice(None)] * 4
            where[axis + 1] = index
            data = self.data[tuple(where)]
            spacing = tuple(s for a, s in enumerate(self.spacing) if a != axis)
        array = np.asarray(data)
        if not np.isfinite(array).any():
            raise ImageError(f"slice {index} of {self.name!r} holds NaN or infinite values only; expected some finite numbers")
        array = finite(array)
        if array.min() == array.max():
            raise ImageError(
                f"slice {index} of {self.name!r} is constant (every value is {array.flat[0]}); expected an image with some contrast"
            )
        return ImageSlice(array, (float(spacing[0]), float(spacing[1])), plane, (self._token, plane))


def finite(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """``array`` with its lowest number for NaN and -inf, and its highest for inf; zeros where it has no number."""
    known = np.isfinite(array)
    if known.all():
        return array
    low, high = (array[known].min(), array[known].max()) if known.any() else (0, 0)
    found: npt.NDArray[Any] = np.nan_to_num(array, nan=low, neginf=low, posinf=high)
    return found


def invertible(matrix: npt.NDArray[np.float64]) -> bool:
    """Whether the columns are independent, whatever their lengths (spacings of nanometres in millimetres are small, not singular)."""
    lengths = np.linalg.norm(matrix, axis=0)
    return bool((lengths > 0).all()) and abs(float(np.linalg.det(matrix / np.where(lengths > 0, lengths, 1.0)))) > 1e-9


@dataclass(frozen=True, eq=False)
class ImageSlice:
    """One 2D slice in memory.

    Attributes
    ----------
    data : (C, H, W) array of finite raw intensities
    spacing : (row, col) distance between pixel centres, in the image's units
    plane : where in the image it lies
    key : equal keys mean equal pixels for as long as the image lives (what caches go by)
    """

    data: npt.NDArray[Any]
    spacing: tuple[float, float] = (1.0, 1.0)
    plane: Plane = Plane(0, 0)
    key: Hashable = None

    @property
    def shape(self) -> tuple[int, int]:
        """``(H, W)``."""
        return int(self.data.shape[1]), int(self.data.shape[2])


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the network says of one slice. Everything outside ``box`` is background.

    Attributes
    ----------
    logits : (h, w) float32 foreground logits inside ``box``
    box : where they lie in the slice
    shape : (H, W) of the slice
    view : the zoom window that the newest forward pass looked at (may reach beyond the slice), if any
    score : the network's own estimate of its IoU with the truth, 0..1; NaN if it makes none
    candidates : the other masks that were proposed for the same prompt, best first, without candidates of their own
    rank : place of this one among all that were proposed; 0 is the best
    given : whether it goes back to a mask that was carried there, painted or read from a file, so that clicks correct that
    familiar : whether what was accepted before counts here; it does not where the first looks found a slice that is not like the examples
    """

    logits: npt.NDArray[np.float32]
    box: Box
    shape: tuple[int, int]
    view: Box | None = None
    score: float = float("nan")
    candidates: tuple[Prediction, ...] = ()
    rank: int = 0
    given: bool = False
    familiar: bool = True

    def __post_init__(self) -> None:
        if self.logits.shape != self.box.shape:
            raise InputError(f"logits of shape {self.logits.shape} arrived for a box of shape {self.box.shape}")

    @property
    def proposed(self) -> tuple[Prediction, ...]:
        """This one among its candidates: all masks that were proposed, best first."""
        return (*self.candidates[: self.rank], self, *self.candidates[self.rank :])

    def choosing(self, rank: int) -> Prediction:
        """The mask of this rank, with all the others as its candidates.

        Raises
        ------
        InputError : there is no such rank
        """
        proposed = self.proposed
        if not 0 <= rank < len(proposed):
            raise InputError(f"mask {rank + 1} was asked for; expected one of the {len(proposed)} that the model proposed")
        others = tuple(replace(p, candidates=(), rank=0) for i, p in enumerate(proposed) if i != rank)
        return replace(proposed[rank], candidates=others, rank=rank)

    @property
    def nbytes(self) -> int:
        """Memory of the logits, those of the candidates included."""
        return self.logits.nbytes + sum(candidate.nbytes for candidate in self.candidates)

    @property
    def mask_in_box(self) -> npt.NDArray[np.bool_]:
        """(h, w) foreground inside ``box``."""
        return self.logits > THRESHOLD_LOGIT

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """(H, W) foreground of the whole slice."""
        full = np.zeros(self.shape, dtype=bool)
        full[self.box.slices] = self.mask_in_box
        return full

    @classmethod
    def from_mask(cls, mask: npt.NDArray[Any], confidence_logit: float = 4.0) -> Prediction:
        """A prediction that says exactly ``mask`` ((H, W), non-zero is foreground), with logits of ±``confidence_logit``."""
        foreground = np.asarray(mask) != 0
        logits = np.where(foreground, confidence_logit, -confidence_logit).astype(np.float32)
        height, width = foreground.shape
        return cls(logits, Box(0, 0, height, width), (height, width))


@dataclass(frozen=True, eq=False)
class Prompt:
    """All that the user has said of one object in one slice.

    Attributes
    ----------
    clicks : 2D clicks ``(row, col)`` in the order they were made, newest last. A box begins anew: what was said before it counts only as
        far as it lies in it, and is left out else, as are earlier boxes
    previous : the prediction before the newest click; None at the first
    kind : what the user calls the object's class; empty where it has none
    """

    clicks: tuple[Click, ...]
    previous: Prediction | None = None
    kind: str = ""

    def __post_init__(self) -> None:
        at = max((number for number, click in enumerate(self.clicks) if click.box is not None), default=0)
        if at and (box := self.clicks[at].box) is not None:
            before = (click for click in self.clicks[:at] if click.box is None and _is_in(box, click))
            object.__setattr__(self, "clicks", (*before, *self.clicks[at:]))

    @property
    def points(self) -> tuple[Click, ...]:
        """The clicks without boxes: each says something of the pixel that it names."""
        return tuple(click for click in self.clicks if click.box is None)


def _is_in(box: Box, click: Click) -> bool:
    row, col = click.voxel
    return box.top <= row < box.bottom and box.left <= col < box.right


@dataclass(frozen=True, eq=False)
class Lesson:
    """One accepted slice: what there is to learn from.

    Attributes
    ----------
    image_slice : the pixels
    clicks : the 2D clicks that led there, in order
    mask : (H, W) bool, the accepted mask
    case : tells the image that it came from from others
    label : id of the object; 0 where there is none
    first_iou : IoU of the model's answer to the first click with the mask, outside of other objects; NaN where it did not begin with a
        click on nothing
    others : (H, W) bool, where other objects are; None for nowhere
    kind : what the user calls the object's class; empty where it has none
    """

    image_slice: ImageSlice
    clicks: tuple[Click, ...]
    mask: npt.NDArray[np.bool_]
    case: str = ""
    label: int = 0
    first_iou: float = math.nan
    others: npt.NDArray[np.bool_] | None = None
    kind: str = ""


@dataclass(frozen=True)
class LearningReport:
    """What learning from a lesson did, in words fit for a status line.

    Attributes
    ----------
    accepted : False when a guard refused the update and the model stayed as it was
    message : one sentence
    loss_before, loss_after : loss on the lesson itself, NaN where not measured
    elapsed_s : seconds of model time
    refused : whether a guard kept off an update, or did not let one be made
    remembered_before, remembered_after : mean IoU on remembered objects, as the guard measured it; NaN where it did not
    practised : steps of practice that were judged with it
    """

    accepted: bool = False
    message: str = ""
    loss_before: float = float("nan")
    loss_after: float = float("nan")
    elapsed_s: float = 0.0
    refused: bool = False
    remembered_before: float = math.nan
    remembered_after: float = math.nan
    practised: int = 0


@runtime_checkable
class Segmenter(Protocol):
    """A model of one object in one slice. ``predict`` depends on nothing but the weights and its arguments."""

    def predict(self, image_slice: ImageSlice, prompt: Prompt) -> Prediction:
        """The mask for all clicks so far."""

    def snapshot(self) -> Any:
        """An immutable value that holds everything learnt so far (cheap: shares what did not change)."""

    def restore(self, snapshot: Any) -> None:
        """Go back to ``snapshot``, bit for bit."""


@runtime_checkable
class AdaptationPolicy(Protocol):
    """How a segmenter (of the kind that the policy is made for) learns.

    A policy is a frozen configuration: all that is learnt lives in the segmenter's snapshot.
    """

    def on_click(self, segmenter: Any, image_slice: ImageSlice, prompt: Prompt) -> Prediction:
        """Answer the newest click of ``prompt``, having learnt from it as far as this policy does so (mid-interaction)."""

    def learning(self, segmenter: Any, lesson: Lesson) -> Generator[None, None, LearningReport]:
        """Learn from a finished mask (post-interaction), step by step. A refused or failed update leaves the segmenter as it was.

        Between its steps the segmenter may be put to other use, if it is given back as it was.
        """

    def practising(self, segmenter: Any, most: int | None = None) -> Generator[None, None, int]:
        """Practise on what is remembered; nothing of it counts before the next lesson. It may be ended between any two steps.

        Between its steps the segmenter is as it was and may be put to other use; where something new comes into force, practice ends.

        Parameters
        ----------
        most : steps to have been done at the end, those of earlier calls included; by default as many as the policy says

        Returns
        -------
        steps done from what is in force
        """


_Value = TypeVar("_Value")


def outcome(steps: Generator[None, None, _Value]) -> _Value:
    """What steps lead to, done one after the other."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            value: _Value = end.value
            return value


@runtime_checkable
class User(Protocol):
    """Whoever clicks: a person, or a robot that knows the truth."""

    def click(self, truth: npt.NDArray[np.bool_], mask: npt.NDArray[np.bool_], clicks: tuple[Click, ...]) -> Click | None:
        """The next 2D click for ``mask`` against ``truth`` (both (H, W)) after ``clicks``; None if there is nothing to correct."""
