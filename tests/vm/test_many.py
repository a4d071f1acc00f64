"""Many containers side by side, and what one costs."""

from __future__ import annotations

import subprocess

from engine.patience import PATIENCE_SECONDS

from . import host
from .bundles import Bundle
from .runtime import Container, Runtime

MANY = 20
AT_ONCE = 4


def test_twenty_containers_side_by_side(cloche: Runtime, bundle: Bundle) -> None:
    bundle.sh("cat /proc/sys/kernel/random/boot_id; exec sleep 1000")
    bundle.linux["resources"] = {"memory": {"limit": 64 << 20}}
    containers = [cloche.start(bundle) for _ in range(MANY)]
    assert {container.status for container in containers} == {"running"}
    boot_ids = {container.output for container in containers}
    assert len(boot_ids) == MANY
    assert sorted(cloche("list", "-q").lines) == sorted(container.id for container in containers)
    for container in containers:
        container.kill("KILL")
    assert [container.wait() for container in containers] == [137] * MANY
    for container in containers:
        cloche("delete", container.id)
    assert cloche.leftovers() == []


def test_some_runs_at_once(cloche: Runtime, bundle: Bundle) -> None:
    bundle.sh("read line; echo $line; exit $line").save()
    for _ in range(2):
        processes = [
            cloche.popen("run", "--bundle", bundle.path, cloche.new_id(), stdin=subprocess.PIPE)
            for _ in range(AT_ONCE)
        ]
        for number, process in enumerate(processes):
            output, _ = process.communicate(f"{number}\n".encode(), timeout=PATIENCE_SECONDS)
            assert (output, process.returncode) == (f"{number}\n".encode(), number)
    assert cloche.leftovers() == []


def test_a_supervisor_costs_little_memory(running: Container) -> None:
    """At most 20 MiB of PSS. What QEMU costs is measured by the bench: others share its pages."""
    supervisor = host.pss_kib(running.pid)
    assert supervisor <= 20 << 10, f"{supervisor} KiB"
    assert len(host.processes(running.runtime.root)) == 2
