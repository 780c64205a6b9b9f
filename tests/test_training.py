"""Offline training: recipes, simulated clicks, and a loop that can be killed and gone on with."""

from __future__ import annotations

import csv
import hashlib
import shutil
import tomllib
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import lightning_fabric
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from scipy import ndimage

from napari_apprentice import exercises, training
from napari_apprentice.guidance import WindowClick, click_maps
from napari_apprentice.losses import LOSSES, normalised_focal, soft_dice
from napari_apprentice.networks import Output, build, configuration
from napari_apprentice.samples import SampleStream
from napari_apprentice.training import Recipe, read_recipe, train
from napari_apprentice.types import RecipeError, WeightsError, WriteError
from napari_apprentice.weights import load_weights, save_weights

TINY = """
steps = 5
sizes = [[64, 2]]
synthetic = 1.0
warmup = 2
workers = 0
report_every = 2
save_every = 2
importance = 3
seed = 3
config = { widths = [8, 16, 16, 16, 16], groups = 4 }
"""


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


SMALL_HELD_OUT = partial(training._held_out_batch, per_set=2)


@pytest.fixture(autouse=True)
def _little_to_score(monkeypatch):
    monkeypatch.setattr(training, "_held_out_batch", SMALL_HELD_OUT)


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY, "utf-8")
    return path


# --- recipes ----------------------------------------------------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_recipe_says_what_differs_from_the_defaults(recipe):
    found = read_recipe(recipe)
    assert (found.steps, found.sizes, found.workers, found.network) == (5, ((64, 2),), 0, "unet")
    assert found.learning_rate == Recipe().learning_rate
    recipe.write_text("seed = 1", "utf-8-sig")
    assert read_recipe(recipe) == Recipe()


@pytest.mark.parametrize("words", ["", "# steps = 5\n"])
def test_a_recipe_that_says_nothing_is_refused(recipe, tmp_path, words):
    recipe.write_text(words)
    assert refusal(recipe).endswith("is empty; expected one that says what to train, such as its network or its steps")
    child = tmp_path / "child.toml"
    child.write_text(f'base = "{recipe.name}"')
    assert "is empty" in refusal(child)
    with pytest.raises(RecipeError, match="is empty"):
        train(recipe, None, tmp_path / "weights.safetensors")


def test_the_recipe_of_the_shipped_weights_can_be_read():
    found = read_recipe(Path(__file__).parents[1] / "recipes" / "default.toml")
    assert found.sets
    assert 0 < found.synthetic < 1
    assert found.held_out > 0


def test_the_shipped_weights_are_those_of_the_recipe():
    path = Path(__file__).parents[1] / "recipes" / "default.toml"
    facts, texts = load_weights().facts, (file.read_bytes() for file in training._with_bases(path))
    assert facts["recipe_digest"] == hashlib.sha256(b"".join(texts)).hexdigest()[:12]
    assert Recipe(**{k: training._tupled(v) for k, v in facts["recipe"].items()}) == read_recipe(path)
    assert facts["steps"] == read_recipe(path).steps


def test_a_recipe_takes_from_its_base_what_it_does_not_say(recipe, tmp_path):
    (tmp_path / "more").mkdir()
    child, grandchild = tmp_path / "more" / "child.toml", tmp_path / "grandchild.toml"
    child.write_text(f'base = "../{recipe.name}"\nlearning_rate = 0.5\nconfig = {{ disk_radius_px = 5.0 }}\n')
    grandchild.write_text('base = "more/child.toml"\nseed = 9\nconfig = { groups = 2 }\n')
    plain = read_recipe(recipe)
    assert read_recipe(child) == replace(plain, learning_rate=0.5, config=plain.config | {"disk_radius_px": 5.0})
    assert read_recipe(grandchild) == replace(read_recipe(child), seed=9, config=plain.config | {"disk_radius_px": 5.0, "groups": 2})


def test_a_set_without_a_share_is_left_out_of_what_the_base_names(recipe, tmp_path):
    recipe.write_text("sets = { nuclei = 2.0, retina = 1.0 }")
    child = tmp_path / "child.toml"
    child.write_text(f'base = "{recipe.name}"\nsets = {{ retina = 0 }}\n')
    assert read_recipe(child).sets == {"nuclei": 2.0}


def test_a_base_that_cannot_be_used_is_refused(recipe, tmp_path):
    recipe.write_text(f'base = "{recipe.name}"')
    assert "base of itself" in refusal(recipe)
    recipe.write_text("base = 3")
    assert "base = 3" in refusal(recipe)
    recipe.write_text('base = "none.toml"')
    with pytest.raises(RecipeError, match=r"none\.toml cannot be read"):
        read_recipe(recipe)


