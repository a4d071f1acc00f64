"""An image and the flags of `cloche do` as an OCI config.json, as Docker would write it."""

from __future__ import annotations

import math
import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from cloche.base.errors import ConfigError, NotFoundError
from cloche.image import defaults
from cloche.image.accounts import ResolvedUser, resolve_user

if TYPE_CHECKING:
    from cloche.image.model import Image

OCI_VERSION = "1.0.2"
NETWORK_ANNOTATION = "cloche.network"
STOP_SIGNAL_ANNOTATION = (
    "org.opencontainers.image.stopSignal"  # as the image specification names it
)
NETWORKS = ("user", "none")
CPU_PERIOD = 100_000  # µs, Docker's
MEMORY_MINIMUM = 6 << 20  # bytes, Docker's
CPU_MINIMUM = 0.01

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(?:([kmgtp])(?:i?b)?|b)?", re.IGNORECASE)


class DoOptions(NamedTuple):
    """The flags of `cloche do`, as the user wrote them; empty means: not given.

    *env* holds "NAME=value", or "NAME" to pass cloche's own value on. *volumes* are
    "SRC:DST[:ro]". *memory* is a size ("512m"), *cpus* a number ("1.5"). *entrypoint* replaces the
    image's, and its command with it; "" as the only word removes it.
    """

    command: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    workdir: str = ""
    user: str = ""
    volumes: tuple[str, ...] = ()
    memory: str = ""
    cpus: str = ""
    hostname: str = ""
    tty: bool = False
    network: str = "user"
    read_only: bool = False
    entrypoint: tuple[str, ...] = ()


def bundle_config(image: Image, options: DoOptions) -> dict[str, Any]:
    """The config.json for running *image*: Docker's defaults, the image's wishes, the flags.

    root.path is the image's folder or its erofs file. Raises ConfigError or NotFoundError naming
    the flag.
    """
    user = _user(image, options)
    config = {
        "ociVersion": OCI_VERSION,
        "process": _process(image, options, user),
        "root": {"path": str(image.rootfs or image.erofs), "readonly": options.read_only},
        "mounts": _mounts(options),
        "annotations": _annotations(image, options),
        "linux": {
            "namespaces": [{"type": name} for name in defaults.NAMESPACES],
            "resources": _resources(options),
            "maskedPaths": list(defaults.MASKED_PATHS),
            "readonlyPaths": list(defaults.READ_ONLY_PATHS),
        },
    }
    if options.hostname:
        config["hostname"] = _hostname(options.hostname)
    return config


def _process(image: Image, options: DoOptions, user: ResolvedUser) -> dict[str, Any]:
    return {
        "terminal": options.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)},
        "args": arguments(image, options),
        "env": _environment(image, options),
        "cwd": _working_dir(image, options),
        "capabilities": _capabilities(user),
        "noNewPrivileges": False,
    }


def arguments(image: Image, options: DoOptions) -> list[str]:
    """What is executed: entrypoint and command by Docker's rules; ConfigError if that is nothing.

    A command replaces the image's CMD, an entrypoint replaces ENTRYPOINT and drops CMD.
    """
    if options.entrypoint:
        entrypoint = () if options.entrypoint == ("",) else options.entrypoint
        words = entrypoint + options.command
    else:
        words = image.config.entrypoint + (options.command or image.config.cmd)
    if not words:
        raise ConfigError(
            f"image {image.source}: no command given, and the image names none",
            hint=f"add one: cloche do {image.source} sh",
        )
    return list(words)


def _environment(image: Image, options: DoOptions) -> list[str]:
    """Docker's defaults, overridden by the image's variables, those by the flags."""
    merged = {"PATH": defaults.PATH}
    if options.hostname:
        merged["HOSTNAME"] = options.hostname
    if options.tty:
        merged["TERM"] = "xterm"
    for entry in image.config.env:
        name, _, value = entry.partition("=")
        merged[name] = value
    for entry in options.env:
        name, equals, value = entry.partition("=")
        if not name:
            raise ConfigError(f"--env {entry!r}: no name before the '='", hint="--env NAME=value")
        if equals:
            merged[name] = value
        elif name in os.environ:
            merged[name] = os.environ[name]
        else:
            merged.pop(name, None)  # as Docker does: unset outside means unset inside
    return [f"{name}={value}" for name, value in merged.items()]


def _working_dir(image: Image, options: DoOptions) -> str:
    if options.workdir and not options.workdir.startswith("/"):
        raise ConfigError(
            f"--workdir {options.workdir}: not an absolute path", hint="start it with /"
        )
    return _absolute(options.workdir or image.config.working_dir)


def _absolute(path: str) -> str:
    """*path* from the root on, without doubled slashes, "." and ".."."""
    return "/" + os.path.normpath(f"/{path}").lstrip("/")


