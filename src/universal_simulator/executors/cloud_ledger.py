"""What was rented, for which job, at what price, and what became of it: written before it is done.

    opened      the sweep's name in labels
    intended    a label, before an instance of it is asked for
    rented      its id, once a listing has shown it
    starting    its job is about to be brought there: from now on it may be at work
    placed      its job was started there
    ended       its job ended there, and what it left lies here, verified
    kept        it is stopped, and its disk holds what has not come home; its GPU bills no more
    woken       it is started again, to bring that home; `recalled` where no driver waits for its job
    claimed     its job was submitted again: what a recall brings, or brought, is that submission's end
    gone        it is verified to be gone (or was never made); what it has cost
    stray       an instance of ours that nobody wanted was destroyed

A lease is what these say of one label. Money: a lease costs its hourly price from the intent to
its end, GPU and disk, as if it ran all the time; the service bills less while an instance loads. While it is
kept it costs its disk: total minus GPU price of the offer; where the offer did not tell, all of it.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from universal_simulator.errors import IntegrityError
from universal_simulator.executors.reaper import Journalled, new_label
from universal_simulator.sweep.executor import JobEnd
from universal_simulator.sweep.journal import Event, Journal

FILE = Path("cloud") / "ledger.jsonl"
#: exit code of a job that its own ceiling ended (EX_TEMPFAIL): it did not fail, and money would finish it
CEILING = 75
#: why a job ended on an instance that had not heard from its driver: nobody's loss but the driver's
DRIVER_SILENT = "it ended itself, the driver was silent"


@dataclass(frozen=True)
class Lease:
    """One label. Times are seconds of the service's clock, prices USD per hour.

    `end` is how its job ended here, `gone_at` when it was verified to be gone; `cost_usd` counts then.
    `kept_at`: since when it stands still with what is not here; `past_usd`: what it cost until `priced_at`.
    """

    label: str
    job_id: str
    arguments: tuple[str, ...]
    log: str
    machine_class: str
    offer_id: int
    usd_per_hour: float
    began: float
    instance_id: int | None = None
    starting: bool = False
    placed_at: float | None = None
    end: JobEnd | None = None
    gone_at: float | None = None
    cost_usd: float = 0.0
    #: why it is gone, or kept
    reason: str = ""
    disk_usd_per_hour: float | None = None
    kept_at: float | None = None
    #: wakings, and what had been told of it by the last one
    woken: int = 0
    usd_before_wake: float = 0.0
    seconds_before_wake: float = 0.0
    past_usd: float = 0.0
    priced_at: float | None = None
    #: woken for what it holds, and the end of its job is told to nobody
    recalled: bool = False
    #: it ended its work because its driver was silent (a laptop slept)
    deserted: bool = False

    @property
    def live(self) -> bool:
        """It may bill."""
        return self.gone_at is None

    @property
    def unseen(self) -> bool:
        """Asked for in doubt and never listed: it could still turn up."""
        return not self.live and self.instance_id is None and self.reason == UNSEEN

    @property
    def kept(self) -> bool:
        """Stopped, verified; what its disk holds is not here."""
        return self.live and self.kept_at is not None

    @property
    def submission(self) -> str:
        """Its job's submission: one that is asked again for what it holds is another."""
        return f"{self.label}+{self.woken}" if self.woken else self.label

    @property
    def settled(self) -> bool:
        """Its job ended by itself with an exit code, and what it left lies here."""
        return self.end is not None and not self.end.lost and 0 <= self.end.exit_code != CEILING

    @property
    def rate_usd_per_hour(self) -> float:
        """What it costs now."""
        stands_still = self.kept_at is not None and self.disk_usd_per_hour is not None
        return self.disk_usd_per_hour or 0.0 if stands_still else self.usd_per_hour

    def spent_usd(self, now: float) -> float:
        since = self.began if self.priced_at is None else self.priced_at
        return (
            self.past_usd + self.rate_usd_per_hour * max(0.0, now - since) / 3600
            if self.live
            else self.cost_usd
        )


UNSEEN = "never seen in a listing"


