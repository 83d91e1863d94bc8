"""What a mirror shows: read from the run's own files, finished or not, damaged or not."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.tracking.folders import write_rows, write_run
from universal_simulator.errors import IntegrityError, UserError
from universal_simulator.run_record import RunFolder, read_document, write_json
from universal_simulator.run_record import RunRecord as Record
from universal_simulator.tracking.destination import decide
from universal_simulator.tracking.snapshot import read_snapshot, run_folders, stamp


def test_the_plans_names_and_every_figure(tmp_path: Path) -> None:
    files = write_run(tmp_path, words=("tracking.tags=[mine]",))
    shown = read_snapshot(files)
    assert (shown.run_id, shown.status, shown.project) == (files.run_id, "finished", "universal-simulator")
    assert shown.group == "sota-sweep-round-a"
    assert "round-a" in shown.tags
    assert shown.tags[-1] == "mine"
    assert shown.config["training"]["operator"]["schedule"] == "cosine"
    assert shown.config["code_version"] == "c"
    assert shown.figures["small_eval/nu=0.05/nrmse"] == 0.05
    assert shown.figures["params"] == 10
    assert not [name for name in shown.figures if "residual" in name], "not applicable is no number"
    assert shown.checkpoints == {"checkpoints/operator_ema.pt": 100}
    assert [(p.name, p.caption, p.png[:4]) for p in shown.pictures()] == [
        ("picture_1", "error & time", b"\x89PNG")
    ]
    assert set(shown.files) == {
        "config.json",
        "summary.json",
        "metrics_codec.jsonl",
        "metrics_operator.jsonl",
        "evaluation.json",
        "evaluation.csv",
        "evaluation.html",
    }


@pytest.mark.parametrize(
    ("config", "group"),
    [
        ("rerun_txxoc8a8", "baseline-experiments"),
        ("sweep_round_a_lr2e4_w3", "sota-sweep-round-a"),
        ("sweep_round_b_deeper", "sota-sweep-round-b"),
        ("sweep_aggressive_sota", "sota-aggressive"),
    ],
)
def test_groups_are_the_plans(tmp_path: Path, config: str, group: str) -> None:
    assert read_snapshot(write_run(tmp_path, config)).group == group


def test_rows_stand_in_training_order_and_grow_at_their_end(tmp_path: Path) -> None:
    files = write_run(tmp_path, rows=4, status="running")
    before = read_snapshot(files).rows
    assert [dict(row) for row in before[:3]] == [
        {"codec/step": 1, "codec/total": 1},
        {"codec/step": 2, "codec/total": 0.5},
        {"operator/step": 1, "operator/total": 1 / 3},
    ]
    assert math.isnan(before[3]["operator/total"]), "a loss that was not finite is not hidden"
    write_rows(files, 9)
    after = read_snapshot(files).rows
    assert len(after) == 9
    assert str(after[:4]) == str(before)


def test_a_line_being_written_waits_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    files = write_run(tmp_path, rows=4, status="running")
    log = files.metrics_log("operator")
    log.write_text(log.read_text() + '{"step": 3, "tot')
    assert len(read_snapshot(files).rows) == 4
    log.write_text('{"step": 1}\nrubbish\n{"step": 3}\n')
    with pytest.raises(IntegrityError, match=r"metrics_operator\.jsonl:2"):
        read_snapshot(files)
    log.unlink()
    files.config.write_text("[]")
    with pytest.raises(IntegrityError, match="effective configuration"):
        read_snapshot(files)


def test_failures_are_shown_and_secrets_in_them_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    files = write_run(tmp_path, status="failed")
    record = read_document(files.summary, Record)
    write_json(files.summary, record.model_copy(update={"failure": f"loss nan {'k' * 40}"}))
    shown = read_snapshot(files)
    assert shown.finished
    assert shown.figures == {"status": "failed", "failure": "loss nan ***"}


def test_folders_and_stamps(tmp_path: Path) -> None:
    files = write_run(tmp_path)
    assert [f.run_id for f in run_folders(tmp_path)] == [files.run_id]
    assert [f.run_id for f in run_folders(files.path)] == [files.run_id]
    (tmp_path / "artifacts" / "runs" / "planned-only").mkdir()
    assert len(run_folders(tmp_path)) == 1
    for wrong in (tmp_path / "nothing", tmp_path / "reports"):
        with pytest.raises(UserError):
            run_folders(wrong)
    before = stamp(files)
    assert stamp(RunFolder.of_path(files.path)) == before
    files.report("csv").write_text("changed,\n")
    assert stamp(files) != before


KEY = {"WANDB_API_KEY": "k" * 40}


@pytest.mark.parametrize(
    ("environment", "requested", "mode", "reason"),
    [
        ({}, None, "offline", "nothing is configured"),
        (KEY, None, "online", "a key is there"),
        (KEY, "offline", "offline", "--mode"),
        (KEY | {"WANDB_MODE": "offline"}, None, "offline", "WANDB_MODE"),
        (KEY | {"WANDB_MODE": "dryrun"}, None, "offline", "WANDB_MODE"),
        (KEY | {"WANDB_MODE": "offline"}, "online", "online", "--mode"),
        (KEY | {"WANDB_MODE": "disabled"}, None, "disabled", "WANDB_MODE"),
        (KEY | {"WANDB_DISABLED": "true"}, None, "disabled", "WANDB_DISABLED"),
    ],
)
def test_the_users_own_settings_decide(
    tmp_path: Path, environment: dict[str, str], requested: str | None, mode: str, reason: str
) -> None:
    found = decide({"HOME": str(tmp_path)} | environment, requested=requested, folder=tmp_path)
    assert (found.mode, found.reason) == (mode, reason)
    assert found.url == "https://api.wandb.ai"


def test_settings_files_netrc_and_own_servers(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    (tmp_path / ".netrc").write_text("machine w.example\nlogin user\npassword " + "k" * 40 + "\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert decide(home, folder=tmp_path).mode == "offline", "that key is for another server"
    assert decide(home | {"WANDB_BASE_URL": "https://w.example/"}, folder=tmp_path).mode == "online"
    (tmp_path / ".config" / "wandb").mkdir(parents=True)
    (tmp_path / ".config" / "wandb" / "settings").write_text(
        "[default]\nbase_url = https://w.example\nentity = team\n"
    )
    found = decide(home, folder=tmp_path)
    assert (found.mode, found.entity, found.url) == ("online", "team", "https://w.example")
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nmode = offline\n")
    assert decide(home, folder=tmp_path).mode == "offline"
    assert decide(home | {"WANDB_ENTITY": "mine"}, folder=tmp_path).entity == "mine"


def test_what_the_user_can_mend_is_told(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    with pytest.raises(UserError, match="wandb login"):
        decide(home, requested="online", folder=tmp_path)
    with pytest.raises(UserError, match="allowed are online"):
        decide(home | {"WANDB_MODE": "sometimes"}, folder=tmp_path)
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("mode = offline\n")
    with pytest.raises(UserError, match="mend it"):
        decide(home, folder=tmp_path)
