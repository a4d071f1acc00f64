"""Limits: what docker asks for is what the kernel of the container enforces."""

from __future__ import annotations

from pathlib import Path

import pytest

from .client import Docker
from .conftest import SHARED_KERNEL_RUNTIMES
from .image import IMAGE

MIB = 1 << 20
EAT = "tail /dev/zero"
"""Grows without end: there is no line in it."""


def _either(v2: str, v1: str) -> str:
    """Shell: print a cgroup file by its name in cgroup *v2* or *v1*, whichever there is."""
    return f"cat /sys/fs/cgroup/{v2} 2>/dev/null || cat /sys/fs/cgroup/{v1}"


def test_memory_limit_is_set(docker: Docker) -> None:
    """``--memory`` is the limit that the container's cgroup states."""
    script = _either("memory.max", "memory/memory.limit_in_bytes")
    assert docker.run("--memory", "64m", IMAGE, "sh", "-c", script).output == str(64 * MIB)


@pytest.mark.parametrize(
    ("options", "quota"),
    [
        pytest.param(("--cpus", "0.5"), 0.5, id="cpus"),
        pytest.param(("--cpu-period", "50000", "--cpu-quota", "10000"), 0.2, id="quota"),
    ],
)
def test_cpu_limit_is_set(docker: Docker, options: tuple[str, ...], quota: float) -> None:
    """``--cpus`` is the share of a processor that the container's cgroup states."""
    script = _either("cpu.max", "cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_period_us")
    allowed, period = docker.run(*options, IMAGE, "sh", "-c", script).output.split()
    assert int(allowed) / int(period) == pytest.approx(quota)


def test_memory_hog_is_killed(docker: Docker) -> None:
    """Who eats more than ``--memory`` is killed, and docker says that memory was the reason."""
    docker(*docker.run_args("--memory", "48m", IMAGE, "sh", "-c", f"exec {EAT}"), code=137)
    state = docker.state(docker.last)
    assert (state["OOMKilled"], state["ExitCode"]) == (True, 137)


def test_memory_hog_among_others(docker: Docker) -> None:
    """Of several processes the hog is killed; the others, and the container, live on."""
    script = f"{EAT}; echo survived-$?"
    result = docker.run("--memory", "48m", IMAGE, "sh", "-c", script)
    assert result.output == "survived-137"


def test_oom_score_adj(docker: Docker) -> None:
    """``--oom-score-adj`` holds in the container, and for what stands for it on the host."""
    name = docker.start("--oom-score-adj", "321", IMAGE, "sleep", "1000")
    assert docker.sh(name, "cat /proc/1/oom_score_adj") == "321"
    pid = docker.state(name)["Pid"]
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for process in (pid, *children):
        assert Path(f"/proc/{process}/oom_score_adj").read_text().strip() == "321"


def test_process_limit(docker: Docker) -> None:
    """``--pids-limit`` bounds the number of processes."""
    script = "for i in $(seq 40); do sleep 100 & done; echo all"
    result = docker.run("--pids-limit", "20", IMAGE, "sh", "-c", script, code=None)
    assert "all" not in result.output.split()
    assert "can't fork" in result.stderr


def test_ulimit_is_enforced(docker: Docker) -> None:
    """A limit on the size of files stops who writes more."""
    script = "head -c 3000000 /dev/zero > /big; echo code-$?; stat -c %s /big"
    result = docker.run("--ulimit", "fsize=1000000", IMAGE, "sh", "-c", script)
    code, size = result.output.split()
    assert code != "code-0"
    assert int(size) <= 1_000_000


def test_tmpfs_is_bounded(docker: Docker) -> None:
    """A tmpfs takes as much as its size allows."""
    script = "dd if=/dev/zero of=/t/big bs=4k; stat -c %s /t/big"
    result = docker.run("--tmpfs", "/t:size=1m", IMAGE, "sh", "-c", script)
    assert result.output == str(MIB)
    assert "dd: error writing '/t/big': No space left on device" in result.stderr


def test_stats(docker: Docker) -> None:
    """``stats`` shows memory in use, and processes."""
    name = docker.start(IMAGE, "sleep", "1000")
    form = "{{.MemUsage}}|{{.PIDs}}|{{.Name}}"
    used, processes, named = docker("stats", "--no-stream", "--format", form, name).output.split(
        "|"
    )
    assert not used.startswith("0B")
    assert int(processes) > 0
    assert named == name


def test_stats_shows_limit(docker: Docker, runtime: str) -> None:
    """``stats`` shows the host's limit, and processor time that the container has used.

    That of a VM is for the whole VM: the next size above 96 MiB and the guest kernel's own needs
    is 256 MiB, QEMU may use 256 MiB beside that (docs/docker.md).
    """
    name = docker.start("--memory", "96m", IMAGE, "sh", "-c", "while :; do :; done")
    form = "{{.MemUsage}}|{{.CPUPerc}}"
    memory, cpu = docker("stats", "--no-stream", "--format", form, name).output.split("|")
    limit = "96MiB" if runtime in SHARED_KERNEL_RUNTIMES else "512MiB"
    assert memory.endswith(f"/ {limit}")
    assert float(cpu.rstrip("%")) > 10


def test_update(docker: Docker) -> None:
    """``update`` changes the limits of a running container at once."""
    name = docker.start("--memory", "96m", "--cpus", "1.5", IMAGE, "sleep", "1000")
    docker("update", "--memory", "64m", "--memory-swap", "64m", "--cpus", "0.5", name)
    docker("update", "--cpu-shares", "512", name)
    memory = docker.sh(name, _either("memory.max", "memory/memory.limit_in_bytes"))
    quota = _either("cpu.max", "cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_period_us")
    shares = docker.sh(name, _either("cpu.weight", "cpu/cpu.shares"))
    assert memory == str(64 * MIB)
    assert docker.sh(name, quota).split() == ["50000", "100000"]
    assert shares in ("20", "512")


def test_update_of_processes(docker: Docker) -> None:
    """``update --pids-limit`` bounds the processes of a running container."""
    name = docker.start(IMAGE, "sleep", "1000")
    docker("update", "--pids-limit", "25", name)
    assert docker.sh(name, _either("pids.max", "pids/pids.max")) == "25"


@pytest.mark.vm_only
def test_update_beyond_the_vm(docker: Docker) -> None:
    """What the VM has no room for is refused; docker says so, and the container runs on."""
    name = docker.start("--memory", "96m", IMAGE, "sleep", "1000")
    result = docker("update", "--memory", "1g", "--memory-swap", "1g", name, code=1)
    assert "do not fit into the VM, which has" in result.stderr
    assert "160 MiB" in result.stderr
    assert docker.sh(name, "cat /sys/fs/cgroup/memory.max") == str(96 * MIB)


def test_update_of_restart_policy(docker: Docker) -> None:
    """``update --restart`` works: docker tells the runtime that no limit changes."""
    name = docker.start("--memory", "96m", IMAGE, "sleep", "1000")
    docker("update", "--restart", "on-failure:3", name)
    policy = docker.inspect(name)["HostConfig"]["RestartPolicy"]
    assert policy == {"Name": "on-failure", "MaximumRetryCount": 3}


def test_what_no_option_names_is_the_engines(docker: Docker) -> None:
    """Without ``--ulimit`` a container has the hard limits of dockerd, which starts the runtime."""
    ours = docker.run(IMAGE, "cat", "/proc/self/limits").output.splitlines()
    theirs = Path(f"/proc/{docker.engine.pid}/limits").read_text().splitlines()
    assert [line[46:67] for line in ours] == [line[46:67] for line in theirs]
