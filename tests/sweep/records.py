"""Run records made by hand, for gates and drivers."""

from __future__ import annotations

import numpy as np

from universal_simulator.identity import code_version
from universal_simulator.run_record import (
    Draws,
    EvaluationRecord,
    EvaluationResult,
    Metric,
    Predictor,
    Protocol,
    RegimeResult,
    RunRecord,
    TrainingRecord,
    TrainingResult,
    content_hash,
)

REGIMES = ("nu=0.05", "nu=0.1")
GROUPS = tuple(f"g{i}" for i in range(40))


def protocol(split: str, *, groups: int, steps: int, stride: int = 2, points: int = 64) -> Protocol:
    """From frame 0 of a data set called d."""
    return Protocol(
        name="rollout",
        dataset_identity="d",
        split=split,
        first_frame=0,
        time_stride=stride,
        steps=steps,
        points=points,
        num_groups=groups,
        groups_hash="g",
    )


def evaluation(
    run_id: str,
    nrmse: float,
    *,
    suite: str = "small_eval",
    gap: float = 0.01,
    steps: int = 64,
    spread: float = 0.1,
    drop: str | None = None,
) -> EvaluationRecord:
    """nrmse varies over groups by `spread` (the same way for every run), both regimes alike."""
    factors = 1 + spread * np.linspace(-1, 1, len(GROUPS))
    metrics = {
        name: Metric(value=value)
        for name, value in {
            "nrmse": nrmse,
            "nrmse_step": nrmse / 10,
            "reconstruction": nrmse / 20,
            "nrmse_median": nrmse,
            "nrmse_p95": nrmse,
            "nrmse_raw": nrmse,
            "trivial_ratio": nrmse / 0.4,
            "conservation_gap": gap,
            "conservation_gap_guarded": 0.0,
            "conservation_gap_reference": 0.0,
            "bc_violation": 1e-7,
            "horizon": 64.0,
            "failure_rate": 0.0,
            "ece": 0.03,
            "crps_skill": 0.1,
        }.items()
        if name != drop
    }
    metrics["pde_residual"] = Metric(value=None, applicable=False, reason="no residual is written")
    per_group = tuple(float(v) for v in nrmse * factors)
    result = EvaluationResult(
        protocol=protocol(suite, groups=len(GROUPS), steps=steps),
        predictor=Predictor(
            model_hash=content_hash(run_id), weights="ema", guards=("mass_projection",), members=4
        ),
        regimes={
            r: RegimeResult(
                parameters={"nu": 0.1},
                metrics=metrics,
                groups=GROUPS,
                per_group={"nrmse": per_group},
                draws={"ece": Draws(groups=8, values=(0.03,) * 10)},
            )
            for r in REGIMES
        },
    )
    observed = {"wall_clock_s": 1.0, "code_version": code_version()}
    return EvaluationRecord(suite=suite, run_id=run_id, result=result, observation=observed)


def run_record(run_id: str, name: str, seed: int, evaluations: dict[str, EvaluationRecord]) -> RunRecord:
    training = TrainingResult(
        config_name=name,
        config_hash=content_hash(name),
        effective_config={"seed": seed, "name": name},
        data_identity="d",
        code_version="c",
        seed=seed,
        params=10,
        optimiser_steps=5,
        training_flops=1e9,
        model_hash=content_hash(run_id),
        weights_kept="ema",
        validation={"best_nrmse": 0.1, "best_step": 5.0},
        stages=("operator",),
    )
    return RunRecord(
        run_id=run_id,
        status="finished",
        training=TrainingRecord(result=training, observation={"wall_clock_s": 2.0}),
        evaluations=evaluations,
    )
