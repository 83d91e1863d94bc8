"""What a round after the written ones is known by: its base, its runs, their facts, its journal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from universal_simulator.run_record import EvaluationRecord
from universal_simulator.sweep.candidates import effective_config
from universal_simulator.sweep.gates import GateResult, seed_spread
from universal_simulator.sweep.jobs import training_id
from universal_simulator.sweep.journal import Event
from universal_simulator.sweep.plan import Round
from universal_simulator.sweep.rounds import gate_results, headline_value
from universal_simulator.sweep.run_planning import Wish, identified
from universal_simulator.sweep.search import (
    Box,
    Fact,
    gate_margins,
    is_search_key,
    make_box,
    needs_training,
)
from universal_simulator.sweep.state import Run, SweepState


class RoundFacts:
    """Reads journal and records; writes the round's own events, each once (`told` before `tell`)."""

    def __init__(self, state: SweepState, round_: Round) -> None:
        self.state = state
        self.plan = state.plan
        self.round = round_
        self._margins: dict[str, dict[str, float]] = {}

    @property
    def base(self) -> Run:
        event = self.told("round_opened")
        assert event is not None
        return self.run(event["base"])

    def add_run(
        self,
        role: str,
        key: str,
        words: Sequence[str],
        *,
        seed: int | None = None,
        config: str | None = None,
        cost: float = 1.0,
        about: Mapping[str, Any] | None = None,
    ) -> Run:
        """The round's run of this role and key: the journalled one, or planned now on the base."""
        for run in self.of_role(role):
            if run.key == key:
                return run
        base = self.base
        wish = Wish(
            base.config if config is None else config,
            base.seed if seed is None else seed,
            role,
            self.round.name,
            base.cost * cost,
            tuple(words) if config is not None else (*base.overrides, *words),
            key=key,
            machine=base.machine,
        )
        (run,) = identified(self.plan, [wish], data_identity=self.state.data_identity, known=self.state.runs)
        self.state.journal.append(
            "run_added", run=asdict(run), why=f"{role} of round {self.round.name}: {key}", about=about or {}
        )
        return run

    def of_role(self, role: str) -> list[Run]:
        return [run for run in self.state.runs if run.role == role and run.round == self.round.name]

    def run(self, run_id: str) -> Run:
        found = self.state.run(run_id)
        assert found is not None, run_id
        return found

    def champion(self) -> dict[str, Any]:
        decision = self.state.decision("champion")
        assert decision is not None, "rounds after the written ones begin when there is a champion"
        return decision

    def events(self, kind: str) -> list[Event]:
        return [e for e in self.state.journal.of(kind) if e.data.get("round") == self.round.name]

    def told(self, kind: str) -> dict[str, Any] | None:
        events = self.events(kind)
        return events[-1].data if events else None

    def tell(self, kind: str, **data: Any) -> None:
        self.state.journal.append(kind, round=self.round.name, **data)

    def end(self, outcome: str, sentence: str) -> None:
        self.tell("round_ended", outcome=outcome, sentence=sentence)

    def judged(
        self, evaluations: Mapping[str, EvaluationRecord], run_id: str, *, hard: bool
    ) -> list[GateResult]:
        """Gates of a run against the base, whose seed spread is the baseline's as a share of its value."""
        return gate_results(
            self.plan.gates,
            evaluations[run_id],
            evaluations[self.base.run_id],
            headline=self.plan.headline_regime,
            baseline_seeds=[],
            hard=hard,
            seed_cv=self.seed_cv(evaluations),
        )

    def box(self, base: Run) -> Box:
        """The box of keys that trials are trained for, around a base; others cannot move the headline."""
        search = self.round.search
        assert search is not None
        keys = [key for key in search.keys if not is_search_key(key)]
        box = make_box(keys, effective_config(self.plan, base), width=search.width)
        untouched = {
            p.key: f"the headline predictor is {self.plan.predictor}: no value of it changes the objective"
            for p in box.parameters
            if not needs_training(p.key)
        }
        kept = tuple(p for p in box.parameters if p.key not in untouched)
        return Box(kept, {**box.left_out, **untouched})

    def inference_box(self, base: Run) -> Box:
        """The box of `ttc.*` keys, which are scored on a trained model with test-time compute on."""
        search = self.round.search
        assert search is not None
        keys = [key for key in search.keys if is_search_key(key)]
        return make_box(keys, self.effective_with_search(base), width=search.width)

    def effective_with_search(self, base: Run) -> dict[str, Any]:
        """The base's flattened effective config with test-time compute on."""
        return {**effective_config(self.plan, base), "ttc.enabled": True}

    def base_fact(self, box: Box) -> Fact:
        return Fact({p.key: p.centre for p in box.parameters}, self.value(self.base))

    def fact(self, trial: Run) -> Fact:
        """What is known of a trial; one that its surroundings broke counts as not finished."""
        values = self.state.about(trial.run_id)["values"]
        job = training_id(trial.run_id)
        if self.state.failed_for_good(job):
            return Fact(values, failure=self.state.last_words(job))
        if not self.state.done(job):
            return Fact(values)
        value = self.value(trial)
        if value is None:
            return Fact(values, failure="no nrmse on the headline regime")
        if trial.run_id not in self._margins:
            gates = self.judged(self.state.evaluations("small_eval"), trial.run_id, hard=False)
            self._margins[trial.run_id] = gate_margins(gates)
        return Fact(values, value, self._margins[trial.run_id])

    def value(self, run: Run) -> float | None:
        record = self.state.record(run.run_id)
        evaluation = record.evaluations.get("small_eval") if record else None
        value = headline_value(evaluation, self.plan.headline_regime) if evaluation else math.inf
        return value if math.isfinite(value) else None

    def values(self, runs: Sequence[Run]) -> list[float]:
        return [value for run in runs if (value := self.value(run)) is not None]

    def seed_cv(self, evaluations: Mapping[str, EvaluationRecord] | None = None) -> float | None:
        """Measured coefficient of variation of the baseline's nrmse over its seeds (small-eval)."""
        evaluations = self.state.evaluations("small_eval") if evaluations is None else evaluations
        seeds = [evaluations[run] for run in self.state.baselines() if run in evaluations]
        spread = seed_spread(seeds, self.plan.headline_regime)
        if spread is None:
            return None
        return spread * len(seeds) / math.fsum(headline_value(e, self.plan.headline_regime) for e in seeds)

    def seeds_of(self, base: Run) -> list[Run]:
        """Runs of the base's own effective config, whatever their seed."""
        mine = (base.config, base.overrides)
        return [run for run in self.state.runs if (run.config, run.overrides) == mine]
