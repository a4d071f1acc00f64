"""Containers that nobody asked for, run so that QEMU and the guest know how (docs/frozen.md)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from typing import TYPE_CHECKING, Any, NamedTuple

from cloche.base.errors import ClocheError
from cloche.base.loop import Future, Loop
from cloche.base.spawn import run
from cloche.heart.agent import Agent
from cloche.heart.files import serve_files
from cloche.heart.greeting import FUSE, renewal, share_mount
from cloche.heart.process import GuestProcess
from cloche.host.share import GUEST_SHARE
from cloche.model.oci import Config, load_config
from cloche.model.plan import Layout, compile_container, compile_process
from cloche.model.spec import default_spec
from cloche.vmm import files_slot
from cloche.vmm.argv import EMPTY_SLOT_SIZE
from cloche.vmm.boot import launch
from cloche.vmm.freezer import freeze
from cloche.vmm.frozen import find_thaw
from cloche.vmm.regions import Process
from cloche.vmm.template_maker import save, wait
from cloche.vmm.vm import AGENT_FD, CONSOLE_FD, FIRST_TAP_FD, QMP_FD, Vm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloche.vmm.shape import Shape
    from cloche.wire.messages import Event

STEP_TIMEOUT_S = 60.0
# How long the guest is left alone at the end, for what it does in the background.
REST_S = 0.5
SHELL = "/bin/sh"
# What programs do: fork, exec, pipe, read, write, list, wait.
SCRIPT = (
    "read line < /etc/issue; for i in 1 2 3; do echo $i $line; done | while read x; do :; done; "
    "y=$(/bin/sh -c 'echo x'); cd /proc; echo * > /dev/null; /bin/sh -c : & wait; exit 0"
)
# A program that ends at once: cloche-thaw, which is given no image.
BRIEF = "/brief"
BRIEF_STATUS = 126
_SHARE = "share"
_ISSUE = "issue"


class Act(NamedTuple):
    """One container: its program, what that reads, and how it ends."""

    args: list[str]
    script: str = ""
    status: int = 0


class Rehearsal:
    """A VM for such containers, as a context; BootError or AgentError where one fails."""

    def __init__(self, directory: str, config: Config) -> None:
        self._directory = directory
        self._config = config
        self._share = os.path.join(directory, _SHARE)
        # Behind the block slot, of the size that the template has there.
        self._image = os.path.join(directory, "image")
        with open(self._image, "ab") as file:
            file.truncate(EMPTY_SLOT_SIZE)
        self._cards = 0
        self._kind = ""
        self._files: Sequence[int] = ()
        self._loop = Loop()
        self._vm = Vm(self._loop, directory)
        self._agent = Agent(self._vm, self._on_event)
        self._processes: dict[object, GuestProcess] = {}

    def __enter__(self) -> Rehearsal:
        return self

    def __exit__(self, *_: object) -> None:
        self._vm.kill()
        if self._vm.pid:
            self._loop.run_until(self._vm.exited)
        self._loop.close()

    def restore(self, shape: Shape, memory: str, state: bytes, taps: Sequence[int]) -> None:
        """Go on from *state*; what the guest writes is kept in the file *memory*.

        With no *taps* it has a user-mode network.
        """
        self._cards = len(taps)
        self._kind = shape.files
        self._files = serve_files(self._vm, self._directory, self._share) if self._serves else ()
        launch(
            self._vm,
            shape,
            share=self._share,
            taps=taps,
            user_network=not taps,
            images=[self._image],
            memory_file=memory,
            state=state,
            keep_writes=True,
            files=self._files,
        )
        self._wait(self._vm.running)

    @property
    def _serves(self) -> bool:
        """Whether it is not QEMU who serves the guest's files."""
        return self._kind == FUSE

    def run(self, acts: Sequence[Act]) -> None:
        """Run containers, one after the other, and leave the guest as it was."""
        for number, act in enumerate(acts):
            self._greet()
            self._perform(f"rehearsal-{number}", act)
            self._wait(self._agent.call("umount", {"target": GUEST_SHARE}))
            if self._serves:  # a clone finds it mounted
                self._wait(self._agent.call("mount", share_mount(self._kind)))
        self._wait(self._agent.call("spare"))
        rested = Future()
        self._loop.call_later(REST_S, rested.set)
        self._loop.run_until(rested)

    def save(self) -> bytes:
        """The state of CPUs and devices; the VM is of no use afterwards."""
        return save(self._loop, self._vm, os.path.join(self._directory, "save.sock"))

    def freeze(self, image: str, memory: str) -> list[str]:
        """Write QEMU's process to *image*; returns what it maps beside that and *memory*."""
        self._wait(self._vm.command("stop"))
        return freeze(self._vm.pid, image, self._slots(memory), memory=memory)

    def _slots(self, memory: str) -> dict[int, int]:
        """QEMU's descriptors → those of cloche-thaw, as Vm.thaw hands them over."""
        behind_taps = FIRST_TAP_FD + self._cards
        slots = [[AGENT_FD], [QMP_FD], [CONSOLE_FD]]
        with Process(self._vm.pid) as qemu:
            if self._serves:
                slots += [[behind_taps], qemu.descriptors_of_memory(files_slot.NAME)]
            else:
                slots.append([qemu.descriptor_of(self._share)])
            slots += [[qemu.descriptor_of(path)] for path in (self._image, memory)]
        slots += [[number] for number in range(FIRST_TAP_FD, behind_taps)]
        return {
            number: AGENT_FD + index for index, numbers in enumerate(slots) for number in numbers
        }

    def _wait(self, future: Future) -> Any:  # noqa: ANN401 (the future's value)
        wait(self._loop, self._vm, future, STEP_TIMEOUT_S)
        return future.result()

    def _greet(self) -> None:
        hello = self._agent.hello()
        renewed = self._agent.call("renew", renewal("rehearsal"))
        steps = [hello, renewed]
        if not self._serves:
            steps.append(self._agent.call("mount", share_mount()))
        for step in steps:
            self._wait(step)

    def _perform(self, name: str, act: Act) -> None:
        theirs, ours = os.pipe()
        init = self._process(name, None, theirs)
        plan, _ = compile_container(
            self._config,
            bundle=self._directory,
            container_id=name,
            layout=Layout(rootfs=f"{GUEST_SHARE}/root", volume=lambda _: f"{GUEST_SHARE}/{_ISSUE}"),
            cgroup=name,
            streams=init.streams,
            terminal_size=None,
            seccomp_cache=None,
        )
        created = self._agent.call("create", _with_args(plan, act.args))
        init.begin_input()
        self._wait(created)
        self._wait(self._agent.call("start", {"id": name}))
        if act.args == [SHELL]:  # it waits for something to do, so that it is still there
            self._execute(name)
        os.write(ours, act.script.encode())
        os.close(ours)
        if self._wait(init.exited) != act.status:
            raise ClocheError(f"rehearsal: {act.args[0]} ended with status {init.exited.value}")
        self._wait(self._agent.call("delete", {"id": name}))

    def _execute(self, name: str) -> None:
        """Run another process beside the first one."""
        process = self._process(name, "exec", os.open(os.devnull, os.O_RDONLY))
        plan, _ = compile_process(
            self._config.process,
            self._config,
            streams=process.streams,
            terminal_size=None,
            seccomp_cache=None,
        )
        fields = {"id": name, "exec_id": "exec", "process": plan | {"args": [BRIEF]}}
        self._wait(self._agent.call("exec", {**fields, "cgroup": None}))
        self._wait(process.exited)

    def _process(self, name: str, exec_id: str | None, stdin: int) -> GuestProcess:
        outputs = [os.open(os.devnull, os.O_WRONLY) for _ in range(2)]
        process = GuestProcess(self._agent, name, exec_id, (stdin, *outputs), terminal=False)
        self._processes[exec_id] = process
        return process

    def _on_event(self, event: Event) -> None:
        if event.name == "exit":
            self._processes[event.fields.get("exec_id")].on_exit(int(event.fields["status"]))
        elif event.name == "module":  # whoever asks for it waits
            self._agent.call("module_end", {"query": event.fields["query"], "found": False})