class Ledger:
    """Append-only and fsynced; construct to replay. `now` is the service's clock in seconds."""

    def __init__(self, path: Path, journal: Journal | None = None) -> None:
        self.path = path
        self.journal = journal or Journal(path)
        self.project = self.sweep = ""
        self.opened_at = 0.0
        self.leases: dict[str, Lease] = {}
        #: instance id -> what it has cost
        self.strays: dict[int, float] = {}
        #: never less than the latest time written down
        self.latest = 0.0
        for event in self.journal.events:
            self._apply(event)

    def open(self, project: str, name: str, now: float) -> None:
        """Once: the name that this sweep's labels bear, unlike any other's."""
        if not self.sweep:
            plain = "".join(c if c.isalnum() and c.isascii() else "_" for c in name).strip("_") or "sweep"
            self._append("opened", now, project=project, sweep=f"{plain[:40]}_{secrets.token_hex(3)}")

    def intend(
        self,
        job_id: str,
        arguments: tuple[str, ...],
        *,
        log: Path,
        machine_class: str,
        offer_id: int,
        usd_per_hour: float,
        now: float,
        disk_usd_per_hour: float | None = None,
    ) -> Lease:
        run = "".join(c if c.isalnum() or c in "_.-" else "." for c in job_id if c.isascii())[-120:]
        attempt = sum(lease.job_id == job_id for lease in self.leases.values())
        label = str(new_label(self.project, self.sweep, run.lstrip(".-") or "job", attempt))
        self._append(
            "intended",
            now,
            label=label,
            job=job_id,
            arguments=list(arguments),
            log=str(log),
            machine_class=machine_class,
            offer=offer_id,
            usd_per_hour=usd_per_hour,
            disk_usd_per_hour=disk_usd_per_hour,
        )
        return self.leases[label]

    def rented(self, label: str, instance_id: int, now: float) -> Lease:
        self._append("rented", now, label=label, instance=instance_id)
        return self.leases[label]

    def starting(self, label: str, now: float) -> Lease:
        self._append("starting", now, label=label)
        return self.leases[label]

    def placed(self, label: str, now: float) -> Lease:
        self._append("placed", now, label=label)
        return self.leases[label]

    def ended(self, label: str, end: JobEnd, now: float, *, files: int = 0, reason: str = "") -> Lease:
        self._append(
            "ended",
            now,
            label=label,
            exit_code=end.exit_code,
            seconds=round(end.seconds, 3),
            lost=end.lost,
            files=files,
            reason=reason,
        )
        return self.leases[label]

    def kept(self, label: str, end: JobEnd, now: float, *, reason: str) -> Lease:
        """Seen stopped, with something on its disk that is not here; `end` is how its job is told to have ended."""
        self._append(
            "kept",
            now,
            label=label,
            exit_code=end.exit_code,
            seconds=round(end.seconds, 3),
            lost=end.lost,
            reason=reason,
        )
        return self.leases[label]

    def woken(self, label: str, now: float, *, recalled: bool = False) -> Lease:
        """Before it is started again: from now on it costs its full price, and its job has not ended."""
        self._append("woken", now, label=label, recalled=recalled)
        return self.leases[label]

    def claimed(self, label: str, now: float) -> Lease:
        self._append("claimed", now, label=label)
        return self.leases[label]

    def gone(self, label: str, now: float, *, reason: str) -> Lease:
        """Verified: it bills no more. Costs nothing where nothing was made."""
        lease = self.leases[label]
        usd = lease.spent_usd(now) if lease.instance_id is not None else 0.0
        self._append("gone", now, label=label, usd=round(usd, 6), reason=reason)
        return self.leases[label]

    def stray(self, label: str | None, instance_id: int, usd: float, now: float) -> None:
        """Found alive though nobody wants it; written before it is destroyed, perhaps again and again."""
        self._append("stray", now, label=label, instance=instance_id, usd=round(usd, 6))

    # --- what it adds up to ---

    def live(self) -> list[Lease]:
        """What may bill, kept ones too."""
        return [lease for lease in self.leases.values() if lease.live]

    def all_kept(self) -> list[Lease]:
        return [lease for lease in self.leases.values() if lease.kept]

    def of_job(self, job_id: str) -> list[Lease]:
        """In the order they were asked for."""
        return [lease for lease in self.leases.values() if lease.job_id == job_id]

    def at_work(self, job_id: str) -> Lease | None:
        """What its last submission came to: the last lease, or an older one that was woken after the last went
        away without an end; None where nothing of it is left."""
        history = self.of_job(job_id)
        if history and (history[-1].live or history[-1].end is not None):
            return history[-1]
        return next((lease for lease in reversed(history) if lease.live and lease.end is None), None)

    def losses(self, job_id: str) -> set[str]:
        """Labels of the instances that this job lost at work, without those that its driver deserted."""
        ended = [lease for lease in self.of_job(job_id) if lease.end is not None and lease.end.lost]
        return {lease.label for lease in ended if not lease.deserted}

    def brought_home(self, job_id: str) -> Lease | None:
        """By a recall: how the job ended there, which nobody was told, and what it left is here."""
        return next((lease for lease in self.of_job(job_id) if lease.recalled and lease.settled), None)

    def journalled(self) -> list[Journalled]:
        """For the reaper's rule."""
        return [Journalled(x.label, x.instance_id, wanted=x.live) for x in self.leases.values()]

    def spent_usd(self, now: float, job_id: str | None = None) -> float:
        """Up to now, never less than what the service has billed for what is known here."""
        leases = self.leases.values() if job_id is None else self.of_job(job_id)
        stray = sum(self.strays.values()) if job_id is None else 0.0
        return stray + sum(lease.spent_usd(now) for lease in leases)

    def _append(self, kind: str, now: float, **data: Any) -> None:
        self._apply(self.journal.append(kind, now=round(max(now, self.latest), 3), **data))

    def _apply(self, event: Event) -> None:
        data = event.data
        self.latest = max(self.latest, float(data["now"]))
        if event.kind == "opened":
            self.project, self.sweep, self.opened_at = data["project"], data["sweep"], data["now"]
        elif event.kind == "stray":
            self.strays[data["instance"]] = data["usd"]
            if (lease := self.leases.get(data["label"] or "")) is not None:
                self.leases[lease.label] = replace(lease, reason="turned up late")
        elif event.kind == "intended":
            self.leases[data["label"]] = Lease(
                data["label"],
                data["job"],
                tuple(data["arguments"]),
                data["log"],
                data["machine_class"],
                data["offer"],
                data["usd_per_hour"],
                data["now"],
                disk_usd_per_hour=data.get("disk_usd_per_hour"),
            )
        else:
            self._change(event)

    def _change(self, event: Event) -> None:
        data = event.data
        lease = self.leases.get(data["label"])
        if lease is None:
            raise IntegrityError(
                f"{self.path}: line {event.number + 1} is about an unknown {data['label']!r}"
            )
        if event.kind == "rented":
            lease = replace(lease, instance_id=data["instance"])
        elif event.kind == "starting":
            lease = replace(lease, starting=True)
        elif event.kind == "placed":
            lease = replace(lease, placed_at=data["now"])
        elif event.kind in ("ended", "kept"):
            end = JobEnd(lease.job_id, data["exit_code"], data["seconds"], lost=data["lost"])
            lease = replace(lease, end=end, deserted=data.get("reason") == DRIVER_SILENT)
            if event.kind == "kept":
                lease = _repriced(lease, data["now"], kept_at=data["now"], reason=data["reason"])
        elif event.kind == "woken":
            told_s = lease.seconds_before_wake + (lease.end.seconds if lease.end is not None else 0.0)
            lease = _repriced(replace(lease, end=None), data["now"], kept_at=None, reason="")
            lease = replace(
                lease,
                woken=lease.woken + 1,
                usd_before_wake=lease.past_usd,
                seconds_before_wake=told_s,
                recalled=data.get("recalled", False),
            )
        elif event.kind == "claimed":
            lease = replace(lease, recalled=False)
        elif event.kind == "gone":
            lease = replace(lease, gone_at=data["now"], cost_usd=data["usd"], reason=data["reason"])
        else:
            raise IntegrityError(f"{self.path}: line {event.number + 1}: no {event.kind!r} is known here")
        self.leases[lease.label] = lease


def _repriced(lease: Lease, now: float, *, kept_at: float | None, reason: str) -> Lease:
    """What it cost so far is settled at the old rate."""
    return replace(lease, past_usd=lease.spent_usd(now), priced_at=now, kept_at=kept_at, reason=reason)
