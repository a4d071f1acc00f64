"""The `cloche` command: global flags, then one verb. Each verb is a module, imported alone."""

from __future__ import annotations

import gc
import os
import sys

from cloche import __version__
from cloche.base.descriptors import keep_from_programs
from cloche.base.errors import ClocheError
from cloche.base.limits import explained
from cloche.base.quick import suppress
from cloche.cli.flags import BOOL, TEXT, Flag, Flags, Verb
from cloche.cli.log import Log
from cloche.model.state import DEFAULT_ROOT, OCI_VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NO_COMMAND = 3  # runc's exit status for a command that it does not know

# verb: (module, function, one line of help)
VERBS = {
    "create": ("create", "create", "create a container in a VM of its own"),
    "start": ("lifecycle", "start", "run the program of a created container"),
    "run": ("create", "run", "create and start a container"),
    "state": ("inspect", "state", "print a container's state"),
    "list": ("inspect", "list_containers", "list containers"),
    "ps": ("processes", "processes", "list the processes in a container"),
    "exec": ("execute", "execute", "run another process in a container"),
    "kill": ("lifecycle", "kill", "signal a container"),
    "pause": ("lifecycle", "pause", "freeze a container"),
    "resume": ("lifecycle", "resume", "let a paused container go on"),
    "delete": ("lifecycle", "delete", "remove a container"),
    "update": ("update", "update", "change a container's limits"),
    "events": ("events", "events", "watch what a container uses"),
    "checkpoint": ("later", "checkpoint", "save a running container: not possible yet"),
    "restore": ("later", "restore", "restore a saved container: not possible yet"),
    "spec": ("spec", "spec", "write a config.json to start from"),
    "features": ("spec", "features", "print what this runtime can do"),
    "do": ("do", "do", "run an image or a folder, nothing else needed"),
    "setup": ("setup", "setup", "prepare kernel, guest and template"),
    "kernel": ("kernel", "kernel", "compile a small kernel of cloche's own"),
    "install": ("install", "install", "register cloche with an engine"),
    "uninstall": ("install", "uninstall", "take cloche out of an engine again"),
}

GLOBAL = (
    Flag("root", TEXT, f"folder of the containers' state ({DEFAULT_ROOT})"),
    Flag("log", TEXT, "file for errors and warnings"),
    Flag("log-format", TEXT, "text or json"),
    Flag("debug", BOOL, "debug messages too"),
    Flag("criu", TEXT, "accepted for runc's callers; checkpoints are not possible yet"),
    Flag("systemd-cgroup", BOOL, "cgroupsPath is written slice:prefix:name"),
    Flag("rootless", TEXT, "accepted for runc's callers; only false and auto can be had"),
    Flag("timings", TEXT, "write the phases of a start to this file, as JSON"),
    Flag("version v", BOOL, "print the version"),
)


class Context:
    """What the global flags said."""

    def __init__(self, flags: Flags) -> None:
        self.root = os.path.abspath(flags.text("root", DEFAULT_ROOT))
        self.log = Log(flags.text("log"), flags.text("log-format", "text"), debug=flags.on("debug"))
        self.timings = flags.text("timings")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    # The short-lived verbs end before a collection would pay; the supervisor switches it on again.
    gc.disable()
    _open_standard_streams()
    args = list(sys.argv[1:] if argv is None else argv)
    log = Log()
    try:
        flags = Flags(GLOBAL).parse(args)
        if flags.on("version"):
            print(f"cloche version {__version__}\nspec: {OCI_VERSION}")
            return 0
        context = Context(flags)
        log = context.log
        _check_global(flags)
        keep_from_programs()
        if flags.help or not flags.arguments or flags.arguments in (["help"], ["h"]):
            print(overview(), end="")
            return 0 if flags.help or flags.arguments else 1
        verb, *rest = flags.arguments
        if verb in ("help", "h"):
            verb, rest = rest[0], ["--help"]
        if verb not in VERBS:
            raise ClocheError(
                f"unknown command {verb!r}", hint="`cloche help` lists them", exit_code=NO_COMMAND
            )
        log.debug(f"cloche {__version__}: {verb}, root {context.root}")
        return _load(verb)(context, rest)
    except ClocheError as error:
        log.error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except (OSError, MemoryError, ImportError) as error:  # a step that foresaw no such failure
        log.error(_told(error, _verb_of(args)))
        return 1


def _told(error: Exception, verb: str) -> str:
    """Which limit is too low, or at least which file it is about."""
    if told := explained(error):
        return f"{verb}: {told}"
    if isinstance(error, OSError):
        return f"{error.filename or verb}: {(error.strerror or str(error)).lower()}"
    return f"{verb}: {str(error) or 'out of memory'}"


def _verb_of(args: list[str]) -> str:
    """The first word that is one; that of a flag's value, at worst."""
    return next((word for word in args if word in VERBS), "cloche")


def entry() -> None:
    """The program: run the command and leave at once.

    Taking the interpreter down in order costs 2 to 6 ms, and frees what the kernel frees anyway.
    """
    try:
        code = main()
    except SystemExit as leave:  # argparse, after its help or its complaint
        code = leave.code if isinstance(leave.code, int) else 0
    for stream in (sys.stdout, sys.stderr):
        # None: the descriptor was closed when we were started.
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def _open_standard_streams() -> None:
    """/dev/null for those that the caller has closed: nothing else is to get their numbers."""
    while (fd := os.open("/dev/null", os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def _check_global(flags: Flags) -> None:
    if flags.text("log-format", "text") not in ("text", "json"):
        raise ClocheError(
            f"--log-format {flags.text('log-format')!r}: unknown", hint="use text or json"
        )
    if flags.text("rootless", "auto") == "true":
        raise ClocheError("--rootless: cloche needs root", hint="run it as root")


def _load(verb: str) -> Callable[[Context, list[str]], int]:
    module, function, _ = VERBS[verb]
    loaded = __import__(f"cloche.cli.{module}", fromlist=[function])
    chosen: Callable[[Context, list[str]], int] = getattr(loaded, function)
    return chosen


def overview() -> str:
    """The text of `cloche help`."""
    verbs = "\n".join(f"  {name:<10} {text}" for name, (_, _, text) in VERBS.items())
    return Verb(
        "[global flags] command [flags] [arguments]",
        "Every container in its own virtual machine.\n\nCommands (--help after one tells more):\n"
        f"{verbs}\n\nGlobal flags:",
        GLOBAL,
    ).help()


if __name__ == "__main__":
    entry()
