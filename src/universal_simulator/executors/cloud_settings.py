"""What a sweep may rent, for how much, and how long anybody waits for what."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from universal_simulator.errors import ExecutorError, UserError
from universal_simulator.executors.vast_replies import Criteria

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
#: the plan's two kinds of machine, by GPU memory (GB of 1000 MB, as the service counts them)
GPU_RAM_GB = {"small": 40.0, "large": 80.0}
#: share of the disk that what is sent may take: setup, checkpoints and results need the rest
ROOM = 0.75
_PYTHON = "env/bin/python"


class CloudSettings(BaseModel):
    """Prices in USD, times in seconds. `ceiling_usd` is the one thing nobody but the user can know.

    silence_s: an instance that has not heard from the driver for this long ends its work and stops
    itself. reserve_s: for copying results off and for verifying that an instance is gone. The rent of
    both together is kept back below the ceiling for every instance, so that the ceiling holds though
    the driver dies. unreachable_s: an instance is given up after this long without a word, and only if
    others agree (`Silence`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    ceiling_usd: Positive
    #: for all instances that one job ever had; None: the sweep's
    run_ceiling_usd: Positive | None = None
    price_usd_per_hour_at_most: Positive = 1.5
    gpu_ram_gb: dict[str, Positive] = Field(default_factory=lambda: dict(GPU_RAM_GB))
    reliability_above: Annotated[float, Field(ge=0, le=1)] = 0.95
    disk_gb: Positive = 64.0
    #: interruptible instances: cheaper, can be outbid at any moment
    spot: bool = False
    #: a bid is the least one times this
    bid_factor: Annotated[float, Field(ge=1)] = 1.1

    project: str = "usim"
    image: str = "vastai/base-image:@vastai-automatic-tag"
    #: commands that make `python` there able to run the pinned code
    setup: tuple[tuple[str, ...], ...] = (
        ("python3", "-m", "venv", "env"),
        (_PYTHON, "-m", "pip", "install", "--quiet", "-c", "code/constraints.txt", "./code"),
    )
    python: str = _PYTHON
    #: data are sent from here, or made there, where they must come out with the same identity
    data_route: Literal["upload", "generate"] = "upload"

    startup_s: Positive = 900.0
    #: least speed at which an instance is sent to, in 10^6 bits per second: each byte that moves adds its time at
    #: this speed to `startup_s`, and one that is slower is given back. What would take longer than `send_s_at_most`
    #: at it, or fill the disk, is rented for by nobody. Instances that are sent to for longer than `send_aside_s`
    #: are rented `sends_at_once` at a time: they share this machine's uplink, and all that wait for it bill
    send_mbit_per_s_at_least: Positive = 100.0
    send_s_at_most: Positive = 3600.0
    send_aside_s: Positive = 60.0
    sends_at_once: Count = 1
    #: the same for results on their way home, each byte of which adds to the patience with them
    fetch_mbit_per_s_at_least: Positive = 10.0
    poll_s: Positive = 30.0
    heartbeat_s: Positive = 1800.0
    unreachable_s: Positive = 900.0
    checkpoint_s: Positive = 900.0
    #: results that are on an instance and cannot be taken are asked for again for this long, unless a ceiling
    #: comes first; then it is stopped and its disk kept. cancel_patience_s: the same where the work was cancelled
    results_patience_s: Positive = 3600.0
    cancel_patience_s: Positive = 300.0
    silence_s: Positive = 1800.0
    reserve_s: Positive = 900.0
    #: how long a create in doubt is looked for before another is sent
    doubt_s: Positive = 90.0
    #: pause between two looks for stray instances
    reap_s: Positive = 600.0
    #: pause between two searches that found nothing, and for how long they go on
    search_pause_s: Positive = 120.0
    search_patience_s: Positive = 3600.0

    #: instances tried for one start of a job: stuck, refused or dead before it began
    startups_per_start: Count = 4
    #: instances that one job may lose at work in one sitting; a silent driver's own are not counted
    losses_per_run: Annotated[int, Field(ge=0)] = 3
    launches_per_hour: Count = 12

    @property
    def held_back_s(self) -> float:
        """Seconds of rent that every instance keeps back."""
        return self.reserve_s + self.silence_s

    @property
    def run_limit_usd(self) -> float:
        return self.ceiling_usd if self.run_ceiling_usd is None else self.run_ceiling_usd

    def send_s(self, size: int) -> float:
        """Seconds that so many bytes may take to an instance."""
        return size * 8e-6 / self.send_mbit_per_s_at_least

    def fetch_s(self, size: int) -> float:
        """Seconds that so many bytes may take from an instance."""
        return size * 8e-6 / self.fetch_mbit_per_s_at_least

    def refuse_too_heavy(self, name: str, size: int) -> None:
        """ExecutorError for what could not be sent in time, or finds no room on the disk that is rented."""
        gigabytes, speed = size / 1e9, self.send_mbit_per_s_at_least
        if self.send_s(size) > self.send_s_at_most:
            raise ExecutorError(
                f"{name}: {gigabytes:.1f} GB would be sent to each instance, {self.send_s(size):.0f} s at "
                f"{speed:g} Mbit/s (send_mbit_per_s_at_least), and send_s_at_most is {self.send_s_at_most:.0f} s; "
                "nothing was rented. Take a smaller data set, data_route: generate, or other settings of --cloud"
            )
        if gigabytes > ROOM * self.disk_gb:
            raise ExecutorError(
                f"{name}: {gigabytes:.1f} GB do not fit beside everything else on a disk of "
                f"{self.disk_gb:g} GB (disk_gb); nothing was rented"
            )

    def criteria(self, machine_class: str) -> Criteria:
        """The plan's: one GPU with enough memory, reliability, disk, by price."""
        if machine_class not in self.gpu_ram_gb:
            known = ", ".join(sorted(self.gpu_ram_gb))
            raise UserError(f"no machine class {machine_class!r}; classes: {known} (gpu_ram_gb)")
        return Criteria(
            gpu_ram_gb=self.gpu_ram_gb[machine_class],
            reliability_above=self.reliability_above,
            disk_gb=self.disk_gb,
            spot=self.spot,
            price_usd_per_hour_at_most=self.price_usd_per_hour_at_most,
        )
