"""Examples: objects whose masks are known, which the network is shown with every click. What they change, and what they never change."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from napari_apprentice.adaptation import POLICIES, Adaptation, _doubt
from napari_apprentice.adaptation._memory import kept
from napari_apprentice.fakes import DiskSegmenter, FakePolicy
from napari_apprentice.knowledge import Knowledge, KnowledgeStore, Remembered, Tensors, kind_of
from napari_apprentice.networks import Recalled, UNet, build
from napari_apprentice.networks._recall import Recall
from napari_apprentice.samples import Drawn, SampleStream
from napari_apprentice.segmenter import NetworkSegmenter, ZoomConfig
from napari_apprentice.session import Session
from napari_apprentice.synthetic import Scene
from napari_apprentice.training import read_recipe, train
from napari_apprentice.types import (
    Click,
    Image,
    ImageSlice,
    Lesson,
    Prediction,
    Prompt,
    RecipeError,
    SessionError,
    WeightsError,
    WriteError,
)
from napari_apprentice.weights import LoadedWeights, load_weights

PLAIN = {"widths": [8, 16, 16, 16, 16], "groups": 4, "likeness": 2}
READING = PLAIN | {"recall": 4}
SHAPE = (70, 80)
MIDDLE = (35, 40)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def reader(seed: int = 0) -> UNet:
    """A network that reads examples, with random weights everywhere."""
    torch.manual_seed(seed)
    network = build("unet", READING).eval()
    with torch.no_grad():
        for read in network.recall:
            for parameter in read.mix[-1].parameters():
                parameter.normal_(std=0.3)
    return network


def asked(batch: int = 2, seed: int = 1, size: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Images, clicks and previous masks."""
    made = torch.Generator().manual_seed(seed)
    image = torch.randn(batch, 3, size, size, generator=made)
    clicks = (torch.rand(batch, 2, size, size, generator=made) > 0.99).float()
    return image, clicks, torch.rand(batch, 1, size, size, generator=made)


