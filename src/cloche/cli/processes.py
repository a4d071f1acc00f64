"""`ps`: what runs in a container, shown by the host's ps(1), as runc has it.

That gets a /proc of its own with files of the guest's processes in it, made here of numbers that
were checked; it runs as nobody, for it reads what a guest has told.
"""

from __future__ import annotations

import os
import sys

from cloche.base import fastjson, syscalls
from cloche.base.errors import ClocheError, ConfigError
from cloche.base.files import read_text
from cloche.base.quick import suppress
from cloche.base.text import printable
from cloche.cli.flags import TEXT, Flag, Verb
from cloche.cli.inspect import known_format
from cloche.heart.client import ask
from cloche.model.state import load_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from cloche.cli.main import Context

PS = Verb(
    "ps [flags] ID [options of ps(1)]",
    "List the processes in a container, as the guest sees them (ps -ef).\n\n"
    "The table has the guest's own process ids. The JSON is a list of ids of the host, as engines\n"
    "expect it: of stand-ins that look like the guest's processes, and end after 3 seconds.",
    (Flag("format f", TEXT, "table or json"),),
)
NOBODY = 65534
# What ps reads of the host itself.
_HOST_FILES = ("stat", "uptime", "meminfo", "version", "sys/kernel/pid_max", "sys/kernel/osrelease")
_ITSELF: dict[str, Any] = {
    **dict.fromkeys(("ppid", "uid", "gid", "cpu_ns", "pgrp", "session", "tty", "tpgid"), 0),
    **dict.fromkeys(("nice", "threads", "vsize", "rss"), 0),
    **{"state": "R", "command": "ps"},
}
_TERMINALS = range(136, 144)  # major numbers of pseudo-terminals (Documentation/devices.txt)


def processes(context: Context, args: list[str]) -> int:
    """`cloche ps`."""
    flags = PS.parse(args)
    if not flags.arguments:
        raise ConfigError("ps: a container's id is expected", hint=f"cloche {PS.usage}")
    container_id, *options = flags.arguments
    state = load_state(context.root, container_id)
    found = ask(state, "ps") if state.is_alive() else []
    if known_format(flags.text("format", "table")) == "json":
        print(fastjson.dumps(_on_the_host(found) or None))
        return 0
    if options and options[0][:2] in ("-o", "-O"):
        # By itself ps chooses who has its own user and terminal, and it has none.
        options.insert(0, "-e")
    # UTF-8 whatever the locale, in which ps has chosen what it prints.
    sys.stdout.buffer.write(table(found, options or ["-ef"]).encode())
    return 0


def _on_the_host(found: Sequence[dict[str, Any]]) -> list[int]:
    """Pids of the host that an engine may show: a guest's would name foreign processes there."""
    from cloche.engine.top import stand_in

    return stand_in((int(process["uid"]), str(process["command"])) for process in found)


def table(found: Sequence[dict[str, Any]], options: Sequence[str]) -> str:
    """What ps with *options* prints of the processes *found*; ClocheError as ps has it."""
    outputs = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("ps-output", "ps-errors")]
    # It counts itself among the processes: as number 1, which is the agent's in the guest.
    syscalls.unshare(syscalls.CLONE_NEWPID)
    pid = os.fork()
    if pid == 0:
        _become_ps(found, options, outputs)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    output, errors = (_content(fd) for fd in outputs)
    if status and errors:  # none: there is no such process
        raise ClocheError(f"ps: exit status {status}: {errors.strip().splitlines()[0]}")
    kept = _lines_of({process["pid"] for process in found}, output.splitlines())
    return "".join(f"{printable(line)}\n" for line in kept)


def _lines_of(pids: set[int], lines: Sequence[str]) -> list[str]:
    """The heading, and the *lines* of the processes *pids*."""
    head = lines[0].split() if lines else []
    if "PID" not in head:
        raise ClocheError("ps: couldn't find PID field in ps output", hint="name pid after -o")
    column = head.index("PID")
    return [lines[0], *(line for line in lines[1:] if _pid(line, column) in pids)]


def _pid(line: str, column: int) -> int:
    try:
        return int(line.split()[column])
    except (ValueError, IndexError):
        hint = "name pid before what may have blanks in it"
        raise ClocheError(f"ps: unable to parse pid: {line.strip()}", hint=hint) from None


def _content(fd: int) -> str:
    with open(fd, encoding="utf-8", errors="replace") as file:
        file.seek(0)
        return file.read()


def _become_ps(
    found: Sequence[dict[str, Any]], options: Sequence[str], outputs: Sequence[int]
) -> None:
    """In the child: never returns."""
    try:
        for number, fd in enumerate(outputs, start=1):
            os.dup2(fd, number)
        _show(found)
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        os.execvp("ps", ["ps", *options])
    except BaseException as error:
        os.write(2, f"cannot run the host's ps: {error}\n".encode())
    finally:
        os._exit(127)


def _show(found: Sequence[dict[str, Any]]) -> None:
    """Have a /proc of only the processes *found*, and their terminals, in a namespace of ours."""
    from cloche.host.proc_files import files_of, host_boot

    boot = host_boot()
    files = {name: read_text(f"/proc/{name}") or "" for name in _HOST_FILES}
    files["cpuinfo"] = ""  # it must be there
    for process in found:
        pid = process["pid"]
        own = files_of(process, pid, process, process["started"] - boot)
        files.update({f"{pid}/{name}": text for name, text in own.items()})
        files.update({f"{pid}/task/{pid}/{name}": text for name, text in own.items()})
    # ps looks for itself before all else.
    own = files_of(_ITSELF, 1, _ITSELF, 0)
    files.update({f"1/{name}": text for name, text in own.items()})
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.follow_host_mounts()
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    syscalls.mount("cloche-proc", "/proc", "tmpfs", flags, "mode=755")
    _make_folders([1, *sorted(process["pid"] for process in found)])
    for name, text in files.items():
        os.makedirs(os.path.dirname(f"/proc/{name}"), exist_ok=True)
        with open(f"/proc/{name}", "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
    os.symlink("1", "/proc/self")
    _show_terminals({process["tty"] for process in found})


def _make_folders(pids: Sequence[int]) -> None:
    """Folders that are listed in the order of *pids*: ps keeps to it, and kernels differ."""
    for order in (pids, pids[::-1]):
        for pid in order:
            os.mkdir(f"/proc/{pid}")
        if [int(name) for name in os.listdir("/proc")] == pids:
            return
        for pid in pids:
            os.rmdir(f"/proc/{pid}")


def _show_terminals(numbers: set[int]) -> None:
    """ps names a terminal only where there is a node of its number."""
    with suppress(OSError):  # no /dev/pts: they stay without names
        syscalls.mount("cloche-pts", "/dev/pts", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NOEXEC)
        for number in numbers:
            if os.major(number) in _TERMINALS:
                os.mknod(f"/dev/pts/{os.minor(number)}", 0o600 | 0o020000, number)
