"""A segmenter, a policy and a store that are exact and instantaneous: for tests of whatever drives a session, yours included.

::

    session = Session(image, DiskSegmenter(radius=5.0), FakePolicy())
    session.add(Click((20, 30)))          # a disk of radius 5 about the click
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_apprentice.types import Box, ImageSlice, LearningReport, Lesson, Prediction, Prompt, ReadError, Segmenter

__all__ = ["DiskSegmenter", "DiskWeights", "FakePolicy", "FakeStore"]


@dataclass(frozen=True)
class DiskWeights:
    """All that a `DiskSegmenter` has learnt.

    Attributes
    ----------
    radius : of the disks, in pixels
    lessons : how often it was taught
    """

    radius: float = 5.0
    lessons: int = 0


class DiskSegmenter:
    """Paints disks about positive clicks, erases disks about negative ones, and fills boxes (implements `types.Segmenter`).

    It starts from the previous mask and goes through the clicks in order, so the newest click wins; a box begins anew. The logits inside
    the bounding box of the mask are plus or minus the radius: they show which weights made them.

    Parameters
    ----------
    radius : of the disks in pixels, before anything was learnt
    masks : how many it proposes, each of disks that are larger by half the radius than the one before, with scores of 1, 1/2, 1/3, ...
    """

    name = "disks"

    def __init__(self, radius: float = 5.0, masks: int = 1) -> None:
        self.clock = {"encode": 0.0, "decode": 0.0, "adapt": 0.0}
        self.masks = masks
        self._weights = DiskWeights(float(radius))

    @property
    def radius(self) -> float:
        """Of the disks now."""
        return self._weights.radius

    def predict(self, image_slice: ImageSlice, prompt: Prompt) -> Prediction:
        """The disks of all clicks on top of the previous mask."""
        best, *others = (self._painted(image_slice, prompt, self.radius * (1 + rank / 2), 1 / (1 + rank)) for rank in range(self.masks))
        return replace(best, candidates=tuple(others))

    def _painted(self, image_slice: ImageSlice, prompt: Prompt, radius: float, score: float) -> Prediction:
        """Disks of ``radius``."""
        rows, cols = np.ogrid[: image_slice.shape[0], : image_slice.shape[1]]
        mask = np.zeros(image_slice.shape, dtype=bool) if prompt.previous is None else prompt.previous.mask
        drawn = prompt.clicks[-1].box if prompt.clicks else None
        if drawn is not None:
            mask = np.zeros(image_slice.shape, dtype=bool)
            mask[drawn.slices] = True
        for click in prompt.points if drawn is None else ():
            row, col = click.voxel
            mask[(rows - row) ** 2 + (cols - col) ** 2 <= radius**2] = click.positive
        if not mask.any():
            return Prediction(np.zeros((0, 0), np.float32), Box(0, 0, 0, 0), image_slice.shape, score=0.0)
        inside_rows, inside_cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = Box(int(inside_rows[0]), int(inside_cols[0]), int(inside_rows[-1]) + 1, int(inside_cols[-1]) + 1)
        logits = np.where(mask[box.slices], self.radius, -self.radius).astype(np.float32)
        return Prediction(logits, box, image_slice.shape, view=box, score=score)

    def snapshot(self) -> DiskWeights:
        """The same object as long as nothing was learnt."""
        return self._weights

    def restore(self, snapshot: DiskWeights) -> None:
        """Go back to ``snapshot``."""
        self._weights = snapshot

    def teach(self, growth_px: float) -> None:
        """Learn to paint larger disks; a growth of 0 leaves the weights alone."""
        if growth_px:
            self._weights = replace(self._weights, radius=self.radius + growth_px, lessons=self._weights.lessons + 1)

    def describe(self) -> dict[str, Any]:
        """Facts for people."""
        return {"network": self.name, "parameters": 1, "digest": "disks", "device": "cpu"}


@dataclass
class FakePolicy:
    """Makes the disks grow with every click and with every accepted mask (implements `types.AdaptationPolicy`).

    Attributes
    ----------
    per_click, per_accept : growth of the radius in pixels; 0 and 0 is the policy that never learns
    per_step : the same for every step of practice, from the first lesson on; at most four steps between two lessons. 0 for no practice
    refusing : say that a guard kept the learning from accepted masks off, and leave the segmenter as it was
    failing : "click" or "accept" makes that method raise ``error``, *after* it changed the segmenter: whoever calls it has to clean up
    error : what is raised
    """

    per_click: float = 0.25
    per_accept: float = 1.0
    per_step: float = 0.0
    refusing: bool = False
    failing: str | None = None
    error: Exception = field(default_factory=lambda: RuntimeError("told to fail"))
    _ahead: tuple[Any, int] = (None, 0)

    def on_click(self, segmenter: Segmenter, image_slice: ImageSlice, prompt: Prompt) -> Prediction:
        """Grow by ``per_click``, then predict."""
        self._teach(segmenter, self.per_click)
        if self.failing == "click":
            raise self.error
        return segmenter.predict(image_slice, prompt)

    def learning(self, segmenter: Segmenter, lesson: Lesson) -> Generator[None, None, LearningReport]:
        """`on_accept`, in two steps."""
        yield
        report = self.on_accept(segmenter, lesson)
        yield
        return report

    def practising(self, segmenter: Segmenter, most: int | None = None) -> Generator[None, None, int]:
        """Count steps."""
        known, most = segmenter.snapshot(), 4 if most is None else most
        while self.per_step and getattr(known, "lessons", 0) and self._steps(known) < most:
            yield
            if segmenter.snapshot() is not known:
                return 0
            self._ahead = known, self._steps(known) + 1
        return self._steps(known)

    def _steps(self, known: Any) -> int:
        """How many were practised from there."""
        return self._ahead[1] if self._ahead[0] is known else 0

    def on_accept(self, segmenter: Segmenter, lesson: Lesson) -> LearningReport:
        """Grow by ``per_accept``, and by what was practised."""
        steps = self._steps(segmenter.snapshot())
        if self.refusing:
            return LearningReport(False, "learning was refused: told to refuse; the model stays", refused=True)
        self._teach(segmenter, self.per_accept + steps * self.per_step)
        if self.failing == "accept":
            raise self.error
        if not self.per_accept:
            return LearningReport(False, "this policy does not learn from accepted masks")
        return LearningReport(True, f"learnt from {int(lesson.mask.sum())} pixels", loss_before=1.0, loss_after=0.5, practised=steps)

    @staticmethod
    def _teach(segmenter: Segmenter, growth_px: float) -> None:
        if isinstance(segmenter, DiskSegmenter):
            segmenter.teach(growth_px)


class FakeStore:
    """Keeps `DiskWeights` as JSON files (implements `session.SnapshotStore`)."""

    def save(self, snapshot: DiskWeights, path: Path, facts: Mapping[str, str] | None = None, *, pictures: bool = True) -> None:
        """Write ``snapshot``, which holds no pictures, and ``facts`` beside it."""
        path.write_text(json.dumps(asdict(snapshot) | ({"facts": dict(facts)} if facts else {})))

    def load(self, path: Path) -> DiskWeights:
        """Read a snapshot, exactly.

        Raises
        ------
        ReadError : there is none, or it is damaged
        """
        try:
            return DiskWeights(**{key: value for key, value in json.loads(path.read_text()).items() if key != "facts"})
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ReadError(f"the snapshot {path} cannot be read ({error}); expected one that FakeStore saved") from error

    def carry(self, path: Path) -> DiskWeights:
        """The same as `load`: nothing hangs on other weights here."""
        return self.load(path)

    def distance(self, first: DiskWeights, second: DiskWeights) -> float:
        """Of the radii, over the first one."""
        return abs(first.radius - second.radius) / first.radius
