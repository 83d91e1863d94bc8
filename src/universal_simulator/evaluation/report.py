"""`reports/eval_{run_id}.{json,csv,html}`: true, readable, self-contained, without JavaScript."""

from __future__ import annotations

import csv
import functools
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from universal_simulator.data.batch import Trajectories
from universal_simulator.evaluation.ensemble_pictures import ensemble_picture
from universal_simulator.evaluation.evaluator import Examples
from universal_simulator.evaluation.glossary import entry
from universal_simulator.evaluation.ladder import Rung, ladder
from universal_simulator.evaluation.pictures import curve_picture, field_picture
from universal_simulator.evaluation.search_summary import search_lines, search_name, searched
from universal_simulator.run_record import (
    EvaluationRecord,
    Metric,
    RegimeResult,
    RunFolder,
    RunRecord,
    write_atomically,
    write_json,
)

COLUMNS = ("suite", "regime", "metric", "value", "low", "high", "unit", "better", "applicable", "reason")
#: the page stays below 400 KB: pictures are drawn coarser until all of them fit; bytes grow with the resolution to the
#: power `GROWTH`. More than `FEW_PICTURES` never fit at the finest, twice three do at the likely one
PICTURE_BYTES = 300_000
RESOLUTIONS = (120, 96, 76, 60, 44)
FEW_PICTURES = 4
LIKELY_RESOLUTION = 76
GROWTH = 1.2
#: of the rollout, at which the gain of an ensemble's mean is quoted
QUOTED_SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
#: heading -> metrics by name or beginning of it; what none of them claims comes last
GROUPS: dict[str, tuple[str, ...]] = {
    "Accuracy": ("nrmse", "reconstruction", "trivial_ratio", "rel_l2", "vrmse", "rmse", "max_error"),
    "Physics": ("conservation", "dissipation", "bc_", "pde_", "spectrum"),
    "Stability and uncertainty": (
        "horizon",
        "failure",
        "excluded",
        "ece",
        "crps",
        "spread_skill",
        "sharpness",
        "ensemble",
        "point",
    ),
    "Test-time compute": ("ttc_",),
    "PDEBench's own estimators": ("pdebench_",),
}


def write_report(
    folder: RunFolder,
    record: RunRecord,
    suite: str | None,
    *,
    truth: Trajectories,
    predictions: Mapping[str, Examples],
    peers: Mapping[str, EvaluationRecord] | None = None,
) -> None:
    """All three files; json and csv hold every suite of the run, the page's pictures those of `suite`.

    suite: None leaves the page as it is, but for what it says of test-time compute.

    peers: other models' evaluations of the same protocol, shown on the page beside this one.
    """
    write_json(folder.report("json"), record)
    write_atomically(folder.report("csv"), metrics_csv(record))
    if suite is not None:
        html = page(record, suite, truth=truth, predictions=predictions, peers=peers)
        write_atomically(folder.report("html"), html)
    elif folder.report("html").is_file():
        html = folder.report("html").read_text(encoding="utf-8")
        write_atomically(folder.report("html"), with_searches(html, record))


def page(
    record: RunRecord,
    suite: str,
    *,
    truth: Trajectories,
    predictions: Mapping[str, Examples],
    peers: Mapping[str, EvaluationRecord] | None = None,
) -> str:
    """The html document; everything that came from outside is escaped."""
    evaluation = record.evaluations[suite]
    return (
        _environment()
        .get_template("evaluation.html")
        .render(
            record=record,
            evaluation=evaluation,
            searches=Markup(search_section(record)),
            others={name: e for name, e in sorted(record.evaluations.items()) if name != suite},
            pictures=_pictures(evaluation, truth, predictions),
            grouped={label: grouped(regime.metrics) for label, regime in evaluation.result.regimes.items()},
            ladders=_ladders(evaluation, peers or {}),
            lead_times={
                label: _lead_times(regime, truth.times_s[1:].tolist())
                for label, regime in evaluation.result.regimes.items()
            },
        )
    )


def search_section(record: RunRecord) -> str:
    """What every evaluation with test-time compute showed, between two comments; nothing where there is none."""
    found = {name: e for name, e in sorted(record.evaluations.items()) if searched(e)}
    return (
        _environment()
        .get_template("search.html")
        .render(
            searches={
                name: {label: lines for label in e.result.regimes if (lines := search_lines(e, label))}
                for name, e in found.items()
            },
            names={
                name: {label: search_name(e, label) for label in e.result.regimes}
                for name, e in found.items()
            },
        )
    )


def with_searches(html: str, record: RunRecord) -> str:
    """A page with that section as it is now; a page from before there was one stays as it is."""
    section = search_section(record).strip()
    first, last = section.split("\n", 1)[0], section.rsplit("<!--", 1)[1]
    pattern = re.escape(first) + ".*?" + re.escape(f"<!--{last}")
    return re.sub(pattern, lambda _: section, html, count=1, flags=re.DOTALL)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("universal_simulator.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["meaning"] = lambda name: entry(name).text
    return environment


def metrics_csv(record: RunRecord) -> str:
    """One row per suite, regime and metric."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for suite, evaluation in sorted(record.evaluations.items()):
        for regime, result in evaluation.result.regimes.items():
            for name, metric in sorted(result.metrics.items()):
                row = (metric.value, metric.low, metric.high, metric.unit, metric.better)
                writer.writerow((suite, regime, name, *row, metric.applicable, metric.reason))
    return buffer.getvalue()


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, plain from 1e-4 to 1e5, a power of ten beyond; a dash for nothing."""
    if value is None:
        return "–"
    if value == 0 or 1e-4 <= abs(value) < 1e5:
        text = f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:.0f}"
        return text.replace("-", "−")
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa.replace('-', '−')}·10{str(int(exponent)).translate(_SUPERSCRIPTS)}"


