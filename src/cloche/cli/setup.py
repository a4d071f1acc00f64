"""`cloche setup`: choose a kernel, build the guest, save the first template; say what and why."""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from cloche.base.errors import ClocheError
from cloche.base.limits import MAKE, own_limits, require, start_needs
from cloche.base.spawn import run
from cloche.base.text import printable
from cloche.guest import build
from cloche.guest.agent_binary import find_agent, require_agent
from cloche.guest.guest import Guest, guest_for
from cloche.guest.report import Report
from cloche.heart import frozen_maker, templates
from cloche.heart.machine import boot_of, choose_shape, find_variants
from cloche.model.config import Settings, load_settings
from cloche.model.state import DEFAULT_ROOT
from cloche.vmm import template_maker
from cloche.vmm.accel import choose_accel
from cloche.vmm.frozen import FROZEN_ACCEL, frozen_folder, load_frozen
from cloche.vmm.shape import DEFAULT_MEMORY, Shape
from cloche.vmm.template import Template, load_template

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cloche.cli.main import Context
    from cloche.vmm.variant import Variants

MIB = 1 << 20


class Row(NamedTuple):
    """A line of the summary: what it is about, what was chosen, why (or how big)."""

    what: str
    chosen: str
    why: str


def setup(context: Context, args: list[str]) -> int:
    """`cloche setup [--check]`: 0 when all is current (afterwards), 1 with reasons when not."""
    parser = argparse.ArgumentParser(
        prog="cloche setup",
        description="Prepare what VMs start from: kernel, initramfs and the first template. "
        "Everything is kept below cloche's data folder; nothing else on the host changes.",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="only say whether all is current (exit status 0) or not",
    )
    options = parser.parse_args(args)
    settings = load_settings()
    return check(settings) if options.check else prepare(settings)


def prepare(settings: Settings) -> int:
    """Bring everything up to date, showing progress, then the summary."""
    started = time.monotonic()
    require(own_limits(), {**start_needs(DEFAULT_MEMORY), **MAKE})
    console = Console(highlight=False)
    with TerminalReport(console) if console.is_terminal else LineReport() as report:
        version = qemu_version(settings)
        guest = make_guest(settings, report)
        rows = make_template(settings, guest, report)
        removed = remove_unused(settings)
    accel = choose_accel(DEFAULT_ROOT, settings.accel)
    host = [
        Row("QEMU", version, settings.qemu),
        Row("accelerator", accel.name, accel.reason),
    ]
    show_summary(console, [*guest_rows(guest), *host, *rows])
    for name in removed:
        console.print(f"Removed {name}: not used any more.")
    console.print(f"Ready after {time.monotonic() - started:.1f} s.")
    return 0


def make_guest(settings: Settings, report: Report) -> Guest:
    """Find the kernel and build the guest out of it and the agent."""
    report.step("Looking for the agent")
    agent = require_agent()
    return build.make_guest(Path(settings.data_root), agent, configured_kernel(settings), report)


def configured_kernel(settings: Settings) -> Path | None:
    """The kernel that the configuration names."""
    return Path(settings.kernel) if settings.kernel else None


def make_template(settings: Settings, guest: Guest, report: Report) -> list[Row]:
    """Save the template of the default shape, and its frozen QEMU, unless they are there."""
    if not settings.template:
        return [Row("template", "none", "switched off in the configuration: every VM boots cold")]
    build.check_whole(guest)
    report.step("Looking for a template of the default shape")
    variants = find_variants(settings)
    rows: list[Row] = []
    for shape in default_shapes(variants, guest):
        rows += make_one(settings, variants, shape, guest, report)
    why = ". ".join(variants.refused) or "the first choice"
    return [Row("machine", str(variants.best), why), *rows]


def default_shapes(variants: Variants, guest: Guest) -> list[Shape]:
    """The default size with taps, and without any."""
    return [choose_shape(variants, guest, None, None, taps=taps) for taps in (True, False)]


def make_one(
    settings: Settings, variants: Variants, shape: Shape, guest: Guest, report: Report
) -> list[Row]:
    """Save a template of the default size, and its frozen QEMU, unless they are there."""
    title = f"template, {'taps' if shape.taps else 'user-mode network'}"
    template = templates.make_template(
        settings,
        variants,
        shape,
        lambda: boot_of(guest, shape),
        lambda text: report.step(f"Making the {title}: {text}"),
    )
    size = disk_usage(Path(settings.templates, shape.directory_name()))
    what = f"{shape.cpus} vCPU, {shape.memory} MiB"
    return [
        Row(title, what, f"the default shape; {size / MIB:.0f} MiB on disk"),
        make_frozen(settings, shape, template, report),
    ]


def make_frozen(settings: Settings, shape: Shape, template: Template, report: Report) -> Row:
    """Freeze a QEMU of the default shape, where that makes starts quicker, unless it is there."""
    title = f"frozen QEMU, {'taps' if shape.taps else 'user-mode network'}"
    if not settings.freeze:
        return Row(title, "none", "switched off in the configuration")
    if shape.accel != FROZEN_ACCEL:
        return Row(title, "none", f"starts with {shape.accel} have nothing to translate")
    report.step(f"Looking for a {title}, of the default shape")
    try:
        frozen = frozen_maker.make_frozen(
            settings.templates,
            shape,
            template,
            again=True,
            report=lambda text: report.step(f"Making a {title}: {text}"),
        )
    except (ClocheError, OSError) as error:
        return Row(title, "none", f"starts take longer: {error}")
    if frozen is None:
        _, problem = load_frozen(settings.templates, shape)
        return Row(title, "none", f"starts take longer: {problem}")
    folder = frozen_folder(settings.templates, shape)
    size = disk_usage(Path(folder))
    return Row(title, "of the default shape", f"{size / MIB:.0f} MiB on disk")


