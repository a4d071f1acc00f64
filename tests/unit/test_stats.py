"""Stats events from the contents of cgroup files."""

from __future__ import annotations

import pytest

from cloche.base.errors import ConfigError
from cloche.cli.events import parse_duration
from cloche.model.stats import FILES, UNLIMITED, container_stats

TEXTS = {
    "cpu.stat": "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n"
    "nr_periods 4\nnr_throttled 2\nthrottled_usec 7\n",
    "cpuset.cpus.effective": "0-1,3\n",
    "cpuset.mems.effective": "0\n",
    "memory.current": "1000\n",
    "memory.max": "5000\n",
    "memory.peak": "2000\n",
    "memory.stat": "anon 600\nfile 300\nkernel 90\nsock 8\n",
    "memory.events": "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\n",
    "memory.swap.current": "50\n",
    "memory.swap.max": "max\n",
    "pids.current": "3\n",
    "pids.max": "max\n",
    "io.stat": "254:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=9 dios=9\n",
    "hugetlb.2MB.current": "0\n",
    "hugetlb.2MB.events": "max 5\n",
}


def test_the_shape_is_runcs() -> None:
    assert {*TEXTS} <= {*FILES}
    assert container_stats(TEXTS) == {
        "cpu": {
            "usage": {"total": 1_500_000, "kernel": 500_000, "user": 1_000_000},
            "throttling": {"periods": 4, "throttledPeriods": 2, "throttledTime": 7000},
        },
        "cpuset": {"cpus": [0, 1, 3], "mems": [0]},
        "memory": {
            "cache": 300,
            "usage": {"limit": 5000, "usage": 1000, "max": 2000, "failcnt": 3},
            "swap": {"limit": UNLIMITED, "usage": 1050, "failcnt": 0},
            "kernel": {"limit": UNLIMITED, "usage": 90, "failcnt": 0},
            "kernelTCP": {"limit": UNLIMITED, "usage": 8, "failcnt": 0},
            "raw": {"anon": 600, "file": 300, "kernel": 90, "sock": 8},
            "event_count": {"low": 0, "high": 0, "max": 3, "oom": 1, "oom_kill": 1},
        },
        "pids": {"current": 3, "limit": 0},
        "blkio": {
            "ioServiceBytesRecursive": [
                {"major": 254, "minor": 0, "op": "Read", "value": 4096},
                {"major": 254, "minor": 0, "op": "Write", "value": 0},
            ],
            "ioServicedRecursive": [
                {"major": 254, "minor": 0, "op": "Read", "value": 1},
                {"major": 254, "minor": 0, "op": "Write", "value": 0},
            ],
        },
        "hugetlb": {"2MB": {"usage": 0, "failcnt": 5}},
        "intel_rdt": {},
        "network_interfaces": None,
    }


def test_files_that_are_not_there_count_nothing() -> None:
    found = container_stats(dict.fromkeys(FILES))
    assert found["memory"]["usage"] == {"limit": 0, "usage": 0, "max": 0, "failcnt": 0}
    assert (found["hugetlb"], found["blkio"]) == ({}, {})


def test_a_guest_cannot_make_the_host_list_processors() -> None:
    found = container_stats({"cpuset.cpus.effective": "0-99999999999999,1-9999999999"})
    assert len(found["cpuset"]["cpus"]) < 10_000


@pytest.mark.parametrize("text", ["-1", "inf", "nan", "1e9", "²", "9" * 5000, str(1 << 64)])
@pytest.mark.parametrize("file", ["memory.current", "pids.max", "io.stat", "cpu.stat"])
def test_numbers_of_a_guest_that_cannot_be(file: str, text: str) -> None:
    """No counter is out of bounds: it is an error, or left out where other lines are too."""
    value = {"io.stat": f"254:0 rbytes={text}", "cpu.stat": f"usage_usec {text}"}.get(file, text)
    try:
        found = container_stats({file: value})
    except ValueError:
        return
    assert found == container_stats({file: ""})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5s", 5), ("500ms", 0.5), ("1m30s", 90), ("1.5h", 5400), ("0s", 0), ("2us", 2e-6)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "5x", "1.2.3s", "-1s", "5s "])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ConfigError, match="not a duration"):
        parse_duration(text)
