"""Shapes: the few VM sizes that exist, and which one a container gets.

A template is saved per shape, so sizes come in steps: few templates, most starts warm.
"""

from __future__ import annotations

import os
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloche.vmm.argv import Variant

DEFAULT_CPUS = 1
DEFAULT_MEMORY = 2048
# What the guest's kernel and agent need beside the container's own limit, MiB.
GUEST_OVERHEAD = 96
# What QEMU and the supervisor may use beside the guest's memory, MiB: TCG's translation cache
# (argv.TRANSLATION_CACHE), and as much for all the rest, of which they were seen to use 60.
HOST_OVERHEAD = 256
SMALLEST_MEMORY = 256
MIB = 1 << 20
# Who reads cgroup v1's limit where there is none finds about 2**63, and hands it on.
NO_LIMIT = 1 << 60


class Shape:
    """What a template is made for: change any of it and the template is another one."""

    __slots__ = (
        *("accel", "cpus", "files", "guest_key", "memory", "qemu", "randomize"),
        *("taps", "variant"),
    )

    def __init__(
        self,
        *,
        qemu: str,
        variant: Variant,
        accel: str,
        cpus: int,
        memory: int,
        guest_key: str,
        randomize: str = "auto",
        files: str = "9p",
        taps: bool = False,
    ) -> None:
        self.qemu = qemu
        self.variant = variant
        self.accel = accel
        self.cpus = cpus
        self.memory = memory
        self.guest_key = guest_key
        self.randomize = randomize
        # Who serves the host's files (`files` of the configuration).
        self.files = files
        # Whether its cards stand on taps. A guest asks once what its cards can leave to the host
        # (checksums, segmentation): of taps all of it, of a user-mode network or of nothing, none.
        self.taps = taps

    def identity(self) -> list[str]:
        """All that a template depends on: a changed QEMU or host CPU makes it another one."""
        size = f"{self.cpus} cpu, {self.memory} MiB, random addresses {self.randomize}"
        size += f", files over {self.files}, cards {'on taps' if self.taps else 'plain'}"
        return [
            *(FORMAT, build_of(self.qemu), str(self.variant), self.accel),
            *(size, self.guest_key, host_cpu(features=self.accel == "kvm")),
        ]

    def directory_name(self) -> str:
        """A readable name; its checksum keeps templates of one size but different origin apart.

        (zlib costs nothing to import, hashlib 4 ms; the manifest holds the whole identity.)
        """
        checksum = zlib.crc32("\0".join(self.identity()).encode())
        return f"{self.variant.machine}-{self.accel}-{self.cpus}cpu-{self.memory}m-{checksum:08x}"


# Raised when the devices or the kernel command line of vmm/argv.py change.
FORMAT = "10"


def is_identity_of(identity: Sequence[str], qemu: str, guest_key: str) -> bool:
    """Whether *identity* is that of a shape which this host could start now, whatever its size."""
    if len(identity) != 7:
        return False
    made_by, accel = tuple(identity[:2]), identity[3]
    cpu = host_cpu(features=accel == "kvm")
    return made_by == (FORMAT, build_of(qemu)) and tuple(identity[5:]) == (guest_key, cpu)


def build_of(qemu: str) -> str:
    """The binary at that path as it is now."""
    try:
        stat = os.stat(qemu)
    except OSError:
        return qemu
    return f"{qemu} {stat.st_size} {stat.st_mtime_ns}"


def host_cpu(*, features: bool) -> str:
    """The host's CPU: a template holds the CPU features that the guest found.

    With KVM they are the host's *features*, less what its microcode and kernel hide, so that an
    update of either makes another CPU.
    """
    found: dict[str, str] = {}
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        # The first processor's entry is enough: the whole file takes milliseconds on big hosts.
        for line in file.read(4096).splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), value.strip())
    names = ("model name", "microcode", "flags") if features else ("model name",)
    words = [found.get(name, "") for name in names]
    return " ".join([*words, os.uname().release] if features else words)


def memory_step(limit: int | None) -> int:
    """The VM's memory in MiB for a container limited to *limit* bytes (None: no limit).

    Doubling steps from 256 MiB; the guest's own needs come on top of the limit. A limit beyond what
    the host has gives it all that the host has.
    """
    if limit is None or limit >= NO_LIMIT:
        return DEFAULT_MEMORY
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    wanted = -(-min(limit, host) // MIB) + GUEST_OVERHEAD
    step = SMALLEST_MEMORY
    while step < wanted:
        step *= 2
    return step


def host_limit(memory: int) -> int:
    """The limit in bytes of the host's cgroup of a VM with *memory* MiB.

    It must never be met in a VM's legitimate use, since there is only QEMU to be killed: the
    guest's own cgroups enforce the container's limit, this one bounds what the VM may cost.
    """
    return (memory + HOST_OVERHEAD) * MIB


def cpu_count(cpus: float | None, available: int) -> int:
    """vCPUs for a limit of *cpus* (None: no limit), never more than the host has."""
    if cpus is None:
        return DEFAULT_CPUS
    return max(1, min(available, -int(-cpus // 1)))
