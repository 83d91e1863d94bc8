"""The plan's numbers, the profile's rule, refusal of everything faulty, identity."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from universal_simulator.cli.config import check
from universal_simulator.configuration import load_config
from universal_simulator.configuration.profiles import Profile, apply_profile
from universal_simulator.configuration.schema import LossConfig, ModelConfig
from universal_simulator.configuration.steady import is_steady
from universal_simulator.errors import ConfigurationError, UserError
from universal_simulator.sweep.plan import load_plan

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml") if not is_steady(path))
PROFILES = sorted(path.stem for path in (ROOT / "configs" / "profiles").glob("*.yaml"))
MEMBERS = (
    "rerun_txxoc8a8",
    "sweep_round_a_lr2e4_w3",
    "sweep_round_a_lr3e4_w5",
    "sweep_round_a_lr45e4_w5",
    "sweep_round_b_capacity_up",
    "sweep_round_b_deeper",
    "sweep_aggressive_sota",
)
OP, D, T, S = "model.options.operator.", "model.options.decoder.", "training.", "training.operator."
#: the plan's table, row by row, in the order of MEMBERS
TABLE: dict[str, tuple[object, ...]] = {
    "model.options.latent_dim": (32, 32, 32, 32, 32, 32, 48),
    "model.options.latent_tokens": (16, 16, 16, 16, 32, 24, 48),
    OP + "hidden": (64, 64, 64, 64, 96, 80, 128),
    OP + "depths": ([1, 1, 1],) * 5 + ([2, 2, 2],) * 2,
    OP + "group_size": (8, 8, 8, 8, 12, 10, 16),
    OP + "heads": (4, 4, 4, 4, 6, 5, 8),
    "model.corrector.hidden": (64, 64, 64, 64, 96, 80, 128),
    D + "hidden": (64, 64, 64, 64, 96, 80, 128),
    D + "mlp_hidden": (128, 128, 128, 128, 192, 160, 256),
    D + "layers": (3, 3, 3, 3, 3, 4, 4),
    D + "heads": (4, 4, 4, 4, 6, 5, 8),
    D + "frequencies": ([1, 2, 4, 8],) * 6 + ([1, 2, 4, 8, 16],),
    T + "batch_size": (12, 12, 12, 12, 10, 10, 8),
    T + "accumulation": (4, 4, 4, 4, 5, 5, 6),
    S + "epochs": (15, 20, 20, 20, 20, 22, 30),
    T + "diff_residual.epochs": (5, 8, 8, 8, 8, 8, 12),
    T + "consistency_distill.epochs": (6, 8, 8, 8, 8, 8, 12),
    S + "learning_rate": (1e-3, 2e-4, 3e-4, 4.5e-4, 4e-4, 3.5e-4, 3.5e-4),
    S + "warmup_ratio": (0, 0.03, 0.05, 0.05, 0.05, 0.06, 0.06),
    S + "schedule": ("constant",) + ("cosine",) * 6,
    S + "eta_min": (0, 5e-6, 7.5e-6, 1e-5, 1e-5, 8e-6, 1e-5),
    S + "betas": ([0.9, 0.999],) + ([0.9, 0.95],) * 6,
    S + "ema_decay": (0.999, 0.9995, 0.9995, 0.9999, 0.9995, 0.9995, 0.9997),
    S + "weight_decay": (0.01,) * 6 + (0.03,),
    S + "grad_clip": (1.0,) * 5 + (0.8,) * 2,
    T + "loss.lambda_spectral": (0.05,) * 6 + (0.08,),
    T + "diff_residual.learning_rate": (3e-5, 2e-5, 2.5e-5, 3e-5, 3e-5, 2.5e-5, 3.5e-5),
    T + "diff_residual.weight_decay": (0.01, 0.01, 0.01, 0.01, 0.01, 0.015, 0.02),
    T + "consistency_distill.learning_rate": (2e-5, 1.5e-5, 1.8e-5, 2.2e-5, 2e-5, 1.8e-5, 2.5e-5),
    T + "consistency_distill.weight_decay": (0.01, 0.01, 0.01, 0.01, 0.01, 0.015, 0.02),
    T + "consistency_distill.batch_size": (6, 6, 6, 6, 5, 5, 4),
    T + "consistency_distill.accumulation": (2, 2, 2, 2, 2, 2, 3),
    T + "consistency_distill.taus": (5, 5, 5, 5, 5, 5, 8),
    S + "patience_epochs": (10,) * 6 + (15,),
    "ttc.steps": (1,) * 6 + (2,),
    "ttc.candidates": (8,) * 6 + (12,),
    "ttc.beam": (3,) * 6 + (4,),
    "ttc.horizon": (1,) * 7,
    "ttc.residual_threshold": (0.35,) * 6 + (0.30,),
    "ttc.gamma": (1.0,) * 6 + (1.2,),
    "ttc.max_evaluations": (150,) * 6 + (200,),
    "ttc.tau_range": ([0.15, 0.85],) * 6 + ([0.1, 0.9],),
    "ttc.noise_std": (0.015,) * 6 + (0.012,),
    "ttc.noise_schedule": ([0.03, 0.015, 0.005],) * 6 + ([0.025, 0.012, 0.004],),
    "ttc.reward_weights.mass": (1.2,) * 6 + (1.5,),
    "ttc.reward_weights.energy": (0.15,) * 6 + (0.2,),
    "ttc.reward_weights.negativity": (0.6,) * 6 + (0.8,),
    "tracking.group": ("baseline-experiments",)
    + ("sota-sweep-round-a",) * 3
    + ("sota-sweep-round-b",) * 2
    + ("sota-aggressive",),
}


@pytest.mark.parametrize("key", TABLE)
def test_members_carry_the_plans_numbers(key: str) -> None:
    for member, expected in zip(MEMBERS, TABLE[key], strict=True):
        value: object = load_config(member).plan_values
        for part in key.split("."):
            value = value[part]  # type: ignore[index]
        assert value == expected, member


#: beginnings of the members' effective hashes, in the order of MEMBERS: a new key of the schema changes all, a
#: change of the loader none
HASHES = {
    "embedded": "8c1ecf81 35b872f7 9192e042 ae5c130e 4ed84ab3 fb4ac818 180f8bbd",
    "full": "8966ac86 21add35c fe4efcb0 7647b4ca 66611ad3 66645d5b 9002185d",
    "smoke": "84cdfa47 19497d60 cc788aae 3c18b478 e3bb673b 4e9fda88 c2ff6b2d",
    "standard": "fa26f12c d148f740 4433275b 495ce4cf 13a17733 c85d8606 7f0c8b74",
}


@pytest.mark.parametrize("profile", PROFILES)
def test_what_the_members_mean_in_a_profile_changes_with_the_schema_alone(profile: str) -> None:
    assert [load_config(name, profile=profile).hash[:8] for name in MEMBERS] == HASHES[profile].split()


def test_a_profile_is_laid_over_the_base_and_a_configs_own_values_stay(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    own = "evaluation: {small_groups: 5, ensemble_groups: null, headline: ensemble_mean}\n"
    file.write_text(f"extends: rerun_txxoc8a8\ntraining: {{validations: 9}}\n{own}")
    loaded = load_config(file, profile="smoke")
    config, rules = loaded.config, {key: rule for key, _, _, rule in loaded.rows()}
    assert (config.training.validations, config.evaluation.small_groups) == (9, 5)
    assert config.evaluation.ensemble_groups is None, "a value of null is one"
    assert config.evaluation.members == 4, "of which the config says nothing"
    assert rules["evaluation.small_groups"] == "the config's own, not profile smoke's 8"
    assert rules["evaluation.members"] == "set by profile smoke"
    given = load_config(file, ["evaluation.small_groups=7"], profile="smoke")
    assert given.config.evaluation.small_groups == 7
    assert dict((row[0], row[3]) for row in given.rows())["evaluation.small_groups"].startswith("given")
    further = tmp_path / "further.yaml"
    further.write_text("extends: own\nseed: 1\n")
    assert load_config(further, profile="smoke").config.training.validations == 9


@pytest.mark.parametrize("profile", PROFILES)
def test_each_value_that_departs_from_the_plans_says_its_rule(profile: str) -> None:
    aliases = {"steps": "epochs", "patience_steps": "patience_epochs"}
    for member in MEMBERS:
        for key, plan, effective, rule in load_config(member, profile=profile).rows():
            if plan is not None and plan != effective and key.rpartition(".")[2] not in aliases:
                assert rule or key == "profile", f"{member}: {key}"


@pytest.mark.parametrize("profile", PROFILES)
def test_every_committed_config_loads_in_every_profile(profile: str) -> None:
    for name in CONFIGS:
        assert load_config(name, profile=profile).config.profile == profile


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "plans").glob("*.yaml")))
def test_every_committed_plan_loads_and_names_configs(name: str) -> None:
    plan = load_plan(name)
    for config in (plan.baseline.config, *(m.config for r in plan.rounds for m in r.members)):
        assert load_config(config, profile=plan.profile).config.data.dataset == plan.dataset


def test_a_checked_config_is_told_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    check("rerun_txxoc8a8", ["seed=3"], "smoke", as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["profile"] == "smoke"
    assert told["hash"] == load_config("rerun_txxoc8a8", profile="smoke").hash
    with pytest.raises(ConfigurationError) as caught:
        check("rerun_txxoc8a8", ["data.dataset=advection_smoke"], "smoke")
    assert len(caught.value.faults) == 3, "galilean, amplitude_time and reflection, all at once"
    check(
        "rerun_txxoc8a8",
        ["data.dataset=advection_smoke", "model.canonical_frame=[]", "training.augmentation=[shift]"],
    )


def test_rule_keeps_ema_memories_apart_and_inside_the_run() -> None:
    for profile in PROFILES:
        decays = [load_config(member, profile=profile).config.training.operator for member in MEMBERS]
        high, low = decays[3], decays[1]
        if low.steps > 100:
            assert high.ema_decay > low.ema_decay
        assert all(1 / (1 - s.ema_decay) <= s.steps for s in decays if s.ema_decay < 1)


def test_rule_is_the_same_for_all_members() -> None:
    profile = Profile(name="p", steps_per_epoch=10, learning_rate_factor=2)
    values, rules, faults = apply_profile(
        {
            "training": {
                "batch_size": 3,
                "accumulation": 2,
                "operator": {"epochs": 7, "learning_rate": 1e-3, "ema_decay": 0.9995},
            }
        },
        profile,
    )
    assert faults == []
    stage = values["training"]["operator"]
    assert stage["steps"] == 70
    assert stage["learning_rate"] == pytest.approx(2e-3)
    assert 1 / (1 - stage["ema_decay"]) == pytest.approx(10)
    assert set(rules) >= {
        "training.operator.steps",
        "training.operator.learning_rate",
        "training.operator.ema_decay",
    }


def test_a_stage_has_steps_per_epoch_of_its_own_for_all_members_alike() -> None:
    profile = Profile(name="p", steps_per_epoch=10, stage_steps_per_epoch={"diff_residual": 5})
    stage = {"epochs": 8, "patience_epochs": 4, "learning_rate": 1e-3, "ema_decay": 0.9995}
    values, rules, faults = apply_profile(
        {"training": {"batch_size": 3, "operator": dict(stage), "diff_residual": dict(stage)}}, profile
    )
    assert faults == []
    operator, corrector = values["training"]["operator"], values["training"]["diff_residual"]
    assert (operator["steps"], corrector["steps"], corrector["patience_steps"]) == (80, 40, 20)
    assert 1 / (1 - corrector["ema_decay"]) == pytest.approx(5), "a memory is the same share of the stage"
    assert rules["training.diff_residual.steps"] == "epochs x 5 steps per epoch"
    with pytest.raises(ValidationError, match="stage_steps_per_epoch"):
        Profile.model_validate({"name": "p", "steps_per_epoch": 10, "stage_steps_per_epoch": {"dif": 5}})


def test_all_faults_are_told_at_once_with_the_nearest_key() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config(
            "rerun_txxoc8a8",
            ["training.operator.lerning_rate=1", "sed=3", "training.batch_size=none"],
            profile="smoke",
        )
    text = str(caught.value)
    assert len(caught.value.faults) == 3
    assert "training.operator.learning_rate" in text
    assert "did you mean 'seed'" in text


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("trainng.batch_size=3", "training.batch_size"),
        ("trainng=3", "training"),
        ("training.operator.lr=1", "training.operator.learning_rate"),
        ("training.operator.wd=1", "training.operator.weight_decay"),
        ("training.opertor.eta_mn=1", "training.operator.eta_min"),
        ("training.batchsize=1", "training.batch_size"),
        ("learning_rate=1", "training.codec.learning_rate"),
        ("model.options.latent_dims=3", "model.options.latent_dim"),
        ("xqz=1", None),
    ],
)
def test_the_key_that_was_meant_is_a_setting_of_its_section(word: str, meant: str | None) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config("rerun_txxoc8a8", [word], profile="smoke")
    hint = "" if meant is None else f"; did you mean {meant!r}?"
    assert caught.value.faults[0] == f"{word.partition('=')[0]}: unknown key{hint}"


@pytest.mark.parametrize("key", ["lambda_latent", "canonical_frame"])
def test_a_config_without_the_base_has_the_bases_default(key: str) -> None:
    config = load_config("rerun_txxoc8a8", profile="smoke").config
    for ours, default in ((config.training.loss, LossConfig()), (config.model, ModelConfig())):
        if hasattr(default, key):
            assert getattr(default, key) == getattr(ours, key)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.stages=[operator,consistency_distill]", "training.stages"),
        ("training.stages=[operator,steady_prior]", "no stage of an equation with a time"),
        ("model.corrector.heads=5", "does not divide"),
        ("steady_prior.epochs=3", "only 0 is allowed"),
        ("ttc={enabled: true, tau_range: [0.8, 0.2]}", "ttc.tau_range"),
        ("ttc={enabled: true, reward_steps: 0}", "ttc.residual_threshold"),
        ("model.options.operator.heads=5", "does not divide"),
        ("model.options.operator.group_size=7", "does not divide"),
        ("training.curriculum_shares=[0.5,0.5]", "one entry per entry"),
        ("data.dataset=null", "exactly one"),
        ("training.operator.learning_rate=.nan", "learning_rate"),
        ("model.options.operator.hiden=64", "model.options.operator.hidden"),
    ],
)
def test_impossible_values_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_config("rerun_txxoc8a8", [override], profile="smoke")


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(UserError, match="rerun_txxoc8a8"):
        load_config("nothing_like_it")
    with pytest.raises(UserError, match="embedded"):
        load_config("rerun_txxoc8a8", profile="tiny")


def test_exponents_duplicates_and_circles(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("extends: base\ntraining: {operator: {learning_rate: 1e-3}}\n")
    assert load_config(file, profile="full").config.training.operator.learning_rate == 1e-3
    file.write_text("seed: 1\nseed: 2\n")
    with pytest.raises(ConfigurationError, match="given twice"):
        load_config(file)
    file.write_text("extends: own\n")
    with pytest.raises(ConfigurationError, match="circle"):
        load_config(file)


def test_test_time_compute_is_part_of_a_run_only_where_it_is_on() -> None:
    """Then its reward is trained and kept in the model file."""
    base = load_config("rerun_txxoc8a8", profile="smoke").hash
    on = load_config("rerun_txxoc8a8", ["ttc.enabled=true"], profile="smoke")
    assert (
        base
        != on.hash
        != load_config("rerun_txxoc8a8", ["ttc.enabled=true", "ttc.gamma=3"], profile="smoke").hash
    )
    rules = {key: rule for key, _, _, rule in load_config("rerun_txxoc8a8", profile="smoke").rows()}
    assert "off" in rules["ttc.gamma"]
    assert not {key: rule for key, _, _, rule in on.rows()}["ttc.gamma"]


def test_a_regressed_answer_leaves_keys_unread_and_the_plan_still_loads() -> None:
    """They are told, change no hash and are refused by nothing; what nothing can act on is refused."""
    words = ["ttc.enabled=true", "ttc.combine=regress"]
    whole = load_config("sweep_aggressive_sota", words, profile="embedded")
    rules = {key: rule for key, _, _, rule in whole.rows()}
    for key in ("steps", "horizon", "temperature"):
        assert rules[f"ttc.{key}"].startswith("not read: the answer is regressed")
    assert not rules["ttc.candidates"], "its learned reward is trained on candidates"
    assert (
        load_config("sweep_aggressive_sota", [*words, "ttc.steps=1"], profile="embedded").hash == whole.hash
    )
    assert (
        load_config("sweep_aggressive_sota", [*words, "ttc.candidates=9"], profile="embedded").hash
        != whole.hash
    )
    bare = [*words, "ttc.reward_steps=0", "ttc.residual_threshold=0"]
    alone = load_config("rerun_txxoc8a8", bare, profile="smoke")
    rules = {key: rule for key, _, _, rule in alone.rows()}
    assert all("not read" in rules[f"ttc.{key}"] for key in ("candidates", "tau_range", "noise_std", "gamma"))
    assert not rules["ttc.beam"]
    for same in ("ttc.candidates=2", "ttc.tau_range=[0.8, 0.2]", "ttc.gamma=3"):
        assert load_config("rerun_txxoc8a8", [*bare, same], profile="smoke").hash == alone.hash
    with pytest.raises(ConfigurationError, match=r"ttc\.solver: residual is a cost"):
        load_config("rerun_txxoc8a8", [*bare, "ttc.solver=residual"], profile="smoke")


def test_hash_is_what_changes_results() -> None:
    base = load_config("rerun_txxoc8a8", profile="smoke").hash
    for same in ("seed=5", "threads=2", "tags=[x]", "ttc.gamma=3.0", "tracking.group=mine"):
        assert load_config("rerun_txxoc8a8", [same], profile="smoke").hash == base
    words = ["training.stages=[codec,operator]"]
    deterministic = load_config("rerun_txxoc8a8", words, profile="smoke").hash
    unused = [*words, "training.diff_residual.learning_rate=0.1", "model.corrector.hidden=32"]
    assert load_config("rerun_txxoc8a8", unused, profile="smoke").hash == deterministic != base
    for other in (
        "training.operator.learning_rate=1e-4",
        "data.time_stride=1",
        "guards.mass_projection=false",
    ):
        assert load_config("rerun_txxoc8a8", [other], profile="smoke").hash != base


_leaf = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=3),
)
_tree = st.recursive(
    _leaf, lambda inner: st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=8
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    section=st.sampled_from(
        ["training", "model", "data", "evaluation", "guards", "name", "profile", "extends", "junk"]
    ),
    value=_tree,
)
def test_any_yaml_loads_or_is_a_configuration_error(tmp_path: Path, section: str, value: object) -> None:
    file = tmp_path / "fuzz.yaml"
    file.write_text(yaml.safe_dump({"extends": "base", "profile": "smoke"} | {section: value}))
    refused = False
    try:
        loaded = load_config(file)
    except UserError:
        refused = True
    assert refused or loaded.config.profile


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["training.operator.epochs=.inf"], "epochs: expected a number above 0"),
        (["training.operator.patience_epochs=.nan"], "patience_epochs"),
        (["training.operator.epochs=true"], "epochs"),
        (["seed=true"], "seed: .*not allowed here"),
        (["training.operator.betas=[true,0.9]"], "betas"),
        (["seed=010"], "plain decimal"),
        (["training.operator.epochs=3", "training.operator.steps=7"], "not both"),
        (["model.options.operator=3"], "model.options.operator"),
    ],
)
def test_slips_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_config("rerun_txxoc8a8", words, profile="smoke")


def test_impossible_combinations_are_told_beside_unknown_keys_and_bad_options() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config(
            "rerun_txxoc8a8",
            ["sed=1", "training.curriculum_shares=[1.0]", "model.options.heds=5"],
            profile="smoke",
        )
    assert len(caught.value.faults) == 3


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (
            ["training.operator.betas=[2,3]", "model.options.operator.heads=5"],
            ["training.operator.betas.0", "training.operator.betas.1", "model.options.operator.heads"],
        ),
        (
            [
                "training.batch_size=none",
                "training.stages=[operator,consistency_distill]",
                "model.corrector.heads=5",
            ],
            ["training.batch_size", "training.stages", "model.corrector.heads"],
        ),
        (
            ["model.options.heds=5", "model.options.decoder.heads=5", "data.dataset=null"],
            ["model.options.heds", "data", "model.options.decoder.heads"],
        ),
        # what a wrong value is part of is not judged by the default that stood in for it
        (["training.rollout_curriculum=[none]"], ["training.rollout_curriculum.0"]),
        (["model.options.operator.hidden=none"], ["model.options.operator.hidden"]),
        (["training.codec=5"], ["training.codec"]),
    ],
)
def test_what_is_right_is_judged_beside_what_is_wrong(words: list[str], keys: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config("rerun_txxoc8a8", words, profile="smoke")
    assert [fault.partition(":")[0] for fault in caught.value.faults] == keys


def test_a_file_without_a_base_is_told_all_that_is_missing_and_impossible(tmp_path: Path) -> None:
    file = tmp_path / "bare.yaml"
    file.write_text("profile: smoke\nmodel: {options: {operator: {heads: 5}}}\n")
    with pytest.raises(ConfigurationError) as caught:
        load_config(file)
    keys = [fault.partition(":")[0] for fault in caught.value.faults]
    assert {"training.batch_size", "training.operator.learning_rate"} <= set(keys)
    assert keys[-2:] == ["evaluation.ensemble_groups", "model.options.operator.heads"]


def test_options_belong_to_their_class(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text('extends: base\nmodel: {import_path: "my_package:Net", options: {width: 64}}\n')
    assert load_config(file, profile="smoke").config.model.options == {"width": 64}
    fno = load_config(
        "rerun_txxoc8a8", ["model.import_path=universal_simulator.model.fno:FNO"], profile="smoke"
    )
    assert set(fno.config.model.options) == {"width", "modes", "layers"}


def test_steps_in_a_file_that_inherits_epochs_are_not_silently_ignored(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("extends: base\ntraining: {operator: {steps: 50}}\n")
    with pytest.raises(ConfigurationError, match="not both"):
        load_config(file, profile="smoke")
    file.write_text("extends: base\ndata: 5\n")
    with pytest.raises(ConfigurationError, match="data: must be a mapping"):
        load_config(file, profile="smoke")


@pytest.mark.parametrize("name", ["", ".", "/", "a\0b"])
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(UserError):
        load_config("rerun_txxoc8a8", profile=name or None) if name else load_config(name)
