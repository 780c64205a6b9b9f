"""Does learning pay, and can it be trusted? Six experiments on labelled data, each object scored before anything is learnt from it.

    python benchmarks/adaptation.py DEV_DIR --train TRAIN_DIR [--policy pi] [--limit 12] [--orders sorted,1,2,3] [--long 500]
        [--only sequences,shift,retention,mistakes,ablations,long] [--jobs 2] [--json runs/adaptation.json] [--markdown docs/adaptation.md]

*Sequences*: clicks in the second half of a sequence, with learning over without. *Shift*: the same lesions in one modality after the other.
*Retention*: the taught model on held-out cases of the training sets. *Mistakes*: the same after accepting deliberately wrong masks, with
and without the gate. *Ablations*: policies without the parts that their papers call necessary. *Long*: hundreds of objects on end.
Experiments that were made before and stand in the JSON file are kept if ``--only`` names others; the page says of each at which commit.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import product
from math import inf
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from rich.progress import track

from napari_apprentice import load_segmenter, report
from napari_apprentice.adaptation import Adaptation, make_policy
from napari_apprentice.benchmark import Row, Trace, Trial, run_all, trace
from napari_apprentice.datasets import LabelledSet, ObjectRef, open_set
from napari_apprentice.samples import split_cases
from napari_apprentice.segmenter import NetworkSegmenter
from napari_apprentice.simulation import make_robot
from napari_apprentice.texts import write_text
from napari_apprentice.types import DEFAULT_POLICY, ApprenticeError, Lesson

Result = dict[str, Any]
Objects = Sequence[tuple[LabelledSet, ObjectRef]]

BARRED = (  # the sequences that the mean of the ratios is taken over
    ("fundus_drishti", "disc"),
    ("fundus_drishti", "cup"),
    ("em_cdeep3m_mito", None),
    ("mri_hippocampus", None),
    ("mri_left_atrium", None),
    ("cells_wbc", None),
)
OTHERS = (("mri_ms_lesions", None), ("sts_tumour", None), ("skin_ph2", None), ("us_breast", None))
SHIFTS = (("mri_ms_lesions", ("FLAIR", "T1", "T2")), ("sts_tumour", ("T1", "CT", "PET")))
ABLATED = (("em_cdeep3m_mito", None), ("cells_wbc", None), ("mri_hippocampus", None))
ABLATIONS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("frozen", "none", {}),
    ("IA", "ia", {}),
    ("IA without the click term (λ = 0)", "ia", {"ia_lambda": 0.0}),
    ("SA", "sa", {}),
    ("SA with all clicks in the guidance", "sa", {"sa_guidance": "all"}),
    ("SA without the extents", "sa", {"extents": False}),
    ("IA+SA", "ia+sa", {}),
    ("MI", "mi", {}),
    ("MI of all weights, every click answered again (the paper)", "mi", {"mid_part": "all", "mid_again": True}),
    ("MI without the click-centred term", "mi", {"click_weight": 0.0, "hard_radius_px": 0.0}),
    ("PI", "pi", {}),
    ("MI+PI", "mi+pi", {}),
    ("MI+PI, MI as in the paper", "mi+pi", {"mid_part": "all", "mid_again": True}),
    ("MI+PI, and what clicks teach lasts", "mi+pi", {"mid_lasts": True}),
    ("PI in 2 rounds", "pi", {"post_rounds": 2}),
    ("PI without rehearsal", "pi", {"rehearsed": 0}),
    ("PI without the gate", "pi", {"gate_margin": inf}),
    ("PI without the extents", "pi", {"extents": False}),
    ("recall", "recall", {}),
    ("recall, whatever harm it does", "recall", {"full_doubt": 0.0}),
    ("PI and recall", "pi", {"examples": 8}),
    ("extents alone", "none", {"post": True, "post_rounds": 0}),
)
HELD_OUT = 0.1  # as in recipes/default.toml
WRONG_MASKS = 50


# --- sequences of objects ---------------------------------------------------------------------------------------------------------------


def segmenter_of(weights: Path | None, threads: int) -> NetworkSegmenter:
    torch.set_num_threads(threads)
    return load_segmenter(weights, device="cpu")


def sequence(segmenter: NetworkSegmenter, policy: Adaptation, objects: Objects, most: int = 20) -> Iterator[Trace]:
    """Object after object; what is learnt stays in the segmenter."""
    robot = make_robot("centre", 0)
    for labelled, ref in objects:
        yield trace(robot, segmenter, policy, labelled.slice(ref), labelled.truth(ref), max_clicks=most, case=ref.case)


def listed(folder: Path, **which: Any) -> Objects:
    labelled = open_set(folder)
    return [(labelled, ref) for ref in labelled.objects(**which)]


def clicks_to(traces: Sequence[Trace], iou: float = 0.9, most: int = 20) -> float:
    return fmean(next((k + 1 for k, value in enumerate(one.ious) if value >= iou), most) for one in traces)


def after(traces: Sequence[Trace], clicks: int, kind: str = "ious") -> float:
    return fmean(getattr(one, kind)[:clicks][-1] for one in traces)


def held_out(train: Path, each: int) -> Objects:
    """Objects of training sets that no recipe learns from, ``each`` of every set, spread evenly."""
    found: list[tuple[LabelledSet, ObjectRef]] = []
    for folder in sorted(path.parent for path in train.glob("*/dataset.toml")):
        labelled = open_set(folder)
        kept = set(split_cases(labelled.cases, HELD_OUT)[1])
        refs = [ref for ref in labelled.objects() if ref.case in kept]
        found += [(labelled, refs[i]) for i in np.unique(np.linspace(0, len(refs) - 1, each).round().astype(int))] if refs else []
    return found


# --- experiments: lists of independent jobs ----------------------------------------------------------------------------------------------


def shift(options: argparse.Namespace, policy: str, name: str, stages: Sequence[str]) -> list[Result]:
    """One modality after the other, nothing forgotten in between."""
    segmenter = segmenter_of(options.weights, options.threads)
    lines = []
    for stage in stages:
        objects = listed(options.dev / name, cases=f"*_{stage}", limit=options.limit)
        traces = list(sequence(segmenter, make_policy(policy), objects))
        lines.append({"set": name, "policy": policy, "modality": stage, "dice1": after(traces, 1, "dices"), "noc": clicks_to(traces)})
    return lines


def retention(options: argparse.Namespace, name: str, target: str | None) -> list[Result]:
    """Clicks on held-out training objects, after a sequence, and after it without the extents and the examples that it taught."""
    segmenter = segmenter_of(options.weights, options.threads)
    home, frozen = held_out(options.train, options.retained), make_policy("none")
    for _ in sequence(segmenter, make_policy(options.policy), listed(options.dev / name, target=target, limit=options.limit)):
        pass
    line: Result = {"set": _named(name, target), "after": clicks_to(list(sequence(segmenter, _still(frozen), home)))}
    segmenter.restore(replace(segmenter.snapshot(), extent_log=segmenter.base.extent_log, examples=0))
    return [line | {"weights": clicks_to(list(sequence(segmenter, _still(frozen), home)))}]


def mistakes(options: argparse.Namespace, gate: bool) -> list[Result]:
    """Accept masks that lie in a wrong place, after a sequence of right ones: clicks before and after, near and far."""
    segmenter = segmenter_of(options.weights, options.threads)
    home, frozen = held_out(options.train, options.retained), _still(make_policy("none"))
    policy = make_policy(options.policy) if gate else replace(make_policy(options.policy), gate_margin=inf, full_doubt=0.0)
    right, wrong = (listed(options.dev / "em_cdeep3m_mito", limit=n) for n in (options.limit, WRONG_MASKS))
    for _ in sequence(segmenter, policy, right):
        pass
    taught = segmenter.snapshot()
    own, before = clicks_to(list(sequence(segmenter, frozen, right))), clicks_to(list(sequence(segmenter, frozen, home)))
    segmenter.restore(taught)
    robot, refused = make_robot("centre", 0), 0
    for labelled, ref in wrong:
        pixels, truth = labelled.slice(ref), labelled.truth(ref)
        lie = np.roll(truth, (truth.shape[0] // 3, truth.shape[1] // 3), (0, 1))
        clicks = (robot.click(lie, np.zeros_like(lie), ()),)
        refused += policy.on_accept(segmenter, Lesson(pixels, clicks, lie, ref.case)).refused  # type: ignore[arg-type]
    misled = segmenter.snapshot()
    line = {"gate": "on" if gate else "off", "refused": refused, "own_before": own, "home_before": before}
    line |= {"own_after": clicks_to(list(sequence(segmenter, frozen, right)))}
    segmenter.restore(misled)
    return [line | {"home_after": clicks_to(list(sequence(segmenter, frozen, home)))}]


def ablation(options: argparse.Namespace, label: str, name: str, changes: Mapping[str, Any], of: str, target: str | None) -> list[Result]:
    segmenter = segmenter_of(options.weights, options.threads)
    traces = list(sequence(segmenter, replace(make_policy(name), **changes), listed(options.dev / of, target=target, limit=options.limit)))
    half = traces[len(traces) // 2 :]
    values = {f"iou{k}": after(traces, k) for k in (1, 3, 5, 10)} | {"noc": clicks_to(traces), "noc2": clicks_to(half)}
    return [{"policy": label, "set": of} | values]


def long(options: argparse.Namespace) -> list[Result]:
    """Objects of all dev sets in a random order, five clicks at most; quality, memory and time in ten parts."""
    segmenter = segmenter_of(options.weights, options.threads)
    names = [name for name, _ in (*BARRED[1:], *OTHERS)]
    objects = [one for name in dict.fromkeys(names) for one in listed(options.dev / name, limit=-(-options.long // len(set(names))))]
    chosen = [objects[i] for i in np.random.default_rng(0).permutation(len(objects))[: options.long]]
    frozen = {i: one.ious for i, one in enumerate(sequence(segmenter, make_policy("none"), chosen, most=5))}
    segmenter.restore(segmenter.base)
    lines, part, began = [], max(len(chosen) // 10, 1), time.perf_counter()
    gains: list[tuple[float, float, int]] = []
    for i, one in enumerate(sequence(segmenter, make_policy(options.policy), chosen, most=5)):
        gains.append((one.ious[-1], frozen[i][-1], len(one.ious)))
        if (i + 1) % part == 0:
            now, memory_gib = time.perf_counter(), _resident_gib()
            mine, without, clicks = zip(*gains, strict=True)
            line = {"objects": i + 1, "iou": fmean(mine), "frozen": fmean(without), "memory_gib": memory_gib}
            lines.append(line | {"seconds": (now - began) / sum(clicks)})
            gains, began = [], now
    return lines


def _still(policy: Adaptation) -> Adaptation:
    """A policy that leaves everything as it is, extents too."""
    return replace(policy, extents=False)


def _named(name: str, target: str | None) -> str:
    return f"{name} ({target})" if target else name


def _resident_gib() -> float:
    """Memory of this process now (Linux), or its peak so far."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS")) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30


