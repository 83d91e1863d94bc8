"""What a sweep says in words: what changed, what the champion is worth, what a forecast came to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest

from tests.sweep.fake_executor import FakeExecutor
from tests.sweep.records import evaluation, run_record
from universal_simulator.cli.sweep import explain
from universal_simulator.configuration import load_config
from universal_simulator.run_record import (
    Draws,
    Metric,
    RunFolder,
    RunRecord,
    read_document,
    write_json,
)
from universal_simulator.sweep.driver import run_sweep
from universal_simulator.sweep.executor import Job
from universal_simulator.sweep.fates import fate, round_sentences
from universal_simulator.sweep.gates import GateResult
from universal_simulator.sweep.hypotheses import scored_forecasts
from universal_simulator.sweep.plan import Forecast, Member, Round, load_plan
from universal_simulator.sweep.report import report_path
from universal_simulator.sweep.rounds import choose_champion
from universal_simulator.sweep.verdicts import changed, verdict

R = "nu=0.05"


def configured(name: str, *words: str) -> RunRecord:
    record = run_record(f"{name}-s0", name, 0, {})
    assert record.training is not None
    config = load_config(name, words, profile="smoke").config.model_dump(mode="json")
    result = record.training.result.model_copy(update={"effective_config": config})
    return record.model_copy(update={"training": record.training.model_copy(update={"result": result})})


def test_what_changed_is_what_the_headline_reads() -> None:
    member, baseline = configured("sweep_round_a_lr3e4_w5"), configured("rerun_txxoc8a8")
    told = changed(member, baseline).split("; ")
    assert any(part.startswith("operator.learning_rate ") for part in told)
    assert not any("diff_residual" in part or "consistency" in part or "ttc" in part for part in told)
    assert told[-1].endswith("settings of the stochastic stages, which the headline does not read")
    words = ("evaluation.headline=ensemble_mean", "evaluation.ensemble_groups=null")
    told = changed(configured("sweep_round_a_lr3e4_w5", *words), configured("rerun_txxoc8a8", *words)).split(
        "; "
    )
    assert any(part.startswith("diff_residual.learning_rate ") for part in told)
    assert changed(baseline, baseline) == "nothing"


@pytest.mark.parametrize(
    ("seeds", "said"), [(("a", "b", "c"), "mean over 3 baseline seeds is 0.0900 (44% lower)"), (("a",), "")]
)
def test_the_champion_stands_beside_the_mean_of_the_baselines_seeds(
    seeds: tuple[str, ...], said: str
) -> None:
    records = {
        name: evaluation(name, value) for name, value in (("a", 0.11), ("b", 0.08), ("c", 0.08), ("x", 0.05))
    }
    passing = {"x": [GateResult("improvement", R, "pass", "better")]}
    verdict = choose_champion("a", ["x"], passing, records, headline=R, seeds=seeds)
    assert "0.0500 against 0.1100 of the baseline (55% lower" in verdict.sentence
    assert said in verdict.sentence
    assert ("baseline seeds" in verdict.sentence) == bool(said)


def test_a_forecast_that_was_exceeded_is_no_failure_and_the_page_tells_wall_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = run_sweep("smoke", tmp_path, executor=FakeExecutor(member=0.03))
    page = report_path(tmp_path).read_text()
    assert 'class="not_evaluable">exceeded</td>' in page
    assert "more than forecast" in page
    assert "s from the first event to the last" in page
    explain(tmp_path, None, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {run.run_id for run in state.runs}
    member = next(run.run_id for run in state.runs if run.role == "member")
    assert len(told[member]["verdict"]) == 3
    assert {gate["answer"] for gate in told[member]["gates"]["small_eval"]}


def test_why_each_run_was_kept_or_rejected_is_told_on_the_page_and_in_explain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A member that passes every gate and is rejected, since its round promotes one, has no failing gate to show."""
    plan = load_plan("smoke")
    (first,) = plan.rounds[0].members
    members = (first.model_copy(update={"forced": False}), Member(config="sweep_round_a_lr45e4_w5"))
    lost = Round(
        name="B",
        hypothesis="h",
        forecast=Forecast(below=0.05),
        members=(Member(config="sweep_round_b_deeper"),),
    )
    rounds = (plan.rounds[0].model_copy(update={"members": members}), lost)
    told_out = {"ablation_fno_plain_frame": "Left out for its time."}
    plan = plan.model_copy(update={"rounds": rounds, "skip_references": told_out})
    state = run_sweep(plan, tmp_path, executor=Rates())
    runs = {run.config: run.run_id for run in state.runs if run.role == "member"}
    winner, second, third = (runs[name] for name in (first.config, members[1].config, "sweep_round_b_deeper"))
    assert fate(state, winner) == "kept: champion"
    assert fate(state, second).startswith(
        f"rejected: passes every gate, but its round promotes one and {winner} is lower, nRMSE 0.0500 against 0.0600"
    )
    assert fate(state, second).count("beyond noise") == 2, "the other regime is told as well"
    assert fate(state, third) == "rejected: fails improvement (nu=0.05), no_regression (nu=0.1)"
    assert round_sentences(state) == {
        "A": f"Round A promotes {winner} (best passing member, nrmse 0.05)",
        "B": "Round B promotes nobody: 1 of 1 fail improvement (nu=0.05), 1 of 1 fail no_regression (nu=0.1)",
    }
    explain(tmp_path, second, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told[second]["fate"], told[second]["round"]) == (fate(state, second), round_sentences(state)["A"])
    explain(tmp_path, second)
    plain = capsys.readouterr().out
    assert plain.startswith(f"{winner} is champion")
    assert fate(state, second) in plain
    page = report_path(tmp_path).read_text()
    for sentence in (*round_sentences(state).values(), *(fate(state, run) for run in runs.values())):
        assert f">{sentence}<" in page
    assert "Left out for its time." in page
    assert page.index("<h2>Why each run was kept or rejected</h2>") < page.index(
        "<h2>The sealed test split</h2>"
    )
    assert '<th class="n">nRMSE (test split)</th>' in page