def grouped(metrics: Mapping[str, Metric]) -> dict[str, dict[str, Metric]]:
    """Metrics under their headings, each exactly once."""
    out: dict[str, dict[str, Metric]] = {heading: {} for heading in [*GROUPS, "Further"]}
    for name, metric in sorted(metrics.items()):
        heading = next((h for h, starts in GROUPS.items() if name.startswith(starts)), "Further")
        out[heading][name] = metric
    return {heading: rows for heading, rows in out.items() if rows}


def _lead_times(regime: RegimeResult, times_s: Sequence[float]) -> list[dict[str, Any]]:
    """At a few lead times the error of the point forecast, the members' mean and the operator, and what the
    point forecast saves."""
    curves, count = regime.curves, len(times_s)
    if "point_gain" not in curves:
        return []
    rows = []
    for frame in dict.fromkeys(max(0, round(share * count) - 1) for share in QUOTED_SHARES):
        gain, low, high = (curves[f"point_gain{end}"][frame] for end in ("", "_low", "_high"))
        saved = "–" if gain is None else f"{number(100 * gain)} %"
        if low is not None and high is not None:
            saved += f" ({number(100 * low)} to {number(100 * high)})"
        rows.append(
            {
                "time_s": times_s[frame],
                "point": curves["nrmse_point"][frame],
                "mean": curves["nrmse_ensemble_mean"][frame],
                "operator": curves["nrmse_operator"][frame],
                "gain": saved,
            }
        )
    return rows


def _pictures(
    evaluation: EvaluationRecord, truth: Trajectories, predictions: Mapping[str, Examples]
) -> dict[str, dict[str, str]]:
    """regime -> picture name -> base64; the finest resolution at which the page stays small.

    Drawing costs more than anything else of a page, so one regime's pictures say where to begin.
    """

    def drawn(label: str, dpi: int) -> dict[str, str]:
        return _regime_pictures(evaluation, label, truth, predictions[label], dpi)

    labels = list(evaluation.result.regimes)
    count = sum(2 + ((one.sampled or one).members is not None) for one in predictions.values())
    probed = RESOLUTIONS[0] if count <= FEW_PICTURES else LIKELY_RESOLUTION
    found = {labels[0]: drawn(labels[0], probed)}
    expected = _size(found) / len(found[labels[0]]) * count
    begin = next(
        (i for i, dpi in enumerate(RESOLUTIONS) if expected * (dpi / probed) ** GROWTH <= PICTURE_BYTES),
        len(RESOLUTIONS) - 1,
    )
    for dpi in RESOLUTIONS[begin:]:
        kept = found if dpi == probed else {}
        found = {label: kept.get(label) or drawn(label, dpi) for label in labels}
        if _size(found) <= PICTURE_BYTES:
            break
    return found


def _size(pictures: Mapping[str, Mapping[str, str]]) -> int:
    return sum(len(text) for drawn in pictures.values() for text in drawn.values())


def _regime_pictures(
    evaluation: EvaluationRecord, label: str, truth: Trajectories, examples: Examples, dpi: int
) -> dict[str, str]:
    regime, references = evaluation.result.regimes[label], evaluation.result.references.get(label, {})
    drawn = {
        "curves": curve_picture(regime, references, examples, truth, dpi=dpi),
        "fields": field_picture(examples, truth, dpi=dpi),
    }
    sampled = examples.sampled or examples
    if sampled.members is not None:
        drawn["ensemble"] = ensemble_picture(regime, sampled, truth, dpi=dpi)
    return drawn


def _operator(evaluation: EvaluationRecord, regime: RegimeResult) -> dict[str, dict[str, Metric]]:
    """The deterministic operator beside an ensemble's mean that is the headline."""
    found = regime.metrics.get("nrmse_operator")
    if found is None or evaluation.result.predictor.kind == "deterministic":
        return {}
    return {"operator alone": {"nrmse": found}}


def _ladders(
    evaluation: EvaluationRecord, peers: Mapping[str, EvaluationRecord]
) -> dict[str, tuple[Rung, ...]]:
    """regime -> everyone's nrmse, best first, with seconds per trajectory where they were observed."""
    seconds: dict[str, Any] = dict(evaluation.observation.get("classical_s_per_trajectory") or {})
    for label, value in (evaluation.observation.get("rollout_s_per_trajectory") or {}).items():
        seconds[f"{label}/"] = value
    for name, peer in peers.items():
        for label, value in (peer.observation.get("rollout_s_per_trajectory") or {}).items():
            seconds[f"{label}/{name}"] = value
    return {
        label: ladder(
            regime.metrics,
            evaluation.result.references.get(label, {})
            | _operator(evaluation, regime)
            | {name: peer.result.regimes[label].metrics for name, peer in peers.items()},
            {
                key.rpartition("/")[2]: value
                for key, value in seconds.items()
                if key.rpartition("/")[0] == label
            },
        )
        for label, regime in evaluation.result.regimes.items()
    }
