"""What `create` and `run` know before QEMU starts, and the fork of the supervisor.

Imported on the start path before QEMU runs: json, os and nothing more. config.json is only
glanced at here, for the VM's size and network; the supervisor parses it strictly while QEMU starts.
"""

from __future__ import annotations

import os
from time import monotonic_ns

from cloche.base import fastjson
from cloche.base.descriptors import close_others
from cloche.base.errors import ClocheError, ConfigError
from cloche.base.limits import own_limits
from cloche.base.lines import LineReader, encode
from cloche.base.quick import suppress
from cloche.model.cpus import cpu_limit
from cloche.model.state import check_id
from cloche.vmm.shape import MIB, memory_step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from typing import Any

    from cloche.base.limits import Rlimits
    from cloche.model.config import Settings

NEW_NETWORK = "new"
HOST_NETWORK = "host"
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1
_LONGEST_NAME = 4095


class Timings:
    """When the phases of a start were reached, in ns of CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self.marks: list[tuple[str, int]] = []

    def mark(self, name: str) -> None:
        """Phase *name* is reached now."""
        self.marks.append((name, monotonic_ns()))


class Request:
    """One container to be created in a VM of its own.

    *foreground*: the caller follows it to its end; *ends_with_caller*: it is killed if the caller
    is. *at_once*: it is started as soon as it is created. *image* is an erofs image that goes to
    a block slot as its root. *keep* are descriptors that the supervisor is to hold, *limits* the
    resource limits of the caller, where that is not this process. *debug*: it tells how it was
    started. *host_loopback* are the ports of the host's loopback that a user-mode network leads to;
    None: all of them.
    """

    def __init__(
        self,
        *,
        root: str,
        container_id: str,
        bundle: str,
        settings: Settings,
        console_socket: str = "",
        foreground: bool = False,
        image: str = "",
        user_network: bool = False,
        at_once: bool = False,
        ends_with_caller: bool = False,
        keep: Sequence[int] = (),
        debug: bool = False,
        limits: Rlimits = (),
        host_loopback: Collection[int] | None = None,
    ) -> None:
        self.root = root
        self.id = check_id(container_id)
        self.bundle = os.path.abspath(bundle)
        self.settings = settings
        # Another process than the caller's, with another working directory, may look for it.
        self.console_socket = console_socket and os.path.abspath(console_socket)
        self.foreground = foreground
        self.image = image
        self.user_network = user_network
        self.at_once = at_once
        self.ends_with_caller = ends_with_caller
        self.debug = debug
        self.host_loopback = host_loopback
        # All that the supervisor has of its caller's descriptors, beside stdio.
        self.kept = [*keep]
        # The container's processes get those that config.json does not name, as from runc; cloche
        # and QEMU have what this process could raise them to.
        self.limits = limits or own_limits()
        self.raised = self.limits
        self.caller = os.getpid()
        # Signals that arrived before the program ran, for whoever follows it.
        self.early_signals: list[int] = []
        self.interrupted = False
        # The supervisor hands signals on, instead of ending of them.
        self.is_listening = False
        # Hooks have been run, so poststop hooks are due whatever comes.
        self.hooks_ran = False
        self.timings = Timings()
        self.glance = Glance(os.path.join(self.bundle, "config.json"))

    @property
    def directory(self) -> str:
        """The sandbox's directory."""
        return os.path.join(self.root, self.id)

    def has_user_network(self) -> bool:
        """Whether QEMU's user-mode network serves it: asked for, or in place of the host's."""
        return self.user_network or self.glance.network == HOST_NETWORK

    def has_own_empty_network(self) -> bool:
        """Whether the network namespace is new and no hook puts anything into it."""
        return (
            self.glance.network == NEW_NETWORK
            and not self.glance.has_network_hooks
            and not self.user_network
        )

    def stays_alone(self) -> bool:
        """Whether there is nobody who could put an interface into the namespace before `start`."""
        return self.at_once and self.has_own_empty_network()

    def memory_mib(self) -> int:
        """The VM's memory in MiB."""
        own = self.glance.vm_memory
        return -(-own // MIB) if own is not None else memory_step(self.glance.memory)


class Glance:
    """The few values of config.json that QEMU's start depends on.

    They are used before the strict parser has read the file. So where anything about them is odd,
    that parser is asked at once, and says what is wrong before there is anything to take back.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.memory: int | None = None
        self.cpus: float | None = None
        self.network = HOST_NETWORK
        # Kind of a namespace → the process of the host whose namespace is to be joined.
        self.joins: dict[str, int] = {}
        self.has_network_hooks = False
        self.hooks: dict[str, list[dict[str, Any]]] = {}
        # The container's root, relative to the bundle, and its process's environment: for hooks.
        self.root_path = ""
        self.env: list[str] = []
        self.annotations: dict[str, str] = {}
        self.terminal = False
        self.oom_score_adj: int | None = None
        self.cgroups_path = ""
        # The `vm` section as it is in the file, and the bytes of memory that it asks for.
        self.vm: Any = None
        self.vm_memory: int | None = None
        self.root_readonly = False
        # Device number → whether it is only read (cloche.model.disks).
        self.disks: dict[tuple[int, int], bool] = {}
        data = _read(path)
        try:
            self._look(fastjson.loads(data))
        except (ValueError, TypeError, AttributeError, KeyError):
            _check(path)
            raise ConfigError(f"{path}: $: not usable") from None
        if b"\\u0000" in data:  # no name on the host may hold one
            _check(path)

    def _look(self, config: dict[str, Any]) -> None:
        linux = config.get("linux") or {}
        resources = linux.get("resources") or {}
        memory = _whole((resources.get("memory") or {}).get("limit"), _LEAST, _MOST)
        if memory is not None and memory > 0:
            self.memory = memory
        cpu = resources.get("cpu") or {}
        quota, period = _whole(cpu.get("quota"), _LEAST, _MOST), _whole(cpu.get("period"), 0, _MOST)
        self.cpus = cpu_limit(quota, period, _text(cpu.get("cpus")))
        for namespace in linux.get("namespaces") or []:
            kind, path = namespace.get("type"), _text(namespace.get("path"))
            if kind == "network":
                self.network = _network(path)
            words = path.split("/")
            if words[:2] == ["", "proc"] and words[3:4] == ["ns"] and words[2].isdigit():
                self.joins[kind] = int(words[2])
        hooks = config.get("hooks") or {}
        self.has_network_hooks = bool(hooks.get("prestart") or hooks.get("createRuntime"))
        self.hooks = {kind: each for kind, each in hooks.items() if each}
        self.annotations = dict(config.get("annotations") or {})
        process = config.get("process") or {}
        self.terminal = bool(process.get("terminal"))
        if self.hooks:
            self.root_path = _text((config.get("root") or {}).get("path"))
            self.env = [each for each in process.get("env") or [] if isinstance(each, str)]
        self.oom_score_adj = _whole(process.get("oomScoreAdj"), -1000, 1000)
        self.cgroups_path = _text(linux.get("cgroupsPath"))
        self.vm = config.get("vm")
        if self.vm is not None:
            size = self.vm.get("hwConfig") or self.vm.get("hwconfig") or {}
            self.vm_memory = _whole(size.get("memory"), 0, _MOST)
            self.root_readonly = bool((config.get("root") or {}).get("readonly"))
        blocks = [each for each in linux.get("devices") or [] if each.get("type") == "b"]
        sources = [each for each in config.get("mounts") or [] if _may_be_of_a_disk(each)]
        if blocks or sources:
            from cloche.model.disks import chosen_disks

            self.disks = chosen_disks(blocks, sources, resources.get("devices") or [])


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: JSON specification file config.json not found",
            hint="`cloche spec` writes one; --bundle names the folder it is in",
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: {(error.strerror or '').lower()}") from None


def _check(path: str) -> None:
    """Have the strict parser say what is wrong with the config at *path*, if anything is."""
    from cloche.model.oci import load_config

    load_config(path)


def _whole(value: object, low: int, high: int) -> int | None:
    """A number from *low* to *high*, or None where there is none; ValueError for all else."""
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError("no such number")
    return value


def _text(value: object) -> str:
    """A string that may name a file; empty where there is none, ValueError for all else."""
    text = value or ""
    if not isinstance(text, str) or len(text.encode()) > _LONGEST_NAME:
        raise ValueError("no such text")
    return text


def _may_be_of_a_disk(mount: dict[str, Any]) -> bool:
    kind, source = mount.get("type") or "bind", mount.get("source") or ""
    return source.startswith("/") and kind not in ("bind", "rbind", "none")


def _network(path: str) -> str:
    """The namespace at *path*; the host's has a path as well, if an engine's user asked for it."""
    if not path:
        return NEW_NETWORK
    with suppress(OSError):  # who enters it will say what is wrong with it
        named = os.stat(path)
        for pid in ("self", "1"):
            own = os.stat(f"/proc/{pid}/ns/net")
            if (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino):
                return HOST_NETWORK
    return path


def make_directory(request: Request) -> None:
    """Claim the id: its directory must not exist yet."""
    try:
        _make_root(request.root)
        try:
            os.mkdir(request.directory, mode=0o700)
        except FileExistsError:
            _clear_abandoned(request)
            os.mkdir(request.directory, mode=0o700)
        request.kept.append(_hold(request.directory))
    except (FileExistsError, BlockingIOError):
        raise ClocheError(
            f"container with id {request.id} exists already",
            hint=f"cloche delete {request.id} removes it",
        ) from None
    except OSError as error:
        raise ClocheError(
            f"container {request.id}: cannot make {request.directory}: "
            f"{(error.strerror or '').lower()}",
            hint="cloche must run as root; --root names another place",
        ) from None


def _make_root(root: str) -> None:
    """The folder of all containers, where it is not there yet."""
    try:
        os.makedirs(root, mode=0o700, exist_ok=True)
    except FileExistsError:
        raise ClocheError(f"--root {root}: not a directory") from None


def _hold(directory: str) -> int:
    """Lock *directory* for as long as the descriptor returned is open here, or in a fork."""
    import fcntl

    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd


def _clear_abandoned(request: Request) -> None:
    """Remove what a creation under this id left that was killed before there was a container."""
    if os.path.exists(os.path.join(request.directory, "state.json")):
        return
    with suppress(BlockingIOError):  # somebody is at it
        _hold(request.directory)
        from cloche.heart.cleanup import clear

        clear(request.root, request.id, request.glance.cgroups_path)


def fork_supervisor(request: Request, supervise: Callable[[Request, int], int]) -> tuple[int, int]:
    """Fork the process that stands for the container; returns its pid and the channel to it.

    Both ends of the channel speak JSON lines: the supervisor reports its steps, the parent
    answers that hooks have run. The end of the channel before `created` means: give up. The
    supervisor has the caller's stdio and what the request keeps, and no other descriptor.
    """
    import _socket  # socket proper imports selectors and enum, 5 ms

    ours, theirs = _socket.socketpair()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours.detach()
    status = 1
    try:
        channel = theirs.detach()
        close_others({channel, *request.kept})
        status = supervise(request, channel)
    finally:
        os._exit(status)


class Channel(LineReader):
    """JSON lines over one end of the socket pair, blocking."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.fd = fd

    def send(self, message: dict[str, Any]) -> None:
        """Write one message; a reader that is gone is not an error here."""
        with suppress(OSError):
            os.write(self.fd, encode(message))

    def close(self) -> None:
        """Close our end."""
        os.close(self.fd)