def _with_args(plan: dict[str, Any], args: list[str]) -> dict[str, Any]:
    return plan | {"process": plan["process"] | {"args": args}}


def make_bundle(directory: str) -> Config:
    """Make a bundle in *directory*, its files in the share; returns its configuration."""
    share = os.path.join(directory, _SHARE)
    root = os.path.join(share, "root")
    for folder in ("etc", "proc", "sys", "dev", "tmp"):
        os.makedirs(os.path.join(root, folder))
    shutil.copy(str(find_thaw()), root + BRIEF)
    for path in [SHELL, *_libraries(SHELL)]:
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        shutil.copy(path, root + path)
    issue = os.path.join(share, _ISSUE)
    with open(issue, "w", encoding="ascii") as file:
        file.write("rehearsal\n")
    spec: dict[str, Any] = default_spec()
    spec["process"] |= {"terminal": False, "args": [SHELL]}
    bind = {"destination": "/etc/issue", "type": "bind", "source": issue}
    spec["mounts"].append(bind | {"options": ["rbind", "rprivate"]})
    # Engines install a filter with every container.
    refused = {"names": ["kexec_load"], "action": "SCMP_ACT_ERRNO"}
    spec["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [refused]}
    path = os.path.join(directory, "config.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(spec, file)
    return load_config(path)


def _libraries(program: str) -> list[str]:
    """What the dynamic linker loads for *program*; nothing for a static one."""
    with contextlib.suppress(ClocheError):
        return re.findall(r"(/\S+) \(0x", run(["ldd", program]).decode())
    return []
