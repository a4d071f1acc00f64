"""`update`: limits of a running container, read back from inside the guest's cgroup."""

from __future__ import annotations

import json

import pytest

from .bundles import Bundle
from .runtime import Container, Runtime

MIB = 1 << 20
CGROUP = "/sys/fs/cgroup"


@pytest.fixture
def limited(cloche: Runtime, bundle: Bundle) -> Container:
    """A running container of 64 MiB, so in a VM of 256 MiB, with two virtual processors."""
    bundle.linux["resources"] = {
        "memory": {"limit": 64 * MIB},
        "cpu": {"quota": 150_000, "period": 100_000},
    }
    return cloche.start(bundle)


def values(container: Container, *files: str) -> list[str]:
    """What the files of its cgroup say inside."""
    return container.sh("; ".join(f"cat {CGROUP}/{name}" for name in files)).lines


@pytest.mark.parametrize(
    ("flags", "file", "value"),
    [
        (["--memory", "96m"], "memory.max", str(96 * MIB)),
        (["--memory", "-1"], "memory.max", "max"),
        (["--memory-reservation", "1m"], "memory.low", str(MIB)),
        (["--memory-swap", "100m"], "memory.swap.max", str(36 * MIB)),
        (["--cpu-quota", "20000"], "cpu.max", "20000 100000"),
        (["--cpu-period", "200000"], "cpu.max", "150000 200000"),
        (["--cpu-quota", "-1"], "cpu.max", "max 100000"),
        (["--cpu-burst", "5000"], "cpu.max.burst", "5000"),
        (["--cpu-share", "512"], "cpu.weight", "20"),
        (["--cpu-idle", "1"], "cpu.idle", "1"),
        (["--pids-limit", "40"], "pids.max", "40"),
        (["--cpuset-cpus", "0"], "cpuset.cpus", "0"),
    ],
    ids=lambda value: "-".join(value).strip("-") if isinstance(value, list) else None,
)
def test_flags(limited: Container, flags: list[str], file: str, value: str) -> None:
    limited.runtime("update", *flags, limited.id)
    assert values(limited, file) == [value]


def test_resources_from_stdin_and_file(limited: Container) -> None:
    cloche = limited.runtime
    resources = {"memory": {"limit": 80 * MIB}, "cpu": {"shares": 0}}
    cloche("update", "--resources", "-", limited.id, data=json.dumps(resources).encode())
    assert values(limited, "memory.max", "cpu.max") == [str(80 * MIB), "150000 100000"]
    file = cloche.directory / "resources.json"
    file.write_text(json.dumps({"pids": {"limit": 30}, "unified": {"memory.high": "50000000"}}))
    cloche("update", "-r", file, limited.id)
    assert values(limited, "pids.max", "memory.high") == ["30", "49999872"]


def test_what_is_refused_half_way_is_taken_back(limited: Container) -> None:
    resources = {"cpu": {"quota": 50_000}, "unified": {"memory.nosuch": "1"}}
    data = json.dumps(resources).encode()
    said = limited.runtime("update", "--resources", "-", limited.id, data=data, code=None)
    assert said.code == 1
    assert "memory.nosuch" in said.stderr + " ".join(limited.runtime.messages("error"))
    assert values(limited, "cpu.max") == ["150000 100000"]


def test_a_lower_quota_than_the_burst_that_was(limited: Container) -> None:
    limited.runtime("update", "--cpu-burst", "100000", limited.id)
    limited.runtime("update", "--cpu-burst", "2000", "--cpu-quota", "5000", limited.id)
    assert values(limited, "cpu.max", "cpu.max.burst") == ["5000 100000", "2000"]


def test_an_update_that_says_nothing_changes_nothing(limited: Container) -> None:
    before = values(limited, "memory.max", "cpu.max", "pids.max")
    zeroes = {"memory": {"limit": 0}, "cpu": {"shares": 0, "cpus": ""}, "pids": None}
    limited.runtime("update", "-r", "-", limited.id, data=json.dumps(zeroes).encode())
    limited.runtime("update", limited.id)
    assert values(limited, "memory.max", "cpu.max", "pids.max") == before


