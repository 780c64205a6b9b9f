"""Carry an object from the slices that a person accepted to those between and beyond them, and say how sure that is.

One step goes from a slice whose mask is known to the next one:

1. *Motion*: dense optical flow between the two slices moves the mask along (iterative Lucas-Kanade; Le Besnerais & Champagnat 2005).
2. *Trust*: the moved mask becomes logits, its signed distance to the contour in units of the slice step. What is one millimetre inside is
   nearly certain where slices are 0.5 mm apart, and hardly known where they are 5 mm apart.
3. *The network* is shown the next slice, the moved mask as its previous answer, and a click in the middle of it. Its logits are added
   as far as it finds the accepted mask where it is asked the same about the slice that the way began in; where it disagrees with the
   moved mask, that slice is doubted.
4. *The end*: the object no longer stands out from what is around it as it did, and the network does not believe in it either; or it
   splits, meets another object, or the way has become too doubtful. The doubt adds up from step to step: by what the flow does not bring
   back, and by the step's length over the object's width.

Between two accepted slices the steps come from both ends, and their logits are blended, the nearer end's more, with the shape in between
(Raya & Udupa 1990): the more of it the more the accepted masks overlap, and in place of a way that ends early. How wrong a slice is
expected to be follows from the signs that were noticed on the way (`expectation`). Nothing here changes the model or the labels: an
`Outcome` says what would change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from napari_apprentice.expectation import Ending, Signs, expected_error, expected_to_go_on
from napari_apprentice.geometry import clip, grow, union
from napari_apprentice.ground import Ground, accepted_slices
from napari_apprentice.labelmap import LabelMap, Patch
from napari_apprentice.motion import Motion
from napari_apprentice.origins import Origin
from napari_apprentice.shapes import between, bounding_box, deepest, large_pieces, overlap, signed_distance, standing_out
from napari_apprentice.types import Box, Click, Image, ImageError, ImageSlice, Plane, Prediction, Prompt, Segmenter, SessionError

__all__ = ["Carrying", "Outcome", "Stop", "propagate"]

Mask = npt.NDArray[np.bool_]
Logits = npt.NDArray[np.float32]
OnSlice = Callable[[int, int], None]

_MOST_LOGIT, _LEAST_LOGIT, _MOST_WORD = 12.0, 0.1, 6.0  # of a moved mask, of a pixel that was decided otherwise, of the network
_SURROUNDINGS_PX = 12  # beside the margin
_DEAF = 0.7  # IoU with an accepted mask up to which the network is not listened to
_LOST = 0.1  # of the expected IoU, on a step as long as the object is wide
_FAINT = 0.2  # standard deviations by which an object hardly stands out
_CUT_OFF = 0.75  # expected error where a walk had to end, though the object is there
_NO_WORD = 0.5  # the IoU of a network that gives itself none


@dataclass(frozen=True)
class Carrying:
    """How masks are carried.

    Attributes
    ----------
    trust : logits of the moved mask one slice step away from its contour
    network : weight of the network's logits where it finds accepted masks exactly; 0 does not ask it
    margin : how much of its own extent the mask may grow to every side in one step
    faded : the object counts as gone where less of its contrast is left,
    unbelieved : and the network gives the moved mask an IoU that is further from 1
    smallest_px : a smaller mask counts as gone
    split : a part of at least this share of the largest one makes two of one object
    doubtful : the walk stops where a larger error (1 - IoU) is expected
    """

    trust: float = 4.0
    network: float = 1.0
    margin: float = 0.35
    faded: float = 0.5
    unbelieved: float = 0.15
    smallest_px: int = 6
    split: float = 0.25
    doubtful: float = 0.6


class Stop(NamedTuple):
    """Why nothing was carried to a slice, and on.

    Attributes
    ----------
    index : of the slice
    reason : "the object is gone", and the like
    error : that is expected of leaving the slice empty
    ending : what that follows from, where the object seemed to be gone; else None
    """

    index: int  # type: ignore[assignment] # a stop is no sequence to search in
    reason: str
    error: float
    ending: Ending | None = None


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a propagation comes to.

    Attributes
    ----------
    axis : the one that the slices lie across
    patch : the change of the labels; None if nothing changes
    carried : index of every slice that was filled, or before which it ended, and the error (1 - IoU) that is expected there
    stops : where it ended before a slice that somebody accepted, or the border of the image
    signs : what the expected errors of the slices that were filled follow from
    """

    axis: int
    patch: Patch | None
    carried: Mapping[int, float]
    stops: tuple[Stop, ...] = ()
    signs: Mapping[int, Signs] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """What there is to say of it in a status line."""
        count = len(self.carried) - len(self.stops)
        told = ["no slice was filled" if not count else "1 slice was filled" if count == 1 else f"{count} slices were filled"]
        for reason in dict.fromkeys(stop.reason for stop in self.stops):
            where = [str(stop.index) for stop in self.stops if stop.reason == reason]
            told.append(f"it ended at slice{'s' * (len(where) > 1)} {' and '.join(where)}: {reason}")
        return "; ".join(told)


