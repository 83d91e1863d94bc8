"""A plan is judged whole before anything runs: every fault at once, each in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from universal_simulator.errors import ConfigurationError, UserError
from universal_simulator.sweep.plan import load_plan
from universal_simulator.sweep.run_planning import refuse_unfit

FAULTY = """
extends: smoke
headline_regime: nu=0.3
references:
  - {config: fno_reference, ablates: nobody}
  - {config: no_such_config}
  - {config: fno_reference, compute_matched_to: fno_reference, forced: true}
rounds:
  - name: A
    hypothesis: h
    forecast: {relative_reduction: [0.2, 0.4], below: 0.05}
    members:
      - {config: sweep_round_a_lr3e4_w5, overrides: [training.operator.learnin_rate=1e-3]}
      - {config: sweep_round_a_lr2e4_w3, ablates: rerun_txxoc8a8}
  - {name: A, hypothesis: h, forecast: {}, members: [{config: sweep_round_a_lr2e4_w3}]}
gates:
  limits: {reconstructoin: {at_most: 0.5}}
ladder:
  - {name: one, below: 0.05}
  - {name: two, below: 0.05}
tiers:
  - name: minimum
    criteria:
      - {metric: nrmse, at_most: 0.07, below: 0.05}
      - {metric: speed, at_least: 1}
      - {metric: wall_clock}
"""


def faults_of(tmp_path: Path, text: str) -> tuple[str, ...]:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as error:
        load_plan(path)
    return error.value.faults


@pytest.mark.parametrize("name", ["smoke", "sota", "sota_embedded", "sota_standard"])
def test_the_committed_plans_have_no_fault(name: str) -> None:
    load_plan(name)


def test_the_costly_plans_are_measured_first_and_held_to_the_plans_own_total() -> None:
    """Timed plans say why they are not; nothing of them has a price."""
    plans = {
        name: load_plan(name) for name in ("sota", "sota_standard", "sota_embedded", "smoke", "sota_smoke")
    }
    assert {name for name, plan in plans.items() if plan.calibrate} == {"sota", "sota_standard"}
    assert plans["sota"].budget.sweep.usd == 33
    assert min(machine.price_usd_per_hour for machine in plans["sota"].machines.values()) > 0


def test_only_the_full_plan_asks_for_gpus() -> None:
    names = ("sota", "sota_standard", "sota_embedded", "sota_smoke", "smoke", "smoke_iterate")
    gpus = {name: {machine.gpus for machine in load_plan(name).machines.values()} for name in names}
    assert gpus == {name: {1 if name == "sota" else 0} for name in names}


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    faults = faults_of(tmp_path, FAULTY)
    expected = [
        "headline_regime: 'nu=0.3' is not in burgers_smoke",
        "references.0: ablates 'nobody' is no config of this plan",
        "references.1.config: no configs file 'no_such_config'",
        "references.2: compute_matched_to names the config itself",
        "references.2.forced: a reference is no candidate",
        "rounds.0.forecast: Value error, give exactly one of relative_reduction",
        "rounds.1.forecast: Value error, give exactly one of relative_reduction",
        "rounds.0.members.0.config: sweep_round_a_lr3e4_w5.yaml: training.operator.learnin_rate: unknown key; did you mean",
        "rounds.0.members.1.ablates: only a reference can say that",
        "rounds: A is the name of two rounds",
        "rounds.1.members.0: sweep_round_a_lr2e4_w3 is a member twice",
        "gates.limits: 'reconstructoin' is no metric",
        "ladder.1.below: 0.05 after 0.05",
        "tiers.0.criteria.0: Value error, give exactly one of at_most",
        "tiers.0.criteria.1: 'speed' is no metric",
        "tiers.0.criteria.2: Value error, give exactly one of at_most",
        "rest_at_tier: 'stretch' is no tier of this plan",
    ]
    for start in expected:
        assert any(fault.startswith(start) for fault in faults), (start, faults)
    assert len(faults) == len(expected), faults


def test_data_are_looked_for_before_anything_runs(tmp_path: Path) -> None:
    (fault,) = faults_of(tmp_path, f"extends: smoke\ndataset: {tmp_path}/mine.hdf5\n")
    assert "mine.hdf5 does not exist" in fault
    assert any("no configs/data file" in f for f in faults_of(tmp_path, "extends: smoke\ndataset: nothing\n"))
    assert any(f.startswith("profile:") for f in faults_of(tmp_path, "extends: smoke\nprofile: nothing\n"))


def test_a_data_file_is_named_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep resumed from another folder still finds it."""
    (tmp_path / "mine.hdf5").write_bytes(b"")
    (tmp_path / "plan.yaml").write_text("extends: smoke\ndataset: mine.hdf5\n")
    monkeypatch.chdir(tmp_path)
    assert load_plan("plan.yaml").dataset == str(tmp_path / "mine.hdf5")


def test_data_that_lack_a_split_the_sweep_ends_with_are_refused_before_training() -> None:
    plan = load_plan("smoke")
    whole = dict.fromkeys(("train", "calibration", "validation", "selection", "test"), 4)
    refuse_unfit(plan, {"regimes": [plan.headline_regime], "groups_per_split": whole})
    refuse_unfit(plan, {"regimes": [plan.headline_regime]})  # generated: the specification fills them all
    with pytest.raises(UserError, match="a sweep needs: selection, test; bring more"):
        refuse_unfit(plan, {"groups_per_split": whole | {"selection": 0, "test": 0}})
    with pytest.raises(UserError, match="a sweep needs: all of them"):
        refuse_unfit(plan, {"groups_per_split": {}})


def test_every_config_answers_as_the_predictor_that_the_plan_names(tmp_path: Path) -> None:
    """A label that nothing holds to would gate an ensemble's mean against deterministic rivals."""
    words = "guards.mass_projection=false, evaluation.headline=ensemble_mean, evaluation.ensemble_groups=null"
    text = f"""
extends: smoke_iterate
rounds:
  - name: A
    hypothesis: h
    forecast: {{below: 0.05}}
    members: [{{config: sweep_round_a_lr3e4_w5, overrides: [{words}]}}]
  - name: D
    kind: refine
    hypothesis: h
    forecast: {{below: 0.05}}
    refinements: [{{name: search, set: {{ttc.enabled: true}}}}]
skip_rounds: {{}}
"""
    faults = faults_of(tmp_path, text)
    for start in (
        "rounds.0.members.0.config: evaluation.headline is ensemble_mean, needs deterministic",
        "rounds.0.members.0.config: guards.mass_projection is off, needs true",
        "rounds.1.refinements.0.set: ttc.enabled is true, needs false",
    ):
        assert any(fault.startswith(start) for fault in faults), (start, faults)
    assert len(faults) == 3, faults


def test_what_a_plan_leaves_out_of_its_references_is_no_reference_of_it(tmp_path: Path) -> None:
    skipped = load_plan("sota_embedded").skip_references
    assert set(skipped) == {"ablation_fno_plain_frame", "rerun_txxoc8a8 compute of sweep_aggressive_sota"}
    (fault,) = faults_of(tmp_path, "extends: smoke\nskip_references: {fno_reference: why}\n")
    assert fault.startswith("skip_references: 'fno_reference' is a reference of this plan")