def sequences(options: argparse.Namespace) -> list[Row]:
    common = {"limit": options.limit, "targets": (0.85, 0.90)}
    trials = [
        Trial(folder=options.dev / name, target=target, policy=policy, order=order, **common)
        for (name, target), order, policy in product((*BARRED, *OTHERS), options.orders, ("none", options.policy))
    ]
    make = partial(segmenter_of, options.weights, options.threads)
    found = track(run_all(trials, make, make_policy, jobs=options.jobs), "Sequences", total=len(trials))
    return [row for _, row in sorted(found, key=lambda pair: pair[0])]


def jobs_of(options: argparse.Namespace) -> dict[str, list[Callable[[], list[Result]]]]:
    """All experiments but the sequences, which the package's own runner makes."""
    return {
        "shift": [partial(shift, options, p, *of) for of, p in product(SHIFTS, ("none", options.policy))],
        "retention": [partial(retention, options, *of) for of in (*BARRED, *OTHERS)],
        "mistakes": [partial(mistakes, options, gate) for gate in (True, False)],
        "ablations": [partial(ablation, options, *what, *of) for what, of in product(ABLATIONS, ABLATED)],
        "long": [partial(long, options)],
    }


# --- what it means ----------------------------------------------------------------------------------------------------------------------


def told_sequences(rows: Sequence[Mapping[str, Any]], policy: str) -> str:
    lines, barred, listening = [], [], []
    names = dict.fromkeys(row["set"] for row in rows)
    for name in names:
        frozen, taught = ([row for row in rows if row["set"] == name and row["policy"] == p] for p in ("none", policy))
        second = [fmean(row["second_half"]["noc"]["0.90"] for row in some) for some in (frozen, taught)]
        ratios = [b["second_half"]["noc"]["0.90"] / a["second_half"]["noc"]["0.90"] for a, b in zip(frozen, taught, strict=True)]
        halves = [fmean(_tenth(b, half) - _tenth(a, half) for a, b in zip(frozen, taught, strict=True)) for half in (0, 1)]
        first = [fmean(row["second_half"]["iou_at"]["1"] for row in some) for some in (frozen, taught)]
        listening += halves
        if name in {_named(*one) for one in BARRED}:
            barred.append(second[1] / second[0])
        cells = {"set": name, "objects": str(frozen[0]["n_objects"]), "orders": str(len(frozen))}
        cells |= {"frozen NoC@0.90": f"{second[0]:.2f}", f"{policy} NoC@0.90": f"{second[1]:.2f}", "ratio": f"{second[1] / second[0]:.3f}"}
        cells |= {"worst order": f"{max(ratios):.3f}", "frozen IoU@1": f"{first[0]:.3f}", f"{policy} IoU@1": f"{first[1]:.3f}"}
        lines.append(cells | {"IoU@10, 1st half": f"{100 * halves[0]:+.1f}", "IoU@10, 2nd half": f"{100 * halves[1]:+.1f}"})
    about = (
        f"Mean ratio over the first {len(barred)} sequences: **{fmean(barred):.3f}** (goal 0.65; never above 1.03). The last two columns "
        f"are the difference of the mean IoU after ten clicks, in points (goal: at least -1): the worst is {100 * min(listening):+.1f}."
    )
    return "\n\n".join(["## Sequences: the second half, with learning and without", about, report.table(lines)])


