"""linux.resources as files of the host's cgroup of a VM, v1 or v2.

What bounds the VM as a whole, since only there it means anything: weights against other VMs, the
host's processors, memory nodes and disks. Memory and the number of processors bound it by its size.
"""

from __future__ import annotations

from cloche.base.typed import Struct
from cloche.model.cgroup import cpu_weight

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cloche.model.oci_linux import BlockIO, Resources


class HostSetting(Struct):
    """One limit: the first of *files* that the cgroup has is written.

    *field* is its name below resources. Where there is none of the files that is an error, or, if
    it can be done without, a warning: *otherwise* says what becomes of the limit then.
    """

    field: str
    files: tuple[tuple[str, str], ...]  # name, value
    otherwise: str = ""


_GUEST = "applied in the guest only"


def host_settings(resources: Resources) -> list[HostSetting]:
    """What is written to the host's cgroup, in order."""
    cpu, swappiness, found = resources.cpu, resources.memory.swappiness, []
    if swappiness is not None:
        only = ("memory.swappiness", str(swappiness))  # cgroup v2 has none
        found.append(HostSetting("memory.swappiness", (only,), "not applied"))
    for name, text in (("mems", cpu.mems), ("cpus", cpu.cpus)):
        if text:
            found.append(HostSetting(f"cpu.{name}", ((f"cpuset.{name}", text),)))
    if cpu.idle is not None:
        found.append(HostSetting("cpu.idle", (("cpu.idle", str(cpu.idle)),), otherwise=_GUEST))
    if cpu.shares and cpu.idle != 1:  # the kernel refuses a weight for an idle cgroup
        files = (("cpu.shares", str(cpu.shares)), ("cpu.weight", str(cpu_weight(cpu.shares))))
        found.append(HostSetting("cpu.shares", files, otherwise=_GUEST))
    return [*found, *_block_io(resources.block_io)]


def io_weight(weight: int) -> int:
    """A weight of cgroup v1's blkio (10 … 1000) on the scale of v2's io.weight (1 … 10000)."""
    return 1 + (min(max(weight, 10), 1000) - 10) * 9999 // 990


def _block_io(block: BlockIO) -> Iterator[HostSetting]:
    if block.weight:
        weight = str(block.weight)
        files = (("blkio.weight", weight), ("blkio.bfq.weight", weight))
        files_v2 = (("io.bfq.weight", weight), ("io.weight", f"default {io_weight(block.weight)}"))
        yield HostSetting("blockIO.weight", (*files, *files_v2))
    if block.leaf_weight:
        yield _leaf("blockIO.leafWeight", "blkio.leaf_weight", str(block.leaf_weight))
    for index, device in enumerate(block.weight_device):
        field, number = f"blockIO.weightDevice[{index}]", f"{device.major}:{device.minor}"
        if device.weight:
            value = f"{number} {device.weight}"
            names = ("blkio.weight_device", "blkio.bfq.weight_device", "io.bfq.weight")
            scaled = ("io.weight", f"{number} {io_weight(device.weight)}")
            yield HostSetting(field, (*((name, value) for name in names), scaled))
        if device.leaf_weight:
            value = f"{number} {device.leaf_weight}"
            yield _leaf(f"{field}.leafWeight", "blkio.leaf_weight_device", value)
    for name, devices, v1, v2 in (
        ("ReadBps", block.throttle_read_bps_device, "read_bps", "rbps"),
        ("WriteBps", block.throttle_write_bps_device, "write_bps", "wbps"),
        ("ReadIOPS", block.throttle_read_iops_device, "read_iops", "riops"),
        ("WriteIOPS", block.throttle_write_iops_device, "write_iops", "wiops"),
    ):
        for index, limit in enumerate(devices):
            number = f"{limit.major}:{limit.minor}"
            # A rate of 0 takes a limit away, as with cgroup v1.
            old = (f"blkio.throttle.{v1}_device", f"{number} {limit.rate}")
            new = ("io.max", f"{number} {v2}={limit.rate or 'max'}")
            yield HostSetting(f"blockIO.throttle{name}Device[{index}]", (old, new))


def _leaf(field: str, file: str, value: str) -> HostSetting:
    """Only the CFQ scheduler knew leaf weights; it left Linux with 5.0."""
    return HostSetting(field, ((file, value),))