class Rates(FakeExecutor):
    """Full-eval's figures are not small-eval's; each config its own value."""

    values: ClassVar = {
        "sweep_round_a_lr3e4_w5": 0.05,
        "sweep_round_a_lr45e4_w5": 0.06,
        "sweep_round_b_deeper": 0.2,
    }

    def quality(self, config: str, seed: int, words: list[str]) -> float:
        return self.values.get(config, super().quality(config, seed, words))


def test_a_run_that_noise_excuses_is_not_said_to_pass_plainly(tmp_path: Path) -> None:
    """The second member's ece lies above the line, by no more than noise."""

    class Loose(Rates):
        def work(self, job: Job) -> None:
            super().work(job)
            if job.arguments[:2] != ("run", "sweep_round_a_lr45e4_w5"):
                return
            words = list(job.arguments)
            files = RunFolder(job.folder, words[words.index("--run-id") + 1])
            record = read_document(files.summary, RunRecord)
            found = record.evaluations["small_eval"]
            loose = {
                "draws": {"ece": Draws(groups=8, values=tuple(0.01 * index for index in range(10)))},
            }
            regimes = {
                name: regime.model_copy(
                    update=loose | {"metrics": {**regime.metrics, "ece": Metric(value=0.045)}}
                )
                for name, regime in found.result.regimes.items()
            }
            result = found.result.model_copy(update={"regimes": regimes})
            evaluations = {"small_eval": found.model_copy(update={"result": result})}
            write_json(files.summary, record.model_copy(update={"evaluations": evaluations}))

    plan = load_plan("smoke")
    members = (Member(config="sweep_round_a_lr3e4_w5"), Member(config="sweep_round_a_lr45e4_w5"))
    plan = plan.model_copy(update={"rounds": (plan.rounds[0].model_copy(update={"members": members}),)})
    state = run_sweep(plan, tmp_path, executor=Loose())
    second = next(run.run_id for run in state.runs if run.config == members[1].config)
    excused = (
        "passes every gate (within noise alone: ece (nu=0.05), ece (nu=0.1)), but its round promotes one"
    )
    assert excused in fate(state, second)
    assert '<td class="within_noise">above the line, within noise</td>' in report_path(tmp_path).read_text()


