"""Planted secrets are found where they should be, and nowhere else: not in argv, logs, journal, pages."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.sweep.fake_executor import FakeExecutor
from universal_simulator import cli, credentials
from universal_simulator.credentials import (
    find_ray_token,
    find_wandb_key,
    masked,
    read_vast_key,
    refuse_secrets,
    secrets_at_hand,
    without_secrets,
)
from universal_simulator.errors import ExecutorError, UserError
from universal_simulator.executors.local_process import USIM, LocalProcessExecutor
from universal_simulator.sweep.driver import run_sweep
from universal_simulator.sweep.executor import Job, JobEnd

WANDB, VAST, RAY, OTHER = "w4ndb" + "0" * 35, "v4st-secret-key", "r4y.token.of.job", "h0st1ng-s3cret"


def plant(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Secrets in the environment and in the user's files; all their values."""
    (home / ".config" / "vastai").mkdir(parents=True)
    (home / ".ray").mkdir()
    (home / ".config" / "vastai" / "vast_api_key").write_text("file-v4st-key\n")
    (home / ".ray" / "auth_token").write_text("file-r4y-token\n")
    (home / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password netrc-w4ndb-key\n")
    (home / ".netrc").chmod(0o600)
    for name in ("XDG_CONFIG_HOME", "NETRC", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WANDB_API_KEY", WANDB)
    monkeypatch.setenv("VAST_API_KEY", VAST)
    monkeypatch.setenv("RAY_AUTH_TOKEN", RAY)
    monkeypatch.setenv("HOSTING_TOKEN", OTHER)
    return [WANDB, VAST, RAY, OTHER, "file-v4st-key", "file-r4y-token", "netrc-w4ndb-key"]


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return plant(tmp_path / "home", monkeypatch)


def test_environment_comes_before_files_and_nothing_is_nothing(
    planted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = {"HOME": str(tmp_path / "home"), "WANDB_API_KEY": WANDB, "RAY_AUTH_TOKEN": RAY}
    only_files = {"HOME": str(tmp_path / "home")}
    for environment, wandb, ray in (
        (everything, WANDB, RAY),
        (only_files, "netrc-w4ndb-key", "file-r4y-token"),
    ):
        found = find_wandb_key(environment), find_ray_token(environment)
        assert [key.get_secret_value() for key in found if key] == [wandb, ray]
        assert wandb not in repr(found)
    assert read_vast_key(only_files).get_secret_value() == "file-v4st-key"
    assert find_wandb_key(only_files, "https://wandb.own.example") is None
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "nobody")
    assert find_wandb_key({}) is None
    assert find_ray_token({}) is None
    with pytest.raises(UserError, match="WANDB_API_KEY holds no Weights & Biases key"):
        find_wandb_key({"WANDB_API_KEY": "two words"})
    (tmp_path / "home" / ".netrc").write_text("machine\n")
    with pytest.raises(UserError, match="mend it"):
        find_wandb_key(only_files)


def test_every_planted_secret_is_known_and_masked(planted: list[str]) -> None:
    assert set(planted) <= set(secrets_at_hand())
    for secret in planted:
        assert masked(f"before {secret} after") == "before *** after"
        assert masked({"deep": [secret, {"b": f"x{secret}".encode()}]}) == {"deep": ["***", {"b": b"x***"}]}
        with pytest.raises(UserError, match="word 2 of its command holds the secret of"):
            Job("train:x", ("run", f"data.file={secret}"), Path("log"))
        with pytest.raises(UserError) as refusal:
            refuse_secrets([secret], "x")
        assert secret not in str(refusal.value)
    assert masked("an ordinary sentence") == "an ordinary sentence"


def test_ordinary_words_and_paths_are_no_secrets() -> None:
    environment = {
        "MY_PASSWORD": "baseline-experiments",
        "A_TOKEN": "/home/me/token1",
        "HOME": "/nonexistent",
    }
    assert secrets_at_hand(environment) == {}
    assert without_secrets({"VAST_API_KEY": VAST, "HF_TOKEN": "x", "PATH": "p"}) == {
        "HF_TOKEN": "x",
        "PATH": "p",
    }


class Tattling(FakeExecutor):
    """Like the fake, and one member's training prints what it should not before it fails."""

    def __init__(self, secrets: list[str]) -> None:
        super().__init__()
        self.secrets = secrets
        self.commands: list[tuple[str, ...]] = []

    def submit(self, job: Job) -> None:
        self.commands.append(job.arguments)
        if job.job_id.startswith("train:sweep_round_a_"):
            job.log.parent.mkdir(parents=True, exist_ok=True)
            job.log.write_text("\n".join(f"connecting with {secret}" for secret in self.secrets))
            self.ended.append(JobEnd(job.job_id, 1, 0.1))
            return
        super().submit(job)


def test_a_sweep_leaves_no_secret_behind(planted: list[str], tmp_path: Path) -> None:
    executor, folder = Tattling(planted), tmp_path / "sweep"
    with pytest.raises(ExecutorError) as told:
        run_sweep("smoke", folder, executor=executor)
    assert "connecting with ***" in str(told.value)
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "run.log":
            content = path.read_bytes()
            assert [s for s in planted if s.encode() in content] == [], path
    words = " ".join(word for command in executor.commands for word in command)
    assert [s for s in [*planted, str(told.value)] if s in words] == []
    assert "connecting with ***" in (folder / "journal.jsonl").read_text()


def test_a_training_job_gets_none_of_our_keys(planted: list[str], tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nenv\ntr '\\0' ' ' < /proc/$$/cmdline\n")
    script.chmod(0o755)
    command = (str(script), *USIM[1:])
    executor, log = LocalProcessExecutor(1, command=command), tmp_path / "job.log"
    executor.submit(Job("train:x", ("run", "config"), log))
    ends: list[JobEnd] = []
    while not ends:
        ends = executor.wait(5.0)
    text = log.read_text()
    assert "HOSTING_TOKEN" in text, "what belongs to the user's own code stays"
    assert "universal_simulator.cli run config" in text
    assert [secret for secret in (WANDB, VAST, RAY) if secret in text] == []


def test_an_error_message_is_masked(
    planted: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise UserError(f"https://user:{VAST}@host is odd")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == "usim: https://user:***@host is odd\n"


def test_masking_costs_little(planted: list[str]) -> None:
    """It stands before every job and every look at a log."""
    started = time.perf_counter()
    for _ in range(100):
        masked("text " * 1000)
    assert time.perf_counter() - started < 0.5
    assert credentials.MASK not in masked("text")