def propagate(
    image: Image,
    segmenter: Segmenter,
    labels: LabelMap,
    origin: Origin,
    label: int,
    axis: int = 0,
    on_slice: OnSlice | None = None,
    carrying: Carrying = Carrying(),
    kind: str = "",
) -> Outcome:
    """Carry object ``label`` from its accepted slices across ``axis`` to all others that it reaches.

    Only voxels that are 0 or ``label`` are written; slices and crossing lines that the user accepted stay as they are, empty ones too.

    Parameters
    ----------
    origin : where the slices of the object come from
    on_slice : called after every slice with the number of slices that are done and of those that there are; may raise to cancel
    kind : what the class of the object is called; empty where it has none

    Raises
    ------
    SessionError : the image has no such axis, or the object no accepted slice across it
    """
    if image.ndim != 3 or axis not in range(3):
        raise SessionError(
            f"propagation across axis {axis} of an image of shape {image.shape} was asked for; expected axis 0, 1 or 2 of a volume"
        )
    accepted = accepted_slices(labels, origin, label, axis)
    if not any(mask.any() for mask in accepted.values()):
        raise SessionError(
            f"object {label} has no accepted slice across axis {axis} to start from; expected one that was clicked or painted in"
        )
    ground = Ground(labels, origin, label, axis)
    found, stops = _Walk(image, segmenter, ground, carrying, on_slice, kind).everywhere(accepted)
    answers = {index: one.answer for index, one in found.items()}
    signs = {index: one.signs for index, one in found.items()}
    errors = {index: expected_error(sign) for index, sign in signs.items()} | {stop.index: stop.error for stop in stops}
    carried = {index: round(errors[index], 4) for index in sorted(errors)}
    return Outcome(axis, ground.patch(answers), carried, tuple(sorted(stops)), signs)


# --- from slice to slice ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Known:
    """A slice whose mask is known.

    Attributes
    ----------
    sure : the IoU that the mask is expected to have by the flow alone, which decides when to stop
    heed : how far the network is listened to on this way
    began : pixels of the mask where the way began
    stood_out : how far the object stood out where the way began; None there
    passed : slices since then
    """

    pixels: ImageSlice
    mask: Mask
    sure: float
    heed: float
    began: int
    stood_out: float | None = None
    passed: int = 0


class _Carried(NamedTuple):
    """What a slice was filled with, and the signs of how wrong that is."""

    answer: Prediction
    signs: Signs


class _Stopped(Exception):  # noqa: N818 (it is none)
    """A walk ends before a slice: why, and what was noticed where the object seemed to be gone."""

    def __init__(self, reason: str, ending: Ending | None = None) -> None:
        super().__init__(reason)
        self.ending = ending


