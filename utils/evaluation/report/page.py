"""summary.md and report.html: tables with intervals, curves, pictures, and what went wrong."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from utils.evaluation.metrics import auc
from utils.evaluation.protocol import ROUNDS, SECONDS_PER_OBJECT
from utils.evaluation.report.folder import Folder
from utils.evaluation.report.pictures import (
    PREDICTION_COLOUR,
    draw_curves,
    draw_seconds,
    draw_slices,
)
from utils.evaluation.report.results import Result, write_metrics, write_metrics_objects
from utils.evaluation.report.slices import ObjectSlices
from utils.formats.atomic import atomic_write
from utils.inference.drawing import TRUTH_COLOUR

TEMPLATE = Path(__file__).with_name("template.html")
CONFIDENCE = 0.95
RESAMPLES = 9999
SEED = 0


@dataclass(frozen=True)
class Column:
    """A column of the table: one number per case, NaN where a case has none."""

    title: str
    digits: int
    value: Callable[[Result], float]


COLUMNS = (
    Column("DSC, box", 3, lambda r: float(r.curve("DSC")[0]) if r.has_boxes else np.nan),
    Column("DSC, final", 3, lambda r: float(r.curve("DSC")[-1])),
    Column("DSC_AUC", 3, lambda r: auc(r.curve("DSC"))),
    Column("NSD, final", 3, lambda r: float(r.curve("NSD_official")[-1])),
    Column("NSD_AUC", 3, lambda r: auc(r.curve("NSD_official"))),
    Column("NSD, oriented, final", 3, lambda r: float(r.curve("NSD")[-1])),
    Column("seconds per object", 1, lambda r: r.seconds_per_object),
)


@dataclass(frozen=True)
class Row:
    """A group of cases in the table; level 0 all, 1 a modality, 2 a dataset."""

    title: str
    level: int
    results: list[Result]


def write_report(folder: Folder, names: list[str]) -> int:
    """Write the tables and pages about these cases.

    Returns:
        The exit status: 1 if a case was not evaluated or a prediction failed, else 0.
    """
    found = [(name, folder.finished(name)) for name in names]
    results = [result for _, result in found if result is not None]
    missing = {name: folder.why_failed(name) for name, result in found if result is None}
    write_metrics(folder.path / "metrics.csv", results)
    write_metrics_objects(folder.path / "metrics_objects.csv", results)
    run = folder.run()
    for name, text in (
        ("summary.md", summary(run, results, missing)),
        ("report.html", page(run, results, missing, folder.slices)),
    ):
        with atomic_write(folder.path / name) as file:
            file.write(text.encode())
    return 1 if missing or failed_rounds(results) else 0


def failed_rounds(results: list[Result]) -> list[tuple[str, int, str]]:
    """Case, round and reason of each prediction that counts as empty."""
    return [
        (result.name, index, failure)
        for result in results
        for index, failure in enumerate(result.failures)
        if failure
    ]


def rows_of(results: list[Result]) -> list[Row]:
    rows = [Row("all", 0, results)]
    for modality in sorted({result.modality for result in results}):
        own = [result for result in results if result.modality == modality]
        rows.append(Row(modality, 1, own))
        for dataset in sorted({result.dataset for result in own}):
            rows.append(Row(dataset, 2, [result for result in own if result.dataset == dataset]))
    return rows


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """Bootstrap interval of the mean (percentiles, over cases); None for a single value."""
    if len(values) < 2:
        return None
    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, 10**7 // len(values)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=SEED,
    ).confidence_interval
    return float(found.low), float(found.high)


def cells(row: Row) -> list[tuple[str, str]]:
    """Mean and interval of each column, as text."""
    texts = []
    for column in COLUMNS:
        values = np.array([column.value(result) for result in row.results])
        values = values[~np.isnan(values)]
        mean = f"{values.mean():.{column.digits}f}" if len(values) else "–"
        bounds = interval(values)
        between = f"{bounds[0]:.{column.digits}f}–{bounds[1]:.{column.digits}f}" if bounds else ""
        texts.append((mean, between))
    return texts


def facts(run: dict[str, Any], results: list[Result]) -> list[tuple[str, str]]:
    objects = sum(len(result.labels) for result in results)
    known: list[tuple[str, str]] = [
        (key, str(run[key])) for key in ("checkpoint", "policy", "precision") if key in run
    ]
    known += [("code", run["commit"] or run["code"][:12]), ("date", run["date"])]
    return [*known, ("cases", f"{len(results)} with {objects} objects")]


NOTES = (
    "Official protocol: a round with boxes where a case has them, then five rounds that each add "
    "one click per object in the middle of its largest error. Means over cases; a case's value "
    f"is the mean over its objects. Beside or below a mean: its {CONFIDENCE:.0%} bootstrap "
    "interval over cases.",
    "DSC_AUC and NSD_AUC: trapezoids over the five click rounds, at most 4. NSD at 2 mm, 0 where "
    "a case's mean DSC is at most 0.2, with the spacing as the official evaluator applies it: "
    "(x, y, z) to (z, y, x) arrays. NSD, oriented: with each axis its own spacing.",
)


def summary(run: dict[str, Any], results: list[Result], missing: dict[str, str]) -> str:
    """The tables as Markdown."""
    lines = [f"# Evaluation: {run['method']}", ""]
    lines += [f"- {key}: `{value}`" for key, value in facts(run, results)]
    if results:
        titles = [column.title for column in COLUMNS]
        lines += ["", f"| | cases | {' | '.join(titles)} |", "|---" * (2 + len(titles)) + "|"]
        for row in rows_of(results):
            title = ("**all**", f"**{row.title}**", row.title)[row.level]
            texts = [f"{mean} [{between}]" if between else mean for mean, between in cells(row)]
            lines.append(f"| {title} | {len(row.results)} | {' | '.join(texts)} |")
    for note in NOTES:
        lines += ["", note]
    if missing:
        lines += ["", f"## Not evaluated: {len(missing)}", ""]
        lines += [f"- `{name}`: {reason}" for name, reason in missing.items()]
    if failures := failed_rounds(results):
        lines += ["", f"## Predictions that failed and count as empty: {len(failures)}", ""]
        lines += [f"- `{name}`, round {index}: {reason}" for name, index, reason in failures]
    if slow := over_limit(results):
        lines += ["", f"## Over {SECONDS_PER_OBJECT:g} s per object: {len(slow)}", ""]
        lines += [f"- `{r.name}`: {r.seconds_per_object:.0f} s" for r in slow]
    return "\n".join(lines) + "\n"


def over_limit(results: list[Result]) -> list[Result]:
    return [r for r in results if r.seconds_per_object > SECONDS_PER_OBJECT]


def curve_groups(results: list[Result], metric: str) -> dict[str, np.ndarray]:
    """Curves of the cases of each modality; cases without boxes begin at the first click."""
    groups: dict[str, list[np.ndarray]] = {}
    for result in results:
        curve = result.curve(metric).copy()
        if not result.has_boxes:
            curve[0] = np.nan
        name = result.modality + ("" if result.has_boxes else ", no boxes")
        groups.setdefault(name, []).append(curve)
    return {name: np.array(groups[name]) for name in sorted(groups)}


def chosen_cases(results: list[Result]) -> list[tuple[str, Result]]:
    """Best, median and worst case by the final DSC."""
    ranked = sorted(results, key=lambda r: (-r.curve("DSC")[-1], r.name))
    picks = {0: "best", len(ranked) // 2: "median", len(ranked) - 1: "worst"}
    if len(ranked) == 1:
        picks = {0: "the only case"}
    elif len(ranked) == 2:
        picks = {0: "best", 1: "worst"}
    return [(title, ranked[index]) for index, title in sorted(picks.items())]


def page(
    run: dict[str, Any],
    results: list[Result],
    missing: dict[str, str],
    slices_of: Callable[[str], ObjectSlices],
) -> str:
    """The whole report in one file that loads nothing else.

    Args:
        run: Settings, and what else there is to say.
        results: The finished cases.
        missing: Why the others are not, by name.
        slices_of: Slices of a finished case, by its name.
    """
    parts = [f"<h1>Evaluation: {escape(run['method'])}</h1>", _facts_html(facts(run, results))]
    parts.append(_problems_html(results, missing))
    if results:
        parts.append("<h2>Results</h2>" + _table_html(rows_of(results)))
        parts += [f"<p class=note>{escape(note)}</p>" for note in NOTES]
        curves = [
            draw_curves(curve_groups(results, key), title)
            for key, title in (("DSC", "DSC"), ("NSD_official", "NSD"))
        ]
        parts.append(f"<h2>Against clicks</h2><div class=pair>{''.join(curves)}</div>")
        seconds = {
            row.title: np.array([r.seconds_per_object for r in row.results])
            for row in rows_of(results)
            if row.level == 2
        }
        parts.append("<h2>Time</h2>" + draw_seconds(seconds, SECONDS_PER_OBJECT))
        parts.append(_pictures_html(results, slices_of))
        parts.append(_cases_html(results))
    template = Template(TEMPLATE.read_text())
    return template.substitute(title=escape(run["method"]), body="\n".join(parts))


def _facts_html(known: list[tuple[str, str]]) -> str:
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in known)
    return f"<dl>{items}</dl>"


def _problems_html(results: list[Result], missing: dict[str, str]) -> str:
    lists = []
    if missing:
        items = [f"<b>{escape(name)}</b> {escape(reason)}" for name, reason in missing.items()]
        lists.append((f"Not evaluated: {len(missing)}", items))
    if failures := failed_rounds(results):
        items = [f"<b>{escape(name)}</b> round {i}: {escape(why)}" for name, i, why in failures]
        lists.append((f"Predictions that failed and count as empty: {len(failures)}", items))
    if slow := over_limit(results):
        items = [f"<b>{escape(r.name)}</b> {r.seconds_per_object:.0f} s" for r in slow]
        lists.append((f"Over {SECONDS_PER_OBJECT:g} s per object: {len(slow)}", items))
    return "".join(
        f"<section class=problem><h3>{title}</h3><ul>"
        + "".join(f"<li>{item}</li>" for item in items)
        + "</ul></section>"
        for title, items in lists
    )


def _table_html(rows: list[Row]) -> str:
    head = "".join(f"<th>{escape(column.title)}</th>" for column in COLUMNS)
    lines = [f"<table><thead><tr><th></th><th>cases</th>{head}</tr></thead><tbody>"]
    for row in rows:
        values = "".join(f"<td>{mean}<small>{between}</small></td>" for mean, between in cells(row))
        lines.append(
            f"<tr class=level{row.level}><th>{escape(row.title)}</th>"
            f"<td>{len(row.results)}</td>{values}</tr>"
        )
    return "".join(lines) + "</tbody></table>"


def _pictures_html(results: list[Result], slices_of: Callable[[str], ObjectSlices]) -> str:
    legend = "".join(
        f"<span><i style='border-color:rgb{colour};border-style:{style}'></i>{name}</span>"
        for name, colour, style in (
            ("truth", TRUTH_COLOUR, "dashed"),
            ("final prediction", PREDICTION_COLOUR, "solid"),
            ("box", PREDICTION_COLOUR, "dotted"),
        )
    )
    parts = [
        "<h2>Cases</h2><p class=note>By final DSC, the object of median DSC in each. Numbers are "
        "rounds: green + foreground click, red x background click; faint where the prompt lies in "
        f"another slice.</p><p class=legend>{legend}</p>"
    ]
    for row in rows_of(results):
        if row.level != 1:
            continue
        parts.append(f"<h3>{escape(row.title)}</h3>")
        for title, result in chosen_cases(row.results):
            label = result.typical
            picture = draw_slices(slices_of(result.name), result.clicks[:, label - 1])
            png = base64.b64encode(picture).decode()
            final = result.scores[-1, label - 1, 0]
            caption = (
                f"<b>{title}</b> {escape(result.name)}: DSC {result.curve('DSC')[-1]:.3f}; shown: "
                f"object {label} of {len(result.labels)}, DSC {final:.3f}"
            )
            parts.append(
                f"<figure><figcaption>{caption}</figcaption>"
                f"<img alt='{title}' src='data:image/png;base64,{png}'></figure>"
            )
    return "".join(parts)


def _cases_html(results: list[Result]) -> str:
    """Every case, the worst first."""
    head = "".join(f"<th>{'box' if i == 0 else i}</th>" for i in range(ROUNDS))
    lines = [
        f"<details><summary>All {len(results)} cases</summary><table><thead><tr><th>DSC after</th>"
        f"<th>objects</th>{head}<th>DSC_AUC</th><th>NSD_AUC</th><th>s per object</th></tr></thead>"
    ]
    for result in sorted(results, key=lambda r: (r.curve("DSC")[-1], r.name)):
        curve = result.curve("DSC")
        played = [
            "–" if i == 0 and not result.has_boxes else f"{v:.3f}" for i, v in enumerate(curve)
        ]
        values = [
            *played,
            f"{auc(curve):.3f}",
            f"{auc(result.curve('NSD_official')):.3f}",
            f"{result.seconds_per_object:.1f}",
        ]
        lines.append(
            f"<tr class=level2><th>{escape(result.name)}</th><td>{len(result.labels)}</td>"
            + "".join(f"<td>{value}</td>" for value in values)
            + "</tr>"
        )
    return "".join(lines) + "</table></details>"
