"""An evaluation with test-time compute, line by line in the order in which it is to be read: the bound first.

Read by the command line and by pages; knows records alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from universal_simulator.evaluation.glossary import entry
from universal_simulator.run_record import EvaluationRecord, Metric

#: metrics in their order; in the place of SECONDS stand gains at equal seconds, which are observed
SECONDS = "at equal seconds"
ORDER = (
    "ttc_oracle_gain",
    "ttc_answer_gain",
    "ttc_spread_over_error",
    "ttc_spearman",
    "ttc_reward_informs",
    "ttc_gain_equal_evaluations",
    "ttc_gain_equal_operations",
    SECONDS,
    "ttc_gain_over_operator",
    "ttc_gain_over_ensemble",
    "ttc_gain_over_ensemble_equal_operations",
    "ttc_gain_over_representations",
    "ttc_gain_over_representations_equal_operations",
    "ttc_gain_over_random",
    "ttc_gain_over_first",
    "ttc_evaluations",
    "ttc_operations",
    "ttc_segments",
    "ttc_reward_evaluations",
    "ttc_reward_nans",
    "ttc_dropped",
)
RIVALS = ("operator", "ensemble", "representations")


@dataclass(frozen=True)
class Line:
    """name: of the metric. value: with its interval, or why there is none. note: what belongs to it."""

    name: str
    value: str
    meaning: str
    note: str = ""


def searched(record: EvaluationRecord) -> bool:
    """Whether diagnostics of test-time compute stand in it."""
    return any("ttc_oracle_gain" in regime.metrics for regime in record.result.regimes.values())


def search_name(record: EvaluationRecord, regime: str) -> str:
    """How its row is called: a reward that cannot be told from a random one says so in the name."""
    informs = record.result.regimes[regime].metrics.get("ttc_reward_informs")
    looped = ", solver in the loop" if record.result.predictor.solver_in_the_loop else ""
    if informs is None or not informs.applicable:
        return f"TTC (nothing ranked){looped}"
    return f"TTC (learned){'' if informs.value else ', uninformed'}{looped}"


def search_lines(record: EvaluationRecord, regime: str) -> list[Line]:
    """Every line of one regime; empty where it was not diagnosed."""
    metrics = record.result.regimes[regime].metrics
    if "ttc_oracle_gain" not in metrics:
        return []
    observed = record.observation.get("ttc", {}).get(regime, {})
    lines: list[Line] = []
    for name in ORDER:
        if name == SECONDS:
            lines += _seconds(observed)
        elif name in metrics:
            note = metrics[name].reason if metrics[name].value is not None else ""
            if name == "ttc_answer_gain":
                note = "; ".join(filter(None, [_share(metrics), note]))
            lines.append(Line(name, told(metrics[name]), entry(name).text, note))
    return lines


def told(metric: Metric) -> str:
    """Value and interval, or that it is missing or not applicable, and why."""
    if metric.value is None:
        return f"{'missing' if metric.applicable else 'not applicable'}: {metric.reason}".removesuffix(": ")
    return _number(metric.value, metric.low, metric.high)


def _seconds(observed: Mapping[str, Any]) -> list[Line]:
    """Gains at equal seconds of the machine it ran on."""
    lines = []
    named = {"gain_equal_seconds": "the best of them"} | {
        f"gain_over_{name}_equal_seconds": f"{name} ({observed.get(f'equal_seconds_{name}', 0):.0f})"
        for name in RIVALS
    }
    for key, rival in named.items():
        if key in observed:
            value = _number(observed[key], observed.get(f"{key}_low"), observed.get(f"{key}_high"))
            meaning = f"nrmse saved of {rival} at as many seconds of this machine or more; an observation"
            lines.append(Line(f"ttc_{key}", value, meaning))
    return lines


def _share(metrics: Mapping[str, Metric]) -> str:
    """What of the bound the answer reaches."""
    bound, answer = metrics["ttc_oracle_gain"].value, metrics["ttc_answer_gain"].value
    return f"{answer / bound:.0%} of the bound" if bound and bound > 0 and answer is not None else ""


def _number(value: float, low: float | None, high: float | None) -> str:
    interval = "" if low is None or high is None else f" ({low:.4g} to {high:.4g})"
    return f"{value:.4g}{interval}"