def _tenth(row: Mapping[str, Any], half: int) -> float:
    second: float = row["second_half"]["iou_at"]["10"]
    count, later = row["n_objects"], row["n_objects"] - row["n_objects"] // 2
    return second if half else float((row["iou_at"]["10"] * count - second * later) / max(count - later, 1))


def told_shift(results: Sequence[Result], policy: str) -> str:
    keyed = {(one["set"], one["modality"], one["policy"]): one for one in results}
    lines = []
    for name, stages in SHIFTS:
        for stage in stages:
            frozen, taught = keyed[name, stage, "none"], keyed[name, stage, policy]
            gain = 100 * (taught["dice1"] - frozen["dice1"])
            goal = 15.0 if frozen["dice1"] < 0.6 else 50 * max(0.9 - frozen["dice1"], 0)
            cells = {"set": name, "order": stage, "frozen Dice@1": f"{frozen['dice1']:.3f}", f"{policy} Dice@1": f"{taught['dice1']:.3f}"}
            cells |= {"gain": f"{gain:+.1f}", "goal": "" if stage == stages[0] else f"{goal:+.1f}"}
            lines.append(cells | {"frozen NoC@0.90": f"{frozen['noc']:.2f}", f"{policy} NoC@0.90": f"{taught['noc']:.2f}"})
    about = "The same objects in one modality after the other, in this order, without forgetting in between. Gains in points of Dice."
    return "\n\n".join(["## Shift: from one modality to the next", about, report.table(lines)])


