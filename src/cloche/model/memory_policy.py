"""linux.memoryPolicy as set_mempolicy(2) takes it (docs/protocol.md, Tuning)."""

from __future__ import annotations

from cloche.model.cpus import parse_cpus
from cloche.model.problems import quoted, refuse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloche.model.oci_linux import MemoryPolicy

# linux/mempolicy.h
MODES = {
    "MPOL_DEFAULT": 0,
    "MPOL_PREFERRED": 1,
    "MPOL_BIND": 2,
    "MPOL_INTERLEAVE": 3,
    "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5,
    "MPOL_WEIGHTED_INTERLEAVE": 6,
}
FLAGS = {
    "MPOL_F_NUMA_BALANCING": 1 << 13,
    "MPOL_F_RELATIVE_NODES": 1 << 14,
    "MPOL_F_STATIC_NODES": 1 << 15,
}
# Modes that the kernel takes without nodes; the first two with none only.
_WITHOUT_NODES = ("MPOL_DEFAULT", "MPOL_LOCAL", "MPOL_PREFERRED")
_MAX_NODE = 1023  # of CONFIG_NODES_SHIFT
_PATH = "$.linux.memoryPolicy"


def check_memory_policy(policy: MemoryPolicy) -> None:
    """ConfigError for a policy that no kernel takes, or that the guest's one node cannot be."""
    if policy.mode not in MODES:
        refuse(f"{_PATH}.mode", f"expected one of {tuple(MODES)}, got {quoted(policy.mode)}")
    for index, flag in enumerate(policy.flags):
        if flag not in FLAGS:
            expected = f"expected one of {tuple(FLAGS)}, got {quoted(flag)}"
            refuse(f"{_PATH}.flags[{index}]", expected)
    if {"MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES"} <= {*policy.flags}:
        refuse(f"{_PATH}.flags", "relative and static nodes at once cannot be")
    nodes = _nodes(policy)
    if nodes and policy.mode in _WITHOUT_NODES[:2]:
        refuse(f"{_PATH}.nodes", f"{policy.mode} takes none, got {quoted(policy.nodes)}")
    if not nodes and policy.mode not in _WITHOUT_NODES:
        refuse(f"{_PATH}.nodes", f"{policy.mode} needs at least one")
    if nodes and 0 not in nodes and "MPOL_F_RELATIVE_NODES" not in policy.flags:
        refuse(
            f"{_PATH}.nodes",
            f"the guest has one memory node, 0, which is not in {quoted(policy.nodes)}",
            "linux.resources.cpu.mems says on which nodes of the host the VM's memory is",
        )


def memory_policy(policy: MemoryPolicy) -> list[object]:
    """Mode and flags in one number, and the mask of nodes in whole words of 64 bits."""
    mode = MODES[policy.mode]
    for flag in policy.flags:
        mode |= FLAGS[flag]
    mask = sum(1 << node for node in _nodes(policy))
    return [mode, mask.to_bytes((mask.bit_length() + 63) // 64 * 8, "little")]


def _nodes(policy: MemoryPolicy) -> set[int]:
    if not policy.nodes:
        return set()
    try:
        nodes = parse_cpus(policy.nodes, what="memory node")
    except ValueError as error:
        refuse(f"{_PATH}.nodes", f"{error}, got {quoted(policy.nodes)}")
    if max(nodes) > _MAX_NODE:
        refuse(f"{_PATH}.nodes", f"no kernel has a memory node {max(nodes)}")
    return nodes
