"""The command line: fast help, exit codes, and the smoke plan end to end with real processes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Here

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
        (["evaluate", "nothing.safetensors"], 2, "cannot be read"),
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


def test_smoke_plan_end_to_end(tmp_path: Path) -> None:
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
    status = json.loads(usim("sweep", "status", str(folder), "--json").stdout)
    assert set(status["runs"].values()) == {"done"}
    explained = usim("sweep", "explain", str(folder)).stdout
    assert explained.count("changed:") == explained.count("why:") == explained.count("next:") == 5
    assert usim("leaderboard", str(folder)).returncode == 0
    out = tmp_path / "rollout.nc"
    written = usim(
        "rollout",
        str(folder / "artifacts" / "runs" / runs[0]),
        "--data",
        str(folder / "data" / "burgers_smoke.hdf5"),
        "--steps",
        "5",
        "--out",
        str(out),
    )
    assert written.returncode == 0, written.stderr
    import xarray

    assert xarray.open_dataset(out, engine="h5netcdf")["u"].shape == (1, 6, 64)
