"""Which rented instances belong to a sweep, and the end of those that do not.

    label = project-sweep-run-attempt-nonce

The journal holds the label before an instance is asked for, so one that it does not want is an orphan.
The rule is pure and needs a complete listing; an unknown listing decides nothing.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from universal_simulator.errors import UserError
from universal_simulator.executors.vast_client import LABEL, LOOK_PAUSE_S, LOOKS, VastClient
from universal_simulator.executors.vast_replies import Instance

_WORD = r"[A-Za-z0-9][A-Za-z0-9_.]*"
_LABEL = re.compile(rf"({_WORD})-({_WORD})-([A-Za-z0-9_.-]+)-([0-9]+)-([0-9a-f]{{8}})")


@dataclass(frozen=True)
class Label:
    """Of one create, ever. Only `run` may hold dashes. Two sweeps of one account, also on other
    machines, must not share `sweep`: they would reap each other."""

    project: str
    sweep: str
    run: str
    attempt: int
    nonce: str

    def __str__(self) -> str:
        return f"{self.project}-{self.sweep}-{self.run}-{self.attempt}-{self.nonce}"


def new_label(project: str, sweep: str, run: str, attempt: int) -> Label:
    """A label never used before."""
    label = Label(project, sweep, run, attempt, secrets.token_hex(4))
    if parse_label(str(label)) != label:
        rule = "letters, digits, _ and . (dashes in the run alone), attempts from 0, 255 characters in all"
        raise UserError(f"{str(label)!r} is no label: {rule}")
    return label


def parse_label(text: str | None) -> Label | None:
    """None for what was not made by `new_label`, such as another user's own label."""
    match = _LABEL.fullmatch(text) if text and LABEL.fullmatch(text) else None
    label = match and Label(match[1], match[2], match[3], int(match[4]), match[5])
    return label if label and str(label) == text else None


@dataclass(frozen=True)
class Journalled:
    """What the journal says of one label: asked for (no id), adopted (id), or to be gone (not wanted)."""

    label: str
    instance_id: int | None = None
    wanted: bool = True


@dataclass(frozen=True)
class Verdict:
    """`missing`: wanted ids that no listing showed, which is no proof of their end."""

    adopt: tuple[Instance, ...]
    keep: tuple[Instance, ...]
    destroy: tuple[Instance, ...]
    missing: tuple[int, ...]


def decide(
    journalled: Iterable[Journalled], listing: Iterable[Instance], *, project: str, sweep: str | None
) -> Verdict:
    """The fate of every listed instance of `sweep` (None: all sweeps of the project); no other is named.
    One instance a label: the journalled id, else the oldest. Whatever else bears our label goes."""
    latest = {entry.label: entry for entry in journalled}
    wanted = {label: entry.instance_id for label, entry in latest.items() if entry.wanted}
    adopt: dict[str, Instance] = {}
    keep: dict[int, Instance] = {}
    destroy: list[Instance] = []
    for instance in sorted({i.id: i for i in listing}.values(), key=lambda i: i.id):
        label, name = parse_label(instance.label), instance.label or ""
        if label is None or label.project != project or sweep not in (None, label.sweep):
            continue
        if name in wanted and wanted[name] == instance.id:
            keep[instance.id] = instance
        elif name in wanted and wanted[name] is None and name not in adopt:
            adopt[name] = instance
        else:
            destroy.append(instance)
    missing = sorted({i for i in wanted.values() if i is not None} - keep.keys())
    return Verdict(tuple(adopt.values()), tuple(keep.values()), tuple(destroy), tuple(missing))


def reap(
    client: VastClient,
    journalled: Iterable[Journalled],
    *,
    project: str,
    sweep: str | None,
    deadline_s: float = 300.0,
    looks: int = LOOKS,
    before: Callable[[Verdict], None] | None = None,
) -> Verdict:
    """Destroy what `decide` condemns, verified; adopting is the caller's, who writes it down.
    `before` hears the verdict while nothing has been destroyed.

    Raises UnknownOutcome, with nothing destroyed, where no complete listing is to be had, and where
    the end of a condemned instance could not be verified within `deadline_s` seconds.
    """
    seen: dict[int, Instance] = {}
    for look in range(looks):
        if look:
            client.pause(LOOK_PAUSE_S)
        seen |= {instance.id: instance for instance in client.list_instances(f"{project}-")}
    verdict = decide(journalled, seen.values(), project=project, sweep=sweep)
    if before is not None:
        before(verdict)
    client.destroy_and_verify(*(instance.id for instance in verdict.destroy), deadline_s=deadline_s)
    return verdict
