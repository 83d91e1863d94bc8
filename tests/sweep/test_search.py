"""Round C's parts: box, facts, proposals, bounds, confirmation."""

from __future__ import annotations

import math
import random
import subprocess
import sys

import pytest

from universal_simulator.configuration import load_config
from universal_simulator.configuration.documents import flatten
from universal_simulator.sweep.gates import GateResult
from universal_simulator.sweep.proposals import propose
from universal_simulator.sweep.search import (
    Box,
    Fact,
    Parameter,
    ask_seed,
    best,
    confirmation,
    dead_because,
    gate_margins,
    make_box,
    needs_training,
    recentre,
    visible_facts,
)
from universal_simulator.sweep.smoothing import smoothed

PLAN_KEYS = (
    "training.operator.learning_rate",
    "training.operator.grad_clip",
    "training.loss.lambda_spectral",
    "ttc.residual_threshold",
)
SQUARE = Box((Parameter("x", 0.8, 1.2), Parameter("y", 0.8, 1.2)))


def bowl(values: dict[str, float]) -> float:
    """Lowest, 0.05, at x = 0.9, y = 1.1."""
    return 0.05 * math.exp(8 * ((values["x"] - 0.9) ** 2 + (values["y"] - 1.1) ** 2) / 0.16)


def test_box_is_the_plans_share_around_effective_values_and_says_what_it_left_out() -> None:
    effective = flatten(load_config("rerun_txxoc8a8", profile="embedded").config.model_dump(mode="json"))
    box = make_box(PLAN_KEYS, effective, width=0.2)
    rate = box.parameters[0]
    assert (rate.low, rate.high) == pytest.approx((0.8 * 3e-3, 1.2 * 3e-3))
    assert box.keys == PLAN_KEYS[:3]
    assert "off for this member" in box.left_out["ttc.residual_threshold"]
    assert make_box(PLAN_KEYS, {**effective, "ttc.enabled": True}, width=0.2).keys == PLAN_KEYS
    regressed = {**effective, "ttc.enabled": True, "ttc.combine": "regress"}
    box = make_box(["ttc.residual_threshold", "ttc.candidates", "ttc.temperature"], regressed, width=0.2)
    assert box.keys == ("ttc.residual_threshold",)
    assert set(box.left_out) == {"ttc.candidates", "ttc.temperature"}
    assert dead_because("ttc.candidates", regressed) is None, "a refinement trains its reward on them"
    assert "no such key" in str(dead_because("training.operator.lr", effective))
    assert "share of nothing" in str(dead_because("training.operator.eta_min", effective))
    assert "no codec stage" in str(
        dead_because("training.codec.learning_rate", {**effective, "training.stages": ["operator"]})
    )
    assert [needs_training(key) for key in PLAN_KEYS] == [True, True, True, False]


def test_a_trial_knows_what_lies_far_enough_back_whoever_finished_first() -> None:
    done = [Fact({"x": 1 + i / 100, "y": 1.0}, objective=0.1) for i in range(4)]
    known, running = visible_facts(done, trial=4, in_flight=2)
    assert (known, [fact.values for fact in running]) == (done[:3], [done[3].values])
    assert not any(fact.finished for fact in running)
    # finished or not, the one in flight is told as running: the proposal cannot depend on it
    late = [*done[:3], Fact(done[3].values)]
    assert visible_facts(late, trial=4, in_flight=2) == (known, running)
    with pytest.raises(ValueError, match="waits for the trials up to 3"):
        visible_facts([*done[:3], Fact(done[3].values)], trial=5, in_flight=2)


def test_proposals_are_functions_of_facts_and_seed() -> None:
    facts = [
        Fact({"x": x, "y": y}, bowl({"x": x, "y": y})) for x, y in ((1.0, 1.0), (0.85, 1.15), (1.1, 0.9))
    ]
    seed = ask_seed("plan", "C", 3)
    first = propose(SQUARE, facts, seed=seed, seed_cv=0.1)
    assert first == propose(SQUARE, facts, seed=seed, seed_cv=0.1)
    assert first.how == "by the model"
    assert all(p.low <= first.values[p.key] <= p.high for p in SQUARE.parameters)
    assert propose(SQUARE, facts[:1], seed=seed, seed_cv=0.1).how.startswith("at random")
    beside = propose(SQUARE, facts, [Fact(first.values)], seed=seed, seed_cv=0.1)
    assert max(abs(beside.values[k] - first.values[k]) for k in first.values) > 0.01


def test_measured_noise_reaches_the_model() -> None:
    """A lucky point beside a bowl: believed, it draws the next trial; as noise, the bowl does."""
    box = Box((Parameter("x", 0.8, 1.2),))
    xs = (0.82, 0.86, 0.9, 0.94, 0.98, 1.02, 1.05, 1.15)
    curve = {x: 0.05 * math.exp(0.8 * (x - 0.9) ** 2 / 0.04) for x in xs} | {1.05: 0.045}
    facts = [Fact({"x": x}, value) for x, value in curve.items()]
    calm, noisy = (propose(box, facts, seed=1, seed_cv=cv).values["x"] for cv in (1e-4, 0.3))
    assert calm == pytest.approx(1.06, abs=0.02)
    assert noisy == pytest.approx(0.9, abs=0.03)


