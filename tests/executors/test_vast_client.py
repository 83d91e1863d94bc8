"""The Vast.ai client's search and its one request to rent, against a loopback service that misbehaves; its key."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from tests.executors.loopback_vast import SPOILT, offer
from tests.executors.vast_faults import KEY
from tests.executors.vast_world import LABEL, OFFER, World, raised
from universal_simulator.credentials import read_vast_key
from universal_simulator.errors import UserError
from universal_simulator.executors.reaper import Journalled, reap
from universal_simulator.executors.vast_client import VastClient
from universal_simulator.executors.vast_replies import (
    CloudError,
    Created,
    Criteria,
    Refused,
    Unknown,
    UnknownOutcome,
)

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
