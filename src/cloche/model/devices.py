"""Device nodes and links of a container's /dev: runc's defaults, and linux.devices."""

from __future__ import annotations

import posixpath

from cloche.model.problems import quoted, refuse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cloche.model.oci_linux import Device

S_IFIFO = 0o010000
S_IFCHR = 0o020000
S_IFBLK = 0o060000

_TYPES = {"c": S_IFCHR, "u": S_IFCHR, "b": S_IFBLK, "p": S_IFIFO}

# path, major, minor; all of them 0666 root:root.
DEFAULT_DEVICES = (
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
)

# what the link says, where it is. /dev/console is the agent's: it binds the terminal there.
DEFAULT_LINKS = (
    ("pts/ptmx", "/dev/ptmx"),
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("/proc/kcore", "/dev/core"),
)

# Character devices that mean in every Linux what they mean on the host: major, minor (None: all).
# Documentation/admin-guide/devices.txt.
_SAME_EVERYWHERE = {
    (1, None),
    (5, None),
    (10, 137),  # vhci
    (10, 183),  # hwrng
    (10, 200),  # net/tun
    (10, 203),  # cuse
    (10, 229),  # fuse
    (10, 234),  # btrfs-control
    (10, 236),  # mapper/control
    (10, 237),  # loop-control
    (108, 0),  # ppp
}

_SAME_BLOCK = (1, 7)  # RAM disks and loop devices, made by the guest's own kernel

# The kernel's limits of a device number: 12 and 20 bits.
_MAX_MAJOR = (1 << 12) - 1
_MAX_MINOR = (1 << 20) - 1


def check_devices(devices: tuple[Device, ...]) -> None:
    """ConfigError for nodes that mknod(2) cannot make."""
    for index, device in enumerate(devices):
        path = f"$.linux.devices[{index}]"
        if not device.path.startswith("/"):
            refuse(f"{path}.path", f"expected an absolute path, got {quoted(device.path)}")
        if device.type not in _TYPES:
            refuse(f"{path}.type", f"expected c, u, b or p, got {quoted(device.type)}")
        if device.type == "p":
            continue
        if not 0 <= device.major <= _MAX_MAJOR:
            refuse(f"{path}.major", f"expected 0 to {_MAX_MAJOR}, got {device.major}")
        if not 0 <= device.minor <= _MAX_MINOR:
            refuse(f"{path}.minor", f"expected 0 to {_MAX_MINOR}, got {device.minor}")


def device_plan(
    devices: tuple[Device, ...], disks: Mapping[tuple[int, int], str]
) -> tuple[list[dict[str, object]], list[str]]:
    """Nodes for the agent (docs/protocol.md, Container.devices), and warnings.

    A device of the config takes the place of a default one with the same path, and the first of
    two is made, as with runc.
    Block devices of the host are those among *disks* (number → serial in the guest); others are
    left out: the same number is another disk, or none, in the guest.
    """
    nodes: dict[str, dict[str, object]] = {}
    foreign: list[str] = []
    left_out: list[str] = []
    for device in devices:
        path = posixpath.normpath(device.path)
        if path == "/dev/ptmx":  # always the link into the container's own devpts
            continue
        if device.type == "b" and (disk := disks.get((device.major, device.minor))):
            nodes.setdefault(path, _node(path, device) | {"major": 0, "minor": 0, "disk": disk})
            continue
        if device.type == "b" and device.major not in _SAME_BLOCK:
            left_out.append(f"{quoted(path)} ({device.major}:{device.minor})")
            continue
        if device.type in "cu" and not _same_everywhere(device.major, device.minor):
            foreign.append(f"{quoted(path)} ({device.major}:{device.minor})")
        nodes.setdefault(path, _node(path, device))
    for path, major, minor in DEFAULT_DEVICES:
        nodes.setdefault(path, _char(path, major, minor))
    return list(nodes.values()), _warnings(foreign, left_out)


def _same_everywhere(major: int, minor: int) -> bool:
    return (major, None) in _SAME_EVERYWHERE or (major, minor) in _SAME_EVERYWHERE


def _node(path: str, device: Device) -> dict[str, object]:
    # Go's os.FileMode may come with type bits of its own above the permissions.
    permissions = (device.file_mode if device.file_mode is not None else 0o666) & 0o7777
    return {
        "path": path,
        "mode": _TYPES[device.type] | permissions,
        "major": device.major if device.type != "p" else 0,
        "minor": device.minor if device.type != "p" else 0,
        "uid": device.uid or 0,
        "gid": device.gid or 0,
    }


def _char(path: str, major: int, minor: int) -> dict[str, object]:
    return {
        "path": path,
        "mode": S_IFCHR | 0o666,
        "major": major,
        "minor": minor,
        "uid": 0,
        "gid": 0,
    }


def _some(names: list[str]) -> str:
    # --privileged names every device of the host.
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def _warnings(foreign: list[str], left_out: list[str]) -> list[str]:
    warnings = []
    if left_out:
        warnings.append(
            f"$.linux.devices: block devices of the host that no device rule names by number are "
            f"not in the guest, left out: {_some(left_out)}"
        )
    if foreign:
        warnings.append(
            f"$.linux.devices: nodes made, but the devices behind them are the guest's: "
            f"{_some(foreign)}"
        )
    return warnings
