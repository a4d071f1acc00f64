"""Interfaces that come and go in a real namespace, and what the guest is told of them."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cloche.base.loop import Future, Loop
from cloche.heart.network import GuestNetwork
from cloche.host.link_events import IDLE_S, IN_VAIN, LATEST_S, SETTLED_S, LinkEvents
from cloche.host.taps import open_taps

from .conftest import Namespace

NO_SERVERS = ""


class Recorder:
    """In place of an agent: keeps what it is asked, and agrees."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.broken: Exception | None = None
        self.answer = Future()
        self.answer.set()

    def call(self, op: str, fields: dict[str, Any]) -> Future:
        self.requests.append((op, fields))
        return self.answer


class Scene:
    """A namespace with veths, and a guest's network that follows it."""

    def __init__(self, inside: Namespace, peer: Namespace, loop: Loop) -> None:
        self.inside, self.peer, self.loop = inside, peer, loop
        self.agent = Recorder()
        self.network = GuestNetwork(loop, self.agent)  # type: ignore[arg-type]
        self.complaints: list[str] = []
        self.resolv_conf = NO_SERVERS

    def veth(self, name: str, address: str) -> None:
        self.peer.ip(f"link add p{name} type veth peer name {name} netns {self.inside.path}")
        self.peer.ip(f"link set p{name} up")
        self.inside.ip(f"link set {name} up", f"address add {address} dev {name}")

    def adopt(self, cards: int = 3) -> None:
        warnings: list[str] = []
        request = self.network.adopt(open_taps(cards), self.resolv_conf, warnings)
        assert request is not None
        assert warnings == []
        self.network.follow(lambda: self.resolv_conf, self.complaints.append)

    def run_for(self, seconds: float) -> None:
        """Run the loop that long."""
        over = Future()
        self.loop.call_later(seconds, over.set)
        self.loop.run_until(over)

    def settle(self) -> None:
        """Run the loop until everything that is under way must have been told."""
        self.run_for(4 * SETTLED_S)

    def change(self) -> dict[str, Any]:
        """The only request that was made."""
        self.settle()
        ((op, fields),) = self.agent.requests
        assert op == "network_change"
        self.agent.requests.clear()
        return fields


@pytest.fixture
def scene(namespace: Callable[[], Namespace]) -> Iterator[Scene]:
    inside, peer = namespace(), namespace()
    loop = Loop()
    made = Scene(inside, peer, loop)
    made.veth("eth0", "10.0.0.2/24")
    inside.ip("route add default via 10.0.0.1")
    with inside.entered():
        yield made
    loop.close()


def slots(change: dict[str, Any]) -> list[tuple[int, str]]:
    return [(each["slot"], each["name"]) for each in change["interfaces"]]


def destinations(routes: list[dict[str, Any]]) -> list[str]:
    return [f"{route['destination'] or 'default'} {route['interface']}" for route in routes]


@pytest.fixture
def looks(scene: Scene) -> list[float]:
    """When it was looked for changes, of which there is always one."""
    found: list[float] = []

    def look() -> bool:
        found.append(time.monotonic())
        return True

    LinkEvents(scene.loop, look)
    return found


def test_many_events_are_one_change(scene: Scene, looks: list[float]) -> None:
    scene.settle()
    assert looks == []
    scene.veth("eth1", "10.1.0.2/24")
    scene.settle()
    assert len(looks) == 1


def test_events_without_an_end_are_looked_at_all_the_same(scene: Scene, looks: list[float]) -> None:
    began = time.monotonic()
    while not looks and time.monotonic() < began + 3 * LATEST_S:
        scene.inside.ip("link set eth0 mtu 1400", "link set eth0 mtu 1500")
        scene.run_for(SETTLED_S / 2)
    assert looks
    assert looks[0] - began > LATEST_S / 2


def test_events_that_mean_nothing_are_not_followed_closely(scene: Scene) -> None:
    looks: list[int] = []

    def look() -> bool:
        looks.append(1)
        return False

    LinkEvents(scene.loop, look)
    for _ in range(IN_VAIN + 1):
        scene.inside.ip("link set eth0 mtu 1400", "link set eth0 mtu 1500")
        scene.settle()
    assert len(looks) == IN_VAIN
    scene.run_for(IDLE_S)
    assert len(looks) == IN_VAIN + 1


def test_what_comes_and_goes(scene: Scene) -> None:
    scene.adopt()
    scene.settle()
    assert scene.agent.requests == []
    scene.veth("eth1", "10.1.0.2/24")
    scene.veth("eth2", "10.2.0.2/24")
    change = scene.change()
    assert slots(change) == [(1, "eth1"), (2, "eth2")]
    assert destinations(change["routes"]) == ["10.1.0.0 eth1", "10.2.0.0 eth2"]
    assert (change["gone"], change["old_routes"], change["dns_relay"]) == ([], [], [])
    scene.inside.ip("link delete eth1")
    change = scene.change()
    assert (change["gone"], change["interfaces"]) == ([1], [])
    assert (change["routes"], change["old_routes"]) == ([], [])
    # The slot that is free is taken again.
    scene.veth("eth3", "10.3.0.2/24")
    assert slots(scene.change()) == [(1, "eth3")]
    assert scene.complaints == []


