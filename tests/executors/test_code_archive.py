"""The pinned code archive: same files, same bytes; complete enough to run; nothing that should stay."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from pydantic import SecretStr

from universal_simulator import source_tree
from universal_simulator.errors import UserError
from universal_simulator.executors.code_archive import pack_code
from universal_simulator.source_tree import PACKAGE, checkout_root


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    for name, text in {
        f"{PACKAGE}/__init__.py": "",
        f"{PACKAGE}/sweep/page.html": "<p>",
        "configs/base.yaml": "a: 1",
        "configs/data/d.yaml": "b: 1",
        "plans/p.yaml": "c: 1",
        "pyproject.toml": "[project]",
        "constraints.txt": "torch==2",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def names(content: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return archive.getnames()


def test_equal_files_make_equal_bytes_whatever_their_dates_and_order(checkout: Path, tmp_path: Path) -> None:
    first = pack_code(checkout, working_folder=checkout)
    for path in checkout.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o755)
    (checkout / PACKAGE / "__pycache__").mkdir()
    (checkout / PACKAGE / "__pycache__" / "x.py").write_text("cached")
    again = pack_code(checkout, working_folder=tmp_path)
    assert (again.content, again.hash, again.file_hash) == (first.content, first.hash, first.file_hash)
    (checkout / "configs" / "base.yaml").write_text("a: 2")
    assert pack_code(checkout, working_folder=tmp_path).hash != first.hash


def test_a_byte_moved_from_one_file_to_the_next_is_another_hash(checkout: Path) -> None:
    (checkout / "configs" / "base.yaml").write_text("ab")
    (checkout / "configs" / "base2.yaml").write_text("c")
    first = pack_code(checkout, working_folder=checkout).hash
    (checkout / "configs" / "base.yaml").write_text("a")
    (checkout / "configs" / "base2.yaml").write_text("bc")
    assert pack_code(checkout, working_folder=checkout).hash != first


def test_what_should_stay_stays(checkout: Path) -> None:
    for name in [".git/config", "runs/x/summary.json", ".env", "configs/.secret.yaml", "configs/key.pem"]:
        path = checkout / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("SECRET-1234")
    archive = pack_code(checkout, working_folder=checkout, secrets=[SecretStr("SECRET-1234")])
    assert names(archive.content) == list(archive.names)
    assert not any(word in name for name in archive.names for word in ("git", "runs", "env", "secret", "pem"))
    (checkout / "configs" / "mine.yaml").write_text("token: SECRET-1234")
    with pytest.raises(UserError, match=r"configs/mine.yaml holds a secret"):
        pack_code(checkout, working_folder=checkout, secrets=[SecretStr("SECRET-1234")])


def test_a_link_and_a_folder_that_is_no_checkout_are_refused(checkout: Path, tmp_path: Path) -> None:
    (checkout / "configs" / "linked.yaml").symlink_to("/etc/passwd")
    with pytest.raises(UserError, match="is a link"):
        pack_code(checkout, working_folder=checkout)
    with pytest.raises(UserError, match="clone the repository"):
        pack_code(tmp_path)


def test_configs_of_the_working_folder_come_first_as_they_do_here(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "base.yaml").write_text("mine: 1")
    archive = pack_code(checkout, working_folder=tmp_path)
    with tarfile.open(fileobj=io.BytesIO(archive.content)) as unpacked:
        member = unpacked.extractfile("configs/base.yaml")
        assert member is not None
        assert member.read() == b"mine: 1"


def test_the_real_archive_runs_elsewhere_and_is_the_same_code(tmp_path: Path) -> None:
    archive = pack_code(checkout_root(), working_folder=tmp_path)
    with tarfile.open(fileobj=io.BytesIO(archive.content)) as unpacked:
        unpacked.extractall(tmp_path / "code", filter="data")
    script = (
        "from universal_simulator.identity import code_version; import universal_simulator as u; "
        "from universal_simulator.configuration.locations import find; "
        "from universal_simulator.source_tree import archive_hash, lock_hash; "
        "print(code_version(), u.__file__, find('plans', 'smoke'), archive_hash(), lock_hash())"
    )

    def say(source: Path) -> list[str]:
        environment = os.environ | {"PYTHONPATH": str(source)}
        answer = subprocess.run(
            [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert answer.returncode == 0, answer.stderr
        return answer.stdout.split()

    here, there = say(checkout_root() / "src"), say(tmp_path / "code" / "src")
    assert here[0] == there[0]
    assert there[1].startswith(str(tmp_path))
    assert there[2] == str(tmp_path / "code" / "plans" / "smoke.yaml")
    assert here[3:] == there[3:], "a record made there names the archive that was sent"
    assert there[3] == archive.hash


def test_without_a_checkout_there_is_no_archive_to_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_tree, "checkout_root", lambda: tmp_path)
    assert source_tree.archive_hash() is None
    assert source_tree.lock_hash() is None