class _Walk:
    """All the ways that lead away from accepted slices."""

    def __init__(self, image: Image, segmenter: Segmenter, ground: Ground, carrying: Carrying, on_slice: OnSlice | None, kind: str) -> None:
        self._image, self._segmenter, self._ground, self._carrying = image, segmenter, ground, carrying
        self._on_slice, self._kind = on_slice, kind
        self._spacing: tuple[float, float] = tuple(s for axis, s in enumerate(image.spacing) if axis != ground.axis)  # type: ignore[assignment]
        self._done = self._total = 0

    def everywhere(self, accepted: Mapping[int, Mask]) -> tuple[dict[int, _Carried], list[Stop]]:
        """The answers in all slices that were reached, and where the walks ended."""
        ends = [-1, *sorted(accepted), self._image.shape[self._ground.axis]]
        gaps = [[way for way in _ways(a, b) if (mask := accepted.get(_start(way))) is not None and mask.any()] for a, b in pairwise(ends)]
        self._total = sum(len(way) for ways in gaps for way in ways)
        answers: dict[int, _Carried] = {}
        stops: list[Stop] = []
        for ways in gaps:
            walks = [self._along(way, accepted[_start(way)]) for way in ways]
            if len(walks) == 2:
                answers |= self._blended(ways[0], accepted, *(reached for reached, _ in walks))
            elif walks:
                answers |= walks[0][0]
                stops += [walks[0][1]] if walks[0][1] else []
        return answers, stops

    def _along(self, way: range, mask: Mask) -> tuple[dict[int, _Carried], Stop | None]:
        """The answers along ``way``, from the slice before it, until the object is lost."""
        reached: dict[int, _Carried] = {}
        known: _Known | None = None
        for passed, index in enumerate(way):
            try:
                known = known or self._known(_start(way), mask)
                known, reached[index] = self._step(known, index)
            except _Stopped as stopped:
                self._tell(len(way) - passed)
                error = _CUT_OFF if stopped.ending is None else expected_to_go_on(stopped.ending)
                return reached, Stop(index, str(stopped), error, stopped.ending)
            self._tell(1)
        return reached, None

    def _tell(self, slices: int) -> None:
        self._done += slices
        if self._on_slice is not None:
            self._on_slice(self._done, self._total)

    def _pixels(self, index: int) -> ImageSlice:
        try:
            return self._image.slice(Plane(self._ground.axis, index))
        except ImageError as error:
            raise _Stopped(f"that slice cannot be used ({error})") from error

    def _known(self, index: int, mask: Mask) -> _Known:
        """An accepted slice. The better the network finds the accepted mask there, the more it is listened to on the way."""
        pixels, heed = self._pixels(index), 0.0
        if self._carrying.network:
            box = _about(mask, self._carrying.margin)
            found = overlap(self._asked(pixels, mask[box.slices], box)[0] > 0, mask[box.slices])
            heed = self._carrying.network * float(np.clip((found - _DEAF) / (1 - _DEAF), 0.0, 1.0))
        return _Known(pixels, mask, 1.0, heed, int(mask.sum()))

    def _step(self, known: _Known, index: int) -> tuple[_Known, _Carried]:
        """From a known slice to slice ``index``."""
        pixels, box = self._pixels(index), _about(known.mask, self._carrying.margin)
        mask, free = known.mask[box.slices], self._ground.open(index)[box.slices]
        motion = Motion(known.pixels.data[(..., *box.slices)], pixels.data[(..., *box.slices)])
        logits = motion.moved(self._in_steps(signed_distance(mask, self._spacing)))
        moved = logits > 0
        before, after = motion.pictures
        stood_out = standing_out(before, mask) if known.stood_out is None else known.stood_out
        left = self._left(standing_out(after, moved), stood_out)
        against, doubted = 0.0, 1 - _NO_WORD
        if self._carrying.network and moved.any():
            word, itself = self._asked(pixels, moved, box)
            against, doubted = 1 - overlap(word > 0, moved), 1 - itself
            logits = logits + known.heed * word
        gone = _Stopped("the object is gone", Ending(known.passed, known.began / int(mask.sum()), doubted))
        if not moved.any() or (left < self._carrying.faded and doubted > self._carrying.unbelieved):
            raise gone
        sure = known.sure * self._kept(motion, mask, moved)
        found = self._judged(logits > 0, mask, free, sure, gone)
        logits = np.where(found, np.maximum(logits, _LEAST_LOGIT), np.minimum(logits, -_LEAST_LOGIT)).astype(np.float32)
        answer, passed = Prediction(logits, box, pixels.shape), known.passed + 1
        lost, small = -math.log(max(sure, 1e-3)), min(2 * math.sqrt(math.pi / found.sum()), 1.0)
        signs = Signs(math.log1p(passed), lost, against, doubted, small)
        return _Known(pixels, answer.mask, sure, known.heed, known.began, stood_out, passed), _Carried(answer, signs)

    def _in_steps(self, distance: Logits) -> Logits:
        """Logits of what lies at a distance from the contour, one slice step on."""
        step = self._image.spacing[self._ground.axis]
        return np.asarray(np.clip(self._carrying.trust * distance / step, -_MOST_LOGIT, _MOST_LOGIT), np.float32)

    def _asked(self, pixels: ImageSlice, mask: Mask, box: Box) -> tuple[Logits, float]:
        """What the network says in ``box`` of a slice where the object should be about where ``mask``, given there, is; and its own IoU."""
        full = np.zeros(pixels.shape, dtype=bool)
        full[box.slices] = mask
        click = Click(deepest(full))
        word = self._segmenter.predict(pixels, Prompt((click,), Prediction.from_mask(full), self._kind))
        logits = np.full(pixels.shape, -_MOST_WORD, np.float32)
        logits[word.box.slices] = np.clip(word.logits, -_MOST_WORD, _MOST_WORD)
        return logits[box.slices], _NO_WORD if math.isnan(word.score) else word.score

    def _kept(self, motion: Motion, mask: Mask, moved: Mask) -> float:
        """The share of a mask that a step should keep right: what comes back when it is moved back, and less the longer the step is."""
        back = motion.moved_back(self._in_steps(signed_distance(moved, self._spacing))) > 0
        extent = float(np.sqrt(mask.sum() * self._spacing[0] * self._spacing[1]))
        return float(overlap(back, mask) ** 0.5) * float(np.exp(-_LOST * self._image.spacing[self._ground.axis] / extent))

    @staticmethod
    def _left(now: float, then: float) -> float:
        """How much of an object's standing out is left, 0 to 1; what hardly stood out says little."""
        return float(np.clip((now * np.sign(then) + _FAINT) / (abs(then) + _FAINT), 0.0, 1.0))

    def _judged(self, found: Mask, before: Mask, free: Mask, sure: float, gone: _Stopped) -> Mask:
        """What of ``found`` counts; raises where the walk has to end, ``gone`` where nothing is left."""
        kept, pieces = large_pieces(found & free, 0.1)
        if kept.sum() < self._carrying.smallest_px:
            if found.sum() < self._carrying.smallest_px:
                raise gone
            raise _Stopped("another object is there")
        if kept.sum() < 0.5 * found.sum():
            raise _Stopped("another object is there")
        if 1 - sure > self._carrying.doubtful:
            raise _Stopped("it became too doubtful")
        if pieces > 1 and large_pieces(kept, self._carrying.split)[1] > max(large_pieces(before, self._carrying.split)[1], 1):
            raise _Stopped("the object splits")
        return kept

    def _blended(
        self, way: range, accepted: Mapping[int, Mask], forth: Mapping[int, _Carried], back: Mapping[int, _Carried]
    ) -> dict[int, _Carried]:
        """Between two accepted slices: both answers, the nearer one more, and the shape in between.

        That counts as far as the accepted masks overlap, and stands in for an answer that is missing.
        """
        first, last = _start(way), way.stop
        box = union(*(_about(accepted[end], self._carrying.margin) for end in (first, last)))
        for answer, _ in (*forth.values(), *back.values()):
            box = union(box, answer.box)
        masks = [accepted[end][box.slices] for end in (first, last)]
        alike = overlap(*masks)
        blended = {}
        for index in way:
            share = (index - first) / (last - first)
            shape = self._in_steps(between(masks[0], masks[1], share, self._spacing))
            words = [_in_box(carried[index].answer, box) if index in carried else shape for carried in (forth, back)]
            mixed = alike * shape + (1 - alike) * ((1 - share) * words[0] + share * words[1])
            kept = (mixed > 0) & self._ground.open(index)[box.slices]
            if kept.any():
                logits = np.where(kept, mixed, np.minimum(mixed, -_LEAST_LOGIT)).astype(np.float32)
                passed = ((forth, index - first), (back, last - index))
                signs = [carried[index].signs if index in carried else _of_none(slices) for carried, slices in passed]
                apart = 1 - overlap(words[0] > 0, words[1] > 0)
                answer = Prediction(logits, box, accepted[first].shape)
                blended[index] = _Carried(answer, signs[0].towards(signs[1], share, apart))
        return blended


# --- small things -----------------------------------------------------------------------------------------------------------------------


def _ways(first: int, last: int) -> tuple[range, range]:
    """Through the slices between two: up from the first, and down from the last."""
    return range(first + 1, last), range(last - 1, first, -1)


def _start(way: range) -> int:
    """The slice from where a way sets out."""
    return way.start - way.step


def _of_none(passed: int) -> Signs:
    """The signs of a way that has ended before: much was lost, and of the rest nothing is known."""
    return Signs(math.log1p(passed), lost=1.0, against=0.5, doubted=0.5, small=0.1)


def _about(mask: Mask, margin: float) -> Box:
    """The box of a mask and its surroundings."""
    box = bounding_box(mask)
    return clip(grow(box, round(margin * max(box.shape)) + _SURROUNDINGS_PX), (mask.shape[0], mask.shape[1]))


def _in_box(answer: Prediction, box: Box) -> Logits:
    """The logits of an answer in a box that holds its own."""
    logits = np.full(box.shape, -_MOST_LOGIT, np.float32)
    top, left = answer.box.top - box.top, answer.box.left - box.left
    logits[top : top + answer.box.shape[0], left : left + answer.box.shape[1]] = answer.logits
    return logits