def test_frames_of_an_interface_that_came_later_reach_its_tap(scene: Scene) -> None:
    scene.adopt()
    for name in ("eth1", "eth4"):  # the second takes the tap of the first
        scene.veth(name, "10.1.0.2/24")
        scene.change()
        filters = scene.inside.run("tc", "filter", "show", "dev", name, "ingress")
        assert "Redirect to device cloche1" in filters
        assert f"Redirect to device {name}" in scene.inside.run(
            "tc", "filter", "show", "dev", "cloche1", "ingress"
        )
        scene.inside.ip(f"link delete {name}")
        scene.change()


def test_a_default_route_that_moves(scene: Scene) -> None:
    scene.veth("eth1", "10.1.0.2/24")
    scene.adopt()
    scene.inside.ip("route replace default via 10.1.0.1")
    change = scene.change()
    assert destinations(change["old_routes"]) == ["default eth0"]
    assert destinations(change["routes"]) == ["default eth1"]
    assert (change["gone"], change["interfaces"]) == ([], [])


def test_an_interface_that_changes_goes_and_comes(scene: Scene) -> None:
    scene.adopt()
    scene.inside.ip("address add 10.9.0.2/24 dev eth0")
    change = scene.change()
    assert change["gone"] == [0]
    assert slots(change) == [(0, "eth0")]
    assert len(change["interfaces"][0]["addresses"]) == 2
    # All of its routes went with it.
    assert sorted(destinations(change["routes"])) == [
        "10.0.0.0 eth0",
        "10.9.0.0 eth0",
        "default eth0",
    ]
    assert change["old_routes"] == []


def test_name_servers_that_come_with_a_network(scene: Scene) -> None:
    scene.resolv_conf = "nameserver 127.0.0.53\n"
    scene.adopt()
    # The container has written to it, too: a server of its own, and what is no address at all.
    added = ["127.0.0.1", "127.0.0.11", "127.0.0.11.example.org"]
    scene.resolv_conf += "".join(f"nameserver {each}\n" for each in added)
    scene.veth("eth1", "10.1.0.2/24")
    assert scene.change()["dns_relay"] == ["127.0.0.11"]


def test_no_card_is_left(scene: Scene) -> None:
    scene.adopt(cards=1)
    scene.veth("eth1", "10.1.0.2/24")
    scene.settle()
    assert scene.agent.requests == []
    (complaint,) = scene.complaints
    assert "no device of the VM is left for interface eth1" in complaint
    assert "attach at most 1 networks" in complaint
    # It is said once. What there was goes on, and there is room again when it goes.
    scene.complaints.clear()
    scene.inside.ip("link delete eth0")
    change = scene.change()
    assert (change["gone"], slots(change)) == ([0], [(0, "eth1")])
    assert scene.complaints == []


def test_what_cannot_be_adopted_keeps_nothing_else_from_it(scene: Scene) -> None:
    scene.adopt()
    scene.inside.ip("tuntap add tunnel mode tun", "link set tunnel up")
    scene.veth("eth1", "10.1.0.2/24")
    assert slots(scene.change()) == [(1, "eth1")]
    (complaint,) = scene.complaints
    assert "interface tunnel (tun" in complaint
    scene.inside.ip("link delete eth1")
    assert scene.change()["gone"] == [1]
    assert len(scene.complaints) == 1


def test_an_interface_that_becomes_a_port_is_untied(scene: Scene) -> None:
    scene.adopt()
    scene.inside.ip("link add bridge type bridge", "link set eth0 master bridge")
    assert scene.change()["gone"] == [0]
    assert scene.inside.run("tc", "qdisc", "show", "dev", "eth0", "ingress") == ""


def test_after_a_change_that_was_done_half_all_is_told_anew(scene: Scene) -> None:
    scene.adopt()
    scene.agent.answer = Future()
    scene.agent.answer.fail(ValueError("no such slot"))
    scene.veth("eth1", "10.1.0.2/24")
    scene.change()
    assert scene.complaints == ["network: the guest refuses a change: no such slot"]
    scene.agent.answer = Future()
    scene.agent.answer.set()
    scene.veth("eth2", "10.2.0.2/24")
    change = scene.change()
    assert change["gone"] == [0, 1, 2]
    assert slots(change) == [(0, "eth0"), (1, "eth1"), (2, "eth2")]
    assert len(change["routes"]) == 4
    # From then on it is differences again.
    scene.inside.ip("link delete eth1")
    assert scene.change()["gone"] == [1]


def test_a_guest_that_has_ended_is_not_complained_of(scene: Scene) -> None:
    scene.adopt()
    scene.agent.broken = ValueError("VM: has ended")
    scene.agent.answer = Future()
    scene.agent.answer.fail(scene.agent.broken)
    scene.veth("eth1", "10.1.0.2/24")
    scene.change()
    assert scene.complaints == []


def test_what_nobody_has_foreseen_is_told(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """It must not end the loop, and with it the container."""
    scene.adopt()
    monkeypatch.setattr("cloche.host.network._documents", lambda _: int("odd"))
    scene.veth("eth1", "10.1.0.2/24")
    scene.settle()
    (complaint,) = scene.complaints
    assert "a change is not followed: invalid literal" in complaint


def test_where_there_is_no_listening_the_network_is_as_it_was(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container starts all the same, and is told."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr("cloche.heart.network.LinkEvents", refuse)
    scene.adopt()
    (complaint,) = scene.complaints
    assert "changes are not followed: [Errno 24] too many open files" in complaint
