"""How many clicks does it take? A simulated user segments one object after the other, and the model learns as it goes.

*Prequential*: an object is scored with what was learnt from the objects before it, never from itself; the order is fixed and published.
One *trial* is a sequence of objects of one set, one policy and one robot; it becomes one *row* of a table:

- ``noc[q]`` mean number of clicks until IoU >= q, where an object that never gets there counts as the maximum of clicks;
- ``nof[q]`` number of objects that never get there;
- ``iou_at[k]``, ``dice_at[k]`` mean after k clicks, where an object that is finished keeps its last value;
- ``best_iou_at[1]`` mean IoU after the first click, had the user each time chosen the best of the masks that were proposed, ``proposed``
  of them in the mean;
- ``second_half`` the same over the second half of the sequence, after the model had time to learn;
- ``max_drop`` the largest fall of the mean IoU from one click to the next, in IoU;
- ``seconds_per_click`` model time alone, without reading images and without the robot;
- ``cost`` what a click takes whatever the objects are (see `costs`), where somebody measured it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from napari_apprentice.computers import processes
from napari_apprentice.datasets import LabelledSet, ObjectRef, open_set
from napari_apprentice.simulation import make_robot
from napari_apprentice.types import AdaptationPolicy, Click, ImageSlice, InputError, Lesson, Prediction, Prompt, Segmenter, User, outcome

__all__ = ["CLICK_COUNTS", "Row", "Trace", "Trial", "objects_of", "run", "run_all", "trace"]

Mask = npt.NDArray[np.bool_]

CLICK_COUNTS = (1, 3, 5, 10, 20, 50, 100)
"""Numbers of clicks after which IoU and Dice are reported."""

_PHASES = ("encode", "decode", "adapt")


@dataclass(frozen=True, eq=False)
class Trace:
    """One object, click by click.

    Attributes
    ----------
    ious, dices : with the truth, after every click
    clicks : 2D clicks in order
    mask : (H, W) bool, the mask that was accepted: what the last click led to
    proposed : IoU of every mask that was proposed for the first click, the one that was shown first
    seconds : model time by phase ("encode", "decode", "adapt")
    """

    ious: tuple[float, ...]
    dices: tuple[float, ...]
    clicks: tuple[Click, ...]
    mask: Mask
    seconds: Mapping[str, float]
    proposed: tuple[float, ...] = ()


@dataclass(frozen=True)
class Trial:
    """A sequence of objects to be segmented.

    Attributes
    ----------
    folder : the labelled set, see `datasets`
    policy, robot : names
    order : "sorted", or the seed of a permutation
    cases, target, limit : which objects, see `LabelledSet.objects`
    max_clicks : an object is given up after so many clicks
    targets : IoUs in (0, 1] that are to be reached; an object is finished at the highest
    seed : what a robot's draws follow from
    told : the user names the class of every object before the first click: its target
    """

    folder: Path
    policy: str = "none"
    robot: str = "centre"
    order: Literal["sorted"] | int = "sorted"
    cases: str = "*"
    target: str | None = None
    limit: int | None = None
    max_clicks: int = 20
    targets: tuple[float, ...] = (0.80, 0.85, 0.90)
    seed: int = 0
    told: bool = False

    def __post_init__(self) -> None:
        if self.max_clicks < 1:
            raise InputError(f"at most {self.max_clicks} clicks arrived; expected at least 1")
        if not self.targets or not all(0 < target <= 1 for target in self.targets):
            raise InputError(
                f"targets {', '.join(map(str, self.targets)) or '()'} arrived; expected one or more IoUs above 0 and up to 1, such as 0.85"
            )


@dataclass(frozen=True)
class Row:
    """What came of one trial; the keys of the mappings are texts such as "0.85" and "5"."""

    set: str
    network: str
    policy: str
    robot: str
    order: str
    n_objects: int
    noc: Mapping[str, float]
    nof: Mapping[str, int]
    iou_at: Mapping[str, float]
    dice_at: Mapping[str, float]
    second_half: Mapping[str, Mapping[str, float]]
    seconds_per_click: Mapping[str, float]
    max_drop: float
    max_clicks: int
    seed: int
    cases: str
    limit: int | None
    proposed: float = 1.0
    best_iou_at: Mapping[str, float] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def trace(
    user: User,
    segmenter: Segmenter,
    policy: AdaptationPolicy,
    image_slice: ImageSlice,
    truth: Mask,
    *,
    max_clicks: int = 20,
    targets: Sequence[float] = (0.80, 0.85, 0.90),
    case: str = "",
    kind: str = "",
) -> Trace:
    """Segment one object, then let the policy learn from the mask that came of it (never from the truth).

    Parameters
    ----------
    truth : (H, W) bool, with at least one pixel
    max_clicks : give up after so many
    targets : IoUs; the user is content at the highest
    case : name of the image, for the lesson
    kind : what the user calls the object's class; empty where that is not told

    Raises
    ------
    InputError : the truth is empty or has another shape than the slice
    """
    if truth.shape != image_slice.shape or not truth.any():
        raise InputError(f"a truth of shape {truth.shape} with {int(truth.sum())} pixels arrived for a slice of shape {image_slice.shape}")
    seconds = dict.fromkeys(_PHASES, 0.0)
    mask = np.zeros_like(truth)
    clicks: tuple[Click, ...] = ()
    prediction: Prediction | None = None
    ious: list[float] = []
    dices: list[float] = []
    proposed: list[float] = []
    while len(clicks) < max_clicks and (click := user.click(truth, mask, clicks)) is not None:
        clicks = (*clicks, click)
        with _timed(segmenter, "decode", seconds):
            prediction = policy.on_click(segmenter, image_slice, Prompt(clicks, prediction, kind))
        proposed = proposed or [_iou(one, truth) for one in prediction.proposed]
        mask = prediction.mask
        iou, dice = _overlap(mask, truth)
        ious.append(iou)
        dices.append(dice)
        if iou >= max(targets):
            break
    outcome(policy.practising(segmenter))  # while the user clicked
    with _timed(segmenter, "adapt", seconds):
        outcome(policy.learning(segmenter, Lesson(image_slice, clicks, mask, case, kind=kind)))
    return Trace(tuple(ious), tuple(dices), clicks, mask, seconds, tuple(proposed))


def objects_of(trial: Trial) -> tuple[LabelledSet, tuple[ObjectRef, ...]]:
    """The set of a trial, and its objects in order; errors as for `open_set` and `LabelledSet.objects`."""
    labelled = open_set(trial.folder)
    return labelled, labelled.objects(trial.cases, trial.target, trial.order, trial.limit)


def run(
    trial: Trial,
    segmenter: Segmenter,
    policy: AdaptationPolicy,
    on_object: Callable[[], None] | None = None,
    cost: Mapping[str, float] | None = None,
) -> Row:
    """One trial, from the knowledge that the segmenter comes with and gets back at the end.

    Parameters
    ----------
    policy : the one that ``trial.policy`` names
    on_object : called after every object, for a progress bar
    cost : of a click, for the row
    """
    labelled, refs = objects_of(trial)
    robot = make_robot(trial.robot, trial.seed)
    before = segmenter.snapshot()
    traces: list[Trace] = []
    try:
        for ref in refs:
            pixels, truth, about = labelled.slice(ref), labelled.truth(ref), {"case": ref.case, "kind": ref.target if trial.told else ""}
            traces.append(trace(robot, segmenter, policy, pixels, truth, max_clicks=trial.max_clicks, targets=trial.targets, **about))
            if on_object is not None:
                on_object()
    finally:
        segmenter.restore(before)
    name = labelled.name if trial.target is None else f"{labelled.name} ({trial.target})"
    return replace(_row(trial, name, str(getattr(segmenter, "name", type(segmenter).__name__)), traces), cost=cost or {})


def run_all(
    trials: Sequence[Trial],
    build_segmenter: Callable[[], Segmenter],
    build_policy: Callable[[str], AdaptationPolicy],
    *,
    jobs: int = 1,
    on_object: Callable[[], None] | None = None,
    cost_of: Callable[[Segmenter], Mapping[str, float]] | None = None,
) -> Iterator[tuple[int, Row]]:
    """Run trials; yields the index of a trial and its row as soon as it is there.

    Every trial starts from the same knowledge, so that neither their order nor ``jobs`` changes a result.

    Parameters
    ----------
    build_segmenter, build_policy : what makes a segmenter, and the policy of a name; picklable where ``jobs`` > 1
    jobs : number of processes; 1 runs in this one
    on_object : called in this process after every object, for a progress bar
    cost_of : measures what a click costs a segmenter, once for each that is made; picklable where ``jobs`` > 1

    Raises
    ------
    SessionError : one of the processes died
    """
    if jobs <= 1:
        segmenter = build_segmenter()
        cost = cost_of(segmenter) if cost_of is not None else None
        for index, trial in enumerate(trials):
            yield index, run(trial, segmenter, build_policy(trial.policy), on_object, cost)
        return
    finished = get_context("spawn").SimpleQueue()
    with processes(min(jobs, len(trials)), _enter_worker, build_segmenter, build_policy, finished, cost_of) as pool:
        pending: dict[Future[Row], int] = {pool.submit(_run_in_worker, trial): index for index, trial in enumerate(trials)}
        while pending:
            done, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            while not finished.empty():
                finished.get()
                if on_object is not None:
                    on_object()
            yield from ((pending.pop(future), future.result()) for future in done)


_worker: dict[str, Any] = {}


def _enter_worker(
    build_segmenter: Callable[[], Segmenter],
    build_policy: Callable[[str], AdaptationPolicy],
    finished: Any,
    cost_of: Callable[[Segmenter], Mapping[str, float]] | None,
) -> None:
    _worker.update(build_segmenter=build_segmenter, build_policy=build_policy, on_object=lambda: finished.put(None), cost_of=cost_of)


def _run_in_worker(trial: Trial) -> Row:
    if "segmenter" not in _worker:  # not built on entering, where an error would break the pool instead of reaching the caller
        segmenter, cost_of = _worker["build_segmenter"](), _worker["cost_of"]
        _worker.update(segmenter=segmenter, cost=cost_of(segmenter) if cost_of is not None else None)
    return run(trial, _worker["segmenter"], _worker["build_policy"](trial.policy), _worker["on_object"], _worker["cost"])


@contextmanager
def _timed(segmenter: Segmenter, phase: str, seconds: dict[str, float]) -> Iterator[None]:
    """Adds the model time of a block to ``seconds``: from the segmenter's own clock where it has one, else all of it to ``phase``."""
    clock: Mapping[str, float] | None = getattr(segmenter, "clock", None)
    before = {phase: time.perf_counter()} if clock is None else dict(clock)
    yield
    after = {phase: time.perf_counter()} if clock is None else clock
    for name in seconds.keys() & after.keys():
        seconds[name] += after[name] - before.get(name, 0.0)