def told_retention(results: Sequence[Result], frozen: float) -> str:
    lines = [
        {"set": one["set"], "NoC@0.90 after": f"{one['after']:.2f}", "change": f"{100 * (one['after'] / frozen - 1):+.1f} %"}
        | {"weights alone": f"{one['weights']:.2f}", "their change": f"{100 * (one['weights'] / frozen - 1):+.1f} %"}
        for one in results
    ]
    about = (
        f"NoC@0.90 on held-out cases of the training sets, which the shipped model needs {frozen:.2f} clicks for, with what was known at "
        "the end of each sequence (goal: at most +4 %); and with the taught weights alone, without the taught extents, which choose the "
        "first window, and without examples."
    )
    return "\n\n".join(["## Retention: what became of the old", about, report.table(lines)])


def told_mistakes(results: Sequence[Result], frozen: float) -> str:
    lines = [
        {"method": f"gate {one['gate']}", "refused": f"{one['refused']} of {WRONG_MASKS}"}
        | {"its own objects before": f"{one['own_before']:.2f}", "after": f"{one['own_after']:.2f}"}
        | {"held-out objects before": f"{one['home_before']:.2f}", "and after": f"{one['home_after']:.2f}"}
        for one in results
    ]
    about = (
        f"NoC@0.90 before and after {WRONG_MASKS} accepted masks that lie in a wrong place of the slice (the truth, moved by a third), "
        f"on mitochondria that were learnt from properly before, and on held-out cases of the training sets (shipped model: {frozen:.2f})."
    )
    return "\n\n".join(["## Mistakes: accepted by someone who was not looking", about, report.table(lines)])


def told_ablations(results: Sequence[Result]) -> str:
    lines = []
    for label in dict.fromkeys(one["policy"] for one in results):
        mine = [one for one in results if one["policy"] == label]
        cells = {"method": label, "objects": str(len(mine))}
        cells |= {f"IoU@{k}": f"{fmean(one[f'iou{k}'] for one in mine):.3f}" for k in (1, 3, 5, 10)}
        cells |= {"NoC@0.90": f"{fmean(one['noc'] for one in mine):.2f}", "2nd NoC@0.90": f"{fmean(one['noc2'] for one in mine):.2f}"}
        lines.append({key: value for key, value in cells.items() if key != "objects"})
    about = f"Means over {', '.join(name for name, _ in ABLATED)}, sorted order."
    return "\n\n".join(["## Ablations: what the parts are worth", about, report.table(lines)])


