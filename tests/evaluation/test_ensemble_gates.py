"""The embedded plan's gates of ensembles, on the records that evaluation writes: noise passes, cheats do not."""

from __future__ import annotations

import torch

from tests.evaluation.stochastic_world import ConstantWidth, Exact, IgnoresTheSeed
from tests.sweep.records import protocol
from universal_simulator.data.batch import Trajectories
from universal_simulator.data.dataset import Dataset
from universal_simulator.evaluation import uncertainty
from universal_simulator.evaluation.calibration_fit import fit_calibration
from universal_simulator.evaluation.ensemble import EnsembleMeasurement, EnsembleRules
from universal_simulator.evaluation.evaluator import Evaluator
from universal_simulator.evaluation.paired_draws import DRAWS, ece_draws
from universal_simulator.run_record import (
    EvaluationRecord,
    EvaluationResult,
    Metric,
    Predictor,
    RegimeResult,
)
from universal_simulator.sweep.gates import GateResult, limit_gate, ratio_gate
from universal_simulator.sweep.plan import Ratio, load_plan

#: the embedded profile's
GROUPS, MEMBERS = 12, 4
PLAN = load_plan("sota_embedded").gates


def record_of(run: str, regime: RegimeResult) -> EvaluationRecord:
    result = EvaluationResult(
        protocol=protocol("validation", groups=GROUPS, steps=8, stride=1),
        predictor=Predictor(model_hash=run, weights="ema", guards=()),
        regimes={"all": regime},
    )
    return EvaluationRecord(suite="small_eval", run_id=run, result=result)


def asked(predictor: Exact, data: Dataset, *, seed: int = 0) -> EvaluationRecord:
    truth: Trajectories = data.load("selection").of_first_groups(GROUPS)
    calibration = fit_calibration(predictor, data.load("calibration_uncertainty"), data)
    rules = EnsembleRules.of(truth, calibration, first_frame=0, headline="ensemble_mean", noise_seed=seed)
    results, _ = Evaluator(truth, {}, batch_size=64, bootstrap_samples=200, ensemble=rules).run(predictor)
    return record_of(f"{type(predictor).__name__} {seed}", results["all"])


def gates(candidate: EvaluationRecord, reference: EvaluationRecord) -> dict[str, GateResult]:
    found = {"ece": ratio_gate("ece", PLAN.small_eval["ece"], candidate, reference, "all")}
    limit = PLAN.limits["crps_skill"]
    return found | {"crps_skill": limit_gate("crps_skill", limit, candidate, "all", headline=True)}


def test_right_ensembles_pass_and_cheats_fail_the_embedded_plans_gates(data: Dataset) -> None:
    reference = asked(Exact(MEMBERS), data)
    honest = gates(asked(Exact(MEMBERS), data, seed=1), reference)
    assert [gate.answer for gate in honest.values()] == ["pass", "pass"], honest
    dead = gates(asked(IgnoresTheSeed(MEMBERS), data), reference)
    assert [gate.answer for gate in dead.values()] == ["fail", "fail"], dead
    assert "beyond noise" in dead["ece"].sentence
    for seed in range(4):
        constant = gates(asked(ConstantWidth(MEMBERS), data, seed=seed), reference)
        assert constant["ece"].answer == "pass", "its coverage gives nothing away"
        assert constant["crps_skill"].answer == "fail", "no luck of the draw lets it pass"
    smoke = load_plan("smoke").gates.limits["crps_skill"]
    verdict = limit_gate("crps_skill", smoke, asked(IgnoresTheSeed(MEMBERS), data), "all", headline=True)
    assert verdict.answer == "fail", "the shortest plan still knows a dead ensemble"


def test_draws_are_the_bootstrap_of_the_recorded_value_and_pair_with_those_of_others(data: Dataset) -> None:
    one, other = (asked(Exact(MEMBERS), data, seed=seed) for seed in (0, 1))
    regimes = [record.result.regimes["all"] for record in (one, other)]
    for regime in regimes:
        drawn = torch.tensor(regime.draws["ece"].values)
        assert len(drawn) == DRAWS
        assert regime.draws["ece"].groups == GROUPS
        value = regime.metrics["ece"].value
        assert value is not None
        assert float(drawn.min()) < 1.5 * value
        assert float(drawn.mean()) > value, "a resample only raises it"
    assert regimes[0].draws != regimes[1].draws
    again = asked(Exact(MEMBERS), data)
    assert again.result.regimes["all"].draws == regimes[0].draws, "deterministic"


def noisy(run: str, seed: int) -> EvaluationRecord:
    """A calibrated ensemble whose every trajectory is covered throughout or not at all: the most that noise can do."""
    generator = torch.Generator().manual_seed(seed)
    levels = uncertainty.central_levels(MEMBERS)
    inside = torch.rand(GROUPS, 1, 1, generator=generator, dtype=torch.float64) < levels
    covered = inside.double().expand(GROUPS, 5, len(levels)).contiguous()
    groups = tuple(f"g{index}" for index in range(GROUPS))
    value = float(uncertainty.ece(covered, levels))
    regime = RegimeResult(
        parameters={},
        metrics={"ece": Metric(value=value)},
        groups=groups,
        per_group={},
        draws=ece_draws(groups, EnsembleMeasurement(MEMBERS, {"coverage": covered})),
    )
    return record_of(run, regime)


def test_of_two_ensembles_alike_noise_fails_hardly_any() -> None:
    rule, bare = Ratio(max_ratio=1.25, absolute=0.02, beyond_noise=True), Ratio(max_ratio=1.25, absolute=0.02)
    failed = {True: 0, False: 0}
    for pair in range(120):
        candidate, reference = noisy("x", 2 * pair), noisy("y", 2 * pair + 1)
        for asks, one in ((True, rule), (False, bare)):
            failed[asks] += ratio_gate("ece", one, candidate, reference, "all").answer == "fail"
    assert failed[False] > 30, "the ratio alone is a coin that noise tosses"
    assert failed[True] <= 6, "at most one in twenty"
