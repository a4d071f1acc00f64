"""What ``cloche features`` prints (OCI runtime specification, features.md).

Taken from the tables that the config is read with, so it cannot say otherwise than the code.
"""

from __future__ import annotations

from cloche import __version__
from cloche.model.capabilities import CAPABILITIES
from cloche.model.memory_policy import FLAGS as MEMORY_FLAGS
from cloche.model.memory_policy import MODES
from cloche.model.mounts import FLAGS, IDMAP, PROPAGATION, RECURSIVE
from cloche.model.seccomp_profile import ACTIONS, ARCHITECTURES, OPERATORS
from cloche.model.seccomp_profile import FLAGS as SECCOMP_FLAGS
from cloche.model.state import OCI_VERSION
from cloche.model.validate import NAMESPACES

HOOKS = (
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
)


def features() -> dict[str, object]:
    """The features document as a value for JSON."""
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": list(HOOKS),
        "mountOptions": sorted({*FLAGS, *PROPAGATION, *RECURSIVE, "tmpcopyup", *IDMAP}),
        "linux": {
            "namespaces": list(NAMESPACES),
            "capabilities": list(CAPABILITIES),
            # On the host, for the VM as a whole; in the guest it is always v2.
            "cgroup": {
                "v1": True,
                "v2": True,
                "systemd": False,
                "systemdUser": False,
                "rdma": False,
            },
            "seccomp": {
                "enabled": True,
                "actions": sorted(ACTIONS),
                "operators": sorted(OPERATORS),
                "archs": sorted(ARCHITECTURES),
                "knownFlags": sorted(SECCOMP_FLAGS),
                "supportedFlags": sorted(SECCOMP_FLAGS),
            },
            "apparmor": {"enabled": False},
            "selinux": {"enabled": False},
            "intelRdt": {"enabled": False, "schemata": False, "monitoring": False},
            "memoryPolicy": {"modes": list(MODES), "flags": list(MEMORY_FLAGS)},
            "netDevices": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": True}},
        },
        "annotations": {"cloche.version": __version__},
        "potentiallyUnsafeConfigAnnotations": [],
    }
