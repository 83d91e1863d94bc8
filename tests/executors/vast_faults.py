"""What a loopback service can do wrong, and the key that must never be seen."""

from __future__ import annotations

import logging

from hypothesis import strategies as st

from tests.executors.loopback_vast import SPOILT

KEY = "5ecretkey0123456789abcdef"
LIST_FAULTS = ["no success", "unsuccessful", "null", "no total", "short", "bad entry"]
READ_FAULTS = ["drop", "lose", "503", "302", "429", "done 500", *SPOILT]
ENDPOINT_MOODS = {
    "create": ["drop", "lose", "late", "liar", "no id", "429", "429 7", "503", "done 500", "refuse", "echo"],
    "list": [
        *LIST_FAULTS,
        "blank",
        "circle",
        "drop",
        "lose",
        "429",
        "429 7",
        "503",
        "empty",
        "garbage",
        "cut",
    ],
    "one": ["other", "drop", "lose", "429", "503", "done 500", "empty", "garbage", "array", "cut", "echo"],
    "destroy": ["ghost", "ignored", "drop", "lose", "429", "503", "done 500", "refuse", "echo", "empty"],
    "search": ["drop", "429 7", "503", "garbage"],
    "change": ["ignored", "drop", "lose", "429", "503", "done 500", "empty"],
}
FOREIGN = ["usim-s10-run-0-00000001", "usim2-s1-run-0-00000001", "usim-s1", "usim-s1-mine", "mine", None]


class KeyWatch(logging.Handler):
    """Log records that hold the key."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.caught: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if KEY in record.getMessage():
            self.caught.append(record.getMessage())


def faults(endpoint: str) -> st.SearchStrategy[list[str]]:
    """What the next requests of `endpoint` meet; mostly something."""
    return st.lists(st.sampled_from(["good", *ENDPOINT_MOODS[endpoint]]), max_size=3)