def test_no_table_of_the_page_mixes_protocols(tmp_path: Path) -> None:
    """Who was not promoted has no full-eval; its small-eval figures must not stand in the same column."""
    plan = load_plan("smoke")
    members = (Member(config="sweep_round_a_lr3e4_w5"), Member(config="sweep_round_a_lr45e4_w5"))
    plan = plan.model_copy(update={"rounds": (plan.rounds[0].model_copy(update={"members": members}),)})
    state = run_sweep(plan, tmp_path, executor=Rates())
    rejected = next(run.run_id for run in state.runs if run.config == members[1].config)
    page = report_path(tmp_path).read_text()
    parts = page.split("<h3>")[1:]
    full = [part for part in parts if part.startswith("full-eval: full_eval split, 40 initial conditions")]
    small = [part for part in parts if part.startswith("small-eval: small_eval split, 40 initial conditions")]
    assert len(full) == len(small) == 2, "one of each a regime"
    for table in full:
        assert f"eval_{rejected}.html" not in table.partition("</table>")[0]
    for table in small:
        assert f"eval_{rejected}.html" in table.partition("</table>")[0]
    assert "0.0300 (4 x 8)" in full[0], "members and conditions stand beside an ece"


def test_a_forecast_is_not_met_by_what_its_own_gate_calls_noise(tmp_path: Path) -> None:
    """Against the mean of the seeds the reduction is as forecast; against the first of them it is within their spread."""

    class Spread(FakeExecutor):
        def quality(self, config: str, seed: int, words: list[str]) -> float:
            return (0.1, 0.16, 0.13)[seed] if config.startswith("rerun") else 0.085

    plan = load_plan("smoke")
    member = plan.rounds[0].members[0].model_copy(update={"forced": False})
    absolute = plan.rounds[0].model_copy(
        update={
            "name": "B",
            "forecast": Forecast(below=0.09),
            "members": (Member(config="sweep_round_b_deeper"),),
        }
    )
    rounds = (plan.rounds[0].model_copy(update={"members": (member,)}), absolute)
    state = run_sweep(plan.model_copy(update={"rounds": rounds}), tmp_path, executor=Spread())
    relative, below = scored_forecasts(state)
    assert (relative["words"], relative["colour"]) == ("within noise", "within_noise")
    assert "measured 34.6% lower: as forecast" in relative["text"].replace(
        "more than forecast", "as forecast"
    )
    assert "15.0% lower than rerun_txxoc8a8-s0" in relative["text"]
    assert "fail, not beyond noise" in relative["text"]
    assert below["words"] == "pass"
    assert "against" not in below["text"], "an absolute forecast has no reference"


def test_what_next_is_not_the_same_for_every_run(tmp_path: Path) -> None:
    plan = load_plan("smoke")
    members = tuple(Member(config=f"sweep_round_a_{name}") for name in ("lr3e4_w5", "lr45e4_w5"))
    plan = plan.model_copy(update={"rounds": (plan.rounds[0].model_copy(update={"members": members}),)})
    state = run_sweep(plan, tmp_path, executor=Truthful())
    found = {run.config: verdict(state, run.run_id)[2] for run in state.runs}
    assert "this one is the best: try lower still" in found[members[0].config]
    assert "this one is too high: try " in found[members[1].config]
    assert found["fno_reference"] == "next: nothing to change: it shows what candidates are worth"
    assert (
        "the last quarter of its operator stage lowered the validation error by 50%"
        in found[members[0].config]
    )


class Truthful(Rates):
    """With the effective config that the words give, and a curve of validations."""

    def work(self, job: Job) -> None:
        super().work(job)
        if job.arguments[0] != "run":
            return
        words = list(job.arguments)
        files = RunFolder(job.folder, words[words.index("--run-id") + 1])
        record = read_document(files.summary, RunRecord)
        assert record.training is not None
        config = load_config(words[1], profile="smoke").config.model_dump(mode="json")
        result = record.training.result.model_copy(update={"effective_config": config})
        training = record.training.model_copy(update={"result": result})
        write_json(files.summary, record.model_copy(update={"training": training}))
        curve = [(1, 0.8), (2, 0.4), (3, 0.2), (4, 0.1)]
        lines = [json.dumps({"step": s, "validation_raw": v, "validation_ema": 2 * v}) for s, v in curve]
        files.metrics_log("operator").write_text("\n".join([*lines, '{"step": 5, "valid']))
