"""Renting on behalf of one sweep: intent, create, look, keep to the ceiling, give back, verify.

    afford      spent + reserve of all that is rented + the first stretch of one more <= ceiling
    must stop   spent + reserve of all that is rented >= ceiling, for the sweep or for one run

*spent* is price x time by the service's clock for every label that may exist; the *reserve* is what
each would cost if the driver died now, until it stops itself, and then for copying results and verifying
its end (`held_back_s`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from universal_simulator.errors import BudgetError
from universal_simulator.executors.cloud_ledger import UNSEEN, Lease, Ledger
from universal_simulator.executors.cloud_settings import CloudSettings
from universal_simulator.executors.dead_man import onstart_script
from universal_simulator.executors.reaper import Verdict, reap
from universal_simulator.executors.vast_client import VastClient
from universal_simulator.executors.vast_replies import CloudError, Instance, Offer, Refused
from universal_simulator.sweep.executor import Job

DESTROY_S = 120.0
#: after an answer of 429 that names no time
PAUSE_S = 30.0


class RunCeilingError(BudgetError):
    """The ceiling of one run is reached; the sweep's is not."""


@dataclass(frozen=True)
class NotNow:
    """Nothing was rented, and nothing is left behind; try again after `pause_s` seconds."""

    reason: str
    pause_s: float
    #: an offer that was tried and failed
    offer_id: int | None = None