def test_search_finds_the_bowl_and_keeps_out_of_what_gates_forbid() -> None:
    """The lowest allowed point is at y = 1.0: above it a gate fails; a failed trial is no result."""

    def found(gates: bool) -> Fact:
        def answer(values: dict[str, float]) -> Fact:
            if values["x"] > 1.15:
                return Fact(values, failure="diverged")
            return Fact(values, bowl(values), {"bc_violation": (1.0 - values["y"]) / 0.2} if gates else {})

        facts = [answer({"x": 1.0, "y": 0.95})]
        for trial in range(1, 13):
            known, running = visible_facts(facts, trial=trial, in_flight=2)
            asked = propose(SQUARE, known, running, seed=ask_seed("bowl", trial), seed_cv=0.01)
            facts.append(answer(asked.values))
        return facts[best(facts) or 0]

    free, gated = found(gates=False), found(gates=True)
    assert free.objective == pytest.approx(0.05, rel=0.05)
    assert free.values["y"] > 1.03
    assert gated.values["y"] <= 1.0
    assert gated.objective == pytest.approx(bowl({"x": 0.9, "y": 1.0}), rel=0.12)


def test_repeated_point_becomes_a_random_one() -> None:
    corner = Box((Parameter("x", 0.8, 1.2),))
    facts = [Fact({"x": x}, x) for x in (1.2, 1.1, 1.0, 0.9, 0.8)]
    asked = propose(corner, facts, seed=3, seed_cv=0.01)
    assert asked.how == "at random: the model repeated a trial" or asked.values["x"] > 0.801


def test_box_moves_once_to_a_best_trial_at_its_edge() -> None:
    facts = [
        Fact({"x": 1.0, "y": 1.0}, 0.1),
        Fact({"x": 1.2, "y": 1.05}, 0.08),
        Fact({"x": 0.8, "y": 1.0}, 0.2),
    ]
    moved = recentre(SQUARE, facts, width=0.2)
    assert moved is not None
    assert (moved.parameters[0].low, moved.parameters[0].high) == pytest.approx((0.96, 1.44))
    assert moved.parameters[1] == SQUARE.parameters[1]
    assert recentre(moved, [*facts, Fact({"x": 1.44, "y": 1.0}, 0.01)], width=0.2) is None
    assert recentre(SQUARE, [facts[0]], width=0.2) is None
    forbidden = Fact({"x": 1.2, "y": 1.2}, 0.01, {"ece": -0.1})
    assert recentre(SQUARE, [facts[0], forbidden], width=0.2) is None
    # facts outside of the moved box still count, proposals lie inside of it
    asked = propose(moved, facts, seed=5, seed_cv=0.05)
    assert 0.96 <= asked.values["x"] <= 1.44


def test_margins_are_the_worst_over_regimes_and_the_same_for_every_scale() -> None:
    gates = [
        GateResult("bc_violation", "a", "pass", "", 0.8, 1.0, 1.0, 0.2),
        GateResult("bc_violation", "b", "fail", "", 3.0, 2.0, 2.0, -1.0),
        GateResult("conservation_gap", "a", "not_evaluable", "missing"),
        GateResult("ece", "a", "not_applicable", "declared so"),
        GateResult("improvement", "a", "fail", "", 1.0, 1.0, 0.9, -0.1),
    ]
    assert gate_margins(gates) == {"bc_violation": -0.5, "conservation_gap": -1.0}


def test_winner_must_hold_on_three_fresh_seeds() -> None:
    seeds = (0.1, 0.11, 0.12)
    held, sentence = confirmation([0.05, 0.052, 0.051], [0.1], seeds, relative=0.11)
    assert held, sentence
    lucky, sentence = confirmation([0.097, 0.101, 0.095], [0.1], seeds, relative=0.11)
    assert not lucky
    assert "no" in sentence
    # a third better, but seeds vary by a quarter and the champion was seen once
    assert not confirmation([0.066, 0.068, 0.067], [0.1], (0.08, 0.1, 0.13), relative=0.11)[0]
    assert confirmation([0.066, 0.068, 0.067], [0.1, 0.101, 0.099], (0.1, 0.11, 0.105), relative=0.11)[0]
    assert "three" in confirmation([0.05, 0.05], [0.1], seeds, relative=0.11)[1]


def test_false_confirmations_are_as_rare_as_promised() -> None:
    """Fresh seeds of an equal, no relative share asked: one in twenty holds."""
    chance = random.Random(0)

    def seeds(count: int) -> list[float]:
        return [0.1 * math.exp(0.15 * chance.gauss(0, 1)) for _ in range(count)]

    held = sum(confirmation(seeds(3), seeds(1), seeds(3), relative=0.0)[0] for _ in range(4000))
    assert held / 4000 == pytest.approx(0.05, abs=0.01)


def test_neither_optuna_nor_torch_is_imported_before_the_first_ask() -> None:
    code = "import sys, universal_simulator.sweep.proposals as p; print('optuna' in sys.modules, 'torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "False"]


def test_smoothing_forgets_luck_and_keeps_what_neighbours_agree_on() -> None:
    """Twelve noisy values of a slope: the lowest smoothed one is nearer to the true lowest than the measured."""
    chance = random.Random(2)
    box = Box((Parameter("x", 0.8, 1.2),))
    worse = smooth = 0.0
    for _ in range(20):
        xs = [0.8 + 0.4 * i / 11 for i in range(12)]
        facts = [Fact({"x": x}, 0.1 * math.exp(0.8 * (x - 1) + 0.15 * chance.gauss(0, 1))) for x in xs]
        values = [value or math.inf for value in smoothed(box, facts, seed_cv=0.15)]
        worse += xs[min(range(12), key=lambda i: facts[i].objective or 0)]
        smooth += xs[min(range(12), key=lambda i: values[i])]
    assert smooth < worse - 0.5
    assert smoothed(box, facts, seed_cv=None) == [fact.objective for fact in facts]
    failed = smoothed(box, [*facts, Fact({"x": 1.0}, failure="diverged")], seed_cv=0.15)
    assert failed[-1] is None
    exact = smoothed(box, facts, seed_cv=1e-6)
    assert exact == pytest.approx([fact.objective for fact in facts], rel=1e-3)
