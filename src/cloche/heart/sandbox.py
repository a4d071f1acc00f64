"""A sandbox: one VM, its agent and its containers. Every door is a translation onto this class."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # signal proper makes enumerations, 2 ms
import gc
import os
import time

from cloche.base.errors import ClocheError, StateError
from cloche.base.loop import Loop
from cloche.guest.guest import hold_kernel
from cloche.heart.agent import Agent
from cloche.heart.greeting import agent_mount, renewal
from cloche.heart.parent import Parent
from cloche.heart.pulse import FilesError, Pulse, SilentError
from cloche.host.ipv6 import own_loopback
from cloche.host.share import GUEST_SHARE
from cloche.model.state import CREATED, RUNNING, STOPPED
from cloche.wire.messages import AgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cloche.base.loop import Future
    from cloche.heart.container import Container
    from cloche.heart.control import ControlServer
    from cloche.heart.launch import Channel, Request
    from cloche.heart.machine import Machine
    from cloche.heart.modules import GuestModules
    from cloche.heart.network import GuestNetwork
    from cloche.host.share import Share
    from cloche.host.taps import Tap
    from cloche.host.view import View
    from cloche.model.plan_mounts import Shm
    from cloche.wire.messages import Event

KILL_TIMEOUT_S = 5.0
DRAIN_TIMEOUT_S = 5.0
# Taking down what shows a container's processes takes the kernel up to 20 ms, and each end of a
# container waits for that. One that has ended before is spared it.
VIEW_AFTER_S = 0.1
# A guest must not keep us busy with these; engines note the first one only.
OOM_INTERVAL_S = 1.0
MAX_WARNINGS = 100
NOT_THE_HOSTS = "network: a VM cannot share the host's: it has a user-mode network in its place"


class Sandbox:
    """One VM and the containers in it, from the launch of QEMU to the end of the last one."""

    def __init__(
        self,
        loop: Loop,
        request: Request,
        machine: Machine,
        share: Share,
        taps: list[Tap],
        channel: Channel,
    ) -> None:
        self.loop = loop
        self.request = request
        self.vm = vm = machine.vm
        self.share = share
        self.taps = taps
        self.memory_mib = machine.shape.memory
        self.cpus = machine.shape.cpus
        self.warnings = machine.warnings
        self.agent = Agent(vm, self._on_event)
        self.pulse = Pulse(loop, vm, self.agent, request.id, machine.files)
        self._machine = machine
        self.containers: dict[str, Container] = {}
        self.parent = Parent(loop, channel)
        # A caller that is gone wants no container: no need to wait for a boot.
        self.parent.gave_up.on_done(lambda _: self.vm.kill())
        vm.on_relaunch = self._relaunched
        self.control: ControlServer | None = None
        self.guest_share = GUEST_SHARE
        self.network: GuestNetwork | None = None
        self._modules: GuestModules | None = None
        self._hello: Future
        self._hello_at = 0.0
        self._shm: dict[str, str] = {}
        self._numbers = 0
        self._next_oom = 0.0
        self._interrupted = False
        self._is_refusal_told = False

    def next_number(self) -> int:
        """A number never given before in this sandbox."""
        self._numbers += 1
        return self._numbers

    async def run(self) -> int:
        """Bring the first container up, serve until it ends; returns its exit code."""
        steps = await self._greet()
        # The guest is busy with that: the rest of the imports, and the plan, cost no time.
        from cloche.heart.container import Container

        container = Container(self, self.request)
        self.containers[container.id] = container
        container.prepare()
        self.request.timings.mark("plan ready")
        await self._create(container, steps)
        self._serve(container)
        view = container.open_view()
        hold_kernel(self._machine.kernel_directory)
        container.save(RUNNING if self.request.at_once else CREATED)
        os.chdir("/")  # the caller's file system need not stay mounted for us
        self.pulse.keep()
        self.parent.created(
            self.warnings,
            self.request.timings.marks,
            interrupted=self._interrupted,
            debug=self._story() if self.request.debug else [],
            image=self._machine.image,
        )
        if view is not None:
            self._furnish(view, container)
        # What was imported stays; leaving it out of collections keeps its pages shared.
        gc.freeze()
        gc.enable()
        code = int(await container.init.exited)
        await self._shut_down(container)
        return code

    def _story(self) -> list[str]:
        """How the VM was started, for --debug."""
        size = f"{self.cpus} vCPU, {self.memory_mib} MiB"
        return [f"VM: {size}: QEMU is process {self.vm.pid}: {' '.join(self.vm.argv)}"]

    def _furnish(self, view: View, container: Container) -> None:
        """Show mounts and processes to those who enter our mount namespace, as engines do."""

        def now() -> None:
            from cloche.heart.view import furnish, show_guest

            folder = os.path.join(self.share.directory, container.id)
            furnish(view, container.config, folder, show_guest(container))

        if self.request.at_once:  # by no engine
            self.loop.call_later(VIEW_AFTER_S, now)
        else:
            now()

    async def _greet(self) -> list[Future]:
        """Once the VM runs: the requests that every container needs, not waited for."""
        await self._answered(self.vm.running)
        self.request.timings.mark("VM resumed")
        # When the guest will say what its clock shows, give or take some milliseconds.
        self._hello_at = time.monotonic()
        if self.vm.is_greeted:
            self._hello, *mounted = self.agent.expect(self._machine.greeting)
            self._hello.on_done(self._heard_of)
        else:
            self._hello = self.agent.hello()
            if self.vm.is_booting:
                # Nobody listens for seconds to come: a clock told now would be slow by them.
                await self._answered(self._hello)
            mounts = self._machine.greeting.requests[1:]
            mounted = [self.agent.call(op, fields) for op, fields in mounts]
        return [self._hello, *mounted, self.agent.call("renew", renewal(self.request.id))]

    def _heard_of(self, hello: Future) -> None:
        """A thawed guest that nothing is heard of is not tried again."""
        is_its_own = not self.parent.gave_up.done and not self.pulse.was_stopped
        if hello.error is not None and is_its_own:
            self._machine.distrust()

    def shared_memory(self, shm: Shm) -> str:
        """The folder in the guest that all containers with the shared memory *shm* have.

        A failure to make it is one of the `create` that follows: nothing is there to be bound.
        """
        from cloche.model.plan_mounts import shm_data

        if shm.source not in self._shm:
            target = self._shm[shm.source] = f"/run/shm/{len(self._shm)}"
            self.agent.call("mount", agent_mount("shm", target, "tmpfs", data=shm_data(shm.size)))
        return self._shm[shm.source]

    def greeted(self) -> tuple[int, float]:
        """What the guest's boot clock (ns) showed when it was greeted, and time.monotonic then."""
        return int(self._hello.value["boot_ns"]), self._hello_at

    async def _answered(self, *steps: Future) -> None:
        """Wait for what the guest does before there is a container; BootError if it is silent."""
        for step in steps:
            try:
                await self.pulse.guard(step, of_files=True)
            except FilesError:
                raise
            except SilentError as error:
                raise self.vm.failure(error.message) from None

    async def _create(self, container: Container, steps: list[Future]) -> None:
        """From a guest that was greeted to a container that waits for `start`."""
        if self.request.image:
            from cloche.heart import root_image

            steps += [self.agent.call("mount", mount) for mount in root_image.layers()]
        if container.has_root_image:
            from cloche.heart import root_image

            self.pulse.is_slow = True
            mount = root_image.mount(self.agent, read_only=self.request.glance.root_readonly)
            await self._answered(*steps, self.loop.start(mount))
        if self.request.glance.hooks:
            await self.parent.hooks_done()  # they may put an interface into the namespace
        network = self._network(container)
        if network is not None and not container.adopts_network(network):
            steps.append(self.agent.call("network", network))
        created = container.create()
        steps.append(created)
        # Its program is to run in its cgroup on the host; making it need not wait for that.
        await self.parent.hooks_done()
        await self.parent.joined()
        self.request.timings.mark("hooks done")
        self._listen(container)
        self.warnings += container.bound_vm()  # the guest is busy, and has not started it yet
        if self.request.at_once:
            steps.append(container.start())
        # What is needed once it runs: while the program runs, it is in its way.
        import cloche.heart.control

        if not self.request.at_once:  # by an engine, which asks for more
            import cloche.heart.connection  # noqa: F401

        try:
            await self._answered(*steps)
        except AgentError as error:
            from cloche.heart.blame import explained

            raise self.pulse.explained(explained(error, container.config)) from None
        container.init.pid = int(created.value["pid"])
        self.request.timings.mark("program runs" if self.request.at_once else "container created")

    def _relaunched(self, why: str) -> None:
        """QEMU was relaunched; report its new pid."""
        self.warnings.append(why)
        self.parent.relaunched(self.vm.pid)

    def _network(self, container: Container) -> dict[str, Any] | None:
        """The `network` request for what the namespace holds; None for a plain loopback only."""
        if self.request.has_own_empty_network():
            # Looked at again at `start`, should somebody fill it until then.
            return own_loopback()
        if not self.taps and not self.request.has_user_network():
            return own_loopback()
        from cloche.heart.network import GuestNetwork

        self.network = GuestNetwork(self.loop, self.agent)
        if not self.taps:
            if not self.request.user_network:
                self.warnings.append(NOT_THE_HOSTS)
            return self.network.user_mode(container.resolv_conf())
        return self.network.adopt(self.taps, container.resolv_conf(), self.warnings)

    async def adopt_late(self, container: Container) -> None:
        """Before the program runs: what was put into an empty namespace after `create`."""
        if not self.taps or self.network is not None:
            return
        from cloche.heart.network import GuestNetwork

        found = GuestNetwork(self.loop, self.agent)
        network = found.adopt(self.taps, container.resolv_conf(), self.warnings)
        if network is not None:
            await self.pulse.ask("network", network)
        self.network = found  # not before: where that fails, the next `start` tries again
        self._follow_network(container)

    def _listen(self, container: Container) -> None:
        """From now on signals are the container's: its program may run before we hear of it."""
        from cloche.heart.signals import watch_signals

        watch_signals(self.loop, lambda number: self._on_signal(container, number))
        self.parent.listening()

    def _serve(self, container: Container) -> None:
        from cloche.heart.control import ControlServer

        self.vm.exited.on_done(lambda _: self._vm_ended())
        self.pulse.on_files_lost = self._say
        if self.request.foreground and self.request.glance.terminal:
            from cloche.heart.signals import watch_parent

            watch_parent(self.loop, self.request.caller, container.hang_up)
        if container.init.terminal:
            # The engine may have set the size before anyone listened to SIGWINCH.
            container.init.resize(*container.init.size)
        self._follow_network(container)
        if self.vm.guard is not None:
            self.vm.guard.on_refusal = lambda port: self._tell_refusal(container, port)
        self.control = ControlServer(self, os.path.join(self.request.directory, "control.sock"))

    def _tell_refusal(self, container: Container, port: int) -> None:
        """Why the host's loopback is not reached; once, for the guest may try it on and on."""
        if not self._is_refusal_told:
            self._is_refusal_told = True
            where = f"port {port} of the host's loopback"
            container.init.complain(
                f"cloche: network: {where}: refused (--host-loopback {port} lets it be reached)"
            )

    def _follow_network(self, container: Container) -> None:
        """Networks come and go while the container runs (`docker network connect`)."""
        if self.network is not None:
            say = container.init.complain
            self.network.follow(container.resolv_conf, lambda text: say(f"cloche: {text}"))

    def _vm_ended(self) -> None:
        for container in list(self.containers.values()):
            if not container.init.exited.done:
                from cloche.vmm.death import death

                container.vm_ended(str(death(self.vm)))
                # Whoever does not read what is left of its output holds nobody up.
                self.loop.call_later(DRAIN_TIMEOUT_S, container.init.give_up)

    def _on_signal(self, container: Container, number: int) -> None:
        self._interrupted |= number == _signal.SIGINT
        if number == _signal.SIGWINCH:
            container.init.resize(*container.init.size)
        else:
            container.init.signal(number)

    def _on_event(self, event: Event) -> None:
        if event.name == "exit":
            container = self.containers.get(event.fields["id"])
            if container is not None:
                container.on_exit(event.fields["exec_id"], event.fields["status"])
        elif event.name == "dns_query" and self.network is not None:
            self.network.ask(event.fields)
        elif event.name == "oom":
            self._on_oom(event)
        elif event.name == "module":
            self._on_module(event)
        elif event.name == "log" and len(self.warnings) < MAX_WARNINGS:
            # The guest is not trusted: neither number nor length is its own choice.
            self.warnings.append(f"guest: {event.fields['message']}"[:500])

    def _on_oom(self, event: Event) -> None:
        """Have the host's kernel tell the engine of it, before the end that may come of it."""
        container = self.containers.get(event.fields["id"])
        now = time.monotonic()
        if container is None:
            return
        container.news().tell()
        if self.vm.exited.done or now < self._next_oom:
            return
        from cloche.host import oom

        oom.tell(container.host_cgroup)
        self._next_oom = now + OOM_INTERVAL_S

    def _on_module(self, event: Event) -> None:
        """The guest's kernel asks for a module."""
        if self._modules is None:
            from cloche.heart.modules import GuestModules

            directory = self._machine.kernel_directory
            self._modules = GuestModules(self.loop, self.agent, directory, self._say)
        self._modules.ask(event.fields)

    def _say(self, text: str) -> None:
        """Tell whoever reads the output of the first container, which is there for the longest."""
        if container := next(iter(self.containers.values()), None):
            container.init.complain(f"cloche: {text}")

    def find(self, container_id: str) -> Container:
        """The container *container_id*; StateError when this VM has none of that name."""
        container = self.containers.get(container_id)
        if container is None:
            raise StateError(f"container {container_id}: not in this sandbox")
        return container

    def kill_soon(self) -> None:
        """End the VM if the guest has not obeyed a SIGKILL within a few seconds."""
        why = ClocheError(f"VM: killed: SIGKILL in it had no effect within {KILL_TIMEOUT_S:.0f} s")
        self.loop.call_later(KILL_TIMEOUT_S, lambda: self.vm.kill(why))

    async def _shut_down(self, container: Container) -> None:
        if container.has_root_image:
            from cloche.heart import root_image

            await root_image.close(container)
        self.vm.kill()
        container.state.fields["status"] = STOPPED
        if self.control is not None:
            self.control.finish()
        await self.vm.exited

    def close(self) -> None:
        """End the VM if it still runs; everything else ends with this process."""
        self.vm.kill()
        if self.vm.pid:
            self.loop.run_until(self.vm.exited)
