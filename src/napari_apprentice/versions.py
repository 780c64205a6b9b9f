"""The numbered versions of a model that learns: what made each of them, how they differ, and what teaching it has saved.

Version 0 is the model as it was shipped. Every accepted object that changes the model makes the next one; going back to an older version
and learning on makes a branch, and nothing is ever overwritten. A `Catalogue` is an immutable value in the session's state, so an undo
takes a version back together with what taught it.

*Effort* compares the model that the user taught with the untaught one, paired and at the first click alone: both get the same click on the
same slice, the taught one before it learns from the object, and both are judged by the mask that was accepted in the end. Later clicks
answer the taught model's own mistakes, so comparing after them would be unfair to the untaught one. Whoever accepts a mask was shown the
taught model's, never the other's: where borders are a matter of taste that favours the former.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_apprentice.types import Click, ImageSlice, LearningReport, Lesson, Prediction, Prompt, Segmenter, SessionError

__all__ = ["KEPT_VERSIONS", "Catalogue", "Comparison", "Effort", "Refusal", "Version", "iou", "measured", "untaught_answer"]

KEPT_VERSIONS = 20
"""So many of the newest versions can be gone back to, beside pinned ones, the one in use and the one a session began with."""


@dataclass(frozen=True)
class Effort:
    """What the first click on an accepted object brought, with and without what the model had been taught.

    Attributes
    ----------
    clicks : that the object took until it was accepted, in the slices that were compared
    taught_iou, untaught_iou : mean IoU of the answer to the first click with the accepted mask
    """

    clicks: int
    taught_iou: float
    untaught_iou: float

    @property
    def sentence(self) -> str:
        """For a status line."""
        return f"the first click got {100 * self.taught_iou:.0f} % of it right, untaught it would have been {100 * self.untaught_iou:.0f} %"


@dataclass(frozen=True)
class Version:
    """One state of the model.

    Attributes
    ----------
    number : 0 is the model as shipped
    parent : the version that it was learnt from; None if it was not learnt here
    origin : where it comes from if it was not learnt here
    time : when it was made, ISO 8601 in UTC
    case : name of the image
    objects : ids of the accepted objects that made it
    checkpoint : file beside the journal that holds it; None if there is no journal
    shared : file of the study that holds it; None if it is not in a study
    basis : file of the study that it was learnt on top of
    pinned : whether it stays whatever the budget
    report : what the policy and its gate said
    effort : see `Effort`
    snapshot : the model itself (opaque); None if it is on the disk only, or gone
    """

    number: int
    parent: int | None = None
    origin: str = ""
    time: str = ""
    case: str = ""
    objects: tuple[int, ...] = ()
    checkpoint: str | None = None
    shared: str | None = None
    basis: str | None = None
    pinned: bool = False
    report: LearningReport | None = field(default=None, compare=False)
    effort: Effort | None = None
    snapshot: Any = field(default=None, repr=False, compare=False)

    def facts(self) -> dict[str, Any]:
        """What can be written down as JSON: all but the model, the report and the effort."""
        hidden = ("snapshot", "report", "effort")
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in hidden}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any], report: LearningReport | None = None, effort: Effort | None = None) -> Version:
        """The inverse of `facts`."""
        known = {field.name for field in fields(cls)}
        made = cls(**{key: value for key, value in facts.items() if key in known})
        return replace(made, objects=tuple(made.objects), report=report, effort=effort)

    @property
    def sentence(self) -> str:
        """What it is, for a list."""
        if self.parent is None:
            return self.origin
        several = "objects" if len(self.objects) > 1 else "object"
        return f"{several} {', '.join(map(str, self.objects))}" if self.objects else "learnt"


@dataclass(frozen=True)
class Refusal:
    """Learning that the gate kept off.

    Attributes
    ----------
    label : id of the newest accepted object that it was about
    message : why, in one sentence
    version : the version that stayed in use
    """

    label: int
    message: str
    version: int


@dataclass(frozen=True)
class Comparison:
    """How two versions differ.

    Attributes
    ----------
    first, second : their numbers
    distance : norm of the difference of the weights over the norm of the first version's; NaN where nobody can tell
    objects : accepted objects that only one of them has learnt from
    remembered_first, remembered_second : mean IoU on remembered objects when the gate passed it; NaN where it did not measure
    """

    first: int
    second: int
    distance: float
    objects: int
    remembered_first: float = math.nan
    remembered_second: float = math.nan


@dataclass(frozen=True)
class Catalogue:
    """All versions that a session knows, and the one that is in use. Never empty once a session has it.

    Attributes
    ----------
    versions : oldest first
    number : of the version in use. The model itself may have learnt from clicks since
    refusals : what the gate kept off, oldest first
    efforts : of accepted objects, oldest first
    """

    versions: tuple[Version, ...] = ()
    number: int = 0
    refusals: tuple[Refusal, ...] = ()
    efforts: tuple[Effort, ...] = ()

    @classmethod
    def beginning(cls, untaught: Any, start: Version | None = None) -> Catalogue:
        """The model as shipped, and the version to start from if that is another one."""
        shipped = Version(0, origin="as shipped", snapshot=untaught)
        return cls((shipped,)) if start is None else cls((shipped, start), start.number)

    def __getitem__(self, number: int) -> Version:
        for version in self.versions:
            if version.number == number:
                return version
        raise SessionError(f"version {number} was asked for; expected one of 0 to {max(v.number for v in self.versions)}")

    @property
    def current(self) -> Version:
        """The version in use."""
        return self[self.number]

    @property
    def kept(self) -> tuple[Version, ...]:
        """The versions whose models are to stay: see `KEPT_VERSIONS`."""
        newest = {version.number for version in self.versions[-KEPT_VERSIONS:]} | {self.number}
        return tuple(v for v in self.versions if v.parent is None or v.pinned or v.number in newest)

    def next(self, lessons: Sequence[Lesson], case: str, report: LearningReport, effort: Effort | None) -> Version:
        """The version that learning from ``lessons`` on top of the one in use makes."""
        objects = tuple(dict.fromkeys(lesson.label for lesson in lessons if lesson.label))
        now = datetime.now(UTC).isoformat(timespec="seconds")
        current = self.current
        number = self.versions[-1].number + 1
        return Version(number, self.number, time=now, case=case, objects=objects, basis=current.shared, report=report, effort=effort)

    def learnt(self, version: Version | None, label: int, report: LearningReport | None, effort: Effort | None) -> Catalogue:
        """The same after learning from an object, whether it made a version or not."""
        after = self if version is None else self._with((*self.versions, version), version.number)
        if report is not None and report.refused:
            after = replace(after, refusals=(*after.refusals, Refusal(label, report.message, after.number)))
        return after if effort is None else replace(after, efforts=(*after.efforts, effort))

    def using(self, number: int) -> Catalogue:
        """The same with another version in use."""
        return self._with(self.versions, self[number].number)

    def pinning(self, number: int, pinned: bool) -> Catalogue:
        """The same with a version pinned or not."""
        return self._changed(replace(self[number], pinned=pinned))

    def holding(self, number: int, snapshot: Any) -> Catalogue:
        """The same with the model of a version in memory."""
        return self._changed(replace(self[number], snapshot=snapshot))

    def objects_between(self, first: int, second: int) -> int:
        """How many accepted objects only one of two versions has learnt from."""
        apart = self._ancestry(first) ^ self._ancestry(second)
        return sum(max(len(self[number].objects), 1) for number in apart if self[number].parent is not None)

    def _ancestry(self, number: int | None) -> set[int]:
        found: set[int] = set()
        while number is not None:
            found.add(number)
            number = self[number].parent
        return found

    def _changed(self, version: Version) -> Catalogue:
        return self._with(tuple(version if v.number == version.number else v for v in self.versions), self.number)

    def _with(self, versions: tuple[Version, ...], number: int) -> Catalogue:
        """With other versions; the models of those that are not kept are let go of."""
        after = replace(self, versions=versions, number=number)
        kept = {v.number for v in after.kept}
        gone = {v.number for v in versions if v.number not in kept and v.snapshot is not None}
        return replace(after, versions=tuple(replace(v, snapshot=None) if v.number in gone else v for v in versions)) if gone else after


def iou(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float:
    """Intersection over union of two masks of one shape; 1 if both are empty."""
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0


def measured(segmenter: Segmenter, untaught: Any, lessons: Sequence[Lesson]) -> Effort | None:
    """The effort that teaching has saved on accepted slices: one prediction of the untaught model each. The segmenter is left as it was.

    None where no lesson began with a click on nothing.
    """
    judged = [lesson for lesson in lessons if lesson.clicks and not math.isnan(lesson.first_iou)]
    if not judged:
        return None
    with_teaching = [lesson.first_iou for lesson in judged]
    taught = segmenter.snapshot()
    if taught is untaught:
        without = with_teaching
    else:
        segmenter.restore(untaught)
        try:
            without = [_first_iou(segmenter, lesson) for lesson in judged]
        finally:
            segmenter.restore(taught)
    clicks = sum(len(lesson.clicks) for lesson in judged)
    return Effort(clicks, float(np.mean(with_teaching)), float(np.mean(without)))


def _first_iou(segmenter: Segmenter, lesson: Lesson) -> float:
    """IoU of the answer to the first click with the accepted mask; other objects are protected from either model."""
    answer = segmenter.predict(lesson.image_slice, Prompt(lesson.clicks[:1], kind=lesson.kind)).mask
    return iou(answer if lesson.others is None else answer & ~lesson.others, lesson.mask)


def untaught_answer(segmenter: Segmenter, untaught: Any, image_slice: ImageSlice, clicks: Sequence[Click], kind: str = "") -> Prediction:
    """What the untaught model would have answered, click after click, on top of its own answers. The segmenter is left as it was.

    ``kind`` : what the object's class is called
    """
    taught, answer = segmenter.snapshot(), None
    segmenter.restore(untaught)
    try:
        for count in range(1, len(clicks) + 1):
            answer = segmenter.predict(image_slice, Prompt(tuple(clicks[:count]), answer, kind))
    finally:
        segmenter.restore(taught)
    if answer is None:
        raise SessionError("no click was made in this slice; expected at least one to answer")
    return answer