class Tenant:
    """One sweep's leases at one account. Everything that costs money goes through here."""

    def __init__(self, client: VastClient, ledger: Ledger, settings: CloudSettings) -> None:
        self.client, self.ledger, self.settings = client, ledger, settings
        self.reaped_at: float | None = None
        #: what earlier sittings lost counts no more: who types the command again wants it tried again
        self._lost_before = {label for x in ledger.leases.values() for label in ledger.losses(x.job_id)}
        self._floor = (ledger.latest, client.clock())

    def now(self) -> float:
        """Seconds by the clock that bills, never before what was already written down."""
        latest, since = self._floor
        return max(self.client.service_now(), latest + self.client.clock() - since)

    def lost(self, job_id: str) -> int:
        """Instances that a job has lost at work in this sitting."""
        return len(self.ledger.losses(job_id) - self._lost_before)

    # --- money ---

    def spent_usd(self, job_id: str | None = None) -> float:
        return self.ledger.spent_usd(self.now(), job_id)

    def reserve_usd(self) -> float:
        """Kept back for what is rented, and for what may turn up although it was never seen."""
        now, settings = self.now(), self.settings
        prices = [lease.rate_usd_per_hour for lease in self.ledger.live()]
        reserve = sum(prices) * settings.held_back_s / 3600
        since = max(0.0, now - (self.reaped_at or now)) + settings.held_back_s
        unseen = [lease.usd_per_hour for lease in self.ledger.leases.values() if lease.unseen]
        return reserve + sum(unseen) * since / 3600

    def refuse_unaffordable(self, usd_per_hour: float, job_id: str, *, sending_s: float = 0.0) -> None:
        """Raise BudgetError unless one more instance could start up, be sent to for `sending_s` seconds and be
        given back below the ceilings."""
        settings = self.settings
        first = usd_per_hour * (settings.startup_s + sending_s + settings.held_back_s) / 3600
        asked = f"{job_id}: an instance at ${usd_per_hour:.2f} an hour could cross the ceiling"
        if self.spent_usd() + self.reserve_usd() + first > settings.ceiling_usd:
            raise BudgetError(
                f"{asked}: ${self.spent_usd():.2f} of ${settings.ceiling_usd:.2f} are spent, "
                f"${self.reserve_usd():.2f} kept back; raise the ceiling to go on, nothing is lost"
            )
        if self.spent_usd(job_id) + first > settings.run_limit_usd:
            raise RunCeilingError(
                f"{asked} of a run: ${self.spent_usd(job_id):.2f} of ${settings.run_limit_usd:.2f} are spent on it"
            )

    def must_stop(self, lease: Lease | None = None) -> bool:
        """Whether the sweep (or only this lease's run) would cross its ceiling if it went on."""
        if lease is None:
            return self.spent_usd() + self.reserve_usd() >= self.settings.ceiling_usd
        reserve = lease.usd_per_hour * self.settings.held_back_s / 3600
        return self.spent_usd(lease.job_id) + reserve >= self.settings.run_limit_usd

    # --- renting ---

    def rent(self, job: Job, avoid: Collection[int] = (), *, sending_s: float = 0.0) -> Lease | NotNow:
        """Ask for the cheapest fitting offer that is not in `avoid`, once. `sending_s`: seconds that it may be
        sent to; where there are any, an offer whose line is told to be too slow does not fit.

        A lease without `instance_id` is in doubt: `resolve` it before anything else. Raises BudgetError
        where even the cheapest would cross a ceiling, UnknownOutcome where no offers could be had.
        """
        settings = self.settings
        recent = [x for x in self.ledger.leases.values() if self.now() - x.began < 3600]
        if len(recent) >= settings.launches_per_hour:
            wait_s = min(x.began for x in recent) + 3600 - self.now()
            return NotNow(f"{len(recent)} instances were asked for within the hour", wait_s)
        offers = self.client.search(settings.criteria(job.resources.machine_class))
        # what is told of a line is not what it carries, but one told to be slow is
        least = settings.send_mbit_per_s_at_least if sending_s > 0 else 0.0
        fast = [offer for offer in offers if offer.inet_down is None or offer.inet_down >= least]
        offer = next((offer for offer in fast if offer.id not in avoid), None)
        if offer is None:
            return NotNow("no offer meets the criteria", settings.search_pause_s)
        price = self.price_of(offer)
        self.refuse_unaffordable(price, job.job_id, sending_s=sending_s)
        return self._create(job, offer, price)

    def price_of(self, offer: Offer) -> float:
        """USD per hour: as asked, or what would be bid and the difference between all and GPU alone."""
        if not self.settings.spot:
            return offer.dph_total
        bid = self._bid(offer)
        if offer.dph_base is None:
            return max(bid, offer.dph_total)
        return bid + max(0.0, offer.dph_total - offer.dph_base)

    def disk_price_of(self, offer: Offer) -> float | None:
        """USD per hour of a stopped instance: the difference between all and GPU alone; None where not told."""
        disk = 0.0 if offer.dph_base is None else offer.dph_total - offer.dph_base
        return disk if disk > 0 else None

    def _bid(self, offer: Offer) -> float:
        return round(offer.price_usd_per_hour(spot=True) * self.settings.bid_factor, 4)

    def _create(self, job: Job, offer: Offer, price: float) -> Lease | NotNow:
        settings = self.settings
        lease = self.ledger.intend(
            job.job_id,
            job.arguments,
            log=job.log,
            machine_class=job.resources.machine_class,
            offer_id=offer.id,
            usd_per_hour=price,
            disk_usd_per_hour=self.disk_price_of(offer),
            now=self.now(),
        )
        outcome = self.client.create(
            offer,
            lease.label,
            image=settings.image,
            onstart=onstart_script(self.client.base_url, settings.silence_s),
            env={},
            disk_gb=settings.disk_gb,
            bid_usd_per_hour=self._bid(offer) if settings.spot else None,
        )
        if isinstance(outcome, Refused):
            self.ledger.gone(lease.label, self.now(), reason=f"refused: {outcome.reason}")
            pause_s = (outcome.retry_after_s or PAUSE_S) if outcome.status == 429 else 0.0
            return NotNow(outcome.reason, pause_s, None if outcome.status == 429 else offer.id)
        return lease

    def resolve(self, lease: Lease) -> Lease:
        """Look for the label of a create in doubt: found, still in doubt, or `gone` as never seen."""
        found = self.client.find_label(lease.label)
        if found:
            return self.ledger.rented(lease.label, found[0].id, self.now())
        if self.now() - lease.began < self.settings.doubt_s:
            return lease
        return self.ledger.gone(lease.label, self.now(), reason=UNSEEN)

    def instance(self, lease: Lease) -> Instance | None:
        """As the service sees it; None only when several complete listings in a row do not show it."""
        assert lease.instance_id is not None
        instance = self.client.get(lease.instance_id)
        if instance is not None:
            return instance
        listed = self.client.find_label(lease.label)
        return next((i for i in listed if i.id == lease.instance_id), None)

    def release(self, lease: Lease, reason: str) -> Lease:
        """Destroy it, verified by listings. Raises UnknownOutcome while nobody can say that it is gone."""
        if not lease.live:
            return self.ledger.leases[lease.label]
        if lease.instance_id is None:
            found = self.client.find_label(lease.label)
            if not found:
                return self.ledger.gone(lease.label, self.now(), reason=UNSEEN)
            lease = self.ledger.rented(lease.label, found[0].id, self.now())
        assert lease.instance_id is not None
        self.client.destroy_and_verify(lease.instance_id, deadline_s=DESTROY_S)
        return self.ledger.gone(lease.label, self.now(), reason=reason)

    def wake(self, lease: Lease, *, recalled: bool = False) -> Lease:
        """Start a kept instance again. Raises BudgetError where its rent could cross a ceiling."""
        assert lease.instance_id is not None
        self.refuse_unaffordable(lease.usd_per_hour, lease.job_id)
        lease = self.ledger.woken(lease.label, self.now(), recalled=recalled)
        self.client.start(lease.instance_id or 0)
        return lease

    def reap(self) -> Verdict:
        """Adopt what was asked for and is there, destroy what nobody wants, verified."""
        ledger = self.ledger
        verdict = reap(
            self.client,
            ledger.journalled(),
            project=ledger.project,
            sweep=ledger.sweep,
            before=self._charge_strays,
        )
        for instance in verdict.adopt:
            assert instance.label is not None
            ledger.rented(instance.label, instance.id, self.now())
        self.reaped_at = self.now()
        return verdict

    def look_for_strays(self, tell: Callable[[str], None]) -> None:
        """`reap`, tried again later where there is no complete look."""
        try:
            self.reap()
        except CloudError as error:
            self.reaped_at = self.now()
            tell(f"no complete look at what is rented: {error}")

    def _charge_strays(self, verdict: Verdict) -> None:
        now = self.now()
        for instance in verdict.destroy:
            lease = self.ledger.leases.get(instance.label or "")
            price = instance.dph_total or (lease.usd_per_hour if lease else 0.0)
            began = lease.began if lease else max(instance.start_date or 0.0, self.ledger.opened_at)
            usd = price * max(0.0, now - began) / 3600 - (lease.cost_usd if lease else 0.0)
            self.ledger.stray(instance.label, instance.id, max(0.0, usd), now)
