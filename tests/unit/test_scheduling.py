"""Scheduler, I/O priority, affinity, personality: from config.json to system calls."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from cloche.base.errors import ConfigError
from cloche.model.oci import load_config
from cloche.model.spec import default_spec

from .oci_data import compiled, compiled_exec, write


def config(personality: dict[str, Any] | None = None, **process: object) -> dict[str, Any]:
    """The default spec with fields of its process, and a personality."""
    changed: dict[str, Any] = default_spec()
    changed["process"] |= process
    if personality:
        changed["linux"]["personality"] = personality
    return changed


def test_nothing_asked_for_is_nothing_sent(tmp_path: Path) -> None:
    plain = config({"domain": "LINUX"}, execCPUAffinity={"initial": "0"})
    assert "tuning" not in compiled(plain, tmp_path)[0]["process"]
    assert "tuning" not in compiled_exec(plain, tmp_path)[0]


def test_a_scheduler_is_a_struct_sched_attr(tmp_path: Path) -> None:
    scheduler = {
        "policy": "SCHED_DEADLINE",
        "flags": ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_RECLAIM"],
        "runtime": 1 << 20,
        "deadline": 1 << 21,
        "period": (1 << 64) - 1,
    }
    attr = compiled(config(scheduler=scheduler), tmp_path)[0]["process"]["tuning"]["sched_attr"]
    values = struct.unpack("=IIQiIQQQII", attr)
    assert values == (56, 6, 3, 0, 0, 1 << 20, 1 << 21, (1 << 64) - 1, 0, 0)
    nice = {"policy": "SCHED_BATCH", "nice": -20}
    attr = compiled(config(scheduler=nice), tmp_path)[0]["process"]["tuning"]["sched_attr"]
    assert struct.unpack("=IIQiIQQQII", attr)[1:5] == (3, 0, -20, 0)


@pytest.mark.parametrize(
    ("name", "level", "value"), [("RT", 0, 1 << 13), ("BE", 7, 2 << 13 | 7), ("IDLE", 0, 3 << 13)]
)
def test_an_io_priority_is_class_and_level(
    tmp_path: Path, name: str, level: int, value: int
) -> None:
    asked = config(ioPriority={"class": f"IOPRIO_CLASS_{name}", "priority": level})
    assert compiled(asked, tmp_path)[0]["process"]["tuning"] == {"io_priority": value}


def test_an_affinity_is_for_execs_and_its_end_counts(tmp_path: Path) -> None:
    asked = config(execCPUAffinity={"initial": "5", "final": "0,2-3,64"})
    assert "tuning" not in compiled(asked, tmp_path)[0]["process"]
    mask = compiled_exec(asked, tmp_path)[0]["tuning"]["affinity"]
    assert mask == bytes([0b1101, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])


def test_a_personality_is_the_containers_for_execs_too(tmp_path: Path) -> None:
    asked = config({"domain": "LINUX32", "flags": ["X"]})
    plan, warnings = compiled(asked, tmp_path)
    assert plan["process"]["tuning"] == {"personality": 8}
    assert warnings == ["$.linux.personality.flags: ignored: the specification defines none"]
    assert compiled_exec(asked, tmp_path)[0]["tuning"] == {"personality": 8}


@pytest.mark.parametrize(
    ("process", "message"),
    [
        ({"scheduler": {"policy": "SCHED_X"}}, "scheduler.policy: expected one of ('SCHED_OTHER'"),
        ({"scheduler": {"policy": "SCHED_OTHER", "nice": 20}}, "scheduler.nice: expected -20 to"),
        (
            {"scheduler": {"policy": "SCHED_BATCH", "priority": 1}},
            "scheduler.priority: for SCHED_FIFO and SCHED_RR only, not for SCHED_BATCH",
        ),
        ({"scheduler": {"policy": "SCHED_RR", "priority": 100}}, "scheduler.priority: expected 1"),
        (
            {"scheduler": {"policy": "SCHED_RR", "runtime": 1}},
            "scheduler.runtime: for SCHED_DEADLINE only, not for SCHED_RR",
        ),
        ({"scheduler": {"policy": "SCHED_RR", "flags": ["X"]}}, "scheduler.flags[0]: no such flag"),
        ({"ioPriority": {"class": "X"}}, "ioPriority.class: expected one of ('IOPRIO_CLASS_RT'"),
        (
            {"ioPriority": {"class": "IOPRIO_CLASS_RT", "priority": 8}},
            "ioPriority.priority: expected 0 to 7, got 8",
        ),
        ({"execCPUAffinity": {"initial": "a"}}, "execCPUAffinity.initial: expected a list of"),
        ({"execCPUAffinity": {"final": "3-1"}}, "execCPUAffinity.final: a range counts down"),
        ({"execCPUAffinity": {"final": "8192"}}, "execCPUAffinity.final: no kernel has a proc"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    tmp_path: Path, process: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, config(**process)))
    assert f"$.process.{message}" in str(caught.value)


def test_an_unknown_personality_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\$\.linux\.personality\.domain: expected one of"):
        load_config(write(tmp_path, config({"domain": "BSD"})))
