"""Another release ships other weights: sessions go on, and studies keep what was taught."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_apprentice import adaptation, assembly
from napari_apprentice.assembly import POLICIES, export_cohort, open_session, resume_session
from napari_apprentice.cohorts import Cohort, cohorts
from napari_apprentice.journal import models, read_journal
from napari_apprentice.networks import build
from napari_apprentice.record import case_record, object_rows
from napari_apprentice.replay import obstacles
from napari_apprentice.segmenter import NetworkSegmenter, ZoomConfig
from napari_apprentice.session import Session
from napari_apprentice.types import Click, Image, WeightsError
from napari_apprentice.weights import save_weights

DEEDS = (Click((2, 15, 18)), Click((2, 2, 2), False), "accept", Click((1, 15, 18)), "accept", "undo", "redo", Click((3, 14, 17)))


@pytest.fixture(scope="module", autouse=True)
def _small_and_quick():
    """One thread, small windows, and rates at which a few clicks move the weights visibly; remembered masks need not stand out."""
    torch.set_num_threads(1)
    quick = {"size": 32, "post_rounds": 1, "mid_rate": 1e-3, "post_rate": 1e-3, "plausible": 0.0, "practice": 0}
    small = {name: replace(policy, **quick) for name, policy in adaptation.POLICIES.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "NetworkSegmenter", partial(NetworkSegmenter, zoom=ZoomConfig(size=32, first_size=32)))
        patch.setattr(adaptation, "POLICIES", small)
        yield


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("APPRENTICE_HOME", str(tmp_path / "home"))


def release(folder: Path, seed: int) -> Path:
    """The weights of one release."""
    torch.manual_seed(seed)
    network = build("unet", {"widths": [8, 16, 16, 16, 16], "groups": 4, "recall": 4})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return save_weights(network, folder / f"{seed}.safetensors")


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    return release(tmp_path_factory.mktemp("old"), 0)


@pytest.fixture(scope="module")
def new(tmp_path_factory) -> Path:
    return release(tmp_path_factory.mktemp("new"), 1)


def volume() -> Image:
    rows, cols = np.indices((30, 36))
    disk = (rows - 15) ** 2 + (cols - 18) ** 2 <= 49
    data = np.random.default_rng(0).integers(0, 80, (4, 30, 36)) + 100 * disk
    return Image(data[None].astype(np.uint8), name="volume")


def do(session: Session, deed: Click | str) -> None:
    if isinstance(deed, Click):
        session.add(deed)
    elif deed == "accept":
        session.accept()
        session.learn()
    else:
        getattr(session, deed)()


def made(weights: Path, folder: Path, policy: str = "recall", cohort: str | None = None, deeds: tuple[Click | str, ...] = DEEDS) -> Path:
    """The folder of a session that was made with some weights, and closed."""
    with closing(open_session(volume(), weights=weights, policy=policy, device="cpu", folder=folder, cohort=cohort)) as session:
        for deed in deeds:
            do(session, deed)
    return folder


def known(session: Session):
    return session._segmenter.snapshot()


def said(session: Session) -> tuple[object, ...]:
    """All that people see of a session."""
    return session.labels.tobytes(), session.clicks, session.finished, session.label, session.can_undo, session.can_redo


# --- sessions ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_a_session_goes_on_with_other_weights_and_nothing_of_it_is_lost(policy, old, new, tmp_path):
    folder = made(old, tmp_path / "session", policy)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    with closing(resume_session(copy, volume(), weights=old, device="cpu")) as same:
        before = said(same)
        assert same.made_with == ""
    with closing(resume_session(folder, volume(), weights=new, device="cpu")) as session:
        assert said(session) == before
        assert session.made_with.startswith("unet:")
        assert session.weights == new
        assert len(known(session).memory) == (2 if policy not in ("none", "ia", "mi") else 0)
        assert all(torch.equal(known(session).weights[k], v) for k, v in session._segmenter.base.weights.items()) == (
            policy in ("none", "recall", "practice")
        )
        for deed in (Click((3, 16, 20)), "accept", Click((0, 15, 18))):
            do(session, deed)
        after = said(session)
    with closing(resume_session(folder, volume(), weights=new, device="cpu")) as again:
        assert said(again) == after
        assert again.made_with == ""
        while again.can_undo:
            again.undo()


def test_what_was_said_by_whom_stands_in_the_journal(old, new, tmp_path):
    folder = made(old, tmp_path / "session")
    header, _ = read_journal(folder)
    resume_session(folder, volume(), weights=new, device="cpu").close()
    assert models(*read_journal(folder)) == (header.model,), "nothing was done, so nothing was written"
    with closing(resume_session(folder, volume(), weights=new, device="cpu")) as session:
        session.add(Click((3, 16, 20)))
        here = assembly.model_of(session._segmenter)
        told = obstacles(*read_journal(folder), here, assembly.computer_of(session._segmenter))
    assert models(*read_journal(folder)) == (header.model, here)
    (row, *_) = object_rows(case_record(folder))
    assert row["model"] == f"{header.model}, {here}"
    assert any(header.model in reason and here in reason and "made with the weights" in reason for reason in told)
    with closing(resume_session(folder, volume(), weights=new, device="cpu")) as session:
        session.add(Click((3, 14, 21)))
    assert models(*read_journal(folder)) == (header.model, here), "it is said once"


def test_a_session_finds_its_own_weights_before_those_that_are_given(new, tmp_path):
    folder = made(None, tmp_path / "session", deeds=(Click((2, 15, 18)),))
    with closing(resume_session(folder, volume(), weights=new, device="cpu")) as session:
        assert session.made_with == ""
        assert session._segmenter.loaded.digest == read_journal(folder)[0].model.partition(":")[2]


def test_only_remembered_objects_of_a_checkpoint_are_read_on_top_of_other_weights(old, new, tmp_path, monkeypatch):
    by_example, by_weights = made(old, tmp_path / "recall"), made(old, tmp_path / "pi", "pi")
    with closing(resume_session(by_weights, volume(), weights=new, device="cpu")) as session:
        assert known(session).steps > 0, "learnt again"
    monkeypatch.setattr(adaptation.Adaptation, "learning", None)  # would raise if it were called
    with closing(resume_session(by_example, volume(), weights=new, device="cpu")) as session:
        assert len(known(session).memory) == 2
        assert known(session).examples == 8


def test_practice_is_not_repeated_on_top_of_other_weights(old, new, tmp_path, monkeypatch):
    practice = replace(adaptation.POLICIES["practice"], practice=2, practice_batch=2)
    monkeypatch.setattr(adaptation, "POLICIES", {**adaptation.POLICIES, "practice": practice})
    folder = tmp_path / "session"
    with closing(open_session(volume(), weights=old, policy="practice", device="cpu", folder=folder)) as session:
        for deed in (Click((2, 15, 18)), "accept", Click((1, 15, 18))):
            do(session, deed)
        assert session.practise() == 2
        for deed in ("accept", Click((3, 14, 17))):
            do(session, deed)
        before = said(session)
    assert [event.report.practised for event in read_journal(folder)[1] if event.report is not None] == [0, 2]
    with closing(resume_session(folder, volume(), weights=new, device="cpu")) as session:
        assert (said(session)[:4], len(known(session).memory)) == (before[:4], 2)
        assert known(session).practised is None
        assert session.practise() == 2, "these practise on"


# --- studies ----------------------------------------------------------------------------------------------------------------------------


def test_a_study_goes_on_with_what_it_remembers(old, new, tmp_path):
    made(old, tmp_path / "first", cohort="lesions")
    (before,) = cohorts()
    files = {path: path.read_bytes() for path in before.folder.iterdir()}
    with closing(open_session(volume(), weights=new, device="cpu", cohort="lesions")) as session:
        assert len(known(session).memory) == 2
        assert known(session).examples == 8
        assert session.versions.current.sentence == "study lesions, what it remembers from another network"
        for deed in (Click((0, 15, 18)), "accept"):
            do(session, deed)
    study = next(one for one in cohorts() if one.digest != before.digest)
    assert [record.cause for record in study.records] == ["carried over", "learnt"]
    assert {path: path.read_bytes() for path in before.folder.iterdir()} == files, "that of the other weights is as it was"
    with closing(open_session(volume(), weights=new, device="cpu", cohort="lesions")) as session:
        assert len(known(session).memory) == 3
        assert session.versions.current.sentence == "study lesions"
    with closing(open_session(volume(), weights=old, device="cpu", cohort="lesions")) as session:
        assert len(known(session).memory) == 2


def test_what_was_learnt_in_weights_stays_with_them_and_its_objects_come_along(old, new, tmp_path):
    made(old, tmp_path / "first", "pi", cohort="lesions")
    with closing(open_session(volume(), weights=new, policy="pi", device="cpu", cohort="lesions")) as session:
        assert len(known(session).memory) == 2
        assert known(session).steps == 0
        assert known(session).examples == 8, "they are shown now"
        assert all(torch.equal(known(session).weights[k], v) for k, v in session._segmenter.base.weights.items())


def test_a_study_that_was_told_to_forget_stays_so(old, new, tmp_path):
    made(old, tmp_path / "first", cohort="lesions")
    with closing(open_session(volume(), weights=new, device="cpu", cohort="lesions")) as session:
        session.forget()
    with closing(open_session(volume(), weights=new, device="cpu", cohort="lesions")) as session:
        assert not known(session).memory
    made(old, tmp_path / "second", cohort="others")
    Cohort("others", cohorts()[-1].digest).forget()
    with closing(open_session(volume(), weights=new, device="cpu", cohort="others")) as session:
        assert not known(session).memory
        assert [one.name for one in cohorts()].count("others") == 1


def test_a_damaged_study_of_other_weights_begins_anew_and_is_left_as_it_is(old, new, tmp_path):
    made(old, tmp_path / "first", cohort="lesions")
    (before,) = cohorts()
    (before.folder / before.head).write_bytes(b"no model")
    with closing(open_session(volume(), weights=new, device="cpu", cohort="lesions")) as session:
        assert not known(session).memory
    assert (before.folder / before.head).read_bytes() == b"no model"


def test_a_session_of_a_study_goes_on_and_teaches_it_on_top_of_what_it_remembers(old, new, tmp_path):
    folder = made(old, tmp_path / "first", cohort="lesions")
    made(old, tmp_path / "second", cohort="lesions", deeds=(Click((0, 15, 18)), "accept"))
    with closing(resume_session(folder, volume(), weights=new, device="cpu")) as session:
        do(session, "accept")
    study = next(one for one in cohorts() if len(one.records) == 2)
    assert [record.cause for record in study.records] == ["carried over", "learnt"]
    with closing(open_session(volume(), weights=new, device="cpu", cohort="lesions")) as session:
        assert len(known(session).memory) == 4


def test_a_session_that_began_with_a_taught_study_still_remembers_what_that_had_taught(old, new, tmp_path):
    made(old, tmp_path / "first", "pi", cohort="lesions")
    folder = made(old, tmp_path / "second", "pi", cohort="lesions", deeds=(Click((0, 15, 18)), "accept"))
    with closing(resume_session(folder, volume(), weights=new, device="cpu")) as session:
        assert len(known(session).memory) == 3


def test_an_exported_model_with_pictures_is_worth_its_pictures(old, new, tmp_path):
    made(old, tmp_path / "first", "pi", cohort="lesions")
    with_pictures = export_cohort("lesions", tmp_path / "with.safetensors", weights=old, pictures=True)
    without = export_cohort("lesions", tmp_path / "without.safetensors", weights=old)
    with closing(open_session(volume(), weights=new, device="cpu", knowledge=with_pictures)) as session:
        assert len(known(session).memory) == 2
        assert session.versions.current.sentence == "file with.safetensors, what it remembers from another network"
    with pytest.raises(WeightsError, match="was learnt on top of weights"):
        open_session(volume(), weights=new, device="cpu", knowledge=without)