def _user(image: Image, options: DoOptions) -> ResolvedUser:
    try:
        return resolve_user(options.user or image.config.user, image.accounts)
    except (ConfigError, NotFoundError) as error:
        origin = "--user" if options.user else f"image {image.source}"
        raise type(error)(f"{origin}: {error.message}", hint=error.hint) from error


def _capabilities(user: ResolvedUser) -> dict[str, list[str]]:
    """Docker's 14; another user than root has them as bounding set only, as after an execve."""
    sets = ("bounding", "effective", "permitted") if user.uid == 0 else ("bounding",)
    return {name: list(defaults.CAPABILITIES) for name in sets}


def _hostname(name: str) -> str:
    if len(name) > 63 or re.fullmatch(r"[0-9A-Za-z]([0-9A-Za-z.-]*[0-9A-Za-z])?", name) is None:
        raise ConfigError(
            f"--hostname {name!r}: letters, digits, '-' and '.' only, at most 63",
            hint="choose another name",
        )
    return name


def _annotations(image: Image, options: DoOptions) -> dict[str, str]:
    if options.network not in NETWORKS:
        raise ConfigError(f"--network {options.network}: unknown", hint="use user or none")
    found = {NETWORK_ANNOTATION: options.network}
    if image.config.stop_signal:
        found[STOP_SIGNAL_ANNOTATION] = image.config.stop_signal
    return found


def _mounts(options: DoOptions) -> list[dict[str, Any]]:
    """Docker's mounts and the binds; a bind replaces a default with the same destination."""
    binds = [parse_volume(text) for text in options.volumes]
    taken = [bind["destination"] for bind in binds]
    for destination in taken:
        if taken.count(destination) > 1:
            raise ConfigError(f"--volume: {destination} is named twice", hint="leave one out")
    kept = [mount for mount in defaults.mounts() if mount["destination"] not in taken]
    # Outer ones first, or an outer one would hide what was mounted below it. The sort is stable.
    return sorted(kept + binds, key=lambda mount: str(mount["destination"]).count("/"))


def parse_volume(text: str) -> dict[str, Any]:
    """The bind mount that `SRC:DST[:ro|rw]` means; raises ConfigError, NotFoundError.

    SRC may be relative to the current folder and hold no colon; it must exist.
    """
    parts = text.split(":")
    flag = f"--volume {text}"
    if len(parts) not in (2, 3) or not all(parts):
        raise ConfigError(f"{flag}: not SRC:DST or SRC:DST:ro", hint="both are paths")
    mode = parts[2] if len(parts) == 3 else "rw"
    if mode not in ("ro", "rw"):
        raise ConfigError(f"{flag}: unknown mode {mode!r}", hint="use ro or rw")
    destination = _absolute(parts[1])
    if not parts[1].startswith("/") or destination == "/":
        raise ConfigError(
            f"{flag}: {parts[1]} is not an absolute path below /", hint="such as /data"
        )
    source = os.path.abspath(parts[0])
    if not os.path.exists(source):
        raise NotFoundError(f"{flag}: {source} does not exist", hint="make it, or check the path")
    options = ["rbind", mode, "rprivate"]
    return {"destination": destination, "type": "bind", "source": source, "options": options}


def _resources(options: DoOptions) -> dict[str, Any]:
    resources: dict[str, Any] = {"devices": defaults.device_rules()}
    if options.memory:
        resources["memory"] = {"limit": parse_memory("--memory", options.memory)}
    if options.cpus:
        quota = round(parse_cpus("--cpus", options.cpus) * CPU_PERIOD)
        resources["cpu"] = {"quota": quota, "period": CPU_PERIOD}
    return resources


def parse_size(flag: str, text: str) -> int:
    """Bytes of a size as Docker takes it ("512m", "1.5g", "64MiB", "4096"): powers of 1024.

    Raises ConfigError that names *flag*.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{flag} {text!r}: not a size", hint="such as 512m or 2g")
    exponent = " kmgtp".index((match[2] or " ").lower())
    return int(float(match[1]) * 1024**exponent)


def parse_memory(flag: str, text: str) -> int:
    """Bytes of a memory limit; ConfigError below Docker's minimum of 6 MiB."""
    size = parse_size(flag, text)
    if size < MEMORY_MINIMUM:
        raise ConfigError(f"{flag} {text}: the least is 6m", hint="such as 512m or 2g")
    return size


def parse_cpus(flag: str, text: str) -> float:
    """A number of CPUs, fractions allowed; ConfigError that names *flag*."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not CPU_MINIMUM <= number <= 4096:
        raise ConfigError(
            f"{flag} {text!r}: not a number from {CPU_MINIMUM} on", hint="such as 2 or 0.5"
        )
    return number
