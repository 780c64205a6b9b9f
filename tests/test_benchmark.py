from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from operator import methodcaller
from statistics import fmean

import numpy as np
import pytest

from napari_apprentice import benchmark, report
from napari_apprentice.benchmark import Trial, run, run_all, trace
from napari_apprentice.datasets import open_set
from napari_apprentice.fakes import DiskSegmenter, FakePolicy
from napari_apprentice.simulation import CentreRobot
from napari_apprentice.types import Box, ImageSlice, InputError, LearningReport, Prediction, RecipeError, SessionError, WriteError

TRUTH = np.zeros((10, 20), bool)
TRUTH[:, :10] = True  # 100 pixels


def mask_of_iou(hundredths):
    """A mask inside the truth whose IoU with it is so many hundredths."""
    mask = np.zeros(TRUTH.shape, bool)
    mask[:, :10].flat[:hundredths] = True
    return mask


class Scripted:
    """A policy that answers every object with the next of the given lists of IoUs (in hundredths), and remembers what it was told."""

    def __init__(self, *objects):
        self.objects = [list(answers) for answers in objects]
        self.prompts, self.lessons, self.practised = [], [], []

    def on_click(self, segmenter, image_slice, prompt):
        self.prompts.append(prompt)
        return Prediction.from_mask(mask_of_iou(self.objects[len(self.lessons)][len(prompt.clicks) - 1]))

    def learning(self, segmenter, lesson):
        yield from ()
        self.lessons.append(lesson)
        return LearningReport()

    def practising(self, segmenter, most=None):
        yield from ()
        self.practised.append(len(self.lessons))
        return 0


PIXELS = ImageSlice(np.arange(200, dtype=np.uint8).reshape(1, 10, 20))


def follow(policy, **settings):
    return trace(CentreRobot(), DiskSegmenter(), policy, PIXELS, TRUTH, **settings)


# --- one object ---


def test_the_loop_stops_at_the_highest_target():
    policy = Scripted([50, 84, 86, 91, 99])
    found = follow(policy, targets=(0.85, 0.90), max_clicks=20)
    assert found.ious == (0.50, 0.84, 0.86, 0.91)
    assert found.dices == pytest.approx([2 * i / (1 + i) for i in found.ious])
    assert len(found.clicks) == 4


def test_a_target_that_is_met_exactly_is_reached(squares):
    assert follow(Scripted([50, 90, 95]), targets=(0.90,)).ious == (0.5, 0.9)
    exact = run(Trial(squares, max_clicks=3, targets=(0.5, 0.9)), DiskSegmenter(), Scripted(*[[50, 90]] * 4))
    assert exact.noc == {"0.50": 1.0, "0.90": 2.0}
    assert exact.nof == {"0.50": 0, "0.90": 0}


def test_the_loop_stops_at_the_most_clicks():
    assert follow(Scripted([10] * 9), max_clicks=3).ious == (0.1, 0.1, 0.1)


def test_a_perfect_mask_ends_the_loop_without_a_click():
    assert follow(Scripted([60, 100]), targets=(1.0,), max_clicks=20).ious == (0.6, 1.0)


def test_every_click_is_told_what_was_said_before():
    policy = Scripted([20, 40, 95])
    found = follow(policy)
    assert [len(p.clicks) for p in policy.prompts] == [1, 2, 3]
    assert policy.prompts[0].previous is None
    for prompt, hundredths in zip(policy.prompts[1:], (20, 40), strict=True):
        np.testing.assert_array_equal(prompt.previous.mask, mask_of_iou(hundredths))
    assert policy.prompts[-1].clicks == found.clicks
    assert found.clicks[0] == CentreRobot().click(TRUTH, np.zeros_like(TRUTH), ())
    assert found.clicks[1] == CentreRobot().click(TRUTH, mask_of_iou(20), found.clicks[:1])


def test_the_lesson_is_what_the_user_accepted_and_not_the_truth():
    policy = Scripted([20, 93])
    found = follow(policy, case="scan")
    (lesson,) = policy.lessons
    np.testing.assert_array_equal(lesson.mask, mask_of_iou(93))
    np.testing.assert_array_equal(found.mask, mask_of_iou(93))
    assert (lesson.clicks, lesson.case, lesson.image_slice) == (found.clicks, "scan", PIXELS)


