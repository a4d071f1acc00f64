"""What a case of the differential test is, and how it is run under a runtime."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.dockerd import wait_until
from engine.patience import PATIENCE_SECONDS
from vm.bundles import Bundle
from vm.runtime import Runtime

from .facts import Facts, facts_of

PROBE = (Path(__file__).parent / "probe.sh").read_text()

# Every limit, so that none is the caller's; all within what any root has, and the soft ones odd
# enough to be recognised.
RLIMITS = {
    "RLIMIT_AS": (1 << 40, 1 << 41),
    "RLIMIT_CORE": (0, 4096),
    "RLIMIT_CPU": (1001, 1002),
    "RLIMIT_DATA": (1 << 39, 1 << 40),
    "RLIMIT_FSIZE": (1 << 38, 1 << 39),
    "RLIMIT_LOCKS": (1003, 1004),
    "RLIMIT_MEMLOCK": (65536, 65536),
    "RLIMIT_MSGQUEUE": (4097, 8193),
    "RLIMIT_NICE": (0, 0),
    # The same: a Go program raises the soft limit for itself, and runc may hand that on.
    "RLIMIT_NOFILE": (1024, 1024),
    "RLIMIT_NPROC": (501, 502),
    "RLIMIT_RSS": (1 << 37, 1 << 38),
    "RLIMIT_RTPRIO": (0, 0),
    "RLIMIT_RTTIME": (1005, 1006),
    "RLIMIT_SIGPENDING": (101, 102),
    "RLIMIT_STACK": (1 << 22, 1 << 23),
}
# Of runc's defaults those that every kernel has: the others are there or not, whatever the runtime.
MASKED = ["/proc/keys", "/proc/timer_list", "/sys/firmware"]
READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"]


Run = Callable[[Runtime, Bundle], Facts]
Prepare = Callable[..., object]
"""What changes the bundle, which comes first."""


@dataclass(frozen=True)
class Case:
    """A bundle, and what is done with it."""

    name: str
    change: Prepare
    values: tuple[object, ...]
    run: Run

    def prepare(self, bundle: Bundle) -> None:
        """Make *bundle* this case's."""
        self.change(bundle, *self.values)


CASES: dict[str, Case] = {}


class OnSharedMounts(Runtime):
    """runc as on a machine whose root file system is a shared mount, as systemd makes it.

    *holder* is a process in such a mount namespace.
    """

    holder: int

    @property
    def argv(self) -> list[str]:
        """The command with its global flags."""
        return ["nsenter", "--mount", "--target", str(self.holder), "--wd=.", *super().argv]


def case(run: Run | None = None) -> Callable[[Prepare], Prepare]:
    """Decorator: the function changes a bundle that runs the probe; its name is the case's."""

    def add(prepare: Prepare) -> Prepare:
        name = prepare.__name__.replace("_", "-")
        add_case(name, prepare, run=run)
        return prepare

    return add


def add_case(name: str, prepare: Prepare, *values: object, run: Run | None = None) -> None:
    """A case by *name*, of a bundle changed by ``prepare(bundle, *values)``.

    It is run in the foreground to its end unless *run* does something else.
    """
    assert name not in CASES, f"{name}: there twice"
    CASES[name] = Case(name, prepare, values, run or foreground)


def new_bundle(path: Path, root: Path) -> Bundle:
    """A bundle whose program is the probe."""
    bundle = Bundle(path, root).args("sh", "/probe")
    # What runc 1.1 knows; where a later one means something else (pids.limit) cloche goes by it.
    bundle.config["ociVersion"] = "1.0.2"
    (bundle.rootfs / "probe").write_text(PROBE)
    bundle.process["rlimits"] = [
        {"type": name, "soft": soft, "hard": hard} for name, (soft, hard) in RLIMITS.items()
    ]
    bundle.process["oomScoreAdj"] = 0
    bundle.linux["maskedPaths"] = list(MASKED)
    bundle.linux["readonlyPaths"] = list(READ_ONLY)
    return bundle


def sleep(bundle: Bundle) -> None:
    """Have the container do nothing: something is done with it."""
    bundle.args("sleep", "1000")


def more(bundle: Bundle, script: str) -> None:
    """Have the probe run *script* at its end; what it prints is the fact ``output``."""
    (bundle.rootfs / "more").write_text(script)


def foreground(runtime: Runtime, bundle: Bundle) -> Facts:
    """``run``, with a pipe as stdin that is at its end."""
    return with_input(b"")(runtime, bundle)


def verdict(runtime: Runtime, bundle: Bundle) -> Facts:
    """As foreground, but how far the program comes before it is killed is nobody's promise."""
    facts = foreground(runtime, bundle)
    return {name: facts[name] for name in ("exit code", "error")}


