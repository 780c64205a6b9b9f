"""The study record as one HTML page that holds all it needs: no script, no network, in light and in dark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean, median, quantiles

from napari_apprentice.charts import Bar, Series, bars, histogram, scatter
from napari_apprentice.journal import models
from napari_apprentice.record import CaseRecord, ObjectRecord
from napari_apprentice.texts import counted
from napari_apprentice.work import PAUSE_S

__all__ = ["page"]

_FEW_ROWS = 40
"""What has more rows is folded away."""

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --card: #f6f7f9; --ink: #1b1f24; --soft: #5c6670; --line: #dfe3e8;
  --one: #0072b2; --two: #d55e00; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181c; --card: #1d2126; --ink: #e6e9ec; --soft: #9aa4ae; --line: #333a42;
  --one: #56b4e9; --two: #e69f00; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1000px; padding: 32px 20px 64px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 18px; margin: 44px 0 2px; }
p { margin: 4px 0 10px; max-width: 76ch; } p.soft, .about { color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(138px, 1fr)); gap: 10px; margin: 22px 0; }
.tile { background: var(--card); border-radius: 8px; padding: 10px 14px; }
.tile b { display: block; font-size: 20px; white-space: nowrap; font-weight: 600; line-height: 1.3; }
.tile span { color: var(--soft); font-size: 13px; }
svg { display: block; width: 100%; height: auto; margin: 6px 0; }
svg text { font-size: 12px; fill: var(--ink); } svg text.soft { fill: var(--soft); } svg text.name { text-anchor: end; }
.grid, .axis { stroke: var(--line); } .break { stroke: var(--line); stroke-dasharray: 2 3; } .mark { stroke: var(--two); }
svg text.mark-name { fill: var(--two); stroke: var(--paper); stroke-width: 5px; stroke-linejoin: round; paint-order: stroke; }
.s1 { --colour: var(--one); } .s2 { --colour: var(--two); }
.dots circle { fill: var(--colour); fill-opacity: .5; } .line { fill: none; stroke: var(--colour); stroke-width: 2.5; }
.bar { fill: var(--colour); fill-opacity: .8; }
.key { color: var(--soft); font-size: 13px; margin: 8px 0 0; } .key i { display: inline-block; width: 10px; height: 10px;
  border-radius: 50%; background: var(--colour); margin: 0 5px 0 12px; } .key i:first-child { margin-left: 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 7px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 500; } th:first-child, td:first-child { padding-left: 0; }
.words { text-align: left; white-space: normal; }
summary { cursor: pointer; color: var(--soft); margin: 8px 0; } .gone { color: var(--soft); }
@media print { body { max-width: none; } details > * { display: block; } }
"""


@dataclass(frozen=True, eq=False)
class _Placed:
    """An accepted object at its place in the study, from 1, with the name of its case."""

    place: int
    case: str
    one: ObjectRecord

    @property
    def words(self) -> str:
        return f"{self.case}, object {self.one.label}" + (f" ({self.one.name})" if self.one.name else "")