def test_the_class_is_told_with_every_click_and_with_the_mask():
    for kind in ("", "disc"):
        policy = Scripted([20, 93])
        follow(policy, kind=kind)
        assert {prompt.kind for prompt in policy.prompts} == {policy.lessons[0].kind} == {kind}


@pytest.mark.parametrize("truth", [np.zeros((10, 20), bool), np.ones((9, 20), bool)])
def test_a_truth_that_cannot_be_reached_is_refused(truth):
    with pytest.raises(InputError, match="a truth of shape"):
        trace(CentreRobot(), DiskSegmenter(), FakePolicy(), PIXELS, truth)


def test_seconds_come_from_the_clock_of_the_segmenter():
    class Clocked(DiskSegmenter):
        def predict(self, image_slice, prompt):
            self.clock["encode"] += 1.0 if len(prompt.clicks) == 1 else 0.0
            self.clock["decode"] += 0.25
            return super().predict(image_slice, prompt)

    segmenter = Clocked()
    segmenter.clock["decode"] = 100.0  # of earlier work
    found = trace(CentreRobot(), segmenter, FakePolicy(0, 0), PIXELS, TRUTH, max_clicks=4)
    assert found.seconds == {"encode": 1.0, "decode": 0.25 * len(found.clicks), "adapt": 0.0}


def test_seconds_are_measured_where_there_is_no_clock():
    segmenter = DiskSegmenter()
    del segmenter.clock
    found = trace(CentreRobot(), segmenter, FakePolicy(), PIXELS, TRUTH, max_clicks=4)
    assert found.seconds["decode"] > 0
    assert found.seconds["adapt"] > 0
    assert found.seconds["encode"] == 0


# --- a sequence ---


@pytest.fixture
def squares(make_set):
    """Four pictures whose only object is TRUTH."""
    return make_set('objects = "id"\n', {c: (PIXELS.data[0], TRUTH.astype(np.uint8)) for c in "abcd"}, "squares")


SCRIPT = ([50, 86, 92], [70, 60, 88, 95], [91], [10, 20, 30, 40, 50])


@pytest.fixture
def row(squares):
    return run(Trial(squares, max_clicks=5), DiskSegmenter(), Scripted(*SCRIPT))


def test_clicks_to_reach_count_a_failure_as_the_most_clicks(row):
    assert row.noc == {"0.80": fmean([2, 3, 1, 5]), "0.85": fmean([2, 3, 1, 5]), "0.90": fmean([3, 4, 1, 5])}
    assert row.nof == {"0.80": 1, "0.85": 1, "0.90": 1}


def test_a_finished_object_keeps_its_last_value(row):
    assert row.iou_at == pytest.approx(
        {"1": fmean([0.5, 0.7, 0.91, 0.1]), "3": fmean([0.92, 0.88, 0.91, 0.3]), "5": fmean([0.92, 0.95, 0.91, 0.5])}
    )
    assert row.dice_at["5"] == pytest.approx(fmean(2 * i / (1 + i) for i in (0.92, 0.95, 0.91, 0.5)))


def test_the_second_half_is_measured_on_its_own(row):
    assert row.second_half["noc"] == {"0.80": 3.0, "0.85": 3.0, "0.90": 3.0}
    assert row.second_half["iou_at"] == pytest.approx({"1": (0.91 + 0.1) / 2, "3": (0.91 + 0.3) / 2, "5": (0.91 + 0.5) / 2})


def test_the_largest_drop_of_the_mean_is_told(squares):
    assert run(Trial(squares, max_clicks=3), DiskSegmenter(), Scripted(*[[60, 40, 50]] * 4)).max_drop == pytest.approx(0.2)
    assert run(Trial(squares, max_clicks=3), DiskSegmenter(), Scripted(*[[10, 40, 50]] * 4)).max_drop == 0.0


def test_facts_of_the_row(row):
    facts = (row.set, row.network, row.policy, row.robot, row.order, row.n_objects, row.max_clicks, row.limit)
    assert facts == ("squares", "disks", "none", "centre", "sorted", 4, 5, None)


