"""The methods that the network is compared with: they must do what they can, or the comparison is worth nothing."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_apprentice.benchmark import Row, Trial, run
from napari_apprentice.fakes import FakePolicy
from napari_apprentice.types import DEFAULT_POLICY, Box, Click, ImageSlice, InputError, Prediction, Prompt, Segmenter, WeightsError

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
classical, peers, sam_onnx = (pytest.importorskip(name) for name in ("classical", "peers", "sam_onnx"))

ROWS, COLS = np.mgrid[:48, :64]
DISK = (ROWS - 20) ** 2 + (COLS - 24) ** 2 <= 9**2
INSIDE, OUTSIDE = Click((20, 24)), Click((40, 56), positive=False)


def picture(mask, channels=1, seed=0):
    """Bright where the mask is, with some noise; uint8."""
    rng = np.random.default_rng(seed)
    grey = np.where(mask, 180, 60) + rng.normal(0, 8, (channels, *mask.shape))
    return ImageSlice(np.clip(grey, 0, 255).astype(np.uint8))


def iou(mask, truth):
    return (mask & truth).sum() / (mask | truth).sum()


def make(name):
    if name in classical.NEEDS:
        pytest.importorskip(classical.NEEDS[name][0])
    return classical.ClassicalSegmenter(name)


@pytest.fixture(params=sorted(classical.METHODS))
def segmenter(request):
    return make(request.param)


# --- every classical method ---


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("clicks", [(INSIDE,), (INSIDE, OUTSIDE)])
def test_a_bright_disk_is_found(segmenter, channels, clicks):
    assert iou(segmenter.predict(picture(DISK, channels), Prompt(clicks)).mask, DISK) > 0.9


def test_the_disk_that_was_not_clicked_is_left_out(segmenter):
    other = (ROWS - 36) ** 2 + (COLS - 52) ** 2 <= 6**2
    found = segmenter.predict(picture(DISK | other), Prompt((INSIDE, Click((36, 52), positive=False)))).mask
    assert iou(found, DISK) > 0.9
    assert not (found & other).any()


@pytest.mark.parametrize("name", sorted(classical.METHODS))
@settings(max_examples=15)
@given(data=st.data())
def test_every_clicked_pixel_is_as_the_user_said(name, data):
    voxels = st.tuples(st.integers(0, 47), st.integers(0, 63))
    clicks = tuple(data.draw(st.lists(st.builds(Click, voxels, st.booleans()), min_size=1, max_size=6)))
    found = make(name).predict(picture(DISK), Prompt((INSIDE, *clicks))).mask
    said = {click.voxel: click.positive for click in (INSIDE, *clicks)}  # the newest click of a pixel counts
    if any(said.values()):
        assert {voxel: bool(found[voxel]) for voxel in said} == said
    else:
        assert not found.any()


def test_the_same_clicks_give_the_same_answer(segmenter):
    pixels, first = picture(DISK, 3, seed=1), Prompt((INSIDE,))
    again = make(segmenter.name)
    again.predict(picture(~DISK), Prompt((OUTSIDE, Click((2, 60)))))  # what went before does not matter
    found = segmenter.predict(pixels, first)
    np.testing.assert_array_equal(found.logits, again.predict(pixels, first).logits)
    second = Prompt((INSIDE, OUTSIDE), found)
    np.testing.assert_array_equal(segmenter.predict(pixels, second).logits, again.predict(pixels, second).logits)


def test_there_is_nothing_to_learn(segmenter):
    assert isinstance(segmenter, Segmenter)
    before = segmenter.predict(picture(DISK), Prompt((INSIDE,)))
    segmenter.restore(segmenter.snapshot())
    np.testing.assert_array_equal(segmenter.predict(picture(DISK), Prompt((INSIDE,))).logits, before.logits)


def test_without_a_positive_click_there_is_no_object(segmenter):
    assert not segmenter.predict(picture(DISK), Prompt((OUTSIDE,))).mask.any()


def test_a_large_slice_is_seen_through_a_window(segmenter):
    rows, cols = np.mgrid[:700, :900]
    truth = (rows - 320) ** 2 + (cols - 524) ** 2 <= 30**2
    found = segmenter.predict(picture(truth), Prompt((Click((320, 524)),)))
    assert iou(found.mask, truth) > 0.85
    assert max(found.box.shape) < 300


def test_an_object_at_the_border_of_the_slice_is_found_up_to_it(segmenter):
    truth = COLS < 20
    found = segmenter.predict(picture(truth), Prompt((Click((24, 8)), Click((24, 40), positive=False)))).mask
    assert iou(found, truth) > 0.9
    assert found[10:38, 0].all()


# --- windows and seeds ---


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 149)), min_size=1, max_size=5), st.floats(8, 300))
def test_the_window_holds_what_was_clicked_and_is_not_larger_than_the_slice(points, side):
    window = classical.window_about(points, (100, 150), side)
    assert all(classical.within(point, window) for point in points)
    assert window.shape[0] == window.shape[1] <= 152


@given(st.lists(st.builds(Click, st.tuples(st.integers(0, 39), st.integers(0, 29)), st.booleans()), max_size=5), st.integers(10, 60))
def test_there_are_always_seeds_of_both_kinds(clicks, size):
    clicks = classical.standing([*clicks, Click((20, 15))])
    window = classical.window_about([c.voxel for c in clicks if c.positive], (40, 30), 16)
    seeds = classical.seeds_in(window, min(size, window.shape[0]), (40, 30), clicks, 1.0)
    assert {classical.FOREGROUND, classical.BACKGROUND} <= set(np.unique(seeds))


def test_what_lies_beyond_the_slice_is_background():
    seeds = classical.seeds_in(Box(-4, -4, 16, 16), 20, (12, 12), [Click((6, 6))], 1.0)
    inner = np.zeros((20, 20), bool)
    inner[4:16, 4:16] = True
    np.testing.assert_array_equal(seeds == classical.BACKGROUND, ~inner)
    assert seeds[10, 10] == classical.FOREGROUND


# --- the cuts ---


def cost(mask, pixels, odds):
    """Of a cut, in words."""
    height, width = mask.shape
    pairs = [
        ((r, c), (r + down, c + right))
        for r, c in np.ndindex(height, width)
        for down, right in ((0, 1), (1, 0), (1, 1), (1, -1))
        if r + down < height and 0 <= c + right < width
    ]
    straight = [np.square(pixels - np.roll(pixels, -1, axis)).sum(-1) for axis in (1, 0)]
    scale = 2 * np.mean(straight)
    apart = sum(
        np.exp(-np.square(pixels[a] - pixels[b]).sum() / scale) / np.hypot(a[0] - b[0], a[1] - b[1]) for a, b in pairs if mask[a] != mask[b]
    )
    return apart + sum(abs(o) for o, m in zip(odds.flat, mask.flat, strict=True) if (o > 0) != m)


@settings(max_examples=4)
@given(st.integers(0, 1000))
def test_no_cut_is_cheaper(seed):
    pytest.importorskip("maxflow")
    rng = np.random.default_rng(seed)
    pixels, odds = rng.random((3, 3, 1)), rng.normal(0, 1.5, (3, 3))
    masks = [np.array(bits).reshape(3, 3) for bits in itertools.product([False, True], repeat=9)]
    assert cost(classical.cheapest_cut(pixels, odds), pixels, odds) == pytest.approx(min(cost(m, pixels, odds) for m in masks))


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_speak_for_the_kind_that_they_were_seen_in(channels):
    pixels = np.moveaxis(picture(DISK, channels).data, 0, -1) / 255
    odds = classical.colour_odds(pixels, DISK, ~DISK)
    assert (odds[DISK] > 0).mean() > 0.95
    assert (odds[~DISK] < 0).mean() > 0.95


@pytest.mark.parametrize("name", sorted(classical.NEEDS))
def test_a_library_that_is_missing_is_named(name, monkeypatch):
    module, distribution = classical.NEEDS[name]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f"{distribution} is not installed"):
        classical.ClassicalSegmenter(name)


# --- SAM ---


class Value:
    def __init__(self, name, shape=()):
        self.name, self.shape = name, shape


class Encoder:
    """Embeds a picture as itself."""

    def __init__(self, shape=(1, 3, 128, 128)):
        self.shape, self.pictures = shape, []

    def get_inputs(self):
        return [Value("picture", self.shape)]

    def run(self, outputs, feed):
        self.pictures.append(feed["picture"])
        return [feed["picture"]]


class Decoder:
    """Paints a disk of 9 slice pixels about every positive point; of several masks number ``good`` shows it."""

    def __init__(self, masks=1, good=0, inputs=sam_onnx.SamSegmenter.INPUTS, outputs=("masks", "iou_predictions", "low_res_masks")):
        self.masks, self.good, self.inputs, self.outputs, self.fed = masks, good, inputs, outputs, []

    def get_inputs(self):
        return [Value(name) for name in self.inputs]

    def get_outputs(self):
        return [Value(name) for name in self.outputs]

    def run(self, outputs, feed):
        self.fed.append(feed)
        height, width = feed["orig_im_size"].astype(int)
        scale = 128 / max(height, width)
        rows, cols = np.mgrid[:height, :width]
        masks = np.full((1, self.masks, height, width), -5.0, np.float32)
        for (x, y), label in zip(feed["point_coords"][0], feed["point_labels"][0], strict=True):
            if label == 1:
                masks[0, self.good][(rows + 0.5 - y / scale) ** 2 + (cols + 0.5 - x / scale) ** 2 <= 81] = 5.0
        scores = np.where(np.arange(self.masks) == self.good, 0.9, 0.3)[None].astype(np.float32)
        return [masks, scores, np.zeros((1, self.masks, 256, 256), np.float32)]


def test_sam_is_told_where_the_clicks_are():
    decoder = Decoder()
    sam = sam_onnx.SamSegmenter(Encoder(), decoder)
    assert isinstance(sam, Segmenter)
    found = sam.predict(picture(DISK), Prompt((INSIDE, OUTSIDE)))
    np.testing.assert_array_equal(found.mask, DISK)
    assert found.score == pytest.approx(0.9)
    (fed,) = decoder.fed
    np.testing.assert_allclose(fed["point_coords"], [[(49, 41), (113, 81), (0, 0)]])  # (x, y), 64 pixels shown at 128
    np.testing.assert_array_equal(fed["point_labels"], [[1, 0, -1]])
    np.testing.assert_array_equal(fed["orig_im_size"], [48, 64])


def test_sam_sees_its_previous_mask_from_the_second_click_on():
    decoder = Decoder()
    sam = sam_onnx.SamSegmenter(Encoder(), decoder)
    first = sam.predict(picture(DISK), Prompt((INSIDE,)))
    sam.predict(picture(DISK), Prompt((INSIDE, OUTSIDE), first))
    before, after = decoder.fed
    assert (before["has_mask_input"], after["has_mask_input"]) == (0, 1)
    assert not before["mask_input"].any()
    shown = after["mask_input"][0, 0] > 0
    np.testing.assert_array_equal(shown[2:192:4, 2::4], DISK)  # 64 pixels shown at 256
    assert not shown[192:].any()


def test_sam_encodes_a_slice_once_and_standardises_it():
    encoder = Encoder()
    sam = sam_onnx.SamSegmenter(encoder, Decoder())
    pixels = replace(picture(DISK), key="one")
    for clicks in ((INSIDE,), (INSIDE, OUTSIDE)):
        sam.predict(pixels, Prompt(clicks))
    (shown,) = encoder.pictures
    assert shown.shape == (1, 3, 128, 128)
    assert not shown[:, :, 96:].any()
    grey = (shown[0, :, :96] * np.reshape(sam.DEVIATION, (3, 1, 1)) + np.reshape(sam.MEAN, (3, 1, 1))).mean(0)
    assert grey[41, 49] == pytest.approx(180, abs=15)
    assert grey[81, 113] == pytest.approx(60, abs=15)
    sam.predict(replace(pixels, key="two"), Prompt((INSIDE,)))
    assert len(encoder.pictures) == 2
    assert sam.clock["encode"] > 0
    assert sam.clock["decode"] > 0


@pytest.mark.parametrize(("clicks", "good"), [((INSIDE,), 2), ((INSIDE, OUTSIDE), 0)])
def test_of_several_masks_sam_takes_the_best_of_three_and_later_the_single_one(clicks, good):
    sam = sam_onnx.SamSegmenter(Encoder(), Decoder(masks=4, good=good))
    np.testing.assert_array_equal(sam.predict(picture(DISK), Prompt(clicks)).mask, DISK)


def test_an_encoder_that_prepares_the_picture_itself_gets_it_as_it_is():
    encoder = Encoder(("height", "width", 3))
    sam_onnx.SamSegmenter(encoder, Decoder()).predict(picture(DISK), Prompt((INSIDE,)))
    (shown,) = encoder.pictures
    assert shown.shape == (768, 1024, 3)
    assert shown.max() > 150


@pytest.mark.parametrize(
    ("encoder", "decoder", "said"),
    [
        (Encoder((1, 3)), Decoder(), "an encoder with the inputs"),
        (Encoder(), Decoder(inputs=("image_embeddings", "boxes")), "image_embeddings, boxes arrived"),
        (Encoder(), Decoder(outputs=("logits",)), "the outputs logits arrived"),
    ],
)
def test_files_of_another_format_are_refused(encoder, decoder, said):
    with pytest.raises(WeightsError, match=said):
        sam_onnx.SamSegmenter(encoder, decoder)


def test_onnxruntime_is_asked_for_only_where_files_are_given(monkeypatch, disks_set, capsys):
    for needed, _ in classical.NEEDS.values():
        pytest.importorskip(needed)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert peers.main([str(disks_set), "--onnx", "a.onnx", "b.onnx"]) == 2
    assert capsys.readouterr().err == "peers: onnxruntime is not installed; expected it to be: pip install onnxruntime\n"


def test_a_file_that_is_no_network_is_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    path = tmp_path / "encoder.onnx"
    path.write_bytes(b"no network")
    with pytest.raises(WeightsError, match=r"encoder\.onnx cannot be run"):
        sam_onnx.SamSegmenter.open(path, path)


def test_files_in_the_format_are_run(tmp_path):
    """Two tiny networks: the embedding is the grey picture, and the mask what of it lies in the slice."""
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    def tensor(name, shape, kind=TensorProto.FLOAT):
        return helper.make_tensor_value_info(name, kind, shape)

    def save(path, nodes, inputs, outputs, constants=()):
        graph = helper.make_graph(nodes, "graph", inputs, outputs, constants)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)

    save(
        tmp_path / "encoder.onnx",
        [helper.make_node("ReduceMean", ["x", "axes"], ["image_embeddings"])],
        [tensor("x", [1, 3, 64, 64])],
        [tensor("image_embeddings", [1, 1, 64, 64])],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [1])],
    )
    given_to = zip(sam_onnx.SamSegmenter.INPUTS, ([1, 1, 64, 64], [1, "n", 2], [1, "n"], [1, 1, 256, 256], [1], [2]), strict=True)
    save(
        tmp_path / "decoder.onnx",
        [
            helper.make_node("Cast", ["orig_im_size"], ["size"], to=TensorProto.INT64),
            helper.make_node("Concat", ["zeros", "size"], ["ends"], axis=0),
            helper.make_node("Max", ["ends", "ones"], ["ends_of_all"]),
            helper.make_node("Slice", ["image_embeddings", "starts", "ends_of_all"], ["masks"]),
            helper.make_node("ReduceMean", ["masks"], ["all"], keepdims=0),
            helper.make_node("Reshape", ["all", "one_by_one"], ["iou_predictions"]),
        ],
        [tensor(name, shape) for name, shape in given_to],
        [tensor("masks", [1, 1, "h", "w"]), tensor("iou_predictions", [1, 1])],
        [
            helper.make_tensor("zeros", TensorProto.INT64, [2], [0, 0]),
            helper.make_tensor("ones", TensorProto.INT64, [4], [1] * 4),
            helper.make_tensor("starts", TensorProto.INT64, [4], [0] * 4),
            helper.make_tensor("one_by_one", TensorProto.INT64, [2], [1, 1]),
        ],
    )
    sam = sam_onnx.SamSegmenter.open(tmp_path / "encoder.onnx", tmp_path / "decoder.onnx")
    found = sam.predict(picture(DISK), Prompt((INSIDE,)))
    assert iou(found.mask, DISK) > 0.95


# --- the table ---


def row(network, noc, name="cells", policy="none", robot="centre"):
    scores = {str(k): 0.5 for k in (1, 3, 5, 10, 20)}
    nocs = {"0.80": 1.0, "0.85": noc, "0.90": 20.0}
    half = {"noc": nocs, "iou_at": scores}
    seconds = {"encode": 0.25, "decode": 0.5, "adapt": 0.25}
    return Row(name, network, policy, robot, "sorted", 4, nocs, {}, scores, scores, half, seconds, 0.0, 20, 0, "*", 4)


def test_ours_is_set_against_the_best_classical_method_of_the_same_set():
    rows = [row("GrabCut", 8.0), row("graph cut", 10.0), row("SAM (ONNX)", 1.0), row("unet", 4.0), row("unet", 6.0, policy="mi+pi")]
    rows += [row("GrabCut", 2.0, "eyes"), row("unet", 3.0, "eyes")]
    lines = peers.lines_of(rows)
    assert [line["method"] for line in lines[:5]] == ["GrabCut", "graph cut", "SAM (ONNX)", "unet, frozen", "unet, mi+pi"]
    assert [line.get("NoC@0.85 to best classical") for line in lines] == [None, None, "0.12", "0.50", "0.75", None, "1.50"]
    assert lines[0]["s a click"] == "1.00"


@pytest.mark.parametrize(("ours", "best", "met"), [(4.0, 8.0, 1), (4.1, 8.0, 0), (2.0, 2.5, 1), (2.1, 2.5, 0)])
def test_the_goal_is_half_the_clicks_or_two(ours, best, met):
    said = peers.goal_of([row("GrabCut", best), row("graph cut", 19.0), row("unet", ours), row("unet", 1.0, policy="mi+pi")])
    assert f"on {met} of 1 sets" in said


def test_a_method_is_measured_like_the_network(disks_set):
    found = run(Trial(disks_set, limit=3, max_clicks=4), make("random walker"), FakePolicy(0, 0))
    assert (found.network, found.n_objects) == ("random walker", 3)
    assert found.seconds_per_click["decode"] > 0


def test_the_command_writes_the_page(disks_set, tmp_path, capsys):
    page, rows = tmp_path / "docs" / "peers.md", tmp_path / "rows.json"
    arguments = ["--limit", "1", "--max-clicks", "2", "--methods", "random walker,network", "--threads", "1"]
    assert peers.main([str(disks_set), *arguments, "--markdown", str(page), "--json", str(rows)]) == 0
    text = page.read_text()
    assert capsys.readouterr().out.endswith(text)
    for method in ("random walker", "unet, frozen", f"unet, {DEFAULT_POLICY}"):
        assert f"| disks | {method} | 1 |" in text
    assert "GrabCut |" not in text
    assert "beta" in text
    assert rows.read_text().count('"noc"') == 2 * 3  # of the whole sequence and of its second half


def test_what_cannot_be_used_is_said_in_one_sentence(tmp_path, capsys):
    assert peers.main([str(tmp_path), "--methods", "grab cut"]) == 2
    assert capsys.readouterr().err.startswith("peers: a method called 'grab cut' was asked for; expected one of random walker, GrabCut,")
    assert peers.main([str(tmp_path), "--methods", "random walker"]) == 2
    assert capsys.readouterr().err.startswith(f"peers: {tmp_path} arrived as a data set")


def test_an_answer_elsewhere_is_background_here():
    previous = Prediction.from_mask(DISK)
    np.testing.assert_array_equal(classical.answer_in(previous, Box(100, 100, 110, 110), 10), -1)
    np.testing.assert_array_equal(classical.answer_in(previous, Box(0, 0, 48, 48), 48) > 0, DISK[:, :48])
