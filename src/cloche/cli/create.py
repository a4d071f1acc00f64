"""`create` and `run`: QEMU is started first, everything else is done while it starts."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # signal proper imports enum, 5 ms

from cloche.base import fastjson
from cloche.base.errors import ClocheError, ConfigError
from cloche.base.files import write_atomically
from cloche.cli import handles
from cloche.cli.flags import BOOL, TEXT, Flag, Flags, Verb
from cloche.cli.handles import Handles
from cloche.heart.bringup import Created, bring_up
from cloche.heart.launch import Request
from cloche.model.config import load_settings
from cloche.model.state import load_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloche.cli.main import Context

_COMMON = (
    Flag("bundle b", TEXT, "folder with config.json (default: the current one)"),
    Flag("console-socket", TEXT, "AF_UNIX socket that receives the terminal's master"),
    *handles.FLAGS,
    Flag("no-pivot", BOOL, "accepted; the guest always pivots"),
    Flag("no-new-keyring", BOOL, "accepted; every VM has its own keyrings"),
    Flag("preserve-fds", TEXT, "not possible: a VM cannot be given host descriptors"),
)
CREATE = Verb("create [flags] ID", "Create a container; `cloche start ID` runs it.", _COMMON)
RUN = Verb(
    "run [flags] ID",
    "Create and start a container.",
    (
        *_COMMON,
        Flag("detach d", BOOL, "return once the program runs"),
        Flag("keep", BOOL, "keep the container's state after its end"),
        Flag("no-subreaper", BOOL, "accepted; orphans stay in the guest"),
    ),
)


def _request(
    context: Context,
    flags: Flags,
    container_id: str,
    *,
    foreground: bool = False,
    at_once: bool = False,
) -> Request:
    if flags.number("preserve-fds"):
        raise ConfigError("--preserve-fds: a VM cannot be given descriptors of the host")
    return Request(
        root=context.root,
        container_id=container_id,
        bundle=flags.text("bundle", "."),
        settings=load_settings(),
        console_socket=flags.text("console-socket"),
        foreground=foreground,
        at_once=at_once,
        debug=context.log.is_debugging,
    )


def create(context: Context, args: list[str]) -> int:
    """`cloche create`."""
    flags, container_id = CREATE.one_id(args)
    request = _request(context, flags, container_id)
    _bring_up(context, request, "create", Handles(flags))
    return 0


def run(context: Context, args: list[str]) -> int:
    """`cloche run`; in the foreground the exit status is the container's."""
    flags, container_id = RUN.one_id(args)
    detach = flags.on("detach")
    request = _request(context, flags, container_id, foreground=not detach, at_once=True)
    if detach:
        start_now(context, request, Handles(flags))
        return 0
    return run_attached(context, request, Handles(flags), keep=flags.on("keep"))


def run_attached(
    context: Context, request: Request, asked: Handles | None = None, *, keep: bool = False
) -> int:
    """Run the container of *request* to its end; returns its exit code."""
    created = start_now(context, request, asked)
    from cloche.cli.foreground import follow

    return follow(request, created.pid, context.log, keep=keep)


def start_now(context: Context, request: Request, asked: Handles | None) -> Created:
    """Create the container of *request*, *asked* for by handles, and run its program at once."""
    if request.foreground:
        _note_signals(request)
    created = _bring_up(context, request, "run", asked)
    if "poststart" in request.glance.hooks:
        from cloche.cli.lifecycle import remove, run_poststart

        try:
            run_poststart(load_state(request.root, request.id))
        except ClocheError:
            remove(request.root, request.id, force=True, log=context.log)
            raise
    return created


def _note_signals(request: Request) -> None:
    """Keep what is sent from now on for the program: it runs before we can forward anything.

    SIGINT gives the start up, until the supervisor hears a terminal's Ctrl-C for the program.
    """

    def note(number: int, _: object) -> None:
        request.early_signals.append(number)

    def interrupted(_: int, __: object) -> None:
        request.interrupted = True
        if not request.is_listening:
            raise KeyboardInterrupt

    _signal.signal(_signal.SIGINT, interrupted)
    for number in (_signal.SIGTERM, _signal.SIGHUP, _signal.SIGUSR1, _signal.SIGUSR2):
        _signal.signal(number, note)


def _prepare(request: Request) -> None:
    """Import what follows a container, now that only the supervisor is waited for."""
    if request.foreground:
        import cloche.cli.foreground
        import cloche.cli.lifecycle  # noqa: F401


def _bring_up(context: Context, request: Request, verb: str, asked: Handles | None) -> Created:
    try:
        created = bring_up(request, lambda: _prepare(request))
        _hand_over(context, request, asked, created)
    except ConfigError:
        raise
    except ClocheError as error:
        if request.interrupted:
            raise KeyboardInterrupt from None
        error.message = f"{verb} failed: {error.message}"
        raise
    for warning in created.warnings:
        context.log.warning(warning)
    if context.log.is_debugging:
        _tell_story(context, created)
    return created


def _tell_story(context: Context, created: Created) -> None:
    """How the container was created."""
    for line in (f"process {created.pid} stands for the container", *created.debug):
        context.log.debug(line)
    for name, at in phases(created).items():
        context.log.debug(f"{name} after {at} ms")


def _hand_over(context: Context, request: Request, asked: Handles | None, created: Created) -> None:
    """Tell the caller of the container; one that nobody gets hold of is removed again."""
    try:
        if asked is not None:
            asked.hand_over(created.pid, handles.INIT)
        _write_timings(context, created)
    except ClocheError:
        from cloche.cli.lifecycle import remove

        remove(request.root, request.id, force=True, log=context.log)
        raise


def _write_timings(context: Context, created: Created) -> None:
    """The phases of the start to the file of --timings; ClocheError where it cannot be had."""
    if not context.timings:
        return
    text = fastjson.pretty(phases(created))
    try:
        write_atomically(context.timings, text.encode() + b"\n", 0o644)
    except OSError as error:
        cause = (error.strerror or str(error)).lower()
        raise ClocheError(f"--timings {context.timings}: {cause}") from None


def phases(created: Created) -> dict[str, float]:
    """When the phases of its start were reached, in ms since QEMU was asked for."""
    marks = created.timings
    first = marks[0][1] if marks else 0
    return {name: round((at - first) / 1e6, 3) for name, at in marks}
