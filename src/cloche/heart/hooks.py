"""Hooks of config.json (runtime-spec config.md, POSIX-platform hooks) that run on the host."""

from __future__ import annotations

import os
import select
from time import monotonic

from cloche.base import fastjson, syscalls
from cloche.base.errors import ClocheError
from cloche.base.quick import suppress
from cloche.model.environment import hook_environment

_MOST_MS = (1 << 31) - 1
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def sound_hooks(hooks: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """The hooks of a config that was only glanced at; none at all where one is malformed.

    The first of them run while the supervisor still parses the config strictly, and it says what
    is wrong.
    """
    try:
        found = [hook for each in hooks.values() for hook in each or []]
        return hooks if all(_is_hook(hook) for hook in found) else {}
    except (AttributeError, TypeError):
        return {}


def _is_hook(hook: dict[str, Any]) -> bool:
    words = [hook.get("path"), *(hook.get("args") or []), *(hook.get("env") or [])]
    timeout = hook.get("timeout")
    return (
        all(isinstance(word, str) for word in words)
        and hook["path"].startswith("/")
        and (timeout is None or (isinstance(timeout, int) and 0 < timeout < 1 << 31))
    )


class Place:
    """Where hooks run: as runc's own process does, or (createContainer) as the container's will.

    *folder*: empty for the bundle's; *netns_of*: the process whose network namespace it is, 0 for
    our own; *env*: of a hook that names none, `NAME=value`; None for our own.
    """

    def __init__(self, folder: str = "", netns_of: int = 0, env: list[str] | None = None) -> None:
        self.folder = folder
        self.netns_of = netns_of
        self.env = env


_HERE = Place()


def run_hooks(
    hooks: dict[str, list[dict[str, Any]]],
    kind: str,
    state: dict[str, Any],
    place: Place = _HERE,
) -> None:
    """Run all hooks of *kind* in order, each with *state* on its stdin.

    The first that fails or takes too long raises ClocheError with its stderr.
    """
    for number, hook in enumerate(hooks.get(kind) or []):
        _run_hook(f"$.hooks.{kind}[{number}]", hook, state, place)


def run_all_hooks(
    hooks: dict[str, list[dict[str, Any]]], kind: str, state: dict[str, Any]
) -> list[str]:
    """Run all hooks of *kind* whatever the others do; returns what went wrong (poststop hooks)."""
    problems = []
    for number, hook in enumerate(hooks.get(kind) or []):
        try:
            _run_hook(f"$.hooks.{kind}[{number}]", hook, state, _HERE)
        except (ClocheError, OSError) as error:
            problems.append(str(error))
    return problems


def _run_hook(name: str, hook: dict[str, Any], state: dict[str, Any], place: Place) -> None:
    path = hook["path"]
    stdin = fastjson.compact(state).encode()
    # A file, not a pipe: nobody has to read it for us to go on.
    in_fd = os.memfd_create("hook-stdin", os.MFD_CLOEXEC)
    os.write(in_fd, stdin)
    os.lseek(in_fd, 0, os.SEEK_SET)
    err_fd = os.memfd_create("hook-stderr", os.MFD_CLOEXEC)
    netns = os.open(f"/proc/{place.netns_of}/ns/net", os.O_RDONLY) if place.netns_of else -1
    pid = os.fork()
    if pid == 0:
        env = hook.get("env")
        folder = place.folder or state["bundle"]
        _exec_hook(hook, folder, place.env if env is None else env, (in_fd, err_fd, netns))
    os.close(in_fd)
    if netns >= 0:
        os.close(netns)
    timeout = hook.get("timeout")
    status = _wait(pid, float(timeout) if timeout else None)
    with open(err_fd, "rb") as file:
        file.seek(0)
        errors = file.read()[-2000:].decode(errors="replace").strip()
    if status is None:
        raise ClocheError(f"{name} {path}: no end after {timeout} s: killed")
    if status != 0:
        cause = f"exit status {status}" if status > 0 else f"signal {-status}"
        raise ClocheError(f"{name} {path}: {cause}{': ' + errors if errors else ''}")


def _exec_hook(
    hook: dict[str, Any], folder: str, env: list[str] | None, fds: tuple[int, int, int]
) -> None:
    stdin, stderr, netns = fds
    try:
        with suppress(OSError):  # as with runc; after the end the bundle may be gone
            os.chdir(folder)
        os.dup2(stdin, 0)
        os.dup2(stderr, 1)
        os.dup2(stderr, 2)
        if netns >= 0:
            syscalls.setns(netns, syscalls.CLONE_NEWNET)
        os.execve(hook["path"], hook.get("args") or [hook["path"]], _variables(env))
    except BaseException as error:
        os.write(2, str(error).encode())
    finally:
        os._exit(127)


def _variables(env: list[str] | None) -> dict[str, str]:
    if env is None:
        return {**os.environ}
    return dict(entry.split("=", 1) for entry in hook_environment(env) if "=" in entry)


def _wait(pid: int, timeout: float | None) -> int | None:
    """The exit code of *pid* (negative: its signal), or None when it had to be killed."""
    if timeout is not None:
        pidfd = os.pidfd_open(pid)
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        deadline = monotonic() + timeout
        # More ms than poll(2) counts are weeks.
        ended = poller.poll(min(max(0, (deadline - monotonic()) * 1000), _MOST_MS))
        os.close(pidfd)
        if not ended:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            return None
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
