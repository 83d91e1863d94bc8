"""The Vast.ai client and the reaper against a loopback service that misbehaves; never the real one."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pydantic import SecretStr

from tests.executors.loopback_vast import SPOILT, Clock, LoopbackVast, Machine, offer
from universal_simulator.credentials import read_vast_key
from universal_simulator.errors import UserError
from universal_simulator.executors.reaper import Journalled, decide, new_label, parse_label, reap
from universal_simulator.executors.vast_client import VastClient
from universal_simulator.executors.vast_replies import (
    CloudError,
    Created,
    CreateOutcome,
    Criteria,
    Instance,
    Offer,
    Refused,
    Unknown,
    UnknownOutcome,
)

KEY = "5ecretkey0123456789abcdef"
LABEL = "usim-s1-run-0-00000001"
OFFER = Offer.model_validate(offer(1))


class World:
    """One server, one client, one clock; what the client tells is kept and searched for the key."""

    def __init__(self, server: LoopbackVast) -> None:
        self.server, self.clock = server, server.clock
        self.client = VastClient(
            server.url,
            SecretStr(KEY),
            clock=self.clock,
            sleep=self.clock.sleep,
            request_timeout_s=5.0,
            patience_s=60.0,
        )

    def create(self, label: str = LABEL, **options: Any) -> CreateOutcome:
        defaults: dict[str, Any] = {"image": "i", "onstart": "true", "env": {"A": "1"}, "disk_gb": 64.0}
        return self.client.create(OFFER, label, **defaults | options)

    def listed(self) -> list[int]:
        return [instance.id for instance in self.client.list_instances()]


@pytest.fixture(scope="module")
def service() -> Iterator[LoopbackVast]:
    with LoopbackVast(KEY, Clock()) as server:
        yield server


@pytest.fixture
def world(service: LoopbackVast, caplog: pytest.LogCaptureFixture) -> Iterator[World]:
    service.reset(Clock())
    caplog.set_level(logging.DEBUG)
    world = World(service)
    yield world
    world.client.close()
    assert KEY not in caplog.text
    assert not service.leaks


def raised(kind: type[CloudError], call: Any, *arguments: Any, **named: Any) -> str:
    """The whole text of the exception, chain included, which never holds the key."""
    with pytest.raises(kind) as caught:
        call(*arguments, **named)
    text = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert KEY not in text
    return str(caught.value)


# --- search ---


def test_search_asks_as_documented_and_sorts_by_price(world: World) -> None:
    world.server.offers = [
        offer(1, dph_total=0.9),
        offer(2, dph_total=0.4, min_bid=0.35, extra={"x": 1}),
        offer(3, dph_total=0.5, min_bid=None),
        offer(2, dph_total=0.4, min_bid=0.35),
        # the service need not keep to the query
        offer(4, gpu_ram=24576),
        offer(5, reliability2=0.95),
        offer(6, num_gpus=2),
        offer(7, disk_space=63),
        # nor to its format
        offer(8, dph_total=-1.0),
        offer(9, dph_total=float("nan")),
        offer(10, gpu_ram="40960"),
        offer(11, reliability2=None),
        "offer",
    ]
    assert [o.id for o in world.client.search(Criteria())] == [2, 3, 1]
    assert world.server.bodies[-1] == {
        "verified": {"eq": True},
        "rentable": {"eq": True},
        "gpu_ram": {"gte": 40000.0},
        "reliability": {"gt": 0.95},
        "num_gpus": {"eq": 1},
        "disk_space": {"gte": 64.0},
        "order": [["dph_total", "asc"]],
        "type": "on-demand",
        "limit": 20,
        "allocated_storage": 64.0,
    }
    assert [o.id for o in world.client.search(Criteria(spot=True))] == [1, 2]
    assert world.server.bodies[-1]["type"] == "bid"
    assert [o.id for o in world.client.search(Criteria(price_usd_per_hour_at_most=0.45))] == [2]
    assert world.client.search(Criteria(gpu_ram_gb=80)) == ()


def test_offers_of_which_none_can_be_read_are_not_taken_for_no_offers(world: World) -> None:
    world.server.offers = [{"offer_id": 1}]
    assert "gpu_name" in raised(UnknownOutcome, world.client.search, Criteria())
    world.server.offers = []
    assert world.client.search(Criteria()) == ()


# --- create: one request, three outcomes ---


def test_create_sends_what_is_documented(world: World) -> None:
    outcome = world.create(bid_usd_per_hour=0.5, runtype="args")
    assert isinstance(outcome, Created)
    assert world.server.requests == ["PUT /api/v0/asks/1/"]
    assert world.server.bodies[-1] == {
        "client_id": "me",
        "image": "i",
        "env": {"A": "1"},
        "disk": 64.0,
        "label": LABEL,
        "onstart": "true",
        "runtype": "args",
        "price": 0.5,
    }
    [instance] = world.client.find_label(LABEL)
    assert instance.id == outcome.instance_id


@pytest.mark.parametrize(
    ("mood", "made"),
    [
        ("drop", False),
        ("lose", True),
        ("503", False),
        ("done 500", True),
        ("302", False),
        ("408", False),
        ("404", False),
        ("no id", True),
        *((mood, True) for mood in SPOILT),
    ],
)
def test_a_doubtful_create_is_unknown_sent_once_and_found_by_its_label(
    world: World, mood: str, made: bool
) -> None:
    world.server.plan("create", mood)
    outcome = world.create()
    assert isinstance(outcome, Unknown)
    assert world.server.creates[LABEL] == 1
    assert len(world.client.find_label(LABEL)) == made == len(world.server.live(LABEL))


@pytest.mark.parametrize(
    ("mood", "expected"),
    [
        ("429", Refused("", 429, None)),
        ("429 7", Refused("", 429, 7.0)),
        ("refuse", Refused("", 400)),
        ("echo", Refused("", 400)),
    ],
)
def test_a_refused_create_says_why_and_made_nothing(world: World, mood: str, expected: Refused) -> None:
    world.server.plan("create", mood)
    outcome = world.create()
    assert isinstance(outcome, Refused)
    assert (outcome.status, outcome.retry_after_s) == (expected.status, expected.retry_after_s)
    assert ("too frequent" if expected.status == 429 else "invalid_args") in outcome.reason
    assert KEY not in repr(outcome)
    assert not world.server.machines


@pytest.mark.parametrize("status", [302, 408, 425, 500, 503])
def test_a_status_that_decides_nothing_is_no_refusal_whatever_it_says(status: int) -> None:
    complaint = {"success": False, "error": "timeout", "msg": "perhaps"}
    transport = httpx.MockTransport(lambda _: httpx.Response(status, json=complaint))
    client = VastClient("https://host", SecretStr(KEY), transport=transport)
    outcome = client.create(OFFER, LABEL, image="i", onstart="", env={}, disk_gb=1.0)
    assert isinstance(outcome, Unknown)
    assert "perhaps" in outcome.reason


def test_an_offer_that_is_gone_or_a_wrong_key_is_refused(world: World) -> None:
    world.server.offers = []
    assert world.create() == Refused("PUT /api/v0/asks/1/: answer 404, no_such_ask: offer 1 is gone", 404)
    stranger = VastClient(world.server.url, SecretStr("another-key-entirely"))
    outcome = stranger.create(OFFER, LABEL, image="i", onstart="", env={}, disk_gb=1.0)
    assert isinstance(outcome, Refused)
    assert outcome.status == 401
    assert "check the key" in raised(CloudError, stranger.list_instances)


def test_a_label_is_found_whole_and_at_once(world: World) -> None:
    world.server.rent(LABEL + "0")
    assert world.client.find_label(LABEL) == ()
    twice = [world.server.rent(LABEL).id, world.server.rent(LABEL).id]
    world.server.requests.clear()
    assert [instance.id for instance in world.client.find_label(LABEL)] == twice
    assert len(world.server.requests) == 1


def test_a_bid_turned_down_leaves_a_stopped_instance_so_it_is_unknown(world: World) -> None:
    assert isinstance(world.create(bid_usd_per_hour=0.2), Refused)
    assert not world.server.requests, "a bid below the known minimum is not even sent"
    world.server.offers = [offer(1, min_bid=0.6)]
    outcome = world.create(bid_usd_per_hour=0.5)
    assert isinstance(outcome, Unknown)
    assert "bid_too_low" in outcome.reason
    [left] = world.client.find_label(LABEL)
    assert left.outbid
    before = world.server.spent_usd()
    world.clock.sleep(3600)
    assert world.server.spent_usd() - before == pytest.approx(64 * 0.0002), "its disk bills on"
    world.client.destroy_and_verify(left.id, deadline_s=60)
    assert not world.server.machines


def test_a_create_that_is_carried_out_later_becomes_an_orphan_of_the_reaper(world: World) -> None:
    world.server.plan("create", "late")
    assert isinstance(world.create(), Unknown)
    assert world.client.find_label(LABEL) == ()
    world.clock.sleep(60)
    verdict = reap(world.client, [Journalled(LABEL, wanted=False)], project="usim", sweep="s1")
    assert [instance.label for instance in verdict.destroy] == [LABEL]
    assert not world.server.machines


@pytest.mark.parametrize(
    "options",
    [
        {"env": {"TOKEN": KEY}},
        {"onstart": f"curl -H 'Authorization: Bearer {KEY}'"},
        {"image": KEY},
        {"disk_gb": float("nan")},
        {"onstart": "\ud800"},
        {"label": ""},
        {"label": "a b"},
    ],
)
def test_a_create_that_must_not_leave_is_not_sent(world: World, options: dict[str, Any]) -> None:
    raised(CloudError, world.create, **options)
    assert not world.server.requests


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


LIST_FAULTS = ["no success", "unsuccessful", "null", "no total", "short", "bad entry"]
READ_FAULTS = ["drop", "lose", "503", "302", "429", "done 500", *SPOILT]


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


# --- keys and addresses ---


def test_the_key_comes_from_the_environment_or_the_users_file(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    with pytest.raises(UserError, match="set VAST_API_KEY"):
        read_vast_key(home)
    (tmp_path / ".vast_api_key").write_text("from-old-file\n")
    assert read_vast_key(home).get_secret_value() == "from-old-file"
    (tmp_path / ".config" / "vastai").mkdir(parents=True)
    (tmp_path / ".config" / "vastai" / "vast_api_key").write_text("from-new-file")
    assert read_vast_key(home | {"VAST_API_KEY": " "}).get_secret_value() == "from-new-file"
    key = read_vast_key(home | {"VAST_API_KEY": KEY})
    assert key.get_secret_value() == KEY
    assert KEY not in repr(key) + str(key) + repr({"key": key})
    named = tmp_path / "named"
    named.write_text("from-named-file")
    assert read_vast_key(home | {"VAST_API_KEY": KEY}, named).get_secret_value() == "from-named-file"
    with pytest.raises(UserError, match="write the key into"):
        read_vast_key(home, tmp_path / "absent")
    with pytest.raises(UserError, match="cannot be read"):
        read_vast_key(home, tmp_path)


@pytest.mark.parametrize("bad", ["two words", "line\nbreak-in-key", "kéykéykéykéy", "short", "x" * 513])
def test_a_key_that_fits_no_header_is_refused_unseen(bad: str) -> None:
    for make in (
        lambda: read_vast_key({"VAST_API_KEY": bad}),
        lambda: VastClient("https://h", SecretStr(bad)),
    ):
        with pytest.raises(UserError) as caught:
            make()
        assert bad not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "url", ["http://console.vast.ai", "ftp://host", "host", "", "https://a:b@host", "https://"]
)
def test_the_key_does_not_travel_in_the_clear(url: str) -> None:
    with pytest.raises(UserError, match="VAST_URL"):
        VastClient(url, SecretStr(KEY))


# --- labels and the reaper's rule ---

WORD = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.]{0,12}", fullmatch=True)


@given(WORD, WORD, st.from_regex(r"[A-Za-z0-9_.-]{1,20}", fullmatch=True), st.integers(0, 999))
def test_a_label_is_read_back_as_it_was_made(project: str, sweep: str, run: str, attempt: int) -> None:
    label = new_label(project, sweep, run, attempt)
    assert parse_label(str(label)) == label
    assert (label.project, label.sweep, label.run, label.attempt) == (project, sweep, run, attempt)
    assert new_label(project, sweep, run, attempt) != label


@pytest.mark.parametrize(
    "parts",
    [
        ("a-b", "s", "r", 0),
        ("a", "s-1", "r", 0),
        ("a", "", "r", 0),
        ("a", "s", "r r", 0),
        ("a", "s", "r", -1),
    ],
)
def test_parts_that_make_no_label_are_refused(parts: tuple[str, str, str, int]) -> None:
    with pytest.raises(UserError, match="is no label"):
        new_label(*parts)


@given(st.none() | st.text() | st.from_regex(r"usim-s1-[a-z0-9-]*", fullmatch=True))
def test_foreign_labels_are_read_or_not_but_never_break(text: str | None) -> None:
    label = parse_label(text)
    assert label is None or str(label) == text


def listing(**labels: str | None) -> list[Instance]:
    return [Instance(id=int(name[1:]), label=label) for name, label in labels.items()]


def test_the_rule_adopts_keeps_and_destroys_ours_and_names_no_other() -> None:
    def name(n: int, sweep: str = "s1", project: str = "usim") -> str:
        return f"{project}-{sweep}-run-{n}-{n:08x}"

    journalled = [
        Journalled(name(1)),
        Journalled(name(1), 1),
        Journalled(name(2)),
        Journalled(name(3), 3),
        Journalled(name(3), 3, wanted=False),
        Journalled(name(4), 40),
        Journalled(name(5), 5),
    ]
    seen = listing(
        i1=name(1),
        i22=name(2),
        i21=name(2),
        i3=name(3),
        i41=name(4),
        i6=name(6),
        i7=name(7, sweep="s10"),
        i8=name(8, project="usim2"),
        i9="usim-s1-",
        i10=None,
        i11="usim-s1-run-01-00000001",
    )

    def ids(instances: tuple[Instance, ...]) -> list[int]:
        return [instance.id for instance in instances]

    verdict = decide(journalled, seen, project="usim", sweep="s1")
    assert ids(verdict.keep) == [1]
    assert ids(verdict.adopt) == [21]
    assert ids(verdict.destroy) == [3, 6, 22, 41]
    assert verdict.missing == (5, 40)
    everywhere = decide(journalled, seen, project="usim", sweep=None)
    assert ids(everywhere.destroy) == [3, 6, 7, 22, 41]


@pytest.mark.parametrize("mood", [*LIST_FAULTS, "503"])
def test_an_unknown_listing_decides_nothing(world: World, mood: str) -> None:
    world.server.rent(LABEL)
    world.server.plan("list", *[mood] * 30)
    raised(UnknownOutcome, reap, world.client, [], project="usim", sweep="s1")
    assert not any("DELETE" in request for request in world.server.requests)


def test_listings_that_lie_once_or_twice_hide_no_orphan(world: World) -> None:
    orphan, kept = world.server.rent(LABEL), world.server.rent("usim-s1-run-1-00000002")
    journal = [Journalled("usim-s1-run-1-00000002", kept.id)]
    world.server.plan("list", "blank", "blank")
    verdict = reap(world.client, journal, project="usim", sweep="s1")
    assert [instance.id for instance in verdict.destroy] == [orphan.id]
    assert (verdict.missing, [i.id for i in verdict.keep]) == ((), [kept.id])
    assert list(world.server.machines) == [kept.id]


# --- everything at once ---

PROJECT, SWEEP = "usim", "s1"
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


class Sweep(RuleBasedStateMachine):
    """A driver as it should be (intent, create, look for the label, adopt; reap at start and end)
    against everything the service can do to it."""

    service: LoopbackVast
    journal: dict[str, Journalled]

    @initialize()
    def begin(self) -> None:
        self.service.reset(Clock())
        self.world = World(self.service)
        self.client, self.server, self.clock = self.world.client, self.service, self.service.clock
        self.journal = {}
        self.foreign: dict[int, str | None] = {}
        self.texts: list[str] = []
        self.attempts = 0
        self.crashed = False
        self.watch = KeyWatch()
        logging.getLogger().addHandler(self.watch)

    def can_launch(self) -> bool:
        return not self.crashed and len(self.wanted()) < 4

    def has_running(self) -> bool:
        return not self.crashed and any(entry.instance_id for entry in self.wanted())

    def wanted(self) -> list[Journalled]:
        return [entry for entry in self.journal.values() if entry.wanted]

    def note(self, label: str, instance_id: int | None = None, *, wanted: bool = True) -> None:
        self.journal[label] = Journalled(label, instance_id, wanted)

    def told(self, error: CloudError) -> None:
        self.texts.append("".join(traceback.format_exception(error)))

    def mine(self) -> list[Machine]:
        return [m for m in self.server.machines.values() if m.id not in self.foreign]

    def plan(self, **moods: list[str]) -> None:
        for endpoint, planned in moods.items():
            for mood in planned:
                # three looks see through two consistent lies, not through three
                if mood != "blank" or self.server.planned("list", "blank") < 2:
                    self.server.plan(endpoint, mood)

    def ask(self, bid: float | None) -> tuple[str, CreateOutcome]:
        self.attempts += 1
        busy = {runs_of(entry.label) for entry in self.wanted()}
        run = next(name for name in ("a", "b-1", "c", "d") if name not in busy)
        label = str(new_label(PROJECT, SWEEP, run, self.attempts))
        self.note(label)
        outcome = self.world.create(label, bid_usd_per_hour=bid)
        self.texts.append(repr(outcome))
        return label, outcome

    def end(self, label: str, instance_id: int) -> None:
        try:
            self.client.destroy_and_verify(instance_id, deadline_s=120)
        except CloudError as error:
            self.told(error)
            return
        self.note(label, instance_id, wanted=False)
        assert instance_id not in self.server.machines, "verified, yet alive"

    @precondition(can_launch)
    @rule(bid=st.sampled_from([None, None, 0.5, 0.35]), create=faults("create"), listing=faults("list"))
    def launch(self, bid: float | None, create: list[str], listing: list[str]) -> None:
        self.plan(create=create[:1], list=listing)
        began = self.clock.now
        label, outcome = self.ask(bid)
        if isinstance(outcome, Refused):
            self.note(label, wanted=False)
            assert not self.server.live(label), "refused, yet made"
            return
        try:
            found = self.client.find_label(label)
        except CloudError as error:
            self.told(error)  # the intent stays: the next start settles it
            return
        if not found:
            self.note(label, wanted=False)
            assert all(m.began > began for m in self.server.live(label)), "not found, yet there"
        elif found[0].outbid:
            self.end(label, found[0].id)
        else:
            self.note(label, found[0].id)

    @precondition(can_launch)
    @rule(create=faults("create"))
    def launch_and_die(self, create: list[str]) -> None:
        self.plan(create=create[:1])
        self.ask(None)
        self.crashed = True

    @rule(listing=faults("list"), destroy=faults("destroy"))
    def start(self, listing: list[str], destroy: list[str]) -> None:
        """A driver starts: nothing of ours is left that the journal does not want."""
        self.plan(list=listing, destroy=destroy)
        began = self.clock.now
        try:
            verdict = reap(self.client, self.journal.values(), project=PROJECT, sweep=SWEEP)
        except CloudError as error:
            self.told(error)
            return
        self.crashed = False
        for instance in verdict.adopt:
            assert instance.label is not None
            self.note(instance.label, instance.id)
        for entry in self.wanted():
            if entry.instance_id is None:
                self.note(entry.label, wanted=False)
        wanted = {entry.instance_id for entry in self.wanted()}
        orphans = {machine.id for machine in self.mine() if machine.began <= began} - wanted
        assert not orphans, "an orphan outlived the reaper"

    @precondition(has_running)
    @rule(data=st.data(), listing=faults("list"), destroy=faults("destroy"))
    def finish(self, data: st.DataObject, listing: list[str], destroy: list[str]) -> None:
        self.plan(list=listing, destroy=destroy)
        entry = data.draw(st.sampled_from([e for e in self.wanted() if e.instance_id]))
        assert entry.instance_id is not None
        self.end(entry.label, entry.instance_id)

    @precondition(has_running)
    @rule(data=st.data(), one=faults("one"))
    def look_at(self, data: st.DataObject, one: list[str]) -> None:
        self.plan(one=one)
        entry = data.draw(st.sampled_from([e for e in self.wanted() if e.instance_id]))
        assert entry.instance_id is not None
        try:
            instance = self.client.get(entry.instance_id)
        except CloudError as error:
            self.told(error)
            return
        assert (instance is None) == (entry.instance_id not in self.server.machines)
        assert instance is None or instance.label == entry.label

    @rule(seconds=st.sampled_from([1, 30, 3600]))
    def time_passes(self, seconds: int) -> None:
        self.clock.sleep(seconds)
        self.server.settle()

    @rule(
        what=st.sampled_from(["outbid", "dies", "stuck", "frozen", "dearer", "cheaper"]),
        which=st.integers(0, 5),
    )
    def weather(self, what: str, which: int) -> None:
        self.server.offers = [offer(1, min_bid=0.4 if what == "dearer" else 0.3)]
        machines = list(self.server.machines.values())
        if machines:
            machine = machines[which % len(machines)]
            if what == "outbid":
                self.server.outbid(machine)
            elif what == "dies":
                self.server.host_dies(machine)
            elif what == "stuck":
                machine.stuck = True
            elif what == "frozen":
                machine.frozen = True

    @rule(label=st.sampled_from(FOREIGN), many=st.sampled_from([1, 1, 1, 24]))
    def others_rent(self, label: str | None, many: int) -> None:
        if len(self.foreign) < 30:
            for _ in range(many):
                self.foreign[self.server.rent(label).id] = label

    @invariant()
    def no_create_is_sent_or_made_twice(self) -> None:
        assert all(count == 1 for count in self.server.creates.values())
        labels = [machine.label for machine in self.mine()]
        assert len(labels) == len(set(labels))
        runs = [runs_of(entry.label) for entry in self.wanted()]
        assert len(runs) == len(set(runs))

    @invariant()
    def others_are_never_touched(self) -> None:
        now = {i: m.label for i, m in self.server.machines.items() if i in self.foreign}
        assert now == self.foreign

    @invariant()
    def the_key_stays_secret(self) -> None:
        assert not any(KEY in text for text in self.texts)
        assert not self.watch.caught
        assert not self.server.leaks

    def teardown(self) -> None:
        logging.getLogger().removeHandler(self.watch)
        self.server.calm()
        self.clock.sleep(120)
        self.server.settle()
        ended = [Journalled(e.label, e.instance_id, wanted=False) for e in self.journal.values()]
        reap(self.client, ended, project=PROJECT, sweep=SWEEP)
        self.client.close()
        assert not self.mine(), "an instance outlived the sweep"
        self.others_are_never_touched()
        spent = sum(m.gpu_usd + m.disk_usd for m in self.server.buried)
        self.clock.sleep(3600)
        self.server.settle()
        assert sum(m.gpu_usd + m.disk_usd for m in self.server.buried) == spent, "billing goes on"


def runs_of(label: str) -> str:
    parsed = parse_label(label)
    assert parsed is not None
    return parsed.run


def test_a_sweep_survives_whatever_the_service_does(
    service: LoopbackVast, caplog: pytest.LogCaptureFixture
) -> None:
    Sweep.service = service
    caplog.set_level(logging.INFO, logger="httpx")
    bounds = settings(
        max_examples=40,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    run_state_machine_as_test(Sweep, settings=bounds)  # type: ignore[no-untyped-call]
