"""`reports/leaderboard.csv`: the plan's ten columns first, one row per run, suite and regime."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from universal_simulator.run_record import RunRecord, content_hash, write_atomically
from universal_simulator.sweep.gates import ensemble_conditions
from universal_simulator.sweep.state import Run, SweepState

PLAN_COLUMNS = (
    "run_id",
    "timestamp",
    "label",
    "nrmse",
    "conservation_gap",
    "bc_violation",
    "ece",
    "wall_clock",
    "params",
    "tags",
)
RESULT_METRICS = (
    "nrmse_median",
    "nrmse_p95",
    "nrmse_raw",
    "nrmse_step",
    "reconstruction",
    "trivial_ratio",
    "conservation_gap_guarded",
    "conservation_gap_reference",
    "horizon",
    "failure_rate",
)
IDENTITY_COLUMNS = (
    "seed",
    "params_corrector",
    "headline_flops",
    "training_flops",
    "optimiser_steps",
    "protocol_hash",
    "predictor_hash",
    "model_hash",
    "config_hash",
    "data_identity",
    "code_version",
    "test_openings",
)
#: what an ece rests on: members of an ensemble, initial conditions that had one, and its companion
ENSEMBLE_COLUMNS = ("ece_members", "ece_conditions", "crps_skill")
COLUMNS = (
    *PLAN_COLUMNS,
    *ENSEMBLE_COLUMNS,
    "suite",
    "regime",
    "nrmse_low",
    "nrmse_high",
    *RESULT_METRICS,
    *IDENTITY_COLUMNS,
)
#: what happened this time, not what was found
OBSERVED = ("timestamp", "wall_clock")


def leaderboard_path(folder: Path) -> Path:
    return folder / "reports" / "leaderboard.csv"


def leaderboard_rows(state: SweepState) -> list[dict[str, Any]]:
    """All rows, best headline first within suite and regime; a function of journal and records."""
    decision = state.decision("champion")
    champion = decision["champion"] if decision else None
    openings = len(state.journal.of("test_opened"))
    rows = []
    records = state.records()
    for run in state.runs:
        record = records.get(run.run_id)
        if record is not None and record.training is not None:
            rows += _rows(run, record, champion, openings)
    return sorted(rows, key=lambda row: (row["suite"], row["regime"], row["nrmse"] or 1e9, row["run_id"]))


def _rows(run: Run, record: RunRecord, champion: str | None, openings: int) -> list[dict[str, Any]]:
    assert record.training is not None
    training = record.training.result
    rows = []
    for suite, evaluation in sorted(record.evaluations.items()):
        label = run.role if run.role != "member" else suite
        if run.run_id == champion and suite in ("full_eval", "test"):
            label = "champion"
        for regime, result in evaluation.result.regimes.items():
            metrics = {name: metric.value for name, metric in result.metrics.items()}
            nrmse = result.metrics["nrmse"]
            ece = result.metrics.get("ece")
            ensemble = ece is not None and ece.applicable
            rows.append(
                {
                    "run_id": run.run_id,
                    "timestamp": evaluation.observation.get("finished_at"),
                    "label": label,
                    "nrmse": nrmse.value,
                    "conservation_gap": metrics.get("conservation_gap"),
                    "bc_violation": metrics.get("bc_violation"),
                    "ece": ece.value if ece is not None and ensemble else "not applicable",
                    "ece_members": evaluation.result.predictor.members if ensemble else None,
                    "ece_conditions": ensemble_conditions(result) if ensemble else None,
                    "crps_skill": metrics.get("crps_skill"),
                    "wall_clock": record.wall_clock_s(),
                    "params": training.params,
                    "tags": " ".join(record.tags),
                    "suite": suite,
                    "regime": regime,
                    "nrmse_low": nrmse.low,
                    "nrmse_high": nrmse.high,
                    **{name: metrics.get(name) for name in RESULT_METRICS},
                    "seed": training.seed,
                    "params_corrector": training.params_corrector,
                    "headline_flops": training.compared_flops,
                    "training_flops": training.training_flops,
                    "optimiser_steps": training.optimiser_steps,
                    "protocol_hash": evaluation.result.protocol.hash,
                    "predictor_hash": evaluation.result.predictor.hash,
                    "model_hash": evaluation.result.predictor.model_hash,
                    "config_hash": training.config_hash,
                    "data_identity": training.data_identity,
                    "code_version": training.code_version,
                    "test_openings": openings,
                }
            )
    return rows


def write_leaderboard(state: SweepState) -> Path:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(leaderboard_rows(state))
    path = leaderboard_path(state.folder)
    write_atomically(path, buffer.getvalue())
    return path


def result_digest(state: SweepState) -> str:
    """Hash of every result column and decision: what a repeated or interrupted sweep must reproduce."""
    rows = [{k: v for k, v in row.items() if k not in OBSERVED} for row in leaderboard_rows(state)]
    kinds = ("small_eval_gates", "promotions", "full_eval_gates", "champion")
    decisions: dict[str, Any] = {kind: state.decision(kind) for kind in kinds}
    for kind in ("placebo", "round_gates", "confirmation", "round_ended"):
        decisions[kind] = [event.data for event in state.journal.of(kind)]
    decisions["inference_scored"] = [
        [(s["key"], s["value"], s["result"]) for s in event.data["scores"]]
        for event in state.journal.of("inference_scored")
    ]
    return content_hash({"rows": rows, "decisions": decisions})