ABLATIONS = sorted((Path(__file__).parents[1] / "recipes" / "ablations").glob("*.toml"))


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_an_ablation_differs_from_its_base_in_what_it_is_about_alone(path):
    base = path.parent / tomllib.loads(path.read_text("utf-8"))["base"]
    found, of_base = read_recipe(path), read_recipe(base)
    assert found != of_base
    changed = {f.name for f in fields(Recipe) if getattr(found, f.name) != getattr(of_base, f.name)}
    parts = {"config", "loss", "dice_weight", "network", "sets", "sizes", "synthetic"}
    assert changed <= (parts if "-" in path.stem else {"steps", "importance"})
    assert configuration(found.network, found.config) is not None
    assert path.stem.partition("-")[0] == found.network
    assert f"recipes/ablations/{path.name} --data DIR --out runs/{path.stem}.safetensors" in path.read_text("utf-8")


@pytest.mark.parametrize("name", ["deeplab", "diversity", "cdnet", "adaptiveclick"])
def test_all_networks_of_the_gallery_see_the_same_samples(name):
    recipes = ABLATIONS[0].parents[1]
    found, of_base = read_recipe(recipes / f"{name}.toml"), read_recipe(recipes / "gallery.toml")
    changed = {f.name for f in fields(Recipe) if getattr(found, f.name) != getattr(of_base, f.name)}
    assert "network" in changed
    assert changed <= {"network", "learning_rate", "warmup", "terms"}


def test_unknown_keys_broken_files_and_missing_files_are_refused(recipe, tmp_path):
    recipe.write_text(TINY + "learning_speed = 3\nbatch = 2\n")
    assert "batch, learning_speed" in refusal(recipe)
    recipe.write_text("steps = = 3")
    assert "TOML" in refusal(recipe)
    recipe.write_bytes(b"\xff\xfe\x00steps")
    refusal(recipe)
    refusal(tmp_path / "none.toml")
    refusal(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "steps = 'many'",
        "steps = 0",
        "steps = 2.5",
        "warmup = true",
        "learning_rate = nan",
        "learning_rate = inf",
        "dice_weight = inf",
        "precision = 'foo'",
        "precision = '64-true'",
        "seed = 4294967296",
        "seed = 99999999999999999999",
        "config = { widths = 'abc' }",
        "config = { widths = [8.5, 16, 16, 16, 16] }",
        "config = { groups = 0 }",
        "config = { guidance = 'arrows' }",
        "config = { disk_radius_px = 'wide' }",
        "muon_rate = -1.0",
        "decay = 1.5",
        "optimiser = 'sgd'",
        "synthetic = 1.5",
        "sizes = [[100, 2]]",
        "sizes = [128, 16]",
        "sizes = []",
        "sizes = [[32.0, 1.0]]",
        "sizes = [[32, 1.5]]",
        "rounds = [0, 0]",
        "rounds = ['a']",
        "rounds = [nan, 1.0]",
        "views = [[1.0, 0.5]]",
        "views = [[1.0, 0.8, 0.5]]",
        "views = [[nan, 0.5, 0.8]]",
        "views = [[0, 0.5, 0.8]]",
        "sets = { nuclei = -1 }",
        "sets = { nuclei = 'all' }",
        "sets = { nuclei = inf }",
        "synthetic = 0",
        "synthetic = 0\nsets = { nuclei = 0 }",
        "start_from = 'first.safetensors'",
        "loss = 'l2'",
        "terms = { ccg = 0 }",
        "terms = { ccg = 'much' }",
        "terms = { nfl = nan }",
    ],
)
def test_values_that_cannot_be_meant_are_refused(recipe, line):
    recipe.write_text(line)
    assert "expected" in refusal(recipe)
    assert line.split()[0] in refusal(recipe) or "starts from" in refusal(recipe)


@pytest.mark.parametrize(
    "line", ["seed = 4294967295", "precision = '16-mixed'", "precision = 'bf16'", "synthetic = 0\nsets = { nuclei = 1 }"]
)
def test_values_that_can_be_meant_are_taken(recipe, line):
    recipe.write_text(line)
    read_recipe(recipe)


def test_reading_a_recipe_draws_no_random_number(recipe):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    read_recipe(recipe)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_recipe_with_sets_needs_their_folder(recipe, tmp_path):
    recipe.write_text(TINY + "[sets]\nnuclei = 1.0\n")
    for folder, wrong in ((None, "no --data arrived"), (tmp_path / "none", "none is no folder")):
        with pytest.raises(RecipeError, match=f"nuclei, but .*{wrong}"):
            train(recipe, folder, tmp_path / "w.safetensors", device="cpu")
    with pytest.raises(RecipeError, match=r"dataset\.toml"):
        train(recipe, tmp_path, tmp_path / "w.safetensors", device="cpu")


