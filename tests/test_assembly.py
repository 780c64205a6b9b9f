"""Both wings together, with a tiny network: sessions that learn, undo bit for bit, and survive being killed."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import napari_apprentice
from napari_apprentice import adaptation, assembly
from napari_apprentice.assembly import DEFAULT_POLICY, POLICIES, load_segmenter, open_session, resume_session
from napari_apprentice.files import read, save_image
from napari_apprentice.networks import build
from napari_apprentice.segmenter import NetworkSegmenter, ZoomConfig
from napari_apprentice.session import Session
from napari_apprentice.types import (
    ApprenticeError,
    Click,
    ClickError,
    DeviceError,
    Image,
    ImageError,
    InputError,
    LabelsError,
    Plane,
    ReadError,
    SessionError,
    WeightsError,
    WriteError,
)
from napari_apprentice.weights import DEFAULT_WEIGHTS, save_weights

SHAPE = (4, 30, 36)


@pytest.fixture(scope="module", autouse=True)
def _small_and_quick():
    """One thread, small windows, and rates at which a few clicks move the weights visibly."""
    torch.set_num_threads(1)
    small = {name: replace(policy, size=32, post_rounds=1, mid_rate=1e-3, post_rate=1e-3) for name, policy in adaptation.POLICIES.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "NetworkSegmenter", partial(NetworkSegmenter, zoom=ZoomConfig(size=32, first_size=32)))
        patch.setattr(adaptation, "POLICIES", small)
        yield


def tiny_weights(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    network = build("unet", {"widths": [8, 16, 16, 16, 16], "groups": 4})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return save_weights(network, path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return tiny_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


def volume() -> Image:
    rows, cols = np.indices(SHAPE[1:])
    disk = (rows - 15) ** 2 + (cols - 18) ** 2 <= 49
    data = np.random.default_rng(0).integers(0, 80, SHAPE) + 100 * disk
    return Image(data[None].astype(np.uint8), name="volume")


def picture(channels: int = 1) -> Image:
    return Image(np.random.default_rng(1).integers(0, 255, (channels, 40, 33), dtype=np.uint8), name="picture")


def knowledge(session: Session) -> dict[str, torch.Tensor]:
    """Copies of all that was learnt, and of the weights that the network really has."""
    segmenter = session._segmenter
    known = segmenter.snapshot()
    found = {f"network/{k}": v.detach().clone() for k, v in segmenter.network.named_parameters()}
    for part in ("weights", "first", "second"):
        found |= {f"{part}/{k}": v.clone() for k, v in getattr(known, part).items()}
    for i, item in enumerate(known.memory):
        found |= {f"memory/{i}/images": item.images.clone(), f"memory/{i}/targets": item.targets.clone()}
    found["steps"] = torch.tensor([known.steps])
    found["extent_log"] = torch.tensor(known.extent_log, dtype=torch.float64)
    return found


def bitwise_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], v) for k, v in second.items())


def one_sentence(error: BaseException) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) > 20


# --- opening ----------------------------------------------------------------------------------------------------------------------------


def test_names_of_the_package_are_those_of_assembly():
    assert napari_apprentice.open_session is open_session
    assert napari_apprentice.resume_session is resume_session
    assert POLICIES == ("none", "ia", "sa", "ia+sa", "mi", "pi", "mi+pi", "ia+pi", "recall", "practice")
    assert DEFAULT_POLICY in POLICIES


@pytest.mark.parametrize(
    ("image", "voxel"),
    [
        (picture().data[0], (20, 16)),
        (picture().data[0].astype(np.float64), (20, 16)),
        (volume().data[0], (2, 15, 18)),
        (picture(), (20, 16)),
        (picture(channels=3), (20, 16)),
        (volume(), (2, 15, 18)),
    ],
    ids=["grey array", "float array", "stack", "grey image", "colour image", "volume"],
)
def test_a_click_on_an_array_or_an_image_paints_labels(weights, image, voxel):
    session = open_session(image, weights=weights, device="cpu")
    change = session.add(Click(voxel))
    assert session.labels.shape == (image.shape if isinstance(image, np.ndarray) or len(voxel) == 3 else image.data.shape[1:])
    assert session.labels[voxel] == 1
    assert change.region is not None


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_across_every_axis_can_be_clicked(weights, axis):
    session = open_session(volume(), weights=weights, policy="none", device="cpu")
    session.add(Click((2, 15, 18), axis=axis))
    where = np.nonzero(session.labels)
    assert set(where[axis].tolist()) == {(2, 15, 18)[axis]}


def taught_by(policy: str) -> set[str]:
    """The parts of a policy; networks that read no examples, as the one here, are taught by ``pi`` in place of ``recall``."""
    return set(policy.replace("recall", "pi").replace("practice", "pi").split("+"))


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_learns_when_its_name_says_so(weights, policy):
    session = open_session(volume(), weights=weights, policy=policy, device="cpu")
    start = knowledge(session)
    for voxel, positive in (((2, 15, 18), True), ((2, 2, 2), False)):
        session.add(Click(voxel, positive))
    after_clicks = knowledge(session)
    session.accept()
    parts = taught_by(policy)
    assert bitwise_equal(start, after_clicks) == parts.isdisjoint({"mi", "ia"})
    assert bitwise_equal(after_clicks, knowledge(session)) == parts.isdisjoint({"pi", "sa", "ia"})
    assert bitwise_equal(start, knowledge(session)) == (policy in ("none", "ia"))  # ia alone gives back what it learnt from the object


def test_given_labels_are_kept_and_protected(weights):
    labels = np.zeros(SHAPE, np.int64)
    labels[2, 10:20, 10:25] = 7
    session = open_session(volume(), weights=weights, labels=labels, device="cpu")
    assert session.label == 8
    for voxel in ((2, 15, 18), (2, 3, 3), (1, 3, 3)):
        session.add(Click(voxel))
    session.accept()
    assert np.array_equal(session.labels == 7, labels == 7)


# --- what cannot be opened --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "error", "says"),
    [
        (np.zeros(5), ImageError, "shape"),
        (np.zeros((2, 2, 2, 2, 2)), ImageError, "shape"),
        (np.zeros((0, 5)), ImageError, "empty"),
        (np.full((20, 20), 3), ImageError, "constant"),
        (np.full((20, 20), np.nan), ImageError, "NaN"),
        (np.where(np.eye(20) > 0, np.inf, np.nan), ImageError, "infinite"),
        (np.array([["a", "b"]]), ImageError, "values"),
        (np.ones((4, 4), complex), ImageError, "complex"),
        ("scan.nii.gz", ImageError, "'scan.nii.gz' arrived; expected an image, as `read` makes it of a file"),
        (None, ImageError, "None arrived"),
        ([[1, 2], [3, 4]], ImageError, "arrived; expected an image"),
    ],
    ids=["1D", "5D", "empty", "constant", "NaN", "infinite", "text", "complex", "path", "None", "list"],
)
def test_what_is_no_image_is_refused(weights, image, error, says, tmp_path):
    with pytest.raises(error, match=says) as caught:
        open_session(image, weights=weights, device="cpu", folder=tmp_path / "session")
    one_sentence(caught.value)
    assert not (tmp_path / "session").exists()


def test_other_wishes_that_cannot_be_met_are_refused_and_leave_no_journal(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "damaged.safetensors").write_bytes(weights.read_bytes()[:5000])
    wishes = [
        ({"policy": "tsca"}, InputError),
        ({"device": "cuda"}, DeviceError),
        ({"device": "abacus"}, DeviceError),
        ({"weights": tmp_path / "none.safetensors"}, WeightsError),
        ({"weights": tmp_path / "damaged.safetensors"}, WeightsError),
        ({"labels": np.zeros((4, 4), int)}, LabelsError),
        ({"labels": np.zeros(SHAPE, float)}, LabelsError),
        ({"labels": np.full(SHAPE, -1)}, LabelsError),
        ({"labels": "labels.nii.gz"}, LabelsError),
        ({"cohort": 3}, InputError),
    ]
    folder = tmp_path / "session"
    for wish, error in wishes:
        with pytest.raises(error) as caught:
            open_session(volume(), **({"weights": weights, "device": "cpu", "folder": folder} | wish))
        one_sentence(caught.value)
    session = open_session(volume(), weights=weights, device="cpu", folder=folder)  # what was refused does not stand in the way
    session.close()


def test_a_session_that_cannot_begin_locks_nothing(weights, tmp_path, monkeypatch):
    def full(*_):
        raise WriteError("the journal cannot be written; expected free space")

    with monkeypatch.context() as broken:
        broken.setattr(assembly.Journal, "append", full)
        with pytest.raises(WriteError) as held:
            open_session(picture(), weights=weights, device="cpu", folder=tmp_path / "session")
    open_session(picture(), weights=weights, device="cpu", folder=tmp_path / "session").close()
    assert held.tb is not None


def test_a_folder_that_cannot_be_written_and_one_that_is_taken_are_refused(weights, tmp_path):
    (tmp_path / "file").touch()
    open_session(picture(), weights=weights, device="cpu", folder=tmp_path / "taken").close()
    for folder in (tmp_path / "file", tmp_path / "taken"):
        with pytest.raises(WriteError) as caught:
            open_session(picture(), weights=weights, device="cpu", folder=folder)
        one_sentence(caught.value)


def test_a_bad_slice_is_refused_when_it_is_clicked_and_the_session_stays(weights):
    data = volume().data.astype(np.float32)
    data[0, 1], data[0, 3] = np.nan, 5.0
    session = open_session(Image(data), weights=weights, device="cpu")
    session.add(Click((2, 15, 18)))
    labels, known = session.labels.copy(), knowledge(session)
    for click, error in (
        (Click((1, 15, 18)), ImageError),
        (Click((3, 15, 18)), ImageError),
        (Click((2, 30, 18)), ClickError),
        (Click((2, 15)), ClickError),
        (Click((2, 15, 18), axis=3), ClickError),
    ):
        with pytest.raises(error) as caught:
            session.add(click)
        one_sentence(caught.value)
        assert np.array_equal(session.labels, labels)
        assert bitwise_equal(knowledge(session), known)
    assert session.clicks == (Click((2, 15, 18)),)


def test_networks_are_found_by_name(weights):
    assert load_segmenter(weights, device="cpu").name == "unet"
    assert load_segmenter(weights, "unet", "cpu").name == "unet"
    with pytest.raises(WeightsError, match="'unet'; expected 'vnet'"):
        load_segmenter(weights, "vnet", "cpu")
    with pytest.raises(WeightsError, match="'vnet'"):
        load_segmenter(None, "vnet", "cpu")


@pytest.mark.skipif(not DEFAULT_WEIGHTS.exists(), reason="the shipped weights are not there (not trained yet)")
def test_the_shipped_weights_are_taken_by_default():
    assert load_segmenter(device="cpu").loaded.digest == load_segmenter(DEFAULT_WEIGHTS, "unet", "cpu").loaded.digest


# --- undo -------------------------------------------------------------------------------------------------------------------------------

clicks = st.builds(
    Click, st.tuples(st.integers(0, SHAPE[0] - 1), st.integers(0, SHAPE[1] - 1), st.integers(0, SHAPE[2] - 1)), st.booleans(), st.just(0)
)
deeds = st.lists(
    st.one_of(clicks, clicks, st.sampled_from(["accept", "accept without learning", "learn", "undo", "redo"])), min_size=1, max_size=8
)


def do(session: Session, deed: Click | str) -> None:
    """One deed, if there is anything to do."""
    if isinstance(deed, Click):
        session.add(deed)
    elif deed.startswith("accept") and session.clicks:
        session.accept(learn=deed == "accept")
    elif deed == "learn":
        session.learn()
    elif deed == "undo" and session.can_undo:
        session.undo()
    elif deed == "redo" and session.can_redo:
        session.redo()


def state(session: Session) -> tuple[object, ...]:
    return session.labels.astype(np.uint32).tobytes(), session.label, session.clicks, session.finished, len(session.pending)


@settings(max_examples=12)
@given(deeds)
def test_undo_to_the_start_and_redo_to_the_end_restore_labels_and_weights_bit_for_bit(weights, sequence):
    session = open_session(volume(), weights=weights, policy="mi+pi", device="cpu")
    start = state(session), knowledge(session)
    for deed in sequence:
        do(session, deed)
    while session.can_redo:
        session.redo()
    trail = [(state(session), knowledge(session))]
    while session.can_undo:
        session.undo()
        trail.append((state(session), knowledge(session)))
    assert trail[-1][0] == start[0]
    assert bitwise_equal(trail[-1][1], start[1])
    assert not session.labels.any()
    for expected_state, expected_knowledge in trail[-2::-1]:
        session.redo()
        assert state(session) == expected_state
        assert bitwise_equal(knowledge(session), expected_knowledge)
    assert not session.can_redo


def test_undo_survives_a_memory_of_nothing(weights):
    """What does not fit in memory waits on disk, and comes back bit for bit."""
    session = open_session(volume(), weights=weights, device="cpu")
    session._segmenter._shelf.budget_bytes = 0
    trail = [(state(session), knowledge(session))]
    for deed in (Click((2, 15, 18)), Click((2, 2, 2), False), "accept", Click((1, 15, 18)), Click((1, 20, 20)), "accept"):
        do(session, deed)
        trail.append((state(session), knowledge(session)))
    assert not bitwise_equal(trail[0][1], trail[-1][1])
    for expected_state, expected_knowledge in trail[-2::-1]:
        session.undo()
        assert state(session) == expected_state
        assert bitwise_equal(knowledge(session), expected_knowledge)
    for expected_state, expected_knowledge in trail[1:]:
        session.redo()
        assert state(session) == expected_state
        assert bitwise_equal(knowledge(session), expected_knowledge)


def test_the_same_work_in_two_sessions_gives_the_same_labels_and_weights(weights):
    ends = []
    for _ in range(2):
        session = open_session(volume(), weights=weights, device="cpu")
        for deed in (Click((2, 15, 18)), Click((2, 2, 2), False), "accept", Click((1, 15, 18)), Click((1, 20, 20))):
            do(session, deed)
        ends.append((state(session), knowledge(session)))
    assert ends[0][0] == ends[1][0]
    assert bitwise_equal(ends[0][1], ends[1][1])


# --- resume -----------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=6)
@given(deeds, st.booleans())
def test_a_killed_session_comes_back_bit_for_bit(weights, sequence, lose_checkpoints):
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(volume(), weights=weights, policy="mi+pi", device="cpu", folder=Path(folder) / "live")
        for deed in sequence:
            do(session, deed)
        left = Path(shutil.copytree(Path(folder) / "live", Path(folder) / "left"))  # as the disk is when the process is killed
        if lose_checkpoints:
            for path in left.glob("*.checkpoint"):
                path.unlink()
        again = resume_session(left, volume(), weights=weights, device="cpu")
        assert state(again) == state(session)
        assert bitwise_equal(knowledge(again), knowledge(session))
        assert again.can_redo == session.can_redo
        for deed in (Click((2, 15, 18)), Click((2, 16, 20)), "accept"):
            do(again, deed)
            do(session, deed)
        assert state(again) == state(session)
        assert bitwise_equal(knowledge(again), knowledge(session))
        while again.can_undo:  # as far back as the newest checkpoint
            for one in (again, session):
                one.undo()
            assert state(again) == state(session)
            assert bitwise_equal(knowledge(again), knowledge(session))
        again.close()
        session.close()


@pytest.fixture
def left(weights, tmp_path) -> Path:
    """The folder of a session that was left after a click and an object."""
    session = open_session(volume(), weights=weights, device="cpu", folder=tmp_path / "left")
    for deed in (Click((2, 15, 18)), Click((2, 2, 2), False), "accept", Click((1, 15, 18))):
        do(session, deed)
    session.close()
    return tmp_path / "left"


def test_what_was_learnt_lies_beside_the_journal_and_spares_learning_it_again(left, weights, monkeypatch):
    assert len(list(left.glob("*.checkpoint"))) == 1
    monkeypatch.setattr(adaptation.Adaptation, "on_accept", None)  # would raise if it were called
    again = resume_session(left, volume(), weights=weights, device="cpu")
    assert again.finished == (1,)
    assert len(again._segmenter.snapshot().memory) == 1
    again.close()


def test_another_image_and_no_image_are_refused(left, weights):
    other = Image(255 - volume().data)
    for image in (other, picture(), None):
        with pytest.raises(SessionError) as caught:
            resume_session(left, image, weights=weights, device="cpu")
        one_sentence(caught.value)


def test_a_path_for_an_image_is_refused(left, weights):
    with pytest.raises(ImageError, match=r"'scan.nii' arrived; expected the image of the session, as `read` makes it"):
        resume_session(left, "scan.nii", weights=weights, device="cpu")


def test_a_folder_without_a_session_is_refused(weights, tmp_path):
    with pytest.raises(ReadError) as caught:
        resume_session(tmp_path, volume(), weights=weights, device="cpu")
    one_sentence(caught.value)


def test_the_image_is_read_again_from_where_it_was(weights, tmp_path):
    image = read(save_image(tmp_path / "volume.nii.gz", volume()))
    session = open_session(image, weights=weights, device="cpu", folder=tmp_path / "session")
    session.add(Click((2, 15, 18)))
    session.close()
    again = resume_session(tmp_path / "session", weights=weights, device="cpu")
    assert np.array_equal(again.labels, session.labels)
    assert np.array_equal(again.image.affine, image.affine)
    again.close()
    (tmp_path / "volume.nii.gz").unlink()
    with pytest.raises(ApprenticeError) as caught:
        resume_session(tmp_path / "session", weights=weights, device="cpu")
    one_sentence(caught.value)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_resumed_session_learns_as_before(weights, tmp_path, policy):
    session = open_session(volume(), weights=weights, policy=policy, device="cpu", folder=tmp_path / policy)
    session.add(Click((2, 15, 18)))
    session.close()
    again = resume_session(tmp_path / policy, volume(), weights=weights, device="cpu")
    start = knowledge(again)
    again.add(Click((2, 2, 2), False))
    clicked = knowledge(again)
    parts = taught_by(policy)
    assert bitwise_equal(start, clicked) == parts.isdisjoint({"mi", "ia"})
    again.accept()
    assert bitwise_equal(clicked, knowledge(again)) == parts.isdisjoint({"pi", "sa", "ia"})
    again.close()


@pytest.mark.parametrize("kept", [True, False], ids=["with checkpoints", "learnt again"])
def test_what_was_practised_is_there_after_a_resume_bit_for_bit(weights, tmp_path, kept):
    session = open_session(volume(), weights=weights, policy="practice", device="cpu", folder=tmp_path / "session")
    for index in range(2):
        session.add(Click((index, 15, 18)))
        assert session.practise(2) == 2 * index  # there is nothing to practise before the first lesson
        session.accept()
    assert session.versions.current.report.practised == 2
    known = session._segmenter.snapshot()
    assert known.practised is not None
    session.close()
    if not kept:
        for checkpoint in (tmp_path / "session").glob("*.checkpoint"):
            checkpoint.unlink()
    again = resume_session(tmp_path / "session", volume(), weights=weights, device="cpu")
    found = again._segmenter.snapshot()
    for part in ("weights", "first", "second", "practised"):
        assert bitwise_equal(dict(getattr(known, part)), dict(getattr(found, part))), part
    assert (found.lead, found.steps) == (known.lead, known.steps)
    again.close()


# --- versions, files and studies of the real network ---


def predicted(session: Session) -> np.ndarray:
    session.add(Click((3, 15, 18)))
    logits = session.predictions[Plane(0, 3)].logits.copy()
    session.undo()
    return logits


def taught_session(weights: Path, **options: object) -> Session:
    session = open_session(volume(), weights=weights, policy="mi+pi", device="cpu", **options)
    for index in range(2):
        session.add(Click((index, 15, 18)))
        session.add(Click((index, 3, 3), positive=False))
        session.accept()
    return session


def test_forgetting_and_going_back_restore_every_bit(weights):
    session = taught_session(weights)
    taught = knowledge(session)
    with_teaching, looked = predicted(session), {}
    for number in (0, 1, 2):
        session.go_back(number)
        looked[number] = knowledge(session)
        session.undo()
        assert bitwise_equal(knowledge(session), taught)
    session.forget()
    assert bitwise_equal(knowledge(session), knowledge(open_session(volume(), weights=weights, device="cpu")))
    session.undo()
    assert bitwise_equal(knowledge(session), taught)
    np.testing.assert_array_equal(predicted(session), with_teaching)
    session.go_back(1)
    assert bitwise_equal(knowledge(session), looked[1])
    assert session.compare(0, 2).distance > 0
    assert session.compare(2, 2).distance == 0
    assert 0 <= session.versions[2].report.remembered_after <= 1
    assert np.isnan(session.versions[1].report.remembered_after)


def test_peeking_is_what_a_new_session_says_and_leaves_no_trace(weights):
    session = taught_session(weights)
    clicks = (Click((3, 15, 18)), Click((3, 5, 5), positive=False))
    plain = open_session(volume(), weights=weights, policy="none", device="cpu")
    for click in clicks:
        session.add(click)
        plain.add(click)
    before = knowledge(session), state(session)
    np.testing.assert_array_equal(session.peek().logits, plain.predictions[Plane(0, 3)].logits)
    assert bitwise_equal(knowledge(session), before[0])
    assert state(session) == before[1]


def test_an_exported_version_predicts_the_same_without_pictures(weights, tmp_path):
    session = taught_session(weights)
    expected = predicted(session)
    path = session.export(2, tmp_path / "two.safetensors")
    whole = session.export(2, tmp_path / "whole.safetensors", pictures=True)
    with safe_open(path, framework="pt") as file:
        assert not [key for key in file.keys() if "memory" in key]  # noqa: SIM118 (not a mapping)
        assert file.metadata()["about/objects"] == "(2,)"
    assert whole.stat().st_size > path.stat().st_size
    for file in (path, whole):
        again = open_session(volume(), weights=weights, policy="mi+pi", device="cpu", knowledge=file)
        np.testing.assert_array_equal(predicted(again), expected)
    assert len(again._segmenter.snapshot().memory) == 2
    with pytest.raises(WeightsError, match="cannot be read"):
        open_session(volume(), weights=weights, device="cpu", knowledge=tmp_path / "none.safetensors")


def test_a_study_goes_on_in_the_next_session_and_can_be_exported(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("APPRENTICE_HOME", str(tmp_path / "home"))
    session = taught_session(weights, cohort="mri", folder=tmp_path / "work")
    expected = predicted(session)
    np.testing.assert_array_equal(predicted(open_session(volume(), weights=weights, device="cpu", cohort="mri")), expected)
    newest, older = session.versions[2].shared, session.versions[1].shared
    session.undo()
    assert open_session(volume(), weights=weights, device="cpu", cohort="mri").versions.current.shared == older
    session.redo()
    session.close()
    again = resume_session(tmp_path / "work", volume(), weights=weights, device="cpu")
    assert again.versions == session.versions
    again.go_back(1)
    again.go_back(2)
    assert open_session(volume(), weights=weights, device="cpu", cohort="mri").versions.current.shared == newest
    path = assembly.export_cohort("mri", tmp_path / "mri.safetensors", weights=weights)
    np.testing.assert_array_equal(predicted(open_session(volume(), weights=weights, device="cpu", knowledge=path)), expected)
    with pytest.raises(SessionError, match="has a model already"):
        open_session(volume(), weights=weights, device="cpu", knowledge=path, cohort="mri")
    with pytest.raises(WeightsError, match="is a folder; expected the file of a model"):
        open_session(volume(), weights=weights, device="cpu", knowledge=tmp_path)
    with pytest.raises(SessionError, match="'em' has no model"):
        assembly.export_cohort("em", tmp_path / "em.safetensors", weights=weights)
    with pytest.raises(InputError, match="a study called"):
        open_session(volume(), weights=weights, device="cpu", cohort="../x", folder=tmp_path / "other")
    assert not (tmp_path / "other").exists()
