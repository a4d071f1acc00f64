"""What the probe printed, as facts that can be compared: a key each, and a value.

Left out is what two kernels, or two starts under the same one, cannot agree on: numbers of mounts
and devices, sizes of memory, process counters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

Facts = dict[str, str]

_STATUS = {
    *("Name", "Umask", "Uid", "Gid", "Groups", "NoNewPrivs", "NSpid", "Threads"),
    *("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"),
    *("Seccomp", "Seccomp_filters", "SigBlk", "SigIgn", "SigCgt"),
}
_OF_THE_C_LIBRARY = 3 << 31
"""Signals 32 and 33: make(1) has what it starts ignore them, and runc hands that on."""
_UNLIMITED_V1 = 1 << 60
"""cgroup v1 has no word for "no limit": the largest multiple of a page, which is above this."""


def facts_of(output: str) -> Facts:
    """The facts in what the probe printed; what a case's own script printed is ``output``."""
    # A terminal's line ends; two \r where runc's own terminal is not raw yet.
    head, *sections = re.split(r"(?m)^@@ (\w+)\n", re.sub(r"\r+\n", "\n", output))
    facts = {"before the probe": head.strip()} if head.strip() else {}
    for name, text in zip(sections[::2], sections[1::2], strict=True):
        lines = text.strip("\n").split("\n")
        if name == "output":
            facts["output"] = "\n".join(lines)
        else:
            facts.update((f"{name} {key}", value) for key, value in _PARSERS[name](lines))
    return facts


def _words(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        name, _, value = line.partition(" ")
        yield name, value


def _status(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        name, _, value = line.partition(":")
        if name == "SigIgn":
            value = f"{int(value, 16) & ~_OF_THE_C_LIBRARY:016x}"
        if name in _STATUS:
            yield name, " ".join(value.split())


def _limits(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines[1:]:
        columns = re.split(r"\s{2,}", line)
        yield columns[0].removeprefix("Max "), " ".join(columns[1:3])


def _mounts(lines: list[str]) -> Iterator[tuple[str, str]]:
    targets: dict[str, int] = {}
    type_of_root = files = ""  # files: the device that holds the bundle, maybe one of many tmpfs
    for line in lines:
        left, _, right = line.partition(" - ")
        _, _, device, root, target, options, *tags = left.split()
        kind, source, superblock = right.split()
        if target.startswith("/sys/fs/cgroup/"):
            continue  # one for each controller of cgroup v1
        type_of_root, files = type_of_root or kind, files or device
        depth = targets[target] = targets.get(target, 0) + 1
        name = target if depth == 1 else f"{target} ({depth})"
        yield f"type {name}", "the bundle's" if device == files else kind
        yield f"flags {name}", options
        yield f"propagation {name}", " ".join(sorted(tag.partition(":")[0] for tag in tags))
        if device == files:
            continue  # its options and paths are the machine's
        yield f"source {name}", source
        yield f"root {name}", root if kind in ("cgroup", "cgroup2", "proc", "sysfs") else ""
        yield f"options {name}", superblock.replace(",inode64", "")
    yield "type of the root", type_of_root
    yield "order", " ".join(sorted(targets, key=list(targets).index))


def _fds(lines: list[str]) -> Iterator[tuple[str, str]]:
    for fd, target in _words(lines):
        yield fd, re.sub(r"\d+", "N", target)


def _env(lines: list[str]) -> Iterator[tuple[str, str]]:
    name = ""
    values: dict[str, str] = {}
    for line in lines:
        key, equals, value = line.partition("=")
        if equals:
            name = key
            values[name] = value
        elif name:  # a value of several lines
            values[name] += f"\n{line}"
    # The shell's own.
    yield from ((key, value) for key, value in values.items() if key not in ("PWD", "OLDPWD", "_"))


def _files(lines: list[str]) -> Iterator[tuple[str, str]]:
    path = ""
    found: dict[str, str] = {}
    for line in lines:
        name, bar, rest = line.partition("|")
        if bar:
            path = name
            found[path] = rest.replace("|", " ")
        elif path:  # where the link before leads
            found[path] += f" -> {line}"
    # runc makes the link where the kernel has what it leads to.
    yield from ((path, value) for path, value in found.items() if path != "/dev/core")


def _sysctl(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        name, _, value = line.partition(":")
        yield name.replace("/", "."), " ".join(value.split())


def _net(lines: list[str]) -> Iterator[tuple[str, str]]:
    yield "interfaces", " ".join(sorted(line.split(":")[0].strip() for line in lines[2:]))


def _cgroup(lines: list[str]) -> Iterator[tuple[str, str]]:
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    for name, v2, v1 in (
        ("memory limit", "memory.max", "memory/memory.limit_in_bytes"),
        ("memory reservation", "memory.low", "memory/memory.soft_limit_in_bytes"),
        ("processes", "pids.max", "pids/pids.max"),
    ):
        if v2 in values or v1 in values:
            yield name, _limit(values.get(v2, values.get(v1, "")), v2)
    if "cpu.max" in values:
        yield "processor time", values["cpu.max"]
    elif "cpu/cpu.cfs_quota_us" in values:
        quota = values["cpu/cpu.cfs_quota_us"].replace("-1", "max")
        yield "processor time", f"{quota} {values['cpu/cpu.cfs_period_us']}"
    if "cpu.weight" in values:
        yield "processor weight", values["cpu.weight"].replace("100", "default")
    elif "cpu/cpu.shares" in values:
        shares = int(values["cpu/cpu.shares"])
        # docs/oci.md, cpu.shares; the default is another weight in each version.
        weight = str(1 + (shares - 2) * 9999 // 262142)
        yield "processor weight", "default" if shares == 1024 else weight


def _limit(value: str, v2: str) -> str:
    if value.isdigit() and int(value) > _UNLIMITED_V1:
        return "none"
    # A reservation that is not there is 0 in v2, the largest number in v1.
    return "none" if value == "max" or (v2 == "memory.low" and value == "0") else value


_PARSERS = {
    "misc": _words,
    "status": _status,
    "limits": _limits,
    "mounts": _mounts,
    "fds": _fds,
    "env": _env,
    "dev": _files,
    "paths": _files,
    "sysctl": _sysctl,
    "net": _net,
    "cgroup": _cgroup,
}