# --- the loop ---------------------------------------------------------------------------------------------------------------------------


def test_a_recipe_with_given_masks_shows_them_to_the_network():
    torch.manual_seed(0)
    network, target = build("unet", {"widths": [8, 16, 16, 16, 16], "groups": 4}), torch.zeros(2, 1, 64, 64)
    target[:, :, 16:44, 20:52] = 1
    image = torch.randn(2, 3, 64, 64)
    for share, shown in ((0.0, False), (1.0, True)):
        found = exercises.asked(network, Recipe(given=share, rounds=(1.0,)), image, target, np.random.default_rng(0))
        assert bool(found.previous.any()) is shown


@pytest.mark.parametrize(("precision", "expected"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_the_precision_of_a_recipe_is_what_networks_are_trained_in(recipe, tmp_path, monkeypatch, precision, expected):
    """In corrections and in the pass with gradient; the weights stay in full precision."""
    recipe.write_text(f'precision = "{precision}"\nrounds = [0.0, 1.0]\n' + recipe.read_text(), "utf-8")
    seen = []
    built = training.build

    def watched(*of):
        network = built(*of)
        network.stem.register_forward_hook(
            lambda _, __, out: seen.append((out.dtype, torch.is_grad_enabled())) if network.training else None
        )
        return network

    monkeypatch.setattr(training, "build", watched)
    out = train(recipe, None, tmp_path / "out.safetensors", device="cpu")
    assert set(seen) == {(expected, False), (expected, True)}
    assert {p.dtype for p in load_weights(out).network.parameters()} == {torch.float32}


def test_a_recipe_with_careless_users_has_them_click_once_anywhere_at_first():
    network, target = build("unet", {"widths": [8, 16, 16, 16, 16], "groups": 4}), torch.zeros(24, 1, 64, 64)
    target[:, :, 8:56, 8:56] = 1
    image, truth = torch.randn(24, 3, 64, 64), target[0, 0].numpy() > 0.5
    depth = ndimage.distance_transform_edt(truth) / 24
    shallow = []
    for share in (0.0, 1.0):
        found = exercises.asked(network, Recipe(careless=share, rounds=(1.0,)), image, target, np.random.default_rng(0))
        firsts = [clicks[0] for clicks in found.clicks]
        assert all(click.positive for click in firsts)
        shallow.append(np.mean([depth[int(c.row), int(c.col)] < 0.15 for c in firsts]))
        assert share == 0 or all(len(clicks) == 1 for clicks in found.clicks)
    assert shallow[0] == 0
    assert shallow[1] > 0.1


@pytest.mark.parametrize("rounds", [(1.0,), (0.0, 0.0, 1.0)])
def test_a_recipe_with_boxes_has_users_draw_them_and_correct_the_answers_to_them(rounds):
    network, target = build("unet", {"widths": [8, 16, 16, 16, 16], "groups": 4}), torch.zeros(24, 1, 64, 64)
    target[:12, :, 16:40, 20:50] = 1
    target[12:, :, 0:40, 20:50] = 1  # not all of it is in the window
    image = torch.randn(24, 3, 64, 64)
    found = exercises.asked(network, Recipe(boxed=1.0, rounds=rounds), image, target, np.random.default_rng(0))
    for number, (clicks, previous) in enumerate(zip(found.clicks, found.previous[:, 0].numpy(), strict=True)):
        boxed = number < 12
        assert [click.positive for click in clicks[:4]].count(False) == 4 if boxed else clicks[0].positive
        assert len(clicks) == 4 + len(rounds) - 1 if boxed else len(clicks) >= len(rounds)
        if len(rounds) == 1:
            truth = target[number, 0].numpy() > 0.5
            assert ((previous > 0.5) & truth).sum() > 0.5 * truth.sum() if boxed else not previous.any()
    half = exercises.asked(network, Recipe(boxed=0.5, rounds=(1.0,)), image[:12], target[:12], np.random.default_rng(0))
    assert 2 <= sum(bool(previous.any()) for previous in half.previous) <= 10


def test_the_held_out_batch_is_fixed_and_of_the_first_size():
    recipe = Recipe(seed=3)
    images, targets = training._held_out_batch(None, recipe, 64, per_set=2)
    assert images.shape == (2, 3, 64, 64)
    again = training._held_out_batch(None, recipe, 64, per_set=2)
    assert torch.equal(images, again[0])
    assert torch.equal(targets, again[1])


def test_the_rate_warms_up_and_fades():
    recipe = Recipe(steps=100, warmup=10, learning_rate=1.0)
    rates = [training._share(recipe, step) for step in range(101)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0)


def test_the_rate_stays_and_falls_in_a_line_at_the_end():
    recipe = Recipe(steps=100, warmup=10, decay=0.25)
    rates = [training._share(recipe, step) for step in range(101)]
    assert rates[9:76] == [1.0] * 67
    assert rates[75:] == pytest.approx([(100 - step) / 25 for step in range(75, 101)])
    longer = [training._share(replace(recipe, steps=200), step) for step in range(75)]
    assert longer == rates[:75], "how long it is to last need not be known before the end begins"


# --- the objective ----------------------------------------------------------------------------------------------------------------------


def asked_and_said(candidates: int = 0) -> tuple[Output, torch.Tensor, exercises.Asked]:
    """What a network might say of two objects, what is true, and what it was asked."""
    torch.manual_seed(0)
    target = torch.zeros(2, 1, 16, 16)
    target[..., 4:10, 5:12] = 1
    clicks = [[WindowClick(6, 7, True), WindowClick(1, 1, False)], [WindowClick(8, 8, True)]]
    several = torch.randn(2, candidates, 16, 16) if candidates else None
    maps = torch.stack([click_maps(c, (16, 16)) for c in clicks])
    return Output(torch.randn(2, 1, 16, 16), torch.randn(2), several), target, exercises.Asked(maps, torch.zeros_like(target), clicks)


def total(recipe: Recipe, candidates: int = 0, network: torch.nn.Module | None = None) -> torch.Tensor:
    return exercises.loss_of(network or torch.nn.Identity(), *asked_and_said(candidates), recipe)


def test_a_recipe_that_names_no_loss_means_what_it_always_meant():
    output, target, _ = asked_and_said()
    estimate = F.binary_cross_entropy_with_logits(output.iou_logits, exercises.iou(output.logits > 0, target))
    expected = normalised_focal(output.logits, target) + 0.7 * soft_dice(output.logits, target) + 0.2 * estimate
    assert torch.equal(total(Recipe(dice_weight=0.7, iou_weight=0.2)), expected)
    assert torch.equal(total(Recipe(dice_weight=0.7, iou_weight=0.2, loss="nfl")), expected)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_recipe_chooses_its_loss_and_adds_others_by_name(name):
    output, target, asked = asked_and_said()
    alone = LOSSES[name](output.logits, target, asked.clicks)
    bare = {"dice_weight": 0.0, "iou_weight": 0.0}
    torch.testing.assert_close(total(Recipe(loss=name, **bare)), alone)
    torch.testing.assert_close(total(Recipe(terms={name: 0.17}, **bare)), total(Recipe(**bare)) + 0.17 * alone)


def test_losses_of_candidates_are_asked_of_the_candidates_and_all_others_of_the_mask():
    output, target, asked = asked_and_said(candidates=3)
    bare = {"dice_weight": 0.0, "iou_weight": 0.0}
    assert torch.equal(total(Recipe(loss="hindsight", **bare), 3), LOSSES["hindsight"](output.candidates, target, asked.clicks))
    assert torch.equal(total(Recipe(loss="afl", **bare), 3), LOSSES["afl"](output.logits, target, asked.clicks))


def test_a_networks_own_objective_stands_unless_the_recipe_names_one():
    class Opinionated(torch.nn.Module):
        def loss(self, output, target, guidance):
            return guidance.sum() * 0 + 42

    bare = {"dice_weight": 0.5, "iou_weight": 0.0}
    assert float(total(Recipe(**bare), network=Opinionated())) == 42
    assert torch.equal(total(Recipe(loss="afl", **bare), network=Opinionated()), total(Recipe(loss="afl", **bare)))


def test_unknown_losses_are_refused_with_the_known_ones(recipe):
    recipe.write_text("terms = { l2 = 1.0 }")
    assert "l2" in refusal(recipe)
    assert "diversified_training" in refusal(recipe)


# --- weights of others ------------------------------------------------------------------------------------------------------------------

DEEPLAB = """
network = "deeplab"
learning_rate = 0.0
foreign = "resnet18.safetensors"
config = { encoder = "resnet18", width = 8, norm = "batch", aspp_width = 16, low_width = 8, atrous = [1, 2] }
"""


def test_training_begins_with_the_backbone_of_a_file_beside_the_recipe(recipe, tmp_path):
    """And a network whose batches normalise is scored, averaged and written with what it remembers of them."""
    tensors = build("deeplab", {"encoder": "resnet18", "width": 8, "norm": "batch"}).encoder.state_dict()
    tensors["conv1.weight"] = tensors["conv1.weight"][:, :3]
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "resnet18.safetensors")
    recipe.write_text("\n".join(line for line in TINY.splitlines() if "config" not in line) + DEEPLAB, "utf-8")
    found = load_weights(train(recipe, None, tmp_path / "out" / "w.safetensors", device="cpu", threads=1))
    encoder = found.network.encoder.state_dict()
    torch.testing.assert_close(encoder["layer3.0.conv2.weight"], tensors["layer3.0.conv2.weight"])
    assert not torch.equal(encoder["bn1.running_mean"], tensors["bn1.running_mean"])
    assert int(encoder["bn1.num_batches_tracked"]) > 0
    assert all(bool(v.isfinite().all()) for v in found.importance.values())


def test_foreign_weights_that_do_not_fit_end_the_training_before_it_begins(recipe, tmp_path):
    save_file({"layer1.0.conv1.weight": torch.zeros(3)}, tmp_path / "resnet18.safetensors")
    recipe.write_text("\n".join(line for line in TINY.splitlines() if "config" not in line) + DEEPLAB, "utf-8")
    with pytest.raises(WeightsError, match=r"resnet18\.safetensors.*bn1\.bias is missing"):
        train(recipe, None, tmp_path / "out" / "w.safetensors", device="cpu", threads=1)
    assert not (tmp_path / "out").exists()


def test_one_beginning_is_enough(recipe):
    recipe.write_text("start_from = 'first.toml'\nforeign = 'resnet18.pth'")
    assert "expected one of them" in refusal(recipe)


# --- the loop ---------------------------------------------------------------------------------------------------------------------------


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_tiny_recipe_trains_and_writes_weights_and_their_course(recipe, tmp_path):
    out = train(recipe, None, tmp_path / "new" / "w.safetensors", device="cpu", threads=1)
    assert sorted(p.name for p in out.parent.iterdir()) == ["w.csv", "w.safetensors"]
    rows = rows_of(out.with_suffix(".csv"))
    assert [row["step"] for row in rows] == ["2", "4", "5"]
    assert all(0 < float(row["loss"]) < 10 for row in rows)
    assert all(0 <= float(row[f"iou@{k}"]) <= 1 for row in rows for k in range(1, 6))
    loaded = load_weights(out)
    assert loaded.network.config.widths == (8, 16, 16, 16, 16)
    assert loaded.facts["steps"] == 5
    assert loaded.facts["recipe"]["seed"] == 3


def killed_at(monkeypatch: pytest.MonkeyPatch, step: int) -> list[int]:
    """Training dies on its way to ``step`` from now on; the steps that were begun."""
    begun: list[int] = []
    plain = training._Run.advance

    def advance(run, *args):
        if run.step == step:
            raise KeyboardInterrupt
        begun.append(run.step)
        return plain(run, *args)

    monkeypatch.setattr(training._Run, "advance", advance)
    return begun


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """A folder with a recipe, and what a run left that was killed on its way from step 3 to 4, having saved at 2."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "tiny.toml").write_text(TINY, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_held_out_batch", SMALL_HELD_OUT)
        begun = killed_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(folder / "tiny.toml", None, folder / "w.safetensors", device="cpu", threads=1)
    assert begun == [0, 1, 2]
    return folder


@pytest.fixture
def left_over(killed, tmp_path) -> Path:
    """A copy of `killed`."""
    return Path(shutil.copytree(killed, tmp_path / "copy"))


def test_a_killed_run_goes_on_from_its_last_save(left_over, monkeypatch):
    out = left_over / "w.safetensors"
    assert not out.exists()
    saved = torch.load(left_over / "w.resume", weights_only=True)
    assert saved["step"] == 2
    begun = killed_at(monkeypatch, -1)
    assert train(left_over / "tiny.toml", None, out, resume=True, device="cpu", threads=1) == out
    assert begun == [2, 3, 4]
    assert [row["step"] for row in rows_of(left_over / "w.csv")] == ["2", "4", "5"]
    assert load_weights(out).facts["steps"] == 5
    assert not (left_over / "w.resume").exists()


def test_going_on_takes_up_weights_average_and_optimiser(left_over, monkeypatch):
    saved = torch.load(left_over / "w.resume", weights_only=True)
    taken: list[training._Run] = []

    def look(run, *_args):
        taken.append(run)
        raise KeyboardInterrupt

    monkeypatch.setattr(training._Run, "advance", look)
    with pytest.raises(KeyboardInterrupt):
        train(left_over / "tiny.toml", None, left_over / "w.safetensors", resume=True, device="cpu", threads=1)
    (run,) = taken
    assert run.step == 2
    assert all(torch.equal(v, saved["network"][k]) for k, v in run.plain.state_dict().items())
    assert all(torch.equal(v, saved["average"][k]) for k, v in run.average.weights.items())
    assert any(not torch.equal(v, saved["network"][k]) for k, v in run.average.weights.items())
    for one, its in zip(run.optimisers, saved["optimisers"], strict=True):
        moments = one.state_dict()["state"]
        assert all(torch.equal(moments[k]["exp_avg"], v["exp_avg"]) for k, v in its["state"].items())


def test_a_killed_run_with_muon_gives_the_weights_of_one_that_went_through(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_held_out_batch", SMALL_HELD_OUT)
    (tmp_path / "tiny.toml").write_text('optimiser = "muon"\ndecay = 0.4\n' + TINY, "utf-8")
    through = train(tmp_path / "tiny.toml", None, tmp_path / "through.safetensors", device="cpu", threads=1)
    with monkeypatch.context() as patch:
        killed_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "tiny.toml", None, tmp_path / "w.safetensors", device="cpu", threads=1)
    went_on = train(tmp_path / "tiny.toml", None, tmp_path / "w.safetensors", resume=True, device="cpu", threads=1)
    first, second = (load_weights(path).network.state_dict() for path in (through, went_on))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_killed_run_reports_what_one_that_went_through_does(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_held_out_batch", SMALL_HELD_OUT)
    often = TINY.replace("report_every = 2", "report_every = 3")
    assert often != TINY
    (tmp_path / "tiny.toml").write_text(often, "utf-8")
    train(tmp_path / "tiny.toml", None, tmp_path / "through.safetensors", device="cpu", threads=1)
    with monkeypatch.context() as patch:
        killed_at(patch, 3)  # after a report that its newest save, at 2, does not know of
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "tiny.toml", None, tmp_path / "w.safetensors", device="cpu", threads=1)
    assert [row["step"] for row in rows_of(tmp_path / "w.csv")] == ["3"]
    train(tmp_path / "tiny.toml", None, tmp_path / "w.safetensors", resume=True, device="cpu", threads=1)
    through, went_on = ([row | {"seconds": ""} for row in rows_of(tmp_path / f"{name}.csv")] for name in ("through", "w"))
    assert [row["step"] for row in through] == ["3", "5"]
    assert went_on == through


def test_without_resume_a_killed_run_is_not_written_over(left_over, monkeypatch):
    begun, before = killed_at(monkeypatch, 1), {path.name: path.read_bytes() for path in left_over.iterdir()}
    with pytest.raises(
        RecipeError, match=r"an earlier run stopped at step 2 and left .*w\.resume; expected --resume to go on, or that file removed"
    ):
        train(left_over / "tiny.toml", None, left_over / "w.safetensors", device="cpu", threads=1)
    assert {path.name: path.read_bytes() for path in left_over.iterdir()} == before
    (left_over / "w.resume").write_bytes(b"x")
    with pytest.raises(RecipeError, match="an earlier run stopped and left"):
        train(left_over / "tiny.toml", None, left_over / "w.safetensors", device="cpu", threads=1)
    (left_over / "w.resume").unlink()
    with pytest.raises(KeyboardInterrupt):
        train(left_over / "tiny.toml", None, left_over / "w.safetensors", device="cpu", threads=1)
    assert begun == [0]


def test_the_killed_run_of_the_stage_before_is_not_written_over_either(left_over, monkeypatch):
    begun = killed_at(monkeypatch, -1)
    (left_over / "last.toml").write_text(STILL.replace("first.toml", "w.toml"), "utf-8")
    (left_over / "tiny.toml").rename(left_over / "w.toml")
    with pytest.raises(RecipeError, match=r"stopped at step 2 and left .*w\.resume"):
        train(left_over / "last.toml", None, left_over / "last.safetensors", device="cpu", threads=1)
    assert begun == []
    train(left_over / "last.toml", None, left_over / "last.safetensors", resume=True, device="cpu", threads=1)
    assert begun == [2, 3, 4, 0]


@pytest.mark.parametrize(
    "error", [RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nframe"), OSError(28, "No space")]
)
def test_a_state_that_cannot_be_written_ends_training_in_a_sentence(left_over, monkeypatch, error):
    """And what was written before stays."""

    def fills_the_disk(state, path):
        Path(path).write_bytes(b"half")
        raise error

    before = (left_over / "w.resume").read_bytes()
    monkeypatch.setattr(torch, "save", fills_the_disk)
    with pytest.raises(WriteError, match=r"step 4 cannot be written to .*w\.resume \(.*expected a writable folder with room") as caught:
        train(left_over / "tiny.toml", None, left_over / "w.safetensors", resume=True, device="cpu", threads=1)
    assert "\n" not in str(caught.value)
    assert (left_over / "w.resume").read_bytes() == before
    assert sorted(path.name for path in left_over.iterdir()) == ["tiny.toml", "w.csv", "w.resume"]


@pytest.mark.parametrize(("save_every", "step", "written"), [(2, 4, ["w.csv", "w.resume"]), (100, 5, ["w.csv"])])
def test_weights_that_are_not_finite_are_not_written(recipe, tmp_path, monkeypatch, save_every, step, written):
    """They are refused at once where the state is saved, and the last good one stays; else at the end."""
    recipe.write_text(TINY.replace("save_every = 2", f"save_every = {save_every}"), "utf-8")
    plain = training._Run.advance

    def advance(run, *args):
        if run.step == 3:
            next(run.plain.parameters()).data.fill_(torch.nan)
        return plain(run, *args)

    monkeypatch.setattr(training._Run, "advance", advance)
    with pytest.raises(RecipeError, match=rf"not finite by step {step} \(.*, which are not written; expected .* below 0\.0015"):
        train(recipe, None, tmp_path / "out" / "w.safetensors", device="cpu", threads=1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == written


def test_sets_without_anything_to_learn_from_are_refused(recipe, make_set):
    """Unless there are synthetic samples, which then are all there is."""
    folder = make_set('objects = "id"', {"a": (np.arange(64, dtype=np.uint8).reshape(1, 8, 8), np.zeros((1, 8, 8), np.uint8))})
    recipe.write_text(TINY.replace("synthetic = 1.0", "synthetic = 0.0") + "[sets]\nset = 1.0\n", "utf-8")
    with pytest.raises(RecipeError, match="the sets set hold no labelled slice to learn from"):
        train(recipe, folder.parent, folder.parent / "w.safetensors", device="cpu", threads=1)


@pytest.mark.parametrize("side", [4, 64])
def test_sets_of_objects_that_are_too_small_or_all_there_is_are_refused(recipe, make_set, side):
    """No sample can be drawn of them, however often that is tried."""
    labels = np.zeros((64, 60), np.uint8)
    labels[:side, :side] = 1
    folder = make_set('objects = "id"', {"a": (np.arange(64 * 60).reshape(64, 60).astype(np.uint16), labels)})
    recipe.write_text(TINY.replace("synthetic = 1.0", "synthetic = 0.0") + "[sets]\nset = 1.0\n", "utf-8")
    with pytest.raises(RecipeError, match="the sets set hold only objects of fewer than 20 pixels"):
        train(recipe, folder.parent, folder.parent / "w.safetensors", device="cpu", threads=1)


def test_the_state_of_another_recipe_is_refused(left_over):
    state = (left_over / "w.resume").read_bytes()
    (left_over / "tiny.toml").write_text(TINY.replace("seed = 3", "seed = 4"), "utf-8")
    with pytest.raises(RecipeError, match="another recipe"):
        train(left_over / "tiny.toml", None, left_over / "w.safetensors", resume=True, device="cpu", threads=1)
    assert (left_over / "w.resume").read_bytes() == state


STILL = TINY.replace("steps = 5", "steps = 1\nlearning_rate = 0.0").replace("save_every = 2", "start_from = 'first.toml'")


def test_a_stage_starts_from_the_weights_of_the_one_before(recipe, tmp_path):
    torch.manual_seed(7)
    first = save_weights(build("unet", {"widths": [8, 16, 16, 16, 16], "groups": 4}), tmp_path / "first.safetensors")
    recipe.write_text(STILL, "utf-8")
    again = train(recipe, None, tmp_path / "again.safetensors", device="cpu", threads=1)
    before, after = (load_weights(path).network.state_dict() for path in (first, again))
    assert all(torch.equal(before[k], v) for k, v in after.items())


def test_the_stage_before_is_trained_first_if_its_weights_are_missing(recipe, tmp_path):
    (tmp_path / "first.toml").write_text(TINY, "utf-8")
    recipe.write_text(STILL, "utf-8")
    out = tmp_path / "runs" / "last.safetensors"
    train(recipe, None, out, device="cpu", threads=1)
    before, after = (load_weights(path).network.state_dict() for path in (out.with_name("first.safetensors"), out))
    assert all(torch.equal(before[k], v) for k, v in after.items())


@pytest.mark.parametrize("others", [{}, {"second": "tiny"}, {"second": "third", "third": "second"}])
def test_a_recipe_that_starts_from_itself_is_refused(recipe, tmp_path, others):
    recipe.write_text(f"steps = 1\nstart_from = '{next(iter(others), 'tiny')}.toml'")
    for name, before in others.items():
        (tmp_path / f"{name}.toml").write_text(f"steps = 1\nstart_from = '{before}.toml'")
    with pytest.raises(RecipeError, match=r"tiny\.toml starts from itself, by way of .*\.toml; expected a first stage"):
        train(recipe, None, tmp_path / "w.safetensors", device="cpu", threads=1)


@pytest.mark.parametrize("there", [False, True])
def test_a_stage_is_not_written_over_one_before_it(recipe, tmp_path, there):
    first = tmp_path / "first.safetensors"
    if there:
        save_weights(build("unet", {"widths": [8, 16, 16, 16, 16], "groups": 4}), first)
    (tmp_path / "first.toml").write_text(TINY, "utf-8")
    (tmp_path / "second.toml").write_text(STILL, "utf-8")
    recipe.write_text(STILL.replace("first.toml", "second.toml"), "utf-8")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for stage in (tmp_path / "second.toml", recipe):
        with pytest.raises(RecipeError, match=r"first\.safetensors was asked for, where the weights of first\.toml lie"):
            train(stage, None, first, device="cpu", threads=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_stage_of_another_network_is_refused(recipe, tmp_path):
    save_weights(build("unet", {"widths": [16, 16, 16, 16, 16], "groups": 4}), tmp_path / "first.safetensors")
    recipe.write_text(STILL, "utf-8")
    with pytest.raises(RecipeError, match="another network"):
        train(recipe, None, tmp_path / "again.safetensors", device="cpu", threads=1)


def test_a_stage_may_grow_but_not_shrink(recipe, tmp_path):
    grown, first = {"widths": [8, 16, 16, 16, 16], "groups": 4, "likeness": 2}, tmp_path / "first.safetensors"
    save_weights(build("unet", {**grown, "likeness": 0}), first)
    recipe.write_text(STILL.replace("groups = 4", "groups = 4, likeness = 2"), "utf-8")
    assert load_weights(train(recipe, None, tmp_path / "grown.safetensors", device="cpu", threads=1)).network.config.likeness == 2
    save_weights(build("unet", grown), first)
    recipe.write_text(STILL, "utf-8")
    with pytest.raises(RecipeError, match="another network"):
        train(recipe, None, tmp_path / "shrunk.safetensors", device="cpu", threads=1)


def test_a_damaged_state_is_refused(left_over):
    (left_over / "w.resume").write_bytes((left_over / "w.resume").read_bytes()[:1000])
    with pytest.raises(RecipeError, match="damaged"):
        train(left_over / "tiny.toml", None, left_over / "w.safetensors", resume=True, device="cpu", threads=1)


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_tiny_network_learns_one_batch_by_heart(tmp_path, optimiser):
    """The whole step (clicks, rounds, loss, optimiser) brings IoU up on four fixed samples."""
    torch.manual_seed(0)
    config = {"widths": [8, 16, 16, 16, 16], "groups": 4}
    recipe = Recipe(steps=60, warmup=5, learning_rate=1e-2, config=config, rounds=(0.7, 0.3), average=0.9, optimiser=optimiser)
    fabric = lightning_fabric.Fabric(accelerator="cpu", devices=1)
    run = training._Run(recipe, None, tmp_path / "w.safetensors", fabric, "")
    drawn = next(iter(SampleStream({}, {}, 1.0, ((64, 4),), seed=5, pool=4)))
    image, target = drawn.image, drawn.target
    before = training._score(run.plain, image, target)
    rng = np.random.default_rng(0)
    losses = []
    while run.step < recipe.steps:
        losses.append(run.advance(drawn, rng))
        run.step += 1
    after = training._score(run.plain, image, target)
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    assert after[0] > before[0] + 0.3
    assert after[-1] > 0.7
    averaged = build("unet", recipe.config)
    averaged.load_state_dict(run.average.weights)
    assert training._score(averaged, image, target)[-1] > 0.6


# --- what matters -----------------------------------------------------------------------------------------------------------------------


def test_weights_are_told_afterwards_what_training_would_have_told_them(recipe, tmp_path):
    out = train(recipe, None, tmp_path / "w.safetensors", device="cpu", threads=1)
    told = load_weights(out)
    assert told.importance.keys() == dict(told.network.named_parameters()).keys()
    assert told.importance["to_logits.weight"].min() > 0
    untold = save_weights(told.network, tmp_path / "untold.safetensors", told.facts)
    assert not load_weights(untold).importance
    again = load_weights(training.add_importance(untold, None))
    assert all(torch.equal(again.importance[k], v) for k, v in told.importance.items())
    assert all(torch.equal(again.network.state_dict()[k], v) for k, v in told.network.state_dict().items())
    assert again.facts == told.facts


def test_importance_can_be_left_out(recipe, tmp_path):
    recipe.write_text(TINY.replace("importance = 3", "importance = 0"), "utf-8")
    assert not load_weights(train(recipe, None, tmp_path / "w.safetensors", device="cpu", threads=1)).importance
    recipe.write_text(TINY.replace("importance = 3", "importance = -1"), "utf-8")
    assert "importance = -1" in refusal(recipe)


def test_weights_without_a_recipe_cannot_be_told_what_matters(tmp_path):
    path = save_weights(build("unet", {"widths": [8, 16, 16, 16, 16], "groups": 4}), tmp_path / "w.safetensors")
    with pytest.raises(RecipeError, match="by which recipe"):
        training.add_importance(path, None)