@pytest.mark.parametrize(
    ("flags", "path", "size"),
    [
        (["--memory", "300m"], "$.memory.limit", "160 MiB"),
        (["--cpu-quota", "250000"], "$.cpu.quota", "2 virtual processors"),
        (["--cpuset-cpus", "0-2"], "$.cpu.cpus", "2 virtual processors"),
        (["--memory-swap", "10m"], "$.memory.swap", str(64 * MIB)),
        (["--cpu-period", "5"], "$.cpu.period", "1000"),
    ],
    ids=["memory", "quota", "cpus", "swap", "period"],
)
def test_beyond_the_vm(limited: Container, flags: list[str], path: str, size: str) -> None:
    files = ("memory.max", "memory.swap.max", "cpu.max", "cpuset.cpus")
    before = values(limited, *files)
    message = limited.runtime.fails("update", *flags, limited.id)
    assert path in message
    assert size in message
    assert values(limited, *files) == before


def test_below_what_is_in_use(limited: Container) -> None:
    limited.sh("head -c 8000000 /dev/zero >/dev/shm/used")
    resources = {"memory": {"limit": 4_000_000, "checkBeforeUpdate": True}}
    data = json.dumps(resources).encode()
    message = limited.runtime.fails("update", "-r", "-", limited.id, data=data)
    assert "4000000 bytes are less than" in message
    assert values(limited, "memory.max") == [str(64 * MIB)]


def test_a_limit_that_came_later_kills_too(cloche: Runtime, bundle: Bundle) -> None:
    container = cloche.start(bundle)
    cloche("update", "--memory", "16m", "--memory-swap", "16m", container.id)
    hungry = "head -c 100000000 /dev/zero | tail -c 90000000 >/dev/null; echo $?"
    assert container.sh(hungry).output == "137"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--l3-cache-schema", "L3:0=f"], "--l3-cache-schema: Intel RDT is not enabled"),
        (["--mem-bw-schema", "MB:0=5"], "--mem-bw-schema: Intel RDT is not enabled"),
        (["--memory", "much"], "--memory 'much': not a size"),
        (["--cpu-quota", "x"], "--cpu-quota 'x': a whole number is expected"),
        (["-r", "/nowhere"], "/nowhere: no such file"),
    ],
)
def test_what_cannot_be(idle: Container, words: list[str], said: str) -> None:
    assert said in idle.runtime.fails("update", *words, idle.id)


def test_a_field_of_the_wrong_type_is_named(idle: Container) -> None:
    data = json.dumps({"memory": {"limit": "much"}}).encode()
    assert "$.memory.limit" in idle.runtime.fails("update", "-r", "-", idle.id, data=data)
    assert "not JSON" in idle.runtime.fails("update", "-r", "-", idle.id, data=b"{")


def test_a_stopped_container(stopped: Container) -> None:
    message = stopped.runtime.fails("update", "--memory", "64m", stopped.id)
    assert "container not running" in message


def test_what_no_cgroup_of_the_guest_can_is_warned_about(idle: Container) -> None:
    flags = ("--cpu-rt-runtime", "5", "--cpu-rt-period", "10", "--kernel-memory", "1m")
    idle.runtime("update", *flags, idle.id)
    said = " ".join(idle.runtime.messages("warning"))
    for name in ("$.cpu.realtimeRuntime: ", "$.cpu.realtimePeriod: ", "--kernel-memory: "):
        assert name in said


def test_a_paused_container(limited: Container) -> None:
    cloche = limited.runtime
    cloche("pause", limited.id)
    cloche("update", "--pids-limit", "33", limited.id)
    cloche("resume", limited.id)
    assert values(limited, "pids.max") == ["33"]
