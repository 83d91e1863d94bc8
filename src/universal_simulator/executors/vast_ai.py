"""Jobs on rented Vast.ai instances, one instance a job, behind the contract of `sweep.executor`.

The sweep's folder holds the ledger of all that was rented for it (`cloud_ledger`), so whoever drives next
knows every instance: those wanted are taken over, all others are destroyed. Nothing is rented that could
cross the ceiling, and nothing stays rented when the sweep ends. Jobs named in `local` run on this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from universal_simulator.errors import BudgetError, ExecutorError, UnreachableError
from universal_simulator.executors.cloud_ledger import FILE, Lease, Ledger
from universal_simulator.executors.cloud_settings import CloudSettings
from universal_simulator.executors.job_files import read_errand
from universal_simulator.executors.kept_results import telling
from universal_simulator.executors.left_behind import LeftBehind
from universal_simulator.executors.rental_phase import Phase
from universal_simulator.executors.rental_room import comes_home, has_room, is_at_work
from universal_simulator.executors.rental_start import give_up_unlucky
from universal_simulator.executors.rental_state import WorkplaceOf
from universal_simulator.executors.rented_job import RentedJob, ending_at_most_s
from universal_simulator.executors.tenant import Tenant
from universal_simulator.executors.vast_client import VastClient
from universal_simulator.executors.vast_replies import CloudError
from universal_simulator.executors.winding_down import destroy_above_the_ceiling, failing, give_back
from universal_simulator.sweep.executor import Executor, Job, JobEnd, JobState, Resources, Use
from universal_simulator.sweep.job_log import tail
from universal_simulator.sweep.journal import Journal

#: between two looks at what is due
TICK_S = 1.0
#: for verifying at the end that everything is gone
LAST_S = 900.0


class VastExecutor(Executor):
    """`workplace_of` makes an instance's workplace, `bytes_of` tells what a job is sent there; `local` runs the jobs whose ids begin with one of
    `local_jobs`. `tell` hears what a person should know. One driver per folder, as the contract says."""

    remote = True

    def __init__(
        self,
        client: VastClient,
        settings: CloudSettings,
        *,
        slots: int,
        workplace_of: WorkplaceOf,
        bytes_of: Callable[[Job], int] = lambda _: 0,
        local: Executor | None = None,
        local_jobs: Sequence[str] = ("data",),
        tell: Callable[[str], None] = lambda _: None,
        journal_of: Callable[[Path], Journal] = Journal,
    ) -> None:
        if slots < 1:
            raise ExecutorError(f"need at least one instance at a time, got {slots}")
        self.slots = slots
        self.ending_s = ending_at_most_s(settings)
        self._client, self._settings, self._workplace_of = client, settings, workplace_of
        self._bytes_of = bytes_of
        self._local, self._local_jobs, self._tell = local, tuple(local_jobs), tell
        self._journal_of = journal_of
        self._tenants: dict[Path, Tenant] = {}
        self._jobs: dict[str, RentedJob] = {}
        self._left = LeftBehind()
        self._untold: list[str] = []
        self._said: dict[str, str] = {}
        #: until when what earlier drivers left is brought home
        self._home_by: float | None = None

    # --- the contract ---

    @property
    def place(self) -> str:
        """The service at its address."""
        return f"{super().place} {self._client.base_url}"

    def open(self, folder: Path | str) -> None:
        """Adopts, reaps, recalls and looks at what is at work, wherever something was ever rented for this folder."""
        self._tenant(Path(folder), make=False)
        self._step_unclaimed()

    def refuse_impossible(self, job: Job) -> None:
        if job.resources.gpus > 1:
            raise ExecutorError(
                f"{job.job_id} asks for gpus {job.resources.gpus}, instances are rented with 1 each"
            )
        self._settings.criteria(job.resources.machine_class)

    def bring_home(self, timeout_s: float) -> bool:
        """For a start and the patience with results, once; what does not answer is left to `cancel_all`."""
        until = self._client.clock() + timeout_s
        if self._home_by is None:
            patience_s = self._settings.startup_s + self._settings.results_patience_s
            self._home_by = self._client.clock() + patience_s
        while any(comes_home(rental) for rental in self._left.aside):
            if self._client.clock() >= min(until, self._home_by):
                return self._client.clock() < self._home_by
            self._step()
            self._client.pause(min(self._idle_s(), timeout_s))
        return False

    def submit(self, job: Job) -> None:
        if (local := self._local_for(job.job_id)) is not None:
            local.submit(job)
            return
        folder = read_errand(job).folder
        self.refuse_impossible(job)
        if job.job_id in self._jobs and self._jobs[job.job_id].end is None:
            raise ExecutorError(f"{job.job_id} is at work already; wait for its end or cancel it")
        tenant = self._tenant(folder, make=True)
        assert tenant is not None
        if (fetched := tenant.ledger.brought_home(job.job_id)) is not None:
            # the end of this submission, and nothing is rented for it
            self._left.set_aside(job.job_id, self._jobs.pop(job.job_id, None))
            self._take_over(tenant.ledger.claimed(fetched.label, tenant.now()), tenant, folder)
            return
        kept = self._left.recalled(job.job_id, tenant)
        history = tenant.ledger.of_job(job.job_id)
        if any(lease.live and lease.end is None and lease != kept for lease in history):
            raise ExecutorError(f"{job.job_id} is at work already, for another driver; attach to it")
        weight = self._bytes_of(job)
        if kept is None:
            self._settings.refuse_too_heavy(job.job_id, weight)
        self._left.set_aside(job.job_id, self._jobs.pop(job.job_id, None))
        rental = RentedJob(
            job, tenant, self._workplace_of, lease=kept, reclaim=kept is not None, weight=weight
        )
        self._jobs[job.job_id] = rental
        if kept is None and tenant.lost(job.job_id) > self._settings.losses_per_run:
            give_up_unlucky(rental)
            self._untold.append(job.job_id)
        self._step()

    def attach(self, job_id: str, folder: Path | str) -> bool:
        if (local := self._local_for(job_id)) is not None:
            return local.attach(job_id, folder)
        if job_id in self._jobs and self._jobs[job_id].end is None:
            return self._jobs[job_id].job.folder == Path(folder)
        tenant = self._tenant(Path(folder), make=False)
        if tenant is None:
            return False
        if (lease := tenant.ledger.at_work(job_id)) is None:
            return False
        self._take_over(lease, tenant, Path(folder))
        return True

    def wait(self, timeout_s: float) -> list[JobEnd]:
        until = self._client.clock() + timeout_s
        while True:
            self._step()
            ends = self._ends() + ([] if self._local is None else self._local.wait(0.0))
            at_work = any(not job.tellable for job in self._jobs.values()) or self._local_at_work()
            left_s = until - self._client.clock()
            if ends or left_s <= 0 or not at_work:
                return ends
            if self._local_at_work() and self._local is not None:
                if local := self._local.wait(min(TICK_S, left_s)):
                    return local
            else:
                self._client.pause(min(self._idle_s(), left_s))

    def _idle_s(self) -> float:
        """Until something is due, a moment at least."""
        due = [rental.due - rental.now() for rental in self._rentals() if rental.at_work]
        return min(max(min(due, default=TICK_S), TICK_S / 10), 5 * TICK_S)

    def state(self, job_id: str) -> JobState:
        if (local := self._local_for(job_id)) is not None:
            return local.state(job_id)
        return self._jobs[job_id].state if job_id in self._jobs else "unknown"

    def use(self, job_id: str) -> Use:
        return self._jobs[job_id].use if job_id in self._jobs else Use()

    def billed_usd(self, folder: Path | str) -> float | None:
        tenant = self._tenants.get(Path(folder).absolute())
        return None if tenant is None else tenant.spent_usd()

    def ask_to_end(self, job_ids: Sequence[str]) -> None:
        for name in job_ids:
            job = self._jobs.get(name)
            if job is not None and job.end is None:
                job.ask_to_end()
                if job.tellable and name not in self._untold:
                    self._untold.append(name)

    def cancel(self, job_id: str) -> JobEnd | None:
        if (local := self._local_for(job_id)) is not None:
            return local.cancel(job_id)
        job = self._jobs.get(job_id)
        if job is None or (job.end is not None and job_id not in self._untold):
            return None
        try:
            job.cancel(meanwhile=lambda: self._step_others(job))
        except CloudError as error:
            raise UnreachableError(f"{job_id} may still be at work: {error}") from error
        self._untold = [name for name in self._untold if name != job_id]
        return job.billed_end

    def tail(self, job_id: str, lines: int = 12) -> str:
        if (local := self._local_for(job_id)) is not None:
            return local.tail(job_id, lines)
        job = self._jobs.get(job_id)
        return tail(job.job.log, lines) if job is not None and job.job.log.exists() else ""

    def cancel_all(self) -> None:
        """Also gives back what nobody drives any more. What could not be brought home is kept, stopped, and
        told; ExecutorError, naming the instances, where others are not verified to be gone: they may bill."""
        troubles = [] if self._local is None else failing(self._local.cancel_all)
        troubles += self._end_all()
        self._untold.clear()
        self._tell_kept()
        if troubles:
            raise ExecutorError(
                "not everything is verified to be gone; run `usim cloud reap FOLDER` again:\n"
                + "\n".join(troubles)
            )

    # --- its parts ---

    def spent_usd(self) -> float:
        return sum(tenant.spent_usd() for tenant in self._tenants.values())

    def _local_for(self, job_id: str) -> Executor | None:
        return self._local if job_id.split(":")[0] in self._local_jobs else None

    def _local_at_work(self) -> bool:
        return self._local is not None and any(
            self._local.state(name) in ("waiting", "running") for name in self._local_jobs
        )

    def _tenant(self, folder: Path, *, make: bool) -> Tenant | None:
        """Of this folder; opened once, with a look for what is there and should not be."""
        folder = folder.absolute()
        if folder in self._tenants:
            return self._tenants[folder]
        path = folder / FILE
        if not make and not path.exists():
            return None
        ledger = Ledger(path, self._journal_of(path))
        try:
            # an answer from the service comes first: nothing is written by another clock than its own
            self._client.list_instances()
            tenant = Tenant(self._client, ledger, self._settings)
            ledger.open(self._settings.project, folder.name, tenant.now())
            tenant.reap()
        except CloudError as error:
            raise UnreachableError(f"{folder}: nobody can say what is rented for it: {error}") from error
        self._tenants[folder] = tenant
        self._left.note(tenant, lambda lease, recall: self._rental_of(lease, tenant, folder, recall=recall))
        return tenant

    def _take_over(self, lease: Lease, tenant: Tenant, folder: Path) -> None:
        rental = self._left.claim(lease) or self._rental_of(lease, tenant, folder)
        self._jobs[lease.job_id] = rental
        if rental.tellable:
            self._untold.append(lease.job_id)

    def _rental_of(self, lease: Lease, tenant: Tenant, folder: Path, *, recall: bool = False) -> RentedJob:
        resources = Resources(gpus=1, machine_class=lease.machine_class)
        job = Job(lease.job_id, lease.arguments, Path(lease.log), folder, resources)
        rental = RentedJob(job, tenant, self._workplace_of, lease=lease, wanted=not recall, reclaim=recall)
        rental.weight = self._bytes_of(job)
        return rental

    def _rentals(self) -> list[RentedJob]:
        return [*self._jobs.values(), *self._left.unclaimed, *self._left.aside]

    def _step(self) -> None:
        """Everything that is due, as far as it goes. Raises BudgetError when a ceiling ends the sweep."""
        for tenant in self._tenants.values():
            if tenant.must_stop():
                self._wind_down(f"the ceiling of ${self._settings.ceiling_usd:.2f} would be crossed")
            if tenant.now() - (tenant.reaped_at or 0.0) > self._settings.reap_s:
                tenant.look_for_strays(self._tell)
        for name, job in list(self._jobs.items()):
            self._step_job(name, job)
        self._step_unclaimed()
        self._step_aside()

    def _has_room(self, job: RentedJob) -> bool:
        """What nobody has attached to yet takes no slot of what is submitted meanwhile, such as a canary."""
        unclaimed = sum(rental.at_work for rental in self._left.unclaimed)
        return has_room(job, self._rentals(), self.slots + unclaimed)

    def _step_unclaimed(self) -> None:
        for rental in self._left.unclaimed:
            rental.step()
            self._say(f"{rental.job.job_id} (begun by an earlier driver)", rental)

    def _step_job(self, name: str, job: RentedJob) -> None:
        if job.needs_room and not self._has_room(job):
            return
        told = job.tellable
        try:
            job.step()
        except BudgetError as error:
            if not any(other.at_work for other in self._rentals()):
                raise
            job.due, job.trouble = job.now() + self._settings.poll_s, str(error)
        if job.tellable and not told and name not in self._untold:
            self._untold.append(name)
        self._say(name, job)

    def _step_others(self, job: RentedJob) -> None:
        """While one is brought to its end: no other stops itself because nobody looked, and those that were
        asked to end too do so meanwhile."""
        for name, other in list(self._jobs.items()):
            if other is not job and other.at_work:
                self._step_job(name, other)
        self._step_unclaimed()

    def _step_aside(self) -> None:
        """These never end a sweep, and never get in the way of a job of the driver's."""
        aside = self._left.aside
        for rental in list(aside):
            if rental.needs_room and (not self._has_room(rental) or is_at_work(rental)):
                continue
            try:
                rental.step()
            except BudgetError as error:
                aside.remove(rental)
                rental.trouble = f"not woken for what it holds: {error}"
            if rental.phase is Phase.DONE and rental in aside:
                aside.remove(rental)
            self._say(f"{rental.job.job_id} (left by an earlier attempt)", rental)

    def _ends(self) -> list[JobEnd]:
        ends = [self._jobs[name].billed_end for name in self._untold]
        self._untold.clear()
        return ends

    def _say(self, name: str, job: RentedJob) -> None:
        text = f"{name}: {job.phase.value}" + (f" ({job.trouble})" if job.trouble else "")
        if self._said.get(name) != text:
            self._said[name] = text
            self._tell(f"{text}; ${self.spent_usd():.2f} spent")

    def _wind_down(self, reason: str) -> None:
        """Everything home or kept, and given back, then the end. What the ceiling cannot hold is destroyed.

        The ends of it, and jobs of this machine, are the driver's to `cancel` and to pay before it stops.
        """
        before = {name for name, job in self._jobs.items() if job.tellable and name not in self._untold}
        troubles = self._end_all()
        self._untold = [
            name for name, job in self._jobs.items() if job.end is not None and name not in before
        ]
        for tenant in self._tenants.values():
            troubles += destroy_above_the_ceiling(tenant)
        told = (
            f"{reason}, so all instances were given back, what they held copied before but for what is named "
            "here; finished runs are kept: raise the ceiling and type the command again to go on"
        )
        raise BudgetError("\n".join([told, *self._tell_kept(), *troubles]))

    def _end_all(self) -> list[str]:
        """Everything at work to its end, one failure no matter to the others; what went wrong, in words."""
        for tenant in self._tenants.values():
            held = {rental.lease.label for rental in self._rentals() if rental.lease is not None}
            for lease in tenant.ledger.live():
                if not lease.kept and lease.label not in held:
                    self._take_over(lease, tenant, tenant.ledger.path.parents[1])
        # what still stands still is left so
        self._left.aside = [rental for rental in self._left.aside if not rental.needs_room]
        troubles = give_back(self._rentals(), self._client, LAST_S)
        for tenant in self._tenants.values():
            troubles += failing(tenant.reap)
            left = [lease for lease in tenant.ledger.live() if not lease.kept]
            troubles += [f"{lease.label} (instance {lease.instance_id})" for lease in left]
        return troubles

    def _tell_kept(self) -> list[str]:
        """Once each, loudly: who pays has to know."""
        kept = [(x, where) for where, t in self._tenants.items() for x in t.ledger.all_kept()]
        words = {lease.label: telling(lease, folder) for lease, folder in kept}
        for label in [label for label in words if self._said.get(label) != words[label]]:
            self._said[label] = words[label]
            self._tell(words[label])
        return list(words.values())