def _overlap(mask: Mask, truth: Mask) -> tuple[float, float]:
    """IoU and Dice of two (H, W) masks, ``truth`` not empty."""
    both, sizes = int((mask & truth).sum()), int(mask.sum()) + int(truth.sum())
    return both / (sizes - both), 2 * both / sizes


def _iou(prediction: Prediction, truth: Mask) -> float:
    """IoU of a prediction with ``truth`` (H, W), which is not empty; only the box is looked at."""
    found = prediction.mask_in_box
    both = int((found & truth[prediction.box.slices]).sum())
    return both / (int(found.sum()) + int(truth.sum()) - both)


def _row(trial: Trial, name: str, network: str, traces: Sequence[Trace]) -> Row:
    half = _scores(traces[len(traces) // 2 :], trial)
    clicks = sum(len(one.clicks) for one in traces)
    whole = _scores(traces, trial)
    return Row(
        set=name,
        network=network,
        policy=f"{trial.policy}, classes told" if trial.told else trial.policy,
        robot=trial.robot,
        order=str(trial.order),
        n_objects=len(traces),
        noc=whole["noc"],
        nof=whole["nof"],
        iou_at=whole["iou_at"],
        dice_at=whole["dice_at"],
        second_half={"noc": half["noc"], "iou_at": half["iou_at"]},
        seconds_per_click={phase: sum(one.seconds[phase] for one in traces) / clicks for phase in _PHASES},
        max_drop=whole["max_drop"],
        max_clicks=trial.max_clicks,
        seed=trial.seed,
        cases=trial.cases,
        limit=trial.limit,
        proposed=fmean(len(one.proposed) for one in traces),
        best_iou_at={"1": fmean(max(one.proposed) for one in traces)},
    )


def _scores(traces: Sequence[Trace], trial: Trial) -> dict[str, Any]:
    ious, dices = (_curves([getattr(one, kind) for one in traces], trial.max_clicks) for kind in ("ious", "dices"))
    counts = [k for k in CLICK_COUNTS if k <= trial.max_clicks]
    mean = ious.mean(axis=0)
    scores: dict[str, Any] = {"noc": {}, "nof": {}, "max_drop": float(np.clip(-np.diff(mean), 0, None).max(initial=0.0))}
    for target in trial.targets:
        reached = ious >= target
        # The first click that reached it, found on the clicks that were made: a finished object's curve only repeats its last value.
        clicks = np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, trial.max_clicks)
        key = f"{target:.2f}" if round(target, 2) == target else f"{target:g}"
        scores["noc"][key] = float(clicks.mean())
        scores["nof"][key] = int((~reached.any(axis=1)).sum())
    scores["iou_at"] = {str(k): float(mean[k - 1]) for k in counts}
    scores["dice_at"] = {str(k): float(dices[:, k - 1].mean()) for k in counts}
    return scores


def _curves(series: Sequence[tuple[float, ...]], length: int) -> npt.NDArray[np.float64]:
    """(objects, length): every series continued with its last value."""
    return np.array([values + values[-1:] * (length - len(values)) for values in series])