def test_a_chosen_target_stands_in_the_name(make_set):
    folder = make_set('objects = "class"\n[classes]\n"1" = "left"\n', {"a": (PIXELS.data[0], TRUTH.astype(np.uint8))}, "halves")
    assert run(Trial(folder, target="left"), DiskSegmenter(), FakePolicy()).set == "halves (left)"


def test_a_user_who_tells_classes_names_the_target_of_every_object_and_the_row_says_so(make_set):
    description = 'objects = "class"\n[classes]\n"1" = "left"\n"2" = "right"\n'
    folder = make_set(description, {"a": (PIXELS.data[0], np.where(TRUTH, 1, 2).astype(np.uint8))}, "halves")
    for told, kinds, name in ((True, ["left", "right"], "recall, classes told"), (False, ["", ""], "recall")):
        policy = Scripted([50], [50])
        assert run(Trial(folder, policy="recall", max_clicks=1, told=told), DiskSegmenter(), policy).policy == name
        assert [prompt.kind for prompt in policy.prompts] == [lesson.kind for lesson in policy.lessons] == kinds


def test_an_object_is_scored_with_what_the_earlier_ones_taught_only(disks_set):
    """Prequential: the row of a sequence is made of the traces of one segmenter that goes on learning."""
    trial = Trial(disks_set, policy="mi+pi", max_clicks=6)
    labelled, refs = benchmark.objects_of(trial)
    segmenter, radii, traces = DiskSegmenter(2.0), [], []
    for ref in refs:
        radii.append(segmenter.radius)
        traces.append(trace(CentreRobot(), segmenter, FakePolicy(), labelled.slice(ref), labelled.truth(ref), max_clicks=6))
    assert radii == sorted(set(radii))  # it learnt between all objects
    found = run(trial, DiskSegmenter(2.0), FakePolicy())
    assert found.iou_at["1"] == pytest.approx(fmean(t.ious[0] for t in traces))
    assert found.noc["0.80"] == fmean(next((i for i, iou in enumerate(t.ious, 1) if iou >= 0.8), 6) for t in traces)


def test_learning_shows_in_the_second_half(disks_set):
    frozen = run(Trial(disks_set), DiskSegmenter(4.0), FakePolicy(0, 0))
    taught = run(Trial(disks_set), DiskSegmenter(4.0), FakePolicy(0, 0.6))
    assert taught.second_half["iou_at"]["1"] > frozen.second_half["iou_at"]["1"]


def test_the_second_half_of_a_model_that_never_learns_is_that_half_alone(disks_set):
    whole = run(Trial(disks_set, max_clicks=4), DiskSegmenter(), FakePolicy(0, 0))
    refs = open_set(disks_set).objects()
    half = refs[len(refs) // 2 :]
    assert len({ref.case for ref in half} & {ref.case for ref in refs[: len(refs) // 2]}) <= 1
    labelled = open_set(disks_set)
    alone = [
        trace(CentreRobot(), DiskSegmenter(), FakePolicy(0, 0), labelled.slice(r), labelled.truth(r), max_clicks=4).ious[0] for r in half
    ]
    assert whole.second_half["iou_at"]["1"] == pytest.approx(fmean(alone))


def test_the_segmenter_comes_back_as_it_was(disks_set):
    segmenter = DiskSegmenter(3.0)
    before = segmenter.snapshot()
    first = run(Trial(disks_set), segmenter, FakePolicy())
    assert segmenter.snapshot() is before
    assert run(Trial(disks_set), segmenter, FakePolicy()).iou_at == first.iou_at
    with pytest.raises(RuntimeError, match="told to fail"):
        run(Trial(disks_set), segmenter, FakePolicy(failing="accept"))
    assert segmenter.snapshot() is before


def test_order_and_limit_are_those_of_the_set(disks_set):
    seen = []

    class Listening(FakePolicy):
        def on_accept(self, segmenter, lesson):
            seen.append((lesson.case, lesson.image_slice.key))
            return super().on_accept(segmenter, lesson)

    trial = Trial(disks_set, order=4, limit=5)
    ticks = []
    found = run(trial, DiskSegmenter(), Listening(), lambda: ticks.append(1))
    assert [case for case, _ in seen] == [ref.case for ref in open_set(disks_set).objects(order=4, limit=5)]
    assert (found.n_objects, len(ticks), found.order) == (5, 5, "4")


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"max_clicks": 0}, "at most 0 clicks"),
        ({"targets": ()}, "targets"),
        ({"targets": (0.0,)}, "targets"),
        ({"targets": (85,)}, "targets"),
    ],
)
def test_an_impossible_trial_is_refused(tmp_path, wish, sentence):
    with pytest.raises(InputError, match=sentence):
        Trial(tmp_path, **wish)


