"""A further container in the VM of another one (docs/pods.md): the supervisor's side.

Its creator, a process in the host's own mount namespace, has looked at what config.json names there
and hands it over: descriptors of the mounts, of its stdio, and the text itself.
"""

from __future__ import annotations

import os

from cloche.base.errors import ClocheError, ConfigError, StateError
from cloche.base.kinds import convert
from cloche.base.loop import Future
from cloche.heart.blame import explained
from cloche.heart.container import Container
from cloche.heart.launch import Request
from cloche.heart.resources import memory_room
from cloche.model.cgroup import RESOURCES
from cloche.model.oci_linux import Resources
from cloche.model.plan import NAMESPACE_FLAGS
from cloche.model.plan_mounts import Sources
from cloche.model.problems import refuse
from cloche.model.state import CREATED
from cloche.model.update import check_room
from cloche.wire.messages import AgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cloche.heart.connection import Connection
    from cloche.heart.sandbox import Sandbox
    from cloche.model.host_cgroup import HostSetting

STDIO = 3
SIGKILL = 9
_JOINED = ("ipc", "pid", "uts")  # in the guest; the network is the VM's


class Member(Container):
    """A container that joined; its connection to the process that stands for it is its life."""

    def __init__(self, sandbox: Sandbox, request: Request, message: dict[str, Any]) -> None:
        super().__init__(sandbox, request)
        self.exited = Future()
        self._pid = int(message["pid"])
        self._joins: dict[str, str] = message["joins"]
        self._told: Sources = convert(message["sources"], Sources)
        self._fds: list[int] = []

    async def bring_up(self, fds: list[int]) -> list[str]:
        """Create it in the guest; *fds* are stdio, root and binds. Returns warnings."""
        self._fds = fds
        known = len(self.sandbox.warnings)
        self.sandbox.containers[self.id] = self
        try:
            self.prepare()
            self._refuse_what_the_vm_lacks()
            self.sandbox.warnings += self.bound_vm()
            self._join()
            self.init.pid = (await self._created())["pid"]
            self._save_created()
        except BaseException:
            self._abandon()
            raise
        self.init.exited.on_done(lambda done: self.sandbox.loop.start(self._dismiss(done)))
        warnings = self.sandbox.warnings[known:]
        del self.sandbox.warnings[known:]
        return warnings

    async def _created(self) -> dict[str, Any]:
        def not_wanted(_: object) -> None:
            self.sandbox.agent.call("delete", {"id": self.id})

        try:
            reply: dict[str, Any] = await self.sandbox.pulse.guard(
                self.create(), not_wanted, of_files=True
            )
        except AgentError as error:
            raise self.sandbox.pulse.explained(explained(error, self.config)) from None
        return reply

    def _save_created(self) -> None:
        try:
            self.save(CREATED)
        except ClocheError:
            self.sandbox.agent.call("delete", {"id": self.id})
            raise

    def _give_up_soon(self) -> None:
        """The VM is another's as well: it is not to end for a process that does not."""

    def _give_up(self, why: ClocheError) -> None:
        """It counts as killed, and is as soon as the guest obeys again."""
        self.vm_ended(str(why))

    def save(self, status: str) -> None:
        """As of a container with its own VM, and whose VM it is."""
        super().save(status)
        self.state.fields |= {"sandbox": self.sandbox.request.id, "vm_pid": 0}
        self.state.save()

    @property
    def host_pid(self) -> int:
        """The process that stands for it on the host."""
        return self._pid

    def signal(self, number: int) -> None:
        """What the process that stands for it was sent, or its end (SIGKILL)."""
        self.init.signal(number)

    def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal its new size."""
        self.init.resize(rows, columns)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of its terminal; 0, 0 without one."""
        return self.init.size

    def bound(self, settings: list[HostSetting], root: str) -> list[str]:
        """ConfigError for what could only bound the VM; returns warnings."""
        owner, warnings = self.sandbox.request.id, []
        for setting in settings:
            why = f"{root}.{setting.field}: the VM is that of container {owner}"
            if not setting.otherwise:
                raise ConfigError(why, hint=f"container {owner} can be given it, for all in its VM")
            warnings.append(f"{why}: {setting.otherwise}")
        return warnings

    def _find_sources(self) -> Sources:
        return self._told

    def _stdio(self) -> tuple[int, ...]:
        stdio, self._fds = self._fds[:STDIO], self._fds[STDIO:]
        return tuple(stdio)

    def _share_rootfs(self) -> str:
        return self.sandbox.share.attach(self._fds.pop(STDIO), f"{self.id}/rootfs")

    def _share_binds(self) -> None:
        for bind in self.sources.binds:
            self.sandbox.share.attach(self._fds.pop(STDIO), f"{self.id}/{bind.index}")

    def _refuse_what_the_vm_lacks(self) -> None:
        if self.config.vm is not None:
            refuse("$.vm", f"the VM is that of container {self.sandbox.request.id}")
        if self.request.glance.disks:
            why = (
                f"a block device of the host cannot be added to the VM of {self.sandbox.request.id}"
            )
            refuse("$.linux.devices", why)
        if any(namespace.type == "user" for namespace in self.config.linux.namespaces):
            refuse("$.linux.namespaces", "no user namespace can be had in another container's VM")
        room, cpus = memory_room(self.sandbox), self.sandbox.cpus
        try:
            check_room(Resources(), self.config.linux.resources, room=room, cpus=cpus)
        except ConfigError as error:
            owner = self.sandbox.request.id
            error.message = error.message.replace("$", RESOURCES, 1)
            error.hint = (
                f"the VM was sized by the limits of {owner}; recreate {owner} with larger ones"
            )
            raise

    def _join(self) -> None:
        for name, container_id in self._joins.items():
            if name in _JOINED:
                pid = self.sandbox.find(container_id).init.pid
                self.plan["join"].append([f"/proc/{pid}/ns/{name}", NAMESPACE_FLAGS[name]])

    def _abandon(self) -> None:
        for fd in self._fds:
            os.close(fd)
        if hasattr(self, "init"):
            self.init.abandon()
        self.sandbox.share.detach(self.id)
        self.sandbox.containers.pop(self.id, None)
        self.exited.set(1)

    async def _dismiss(self, ended: Future) -> None:
        """Its first process has ended: nothing of it stays in the guest, or in the share."""
        deleted = self.sandbox.agent.call("delete", {"id": self.id})
        try:
            await self.sandbox.pulse.guard(deleted, of_files=True)
        finally:
            self.sandbox.share.detach(self.id)
            self.sandbox.containers.pop(self.id, None)
            self.news().end()
            self.exited.set(ended.value)


