"""Scheduler, I/O priority, affinity, memory policy, personality, as the guest's kernel tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .bundles import Bundle
from .runtime import Container, Runtime

# Fields of /proc/self/stat (proc(5)) behind the command's parenthesis.
OWN_STAT = "read -r line </proc/self/stat; set -- ${line#*) }; echo ${17} ${38} ${39}"
STAT = "sed 's/.*) //' /proc/self/stat | cut -d' ' -f17,38,39"


@pytest.mark.parametrize(
    ("scheduler", "stat"),
    [
        # nice, rt_priority, policy
        ({"policy": "SCHED_OTHER", "nice": -5}, "-5 0 0"),
        ({"policy": "SCHED_BATCH", "nice": 7}, "7 0 3"),
        ({"policy": "SCHED_IDLE"}, "0 0 5"),
        ({"policy": "SCHED_RR", "priority": 12}, "0 12 2"),
        ({"policy": "SCHED_FIFO", "priority": 3, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}, "0 3 1"),
    ],
)
def test_scheduler(cloche: Runtime, bundle: Bundle, scheduler: object, stat: str) -> None:
    bundle.process["scheduler"] = scheduler
    # Of the process itself: with RESET_ON_FORK its children are scheduled normally.
    bundle.sh(OWN_STAT)
    assert cloche.run(bundle).output == stat


def test_a_deadline(cloche: Runtime, bundle: Bundle) -> None:
    milliseconds = 1_000_000
    bundle.process["scheduler"] = {
        "policy": "SCHED_DEADLINE",
        "flags": ["SCHED_FLAG_RESET_ON_FORK"],
        "runtime": 10 * milliseconds,
        "deadline": 50 * milliseconds,
        "period": 100 * milliseconds,
    }
    assert cloche.run(bundle.sh(OWN_STAT)).output.split()[2] == "6"


def test_an_impossible_scheduler_is_an_error(cloche: Runtime, bundle: Bundle) -> None:
    bundle.process["scheduler"] = {"policy": "SCHED_DEADLINE", "runtime": 2, "deadline": 1}
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert "set scheduler: invalid argument" in message


def test_io_priority(cloche: Runtime, bundle: Bundle) -> None:
    bundle.process["ioPriority"] = {"class": "IOPRIO_CLASS_BE", "priority": 6}
    assert cloche.run(bundle.sh("busybox ionice -p 1")).output == "best-effort: prio 6"


def test_linux32(cloche: Runtime, bundle: Bundle) -> None:
    bundle.linux["personality"] = {"domain": "LINUX32"}
    container = cloche.start(bundle.args("sleep", "1000"))
    assert container.sh("uname -m").output == "i686"
    del bundle.linux["personality"]
    assert cloche.run(bundle.args("uname", "-m")).output == "x86_64"


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ({"mode": "MPOL_BIND", "nodes": "0"}, "bind:0"),
        ({"mode": "MPOL_INTERLEAVE", "nodes": "0-3"}, "interleave:0"),
        ({"mode": "MPOL_PREFERRED"}, "local"),
        ({"mode": "MPOL_DEFAULT"}, "default"),
        ({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}, "bind=static:0"),
        (
            {"mode": "MPOL_PREFERRED_MANY", "nodes": "7", "flags": ["MPOL_F_RELATIVE_NODES"]},
            "prefer (many)=relative:0",
        ),
    ],
)
def test_memory_policy(cloche: Runtime, bundle: Bundle, policy: object, told: str) -> None:
    bundle.linux["memoryPolicy"] = policy
    script = "sed -n '1s/^[0-9a-f]* \\(.*\\) file=.*/\\1/p' /proc/self/numa_maps"
    container = cloche.start(bundle.args("sleep", "1000"))
    assert container.sh(script).output == told
    assert container.sh(script.replace("self", "1")).output == told


def _exec(container: Container, folder: Path, script: str, **process: object) -> list[str]:
    """The lines that a *script* prints in an exec with these fields of its process."""
    plan = {"args": ["sh", "-c", script], "cwd": "/", "env": ["PATH=/bin:/usr/bin"], **process}
    file = folder / "process.json"
    file.write_text(json.dumps(plan))
    return container.runtime("exec", "--process", file, container.id).lines


def test_an_exec_has_its_own_and_else_the_containers(
    cloche: Runtime, bundle: Bundle, tmp_path: Path
) -> None:
    bundle.linux["resources"] = {"cpu": {"quota": 200_000, "period": 100_000}}
    bundle.process["scheduler"] = {"policy": "SCHED_BATCH", "nice": 3}
    bundle.process["ioPriority"] = {"class": "IOPRIO_CLASS_IDLE"}
    bundle.process["execCPUAffinity"] = {"final": "1"}
    container = cloche.start(bundle.args("sleep", "1000"))
    allowed = "grep Cpus_allowed_list /proc/{}/status | cut -f2"
    script = f"{STAT}; busybox ionice -p $$; {allowed.format('self')}; {allowed.format('1')}"
    assert _exec(container, tmp_path, script) == ["3 0 3", "idle", "1", "0-1"]
    lines = _exec(
        container,
        tmp_path,
        script,
        scheduler={"policy": "SCHED_OTHER", "nice": -1},
        ioPriority={"class": "IOPRIO_CLASS_RT", "priority": 2},
        execCPUAffinity={"initial": "1", "final": "0"},
    )
    assert lines == ["-1 0 0", "realtime: prio 2", "0", "0-1"]


def test_an_affinity_to_processors_that_are_not_there(running: Container, tmp_path: Path) -> None:
    file = tmp_path / "process.json"
    plan = {"args": ["true"], "cwd": "/", "execCPUAffinity": {"final": "50"}}
    file.write_text(json.dumps(plan))
    message = running.runtime.fails("exec", "--process", file, running.id, code=255)
    assert "set CPU affinity: invalid argument" in message