def shown(batch: int = 2, count: int = 3, seed: int = 2, size: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Examples for `UNet.recollect`."""
    image, clicks, mask = asked(batch * count, seed, size)
    return tuple(part.unflatten(0, (batch, count)) for part in (image, clicks, (mask > 0.5).float()))


# --- the network ------------------------------------------------------------------------------------------------------------------------


def test_a_network_that_begins_to_read_says_what_it_said_before():
    torch.manual_seed(0)
    plain = build("unet", PLAIN).eval()
    reading = build("unet", READING).eval()
    reading.load_state_dict(reading.state_dict() | plain.state_dict())
    with torch.no_grad():
        before = plain(*asked())
        for after in (reading(*asked()), reading.decode(*asked(), reading.recollect(*shown()))):
            assert torch.equal(before.logits, after.logits)
            assert torch.equal(before.iou_logits, after.iou_logits)


def test_without_examples_a_network_that_reads_says_what_it_would_without_that_part():
    reading = reader()
    plain = build("unet", PLAIN).eval()
    plain.load_state_dict({k: v for k, v in reading.state_dict().items() if not k.startswith("recall")})
    with torch.no_grad():
        assert torch.equal(plain(*asked()).logits, reading(*asked()).logits)


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(3)))
def test_examples_have_no_order(order):
    network = reader()
    examples = shown()
    with torch.no_grad():
        one = network.decode(*asked(), network.recollect(*examples)).logits
        other = network.decode(*asked(), network.recollect(*(part[:, list(order)] for part in examples))).logits
    assert torch.allclose(one, other, atol=1e-4)


def test_an_example_that_is_there_twice_says_nothing_new():
    network = reader()
    examples = shown(count=1)
    with torch.no_grad():
        one = network.decode(*asked(), network.recollect(*examples)).logits
        twice = network.decode(*asked(), network.recollect(*(torch.cat([part, part], dim=1) for part in examples))).logits
    assert torch.allclose(one, twice, atol=1e-4)


def test_examples_that_all_images_share_are_read_as_if_each_had_its_own():
    network = reader()
    alone = shown(batch=1)
    with torch.no_grad():
        shared = network.decode(*asked(), network.recollect(*alone)).logits
        own = network.decode(*asked(), network.recollect(*(torch.cat([part, part]) for part in alone))).logits
    assert torch.allclose(shared, own, atol=1e-4)


def test_what_is_read_depends_on_the_masks_and_on_the_images_of_the_examples():
    network = reader()
    image, clicks, mask = shown()
    with torch.no_grad():
        said = network.decode(*asked(), network.recollect(image, clicks, mask)).logits
        for other in ((image, clicks, 1 - mask), (image.flip(3), clicks, mask)):
            assert not torch.allclose(said, network.decode(*asked(), network.recollect(*other)).logits, atol=1e-3)
        assert not torch.allclose(said, network(*asked()).logits, atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.integers(1, 3), st.integers(1, 4), st.booleans())
def test_what_is_read_is_the_mean_of_what_is_there_weighed_by_likeness_and_by_one_place_that_says_nothing(seed, batch, count, shared):
    """The attention, written out: softmax over all places of all examples and one more, in double precision."""
    torch.manual_seed(seed)
    read = Recall(8, 4, 5, 4).double().requires_grad_(False)
    nn.init.normal_(read.mix[-1].weight)
    nn.init.normal_(read.nothing)
    features = torch.randn(batch, 8, 6, 3, dtype=torch.float64)
    of_examples = torch.randn(1 if shared else batch, count, 8, 4, 4, dtype=torch.float64)
    targets = (torch.rand(*of_examples.shape[:2], 1, 16, 16) > 0.5).double()
    known = read.examples(of_examples, targets)
    expected = []
    for number, normed in enumerate(read.norm(features)):
        keys, values = (part[0 if shared else number] for part in known)
        asked = nn.functional.normalize(read.key(normed[None]).reshape(Recall.HEADS, 5, 18).transpose(1, 2), dim=2)
        heads = []
        for head in range(Recall.HEADS):
            sharp = read.log_sharpness[head].exp()
            weights = (sharp * asked[head] @ keys[head].T).exp()  # (places, places of the examples)
            nothing = (sharp * read.nothing[head]).exp() * keys.shape[1]
            heads.append(weights @ values[head] / (weights.sum(1, keepdim=True) + nothing))
        expected.append(read.mix(torch.stack(heads).transpose(1, 2).reshape(1, -1, 6, 3)))
    assert torch.allclose(read(features, known), torch.cat(expected), atol=1e-9)


def test_no_image_sees_the_examples_of_another():
    network = reader()
    examples = shown()
    other = tuple(torch.cat([part[:1], part[1:].flip(1, 3)]) for part in examples)
    with torch.no_grad():
        one, two = (network.decode(*asked(), network.recollect(*e)).logits for e in (examples, other))
    assert torch.allclose(one[0], two[0], atol=1e-4)


def test_what_reads_examples_learns_while_the_rest_may_stay_as_it_is():
    """With the trunk frozen, its features bear no gradient: in channels_last that once ended the process."""
    network = build("unet", READING)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith("recall"))
    nn.init.normal_(network.recall[0].mix[-1].weight)
    nn.init.normal_(network.recall[1].mix[-1].weight)
    image, clicks, previous = (part.to(memory_format=torch.channels_last) for part in asked())
    network.decode(image, clicks, previous, network.recollect(*shown())).logits.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == name.startswith("recall")
    assert all(bool(p.grad.abs().sum() > 0) for n, p in network.named_parameters() if n.startswith("recall") and "nothing" not in n)


def test_a_network_that_reads_none_says_so():
    with pytest.raises(ValueError, match="expected one with recall"):
        build("unet", PLAIN).recollect(*shown())


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99), st.sampled_from([(2,), (3,), (2, 3)]))
def test_what_an_image_looks_like_does_not_depend_on_where_things_are(seed, axes):
    """A network whose kernels are mirror images of themselves sees the same in a mirror."""
    network, (image, clicks, _) = reader(), asked(seed=seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # kernels that are mirror images of themselves
            module.weight.data = (module.weight.data + module.weight.data.flip(2)) / 2
            module.weight.data = (module.weight.data + module.weight.data.flip(3)) / 2
    with torch.no_grad():
        assert torch.allclose(network.appearance(image, clicks), network.appearance(image.flip(axes), clicks.flip(axes)), atol=1e-3)


def test_what_an_image_looks_like_is_the_mean_and_the_spread_of_every_channel():
    network, (image, clicks, _) = reader(), asked(batch=3)
    with torch.no_grad():
        found = network.appearance(image, clicks)
        features = network.levels(torch.cat([image, clicks, torch.zeros_like(image[:, :1])], 1), network._beside(image, clicks, ()), 2)[1]
        assert torch.allclose(network.appearance(image[1:2], clicks[1:2]), found[1:2], atol=1e-4)
    mean, spread = features.flatten(2).mean(2), features.flatten(2).std(2)
    assert torch.allclose(found, torch.cat([mean / (spread + 1e-3), (spread + 1e-3).log()], 1), atol=1e-4)
    assert bool(torch.isfinite(network.appearance(torch.zeros_like(image), torch.zeros_like(clicks))).all())


# --- a session's model ------------------------------------------------------------------------------------------------------------------


def segmenter_of(network: nn.Module) -> NetworkSegmenter:
    return NetworkSegmenter(LoadedWeights(network, "unet", {}, "0" * 12), "cpu", ZoomConfig(size=64, first_size=64, late_size=64))


@pytest.fixture
def segmenter() -> NetworkSegmenter:
    return segmenter_of(reader())


def small(name: str = "recall", **changes: object) -> Adaptation:
    return replace(POLICIES[name], **{"size": 64, "plausible": 0.0, **changes})


def disk(row: float = MIDDLE[0], col: float = MIDDLE[1], radius: float = 14) -> np.ndarray:
    rows, cols = np.indices(SHAPE)
    return np.hypot(rows - row, cols - col) <= radius


def picture(mask: np.ndarray, seed: int = 0) -> ImageSlice:
    return ImageSlice((np.random.default_rng(seed).integers(0, 60, (1, *SHAPE)) + 120 * mask).astype(np.uint8))


def lesson(row: float = MIDDLE[0], seed: int = 0) -> Lesson:
    mask = disk(row)
    return Lesson(picture(mask, seed), (Click((int(row), MIDDLE[1])),), mask, "case")


def answer(segmenter: NetworkSegmenter) -> np.ndarray:
    return segmenter.predict(picture(disk(), 9), Prompt((Click(MIDDLE),))).logits


def test_an_accepted_object_is_shown_and_no_weight_changes(segmenter):
    untaught = answer(segmenter)
    before = {k: v.clone() for k, v in segmenter.network.named_parameters()}
    report = small(full_doubt=0.0).on_accept(segmenter, lesson())
    assert report.accepted
    assert segmenter.snapshot().examples > 0
    assert all(torch.equal(before[k], v) for k, v in segmenter.network.named_parameters())
    assert not np.array_equal(answer(segmenter), untaught)


def test_forgetting_clears_the_examples(segmenter):
    session = Session(Image(picture(disk()).data), segmenter, small())
    untaught = answer(segmenter)
    session.add(Click(MIDDLE))
    assert not session.taught
    session.accept()
    assert (session.taught, len(segmenter.snapshot().memory)) == (True, 1)
    session.forget()
    assert (session.taught, segmenter.snapshot().memory) == (False, ())
    assert np.array_equal(answer(segmenter), untaught)
    with pytest.raises(SessionError, match="nothing to forget"):
        session.forget()


def test_every_state_can_be_had_back_bit_for_bit(segmenter):
    states = [(segmenter.snapshot(), answer(segmenter))]
    for number in range(3):
        small(full_doubt=0.0).on_accept(segmenter, lesson(30 + 3 * number, number))
        states.append((segmenter.snapshot(), answer(segmenter)))
    for snapshot, said in reversed(states):
        segmenter.restore(snapshot)
        assert np.array_equal(answer(segmenter), said)


@pytest.fixture
def comparing(segmenter) -> NetworkSegmenter:
    """A segmenter to which nothing is familiar."""
    segmenter.zoom = replace(segmenter.zoom, familiar=-1.0)
    return segmenter


def clicked(segmenter: NetworkSegmenter, *clicks: Click, familiar: float = -1.0) -> list[Prediction]:
    """What is said after each click, where so much may differ from the examples."""
    segmenter.zoom, said = replace(segmenter.zoom, familiar=familiar), []
    for count in range(1, len(clicks) + 1):
        said.append(segmenter.predict(picture(disk(), 9), Prompt(clicks[:count], said[-1] if said else None)))
    return said


def taught(segmenter: NetworkSegmenter, number: int) -> NetworkSegmenter:
    for each in range(number):
        small(full_doubt=0.0).on_accept(segmenter, lesson(24 + each, each))
    return segmenter


def test_where_nothing_is_like_the_examples_the_untaught_model_answers(comparing):
    """Bit for bit, at every click; with its usual sizes, too, and at other scales."""
    clicks = (Click(MIDDLE), Click((35, 70), positive=False), Click((30, 44)))
    untaught = clicked(comparing, *clicks)
    strange, alike = (clicked(taught(comparing, 3), *clicks, familiar=familiar) for familiar in (-1.0, math.inf))
    for at_first, other, like in zip(untaught, strange, alike, strict=True):
        assert (other.familiar, like.familiar) == (False, True)
        assert np.array_equal(other.logits, at_first.logits)
        assert len(other.candidates) == len(at_first.candidates)
        assert all(np.array_equal(a.logits, b.logits) for a, b in zip(other.candidates, at_first.candidates, strict=True))
        assert not any(one.familiar for one in other.candidates)
        assert not np.array_equal(like.logits, at_first.logits)


def test_a_picture_of_the_examples_is_more_familiar_than_noise(comparing):
    taught(comparing, 3)
    noise = ImageSlice(np.random.default_rng(5).integers(0, 255, (1, *SHAPE)).astype(np.uint8))
    seen, strange = [(lesson(24, 0).image_slice, Prompt((Click((24, MIDDLE[1])),))), (noise, Prompt((Click(MIDDLE),)))]

    def familiar(asked: tuple[ImageSlice, Prompt], hundredths: int) -> bool:
        comparing.zoom = replace(comparing.zoom, familiar=hundredths / 100)
        return comparing.predict(*asked).familiar

    far = [bisect_left(range(2000), True, key=partial(familiar, asked)) for asked in (seen, strange)]
    assert 0 < far[0] < far[1] < 2000


def test_few_examples_are_never_strange(comparing):
    assert clicked(taught(comparing, 2), Click(MIDDLE))[0].familiar
    assert not clicked(taught(comparing, 1), Click(MIDDLE))[0].familiar


def test_a_mask_that_was_given_is_corrected_with_the_examples(comparing):
    """There is no first look, so nobody asks."""
    prompt = Prompt((Click((30, 44)),), replace(Prediction.from_mask(disk(radius=12)), given=True))
    taught(comparing, 3)
    said = comparing.predict(picture(disk(), 9), prompt)
    comparing.zoom = replace(comparing.zoom, familiar=math.inf)
    assert said.familiar
    assert np.array_equal(said.logits, comparing.predict(picture(disk(), 9), prompt).logits)


def test_a_policy_that_shows_nothing_answers_as_if_nothing_were_remembered(segmenter):
    small("pi", post_rate=0.0, anchor=0.0, gate_margin=float("inf"), full_doubt=0.0).on_accept(segmenter, lesson())
    assert segmenter.snapshot().memory
    assert segmenter.snapshot().examples == 0
    assert segmenter.recollected() == ()


def test_a_network_that_reads_none_is_taught_as_by_post_interaction():
    """Bit for bit."""
    torch.manual_seed(0)
    weights = build("unet", PLAIN).state_dict()
    known = []
    for name in ("recall", "pi"):
        network = build("unet", PLAIN).eval()
        network.load_state_dict(weights)
        segmenter = segmenter_of(network)
        small(name).on_accept(segmenter, lesson())
        known.append(segmenter.snapshot())
        assert segmenter.recollected() == ()
    assert all(torch.equal(value, known[1].weights[name]) for name, value in known[0].weights.items())
    assert not all(torch.equal(value, weights[name]) for name, value in known[0].weights.items())


def test_what_was_made_of_examples_is_kept_until_they_or_the_weights_change(segmenter):
    small(full_doubt=0.0).on_accept(segmenter, lesson())
    first = segmenter.recollected()
    assert segmenter.recollected() is first
    small(full_doubt=0.0).on_accept(segmenter, lesson(30, 1))
    second = segmenter.recollected()
    assert second is not first
    assert second[0].keys.shape[2] == 2 * first[0].keys.shape[2]
    known = segmenter.snapshot()
    segmenter.restore(replace(known, weights=type(known.weights)({k: v * 1.01 for k, v in known.weights.items()})))
    assert segmenter.recollected() is not second


def worth(gained: float) -> Iterator[list[float]]:
    """IoUs of replays: with what was learnt, then without."""
    while True:
        yield [0.5 + gained]
        yield [0.5]


def test_examples_that_do_harm_are_hidden_and_shown_again_when_they_would_help(segmenter, monkeypatch):
    policy = small()
    policy.on_accept(segmenter, lesson())
    assert segmenter.snapshot().examples == policy.examples  # there was none to judge by
    for gained, expected in ((-0.2, 0), (-0.2, 0), (0.6, policy.examples)):
        answers = worth(gained)
        monkeypatch.setattr(_doubt, "replayed", lambda *_, answers=answers: next(answers))
        monkeypatch.setattr("napari_apprentice.adaptation.replayed", lambda *_, answers=answers: next(answers))
        report = policy.on_accept(segmenter, lesson())
        assert segmenter.snapshot().examples == expected
        assert ("out of view" in report.message) == (expected == 0)
    assert len(segmenter.snapshot().memory) == 4


def test_slices_of_the_object_that_was_accepted_last_do_not_hide_examples(segmenter, monkeypatch):
    policy = small()
    policy.on_accept(segmenter, replace(lesson(), label=3))
    monkeypatch.setattr(_doubt, "replayed", lambda *_: [0.5])
    monkeypatch.setattr("napari_apprentice.adaptation.replayed", lambda *_: [0.1])
    policy.on_accept(segmenter, replace(lesson(), label=3))
    assert segmenter.snapshot().examples == policy.examples
    for other in (replace(lesson(), label=4), replace(lesson(), label=4)):  # once they are hidden, every slice is judged
        policy.on_accept(segmenter, other)
        assert segmenter.snapshot().examples == 0
    segmenter.restore(replace(segmenter.snapshot(), examples=policy.examples, worth=(0.0, 0.0)))
    policy.on_accept(segmenter, replace(lesson(), label=4, case="another image"))
    assert segmenter.snapshot().examples == 0


def test_which_slices_are_of_one_object_is_kept_on_disk_and_names_nobody(segmenter, tmp_path):
    store = KnowledgeStore(segmenter.base, "0" * 12)
    for label in (3, 3, 4, 0):
        small(full_doubt=0.0).on_accept(segmenter, replace(lesson(), label=label, case="Jane Doe"))
    store.save(segmenter.snapshot(), tmp_path / "known")
    first, second, third, unknown = (one.of for one in store.load(tmp_path / "known").memory)
    assert first == second != third
    assert unknown == ""
    assert b"Jane" not in (tmp_path / "known").read_bytes()


def test_hidden_examples_are_judged_as_if_they_were_shown(segmenter):
    small().on_accept(segmenter, lesson())
    segmenter.restore(replace(segmenter.snapshot(), examples=0))
    assert segmenter.recollected() == ()
    assert segmenter.recollected(8) != ()


# --- classes ----------------------------------------------------------------------------------------------------------------------------

CUP, DISC = kind_of("cup"), kind_of("optic disc")


def remembered(*kinds: str) -> tuple[Remembered, ...]:
    return tuple(Remembered(torch.zeros(1, 3, 2, 2), torch.ones(1, 1, 2, 2).bool(), ((),), kind=kind) for kind in kinds)


some_kinds = st.lists(st.sampled_from(("", *"abcdef")), max_size=30)


@given(st.integers(0, 30), st.integers(1, 9))
def test_where_nobody_names_classes_the_newest_objects_are_kept_and_shown(number, most):
    memory = remembered(*[""] * number)
    assert kept(memory, most) == memory[-most:]
    assert Knowledge(Tensors(), memory=memory).like("", most) == memory[-most:]


@given(some_kinds, st.sampled_from("abcdefg"), st.integers(0, 9))
def test_examples_are_the_newest_of_the_same_class_and_of_others_while_these_are_few(kinds, kind, most):
    memory = remembered(*kinds)
    like = Knowledge(Tensors(), memory=memory).like(kind, most)
    own = [one for one in memory if one.kind == kind]
    assert len(like) == min(most, len(memory) if len(own) < 3 else len(own))
    assert [one for one in memory if one in like] == list(like)  # oldest first
    assert [one for one in like if one.kind == kind] == (own[-most:] if most else [])
    others = [one for one in memory if one.kind != kind]
    shown = [one for one in like if one.kind != kind]
    assert shown == others[len(others) - len(shown) :]


@given(some_kinds, st.integers(1, 9))
def test_no_class_pushes_out_another(kinds, most):
    """What stays is found one after the other as well as all at once, and the newest objects are always among it."""
    memory = remembered(*kinds)
    stays = kept(memory, most)
    assert stays[-most:] == memory[-most:]
    assert [one for one in memory if one in stays] == list(stays)
    last = list(dict.fromkeys(reversed(kinds)))
    for place, kind in enumerate(last):
        newest = [one for one in memory if one.kind == kind][-most:]
        assert [one for one in stays if one.kind == kind] == (newest if place < 4 else [one for one in newest if one in memory[-most:]])
    one_by_one = ()
    for one in memory:
        one_by_one = kept((*one_by_one, one), most)
    assert set(map(id, one_by_one)) <= set(map(id, stays))
    assert one_by_one[-most:] == memory[-most:]


def test_names_are_told_apart_as_people_do():
    assert kind_of("Cup ") == kind_of("cup") == CUP != DISC
    assert kind_of("  ") == kind_of("") == ""


def accepted(segmenter: NetworkSegmenter, *kinds: str, **changes: object) -> None:
    """A disk in another place of another picture for each."""
    for number, kind in enumerate(kinds):
        small(**{"full_doubt": 0.0, **changes}).on_accept(segmenter, replace(lesson(24 + number, number), kind=kind))


def of_class(segmenter: NetworkSegmenter, kind: str) -> np.ndarray:
    return segmenter.predict(picture(disk(), 9), Prompt((Click(MIDDLE),), kind=kind)).logits


def test_an_object_with_a_class_is_shown_examples_of_that_class_alone(segmenter):
    accepted(segmenter, *["cup", "optic disc"] * 3)
    known, said = segmenter.snapshot(), {kind: of_class(segmenter, kind) for kind in ("cup", "optic disc", "")}
    assert [one.kind for one in known.memory] == [CUP, DISC] * 3
    for kind, answers in said.items():
        alone = tuple(one for one in known.memory if one.kind == kind_of(kind) or not kind)
        segmenter.restore(replace(known, memory=tuple(replace(one, kind="") for one in alone)))
        assert np.array_equal(answer(segmenter), answers)
    segmenter.restore(known)
    assert np.array_equal(of_class(segmenter, "vessel"), said[""])  # nothing is known of it
    assert len({answers.tobytes() for answers in said.values()}) == 3


def test_examples_survive_many_objects_of_another_class(segmenter):
    accepted(segmenter, *["cup"] * 3)
    said = of_class(segmenter, "cup")
    accepted(segmenter, *["optic disc"] * 10)
    assert np.array_equal(of_class(segmenter, "cup"), said)
    assert [one.kind for one in segmenter.snapshot().memory] == [*[CUP] * 3, *[DISC] * 8]


def test_classes_that_take_turns_are_not_looked_at_anew(segmenter):
    accepted(segmenter, *["cup", "optic disc"] * 3)
    cup, disc = segmenter.recollected(kind=CUP), segmenter.recollected(kind=DISC)
    assert segmenter.recollected(kind=CUP) is cup
    assert segmenter.recollected(kind=DISC) is disc
    accepted(segmenter, "cup")
    assert segmenter.recollected(kind=DISC) is disc
    assert 3 * segmenter.recollected(kind=CUP)[0].keys.shape[2] == 4 * cup[0].keys.shape[2]


def test_weights_learn_the_same_whatever_the_classes(segmenter):
    """Rehearsal and gate go by the newest objects, bit for bit, and cost the same."""
    begun, found = segmenter.snapshot(), []
    for kinds in ([""] * 6, ["a", "b", "c", "d", "e", "a"]):
        segmenter.restore(begun)
        accepted(segmenter, *kinds, name="pi", remembered=2, post_rounds=1, full_doubt=0.1, post_rate=1e-3)
        found.append(segmenter.snapshot())
    assert (len(found[0].memory), len(found[1].memory)) == (2, 4)
    assert all(torch.equal(value, found[1].weights[key]) for key, value in found[0].weights.items())
    assert found[0].marks == found[1].marks
    assert [one.best for one in found[0].memory] == [one.best for one in found[1].memory[-2:]]


def test_a_class_with_few_examples_speaks_neither_for_nor_against_them(segmenter, monkeypatch):
    accepted(segmenter, *["cup"] * 3)
    for known in (segmenter.snapshot(), replace(segmenter.snapshot(), examples=0, worth=(-0.3, 1.0))):
        segmenter.restore(known)
        small().on_accept(segmenter, replace(lesson(30, 5), kind="optic disc"))
        assert (segmenter.snapshot().examples, segmenter.snapshot().worth) == (known.examples, known.worth)
    monkeypatch.setattr(segmenter, "recollected", lambda *asked, **named: asked_for.append((*asked, *named.values())) or ())
    asked_for: list[tuple[object, ...]] = []
    small().on_accept(segmenter, replace(lesson(31, 6), kind="cup"))
    assert {kind for *_, kind in asked_for} == {CUP}
    assert segmenter.snapshot().worth != known.worth


def test_classes_are_kept_on_disk_and_not_named_there(segmenter, tmp_path):
    store = KnowledgeStore(segmenter.base, "0" * 12)
    accepted(segmenter, "optic disc", "", "cup")
    store.save(segmenter.snapshot(), tmp_path / "known")
    assert [one.kind for one in store.load(tmp_path / "known").memory] == [DISC, "", CUP]
    content = (tmp_path / "known").read_bytes()
    assert b"optic disc" not in content
    assert b"cup" not in content


class Listening(FakePolicy):
    """Keeps what it is told of classes."""

    def on_click(self, segmenter, image_slice, prompt):
        self.heard = [*getattr(self, "heard", []), prompt.kind]
        return super().on_click(segmenter, image_slice, prompt)

    def learning(self, segmenter, lesson):
        self.heard.append(f"learnt: {lesson.kind}")
        return (yield from super().learning(segmenter, lesson))


def test_the_model_is_told_what_the_user_calls_the_open_object():
    policy = Listening()
    session = Session(Image(picture(disk()).data), DiskSegmenter(3.0), policy)
    session.add(Click((20, 20)))
    session.name(session.label, "cup")
    session.add(Click((21, 20)))
    session.undo()
    session.undo()
    session.add(Click((21, 20)))
    session.name(session.label, "optic disc")
    session.name(9, "cup")  # of another object
    session.add(Click((22, 20)))
    session.accept()
    session.add(Click((50, 50)))
    assert policy.heard == ["", "cup", "", "optic disc", "learnt: optic disc", ""]


def test_the_untaught_model_is_asked_about_the_same_class(segmenter):
    class Attentive(DiskSegmenter):
        def predict(self, image_slice, prompt):
            heard.append(prompt.kind)
            return super().predict(image_slice, prompt)

    heard: list[str] = []
    session = Session(Image(picture(disk()).data), Attentive(3.0), FakePolicy())
    session.name(session.label, "cup")
    session.add(Click((20, 20)))
    session.peek()
    session.accept()
    assert len(heard) == 3  # the last one to measure what teaching brought
    assert set(heard) == {"cup"}


# --- on disk ----------------------------------------------------------------------------------------------------------------------------


def test_how_many_are_shown_is_kept_on_disk(segmenter, tmp_path):
    store = KnowledgeStore(segmenter.base, "0" * 12)
    small(full_doubt=0.0).on_accept(segmenter, lesson())
    said = answer(segmenter)
    store.save(segmenter.snapshot(), tmp_path / "known")
    segmenter.restore(segmenter.base)
    segmenter.restore(store.load(tmp_path / "known"))
    assert np.array_equal(answer(segmenter), said)


def test_what_lies_in_pictures_is_not_written_without_leave_and_not_silently_left_out(segmenter, tmp_path):
    store = KnowledgeStore(segmenter.base, "0" * 12)
    small(full_doubt=0.0).on_accept(segmenter, lesson())
    with pytest.raises(WriteError, match="would hold none of it without the small views of 1 accepted objects"):
        store.save(segmenter.snapshot(), tmp_path / "known", pictures=False)
    assert not (tmp_path / "known").exists()
    store.save(replace(segmenter.snapshot(), examples=0), tmp_path / "known", pictures=False)
    assert store.load(tmp_path / "known").memory == ()


def test_a_negative_number_of_examples_is_damage(segmenter, tmp_path):
    store = KnowledgeStore(segmenter.base, "0" * 12)
    store.save(replace(segmenter.base, examples=-1), tmp_path / "known")
    with pytest.raises(WeightsError, match="damaged"):
        store.load(tmp_path / "known")


# --- training ---------------------------------------------------------------------------------------------------------------------------

TINY = """
steps = 2
sizes = [[64, 2]]
synthetic = 1.0
warmup = 1
workers = 0
report_every = 2
importance = 2
examples = [0.0, 0.5, 0.5]
config = { widths = [8, 16, 16, 16, 16], groups = 4, likeness = 2, recall = 4 }
"""


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY, "utf-8")
    return path


def test_a_stage_can_train_one_part_alone(recipe, tmp_path):
    first = load_weights(train(recipe, None, tmp_path / "tiny.safetensors", device="cpu")).network.state_dict()
    stage = tmp_path / "next.toml"
    stage.write_text('only = "recall"\nstart_from = "tiny.toml"\n' + TINY, "utf-8")
    second = load_weights(train(stage, None, tmp_path / "next.safetensors", device="cpu")).network.state_dict()
    changed = {name for name, value in first.items() if not torch.equal(value, second[name])}
    assert changed
    assert all(name.startswith("recall") for name in changed)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("examples = [0.0, 0.5, 0.5]", "examples = []", "not all of them 0"),
        ("examples = [0.0, 0.5, 0.5]", "examples = [1.0, -1.0]", "not all of them 0"),
        (", recall = 4", "", "to a network that reads none"),
        ("examples = [0.0, 0.5, 0.5]", 'examples = [0.5, 0.5]\nonly = "recall"', "no chance of 0"),
    ],
)
def test_examples_that_cannot_be_are_refused(recipe, old, new, said):
    recipe.write_text(TINY.replace(old, new), "utf-8")
    with pytest.raises(RecipeError, match=said):
        read_recipe(recipe)


def test_a_part_that_the_network_does_not_have_is_refused(recipe, tmp_path):
    recipe.write_text('only = "recal_"\n' + TINY, "utf-8")
    with pytest.raises(RecipeError, match="has no such part"):
        train(recipe, None, tmp_path / "out.safetensors", device="cpu")


# --- samples ----------------------------------------------------------------------------------------------------------------------------


def two_looks(number: int) -> Scene:
    """A bright disk (1) and a dark one (2) on noise, the same kinds in every scene."""
    rows, cols = np.indices((100, 100))
    labels = np.zeros((100, 100), np.int32)
    labels[np.hypot(rows - 30, cols - 30 - number) < 15] = 1
    labels[np.hypot(rows - 70, cols - 60 + number) < 15] = 2
    noise = np.random.default_rng(number).integers(100, 130, (3, 100, 100))
    return Scene((noise + 100 * (labels == 1) - 90 * (labels == 2)).astype(np.uint8), (labels,), (1.0,), ("disk {}",))


def stream(examples: tuple[float, ...], **changes: object) -> Iterator[Drawn]:
    scenes = {"disks": [two_looks(n) for n in range(4)]}
    return iter(SampleStream(scenes, {"disks": 1.0}, 0.0, ((48, 6),), 5, examples=examples, **changes))


def test_without_examples_there_is_room_for_none():
    drawn = next(stream((1.0,)))
    assert drawn.example_image.shape == (6, 0, 3, 48, 48)
    assert drawn.example_target.shape == (6, 0, 1, 48, 48)


def test_examples_are_drawn_as_often_as_was_asked_and_equally_each_time():
    one, other = stream((0.5, 0.0, 0.5)), stream((0.5, 0.0, 0.5))
    counts = []
    for _ in range(12):
        first, second = next(one), next(other)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        counts.append(first.example_image.shape[1])
        assert first.example_image.shape[:2] == first.example_target.shape[:2]
        assert bool((first.example_target.flatten(2).sum(2) > 0).all())
    assert set(counts) == {0, 2}


def test_examples_show_the_same_kind_as_a_rule():
    """An object is brighter than what is around it, or darker; so are most of its examples, and by far not all without regard to kinds."""

    def brighter(image: Tensor, target: Tensor) -> Tensor:
        grey, inside = image.mean(-3), target[..., 0, :, :] > 0.5
        return (grey * inside).sum((-2, -1)) / inside.sum((-2, -1)) > (grey * ~inside).sum((-2, -1)) / (~inside).sum((-2, -1)).clamp_min(1)

    same = []
    for _, drawn in zip(range(20), stream((0.0, 1.0)), strict=False):
        same.append((brighter(drawn.image, drawn.target)[:, None] == brighter(drawn.example_image, drawn.example_target)).float())
    assert float(torch.cat(same).mean()) > 0.75


def test_the_type_of_what_is_recollected():
    known = reader().recollect(*shown())
    assert all(isinstance(part, Recalled) for part in known)
    for part, places in zip(known, (3 * 8 * 8, 3 * 4 * 4), strict=True):
        assert part.keys.shape == part.values.shape == (2, Recall.HEADS, places, 4)
