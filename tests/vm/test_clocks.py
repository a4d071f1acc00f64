"""Time namespaces: clocks that are off by what the config says."""

from __future__ import annotations

import pytest

from .bundles import Bundle
from .runtime import Runtime
from .starts import each_start

DAY = 86_400


def with_clocks(bundle: Bundle, **offsets: dict[str, int]) -> Bundle:
    """Give *bundle* a time namespace."""
    bundle.linux["namespaces"].append({"type": "time"})
    bundle.linux["timeOffsets"] = offsets
    return bundle


@each_start
def test_clocks_are_off_by_as_much(cloche: Runtime, bundle: Bundle) -> None:
    with_clocks(bundle, boottime={"secs": 9 * DAY, "nanosecs": 5}, monotonic={"secs": 3 * DAY})
    container = cloche.start(bundle.args("sleep", "1000"))
    # In the namespace of the init, and with it.
    script = "cut -d. -f1 /proc/uptime; cat /proc/self/timens_offsets"
    uptime, *offsets = container.sh(script).lines
    assert 9 * DAY <= int(uptime) < 9 * DAY + 3600
    assert [line.split() for line in offsets] == [
        ["monotonic", str(3 * DAY), "0"],
        ["boottime", str(9 * DAY), "5"],
    ]
    links = "; ".join(f"readlink /proc/{pid}/ns/time" for pid in ("self", 1))
    assert len({*container.sh(links).lines}) == 1


def test_the_first_process_has_them(cloche: Runtime, bundle: Bundle) -> None:
    with_clocks(bundle, boottime={"secs": 2 * DAY}).sh("cut -d. -f1 /proc/uptime")
    assert 2 * DAY <= int(cloche.run(bundle).output) < 2 * DAY + 3600


def test_a_namespace_without_offsets(cloche: Runtime, bundle: Bundle) -> None:
    with_clocks(bundle).sh("cat /proc/self/timens_offsets; cut -d. -f1 /proc/uptime")
    lines = cloche.run(bundle).lines
    assert [line.split()[1:] for line in lines[:2]] == [["0", "0"], ["0", "0"]]
    assert int(lines[2]) < 3600


def test_along_with_users(cloche: Runtime, bundle: Bundle) -> None:
    with_clocks(bundle, boottime={"secs": DAY})
    bundle.linux["namespaces"].append({"type": "user"})
    mapping = [{"containerID": 0, "hostID": 0, "size": 1000}]
    bundle.linux["uidMappings"] = bundle.linux["gidMappings"] = mapping
    container = cloche.start(bundle.args("sleep", "1000"))
    assert int(container.sh("cut -d. -f1 /proc/uptime").output) >= DAY


@pytest.mark.parametrize("seconds", [-(10 * DAY), 1 << 62])
def test_offsets_that_the_kernel_refuses(cloche: Runtime, bundle: Bundle, seconds: int) -> None:
    with_clocks(bundle, monotonic={"secs": seconds})
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert f"set time offsets monotonic {seconds} 0: " in message
    assert cloche.leftovers() == []
