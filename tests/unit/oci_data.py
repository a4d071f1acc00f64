"""Configs that real engines wrote, and what tests need to load and compile them.

`data/*.json` were taken from the bundles of Docker 20.10, Podman 4.3, containerd 1.6 (`ctr run`)
and `runc spec`; only paths and host names were replaced.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cloche.model.features import HOOKS
from cloche.model.oci import load_config, load_process
from cloche.model.plan import Layout, compile_container, compile_process
from cloche.model.spec import default_spec

DATA = Path(__file__).parent / "data"
ENGINES = sorted(
    path.stem for path in DATA.glob("*.json") if not path.stem.endswith("-exec-process")
)
LAYOUT = Layout(rootfs="/run/share/rootfs", volume=lambda index: f"/run/share/volume/{index}")
_FILES = (
    "hostname",
    "hosts",
    "resolv.conf",
    "f",
    "docker-init",
    ".containerenv",
    "passwd",
    "group",
)


def raw(name: str) -> dict[str, Any]:
    """The config of that name as plain JSON values."""
    return dict(json.loads((DATA / f"{name}.json").read_text()))


def write(folder: Path, config: object) -> str:
    """Write *config* as *folder*/config.json; returns the path."""
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return str(path)


def with_sources(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Move the sources of bind mounts below *folder* and make them there, so that they exist."""
    for mount in config["mounts"]:
        if "bind" not in mount.get("type", ""):
            continue
        source = folder / mount["source"].lstrip("/")
        if source.name in _FILES:
            source.parent.mkdir(parents=True, exist_ok=True)
            source.touch()
        else:
            source.mkdir(parents=True, exist_ok=True)
        mount["source"] = str(source)
    return config


def compiled(
    config: dict[str, Any], folder: Path, cache: Path | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The plan for *config*, written to and loaded from *folder*, and the warnings."""
    return compile_container(
        load_config(write(folder, config)),
        bundle=str(folder),
        container_id="web",
        layout=LAYOUT,
        cgroup="cloche/web",
        streams=(1, 2, 3),
        terminal_size=None,
        seccomp_cache=cache,
    )


def compiled_exec(
    config: dict[str, Any], folder: Path, cache: Path | None = None
) -> tuple[dict[str, Any], list[str]]:
    """As compiled, of an exec of just the process that *config* has."""
    process = load_process(json.dumps(config["process"]).encode(), "process")
    return compile_process(
        process,
        load_config(write(folder, config)),
        streams=(1, 2, 3),
        terminal_size=None,
        seccomp_cache=cache,
    )


def full() -> dict[str, Any]:
    """A valid config with every field that cloche accepts, none at what its absence would mean.

    Binds the folder ``data`` of the bundle.
    """
    config: dict[str, Any] = default_spec()
    config["domainname"] = "example"
    config["annotations"] = {"key": "value"}
    config["vm"] = {
        "hypervisor": {"path": "/usr/bin/qemu", "parameters": ["-snapshot"]},
        "kernel": {"path": "/vmlinux", "parameters": ["a=b"], "initrd": "/initrd"},
        "hwConfig": {"vcpus": 2, "memory": 1 << 28},
    }
    config["windows"] = {"layerFolders": []}
    config["solaris"] = {}
    config["zos"] = {}
    config["freebsd"] = {}
    config["hooks"] = {
        name: [{"path": "/bin/hook", "args": ["hook"], "env": ["A=b"], "timeout": 5}]
        for name in HOOKS
    }
    config["process"] |= {
        "user": {"uid": 1, "gid": 2, "umask": 7, "additionalGids": [3], "username": "app"},
        "consoleSize": {"height": 24, "width": 80},
        "commandLine": "sh",
        "capabilities": {
            name: ["CAP_KILL"]
            for name in ("bounding", "effective", "inheritable", "permitted", "ambient")
        },
        "apparmorProfile": "profile",
        "selinuxLabel": "label",
        "oomScoreAdj": 10,
        "scheduler": {
            "policy": "SCHED_DEADLINE",
            "nice": 1,
            "flags": ["SCHED_FLAG_RESET_ON_FORK"],
            "runtime": 1_000_000,
            "deadline": 2_000_000,
            "period": 3_000_000,
        },
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 3},
        "execCPUAffinity": {"initial": "0", "final": "0-1"},
    }
    config["mounts"] += [
        {"destination": "/data", "source": "data", "options": ["rbind", "ro", "rro", "rprivate"]},
        {"destination": "/tmp", "type": "tmpfs", "options": ["tmpcopyup", "size=1m"]},
    ]
    config["linux"] |= {
        "devices": [
            {"path": "/dev/hwrng", "type": "c", "major": 10, "minor": 183, "fileMode": 416}
            | {"uid": 5, "gid": 6}
        ],
        "namespaces": [*config["linux"]["namespaces"], {"type": "user"}, {"type": "time"}],
        "uidMappings": [{"containerID": 0, "hostID": 100_000, "size": 65_536}],
        "gidMappings": [{"containerID": 0, "hostID": 100_000, "size": 65_536}],
        "timeOffsets": {"boottime": {"secs": 100}},
        "cgroupsPath": "/web",
        "rootfsPropagation": "private",
        "resources": _resources(),
        "seccomp": {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 13,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [
                {
                    "names": ["read", "write"],
                    "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 1, "value": 3, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}],
                },
                {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 2},
            ],
        },
        "sysctl": {"net.core.somaxconn": "100"},
        "mountLabel": "label",
        "memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]},
        "personality": {"domain": "LINUX32", "flags": ["X"]},
    }
    return config


def _resources() -> dict[str, Any]:
    rate = [{"major": 8, "minor": 0, "rate": 100}]
    return {
        "devices": [{"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rwm"}],
        "memory": {
            "limit": 1 << 30,
            "reservation": 1 << 20,
            "swap": 1 << 31,
            "kernel": 1 << 30,
            "kernelTCP": 1 << 30,
            "swappiness": 10,
            "disableOOMKiller": True,
            "useHierarchy": True,
            "checkBeforeUpdate": True,
        },
        "cpu": {
            "shares": 512,
            "quota": 50000,
            "burst": 1000,
            "period": 80000,
            "realtimeRuntime": 1000,
            "realtimePeriod": 2000,
            "cpus": "0-1",
            "mems": "0",
            "idle": 0,
        },
        "pids": {"limit": 100},
        "blockIO": {
            "weight": 100,
            "leafWeight": 100,
            "weightDevice": [{"major": 8, "minor": 0, "weight": 10, "leafWeight": 10}],
            "throttleReadBpsDevice": rate,
            "throttleWriteBpsDevice": rate,
            "throttleReadIOPSDevice": rate,
            "throttleWriteIOPSDevice": rate,
        },
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
        "network": {"classID": 1, "priorities": [{"name": "eth0", "priority": 1}]},
        "rdma": {"mlx5_0": {"hcaHandles": 1, "hcaObjects": 2}},
        "unified": {"memory.high": "1000000"},
    }
