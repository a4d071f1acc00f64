"""Cold boot, template and restore, on both machine types and with two vCPUs."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import time
from pathlib import Path

import pytest

from .cloche import Cloche
from .conftest import Bundle, qemu_processes

CLOCKSOURCE = "/sys/devices/system/clocksource/clocksource0/current_clocksource"


def test_cold_boot(cloche: Cloche, bundle: Bundle) -> None:
    bundle.write("cat", "/proc/cmdline", CLOCKSOURCE)
    done = cloche.run("run", "-b", bundle.folder, "c", environment={"CLOCHE_TEMPLATE": "off"})
    cmdline, clocksource = done.stdout.splitlines()
    assert clocksource == "kvm-clock"
    assert "tsc_early_khz" not in cmdline
    assert "cold boot" in done.stderr


@pytest.mark.parametrize("machine", ["microvm", "q35"])
def test_first_start_saves_a_template_and_the_next_restores_it(
    cloche: Cloche, bundle: Bundle, machine: str
) -> None:
    bundle.write("cat", CLOCKSOURCE)
    settings = {"CLOCHE_MACHINE": machine}
    first = cloche.run("run", "-b", bundle.folder, "first", environment=settings)
    second = cloche.run("run", "-b", bundle.folder, "second", environment=settings)
    assert first.stdout == second.stdout == "kvm-clock\n"
    assert "booted and saved one" in first.stderr
    assert second.stderr == ""


def test_restored_vm_is_a_clone_under_kvm(cloche: Cloche, idle: str) -> None:
    (argv,) = qemu_processes()
    assert re.search(r"-M microvm,accel=kvm,.* -cpu host ", argv)
    assert "-incoming defer" in argv
    assert "share=off" in argv
    assert cloche.run("exec", idle, "cat", CLOCKSOURCE).stdout == "kvm-clock\n"


def test_two_clones_run_at_once(cloche: Cloche, idle: str, bundle: Bundle) -> None:
    bundle.write("cat", "/proc/sys/kernel/random/uuid")
    uuids = {cloche.run("run", "-b", bundle.folder, f"c{number}").stdout for number in range(2)}
    uuids.add(cloche.run("exec", idle, "cat", "/proc/sys/kernel/random/uuid").stdout)
    assert len(uuids) == 3


def test_clock_is_right_after_a_restore(cloche: Cloche, bundle: Bundle) -> None:
    # kvmclock's values come out of the template; the agent sets the time of day.
    look = "date +%s; cut -d' ' -f1 /proc/uptime"
    bundle.write("sh", "-c", f"{look}; sleep 2; {look}")
    before = time.time()
    done = cloche.run("run", "-b", bundle.folder, "c")
    after = time.time()
    date, uptime, later_date, later_uptime = map(float, done.stdout.split())
    assert before - 1 <= date <= later_date <= after + 1
    assert 2 <= later_uptime - uptime < after - before


def test_two_cpus(cloche: Cloche, bundle: Bundle) -> None:
    bundle.config["linux"]["resources"]["cpu"] = {"quota": 200_000, "period": 100_000}
    bundle.write("sh", "-c", "nproc; taskset 2 cat /proc/self/stat")
    for container in ("saves-template", "restores-it"):
        done = cloche.run("run", "-b", bundle.folder, container)
        nproc, stat = done.stdout.splitlines()
        assert nproc == "2"
        assert stat.split()[38] == "1", "the second processor runs nothing"


def test_default_shape_on_a_machine_with_less_memory(cloche: Cloche, bundle: Bundle) -> None:
    del bundle.config["linux"]["resources"]["memory"]
    bundle.write("head", "-n1", "/proc/meminfo")
    words = cloche.run("run", "-b", bundle.folder, "c").stdout.split()
    assert 1900 < int(words[1]) / 1024 < 2048


def test_killed_qemu_ends_the_container(cloche: Cloche, idle: str) -> None:
    vm_pid = json.loads(Path("/run/cloche", idle, "state.json").read_text())["vm_pid"]
    supervisor = os.pidfd_open(cloche.state(idle)["pid"])
    os.kill(vm_pid, signal.SIGKILL)
    ended, _, _ = select.select([supervisor], [], [], 30)
    os.close(supervisor)
    assert ended
    assert cloche.state(idle)["status"] == "stopped"
