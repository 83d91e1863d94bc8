"""Keys of a search that only inference reads: scored on one stored model by evaluation alone.

After a search round has its outcome, each of its `ttc.*` keys takes `values` values across its box around the
champion's own, [(1 - w) c, (1 + w) c], with test-time compute on, on small-eval. No run is trained, planned or
compared with anything; the headline stays the plan's predictor, and what is found is told beside it:
another value is *worth a change* where the paired 95 % interval against the champion's own value
excludes zero. One job scores all settings, since they share one model and one folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from universal_simulator.errors import IntegrityError
from universal_simulator.run_record import EvaluationRecord, content_hash
from universal_simulator.sweep.gates import paired_interval
from universal_simulator.sweep.job_queue import JobQueue
from universal_simulator.sweep.jobs import scoring_job
from universal_simulator.sweep.round_facts import RoundFacts
from universal_simulator.sweep.rounds import headline_value
from universal_simulator.sweep.score_records import scored_record
from universal_simulator.sweep.search import Parameter
from universal_simulator.sweep.state import Run, SweepState

EVENT = "inference_scored"


@dataclass(frozen=True)
class Score:
    """One value of one key. own: the champion's own value of it.

    gain: paired 95 % interval of nrmse at the own value minus nrmse here, None where it cannot be
    formed. evaluations: of the model beyond the plain rollout, per trajectory.
    """

    key: str
    value: float
    own: bool
    nrmse: float | None
    evaluations: float
    seconds: float
    gain: tuple[float, float] | None
    result: str


def settings_of(parameter: Parameter, own: float, *, values: int) -> list[float]:
    """So many values evenly across the box, the own one among them; whole numbers where that is one."""
    spread = [parameter.at(index / (values - 1)) for index in range(values)]
    if isinstance(own, int):
        spread = [float(max(1, round(value))) for value in spread]
    return sorted({*spread, float(own)})


def word(key: str, value: float, own: float) -> str:
    return f"{key}={int(value) if isinstance(own, int) else value!r}"


def value_of(record: EvaluationRecord, regime: str) -> float | None:
    """nrmse of the headline regime, None where it is missing."""
    found = headline_value(record, regime)
    return found if math.isfinite(found) else None


class InferenceSearch:
    """The scoring of one round; journalled once, as one event."""

    def __init__(
        self, state: SweepState, queue: JobQueue, facts: RoundFacts, tell: Callable[[str], None]
    ) -> None:
        self.state = state
        self.queue = queue
        self.facts = facts
        self.tell = tell

    def run(self) -> None:
        """On the champion of now, unless it is told already or no key of the round is such a one."""
        subject = self.facts.run(self.facts.champion()["champion"])
        search = self.facts.round.search
        if search is None or self.facts.told(EVENT):
            return
        box = self.facts.inference_box(subject)
        own = self.facts.effective_with_search(subject)
        wanted = {
            (p.key, value): word(p.key, value, own[p.key])
            for p in box.parameters
            for value in settings_of(p, own[p.key], values=search.values)
        }
        if not wanted:
            return
        job = scoring_job(self.state.plan, self.state.folder, subject, list(wanted.values()))
        self.queue.run(
            [job], lambda shares, _: self.tell(f"round {self.facts.round.name}: scoring {job.job_id}")
        )
        # it decides nothing, so nothing waits for it; page and list of failed jobs show it
        failure, scores = None, list[Score]()
        try:
            if self.state.done(job.job_id):
                scores = self._scores(subject, wanted, own)
            else:
                failure = self.state.last_words(job.job_id)
        except IntegrityError as error:
            # damaged since it came back
            failure = str(error)
        self.facts.tell(
            EVENT,
            run=subject.run_id,
            job=job.job_id,
            scores=[asdict(score) for score in scores],
            sentences=[self._sentence(subject, p, scores) for p in box.parameters if scores],
            failure=failure,
        )

    def _scores(self, subject: Run, wanted: dict[tuple[str, float], str], own: dict[str, Any]) -> list[Score]:
        headline = self.state.plan.headline_regime
        records = {place: scored_record(self.state, subject, [words]) for place, words in wanted.items()}
        scores = []
        for (key, value), record in records.items():
            base = records[key, float(own[key])].result.regimes[headline]
            scores.append(
                Score(
                    key=key,
                    value=value,
                    own=value == float(own[key]),
                    nrmse=value_of(record, headline),
                    evaluations=float(record.observation["evaluations_per_sample"]),
                    seconds=float(record.observation["wall_clock_s"]),
                    gain=paired_interval(record.result.regimes[headline], base),
                    result=content_hash(record.result.model_dump(mode="json")),
                )
            )
        return scores

    def _sentence(self, subject: Run, parameter: Parameter, scores: Sequence[Score]) -> str:
        mine = [score for score in scores if score.key == parameter.key]
        own = next(score for score in mine if score.own)
        known = [(score.nrmse, score.value, score) for score in mine if score.nrmse is not None]
        plain = self.facts.value(subject)
        text = (
            f"{parameter.key}: {len(mine)} values from {mine[0].value:g} to {mine[-1].value:g}, nrmse with test-time "
            f"compute {_told(own.nrmse)} at its own {own.value:g} ({own.evaluations:.0f} more evaluations a "
            f"trajectory), plainly {_told(plain)}"
        )
        if not known:
            return f"{text}; none has a figure"
        best = min(known)[2]
        if best.own:
            return f"{text}; no other value is lower"
        sure = best.gain is not None and best.gain[0] > 0
        judged = (
            "worth a change" if sure else "indistinguishable from it (the paired 95 % interval holds zero)"
        )
        edge = "" if parameter.low < best.value < parameter.high else ", at the box's bound"
        return f"{text}; lowest {_told(best.nrmse)} at {best.value:g}{edge}: {judged}"


def _told(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"
