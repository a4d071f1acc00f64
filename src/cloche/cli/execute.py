"""`exec`: the supervisor relays the stdio it is handed; this process waits and forwards."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # signal proper imports enum, 5 ms
import os
import select

from cloche.base import fastjson
from cloche.base.descriptors import close_others
from cloche.base.errors import ClocheError, ConfigError, StateError
from cloche.base.limits import explained, own_limits
from cloche.cli import handles
from cloche.cli.flags import BOOL, LIST, TEXT, Flag, Flags, Verb
from cloche.cli.handles import Handles
from cloche.heart.client import Client
from cloche.model.state import State, load_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cloche.cli.main import Context

EXEC = Verb(
    "exec [flags] ID [COMMAND…]",
    "Run another process in a container.",
    (
        Flag("console-socket", TEXT, "AF_UNIX socket that receives the terminal's master"),
        Flag("cwd", TEXT, "working directory in the container"),
        Flag("env e", LIST, "environment variable NAME=VALUE"),
        Flag("tty t", BOOL, "give it a terminal"),
        Flag("user u", TEXT, "uid[:gid]"),
        Flag("additional-gids g", LIST, "further group ids"),
        Flag("process p", TEXT, "file with the process as JSON (`process` of config.json)"),
        Flag("detach d", BOOL, "return once the process runs"),
        *handles.FLAGS,
        Flag("cap c", LIST, "further capability"),
        Flag("no-new-privs", BOOL, "set no_new_privs"),
        Flag("process-label", TEXT, "SELinux label; the guest's kernel has no policy: a warning"),
        Flag("apparmor", TEXT, "AppArmor profile; the guest's kernel has none: a warning"),
        Flag("preserve-fds", TEXT, "not possible: a VM cannot be given host descriptors"),
        Flag("cgroup", LIST, "run it in this cgroup below the container's"),
        Flag("ignore-paused", BOOL, "do so in a paused container too"),
    ),
)
SIGNALS = (
    _signal.SIGHUP,
    _signal.SIGINT,
    _signal.SIGQUIT,
    _signal.SIGTERM,
    _signal.SIGUSR1,
    _signal.SIGUSR2,
    _signal.SIGCONT,
)
# Flags that stand for a field of the process.
TEXT_FIELDS = {"cwd": "cwd", "apparmor": "apparmorProfile", "process-label": "selinuxLabel"}
EXIT_FAILED = 255  # what runc exits with when the process cannot be started


def execute(context: Context, args: list[str]) -> int:
    """`cloche exec`."""
    flags = EXEC.parse(args)
    if not flags.arguments:
        raise ConfigError("exec: a container's id is expected", hint=f"cloche {EXEC.usage}")
    try:
        state = load_state(context.root, flags.arguments[0])
        if not state.is_alive():
            raise StateError("cannot exec in a stopped container")
        process = _process(flags, state)
        wanted = Wanted(context, flags, state, process)
        if flags.on("detach"):
            return _detached(wanted)
        if wanted.has_terminal and flags.text("console-socket"):
            return _relay(wanted, lambda: None)
        return _in_foreground(wanted)
    except ClocheError as error:
        error.message = f"exec failed: {error.message}"
        error.exit_code = EXIT_FAILED
        raise


def _process(flags: Flags, state: State) -> dict[str, Any]:
    if flags.number("preserve-fds"):
        raise ConfigError("--preserve-fds: a VM cannot be given descriptors of the host")
    if flags.text("process"):
        path = flags.text("process")
        try:
            with open(path, "rb") as file:
                text = file.read()
            process: dict[str, Any] = fastjson.loads(text)
        except OSError as error:
            cause = (error.strerror or str(error)).lower()
            raise ConfigError(f"--process {path}: {cause}") from None
        except ValueError as error:
            raise ConfigError(f"--process {path}: {fastjson.problem(text) or error}") from None
        if not isinstance(process, dict):
            raise ConfigError(f"--process {path}: $: an object is expected")
        return process
    if len(flags.arguments) < 2:
        raise ConfigError("process args cannot be empty", hint=f"cloche {EXEC.usage}")
    with open(os.path.join(state.fields["bundle"], "config.json"), "rb") as file:
        process = dict(fastjson.loads(file.read())["process"])
    return _overlaid(process, flags)


def _overlaid(process: dict[str, Any], flags: Flags) -> dict[str, Any]:
    """The container's own process with what the flags change, as runc does it."""
    process["args"] = flags.arguments[1:]
    process["terminal"] = flags.on("tty")
    process["env"] = [*(process.get("env") or []), *flags.all("env")]
    for flag, field in TEXT_FIELDS.items():
        if flags.text(flag):
            process[field] = flags.text(flag)
    no_new_privileges = flags.chosen("no-new-privs")
    if no_new_privileges is not None:
        process["noNewPrivileges"] = no_new_privileges
    process["user"] = _user(dict(process.get("user") or {}), flags)
    for name in flags.all("cap"):
        sets = process.setdefault("capabilities", {})
        # Ambient where it is inheritable as well (cloche.model.plan).
        for kind in ("bounding", "effective", "permitted", "ambient"):
            sets[kind] = [*(sets.get(kind) or []), name]
    return process


def _user(user: dict[str, Any], flags: Flags) -> dict[str, Any]:
    """The container's own user with what the flags change; its groups stay."""
    if flags.text("user"):
        uid, colon, gid = flags.text("user").partition(":")
        if not uid.isdigit() or not (gid.isdigit() or not colon):
            raise ConfigError(f"--user {flags.text('user')!r}: uid[:gid], both numbers")
        user["uid"] = int(uid)
        if colon:
            user["gid"] = int(gid)
    added = [_group(gid) for gid in flags.all("additional-gids")]
    if added:
        user["additionalGids"] = [*(user.get("additionalGids") or []), *added]
    return user


