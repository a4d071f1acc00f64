"""A container: its plan, its state on disk, its processes."""

from __future__ import annotations

import os
import time

from cloche.base.errors import ClocheError, ConfigError, StateError
from cloche.base.quick import suppress
from cloche.heart.process import SIGKILL, GuestProcess
from cloche.heart.stdio import stdio_of
from cloche.host.cgroup import apply, relative_path
from cloche.model.cgroup import RESOURCES
from cloche.model.host_cgroup import host_settings
from cloche.model.oci import Config, Process, load_config
from cloche.model.plan import Layout, compile_container, compile_process, host_sources
from cloche.model.problems import refuse
from cloche.model.state import CREATED, OCI_VERSION, PAUSED, State, process_start_time
from cloche.vmm.argv import disk_serial
from cloche.wire.messages import AgentError, TooLongError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cloche.base.limits import Rlimits
    from cloche.base.loop import Future
    from cloche.heart.launch import Request
    from cloche.heart.news import OomNews
    from cloche.heart.sandbox import Sandbox
    from cloche.host.view import View
    from cloche.model.host_cgroup import HostSetting
    from cloche.model.oci_linux import Resources
    from cloche.model.plan_mounts import Sources

SIGHUP, SIGCONT = 1, 18  # signal proper makes enumerations of them all, 2 ms
# A program that does not end of the hang-up is killed then: nobody else would.
HANG_UP_S = 5.0
IMAGE_ROOT = "/run/image"
# Characters of it that are looked at: its source is any file that the bundle names.
RESOLV_CONF_MOST = 65536
IMAGE_MERGED = "/run/root"