def told_long(results: Sequence[Result]) -> str:
    lines = [
        {"objects": str(one["objects"]), "IoU": f"{one['iou']:.3f}", "frozen IoU": f"{one['frozen']:.3f}"}
        | {
            "gain": f"{100 * (one['iou'] - one['frozen']):+.1f}",
            "memory GiB": f"{one['memory_gib']:.2f}",
            "s a click": f"{one['seconds']:.2f}",
        }
        for one in results
    ]
    about = "Objects of all dev sets mixed, at most five clicks each, one model; every line is a tenth. IoU when the object was left."
    return "\n\n".join(["## Long: no drift, no leak", about, report.table(lines)])


# --- the command ------------------------------------------------------------------------------------------------------------------------


def home_of(options: argparse.Namespace) -> list[Result]:
    """The shipped model on the held-out training objects."""
    home = held_out(options.train, options.retained)
    return [{"noc": clicks_to(list(sequence(segmenter_of(options.weights, options.threads), _still(make_policy("none")), home)))}]


def call(job: Callable[[], list[Result]]) -> list[Result]:
    return job()


def everything(options: argparse.Namespace, known: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All results so far, after every experiment."""
    experiments = jobs_of(options)
    if {"retention", "mistakes"} & set(options.only):
        experiments = {"home": [partial(home_of, options)], **experiments}
        options.only = ["home", *options.only]
    if "sequences" in options.only:
        known["sequences"] = [row.as_dict() for row in sequences(options)]
        yield known
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        for name in (name for name in experiments if name in options.only):
            jobs = experiments[name]
            known[name] = [line for lines in track(pool.map(call, jobs), name.capitalize(), total=len(jobs)) for line in lines]
            yield known


def told(options: argparse.Namespace, about: Mapping[str, Any], known: Mapping[str, Any], earlier: Mapping[str, Any]) -> str:
    """The page; ``earlier`` : experiments that were kept -> the machine that they were made on."""
    parts = [
        "# Learning, measured",
        "\n".join(
            [
                *report.host(about),
                f"- Policy `{options.policy}`, robot `centre` (seed 0), at most 20 clicks, at most {options.limit} objects a sequence, "
                f"spread evenly over the set; orders {', '.join(map(str, options.orders))} (a number is the seed of a permutation).",
                "- Every object is scored before anything is learnt from it. Written by `benchmarks/adaptation.py`.",
            ]
        ),
    ]
    telling: Iterable[tuple[str, Callable[[], str]]] = (
        ("sequences", lambda: told_sequences(known["sequences"], options.policy)),
        ("shift", lambda: told_shift(known["shift"], options.policy)),
        ("retention", lambda: told_retention(known["retention"], known["home"][0]["noc"])),
        ("mistakes", lambda: told_mistakes(known["mistakes"], known["home"][0]["noc"])),
        ("ablations", lambda: told_ablations(known["ablations"])),
        ("long", lambda: told_long(known["long"])),
    )
    for name, tell in telling:
        if name in known:
            heading, _, rest = tell().partition("\n\n")
            parts += [heading, *(["\n".join(report.host(earlier[name]))] if name in earlier else []), rest]
    return "\n\n".join(parts) + "\n"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("dev", type=Path, help="folder that holds the sets named above")
    parser.add_argument("--train", type=Path, required=True, help="folder of the training sets, for what is held out of them")
    parser.add_argument("--policy", default=DEFAULT_POLICY)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--limit", type=int, default=12)
    parser.add_argument("--retained", type=int, default=3, help="held-out objects of every training set")
    parser.add_argument("--long", type=int, default=500)
    parser.add_argument("--orders", default="sorted,1,2,3")
    parser.add_argument("--only", default="sequences,shift,retention,mistakes,ablations,long")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    options.orders = [order if order == "sorted" else int(order) for order in options.orders.split(",")]
    options.only = options.only.split(",")
    return options


def main() -> int:
    options = parsed()
    about = report.machine("cpu", options.threads)
    before = json.loads(options.json.read_text()) if options.json and options.json.exists() else {"results": {}}
    known = before["results"]
    earlier = {
        name: before.get("earlier", {}).get(name, before["machine"]) for name in known if name not in options.only and name != "home"
    }
    try:
        for results in everything(options, known):
            if options.json:
                write_text(options.json, json.dumps({"machine": about, "earlier": earlier, "results": results}, indent=1) + "\n")
            if options.markdown:
                write_text(options.markdown, told(options, about, results, earlier))
    except ApprenticeError as error:
        print(error, file=sys.stderr)
        return 1
    print(told(options, about, known, earlier))
    return 0


if __name__ == "__main__":
    sys.exit(main())
