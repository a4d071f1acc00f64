"""`do`: run an image or a folder in a VM of its own, with no engine and nothing left behind."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cloche.base.errors import ClocheError, ConfigError
from cloche.base.limits import lift, own_limits
from cloche.base.text import printable
from cloche.cli.create import run_attached
from cloche.cli.lifecycle import remove
from cloche.heart.launch import Request
from cloche.host import user_network
from cloche.image.bundle import DoOptions, bundle_config
from cloche.image.store import hold, resolve
from cloche.model.config import load_settings

if TYPE_CHECKING:
    from cloche.cli.main import Context
    from cloche.image.model import Image

USER_NETWORK = "user"
# QEMU's user-mode network answers DNS here and hands queries to the host's resolver.
RESOLV_CONF = f"nameserver {user_network.NAMESERVER}\n"
LOCALHOST = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
PREFIX = "do-"
BUNDLE_PREFIX = ".bundle-"


def do(context: Context, args: list[str]) -> int:
    """`cloche do`: the exit status is the command's, or docker's where it could not be run."""
    try:
        options, wanted = _parse(args)
        return _do(context, options, wanted)
    except ClocheError as error:
        error.exit_code = _exit_code(error.message)
        raise


class Wanted(NamedTuple):
    """What the flags say about cloche's own work."""

    image: str
    refresh: bool
    quiet: bool
    host_loopback: frozenset[int] | None

    def report(self, text: str) -> None:
        """A line for who waits."""
        if not self.quiet:
            os.write(2, f"cloche: {printable(text)}\n".encode())


def _do(context: Context, options: DoOptions, wanted: Wanted) -> int:
    settings = load_settings()
    limits = own_limits()
    lift(limits)  # they are the command's, and not about the work on its image
    image = resolve(wanted.image, Path(settings.data_root), wanted.report, refresh=wanted.refresh)
    # The supervisor keeps it: nobody removes the image while the VM runs.
    held = hold(image)
    container_id = f"{PREFIX}{os.getpid()}-{os.urandom(4).hex()}"
    # With a letter: one of digits only is taken for an IPv4 address (inet_aton(3)).
    options = options._replace(hostname=options.hostname or f"c{container_id[-8:]}")
    _sweep(context.root)
    bundle = os.path.join(context.root, f"{BUNDLE_PREFIX}{container_id}")
    try:
        os.makedirs(bundle, mode=0o700)
        _write_bundle(bundle, image, options)
        request = Request(
            root=context.root,
            container_id=container_id,
            bundle=bundle,
            settings=settings,
            foreground=True,
            at_once=True,
            ends_with_caller=True,
            image=str(image.erofs or ""),
            user_network=options.network == USER_NETWORK,
            debug=context.log.is_debugging,
            host_loopback=wanted.host_loopback,
            keep=[held],
            limits=limits,
        )
        return run_attached(context, request)
    finally:
        shutil.rmtree(bundle, ignore_errors=True)
        os.close(held)


def _exit_code(message: str) -> int:
    """What docker exits with when a command cannot be run (docker run(1), exit status)."""
    if 'exec: "' not in message:
        return 125
    return 126 if "permission denied" in message else 127


def _sweep(root: str) -> None:
    """Remove what is left of those before us that were killed."""
    for name in os.listdir(root) if os.path.isdir(root) else []:
        container_id = name.removeprefix(BUNDLE_PREFIX)
        pid = container_id.removeprefix(PREFIX).partition("-")[0]
        if not (container_id.startswith(PREFIX) and pid.isdigit()):
            continue
        if os.path.exists(f"/proc/{pid}"):
            continue
        with contextlib.suppress(ClocheError, OSError):
            remove(root, container_id, force=True)
        shutil.rmtree(os.path.join(root, f"{BUNDLE_PREFIX}{container_id}"), ignore_errors=True)


