"""What the types of config.json cannot say: checks of its meaning, and refusals by name.

Everything here is decided from the config alone, before anything is started.
"""

from __future__ import annotations

from cloche.model.capabilities import CAPABILITIES, mask
from cloche.model.cgroup import check_resources, resource_warnings
from cloche.model.device_filter import check_device_rules
from cloche.model.devices import check_devices
from cloche.model.memory_policy import check_memory_policy
from cloche.model.mounts import PROPAGATION
from cloche.model.oci_linux import IntelRdt
from cloche.model.oci_vm import check_vm
from cloche.model.problems import quoted, refuse
from cloche.model.rlimits import RLIMITS
from cloche.model.scheduling import check_personality, check_scheduling
from cloche.model.seccomp_profile import check_seccomp
from cloche.model.users import check_clocks, check_users
from cloche.model.validate_mounts import check_mount, mount_warnings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloche.model.oci import Capabilities, Config, Hook, Process
    from cloche.model.oci_linux import Linux

_MAX_NAME = 64  # __NEW_UTS_LEN of the kernel

# Arguments and environment together: three quarters of the kernel's _STK_LIM (execve(2)). Each
# string counts with its NUL and a pointer.
MOST_ARGUMENTS = 6 << 20
_PER_STRING = 9

NAMESPACES = ("cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts")
# With a path these mean another container's: those of one VM can share them.
JOINABLE = ("ipc", "network", "pid", "uts")
_LATER = "not supported by this version of cloche"


def check_config(config: Config) -> None:
    """ConfigError (JSON path first) for what breaks the specification or is refused."""
    check_process(config.process, "$.process")
    check_args(config.process, "$.process")
    if not config.root.path:
        refuse("$.root.path", "empty")
    _check_names(config)
    for index, mount in enumerate(config.mounts):
        check_mount(mount, f"$.mounts[{index}]", config.linux)
    _check_hooks(config)
    if config.vm is not None:
        check_vm(config.vm)
    _check_linux(config.linux)


def check_process(process: Process, path: str) -> None:
    """Check a process section whose JSON path is *path*; ConfigError as of check_config."""
    if not process.cwd.startswith("/"):
        refuse(f"{path}.cwd", f"expected an absolute path, got {quoted(process.cwd)}")
    for index, entry in enumerate(process.env):
        if entry.startswith("=") or "=" not in entry:
            refuse(f"{path}.env[{index}]", f"expected NAME=value, got {quoted(entry)}")
    if process.user.umask is not None and process.user.umask > 0o777:
        refuse(f"{path}.user.umask", f"expected at most 511 (0777), got {process.user.umask}")
    _check_size(process, path)
    _check_rlimits(process, path)
    check_scheduling(process, path)


def check_args(process: Process, path: str) -> None:
    """ConfigError unless there is a program to run."""
    if not process.args:
        refuse(f"{path}.args", "missing or empty: nothing to run")


def _check_size(process: Process, path: str) -> None:
    """What execve(2) takes of no process at all; a smaller stack limit is the guest's to apply."""
    sizes = {
        name: sum(len(text.encode()) + _PER_STRING for text in getattr(process, name))
        for name in ("args", "env")
    }
    total = sum(sizes.values())
    if total > MOST_ARGUMENTS:
        refuse(
            f"{path}.{max(sizes, key=lambda name: sizes[name])}",
            f"argument list too long: {total} bytes with args and env, at most {MOST_ARGUMENTS}",
        )


def version_of(version: str) -> tuple[int, int]:
    """The first two numbers of a specification's version; ConfigError for one unknown."""
    numbers = version.partition("+")[0].partition("-")[0].split(".")
    whole = all(number.isascii() and number.isdigit() and len(number) < 6 for number in numbers)
    if len(numbers) != 3 or not whole or numbers[0] != "1":
        refuse("$.ociVersion", f"expected a version 1.x.y, got {quoted(version)}")
    return int(numbers[0]), int(numbers[1])


def _check_rlimits(process: Process, path: str) -> None:
    seen = set()
    for index, limit in enumerate(process.rlimits):
        here = f"{path}.rlimits[{index}]"
        if limit.type not in RLIMITS:
            refuse(f"{here}.type", f"expected RLIMIT_NOFILE or the like, got {quoted(limit.type)}")
        if limit.type in seen:
            refuse(f"{here}.type", f"{limit.type} is there twice")
        if limit.soft > limit.hard:
            refuse(f"{here}.soft", f"{limit.soft} is above the hard limit {limit.hard}")
        seen.add(limit.type)


def _check_names(config: Config) -> None:
    own_uts = any(namespace.type == "uts" for namespace in config.linux.namespaces)
    for path, name in (("$.hostname", config.hostname), ("$.domainname", config.domainname)):
        if len(name.encode()) > _MAX_NAME:
            refuse(path, f"longer than {_MAX_NAME} bytes")
        if name and not own_uts:
            refuse(path, "unable to set it without a private UTS namespace")


def _check_hooks(config: Config) -> None:
    hooks = config.hooks
    for name, each in (
        ("prestart", hooks.prestart),
        ("createRuntime", hooks.create_runtime),
        ("createContainer", hooks.create_container),
        ("startContainer", hooks.start_container),
        ("poststart", hooks.poststart),
        ("poststop", hooks.poststop),
    ):
        for index, hook in enumerate(each):
            _check_hook(hook, f"$.hooks.{name}[{index}]")


def _check_hook(hook: Hook, path: str) -> None:
    if not hook.path.startswith("/"):
        refuse(f"{path}.path", f"expected an absolute path, got {quoted(hook.path)}")
    if hook.timeout is not None and not 0 < hook.timeout < 1 << 31:
        refuse(f"{path}.timeout", f"expected more than 0 seconds, got {hook.timeout}")


