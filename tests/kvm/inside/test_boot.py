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

from cloche.base.loop import Loop
from cloche.heart.agent import Agent
from cloche.heart.machine import boot_of, choose_shape, find_guest, find_variants
from cloche.model.config import load_settings
from cloche.vmm.boot import launch
from cloche.vmm.template_maker import make_template
from cloche.vmm.vm import Vm

from .cloche import Cloche
from .conftest import MEMORY_LIMIT, Bundle, qemu_processes

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
    assert re.search(r"-M microvm,.* -accel kvm -cpu host ", argv)
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


def test_two_vcpus(setup_output: str, tmp_path: Path) -> None:
    # The command line gives no VM more processors than the machine has, and this one has one.
    settings = load_settings()
    guest = find_guest(settings)
    variants = find_variants(settings)
    shape = choose_shape(variants, guest, MEMORY_LIMIT, None)
    shape.cpus = 2
    root = str(tmp_path / "templates")
    template = make_template(root, shape, variants, lambda: boot_of(guest, shape))
    share = tmp_path / "share"
    share.mkdir()
    loop = Loop()
    vm = Vm(loop, str(tmp_path))
    launch(
        vm,
        shape,
        share=str(share),
        memory_file=template.memory_file,
        state=template.state,
    )
    try:
        loop.run_until(vm.running)
        hello = loop.run_until(Agent(vm, lambda event: None).hello())
        processors = loop.run_until(vm.command("query-cpus-fast"))
    finally:
        vm.kill()
        loop.run_until(vm.exited)
    assert hello["kernel"] == guest.kernel_release
    assert len(processors) == 2


def test_default_shape_on_a_machine_with_less_memory(cloche: Cloche, bundle: Bundle) -> None:
    del bundle.config["linux"]["resources"]["memory"]
    bundle.write("head", "-n1", "/proc/meminfo")
    words = cloche.run("run", "-b", bundle.folder, "c").stdout.split()
    assert 1900 < int(words[1]) / 1024 < 2048


def test_start_on_a_machine_that_never_overcommits(cloche: Cloche, bundle: Bundle) -> None:
    mode = Path("/proc/sys/vm/overcommit_memory")
    bundle.write("true")
    before = mode.read_text()
    Path("/proc/sys/vm/overcommit_ratio").write_text("100")
    mode.write_text("2")
    try:
        for template in ("on", "off"):
            settings = {"CLOCHE_TEMPLATE": template}
            cloche.run("run", "-b", bundle.folder, template, environment=settings)
    finally:
        mode.write_text(before)


def test_killed_qemu_ends_the_container(cloche: Cloche, idle: str) -> None:
    vm_pid = json.loads(Path("/run/cloche", idle, "state.json").read_text())["vm_pid"]
    supervisor = os.pidfd_open(cloche.state(idle)["pid"])
    os.kill(vm_pid, signal.SIGKILL)
    ended, _, _ = select.select([supervisor], [], [], 30)
    os.close(supervisor)
    assert ended
    assert cloche.state(idle)["status"] == "stopped"