def with_input(data: bytes) -> Run:
    """``run``, with *data* to be read from stdin."""

    def run(runtime: Runtime, bundle: Bundle) -> Facts:
        result = runtime.run(bundle, code=None, data=data)
        return {
            **facts_of(result.output),
            "exit code": str(result.code),
            "error": error_kind(runtime),
        }

    return run


def on_terminal(runtime: Runtime, bundle: Bundle) -> Facts:
    """``run`` on a terminal of 30 lines and 90 columns."""
    words = ("run", "--bundle", bundle.save(), runtime.new_id())
    with runtime.terminal(*words, rows=30, columns=90) as terminal:
        code = terminal.wait(PATIENCE_SECONDS)
        text = terminal.transcript.decode(errors="replace")
    # runc gives the terminal its size when the program may have asked for it already.
    facts = {name: value for name, value in facts_of(text).items() if name != "misc size"}
    return {**facts, "exit code": str(code), "error": error_kind(runtime)}


def signalled(number: signal.Signals, ready: str = "") -> Run:
    """``run --detach``; a signal by ``kill`` once the program has printed *ready*."""

    def run(runtime: Runtime, bundle: Bundle) -> Facts:
        container = runtime.start(bundle)
        if ready:
            wait_until(lambda: ready in container.output, f"printed {ready}")
        container.kill(number.name)
        return {"exit code": str(container.wait()), "output": container.output}

    return run


def execed(*words: str, flags: tuple[str, ...] = (), terminal: bool = False) -> Run:
    """``exec`` of the probe, or of *words*, in a container that sleeps."""

    def run(runtime: Runtime, bundle: Bundle) -> Facts:
        container = runtime.start(bundle)
        argv = ("exec", *flags, container.id, *(words or ("sh", "/probe")))
        if terminal:
            with runtime.terminal(*argv, rows=31, columns=91) as screen:
                code, text = (
                    screen.wait(PATIENCE_SECONDS),
                    screen.transcript.decode(errors="replace"),
                )
        else:
            result = runtime(*argv, code=None)
            code, text = result.code, result.output
        # Numbers of processes: the first free one, which two kernels do not agree on.
        left_out = ("misc pid", "status NSpid", "misc size")
        facts = {name: value for name, value in facts_of(text).items() if name not in left_out}
        return {**facts, "exit code": str(code), "error": error_kind(runtime)}

    return run


def verbs(*lines: str) -> Run:
    """Commands on a container that was created; the exit code of each is a fact."""

    def run(runtime: Runtime, bundle: Bundle) -> Facts:
        container = runtime.create(bundle)
        facts = {}
        for number, line in enumerate(lines, 1):
            if line == "wait":
                facts[f"{number} wait"] = str(container.wait())
                continue
            verb, *rest = line.split()
            result = runtime(*_with_id(verb, rest, container.id), code=None)
            kind = error_kind(runtime) if verb in ("kill", "delete") else ""
            facts[f"{number} {line}"] = f"{result.code} {kind}".strip()
            runtime.log.unlink(missing_ok=True)
        return facts

    return run


def _with_id(verb: str, rest: list[str], name: str) -> list[str]:
    flags = [word for word in rest if word.startswith("--")]
    return [verb, *flags, name, *(word for word in rest if not word.startswith("--"))]


def keys(*argv: str) -> Run:
    """The keys, at all depths, of the JSON that a command prints of a running container."""

    def run(runtime: Runtime, bundle: Bundle) -> Facts:
        container = runtime.start(bundle)
        words = [container.id if word == "ID" else word for word in argv]
        return {"keys": "\n".join(sorted(set(_paths(runtime(*words).json()))))}

    return run


def _paths(value: object, at: str = "$") -> list[str]:
    if isinstance(value, dict):
        return [path for key, item in value.items() for path in _paths(item, f"{at}.{key}")]
    if isinstance(value, list):
        return [path for item in value for path in _paths(item, f"{at}[]")] or [at]
    return [at]


# What engines look for in messages (docs/engines.md, Errors).
_TOLD_APART = (
    "executable file not found",
    "no such file or directory",
    "permission denied",
    "not a directory",
    "does not exist",
    "container not running",
    "process already finished",
    "no such process",
)


def error_kind(runtime: Runtime) -> str:
    """What engines take the last error for: its own words are each runtime's."""
    messages = runtime.messages("error")
    if not messages:
        return ""
    if found := re.search(r'exec: ".*', messages[-1]):
        return found[0]
    text = messages[-1].lower()
    return next((kind for kind in _TOLD_APART if kind in text), "other")


def null_input(runtime: Runtime, bundle: Bundle) -> Facts:
    """``run`` with /dev/null as stdin."""
    words = ("run", "--bundle", bundle.save(), runtime.new_id())
    process = runtime.popen(*words, stdin=subprocess.DEVNULL)
    stdout, _ = process.communicate(timeout=PATIENCE_SECONDS)
    return {**facts_of(stdout.decode()), "exit code": str(process.returncode)}
