"""What the student's gate said of every run, in one sentence: a student that nobody judged is no student that passed."""

from __future__ import annotations

from collections.abc import Mapping

from universal_simulator.run_record import RunRecord, StochasticResult

#: in this order
ANSWERS = {
    "pass": "passed on {}",
    "fail": "failed on {}, where the teacher answers",
    "not applicable": "had nothing to judge on {}",
    "not evaluable": "was NOT JUDGED on {}, whose student answers unjudged",
}


def students_sentence(records: Mapping[str, RunRecord]) -> str | None:
    """None where no run trained a student; why the unjudged ones were not judged is quoted."""
    found = {run: told for run, record in records.items() if (told := _stochastic(record)) is not None}
    gates = [told.gate for told in found.values() if told.gate is not None]
    if not gates:
        return None
    parts = [
        words.format(f"{count} run{'' if count == 1 else 's'}")
        for answer, words in ANSWERS.items()
        if (count := gates.count(answer))  # type: ignore[arg-type] # its keys are the answers
    ]
    reasons = dict.fromkeys(told.decision for told in found.values() if told.gate == "not evaluable")
    why = f" ({'; '.join(reasons)})" if reasons else ""
    return f"The student's gate (nine tenths of the teacher's gain in CRPS) {', '.join(parts)}{why}."


def _stochastic(record: RunRecord) -> StochasticResult | None:
    return None if record.training is None else record.training.result.stochastic
