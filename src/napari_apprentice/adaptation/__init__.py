"""Learning from a user: policies that turn clicks and accepted masks into changes of the weights, and the guards that keep them safe.

A policy is made of up to two of these: *image adaptation* (IA) and *sequence adaptation* (SA) of Learning from Corrections
(Kontogianni et al., 2020), *mid-interaction* (MI) and *post-interaction* (PI) of You Point, I Learn (2025). Or no weight changes, and
accepted objects are shown to a network that reads examples (*recall*; `networks.UNet.recollect`). Ours on top: the hard click
constraint, normalised click weights, rehearsal of remembered objects and of procedural ones, corrections to practise on so that the model
keeps listening, a gate that refuses what makes either worse, and doubt about masks for which nothing speaks.

A policy is a frozen configuration. All that is learnt lives in the segmenter's `Knowledge`, which is never changed in place: an undo is a
`restore`, and it is exact.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from napari_apprentice.adaptation._corrections import SequenceAdaptation, adapt_to_image
from napari_apprentice.adaptation._doubt import doubted, replayed
from napari_apprentice.adaptation._gate import Update, gated, implausible, marks_now
from napari_apprentice.adaptation._memory import kept, lesson_windows, remember, with_extent
from napari_apprentice.adaptation._object import after_object, begins_object
from napari_apprentice.adaptation._point_and_learn import PostInteraction, learn_click
from napari_apprentice.adaptation._practice import practise, practised, unpractised, weighed
from napari_apprentice.adaptation._settings import Settings
from napari_apprentice.adaptation._source import source_of
from napari_apprentice.knowledge import differ
from napari_apprentice.segmenter import HELD_LOGIT, NetworkSegmenter
from napari_apprentice.types import Click, ImageSlice, InputError, LearningReport, Lesson, Prediction, Prompt, outcome

__all__ = ["POLICIES", "Adaptation", "lesson_windows", "make_policy", "remember"]


@dataclass(frozen=True)
class Adaptation(Settings):
    """A policy (implements `types.AdaptationPolicy`); its numbers are those of `Settings`."""

    def on_click(self, segmenter: NetworkSegmenter, image_slice: ImageSlice, prompt: Prompt) -> Prediction:
        """Predict; learn from the newest click (MI: from the second on), and perhaps predict again. A box only asks.

        A click that the model obeyed before it learnt must be obeyed when it predicts again, else the lesson is taken back.
        """
        if self.learns_for_object and begins_object(prompt):
            after_object(segmenter)
        prediction = segmenter.predict(image_slice, prompt)
        if prompt.clicks[-1].box is not None or (not self.ia and not (self.mid and len(prompt.clicks) > 1)):
            return prediction
        before = segmenter.snapshot()
        learn = adapt_to_image if self.ia else learn_click
        with segmenter.timed("adapt"):
            learnt = learn(self, segmenter, image_slice, prompt, prediction)
        if learnt and not self.ia and not self.mid_again:
            return prediction
        if learnt:
            again = segmenter.predict(image_slice, prompt)
            if _obeys(again, prompt.clicks[-1]) or not _obeys(prediction, prompt.clicks[-1]):
                return again
        segmenter.restore(before)
        return prediction

    def on_accept(self, segmenter: NetworkSegmenter, lesson: Lesson) -> LearningReport:
        """Forget what was learnt for this object alone, then learn from its finished mask, unless the gate refuses."""
        return outcome(self.learning(segmenter, lesson))

    def learning(self, segmenter: NetworkSegmenter, lesson: Lesson) -> Generator[None, None, LearningReport]:
        """The steps of `on_accept`: the segmenter may be put to other use between them, and be given back as it was."""
        if self.examples and not segmenter.reads_examples:
            return (yield from replace(self, examples=0, post=not self.practice).learning(segmenter, lesson))
        began = time.perf_counter()
        after_object(segmenter)
        if not self.post and not (self.sa and lesson.clicks) and not self.examples and not self.practice:
            return LearningReport(False, "nothing to learn")
        if not lesson.mask.any() or lesson.mask.all():
            return LearningReport(False, "nothing to learn")
        ahead, in_force = practised(segmenter), segmenter.snapshot()
        with segmenter.timed("adapt"):
            if self.practice:
                unpractised(segmenter)
            new = remember(segmenter, lesson, self.size, ground=self.practice > 0)
            known, *_ = answers = replayed(segmenter, new, self.examples)
            if objection := implausible(self, segmenter.snapshot().memory[-self.remembered :], new, answers[-1]):
                segmenter.restore(in_force)
                return LearningReport(False, f"learning was refused: {objection}; nothing is remembered of it", refused=True)
            yield
            let_go = (yield from doubted(self, segmenter, new, answers)) if self.full_doubt else 0.0
            if let_go:
                ((known, _),) = marks_now(segmenter, (new,))
            leads = False
            if self.practice and differ(ahead.reached.weights, segmenter.base.weights):
                yield
                leads = yield from weighed(segmenter, new, ahead)
            source = (yield from source_of(segmenter, self.procedural, self.size)) if self.procedural else None
            before = segmenter.snapshot()
            updates: list[Update] = []
            if self.sa and lesson.clicks:
                updates.append(SequenceAdaptation(self, segmenter, before, new, lesson).steps())
            if self.post:
                updates.append(PostInteraction(self, segmenter, before, new, known, source).steps())
            if updates:
                report = yield from gated(self, segmenter, new, source, _in_turn(updates))
            else:
                segmenter.restore(replace(before, marks=(), source_mark=None))
                told = _KEPT if not self.examples else _REMEMBERED if before.examples or not self.full_doubt else _NOT_SHOWN
                report = LearningReport(True, told + (_PRACTISED[leads].format(len(ahead.begun.memory)) if ahead.steps else ""))
        after = segmenter.snapshot()
        newest = replace(new, best=after.marks[-1]) if after.marks else new
        segmenter.restore(
            replace(
                after,
                extent_log=with_extent(before.extent_log, lesson.mask) if self.extents else before.extent_log,
                memory=kept((*after.memory, newest), self.remembered),
                examples=before.examples if self.full_doubt else self.examples,
                marks=after.marks[-self.remembered :],
            )
        )
        if self.examples:
            yield
            segmenter.recollected(kind=new.kind)  # before the next click asks for it
        if let_go >= 0.005 and updates:  # examples are let go in the report's own words
            told = f"{100 * let_go:.0f} % of what was learnt before was let go, as the untaught model did better lately"
            report = replace(report, message=f"{told}; then {report.message}")
        return replace(report, elapsed_s=time.perf_counter() - began, practised=ahead.steps)

    def practising(self, segmenter: NetworkSegmenter, most: int | None = None) -> Generator[None, None, int]:
        """Practise on what is remembered, for the next lesson to judge; see `_practice.practise`.

        Parameters
        ----------
        most : steps to have been done at the end; by default, and at most, `Settings.practice`
        """
        return (yield from practise(self, segmenter, self.practice if most is None else min(most, self.practice)))


_REMEMBERED = "remembered: the next clicks are answered with this object in view"
_KEPT = "remembered"
_NOT_SHOWN = "remembered, but examples are kept out of view: lately the model did better without"


_PRACTISED = {
    True: "; what was practised on the {} before it counts",
    False: "; what was practised on the {} before it does not help yet",
}


def _in_turn(updates: Sequence[Update]) -> Update:
    """Several updates as one: the first loss of the first and the last loss of the last, None if one failed."""
    losses = []
    for update in updates:
        if (one := (yield from update)) is None:
            return None
        losses.append(one)
    return losses[0][0], losses[-1][1]


def _obeys(prediction: Prediction, click: Click) -> bool:
    """Whether the model itself said at the click what the user said: where it did not, the segmenter holds the logit at ±`HELD_LOGIT`."""
    row, col = click.voxel[0] - prediction.box.top, click.voxel[1] - prediction.box.left
    if not (0 <= row < prediction.box.shape[0] and 0 <= col < prediction.box.shape[1]):
        return not click.positive
    logit = prediction.logits[row, col]
    return bool((logit if click.positive else -logit) > np.float32(HELD_LOGIT))


POLICIES: Mapping[str, Adaptation] = {
    "none": Adaptation("none"),
    "ia": Adaptation("ia", ia=True),
    "sa": Adaptation("sa", sa=True),
    "ia+sa": Adaptation("ia+sa", ia=True, sa=True),
    "mi": Adaptation("mi", mid=True, mid_lasts=True),
    "pi": Adaptation("pi", post=True),
    "mi+pi": Adaptation("mi+pi", mid=True, post=True),
    "ia+pi": Adaptation("ia+pi", ia=True, post=True),
    "recall": Adaptation("recall", examples=8),
    "practice": Adaptation("practice", examples=8, practice=16, remembered=16),
}
"""The policies by name. What clicks teach lasts in ``mi``; in ``mi+pi`` it is for the object at hand, and the mask teaches what lasts."""


def make_policy(name: str) -> Adaptation:
    """The policy of that name.

    Raises
    ------
    InputError : there is none
    """
    if name not in POLICIES:
        raise InputError(f"a policy called {name!r} was asked for; expected one of {', '.join(POLICIES)}")
    return POLICIES[name]