# --- several masks for a click ---


class Proposing(Scripted):
    """The same, with other masks beside each answer: their IoUs (in hundredths) by object."""

    def __init__(self, others, *objects):
        super().__init__(*objects)
        self.others = others

    def on_click(self, segmenter, image_slice, prompt):
        said = super().on_click(segmenter, image_slice, prompt)
        return replace(said, candidates=tuple(Prediction.from_mask(mask_of_iou(i)) for i in self.others[len(self.lessons)]))


def test_the_best_of_the_proposed_masks_is_known_at_the_first_click():
    found = follow(Proposing([[80, 30]], [50, 95]))
    assert found.proposed == (0.5, 0.8, 0.3)
    assert found.ious == (0.5, 0.95)
    assert follow(Scripted([50, 95])).proposed == (0.5,)


def test_proposals_are_compared_where_they_lie():
    """A candidate in a box of its own that sticks out of the truth."""
    beside = np.zeros(TRUTH.shape, bool)
    beside[4:8, 5:15] = True
    box = Box(4, 5, 8, 15)
    other = Prediction(np.full(box.shape, 3.0, np.float32), box, TRUTH.shape)

    class Beside(Scripted):
        def on_click(self, segmenter, image_slice, prompt):
            return replace(super().on_click(segmenter, image_slice, prompt), candidates=(other,))

    expected = (beside & TRUTH).sum() / (beside | TRUTH).sum()
    assert follow(Beside([50, 95])).proposed == (0.5, pytest.approx(expected))


def test_a_row_has_the_mean_of_the_best_proposals(squares):
    others = [[80, 30], [], [20], [60]]
    found = run(Trial(squares, max_clicks=5), DiskSegmenter(), Proposing(others, *SCRIPT))
    assert found.best_iou_at == {"1": pytest.approx(fmean([0.8, 0.7, 0.91, 0.6]))}
    assert found.proposed == fmean([3, 1, 2, 2])
    assert found.best_iou_at["1"] > found.iou_at["1"]
    alone = run(Trial(squares, max_clicks=5), DiskSegmenter(), Scripted(*SCRIPT))
    assert (alone.best_iou_at["1"], alone.proposed) == (alone.iou_at["1"], 1.0)


def test_the_model_practises_before_every_lesson(squares):
    policy = Scripted(*SCRIPT)
    run(Trial(squares, max_clicks=5), DiskSegmenter(), policy)
    assert policy.practised == [0, 1, 2, 3]


# --- a hundred clicks ---


