"""`cloche kernel build` and `remove`: a kernel of cloche's own, compiled for guests."""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

from rich.console import Console

from cloche.base.errors import NotFoundError
from cloche.cli.setup import LineReport, TerminalReport, prepare
from cloche.guest.build import setup_lock
from cloche.guest.compile import build_kernel
from cloche.guest.kernel import built_kernel
from cloche.model.config import load_settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloche.cli.main import Context
    from cloche.model.config import Settings


def kernel(context: Context, args: list[str]) -> int:
    """`cloche kernel build|remove`; both end with `cloche setup`."""
    parser = argparse.ArgumentParser(
        prog="cloche kernel",
        description="A kernel of cloche's own: what guests need and nothing else. VMs start "
        "faster and take less memory than with the distribution's.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("build", help="compile it from the distribution's source (some minutes)")
    verbs.add_parser("remove", help="remove it, and go back to the distribution's kernel")
    options = parser.parse_args(args)
    settings = load_settings()
    return build(settings) if options.verb == "build" else remove(settings)


def build(settings: Settings) -> int:
    """Compile the kernel, then make guest and template with it."""
    started = time.monotonic()
    console = Console(highlight=False)
    data_root = Path(settings.data_root)
    with TerminalReport(console) if console.is_terminal else LineReport() as report:
        made = build_kernel(data_root, report)
    size = made.vmlinux.stat().st_size / (1 << 20)
    seconds = time.monotonic() - started
    console.print(f"kernel {made.release}: {size:.1f} MiB, {made.source}, after {seconds:.0f} s.")
    if settings.kernel:
        console.print(f"It is not used: the configuration names {settings.kernel}.")
    return prepare(settings)


def remove(settings: Settings) -> int:
    """Remove the kernel, then make guest and template with another."""
    data_root = Path(settings.data_root)
    with setup_lock(data_root):
        made = built_kernel(data_root)
        if made is None:
            raise NotFoundError(f"kernel: none of cloche's own in {data_root}")
        shutil.rmtree(made.directory)
    return prepare(settings)