def page(cases: Sequence[CaseRecord]) -> str:
    """The page. What a run of a project did in a case is not counted.

    Parameters
    ----------
    cases : oldest first

    Returns
    -------
    a whole HTML document
    """
    names = _names(cases)
    placed: list[_Placed] = []
    breaks: list[float] = []
    for name, case in zip(names, cases, strict=True):
        breaks.append(len(placed) + 0.5)
        placed += [_Placed(len(placed) + 1 + i, name, one) for i, one in enumerate(case.accepted)]
    between = [b for b in dict.fromkeys(breaks[1:]) if 1 < b < len(placed) and len(cases) <= _FEW_ROWS]
    parts = [_head(cases), _tiles(cases, placed), *_clicks(placed, between), *_first_clicks(placed, between), *_times(names, cases)]
    parts += [*_truths(placed, between), *_latencies(cases), *_case_table(names, cases), *_object_table(names, cases)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>Study record</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<style>{_STYLE}</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def _names(cases: Sequence[CaseRecord]) -> list[str]:
    """Of the images; sessions of one image are numbered."""
    several, seen, names = Counter(case.name for case in cases), Counter[str](), []
    for case in cases:
        seen[case.name] += 1
        names.append(f"{case.name} ({seen[case.name]})" if several[case.name] > 1 else case.name)
    return names


def _head(cases: Sequence[CaseRecord]) -> str:
    headers = [case.header for case in cases]
    days = sorted({header.time[:10] for header in headers})
    facts = [
        _several("Study", [header.cohort or "none" for header in headers]),
        _several("Learns from", [header.policy or "unknown" for header in headers]),
        _several("Weights", [model or "unknown" for case in cases for model in models(case.header, case.events)]),
        _several("Version", [f"napari-apprentice {header.package}" for header in headers]),
        f"Begun: {days[0]}" + (f" to {days[-1]}" if days[1:] else ""),
    ]
    return f'<h1>Study record</h1>\n<p class="about">{escape(" · ".join(facts))}</p>'


def _several(what: str, values: Sequence[str]) -> str:
    return f"{what}: {', '.join(dict.fromkeys(values))}"


def _tiles(cases: Sequence[CaseRecord], placed: Sequence[_Placed]) -> str:
    clicks = [click for case in cases for click in case.by_hand]
    counts = ((len(cases), "case"), (len(placed), "accepted object"), (len(clicks), "click"))
    facts = [(str(number), counted(number, what).partition(" ")[2]) for number, what in counts]
    facts.append((_duration(sum(case.active_s for case in cases)), "of work"))
    if placed:
        facts.append((f"{fmean(p.one.work.clicks for p in placed):.1f}", "clicks an object"))
    if efforts := [p.one.effort for p in placed if p.one.effort is not None]:
        facts.append((f"{100 * fmean(e.taught_iou for e in efforts):.0f} %", "right at the first click"))
        facts.append((f"{100 * fmean(e.untaught_iou for e in efforts):.0f} %", "untaught"))
    if clicks:
        facts.append((f"{_short(median(click.event.latency_s for click in clicks))} s", "for an answer (median)"))
    if matched := [p.one.match for p in placed if p.one.match is not None]:
        facts.append((f"{fmean(match.dice for match in matched):.3f}", "mean Dice"))
    tiles = "".join(f'<div class="tile"><b>{value}</b><span>{words}</span></div>' for value, words in facts)
    return f'<div class="tiles">{tiles}</div>'


# --- charts ---


def _clicks(placed: Sequence[_Placed], breaks: Sequence[float]) -> Iterator[str]:
    yield "<h2>Clicks per object</h2>"
    if not placed:
        yield '<p class="soft">No object was accepted.</p>'
        return
    width = _width(len(placed))
    points = [(p.place, p.one.work.clicks, f"{p.words}: {counted(p.one.work.clicks, 'click')}") for p in placed]
    yield _note(
        "Every dot is an accepted object, in the order of acceptance; clicks that were taken back count."
        + _line_words(width)
        + (" Upright lines: the next case." if breaks else "")
        + _halves([p.one.work.clicks for p in placed])
    )
    yield scatter([Series("clicks", points, width)], x="objects in the order of acceptance", y="clicks", breaks=breaks)


def _halves(values: Sequence[float]) -> str:
    """What the first and the second half of at least eight objects took."""
    if len(values) < 8:
        return ""
    middle = len(values) // 2
    return f" First half: {fmean(values[:middle]):.1f} clicks an object, second half: {fmean(values[middle:]):.1f}."


def _first_clicks(placed: Sequence[_Placed], breaks: Sequence[float]) -> Iterator[str]:
    yield "<h2>Taught and untaught</h2>"
    found = [(p, p.one.effort) for p in placed if p.one.effort is not None]
    if not found:
        yield _note("The answer to a first click was not measured: no object began with a click on nothing and was learnt from.")
        return
    better = sum(effort.taught_iou > effort.untaught_iou for _, effort in found)
    worse = sum(effort.taught_iou < effort.untaught_iou for _, effort in found)
    width = _width(len(found))
    yield _note(
        "How right the answer to the first click was (IoU with the accepted mask), of the model before it learnt from the object, "
        f"and of the model as shipped to the same click.{_line_words(width)} The taught one was better on {better} of "
        f"{counted(len(found), 'object')}, "
        f"worse on {worse}. Who accepts a mask was shown the taught model's, which favours it a little."
    )
    yield '<p class="key"><i class="s1"></i>taught<i class="s2"></i>untaught</p>'
    taught = [(p.place, e.taught_iou, f"{p.words}: taught {100 * e.taught_iou:.0f} %") for p, e in found]
    untaught = [(p.place, e.untaught_iou, f"{p.words}: untaught {100 * e.untaught_iou:.0f} %") for p, e in found]
    both = [Series("taught", taught, width), Series("untaught", untaught, width)]
    yield scatter(both, x="objects in the order of acceptance", y="IoU at the first click", highest=1.0, breaks=breaks, percent=True)


def _times(names: Sequence[str], cases: Sequence[CaseRecord]) -> Iterator[str]:
    yield "<h2>Time per case</h2>"
    yield _note(f"Active time: gaps of more than {PAUSE_S:.0f} s between two actions are pauses and do not count.")
    rows = [Bar(name, case.active_s, _time_words(case)) for name, case in zip(names, cases, strict=True)]
    yield _folded(bars(rows, label="active time per case"), len(rows), "cases")


def _time_words(case: CaseRecord) -> str:
    objects = len(case.accepted)
    return _duration(case.active_s) + (f", {counted(objects, 'object')}" if objects else "")


def _truths(placed: Sequence[_Placed], breaks: Sequence[float]) -> Iterator[str]:
    found = [(p, p.one.match) for p in placed if p.one.match is not None]
    if not found:
        return
    yield "<h2>Dice with the truth</h2>"
    width = _width(len(found))
    yield _note(
        f"Every object with the object of the truth that it shares the most voxels with.{_line_words(width)} "
        f"Mean Dice {fmean(m.dice for _, m in found):.3f}, median {median(m.dice for _, m in found):.3f}; "
        f"mean IoU {fmean(m.iou for _, m in found):.3f}. Slices of a volume that were left alone count as empty; the last column of the "
        "table of objects looks only at those that hold some of the object."
    )
    points = [(p.place, m.dice, f"{p.words}: Dice {m.dice:.3f}, IoU {m.iou:.3f}") for p, m in found]
    yield scatter([Series("Dice", points, width)], x="objects in the order of acceptance", y="Dice", highest=1.0, breaks=breaks)


def _latencies(cases: Sequence[CaseRecord]) -> Iterator[str]:
    yield "<h2>How long an answer takes</h2>"
    seconds = [click.event.latency_s for case in cases for click in case.by_hand]
    if not seconds:
        yield _note("No click was made.")
        return
    high = quantiles(seconds, n=20, method="inclusive")[-1] if len(seconds) > 1 else seconds[0]
    yield _note(f"From a click to its answer, written to the disk. 95 % of the answers took less than {_short(high)} s." + _others(cases))
    marks = [(median(seconds), f"median {_short(median(seconds))} s"), (high, f"95 % {_short(high)} s")]
    yield histogram(seconds, x="seconds (logarithmic)", y="clicks", marks=marks)


def _others(cases: Sequence[CaseRecord]) -> str:
    """Medians of what else takes time."""
    words = []
    for kind, what in (("learn", "learning from an object (in the background)"), ("propagate", "carrying an object through a volume")):
        if seconds := [event.latency_s for case in cases for event in case.events if event.kind == kind and event.by is None]:
            words.append(f"{what} {_short(median(seconds))} s")
    return f" Medians of the rest: {', '.join(words)}." if words else ""


# --- tables ---


def _case_table(names: Sequence[str], cases: Sequence[CaseRecord]) -> Iterator[str]:
    yield "<h2>Cases</h2>"
    judged = any(case.agreement is not None for case in cases)
    heads = ["case", "begun", "objects", "clicks", "clicks an object", "taken back", "active time", "time an object"]
    rows = []
    for name, case in zip(names, cases, strict=True):
        count = len(case.accepted)
        row = [name, case.header.time[:16].replace("T", " "), str(count), str(len(case.by_hand))]
        row += [f"{fmean(one.work.clicks for one in case.accepted):.1f}" if count else "", str(sum(c.taken_back for c in case.by_hand))]
        row += [_duration(case.active_s), _duration(case.active_s / count) if count else ""]
        rows.append(row + (_judged(case) if judged else []))
    yield _folded(_table([*heads, *(["mean Dice", "missed"] if judged else [])], rows, words=1), len(rows), "cases")
    if judged:
        yield _note("Missed: objects of the truth that no object was matched with.")


def _judged(case: CaseRecord) -> list[str]:
    if case.agreement is None:
        return ["", ""]
    dices = [one.match.dice for one in case.accepted if one.match is not None]
    return [f"{fmean(dices):.3f}" if dices else "", str(len(case.agreement.missed))]


def _object_table(names: Sequence[str], cases: Sequence[CaseRecord]) -> Iterator[str]:
    yield "<h2>Objects</h2>"
    judged = any(case.agreement is not None for case in cases)
    solid = judged and any(len(case.header.shape) == 3 for case in cases)
    heads = ["case", "class", "object", "clicks", "outside", "active time", "version", "first click", "untaught", "voxels"]
    heads += ["truth", "Dice", "IoU"] if judged else []
    heads += ["Dice in its slices"] if solid else []
    rows: list[list[str]] = []
    faint: set[int] = set()
    for name, case in zip(names, cases, strict=True):
        for one in case.objects:
            if not one.stands:
                faint.add(len(rows))
            rows.append(_object_cells(name, one) + _match_cells(one)[: len(heads) - 10])
    table = _table(heads, rows, words=2, faint=faint)
    yield _note(
        "Outside: clicks that said so. Version: the version of the model in use when the object was last worked on; 0 is as shipped."
        + (" Grey: not accepted, or gone in the end." if faint else "")
    )
    yield _folded(table, len(rows), "objects")


def _object_cells(name: str, one: ObjectRecord) -> list[str]:
    effort = one.effort
    shares = [f"{100 * effort.taught_iou:.0f} %", f"{100 * effort.untaught_iou:.0f} %"] if effort is not None else ["", ""]
    version = "" if one.work.version is None else str(one.work.version)
    cells = [name, one.name, str(one.label), str(one.work.clicks), str(one.negative), _duration(one.work.active_s), version]
    return [*cells, *shares, str(one.voxels)]


def _match_cells(one: ObjectRecord) -> list[str]:
    match = one.match
    if match is None:
        return ["", "", "", ""]
    return ["none" if match.truth is None else str(match.truth), *(f"{v:.3f}" for v in (match.dice, match.iou, match.slices_dice))]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, words: int, faint: set[int] | None = None) -> str:
    """The first ``words`` columns are words, the others figures; rows in ``faint`` are grey."""

    def line(cells: Sequence[str], tag: str, kind: str = "") -> str:
        made = "".join(f"<{tag}{' class=words' if i < words else ''}>{escape(cell)}</{tag}>" for i, cell in enumerate(cells))
        return f"<tr{kind}>{made}</tr>"

    body = "\n".join(line(row, "td", " class=gone" if faint and i in faint else "") for i, row in enumerate(rows))
    return f'<div class="wide"><table><thead>{line(heads, "th")}</thead><tbody>\n{body}\n</tbody></table></div>'


# --- words ---


def _folded(content: str, rows: int, what: str) -> str:
    """As it is while there are few rows, else folded away."""
    return content if rows <= _FEW_ROWS else f"<details><summary>{rows} {what}</summary>{content}</details>"


def _note(words: str) -> str:
    return f'<p class="soft">{escape(words)}</p>'


def _width(count: int) -> int:
    """Of the running mean of so many objects; odd."""
    return 0 if count < 3 else max(3, min(count // 8, 50) | 1)


def _line_words(width: int) -> str:
    return f" The line is the running mean of {width}." if width else ""


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _short(seconds: float) -> str:
    return f"{seconds:.3f}" if seconds < 0.1 else f"{seconds:.2f}" if seconds < 10 else f"{seconds:.0f}"