class Container:
    """One container of a sandbox, from its config.json to its end."""

    init: GuestProcess

    def __init__(self, sandbox: Sandbox, request: Request) -> None:
        self.sandbox = sandbox
        self.request = request
        self.id = request.id
        self.config: Config
        self.sources: Sources
        self.resources: Resources  # as they are now, updates included
        self.plan: dict[str, Any] = {}
        self.processes: dict[str, GuestProcess] = {}
        self.paused_from = CREATED
        self._news: OomNews | None = None
        self.state = State(request.root, request.id, {"status": "creating"})

    def prepare(self) -> None:
        """Parse config.json, bind what it shares, compile the plan. Raises ConfigError."""
        self.config = load_config(self.request.glance.path)
        self.resources = self.config.linux.resources
        self._check_console()
        self.sources = self._find_sources()
        rootfs = self._share_rootfs()
        self._share_binds()
        agent = self.sandbox.agent
        self.init = GuestProcess(
            agent,
            self.id,
            None,
            self._stdio(),
            terminal=self.config.process.terminal,
            is_ours=self.request.foreground,
        )
        layout = Layout(
            rootfs=rootfs,
            volume=lambda index: f"{self.sandbox.guest_share}/{self.id}/{index}",
            disks={
                number: disk_serial(index) for index, number in enumerate(self.request.glance.disks)
            },
            shm=self.sandbox.shared_memory,
        )
        plan, warnings = compile_container(
            self.config,
            bundle=self.request.bundle,
            container_id=self.id,
            layout=layout,
            cgroup=self.id,
            streams=self.init.streams,
            terminal_size=self._terminal_size(),
            seccomp_cache=self.seccomp_cache,
            sources=self.sources,
            limits=self.request.limits,
        )
        process: Any = plan["process"]
        process.update(self.init.terminal_plan)
        self.plan = plan
        self.sandbox.warnings += warnings

    def news(self) -> OomNews:
        """What is told of kills for want of memory, and to whom."""
        if self._news is None:
            from cloche.heart.news import OomNews

            self._news = OomNews(self.sandbox.loop)
        return self._news

    @property
    def seccomp_cache(self) -> str:
        """Where compiled seccomp profiles are kept."""
        return os.path.join(self.request.settings.data_root, "seccomp")

    @property
    def host_cgroup(self) -> str:
        """The cgroup on the host of supervisor and QEMU, below the root of each hierarchy."""
        return relative_path(self.request.glance.cgroups_path, self.id)

    def bound_vm(self) -> list[str]:
        """Write what bounds the VM as a whole to the host's cgroup, which must be there.

        Returns warnings; errors as of host.cgroup.apply.
        """
        return self.bound(host_settings(self.resources), RESOURCES)

    def bound(self, settings: list[HostSetting], root: str) -> list[str]:
        """As bound_vm, of *settings* of resources at JSON path *root*."""
        return apply(self.host_cgroup, settings, root)

    @property
    def host_pid(self) -> int:
        """The process that stands for it on the host."""
        return os.getpid()

    @property
    def rootfs(self) -> str:
        """The root folder on the host."""
        return rootfs_of(self.request, self.config)

    @property
    def has_root_image(self) -> bool:
        """Whether its root is a file system in an image, as `vm.image` in config.json asks for."""
        return self.config.vm is not None and self.config.vm.image is not None

    def _share_rootfs(self) -> str:
        if self.request.image:
            return IMAGE_MERGED
        if self.has_root_image:
            return IMAGE_ROOT
        if not os.path.isdir(self.rootfs):
            exists = os.path.lexists(self.rootfs)
            cause = "not a directory" if exists else "no such file or directory"
            raise ConfigError(
                f"{self.request.glance.path}: $.root.path: {self.rootfs}: {cause}",
                hint="the bundle's root file system must be mounted or unpacked there",
            )
        return self.sandbox.share.bind(self.rootfs, f"{self.id}/rootfs")

    def _find_sources(self) -> Sources:
        for index, namespace in enumerate(self.config.linux.namespaces):
            if namespace.path and namespace.type != "network":
                refuse(f"$.linux.namespaces[{index}].path", "no container of this VM has it")
        return host_sources(self.config, self.request.bundle)

    def _share_binds(self) -> None:
        for bind in self.sources.binds:
            self.sandbox.share.add(bind, f"{self.id}/{bind.index}")

    def open_view(self) -> View | None:
        """Show the root folder to those who enter our mount namespace; None for an image."""
        if self.request.image or self.has_root_image:
            return None
        from cloche.host.view import View

        return View(self.rootfs, os.path.join(self.request.directory, "view"))

    def _stdio(self) -> tuple[int, ...]:
        return stdio_of(self.request, self.config)

    def _terminal_size(self) -> tuple[int, int] | None:
        size = self.init.size
        return size if size != (0, 0) else None

    def resolv_conf(self) -> str:
        """The container's /etc/resolv.conf as the host knows it, or nothing."""
        for mount in self.config.mounts:
            if mount.destination == "/etc/resolv.conf" and mount.source:
                path = os.path.join(self.request.bundle, mount.source)
                try:
                    # Not to be waited for: the guest may have put a FIFO there.
                    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                    with open(fd, "rb", buffering=0) as file:
                        return (file.read(RESOLV_CONF_MOST) or b"").decode(errors="replace")
                except OSError:
                    return ""
        return ""

    def adopts_network(self, network: dict[str, Any]) -> bool:
        """Have *network* set up along with the container, where its users are to own it."""
        users = self.plan.get("users")
        if users is not None:
            users["network"] = network
        return users is not None

    def _check_console(self) -> None:
        request, terminal = self.request, self.config.process.terminal
        if terminal and not (request.console_socket or request.foreground):
            raise ConfigError(
                "cannot allocate tty if cloche will detach without setting console socket",
                hint="pass --console-socket, or set process.terminal to false",
            )
        if request.console_socket and (request.foreground or not terminal):
            raise ConfigError(
                "cannot use console socket if cloche will not detach or allocate tty",
                hint="leave --console-socket out, or set process.terminal to true",
            )

    def create(self) -> Future:
        """Ask the guest to create it; ConfigError where all of it is too much to be asked for."""
        try:
            future = self.sandbox.agent.call("create", self.plan)
        except TooLongError as error:
            raise ConfigError(f"{self.request.glance.path}: $: {error.message}") from None
        self.init.begin_input()
        return future

    def start(self) -> Future:
        """Ask the guest to run its program."""
        return self.sandbox.agent.call("start", {"id": self.id})

    def save(self, status: str) -> None:
        """Write the state file: from now on other verbs see the container."""
        pid = self.host_pid
        now = time.time_ns()
        self.state.fields = {
            "ociVersion": OCI_VERSION,
            "status": status,
            "pid": pid,
            "pid_start": process_start_time(pid),
            "vm_pid": self.sandbox.vm.pid,
            "bundle": self.request.bundle,
            "rootfs": self.rootfs,
            "created": _rfc3339(now),
            "annotations": dict(self.config.annotations),
            "hooks": self._later_hooks(),
            "cgroup": self.host_cgroup,
        }
        self.state.save()

    def _later_hooks(self) -> dict[str, Any]:
        """The hooks that are due after the creation.

        They are kept, since no later change of config.json may matter (runtime.md, Create).
        """
        hooks = self.request.glance.hooks
        return {kind: hooks[kind] for kind in ("poststart", "poststop") if kind in hooks}

    def require(self, *statuses: str) -> None:
        """StateError unless the status is one of *statuses*."""
        status = self.state.fields["status"]
        if status not in statuses:
            raise StateError(f"container {self.id}: {status}, not {' or '.join(statuses)}")

    def set_status(self, status: str) -> None:
        """Change the status, on disk too; where that cannot be, ClocheError and no change."""
        before = self.state.fields["status"]
        self.state.fields["status"] = status
        try:
            self.state.save()
        except ClocheError:
            self.state.fields["status"] = before
            raise

    def has_become(self, before: str, status: str) -> None:
        """The guest has done late, or not, what changes the status from *before* to *status*.

        On a full disk it is known here only.
        """
        if self.state.fields["status"] == before:
            self.state.fields["status"] = status
            with suppress(ClocheError):
                self.state.save()

    def hang_up(self) -> None:
        """Its terminal is gone with the command in the foreground, which was killed."""
        for number in (SIGHUP, SIGCONT):
            self.init.signal(number)
        loop = self.sandbox.loop
        loop.call_later(HANG_UP_S, lambda: loop.start(self.kill(everything=False)))

    async def kill(self, *, everything: bool) -> None:
        """SIGKILL for its first process, or for all: whatever the guest does, that ends it.

        AgentError (ESRCH) where there is nothing left to be killed.
        """
        agent = self.sandbox.agent
        if self.state.fields["status"] == PAUSED:
            agent.call("freeze", {"id": self.id, "frozen": False})
        try:
            signalled = self.init.signal(SIGKILL, everything=everything)
            self._give_up_soon()
            await self.sandbox.pulse.guard(signalled)
        except AgentError:
            raise
        except ClocheError as error:  # silent, overloaded, at its end already
            self._give_up(error)

    def _give_up_soon(self) -> None:
        """The guest has some seconds to obey."""
        self.sandbox.kill_soon()

    def _give_up(self, why: ClocheError) -> None:
        """The guest does not obey: its VM is this container's."""
        self.sandbox.vm.kill(ClocheError(f"VM: killed, as was asked for: {why.message}"))

    def new_process(
        self,
        exec_id: str,
        process: Process,
        fds: tuple[int, ...],
        *,
        foreground: bool,
        limits: Rlimits,
    ) -> tuple[GuestProcess, dict[str, Any], list[str]]:
        """An exec'ed process, its plan and warnings.

        *foreground*: its terminal, if it has one, is shown on the caller's own. *limits* are the
        caller's.
        """
        guest = GuestProcess(
            self.sandbox.agent,
            self.id,
            exec_id,
            fds,
            terminal=process.terminal,
            is_ours=foreground,
        )
        size = guest.size
        plan: dict[str, Any]
        try:
            plan, warnings = compile_process(
                process,
                self.config,
                streams=guest.streams,
                terminal_size=size if size != (0, 0) else None,
                seccomp_cache=self.seccomp_cache,
                limits=limits,
            )
        except BaseException:
            guest.abandon()
            raise
        self.processes[exec_id] = guest
        return guest, plan | guest.terminal_plan, warnings

    def vm_ended(self, why: str) -> None:
        """Nothing runs any longer; *why* goes to the container's stderr, where logs show it."""
        if not self.init.exited.done:
            self.init.complain(f"cloche: {why}")
        for process in (self.init, *self.processes.values()):
            process.on_exit(SIGKILL)

    def on_exit(self, exec_id: object, status: int) -> None:
        """The guest reports the end of one of its processes."""
        if exec_id is None:
            self.init.on_exit(status)
            return
        process = self.processes.pop(str(exec_id), None)
        if process is not None:
            process.on_exit(status)


def rootfs_of(request: Request, config: Config) -> str:
    """The root folder on the host of the container of *request*."""
    return os.path.normpath(os.path.join(request.bundle, config.root.path))


def _rfc3339(nanoseconds: int) -> str:
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{fraction:09d}Z"
