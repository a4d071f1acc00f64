"""Files of /proc for a guest's process, as programs of the host read them (proc(5))."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TICKS_PER_SECOND = 100  # USER_HZ, for every program
_PAGE = 4096
_FIELDS = 52


def files_of(
    process: dict[str, Any], pid: int, relatives: dict[str, int], started: float
) -> dict[str, str]:
    """The files of a *process* (cloche.heart.listing) that is to be shown as *pid*, by name.

    *relatives* are its ppid, pgrp, session and tpgid as they are to be shown, *started* is when it
    was, in seconds after the boot of the host.
    """
    command = str(process["command"])
    # One without arguments is told in brackets, and shown in these again.
    is_bare = command.startswith("[") and command.endswith("]")
    name = command[1:-1] if is_bare else os.path.basename(command.split(" ")[0])
    name = name[:15] or "?"
    fields = [0] * (_FIELDS + 1)  # by their numbers; what the guest did not tell is 0
    fields[4], fields[5] = relatives["ppid"], relatives["pgrp"]
    fields[6], fields[7], fields[8] = relatives["session"], process["tty"], relatives["tpgid"]
    fields[14] = process["cpu_ns"] * TICKS_PER_SECOND // 10**9
    fields[18], fields[19], fields[20] = 20 + process["nice"], process["nice"], process["threads"]
    fields[22] = max(0, int(started * TICKS_PER_SECOND))
    fields[23], fields[24] = process["vsize"], process["rss"]
    state, uid, gid = process["state"], process["uid"], process["gid"]
    status = {
        **{"Name": name, "State": state, "Tgid": pid, "Pid": pid, "PPid": fields[4]},
        **{"Uid": "\t".join([str(uid)] * 4), "Gid": "\t".join([str(gid)] * 4)},
        **{"VmSize": f"{fields[23] // 1024} kB", "VmRSS": f"{fields[24] * _PAGE // 1024} kB"},
        "Threads": fields[20],
    }
    return {
        "stat": f"{pid} ({name}) {state} " + " ".join(map(str, fields[4:])) + "\n",
        "status": "".join(f"{key}:\t{value}\n" for key, value in status.items()),
        "statm": f"{fields[23] // _PAGE} {fields[24]} 0 0 0 0 0\n",
        "cmdline": "" if is_bare else command.replace(" ", "\0") + "\0",
    }


def host_boot() -> int:
    """When the host was booted, in whole s since the epoch, as /proc/stat tells it."""
    with open("/proc/stat", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("btime"))