def _check_linux(linux: Linux) -> None:
    _check_namespaces(linux)
    if linux.rootfs_propagation and linux.rootfs_propagation not in PROPAGATION:
        refuse(
            "$.linux.rootfsPropagation",
            f"expected shared, slave or the like, got {quoted(linux.rootfs_propagation)}",
        )
    for field, paths in (
        ("maskedPaths", linux.masked_paths),
        ("readonlyPaths", linux.readonly_paths),
    ):
        for index, path in enumerate(paths):
            if not path.startswith("/"):
                refuse(
                    f"$.linux.{field}[{index}]", f"expected an absolute path, got {quoted(path)}"
                )
    _check_sysctl(linux)
    check_devices(linux.devices)
    for name in linux.net_devices:
        refuse(
            f"$.linux.netDevices[{quoted(name)}]",
            "an interface of the host cannot be moved into a VM",
            "the VM gets what is in the network namespace that linux.namespaces names",
        )
    check_resources(linux.resources)
    check_device_rules(linux.resources.devices)
    if linux.seccomp is not None:
        check_seccomp(linux.seccomp)
    if linux.intel_rdt not in (None, IntelRdt()):
        refuse("$.linux.intelRdt", "the processors of a VM have no cache or bandwidth to divide")
    if linux.memory_policy is not None:
        check_memory_policy(linux.memory_policy)
    if linux.personality is not None:
        check_personality(linux.personality)


def _check_sysctl(linux: Linux) -> None:
    for name, value in linux.sysctl.items():
        if sysctl_path(name) == "kernel/hostname":
            refuse("$.linux.sysctl", f"{quoted(name)} conflicts with the field $.hostname")
        if not value:
            refuse("$.linux.sysctl", f"{quoted(name)} has no value")


def _check_namespaces(linux: Linux) -> None:
    seen = set()
    for index, namespace in enumerate(linux.namespaces):
        path = f"$.linux.namespaces[{index}]"
        if namespace.type not in NAMESPACES:
            refuse(f"{path}.type", f"expected one of {NAMESPACES}, got {quoted(namespace.type)}")
        if namespace.type in seen:
            refuse(f"{path}.type", f"{namespace.type} is there twice")
        if namespace.path and namespace.type not in JOINABLE:
            refuse(
                f"{path}.path",
                f"a {namespace.type} namespace of the host cannot be joined from inside a VM",
            )
        if namespace.path and not namespace.path.startswith("/"):
            refuse(f"{path}.path", f"expected an absolute path, got {quoted(namespace.path)}")
        seen.add(namespace.type)
    check_users(linux)
    check_clocks(linux)


def sysctl_path(name: str) -> str:
    """A sysctl's path below /proc/sys; ConfigError when *name* cannot be one.

    As with sysctl(8), the first separator decides: in ``net.ipv4.conf.eth0/1.forwarding`` a
    slash stands for a dot, in ``net/ipv4/conf/eth0.1/forwarding`` dots are dots.
    """
    first = min((name.find(sign) for sign in "./" if sign in name), default=-1)
    if first >= 0 and name[first] == ".":
        name = name.translate({ord("."): "/", ord("/"): "."})
    parts = name.split("/")
    if first < 0 or not all(parts) or "." in parts or ".." in parts:
        refuse("$.linux.sysctl", f"expected names like net.core.somaxconn, got {quoted(name)}")
    return name


def config_warnings(config: Config) -> list[str]:
    """Everything in *config* that is accepted and not carried out, by JSON path."""
    warnings = process_warnings(config.process, "$.process")
    for name, section in (
        ("windows", config.windows),
        ("solaris", config.solaris),
        ("zos", config.zos),
        ("freebsd", config.freebsd),
    ):
        if section is not None:
            warnings.append(f"$.{name}: ignored: this is Linux")
    if config.linux.mount_label:
        warnings.append("$.linux.mountLabel: not applied: the guest has no SELinux policy")
    if config.linux.personality is not None and config.linux.personality.flags:
        warnings.append("$.linux.personality.flags: ignored: the specification defines none")
    for index, mount in enumerate(config.mounts):
        warnings += mount_warnings(mount, f"$.mounts[{index}]")
    return warnings + resource_warnings(config.linux.resources)


def process_warnings(process: Process, path: str) -> list[str]:
    """As config_warnings, of a process section at JSON *path*."""
    warnings = []
    if process.apparmor_profile not in ("", "unconfined"):
        warnings.append(f"{path}.apparmorProfile: not applied: the guest has no AppArmor profiles")
    if process.selinux_label:
        warnings.append(f"{path}.selinuxLabel: not applied: the guest has no SELinux policy")
    unknown: set[str] = set()
    if sets := process.capabilities:
        for names in (
            sets.bounding,
            sets.effective,
            sets.inheritable,
            sets.permitted,
            sets.ambient,
        ):
            unknown.update(mask(names)[1])
    if unknown:
        names_text = ", ".join(quoted(name) for name in sorted(unknown))
        warnings.append(f"{path}.capabilities: unknown, left out: {names_text}")
    if sets and (lost := [name for name in sets.ambient if not _can_be_ambient(name, sets)]):
        warnings.append(
            f"{path}.capabilities.ambient: left out, not both permitted and inheritable: "
            f"{', '.join(quoted(name) for name in lost)}"
        )
    return warnings


def _can_be_ambient(name: str, sets: Capabilities) -> bool:
    return name not in CAPABILITIES or (name in sets.permitted and name in sets.inheritable)