class Unteachable(Scripted):
    """Never gets it right, however often it is told."""

    def on_click(self, segmenter, image_slice, prompt):
        self.prompts.append(len(prompt.clicks))
        return Prediction.from_mask(mask_of_iou(len(prompt.clicks) // 2))


def test_a_hundred_clicks_are_a_hundred_answers(squares):
    policy = Unteachable(*SCRIPT)
    found = run(Trial(squares, max_clicks=100), DiskSegmenter(), policy)
    assert policy.prompts == 4 * list(range(1, 101))
    assert found.noc == {"0.80": 100.0, "0.85": 100.0, "0.90": 100.0}
    assert list(found.iou_at) == ["1", "3", "5", "10", "20", "50", "100"]
    assert (found.iou_at["50"], found.iou_at["100"]) == pytest.approx((0.25, 0.5))


# --- many trials ---


# Can be sent to other processes, which a function of this module cannot.
policy_named = {"none": FakePolicy(0, 0), "mi+pi": FakePolicy()}.__getitem__


def untimed(row):
    return replace(row, seconds_per_click={})


@pytest.fixture
def trials(disks_set):
    return [Trial(disks_set, policy=p, robot=r, max_clicks=5) for p in ("none", "mi+pi") for r in ("centre", "random")]


def test_a_trial_does_not_depend_on_those_before_it(trials):
    rows = dict(run_all(trials, DiskSegmenter, policy_named))
    backwards = dict(run_all(trials[::-1], DiskSegmenter, policy_named))
    assert [untimed(rows[i]) for i in range(4)] == [untimed(backwards[3 - i]) for i in range(4)]
    assert len({json.dumps(untimed(row).as_dict()) for row in rows.values()}) == 4


def test_processes_give_the_same_rows(trials):
    ticks = []
    arguments = (partial(DiskSegmenter, 3.0), policy_named)
    serial = dict(run_all(trials, *arguments))
    parallel = dict(run_all(trials, *arguments, jobs=2, on_object=lambda: ticks.append(1)))
    assert {i: untimed(row) for i, row in parallel.items()} == {i: untimed(row) for i, row in serial.items()}
    assert len(ticks) == sum(row.n_objects for row in serial.values())


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_row_says_what_a_click_costs(trials, jobs):
    rows = dict(run_all(trials, DiskSegmenter, policy_named, jobs=jobs, cost_of=methodcaller("describe")))
    assert [rows[i].cost for i in range(4)] == 4 * [DiskSegmenter().describe()]
    assert next(iter(dict(run_all(trials[:1], DiskSegmenter, policy_named)).values())).cost == {}


def test_the_cost_is_measured_once_for_each_segmenter(trials):
    asked = []
    list(run_all(trials, DiskSegmenter, policy_named, cost_of=lambda segmenter: asked.append(segmenter) or {}))
    assert len(asked) == 1


def test_what_a_process_refuses_reaches_the_caller(trials, tmp_path):
    broken = [replace(trials[0], folder=tmp_path / "nowhere")]
    with pytest.raises(RecipeError, match="nowhere"):
        list(run_all(broken, DiskSegmenter, policy_named, jobs=2))


def test_a_process_that_dies_is_told(trials):
    with pytest.raises(SessionError, match="one of the processes died"):
        list(run_all(trials, partial(os._exit, 3), policy_named, jobs=2))


BUSY = """
import os, signal, sys, time
from pathlib import Path
from napari_apprentice.benchmark import Trial, run_all

def build():
    Path(sys.argv[2], str(os.getpid())).touch()
    time.sleep(120)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    list(run_all(2 * [Trial(Path(sys.argv[1]))], build, print, jobs=2))
"""


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize("how", ["SIGINT", "SIGKILL"])
def test_processes_end_with_the_one_that_began_them(disks_set, tmp_path, how):
    begun = tmp_path / "begun"
    begun.mkdir()
    (tmp_path / "busy.py").write_text(BUSY)
    command = [sys.executable, tmp_path / "busy.py", disks_set, begun]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True) as main:
        try:
            while len(list(begun.iterdir())) < 2:
                assert main.poll() is None
                time.sleep(0.1)
            main.send_signal(getattr(signal, how))
            main.communicate(timeout=60)  # until nobody can write to the pipe any more; what they are busy with takes 120 seconds
        except BaseException:
            os.killpg(main.pid, signal.SIGKILL)
            raise
    assert main.returncode


# --- report ---

SCHEMA = {"set", "network", "policy", "robot", "order", "n_objects", "noc", "nof", "iou_at", "dice_at", "second_half", "seconds_per_click"}
ABOUT = report.machine("cpu", 2)


def test_json_says_everything(row, tmp_path):
    path = tmp_path / "new" / "rows.json"
    report.write_json(path, ABOUT, [row, row])
    content = json.loads(path.read_text())
    assert content["machine"] == ABOUT
    assert len(content["rows"]) == 2
    (one, _) = content["rows"]
    assert set(one) >= SCHEMA
    assert one["noc"] == row.noc
    assert set(one["second_half"]) == {"noc", "iou_at"}
    assert set(one["seconds_per_click"]) == {"encode", "decode", "adapt"}
    assert list(path.parent.iterdir()) == [path]


def test_the_machine_is_described():
    assert ABOUT["cores"] >= 1
    assert (ABOUT["threads"], ABOUT["device"]) == (2, "cpu")
    assert all(ABOUT[key] for key in ("python", "numpy", "version", "date", "system"))
    json.dumps(ABOUT)


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def tables(text):
    """Every table as a list of {column: cell}."""
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("| ")]
    return [[dict(zip(cells(lines[0]), cells(line), strict=True)) for line in lines[2:]] for lines in blocks]


