"""What is written of a case when it is done: labels, a report, and its rows of the table of the cohort."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from napari_apprentice import files
from napari_apprentice.blocks import BLOCK
from napari_apprentice.journal import Event, models, package_version, read_journal
from napari_apprentice.legend import Legend, legend_path, read_legend, write_beside
from napari_apprentice.measure import Row, in_unit, measure, table
from napari_apprentice.projects import Project, Status
from napari_apprentice.session import Session
from napari_apprentice.texts import write_text
from napari_apprentice.types import Image, Plane, ReadError, WriteError
from napari_apprentice.work import work_of

__all__ = ["Finished", "check_replaceable", "cohort_table", "finish"]


@dataclass(frozen=True)
class Finished:
    """What was found out on the way to a case's labels.

    Attributes
    ----------
    by : "hand" or "run"
    session : folder of its session, within that of the case
    clicks : where they come from, in a few words
    asked : objects that were clicked in
    errors : expected error (1 - IoU) of slices that were clicked in, by object and plane
    likeness : of objects to those of an accepted case, by object
    warnings : one sentence each
    record : of the study that the model is of; 0 for none
    seconds : it took
    """

    by: str
    session: str
    clicks: str = ""
    asked: tuple[int, ...] = ()
    errors: Mapping[int, Mapping[Plane, float]] = field(default_factory=dict)
    likeness: Mapping[int, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    record: int = 0
    seconds: float = 0.0


def finish(project: Project, name: str, session: Session, image: Image, known: Finished) -> Status:
    """Write the labels and the report of a case, and then that it is done. Whoever does so holds the case.

    Raises
    ------
    WriteError : something cannot be written, or what is there is somebody's, see `check_replaceable`; the case is as it was
    """
    labels = project.labels_path(name, image)
    place = labels.relative_to(project.folder).as_posix()
    measures = measure(session.labels, image)
    missing = [label for label in known.asked if label not in {one.label for one in measures}]
    errors = _errors(session, known) | {label: {} for label in missing}
    trust = {label: 1.0 if label in missing else _mean(slices.values()) for label, slices in errors.items()}
    expected = max((error for error in trust.values() if not math.isnan(error)), default=math.nan)
    warnings = (*known.warnings, *(f"object {label} was not found" for label in missing))
    header, events = read_journal(project.session_folder(name, known.session))
    legend = _legend(project, session, events)
    work = work_of(header, events)
    rows = table(measures, case=name, labels=labels.name, classes=legend.names, work=work)
    for row in rows:
        row |= {"done_by": known.by, "expected_error": trust.get(int(row["label"] or 0)), "study_record": known.record}
    report = {
        "case": name,
        "image": header.path,
        "labels": place,
        "done_by": known.by,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(known.seconds, 3),
        "expected_error": expected,
        "study": header.cohort,
        "study_record": known.record,
        "model": models(header, events)[-1],
        "policy": header.policy,
        "package": package_version(),
        "clicks_from": known.clicks,
        "objects": [
            {
                "label": label,
                "name": legend.names.get(label, ""),
                "clicks": work[label].clicks if label in work else 0,
                "likeness": known.likeness.get(label),
                "expected_error": trust.get(label),
                "slices": _slices(errors.get(label, {})),
            }
            for label in sorted({*(one.label for one in measures), *missing})
        ],
        "warnings": warnings,
        "table": rows,
    }
    try:
        labels.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{labels.parent} cannot be made ({error.strerror}); expected free space and permission") from error
    there, written = check_replaceable(project, name, image), (_digest(session.labels), _digest_of_names(legend))
    ours = " ".join(dict.fromkeys((*there, *written)))
    project.set_status(name, replace(project.stored(name), written=ours))  # whoever is killed from here on leaves the project's own files
    files.write(labels, session.labels, like=image)
    write_beside(labels, legend)
    write_text(project.report_path(name), json.dumps(_plain(report), indent=1, ensure_ascii=False) + "\n")
    return project.set_status(name, Status("done", "; ".join(warnings), known.by, known.session, place, expected, " ".join(written)))


def check_replaceable(project: Project, name: str, image: Image) -> tuple[str, ...]:
    """Refuse a case whose label file, or the names beside it, somebody else wrote or changed: they would be lost.

    What was only saved once more, with the same objects in it, is still the project's own; so is what lies there of a case that was done
    before `projects.Status.written` was written down.

    Returns
    -------
    digests of what lies there

    Raises
    ------
    WriteError : the sentence says what lies there, and what to do
    """
    labels, stored = project.labels_path(name, image), project.stored(name)
    unknown = stored.labels == labels.relative_to(project.folder).as_posix() and not stored.written
    there = []
    for path, digest_of in ((labels, _digest_of_file), (legend_path(labels), _digest_of_table)):
        if path.exists():
            there.append(digest_of(path, image))
            if not unknown and there[-1] not in stored.written.split():
                raise WriteError(
                    f"{path} was not written by this project, or was changed since, and would be replaced; "
                    "expected no such file: move it to another folder, or give it another name"
                )
    return tuple(filter(None, there))


def _digest(labels: Any) -> str:
    """Of (S) ids, whatever their type; what lies on the disk is read slab by slab."""
    digest = hashlib.blake2b(repr(tuple(labels.shape)).encode(), digest_size=16)
    for start in range(0, labels.shape[0], BLOCK[0]):
        digest.update(np.ascontiguousarray(labels[start : start + BLOCK[0]], dtype="<u8").tobytes())
    return digest.hexdigest()


def _digest_of_names(legend: Legend) -> str:
    """Of what objects are called, and in which colours."""
    said = [(label, legend.names[label], legend.color(label)) for label in sorted(legend.names)]
    return hashlib.blake2b(json.dumps(said).encode(), digest_size=16).hexdigest()


def _digest_of_file(path: Path, image: Image) -> str:
    """Of a label file; "" if it is none, or on another grid."""
    try:
        return _digest(files.read_labels(path, like=image))
    except ReadError:
        return ""


def _digest_of_table(path: Path, image: Image) -> str:
    """Of the names beside a label file; "" if it is another table."""
    try:
        return _digest_of_names(read_legend(path))
    except ReadError:
        return ""


def cohort_table(project: Project, unit: str | None = None, on_damage: Callable[[ReadError], None] | None = None) -> list[Row]:
    """The rows of all cases that are done, as `measure.table` makes them, with who did them, the error expected, and the study's record.

    All lengths are in one ``unit``, see `measure.in_unit`.

    Parameters
    ----------
    on_damage : told what is wrong with a case that cannot be read, which is left out then

    Raises
    ------
    ReadError : a state is damaged, or a report is missing or damaged, and nobody is to be told
    """
    rows: list[Row] = []
    for case in project.cases:
        try:
            rows += _rows_of(project, case.name)
        except ReadError as error:
            if on_damage is None:
                raise
            on_damage(error)
    return in_unit(rows, unit)


def _rows_of(project: Project, name: str) -> list[Row]:
    """The rows of a case; none if it is not done."""
    stored, path = project.stored(name), project.report_path(name)
    if stored.state != "done":
        return []
    try:
        return _rows(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        again = f"`cohort run --again --only {name}`" if stored.by == "run" else "`open_case` and `finish` in Python"
        raise ReadError(
            f"the report {path} cannot be read ({error}); expected the one that was written with its labels: write it again with {again}"
        ) from error


def _rows(report: Any) -> list[Row]:
    """The table in a report, if it is one."""
    found = report.get("table") if isinstance(report, dict) else None
    if not (isinstance(found, list) and all(isinstance(row, dict) for row in found)):
        raise ValueError("table is no list of rows")
    for row in found:
        for key, value in row.items():
            if not isinstance(value, int | float | str | None):
                raise ValueError(f"{key} = {value!r} in its table")
    return found


def _legend(project: Project, session: Session, events: Iterable[Event]) -> Legend:
    """The names that objects have in the session, and those of the project with which it did not begin, as one that was done elsewhere."""
    began = next((event.legend.names for event in events if event.kind == "open" and event.legend is not None), {})
    legend = session.legend
    for label, name in project.settings.names.items():
        if label not in legend.names and began.get(label) != name:
            legend = legend.naming(label, name)
    return legend


def _slices(errors: Mapping[Plane, float]) -> list[dict[str, float]]:
    return [{"axis": plane.axis, "index": plane.index, "expected_error": errors[plane]} for plane in sorted(errors)]


def _errors(session: Session, known: Finished) -> dict[int, dict[Plane, float]]:
    """Expected error of every slice that is not somebody's, by object and plane: of those clicked in by a run, and of carried ones.

    What is carried from slices that nobody has looked at is wrong as they are, and on the way.
    """
    clicked = {label: {plane: error for plane, error in slices.items() if not math.isnan(error)} for label, slices in known.errors.items()}
    errors = {label: dict(slices) for label, slices in clicked.items()}
    for doubt in session.doubtful():
        begun = _mean(clicked[doubt.label].values()) if clicked.get(doubt.label) else 0.0
        errors.setdefault(doubt.label, {})[doubt.plane] = 1 - (1 - begun) * (1 - doubt.error)
    return errors


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def _plain(value: Any) -> Any:
    """Fit for JSON: what is not a number becomes null."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
