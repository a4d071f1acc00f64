"""`events`: what a container uses, and its kills for want of memory."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloche.model.stats import UNLIMITED

from .bundles import Bundle
from .runtime import TIMEOUT_SECONDS, Container, Runtime

MIB = 1 << 20
HUNGRY = "head -c 100000000 /dev/zero | tail -c 90000000 >/dev/null"


def stats(container: Container) -> dict[str, Any]:
    event = container.runtime("events", "--stats", container.id).json()
    assert (event["type"], event["id"]) == ("stats", container.id)
    data: dict[str, Any] = event["data"]
    return data


def test_stats_are_the_guests(cloche: Runtime, bundle: Bundle) -> None:
    bundle.linux["resources"] = {"memory": {"limit": 64 * MIB}, "pids": {"limit": 40}}
    container = cloche.start(bundle)
    data = stats(container)
    assert data["memory"]["usage"]["limit"] == 64 * MIB
    assert 0 < data["memory"]["usage"]["usage"] <= data["memory"]["usage"]["max"]
    assert data["memory"]["raw"]["file"] == data["memory"]["cache"]
    assert data["pids"] == {"current": 1, "limit": 40}
    assert data["cpuset"]["cpus"] == [0]
    # The shell below is a process more while it looks, and has used processor time afterwards.
    inside = int(container.sh("cat /sys/fs/cgroup/pids.current").output)
    assert inside > data["pids"]["current"]
    assert stats(container)["cpu"]["usage"]["total"] > data["cpu"]["usage"]["total"] > 0


def test_stats_tell_what_the_vm_costs(idle: Container) -> None:
    data = stats(idle)
    vm = data["vm"]
    assert data["memory"]["usage"]["limit"] == UNLIMITED
    assert vm["size"] == {"memory": 2048 * MIB, "cpus": 1}
    assert vm["memory"]["usage"]["limit"] == (2048 + 256) * MIB
    # QEMU and the supervisor, with the guest's kernel in it: more than the container's own.
    assert vm["memory"]["usage"]["usage"] > data["memory"]["usage"]["usage"]
    idle.sh("true")
    assert stats(idle)["vm"]["cpu"]["usage"]["total"] > vm["cpu"]["usage"]["total"] > 0
    assert vm["pids"]["current"] > 1


def test_stats_have_runcs_shape(idle: Container, runc: Runtime, bundle: Bundle) -> None:
    container = runc.start(bundle)
    theirs = runc("events", "--stats", container.id).json()
    ours = idle.runtime("events", "--stats", idle.id).json()
    assert {*theirs} == {*ours}
    assert {*theirs["data"]} <= {*ours["data"]}
    for part in ("cpu", "memory", "pids"):
        missing = {*theirs["data"][part]} - {*ours["data"][part]}
        assert missing == set(), part


def test_a_stream_of_stats_ends_with_the_container(cloche: Runtime, bundle: Bundle) -> None:
    container = cloche.start(bundle)
    stream = cloche.popen("events", "--interval", "100ms", container.id)
    assert stream.stdout
    for _ in range(3):
        assert json.loads(stream.stdout.readline())["data"]["pids"]["current"] == 1
    container.end()
    assert stream.wait(TIMEOUT_SECONDS) == 0
    stream.communicate()


@pytest.mark.parametrize("limit", ["at once", "later"])
def test_kills_for_want_of_memory(cloche: Runtime, bundle: Bundle, limit: str) -> None:
    memory = {"limit": 16 * MIB, "swap": 16 * MIB}
    if limit == "at once":
        bundle.linux["resources"] = {"memory": memory}
    container = cloche.start(bundle)
    if limit == "later":
        data = json.dumps({"memory": memory}).encode()
        cloche("update", "--resources", "-", container.id, data=data)
    stream = cloche.popen("events", "--interval", "200ms", container.id)
    assert stream.stdout
    assert json.loads(stream.stdout.readline())["type"] == "stats"
    container.sh(HUNGRY, code=None)
    found = json.loads(stream.stdout.readline())
    while found["type"] == "stats":
        found = json.loads(stream.stdout.readline())
    assert found == {"type": "oom", "id": container.id}
    container.end()
    assert stream.wait(TIMEOUT_SECONDS) == 0
    stream.communicate()


@pytest.mark.parametrize("interval", ["0s", "soon", "-1s"])
def test_an_interval_that_is_none(idle: Container, interval: str) -> None:
    assert "--interval" in idle.runtime.fails("events", "--interval", interval, idle.id)


def test_a_stopped_container(stopped: Container) -> None:
    message = stopped.runtime.fails("events", "--stats", stopped.id)
    assert f"container with id {stopped.id} is not running" in message