def test_the_tables_hold_the_rows_and_their_mean(row):
    other = replace(row, set="circles", noc={"0.80": 1.0, "0.85": 1.0, "0.90": 1.5}, n_objects=6)
    quality, speed = tables(report.markdown(ABOUT, [row, other]))
    assert [line["set"] for line in quality] == ["squares", "circles", "**mean of 2 sets**"]
    assert [line["NoC@0.90"] for line in quality] == [f"{v:.2f}" for v in (row.noc["0.90"], 1.5, (row.noc["0.90"] + 1.5) / 2)]
    assert [line["objects"] for line in quality] == ["4", "6", "10"]
    assert [line["NoF@0.85"] for line in quality] == ["1", "1", "2"]
    assert quality[0]["IoU@1"] == f"{row.iou_at['1']:.3f}"
    assert quality[0]["2nd NoC@0.85"] == "3.00"
    assert speed[0]["Dice@5"] == f"{row.dice_at['5']:.3f}"
    assert speed[0]["adapt s"] == f"{row.seconds_per_click['adapt']:.3f}"


COST = {"parameters": 3_015_762, "gflops": 4.108, "memory_mib": 26.5}


def test_networks_stand_side_by_side_with_what_they_cost(row):
    sets = [row, replace(row, set="circles")]
    rows = [replace(one, network=name, cost=COST, proposed=2.0) for name in ("unet", "diversity") for one in sets]
    text = report.markdown(ABOUT, rows)
    beside, quality, _ = tables(text)
    assert [line["network"] for line in beside] == ["unet", "diversity"]
    assert all(line["set"] == "**mean of 2 sets**" for line in beside)
    assert [beside[0][head] for head in ("M", "GFLOPs", "MiB")] == ["3.02", "4.1", "26"]
    assert beside[0]["click s"] == f"{row.seconds_per_click['encode'] + row.seconds_per_click['decode']:.3f}"
    assert {f"NoC@{q}" for q in ("0.80", "0.85", "0.90")} | {"NoF@0.85", "NoF@0.90", "IoU@1", "IoU@3", "best IoU@1"} <= set(beside[0])
    assert "NoF@0.80" not in beside[0]
    assert len(quality) == 6
    assert "GFLOPs of a click" in text
    assert "`best` IoU" in text


def test_a_network_of_one_mask_has_no_best_of_several(row):
    several = replace(row, network="diversity", proposed=1.5, best_iou_at={"1": 0.75})
    beside, quality, _ = tables(report.markdown(ABOUT, [row, several]))
    assert [line["best IoU@1"] for line in beside] == [line["best IoU@1"] for line in quality] == ["", "0.750"]
    alone = report.markdown(ABOUT, [row])
    assert len(tables(alone)) == 2  # nothing to compare
    assert "best" not in alone
    assert "GFLOPs" not in alone


def test_the_mean_of_a_network_keeps_its_cost(row):
    (mean,) = report.means([replace(row, cost=COST), replace(row, set="circles", cost=COST)])
    assert mean.cost == pytest.approx(COST)
    assert isinstance(mean.cost["parameters"], int)


def test_the_tables_say_how_they_were_measured(row):
    text = report.markdown(ABOUT, [row, replace(row, robot="random", order="3", limit=8, cases="*_T1", seed=5)])
    for fact in (
        "## Robot `centre`",
        "## Robot `random`",
        str(ABOUT["date"]),
        "sorted",
        "`*_T1`",
        "at most 8 objects",
        "Robot seed 0, 5",
        "At most 5 clicks",
    ):
        assert fact in text
    assert "mean of" not in text  # of one set there is no mean over sets


def test_a_place_that_cannot_be_written_is_told(row, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot be written"):
        report.write_json(tmp_path / "file" / "rows.json", ABOUT, [row])


def test_means_are_of_measured_numbers_only(row):
    (mean,) = report.means([row, replace(row, set="circles", max_drop=0.5)])
    assert mean.max_drop == pytest.approx((row.max_drop + 0.5) / 2)
    assert (mean.max_clicks, mean.seed, mean.limit) == (row.max_clicks, row.seed, row.limit)
    assert math.isclose(mean.second_half["noc"]["0.85"], row.second_half["noc"]["0.85"])
