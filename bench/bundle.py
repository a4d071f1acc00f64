"""The bundles that are run: Debian's static busybox, and one config.json for all contenders."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.timing import BenchError

_TOOL = Path(__file__).resolve().parents[1] / "tools" / "busybox-image"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CAPABILITIES = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
_QUIET = ["nosuid", "noexec", "nodev"]


@dataclass(frozen=True)
class Bundles:
    """*short* runs /bin/true and ends; *idle* sleeps for longer than any benchmark takes."""

    short: Path
    idle: Path


def make_bundles(folder: Path) -> Bundles:
    """Build both below *folder*, on one root file system; BenchError when that fails."""
    rootfs = folder / "rootfs"
    rootfs.mkdir(parents=True)
    made = subprocess.run([_TOOL, "rootfs", rootfs], capture_output=True, check=False)
    if made.returncode != 0:
        raise BenchError(made.stderr.decode(errors="replace").strip())
    bundles = Bundles(folder / "short", folder / "idle")
    for path, args in ((bundles.short, ["/bin/true"]), (bundles.idle, ["/bin/sleep", "3600"])):
        path.mkdir()
        (path / "config.json").write_text(json.dumps(_config(args, rootfs), indent=4) + "\n")
    return bundles


def _config(args: list[str], rootfs: Path) -> dict[str, Any]:
    """What `runc spec` writes, in short: five namespaces, no terminal, a read-only root."""
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": [_PATH],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _CAPABILITIES),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": str(rootfs), "readonly": True},
        "hostname": "bench",
        "mounts": _mounts(),
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": name} for name in ("pid", "network", "ipc", "uts", "mount")],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
        },
    }


def _mounts() -> list[dict[str, Any]]:
    pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
    return [
        _mount("/proc", "proc", []),
        _mount("/dev", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount("/dev/pts", "devpts", pts),
        _mount("/dev/shm", "tmpfs", [*_QUIET, "mode=1777", "size=65536k"]),
        _mount("/dev/mqueue", "mqueue", _QUIET),
        _mount("/sys", "sysfs", [*_QUIET, "ro"]),
    ]


def _mount(destination: str, kind: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": kind, "options": options}