def remove_unused(settings: Settings) -> list[str]:
    """Remove what no VM will start from any more, of this or another installation."""
    data_root = Path(settings.data_root)
    if not settings.freeze:
        frozen_maker.remove_all(settings.templates)
    with build.setup_lock(data_root):
        removed = build.remove_unused(data_root)
        wanted = build.wanted_guests(data_root)
        names = template_maker.remove_unused(settings.templates, wanted, settings.qemu)
    return [*removed, *(f"templates/{name}" for name in names)]


def check(settings: Settings) -> int:
    """Say whether guest and template are current; 0 or 1."""
    reasons = stale_reasons(settings)
    if not reasons:
        print("cloche is set up, everything is current.")
        return 0
    for reason in reasons:
        print(f"not current: {reason}")
    print("Run `cloche setup` to bring it up to date.")
    return 1


def stale_reasons(settings: Settings) -> list[str]:
    """Why `cloche setup` has something to do; empty when it has not."""
    reasons: list[str] = []
    try:
        qemu_version(settings)
    except ClocheError as error:
        reasons.append(str(error))
    agent = find_agent()
    guest = guest_for(settings.data_root, agent)
    if agent is None and guest is None:
        reasons.append("the agent's binary is not there (`make agent` builds it)")
    stale = build.guest_is_stale(guest, agent, configured_kernel(settings))
    if stale is not None:
        reasons.append(f"guest: {stale}")
    elif guest is not None and (damaged := _damage(guest)):
        reasons.append(damaged)
    elif guest is not None and settings.template and not reasons:
        shapes = default_shapes(find_variants(settings), guest)
        faults = [why for shape in shapes for why in image_faults(settings, shape)]
        reasons = list(dict.fromkeys(faults))
    return reasons


def image_faults(settings: Settings, shape: Shape) -> Iterator[str]:
    """What is missing or damaged of what VMs of *shape* start from."""
    template = load_template(settings.templates, shape)
    if template is None:
        yield "template: none for this QEMU, CPU, accelerator and guest"
    elif damaged := template.image.damaged():
        yield f"template: {template.image.path(damaged)} is damaged"
    elif settings.freeze and shape.accel == FROZEN_ACCEL:
        frozen, problem = load_frozen(settings.templates, shape)
        if frozen is not None and (damaged := frozen.image.damaged()):
            yield f"frozen QEMU: {frozen.image.path(damaged)} is damaged"
        elif frozen is None and not problem:  # what this host cannot do no setup brings about
            yield "frozen QEMU: none for this QEMU, its libraries, CPU and kernel"


def _damage(guest: Guest) -> str:
    try:
        build.check_whole(guest)
    except ClocheError as error:
        return str(error)
    return ""


def qemu_version(settings: Settings) -> str:
    """The version of the QEMU that VMs run in; ClocheError when it is not there."""
    output = run([settings.qemu, "--version"], hint="try: apt-get install qemu-system-x86")
    return output.decode(errors="replace").splitlines()[0].removeprefix("QEMU emulator version ")


def guest_rows(guest: Guest) -> list[Row]:
    """What the guest is made of, for the summary."""
    manifest = guest.manifest
    kernel = manifest["kernel"]
    modules = f"{len(manifest['modules'])} loaded, {len(manifest['builtin'])} built in"
    absent = f"; absent: {', '.join(manifest['absent'])}" if manifest["absent"] else ""
    agent = manifest["agent"]
    return [
        Row("kernel", guest.kernel_release, f"{kernel['source']}: {kernel['reason']}"),
        Row("modules", modules, f"in the order of modules.dep{absent}"),
        Row("agent", f"{agent['size'] / 1024:.0f} KiB", agent["path"]),
        Row("initramfs", f"{manifest['initramfs_size'] / MIB:.1f} MiB", "agent and modules only"),
        Row("guest", guest.key, guest.directory),
    ]


def show_summary(console: Console, rows: list[Row]) -> None:
    """The table on a terminal; one plain line a row elsewhere, for logs."""
    if not console.is_terminal:
        for row in rows:
            print(f"{row.what}: {row.chosen} ({row.why})")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", "chosen", "why"):
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def disk_usage(directory: Path) -> int:
    """Bytes on disk of the files in *directory*; a template's memory file is mostly holes."""
    return sum(path.stat().st_blocks * 512 for path in directory.iterdir() if path.is_file())


class LineReport:
    """A Report that prints a line per step, for pipes and logs."""

    def __enter__(self) -> LineReport:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self, text: str) -> None:
        """Print the step."""
        print(f"{text} …", flush=True)

    def advance(self, fraction: float) -> None:
        """Nothing: a line per per cent would only fill logs."""

    def note(self, text: str) -> None:
        """Print the note."""
        print(f"note: {printable(text)}", flush=True)


class TerminalReport:
    """A Report that shows the running step with a spinner, a bar where it is known, and time."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=max(10, shutil.get_terminal_size().columns // 5)),
            TimeElapsedColumn(),
            console=console,
        )

    def __enter__(self) -> TerminalReport:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._finish()
        self._progress.stop()

    def _finish(self) -> None:
        for task in self._progress.tasks[-1:]:
            self._progress.update(task.id, total=1, completed=1)

    def step(self, text: str) -> None:
        """Tick off the step before, and show this one."""
        self._finish()
        self._progress.add_task(text, total=None)

    def advance(self, fraction: float) -> None:
        """Fill the bar."""
        task = self._progress.tasks[-1]
        self._progress.update(task.id, total=1, completed=min(fraction, 0.99))

    def note(self, text: str) -> None:
        """Print above the progress."""
        self._progress.console.print(f"note: {printable(text)}", markup=False)