async def join(connection: Connection, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
    """Create another container in this VM; its exit is told on the connection later."""
    try:
        connection.sandbox.pulse.require()
        member = await _admitted(connection.sandbox, message)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    warnings = await member.bring_up(fds)
    connection.process = member
    if connection.is_closed:
        member.signal(SIGKILL)  # whoever was to stand for it has ended meanwhile
    boot_ns, at = connection.sandbox.greeted()
    return {"warnings": warnings, "boot_ns": boot_ns, "at_ms": int(at * 1000)}


async def _admitted(sandbox: Sandbox, message: dict[str, Any]) -> Member:
    """What is to be created; ConfigError or StateError when it cannot be."""
    earlier = sandbox.containers.get(str(message["id"]))
    if isinstance(earlier, Member):
        await sandbox.pulse.guard(
            earlier.exited
        )  # it was deleted, and its process has not quite gone
    elif earlier is not None:
        raise StateError(f"container {earlier.id}: exists already")
    request = Request(
        root=sandbox.request.root,
        container_id=str(message["id"]),
        bundle=str(message["bundle"]),
        settings=sandbox.request.settings,
        console_socket=str(message["console_socket"]),
        foreground=bool(message["foreground"]),
        limits=message.get("limits") or (),
    )
    return Member(sandbox, request, message)
