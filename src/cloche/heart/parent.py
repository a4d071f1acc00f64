"""The supervisor's side of the channel to the `create` that forked it."""

from __future__ import annotations

import os

from cloche.base import fastjson
from cloche.base.errors import ClocheError
from cloche.base.loop import READ, Future, Loop, read_some
from cloche.base.quick import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cloche.heart.launch import Channel
    from cloche.vmm.integrity import Image


class Parent:
    """Reports steps to `create`, hears that the hooks have run, notices its end."""

    def __init__(self, loop: Loop, channel: Channel) -> None:
        self._loop = loop
        self._channel = channel
        self._hooks = Future()
        self._joined = Future()
        self._joined.set()
        # Completes when `create` ends before the container exists.
        self.gave_up = Future()
        self._is_created = False
        self._buffer = b""
        self._open = True
        os.set_blocking(channel.fd, False)
        loop.watch(channel.fd, READ, self._on_readable)

    def hooks_done(self) -> Future:
        """Completes once the hooks of the runtime namespace have run; fails if `create` ends."""
        return self._hooks

    def joined(self) -> Future:
        """Completes once QEMU is in the container's cgroup."""
        return self._joined

    def listening(self) -> None:
        """Signals are the program's from now on; until then Ctrl-C gives the start up."""
        self._send({"event": "listening"})

    def relaunched(self, vm_pid: int) -> None:
        """QEMU is process *vm_pid* now."""
        self._joined = Future()
        self._send({"event": "relaunched", "vm_pid": vm_pid})

    def created(
        self,
        warnings: list[str],
        marks: list[tuple[str, int]],
        *,
        interrupted: bool,
        debug: list[str],
        image: Image | None,
    ) -> None:
        """The container exists; `create` may return. *interrupted*: SIGINT was heard here.

        *image* is what its VM has come from.
        """
        self._is_created = True
        message = {"event": "created", "warnings": warnings, "timings": marks, "debug": debug}
        origin = [image.folder, *image.names] if image else []
        self._send({**message, "interrupted": interrupted, "image": origin})

    def _send(self, message: dict[str, Any]) -> None:
        if self._open:
            self._channel.send(message)

    def _on_readable(self, _events: int) -> None:
        data = read_some(self._channel.fd)
        if data == b"":
            self._loop.unwatch(self._channel.fd)
            self._open = False
            for future in (self._hooks, self._joined):
                future.fail(ClocheError("create: given up by its caller"))
            if not self._is_created:
                self.gave_up.set()
            return
        self._buffer += data or b""
        while b"\n" in self._buffer:
            line, self._buffer = self._buffer.split(b"\n", 1)
            with suppress(ValueError):
                event = fastjson.loads(line).get("event")
                if event in ("hooks done", "joined"):
                    (self._hooks if event == "hooks done" else self._joined).set()
