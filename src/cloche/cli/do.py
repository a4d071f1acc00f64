"""`do`: run an image or a folder in a VM of its own, with no engine and nothing left behind."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

from cloche.base.errors import ClocheError
from cloche.cli.create import start_now
from cloche.heart.launch import Request
from cloche.image.bundle import DoOptions, bundle_config
from cloche.image.store import resolve
from cloche.model.config import load_settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloche.cli.main import Context
    from cloche.image.model import Image

USER_NETWORK = "user"
# QEMU's user-mode network answers DNS here and hands queries to the host's resolver.
RESOLV_CONF = "nameserver 10.0.2.3\n"


def do(context: Context, args: list[str]) -> int:
    """`cloche do`: the exit status is the command's."""
    options, reference, quiet = _parse(args)
    settings = load_settings()

    def report(text: str) -> None:
        if not quiet:
            os.write(2, f"cloche: {text}\n".encode())

    image = resolve(reference, Path(settings.data_root), report)
    container_id = f"do-{os.getpid()}-{os.urandom(4).hex()}"
    os.makedirs(context.root, mode=0o700, exist_ok=True)
    bundle = tempfile.mkdtemp(prefix=".bundle-", dir=context.root)
    try:
        _write_bundle(bundle, image, options, container_id)
        request = Request(
            root=context.root,
            container_id=container_id,
            bundle=bundle,
            settings=settings,
            foreground=True,
            at_once=True,
            image=str(image.erofs or ""),
            user_network=options.network == USER_NETWORK,
        )
        created = start_now(context, request)
        from cloche.cli.foreground import follow

        return follow(request, created.pid, keep=False)
    finally:
        shutil.rmtree(bundle, ignore_errors=True)


def _parse(args: list[str]) -> tuple[DoOptions, str, bool]:
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
    add("--hostname", default="", metavar="NAME")
    add("--read-only", action="store_true", help="root file system read-only")
    add("--entrypoint", metavar="PROGRAM", help="in place of the image's; empty removes it")
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
    return options, parsed.image, parsed.quiet


def _write_bundle(bundle: str, image: Image, options: DoOptions, container_id: str) -> None:
    config = bundle_config(image, options)
    config.setdefault("hostname", container_id[-8:])
    if options.network == USER_NETWORK:
        path = os.path.join(bundle, "resolv.conf")
        Path(path).write_text(RESOLV_CONF, encoding="utf-8")
        config["mounts"].append(
            {
                "destination": "/etc/resolv.conf",
                "type": "bind",
                "source": path,
                "options": ["bind", "ro"],
            }
        )
    try:
        Path(bundle, "config.json").write_text(json.dumps(config), encoding="utf-8")
    except OSError as error:
        raise ClocheError(
            f"bundle {bundle}: {(error.strerror or '').lower()}", hint="is the disk full?"
        ) from None
