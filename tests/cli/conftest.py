"""`usim` without a process of its own."""

from __future__ import annotations

import sys
from typing import NamedTuple, Protocol

import pytest

from universal_simulator import cli


class Answer(NamedTuple):
    code: int
    out: str
    err: str


class Here(Protocol):
    def __call__(self, *words: str) -> Answer: ...


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """The entry point in this process: the code it exits with and what it prints."""

    def called(*words: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["usim", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert isinstance(end.value.code, int)
        return Answer(end.value.code, *capsys.readouterr())

    return called