def _cgroup(flags: Flags) -> str | None:
    """The cgroup below the container's that was asked for; None: the container's own."""
    names = flags.all("cgroup")
    for name in names:
        if ":" in name:
            raise ConfigError(
                f"--cgroup {name}: the guest has cgroup v2, which knows no paths by controller",
                hint="leave out what is before the colon",
            )
    if len(names) > 1:
        raise ConfigError(f"--cgroup {names[1]}: in cgroup v2 a process is in one cgroup only")
    for name in names:
        if not f"{os.path.normpath(f'/c/{name}')}/".startswith("/c/"):
            raise ConfigError(f"--cgroup {name}: {name} is not a sub cgroup path")
    return names[0] if names else None


def _group(text: str) -> int:
    if not text.isdigit():
        raise ConfigError(f"--additional-gids {text!r}: a number is expected")
    return int(text)


class Wanted:
    """What is to be run: *process* in the container of *state*, as the *flags* say."""

    def __init__(
        self, context: Context, flags: Flags, state: State, process: dict[str, Any]
    ) -> None:
        self.log = context.log
        self.flags = flags
        self.process = process
        self.has_terminal = bool(process.get("terminal"))
        self.handles = Handles(flags)
        self._state = state

    def start(self, fds: list[int], *, foreground: bool = False) -> Client:
        """Have it started, with *fds* as its stdio, and tell the caller of it.

        This process stands for it from now on; what comes through the connection that is returned
        is its exit. *foreground*: its terminal is shown on ours.
        """
        client = Client(self._state)
        answer = client.request(
            "exec",
            fds,
            process=self.process,
            limits=own_limits(),
            paused=self.flags.on("ignore-paused"),
            cgroup=_cgroup(self.flags),
            foreground=foreground,
        )
        for warning in answer["warnings"]:
            self.log.warning(warning)
        self.log.debug(f"process {os.getpid()} stands for process {answer['pid']} of the guest")
        try:
            self.handles.hand_over(os.getpid(), handles.EXEC)
        except ClocheError:  # nobody gets hold of it
            client.tell("signal", signal=_signal.SIGKILL)
            client.receive()  # its exit
            raise
        return client


def _detached(wanted: Wanted) -> int:
    """Leave a process behind that stands for the one in the guest."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        close_others({write_end, *wanted.handles.descriptors})
        code = EXIT_FAILED
        try:
            code = _stand_in(wanted, write_end)
        finally:
            os._exit(code)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        outcome = fastjson.loads(pipe.read() or b'{"message": "exec: ended too early", "hint": ""}')
    if outcome:
        os.waitpid(pid, 0)
        raise ClocheError(outcome["message"], hint=outcome["hint"])
    return 0


def _stand_in(wanted: Wanted, report: int) -> int:
    def started() -> None:
        os.write(report, b"{}")
        os.close(report)

    try:
        return _relay(wanted, started)
    except (ClocheError, OSError) as error:
        told = error if isinstance(error, ClocheError) else explained(error)
        told = told or ClocheError(str(error).lower())
        message = {"message": told.message, "hint": told.hint}
        os.write(report, fastjson.dumps(message).encode())
        return EXIT_FAILED


def _relay(wanted: Wanted, started: Callable[[], None]) -> int:
    """Follow it from a session of our own; a terminal goes to whom --console-socket names."""
    os.setsid()
    fds = [0, 1, 2]
    if wanted.has_terminal:
        path = wanted.flags.text("console-socket")
        if not path:
            raise ConfigError(
                "cannot allocate a terminal without a console socket", hint="pass --console-socket"
            )
        size = wanted.process.get("consoleSize") or {}
        from cloche.heart.terminal import open_console

        slave = open_console(path, (size.get("height", 0), size.get("width", 0)))
        fds = [slave, slave]
    arrivals = _catch_signals()
    client = wanted.start(fds)
    null = os.open("/dev/null", os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.chdir("/")  # the caller's file system need not stay mounted for us
    return _until_exit(client, arrivals, started)


def _in_foreground(wanted: Wanted) -> int:
    from cloche.cli.foreground import raw_terminal

    fds = [0, 1, 2]
    if wanted.has_terminal:
        from cloche.heart.terminal import own_console

        console = own_console()
        fds = [0, 1, console if console >= 0 else 2]
    with raw_terminal(wanted.has_terminal):
        arrivals = _catch_signals()
        client = wanted.start(fds, foreground=True)
        return _until_exit(client, arrivals, lambda: None)


def _catch_signals() -> int:
    """From now on signals are bytes of the descriptor returned; the process runs before we know.

    All but SIGINT: Ctrl-C ends a request that takes too long.
    """
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    _signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in {*SIGNALS, _signal.SIGWINCH} - {_signal.SIGINT}:
        _signal.signal(number, lambda *_: None)
    return read_end


def _until_exit(client: Client, arrivals: int, started: Callable[[], None]) -> int:
    """Forward signals and window sizes until the supervisor tells the exit code."""
    _signal.signal(_signal.SIGINT, lambda *_: None)
    started()
    poller = select.poll()
    poller.register(client.fileno(), select.POLLIN)
    poller.register(arrivals, select.POLLIN)
    while True:
        # The exit may have come together with the answer to the request.
        ready = [client.fileno()] if client.has_message() else [fd for fd, _ in poller.poll()]
        for fd in ready:
            if fd == client.fileno():
                message = client.receive()
                return 137 if message is None else int(message["exit"])
            for arrived in os.read(arrivals, 64):
                if arrived == _signal.SIGWINCH:
                    client.tell("resize")
                else:
                    client.tell("signal", signal=arrived)
