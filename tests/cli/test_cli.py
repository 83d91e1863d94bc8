"""The command line: fast help, exit codes, and the smoke plan end to end with real processes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.cli.conftest import Here
from universal_simulator.cli import app

COMMANDS = [
    [],
    ["config", "show"],
    ["config", "check"],
    ["data", "generate"],
    ["data", "info"],
    ["run"],
    ["evaluate"],
    ["rollout"],
    ["sweep", "run"],
    ["sweep", "estimate"],
    ["sweep", "status"],
    ["sweep", "resume"],
    ["sweep", "report"],
    ["sweep", "explain"],
    ["cloud", "search"],
    ["cloud", "status"],
    ["cloud", "reap"],
    ["leaderboard"],
    ["track", "sync"],
    ["track", "watch"],
    ["doctor"],
]


def usim(*words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "universal_simulator.cli", *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(words) or "usim")
def test_every_command_has_help(command: list[str], here: Here) -> None:
    answer = here(*command, "--help")
    assert answer.code == 0
    assert "Usage" in answer.out


def test_the_module_is_the_command() -> None:
    answer = usim("--help")
    assert answer.returncode == 0
    assert "Usage" in answer.stdout
    answer = usim("config", "check", "rerun_txxoc8a8", "sed=1")
    assert answer.returncode == 2
    assert "did you mean 'seed'" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_every_command_shows_an_example_and_every_option_says_what_it_does() -> None:
    silent = []
    groups: list[tuple[str, Any]] = [("usim", typer.main.get_command(app))]
    for path, command in groups:
        if found := getattr(command, "commands", None):
            groups += [(f"{path} {name}", item) for name, item in found.items()]
            continue
        options = [item for item in command.params if item.param_type_name == "option" and not item.hidden]
        silent += [f"{path} {item.opts[0]}" for item in options if not item.help]
        if command.params and not command.hidden and "Example: usim" not in (command.help or ""):
            silent.append(path)
    assert len(groups) > 20
    assert silent == []


def test_a_config_is_shown_on_80_columns_with_no_key_cut_and_unread_ones_in_a_line(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = ("config", "show", "sweep_aggressive_sota", "--profile", "embedded")
    short, whole = here(*words), here(*words, "--all")
    assert short.code == whole.code == 0
    lines = short.out.splitlines()
    assert max(map(len, lines)) <= 80
    heading = next(line for line in lines if line.startswith("key"))
    assert heading.split() == ["key", "plan", "effective", "rule"]
    shown = {line.split()[0] for line in lines if line.strip()}
    assert {"latent_cache_windows", "training.consistency_distill", "reencode_every"} <= shown
    assert sum("test-time compute is off" in line for line in lines) == 1
    assert "max_evaluations" not in shown
    assert any(line.split()[:1] == ["max_evaluations"] for line in whole.out.splitlines())


def test_help_and_the_sweep_wing_import_no_torch() -> None:
    code = "import sys, universal_simulator.cli, universal_simulator.sweep.driver, universal_simulator.tracking.mirror, universal_simulator.executors.local_process; print('torch' in sys.modules or 'h5py' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["config", "check", "rerun_txxoc8a8", "--profile", "smoke"], 0, ""),
        (["config", "check", "rerun_txxoc8a8", "sed=1"], 2, "did you mean 'seed'"),
        (
            ["config", "check", "rerun_txxoc8a8", "data.dataset=advection_smoke"],
            2,
            "model.canonical_frame: 'galilean' is not a declared symmetry of 'advection'",
        ),
        (["config", "show", "nothing"], 2, "known:"),
        (["data", "info", "nothing.hdf5"], 1, "does not exist"),
        (["evaluate", "nothing"], 2, "does not exist; give a model.safetensors, or the folder"),
        (["evaluate", "nothing", "--suite", "ful"], 2, "suites: small, full, pdebench, pdebench-official"),
        (["leaderboard", "nowhere"], 2, "does not exist"),
        (["sweep", "status", "nowhere"], 1, "holds no sweep"),
        (["sweep", "run", "nothing", "--folder", "x"], 2, "known:"),
        (
            ["sweep", "run", "smoke", "--folder", "x", "--executor", "ray", "--ray-address", "h:1"],
            2,
            "http://HOST:8265",
        ),
        (["run"], 2, "give a config"),
        (["doctor"], 0, ""),
    ],
)
def test_exit_codes_and_messages(words: list[str], code: int, message: str, here: Here) -> None:
    answer = here(*words)
    assert answer.code == code, answer.err
    assert message in answer.err
    assert "Traceback" not in answer.err


def test_smoke_plan_end_to_end(tmp_path: Path, here: Here) -> None:
    folder = tmp_path / "smoke"
    answer = usim("sweep", "run", "smoke", "--folder", str(folder), timeout=280)
    assert answer.returncode == 0, answer.stderr
    assert "report:" in answer.stdout
    with open(folder / "reports" / "leaderboard.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["suite"] for row in rows} == {"small_eval", "full_eval", "test"}
    runs = sorted({row["run_id"] for row in rows})
    assert len(runs) == 5
    for run in runs:
        path = folder / "artifacts" / "runs" / run
        assert (path / "checkpoints" / "operator_ema.pt").exists()
        assert (path / "summary.json").exists()
        assert all((folder / "reports" / f"eval_{run}.{kind}").exists() for kind in ("json", "csv", "html"))
        assert (folder / "reports" / f"eval_{run}.html").stat().st_size < 1_000_000
    status = json.loads(here("sweep", "status", str(folder), "--json").out)
    assert set(status["runs"].values()) == {"done"}
    explained = here("sweep", "explain", str(folder)).out
    assert explained.count("changed:") == explained.count("why:") == explained.count("next:") == 5
    assert here("leaderboard", str(folder)).code == 0
    out = tmp_path / "rollout.nc"
    written = here(
        "rollout",
        str(folder / "artifacts" / "runs" / runs[0]),
        "--data",
        str(folder / "data" / "burgers_smoke.hdf5"),
        "--steps",
        "5",
        "--out",
        str(out),
    )
    assert written.code == 0, written.err
    import xarray

    assert xarray.open_dataset(out, engine="h5netcdf")["u"].shape == (1, 6, 64)
