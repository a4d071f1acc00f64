"""Which VM a container gets, and what the host lets it use."""

from __future__ import annotations

import os

import pytest

from cloche.vmm.argv import TRANSLATION_CACHE, Machine, qemu_argv, variants
from cloche.vmm.shape import GUEST_OVERHEAD, HOST_OVERHEAD, MIB, cpu_count, host_limit, memory_step


@pytest.mark.parametrize(
    ("limit", "memory"),
    [
        *[(None, 2048), (1, 256), (160 * MIB, 256), (160 * MIB + 1, 512), (416 * MIB, 512)],
        # cgroup v1 says so where there is no limit.
        *[((1 << 63) - 4096, 2048), ((1 << 63) - 1, 2048)],
    ],
)
def test_memory_comes_in_steps_above_the_limit(limit: int | None, memory: int) -> None:
    assert memory_step(limit) == memory


def test_a_vm_is_never_made_larger_than_its_host_needs() -> None:
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory_step(1 << 50) == memory_step(host) < (host // MIB + GUEST_OVERHEAD) * 2


@pytest.mark.parametrize(
    ("cpus", "available", "count"),
    [(None, 8, 1), (0.5, 8, 1), (1.0, 8, 1), (1.5, 8, 2), (16.0, 8, 8)],
)
def test_processors_are_whole_and_of_the_host(
    cpus: float | None, available: int, count: int
) -> None:
    assert cpu_count(cpus, available) == count


@pytest.mark.parametrize(("accel", "option"), [("tcg", "tcg,tb-size=128"), ("kvm", "kvm")])
def test_translation_cache_fits_the_hosts_limit(accel: str, option: str) -> None:
    # Left alone, QEMU 7.2 keeps up to 1 GiB of translated code: the host would kill it.
    machine = Machine(
        qemu="qemu", variant=variants(accel, "auto")[0], accel=accel, cpus=1, memory=256,
        agent_fd=3, qmp_fd=4, console_fd=5,
    )  # fmt: skip
    argv = qemu_argv(machine)
    assert argv[argv.index("-accel") + 1] == option
    assert host_limit(256) == (256 + HOST_OVERHEAD) * MIB
    assert TRANSLATION_CACHE <= HOST_OVERHEAD / 2