def _parse(args: list[str]) -> tuple[DoOptions, Wanted]:
    parser = argparse.ArgumentParser(
        prog="cloche do",
        description="Run a command in a new VM whose root is IMAGE: a folder with a root file "
        "system, an OCI layout, a docker or OCI archive, or a registry reference (by skopeo).",
    )
    add = parser.add_argument
    add("-t", "--tty", action="store_true", help="give the command a terminal")
    add("-i", "--interactive", action="store_true", help="accepted: stdin is always passed on")
    add("-v", "--volume", action="append", default=[], metavar="SRC:DST[:ro]")
    add("-e", "--env", action="append", default=[], metavar="NAME[=VALUE]")
    add("-w", "--workdir", default="", metavar="DIR")
    add("-u", "--user", default="", metavar="USER[:GROUP]")
    add("--memory", "-m", default="", metavar="SIZE", help="limit, such as 512m or 2g")
    add("--cpus", default="", metavar="NUMBER", help="limit, such as 2 or 0.5")
    add("--network", default=USER_NETWORK, choices=("user", "none"))
    add(
        "--host-loopback",
        action="append",
        default=[],
        metavar="PORT[,PORT…]|all",
        help="ports of the host's own loopback that the user network leads to, at 10.0.2.2",
    )
    add("--hostname", default="", metavar="NAME")
    add("--read-only", action="store_true", help="root file system read-only")
    add("--entrypoint", metavar="PROGRAM", help="in place of the image's; empty removes it")
    add("--pull", action="store_true", help="fetch or unpack the image again, in case it changed")
    add("-q", "--quiet", action="store_true", help="no progress messages")
    add("image", metavar="IMAGE|DIR")
    add("command", nargs=argparse.REMAINDER, help="command and arguments")
    parsed = parser.parse_args(args)
    command = parsed.command[1:] if parsed.command[:1] == ["--"] else parsed.command
    options = DoOptions(
        command=tuple(command),
        env=tuple(parsed.env),
        workdir=parsed.workdir,
        user=parsed.user,
        volumes=tuple(parsed.volume),
        memory=parsed.memory,
        cpus=parsed.cpus,
        hostname=parsed.hostname,
        tty=parsed.tty,
        network=parsed.network,
        read_only=parsed.read_only,
        entrypoint=(parsed.entrypoint,) if parsed.entrypoint is not None else (),
    )
    ports = _loopback_ports(parsed.host_loopback)
    return options, Wanted(parsed.image, parsed.pull, parsed.quiet, ports)


def _loopback_ports(values: list[str]) -> frozenset[int] | None:
    """The ports that *values* name; None: all of them. ConfigError for what is no port."""
    words = [word for value in values for word in value.split(",")]
    for word in words:
        is_port = word.isascii() and word.isdigit() and 0 < int(word) < 1 << 16
        if not is_port and word != "all":
            raise ConfigError(f"--host-loopback {word!r}: ports, or all, are expected")
    return None if "all" in words else frozenset(map(int, words))


def _write_bundle(bundle: str, image: Image, options: DoOptions) -> None:
    config = bundle_config(image, options)
    taken = {mount["destination"] for mount in config["mounts"]}
    try:
        for destination, text in _own_files(image, options).items():
            if destination not in taken:
                path = Path(bundle, os.path.basename(destination))
                path.write_text(text, encoding="utf-8")
                config["mounts"].append(_file_mount(destination, str(path)))
        Path(bundle, "config.json").write_text(json.dumps(config), encoding="utf-8")
    except OSError as error:
        raise ClocheError(
            f"bundle {bundle}: {(error.strerror or '').lower()}", hint="is the disk full?"
        ) from None


def _own_files(image: Image, options: DoOptions) -> dict[str, str]:
    """Files of the container that depend on where it runs, unless the user mounts others."""
    user = options.network == USER_NETWORK
    files = {"/etc/resolv.conf": RESOLV_CONF} if user else {}
    if image.erofs:  # a folder is somebody's own system, and has its own names
        address = user_network.GUEST if user else "127.0.1.1"
        files["/etc/hosts"] = f"{LOCALHOST}{address}\t{options.hostname}\n"
    return files


def _file_mount(destination: str, source: str) -> dict[str, Any]:
    options = ["bind", "rprivate"]
    return {"destination": destination, "type": "bind", "source": source, "options": options}
