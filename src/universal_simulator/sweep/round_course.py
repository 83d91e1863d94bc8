"""One round after the written ones, from its opening to its outcome, each step journalled once.

    opening     skipped with the reason, or opened on the champion of that moment (its base)
    candidates  trials of a search, or refinements of the base; a placebo beside them
    small-eval  gates against the base; a placebo that passes or could not be judged voids the round
    winner      the best passing candidate, held to fresh seeds where the round asks for it
    full-eval   gates against the base, hard aborts among them; then the winner is champion
    scores      keys of a search that need no training, on the model that leads now; decides nothing

Typed again after any interruption, what the journal holds is not decided again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from universal_simulator.errors import ExecutorError
from universal_simulator.sweep.candidates import planned_refinements, proposed_trial
from universal_simulator.sweep.continuation import (
    NOT_AFFORDABLE,
    Standing,
    placebo_verdict,
    reason_to_skip,
)
from universal_simulator.sweep.executor import Job
from universal_simulator.sweep.gates import OF_ENSEMBLES, GateResult, crossings
from universal_simulator.sweep.inference_search import InferenceSearch
from universal_simulator.sweep.job_queue import JobQueue
from universal_simulator.sweep.jobs import evaluation_job, training_id, training_job
from universal_simulator.sweep.plan import Round
from universal_simulator.sweep.round_facts import RoundFacts
from universal_simulator.sweep.rounds import headline_value, passes, tier_results
from universal_simulator.sweep.run_planning import PLACEBO_SEED
from universal_simulator.sweep.search import confirmation
from universal_simulator.sweep.smoothing import smoothed
from universal_simulator.sweep.state import Run, SweepState


class RoundCourse:
    """`index`: the round's place in the plan. tell(text): progress in words."""

    def __init__(
        self, state: SweepState, queue: JobQueue, round_: Round, index: int, tell: Callable[[str], None]
    ) -> None:
        self.state = state
        self.plan = state.plan
        self.queue = queue
        self.round = round_
        self.index = index
        self.tell = tell
        self.facts = RoundFacts(state, round_)

    def run(self) -> None:
        if self.state.skipped(self.round.name) or not self._open():
            return
        if not self.facts.told("round_ended"):
            self._decide()
        InferenceSearch(self.state, self.queue, self.facts, self.tell).run()

    def _decide(self) -> None:
        candidates = self._search() if self.round.kind == "search" else self._refine()
        results = self._gates("small_eval", [run.run_id for run in candidates])
        if self._is_void():
            return
        winner = self._winner(candidates, results)
        if winner is None:
            tried = "no candidate passed every gate" if candidates else "none of its keys needs training"
            self.facts.end("nothing better", f"round {self.round.name}: {tried}")
        elif self._holds(winner):
            self._full_eval(winner)

    # opening

    def _open(self) -> bool:
        """Journal whether this round begins; its base is the champion of this moment."""
        if self.facts.told("round_opened"):
            return True
        base = self.facts.run(self.facts.champion()["champion"])
        told = self.plan.skip_rounds.get(self.round.name)
        reason = told or self._not_worth_it(base)
        left_out: dict[str, str] = {}
        if reason is None and self.round.kind == "search":
            box, scored = self.facts.box(base), self.facts.inference_box(base)
            left_out = {**box.left_out, **scored.left_out}
            if not box.parameters and not scored.parameters:
                reason = "none of its keys is live for the champion"
        if reason is not None:
            money = not told and reason.startswith(NOT_AFFORDABLE)
            self.facts.tell("round_skipped", reason=reason, affordable=not money)
            return False
        self.facts.tell("round_opened", base=base.run_id, left_out=left_out)
        return True

    def _not_worth_it(self, base: Run) -> str | None:
        record, baseline = (
            self.state.record(run) for run in (base.run_id, self.facts.champion()["baseline"])
        )
        assert record is not None
        assert baseline is not None
        answers: dict[str, list[str]] = {}
        for line in tier_results(self.plan, record, baseline):
            answers.setdefault(line.tier, []).append(line.answer)
        met = [t for t, a in answers.items() if "pass" in a and set(a) <= {"pass", "not_applicable"}]
        suite = "full_eval" if "full_eval" in record.evaluations else "small_eval"
        hours_per_run = (record.wall_clock_s() or 0.0) / 3600
        hours_left, usd_left = self.queue.ledger.left(self.round.name)
        standing = Standing(
            champion=headline_value(record.evaluations[suite], self.plan.headline_regime),
            tiers_met=tuple(met),
            hours_left=hours_left,
            hours_per_run=hours_per_run,
            usd_left=usd_left,
            usd_per_run=hours_per_run * self.queue.ledger.usd_per_hour(training_id(base.run_id)),
        )
        forecast = self.round.forecast.relative_reduction
        return reason_to_skip(
            standing,
            runs=self._num_runs(),
            not_below=self.round.unless_below,
            target_tier=self.plan.rest_at_tier,
            expected_gain=None if forecast is None else forecast[1],
            needed_gain=max(self.plan.gates.improvement.relative, self.facts.seed_cv() or 0.0),
        )

    def _num_runs(self) -> int:
        trials = self.round.search.trials if self.round.search else 0
        costs = math.ceil(sum(change.cost for change in self.round.refinements))
        return trials + costs + len(self.round.confirm or ()) + self.round.placebo

    # candidates

    def _search(self) -> list[Run]:
        """Trials as the facts of earlier ones allow them, several in flight."""
        search = self.round.search
        assert search is not None
        box = self.facts.box(self.facts.base)
        if not box.parameters:
            return []  # every live key is scored without training
        placebo = self._placebo_jobs()

        def more() -> list[Job]:
            runs = self.facts.of_role("trial")
            jobs = []
            while len(runs) < search.trials:
                facts = [self.facts.base_fact(box), *map(self.facts.fact, runs)]
                proposed = proposed_trial(
                    self.state.origin, self.round.name, search, box, facts, seed_cv=self.facts.seed_cv()
                )
                if proposed is None:
                    break
                words, about = proposed
                runs.append(self.facts.add_run("trial", f"trial {len(runs) + 1}", words, about=about))
                jobs.append(self._job(runs[-1]))
            return jobs

        self._train([*placebo, *map(self._job, self.facts.of_role("trial"))], more)
        return self.facts.of_role("trial")

    def _refine(self) -> list[Run]:
        """The base with one change each; what cannot act or does not fit is told and left out."""
        if not self.facts.told("refinements"):
            changes = planned_refinements(self.state, self.round, self.facts.base)
            self.facts.tell("refinements", changes=[asdict(change) for change in changes])
        jobs = self._placebo_jobs()
        told = self.facts.told("refinements") or {}
        costs = {change.name: change.cost for change in self.round.refinements}
        for change in told["changes"]:
            if change["refused"] is None:
                jobs.append(
                    self._job(
                        self.facts.add_run(
                            "refinement", change["name"], change["words"], cost=costs[change["name"]]
                        )
                    )
                )
        self._train(jobs)
        return self.facts.of_role("refinement")

    def _placebo_jobs(self) -> list[Job]:
        if not self.round.placebo:
            return []
        return [self._job(self.facts.add_run("placebo", "placebo", (), seed=PLACEBO_SEED + self.index))]

    # judgement

    def _is_void(self) -> bool:
        placebo = self.facts.of_role("placebo")
        if not placebo:
            return False
        if not self.facts.told("placebo"):
            results = self._gates("placebo", [placebo[0].run_id]).get(placebo[0].run_id, ())
            missing = self.state.why_not(training_id(placebo[0].run_id))
            verdict = placebo_verdict(results, missing=missing)
            self.facts.tell("placebo", run=placebo[0].run_id, **asdict(verdict))
        told = self.facts.told("placebo") or {}
        if told["void"]:
            self.facts.end("void", told["sentence"])
        return bool(told["void"])

    def _winner(self, candidates: Sequence[Run], results: Mapping[str, Sequence[GateResult]]) -> Run | None:
        """Of a search the lowest value as its neighbours see it, else the lowest measured."""
        values: dict[str, float | None] = {run.run_id: self.facts.value(run) for run in candidates}
        if self.round.kind == "search" and candidates:
            box = self.facts.box(self.facts.base)
            facts = [self.facts.base_fact(box), *map(self.facts.fact, candidates)]
            smooth = smoothed(box, facts, seed_cv=self.facts.seed_cv())[1:]
            values = {run.run_id: value for run, value in zip(candidates, smooth, strict=True)}
        passing = [run for run in candidates if passes(results.get(run.run_id, ()), forced=False)]
        ranked = [(value, run.run_id, run) for run in passing if (value := values[run.run_id]) is not None]
        return min(ranked)[2] if ranked else None

    def _holds(self, winner: Run) -> bool:
        """On fresh seeds; the champion's known seeds, the placebo among them, stand beside."""
        if self.round.confirm is None:
            return True
        if not self.facts.told("confirmation"):
            fresh = [
                self.facts.add_run(
                    "confirmation", f"seed {seed}", winner.overrides, seed=seed, config=winner.config
                )
                for seed in self.round.confirm
            ]
            self._train([self._job(run) for run in fresh])
            held, sentence = confirmation(
                self.facts.values(fresh),
                self.facts.values(self.facts.seeds_of(self.facts.base)),
                self.facts.values([self.facts.run(run) for run in self.state.baselines()]),
                relative=self.plan.gates.improvement.relative,
            )
            broken = self._broken_physics(fresh)
            if broken:
                held, sentence = False, f"{sentence}; not on every seed: {'; '.join(broken)}"
            self.facts.tell("confirmation", winner=winner.run_id, held=held, sentence=sentence)
        told = self.facts.told("confirmation") or {}
        if not told["held"]:
            self.facts.end(
                "not confirmed", f"{winner.run_id} did not hold on fresh seeds: {told['sentence']}"
            )
        return bool(told["held"])

    def _broken_physics(self, seeds: Sequence[Run]) -> list[str]:
        """Gates of fresh seeds against the base that block; accuracy is judged over the seeds together, and the
        calibration of one seed is noise."""
        evaluations = self.state.evaluations("small_eval")
        spoken = ("improvement", "no_regression", *OF_ENSEMBLES)
        return [
            f"{gate.name} of {run.run_id} ({gate.regime}): {gate.sentence}"
            for run in seeds
            if run.run_id in evaluations and self.facts.base.run_id in evaluations
            for gate in self.facts.judged(evaluations, run.run_id, hard=False)
            if gate.blocks and gate.name not in spoken
        ]

    def _full_eval(self, winner: Run) -> None:
        runs = [self.facts.base, winner]
        self.queue.run(
            [evaluation_job(self.plan, self.state.folder, run, "full") for run in runs],
            lambda shares, running: self.tell(f"round {self.round.name}: full-eval of its winner"),
        )
        self._refuse_incomplete([f"full:{run.run_id}" for run in runs])
        for run in runs:
            words = self.state.refused_by_ceiling(f"full:{run.run_id}")
            if words is not None:
                self.facts.end(
                    "not evaluated", f"{winner.run_id} is not champion. Not evaluated: ceiling: {words}"
                )
                return
        results = self._gates("full_eval", [winner.run_id]).get(winner.run_id, ())
        evaluations = self.state.evaluations("full_eval")
        if not passes(results, forced=False):
            blocking = [f"{gate.name} ({gate.regime}): {gate.sentence}" for gate in results if gate.blocks]
            self.facts.end(
                "rejected", f"{winner.run_id} fails in full-eval: {'; '.join(blocking) or 'no result'}"
            )
            return
        ours, theirs = (
            headline_value(evaluations[r.run_id], self.plan.headline_regime)
            for r in (winner, self.facts.base)
        )
        told = crossings(
            [gate.as_dict() for gate in results],
            evaluations[winner.run_id],
            against="that of the champion before",
        )
        excused = "".join(f"; {words}" for words in told)
        sentence = (
            f"{winner.run_id} is champion: nRMSE {ours:.4f} against {theirs:.4f} of {self.facts.base.run_id} before "
            f"({1 - ours / theirs:.0%} lower, {self.plan.headline_regime}, full-eval, round {self.round.name}), "
            f"every gate passed{excused}."
        )
        if self.facts.champion()["champion"] != winner.run_id:
            self.state.journal.append(
                "champion",
                champion=winner.run_id,
                baseline=self.facts.champion()["baseline"],
                beat_baseline=True,
                sentence=sentence,
                round=self.round.name,
            )
        self.facts.end("promoted", sentence)

    def _gates(self, suite: str, runs: Sequence[str]) -> dict[str, list[GateResult]]:
        """Against the base; `placebo` is a suite of its own in the journal and small-eval in the records."""
        evaluations = self.state.evaluations("small_eval" if suite == "placebo" else suite)
        found = {
            run: self.facts.judged(evaluations, run, hard=suite == "full_eval")
            for run in runs
            if run in evaluations and self.facts.base.run_id in evaluations
        }
        if not any(e.data["suite"] == suite for e in self.facts.events("round_gates")):
            told = {run: [gate.as_dict() for gate in gates] for run, gates in found.items()}
            self.facts.tell("round_gates", suite=suite, gates=told)
        return found

    def _job(self, run: Run) -> Job:
        return training_job(self.plan, self.state.folder, run)

    def _train(self, jobs: Sequence[Job], more: Callable[[], list[Job]] = list) -> None:
        self.queue.run(
            jobs,
            lambda shares, running: self.tell(
                f"round {self.round.name}: {', '.join(name.removeprefix('train:') for name in running)}"
            ),
            more=more,
        )
        self._refuse_incomplete(
            [training_id(run.run_id) for run in self.state.runs if run.round == self.round.name]
        )

    def _refuse_incomplete(self, jobs: Sequence[str]) -> None:
        broken = [j for j in jobs if self.state.failed(j) and not self.state.failed_for_good(j)]
        if broken:
            raise ExecutorError(
                f"incomplete: round {self.round.name} lost {', '.join(broken)} and decided nothing. Mend the "
                f"cause and type the command again. Last words:\n{self.state.last_words(broken[0])}"
            )
