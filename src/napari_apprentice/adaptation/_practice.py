"""Practice: between two lessons the network trains on what is remembered, with the exercises that it was trained with before.

Accepted objects in random windows, mirrored, turned, brighter, noisier; clicks and corrections of simulated users; other accepted objects
as examples; and procedural objects among them, so that the rest is not forgotten. What comes into force is a fading mean of the weights
over the steps (Polyak & Juditsky, 1992): it begins at the shipped ones, follows slowly while little is known, and lies in the middle of
where single steps lead. All this goes on while the user clicks, and nothing of it counts before the next lesson has tried it, so that the
model never changes within an object.

What is practised depends on what is known and on the number of the step alone: the same steps lead to the same weights, bit for bit,
whether or not the segmenter was put to other use between them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import fmean
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from napari_apprentice import exercises
from napari_apprentice.adaptation._memory import Batch
from napari_apprentice.adaptation._settings import Settings
from napari_apprentice.adaptation._step import step
from napari_apprentice.exercises import Exercises
from napari_apprentice.knowledge import Knowledge, Remembered, Tensors
from napari_apprentice.samples import Drawn, SampleStream
from napari_apprentice.segmenter import NetworkSegmenter
from napari_apprentice.synthetic import Scene, scene

__all__ = ["practise", "practised", "unpractised", "weighed"]

EXERCISES = Exercises(
    rounds=(0.25, 0.18, 0.15, 0.12, 0.1, 0.1, 0.06, 0.04), given=0.12, careless=0.35, loss="nfl", dice_weight=1.0, iou_weight=0.2
)
"""As in the recipe of the shipped weights."""
_VIEWS = ((0.6, 0.35, 0.85), (0.25, 0.12, 0.45), (0.15, 0.9, 5.0))
_EXAMPLES = (0.4, 0.2, 0.2, 0.1, 0.1)
_AT_A_TIME = 2  # samples between two pauses
_WARMUP = 20  # steps, from the first one of all
_SECOND = 0.99  # Adam's second β
_NORM = 1.0  # longest gradient
_TRIED = 6  # clicks
_FADING = 0.9  # of the evidence, from object to object
_FOLLOWING = 0.05  # share of the way that the mean goes with every step
_SCENES, _FOR = 4, 4  # procedural scenes at a time; steps for which one of them stays


@dataclass(frozen=True, eq=False)
class Ahead:
    """How far practice got.

    Attributes
    ----------
    begun : what was known, and is in force
    reached : after ``steps`` steps from there: ``weights`` and the optimiser's moments as the newest one left them, ``practised`` the mean
    """

    begun: Knowledge
    reached: Knowledge
    steps: int = 0


_AHEAD: WeakKeyDictionary[NetworkSegmenter, Ahead] = WeakKeyDictionary()


def practised(segmenter: NetworkSegmenter) -> Ahead:
    """How far practice got from what is in force; not at all if that is something new."""
    known = segmenter.snapshot()
    found = _AHEAD.get(segmenter)
    if found is not None and found.begun is known:
        return found
    weights, mean = known.ahead or known.weights, known.practised or known.weights
    return Ahead(known, replace(known, weights=weights, practised=mean, ahead=None))


def practise(settings: Settings, segmenter: NetworkSegmenter, most: int) -> Generator[None, None, int]:
    """Go on practising up to the step ``most``, in small parts between which the segmenter is as it was and may be put to other use.

    Returns
    -------
    how many steps have been done from what is in force. It ends where something else comes into force, or there is nothing to practise on
    """
    ahead = practised(segmenter)
    scenes = [_scene_of(one) for one in ahead.begun.memory if one.ground is not None] if ahead.steps < most else []
    while scenes and ahead.steps < most:
        reached = yield from _stepped(settings, segmenter, ahead, scenes)
        if reached is None:
            break
        _AHEAD[segmenter] = ahead = Ahead(ahead.begun, reached, ahead.steps + 1)
    return practised(segmenter).steps


def unpractised(segmenter: NetworkSegmenter) -> None:
    """The shipped weights in force, and all else as it is known."""
    known = segmenter.snapshot()
    if known.weights is not segmenter.base.weights:
        segmenter.restore(replace(known, weights=segmenter.base.weights))


def weighed(segmenter: NetworkSegmenter, new: Remembered, ahead: Ahead) -> Generator[None, None, bool]:
    """What was practised comes into force if it leads: on accepted objects, before it practised on them, old ones fading.

    Parameters
    ----------
    new : an accepted object
    ahead : what was practised when it was accepted; the shipped weights are in force

    Returns
    -------
    whether it is in force now
    """
    known, reached = segmenter.snapshot(), ahead.reached
    assert reached.practised is not None
    weights, base = _rounded(segmenter, reached.practised), segmenter.base.weights
    second = Tensors({k: v.bfloat16().to(v.dtype) for k, v in reached.second.items()})
    goes_on = _rounded(segmenter, reached.weights)
    practised = replace(known, practised=weights, ahead=goes_on, first=Tensors(), second=second, steps=reached.steps)
    without = yield from tried(segmenter, new)
    segmenter.restore(replace(practised, weights=weights))
    gain = (yield from tried(segmenter, new)) - without
    lead = _FADING * known.lead[0] + gain, _FADING * known.lead[1] + 1.0
    leads = lead[0] >= 0
    segmenter.restore(replace(practised, weights=weights if leads else base, lead=lead))
    return leads


def tried(segmenter: NetworkSegmenter, new: Remembered) -> Generator[None, None, float]:
    """Mean IoU of the answers on an object to the user's first click and to the corrections that a simulated user makes of them.

    The user's own corrections are of the mistakes of the model that was in force, and would speak for that one.
    """
    batch, network = Batch([new], segmenter.device), segmenter.network
    with torch.no_grad():
        features = network.encode(batch.images)  # type: ignore[operator]
    clicks, rng = [list(first) for first in batch.firsts], np.random.default_rng(0)
    known, said, ious = segmenter.recollected(kind=new.kind), None, []
    for _ in range(_TRIED):
        said, (mask,) = exercises.corrected(network, features, batch.targets, clicks, 1, rng, 0.98, said, known=known)
        ious.append(float(exercises.iou(mask, batch.targets).mean()))
        yield
    return fmean(ious)


def _stepped(
    settings: Settings, segmenter: NetworkSegmenter, ahead: Ahead, scenes: Sequence[Scene]
) -> Generator[None, None, Knowledge | None]:
    """What is reached with one more step; None if that is not finite, or if something else came into force meanwhile."""
    number = ahead.reached.steps
    batches = _batches(settings, scenes, number)
    rng = np.random.default_rng([19, number])
    parts = max(settings.practice_batch // _AT_A_TIME, 1)
    total: dict[str, Tensor] = {}
    for _ in range(parts):
        yield
        if segmenter.snapshot() is not ahead.begun:
            return None
        with _at(segmenter, ahead.reached):
            for key, grad in _gradients(segmenter, next(batches), rng).items():
                total[key] = grad / parts if key not in total else total[key] + grad / parts
    norm = torch.linalg.vector_norm(torch.stack([grad.norm() for grad in total.values()]))
    shrunk = {key: grad * min(_NORM / (float(norm) + 1e-6), 1.0) for key, grad in total.items()}
    rate = settings.practice_rate * min((number + 1) / _WARMUP, 1.0)
    with _at(segmenter, ahead.reached):
        learnt = step(segmenter, shrunk, rate, anchor=0.0, second=_SECOND)
    return learnt and replace(learnt, practised=_followed(ahead.reached.practised, learnt.weights))


def _followed(mean: Tensors | None, weights: Tensors) -> Tensors:
    """The mean, after it went a part of the way to the weights."""
    assert mean is not None
    return Tensors({key: value if value is mean[key] else mean[key].lerp(value, _FOLLOWING) for key, value in weights.items()})


def _rounded(segmenter: NetworkSegmenter, weights: Tensors) -> Tensors:
    """The weights in half precision, which they are kept in on the disk."""
    base = segmenter.base.weights
    return Tensors({key: value if torch.equal(value, base[key]) else value.half().to(value.dtype) for key, value in weights.items()})


@contextmanager
def _at(segmenter: NetworkSegmenter, knowledge: Knowledge) -> Iterator[None]:
    """With this knowledge in the segmenter, and what was there before in it afterwards."""
    before = segmenter.snapshot()
    segmenter.restore(knowledge)
    try:
        yield
    finally:
        segmenter.restore(before)


def _gradients(segmenter: NetworkSegmenter, drawn: Drawn, rng: np.random.Generator) -> dict[str, Tensor]:
    """Of all weights that took part, on one batch."""
    network, drawn = segmenter.network, Drawn(*(part.to(segmenter.device) for part in drawn))
    features = network.encode(drawn.image)  # type: ignore[operator]
    known = exercises.recollected(network, drawn, rng) if segmenter.reads_examples else ()
    asked = exercises.asked(network, EXERCISES, features, drawn.target, rng, known)
    output = exercises.answered(network, features, asked.guidance, asked.previous, known)
    loss = exercises.loss_of(network, output, drawn.target, asked, EXERCISES)
    parameters = segmenter.parameters
    grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {key: grad for key, grad in zip(parameters, grads, strict=True) if grad is not None}


def _batches(settings: Settings, scenes: Sequence[Scene], number: int) -> Iterator[Drawn]:
    """The batches of step ``number``."""
    procedural = [_procedural(number // _FOR + i) for i in range(_SCENES)]
    shares = {"accepted": 1 - settings.practice_procedural, "procedural": settings.practice_procedural}
    drawn_from = {"accepted": scenes, "procedural": procedural}
    sizes = ((settings.size, _AT_A_TIME),)
    return iter(SampleStream(drawn_from, shares, 0.0, sizes, (23, number), views=_VIEWS, examples=_EXAMPLES))


def _scene_of(one: Remembered) -> Scene:
    """A remembered object and what lies around it."""
    assert one.ground is not None
    ground = one.ground.numpy()
    return Scene(np.ascontiguousarray(ground[:3]), (ground[3].astype(np.int32),), (1.0,), (f"accepted {one.kind}",))


@lru_cache(maxsize=16)
def _procedural(number: int) -> Scene:
    """One of a thousand."""
    return scene(20_000_000 + number % 1000)
