"""A `VastExecutor` as the command line wants it: the account's key, ssh, the pinned code, this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from universal_simulator.configuration.documents import read_mapping, validate
from universal_simulator.credentials import read_vast_key
from universal_simulator.errors import ExecutorError, UserError
from universal_simulator.executors.cloud_ledger import Lease
from universal_simulator.executors.cloud_settings import CloudSettings
from universal_simulator.executors.code_archive import pack_code
from universal_simulator.executors.job_files import cargo, read_errand
from universal_simulator.executors.local_process import LocalProcessExecutor
from universal_simulator.executors.remote_workplace import Outfit, RemoteWorkplace
from universal_simulator.executors.ssh_transport import SSHTransport
from universal_simulator.executors.vast_ai import VastExecutor
from universal_simulator.executors.vast_client import VastClient
from universal_simulator.executors.vast_connection import DEFAULT_URL
from universal_simulator.executors.vast_replies import Instance
from universal_simulator.executors.workplace import Workplace
from universal_simulator.sweep.executor import Job
from universal_simulator.sweep.job_log import answer
from universal_simulator.sweep.jobs import DATA, log_path


class RentingSettings(CloudSettings):
    """And how to reach what is rented. `ssh_key`: path of the private key whose public half the account
    has; None leaves the choice to ssh. `key_file`: path of a file with the account's API key."""

    ssh_key: Path | None = None
    key_file: Path | None = None


def renting_settings(file: Path | None, ceiling_usd: float | None) -> RentingSettings:
    """Of a YAML file; the ceiling of the command line goes before its own."""
    values = {} if file is None else read_mapping(file)
    if ceiling_usd is not None:
        values = {**values, "ceiling_usd": ceiling_usd}
    if "ceiling_usd" not in values:
        raise UserError(
            "nothing is rented without a ceiling: give --ceiling-usd, or ceiling_usd in the file of --cloud"
        )
    return validate(RentingSettings, values, str(file or "--ceiling-usd"))


def open_client(environment: Mapping[str, str], key_file: Path | None = None) -> VastClient:
    """The account's client at VAST_URL or the service's own address."""
    return VastClient(environment.get("VAST_URL") or DEFAULT_URL, read_vast_key(environment, key_file))


def vast_executor(
    settings: RentingSettings,
    environment: Mapping[str, str],
    *,
    slots: int,
    tell: Callable[[str], None] = lambda _: None,
) -> VastExecutor:
    """Data are made on this machine; everything else is sent with the code as it is now."""
    key = read_vast_key(environment, settings.key_file)
    if settings.ssh_key is not None and not settings.ssh_key.is_file():
        raise UserError(f"ssh_key: {settings.ssh_key} does not exist; give the private key's path")
    archive = pack_code(secrets=[key])
    client = open_client(environment, settings.key_file)

    def workplace(job: Job, lease: Lease, instance: Instance) -> Workplace:
        errand = read_errand(job)
        assert instance.ssh_host is not None
        assert instance.ssh_port is not None
        books = errand.folder / "cloud"
        shell = SSHTransport(
            instance.ssh_host,
            instance.ssh_port,
            known_hosts=books / f"{lease.label}.known_hosts",
            key=settings.ssh_key,
        )
        outfit = Outfit(
            archive,
            setup=settings.setup,
            python=settings.python,
            silence_s=settings.silence_s,
            service=client.base_url,
            data=_identities(errand.folder) if settings.data_route == "generate" else {},
        )
        return RemoteWorkplace(shell, errand, outfit, mirror=books / f"{lease.label}.log")

    def bytes_of(job: Job) -> int:
        errand = read_errand(job)
        made = _identities(errand.folder) if settings.data_route == "generate" else {}
        sent = [path.stat().st_size for path in cargo(errand, made=made).values()]
        return len(archive.content) + sum(sent)

    return VastExecutor(
        client,
        settings,
        slots=slots,
        workplace_of=workplace,
        bytes_of=bytes_of,
        local=LocalProcessExecutor(1),
        local_jobs=(DATA,),
        tell=tell,
    )


def _identities(folder: Path) -> dict[str, str]:
    """Data set -> identity, as the sweep's data job told it; nothing where it has not run."""
    try:
        told = answer(log_path(folder, DATA))
    except ExecutorError:
        return {}
    path = folder / "data" / f"{Path(str(told.get('path'))).stem}.hdf5"
    return {path.stem: str(told["identity"])} if path.is_file() and "identity" in told else {}
