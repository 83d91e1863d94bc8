"""What the Vast.ai client reads and ends: complete or unknown, patient, without the key, verified."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from pydantic import SecretStr

from tests.executors.vast_faults import KEY, LIST_FAULTS, READ_FAULTS
from tests.executors.vast_world import LABEL, OFFER, World, raised
from universal_simulator.executors.vast_client import VastClient
from universal_simulator.executors.vast_replies import (
    CloudError,
    Created,
    Instance,
    Unknown,
    UnknownOutcome,
)

# --- list: complete, or unknown ---


def test_the_list_is_paged_by_the_token(world: World) -> None:
    ids = [world.server.rent(f"usim-s1-r-{n}-0000000{n % 10}").id for n in range(60)]
    world.server.rent(None)
    assert world.listed()[:60] == ids
    assert world.server.requests == [
        "GET /api/v1/instances/?limit=25",
        f"GET /api/v1/instances/?limit=25&after_token=after%3A{ids[24]}",
        f"GET /api/v1/instances/?limit=25&after_token=after%3A{ids[49]}",
    ]
    assert len(world.client.list_instances("usim-s1-")) == 60
    assert world.client.list_instances("usim-s2-") == ()


@pytest.mark.parametrize("mood", LIST_FAULTS + READ_FAULTS)
def test_a_listing_that_is_not_whole_is_repeated_then_unknown_and_never_empty(
    world: World, mood: str
) -> None:
    ids = [world.server.rent(LABEL).id, world.server.rent("other").id]
    world.server.plan("list", mood, mood)
    assert world.listed() == ids
    world.server.plan("list", *[mood] * 20)
    began = world.clock.now
    raised(UnknownOutcome, world.listed)
    assert 30 <= world.clock.now - began <= 60, "bounded by the client's patience"


def test_a_token_that_repeats_and_a_page_that_is_missing_are_unknown(world: World) -> None:
    ids = [world.server.rent(f"l{n}").id for n in range(40)]
    world.server.plan("list", "circle", "circle")
    assert world.listed() == ids
    world.server.plan("list", "good", "short")
    assert world.listed() == ids
    world.server.plan("list", *["circle"] * 40)
    assert "circles" in raised(UnknownOutcome, world.listed)


def test_a_page_that_counts_more_than_it_holds_is_unknown(world: World) -> None:
    page = {"success": True, "instances": [], "total_instances": 0, "instances_found": 2}
    client = VastClient(
        "https://host",
        SecretStr(KEY),
        transport=httpx.MockTransport(lambda _: httpx.Response(200, json=page)),
        clock=world.clock,
        sleep=world.clock.sleep,
    )
    raised(UnknownOutcome, client.list_instances)


# --- patience ---


def test_retry_after_is_honoured_and_one_too_long_is_not_waited_for(world: World) -> None:
    world.server.plan("list", "429 17")
    began = world.clock.now
    assert world.listed() == []
    assert world.clock.now - began == 17
    world.server.plan("list", "429 3600")
    began = world.clock.now
    assert "too frequent" in raised(UnknownOutcome, world.listed)
    assert world.clock.now == began
    world.server.plan("list", "429 Wed, 21 Oct 2026 07:28:00 GMT")
    assert world.listed() == []


def test_nobody_there_is_unknown(world: World) -> None:
    client = VastClient(
        "http://127.0.0.1:9", SecretStr(KEY), clock=world.clock, sleep=world.clock.sleep, patience_s=10
    )
    raised(UnknownOutcome, client.list_instances)
    outcome = client.create(OFFER, LABEL, image="i", onstart="", env={}, disk_gb=1.0)
    assert isinstance(outcome, Unknown)
    raised(UnknownOutcome, client.destroy_and_verify, 7, deadline_s=30)


def test_a_reply_that_trickles_is_cut_off_by_the_clock(world: World) -> None:
    class Trickle(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            while True:
                world.clock.sleep(1)
                yield b" "

    client = VastClient(
        "https://host",
        SecretStr(KEY),
        transport=httpx.MockTransport(lambda _: httpx.Response(200, stream=Trickle())),
        clock=world.clock,
        sleep=world.clock.sleep,
        request_timeout_s=30,
        patience_s=100,
    )
    began = world.clock.now
    raised(UnknownOutcome, client.list_instances)
    assert world.clock.now - began <= 140


# --- one, logs, stop, start, label ---


def test_one_instance_as_it_lives(world: World) -> None:
    outcome = world.create()
    assert isinstance(outcome, Created)

    def now() -> Instance:
        instance = world.client.get(outcome.instance_id)
        assert instance is not None
        return instance

    assert now().actual_status is None
    assert now().status_msg == "success, running?[2J", "no escape reaches a terminal"
    machine = world.server.machines[outcome.instance_id]
    machine.stuck = True
    world.clock.sleep(7200)
    assert now().actual_status == "loading"
    assert machine.gpu_usd == 0
    machine.stuck = False
    assert now().bills_gpu
    world.server.outbid(machine)
    assert now().outbid
    assert not now().bills_gpu
    world.client.start(machine.id)
    world.clock.sleep(30)
    assert now().actual_status == "running"
    world.client.stop(machine.id)
    assert now().actual_status == "exited"
    world.client.start(machine.id)
    world.server.host_dies(machine)
    assert now().actual_status == "unknown"
    assert now().silent
    world.clock.sleep(3600)
    assert now().actual_status == "offline"
    assert now().silent
    world.client.label(machine.id, "renamed")
    assert now().label == "renamed"


def test_what_an_instance_bills(world: World) -> None:
    machine = world.server.rent("x", usd_per_hour=2.0, disk_gb=100)
    world.clock.sleep(3600)
    expected = 2.0 * 3580 / 3600 + 0.02
    assert world.server.spent_usd() == pytest.approx(expected)
    machine.frozen = True
    world.clock.sleep(3600)
    world.server.settle()
    world.client.stop(machine.id)
    world.clock.sleep(3600)
    world.server.settle()
    world.client.destroy(machine.id)
    world.clock.sleep(3600)
    assert world.server.spent_usd() == pytest.approx(expected + 2.0 + 2 * 0.02)


@pytest.mark.parametrize("mood", ["other", *READ_FAULTS])
def test_one_that_is_garbled_is_unknown_not_none(world: World, mood: str) -> None:
    machine = world.server.rent(LABEL)
    world.server.plan("one", *[mood] * 20)
    raised(UnknownOutcome, world.client.get, machine.id)
    world.server.calm()
    assert world.client.get(machine.id + 1) is None


def test_logs_come_without_the_key_and_without_escapes(world: World) -> None:
    machine = world.server.rent(LABEL)
    world.server.plan("logs", "503")
    assert world.client.logs(machine.id) == f"epoch 1?[31m of {machine.id}\n***\n"
    assert world.server.bodies[0] == {"tail": "50"}


@pytest.mark.parametrize("address", ["http://elsewhere/x", "file:///etc/passwd", "https://a:b@host/", "::"])
def test_a_log_is_fetched_from_an_https_address_only(address: str) -> None:
    asked: list[str] = []

    def respond(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(200, json={"result_url": address})

    client = VastClient("https://host", SecretStr(KEY), transport=httpx.MockTransport(respond))
    raised(CloudError, client.logs, 1)
    assert asked == ["https://host/api/v0/instances/request_logs/1/"]


@pytest.mark.parametrize("mood", ["refuse", "echo"])
def test_a_refusal_is_told_at_once_and_without_the_key(world: World, mood: str) -> None:
    machine = world.server.rent(LABEL)
    for endpoint, call in [("change", world.client.stop), ("destroy", world.client.destroy)]:
        world.server.plan(endpoint, mood)
        assert "invalid_args" in raised(CloudError, call, machine.id)
    raised(CloudError, world.client.stop, 7)
    assert len(world.server.requests) == 3


# --- destroy ---


@pytest.mark.parametrize("mood", ["good", "ghost", "ignored", "refuse", *READ_FAULTS])
def test_destroyed_means_absent_from_several_listings(world: World, mood: str) -> None:
    mine, other = world.server.rent(LABEL), world.server.rent("another")
    world.server.plan("destroy", mood)
    world.client.destroy_and_verify(mine.id, deadline_s=120)
    assert list(world.server.machines) == [other.id]
    assert sum("GET" in request for request in world.server.requests) >= 3


def test_a_look_that_shows_it_again_begins_the_count_anew(world: World) -> None:
    mine = world.server.rent(LABEL)
    world.server.plan("destroy", "ignored")
    world.server.plan("list", "blank")
    world.client.destroy_and_verify(mine.id, deadline_s=120)
    asked = [request.split("/")[0] + request.split("/")[2] for request in world.server.requests]
    assert asked == ["DELETE v0", "GET v1", "GET v1", "DELETE v0", "GET v1", "GET v1", "GET v1"]


def test_one_that_cannot_be_destroyed_does_not_keep_the_others_and_is_named(world: World) -> None:
    stays, goes = world.server.rent(LABEL), world.server.rent("usim-s1-run-1-00000002")
    gone = world.server.rent("x")
    del world.server.machines[gone.id]
    real = world.server._destroy
    world.server._destroy = lambda mood, i, **rest: real("ignored" if i == stays.id else mood, i, **rest)  # type: ignore[method-assign]
    try:
        text = raised(
            UnknownOutcome, world.client.destroy_and_verify, stays.id, goes.id, gone.id, deadline_s=60
        )
    finally:
        del world.server._destroy
    assert f"may still bill: {stays.id}." in text
    assert list(world.server.machines) == [stays.id]


def test_nothing_is_verified_while_the_list_is_unknown(world: World) -> None:
    mine = world.server.rent(LABEL)
    world.server.plan("list", *["no success"] * 50)
    assert f"may still bill: {mine.id}." in raised(
        UnknownOutcome, world.client.destroy_and_verify, mine.id, deadline_s=90
    )
    assert not world.server.machines, "it was asked for all the same"
