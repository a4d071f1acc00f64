"""Making and removing templates (see template.py): not on the start path of a known shape."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import tempfile
import zlib

from cloche.base.cputime import OwnTime
from cloche.base.errors import ClocheError, DamagedError
from cloche.base.files import read_text, write_atomically
from cloche.base.loop import READ, Future, Loop, Timer, read_some
from cloche.vmm.boot import launch
from cloche.vmm.files_slot import FilesSlot
from cloche.vmm.integrity import MANIFEST
from cloche.vmm.shape import MIB, Shape, is_identity_of
from cloche.vmm.template import Template, load_template, template_image
from cloche.vmm.trial import INTERVAL_S, try_in_order, wait_for_boot
from cloche.vmm.vm import Vm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from cloche.vmm.trial import Boot
    from cloche.vmm.variant import Variants

SAVE_TIMEOUT_S = 60.0
WORK_PREFIX = ".new-"


def make_template(
    root: str,
    shape: Shape,
    variants: Variants,
    boot: Boot,
    report: Callable[[str], None] = lambda text: None,
    *,
    taps: Sequence[int] = (),
) -> Template:
    """Boot a VM of *shape* from what *boot* tells (kernel, initramfs, cmdline), and save it.

    Its cards stand on *taps*, one for each, if its shape says so.

    The shape gets the variant that works. Two makers of one shape wait for each other, and the
    second finds the first one's work. Raises BootError when the guest does not come up,
    ClocheError when it cannot be saved.
    """
    with alone_in(root):
        variants.load()
        shape.variant = variants.best
        existing = load_template(root, shape)
        if existing is not None:
            with contextlib.suppress(DamagedError):
                existing.image.verify()
                return existing
        check_space(root, shape)

        def make(silence: float) -> None:
            _make(root, shape, boot(), silence, report, taps)

        try_in_order(shape, variants, make, report)
    made = load_template(root, shape)
    if made is None:
        raise ClocheError(f"template {shape.directory_name()}: cannot be read back")
    return made


@contextlib.contextmanager
def alone_in(root: str, *, wait: bool = True) -> Iterator[None]:
    """Keep other makers out of *root*, and remove what those who were killed left there.

    Where one is at work, *wait* for it, else BlockingIOError.
    """
    os.makedirs(root, mode=0o700, exist_ok=True)
    lock = os.open(os.path.join(root, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove_abandoned(root, WORK_PREFIX)
        yield
    finally:
        os.close(lock)


def _make(
    root: str,
    shape: Shape,
    boot: tuple[str, str, str],
    silence: float,
    report: Callable[[str], None],
    taps: Sequence[int],
) -> None:
    directory = tempfile.mkdtemp(prefix=WORK_PREFIX, dir=root)
    try:
        _boot_and_save(directory, shape, boot, silence, report, taps)
        _put(directory, os.path.join(root, shape.directory_name()))
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def _put(made: str, target: str) -> None:
    """Have *made* take the place of *target*; frozen QEMUs in that have a memory of their own."""
    for entry in os.scandir(target) if os.path.isdir(target) else []:
        if entry.is_dir():  # or a link to one
            os.rename(entry.path, os.path.join(made, entry.name))
    shutil.rmtree(target, ignore_errors=True)
    os.rename(made, target)


def remove_unused(root: str, guest_keys: Collection[str], qemu: str) -> list[str]:
    """Remove templates that no start will use any more; returns their names.

    Those are of other guests than those of *guest_keys*, of another QEMU than *qemu* as it is
    now, of another host CPU or another FORMAT, or damaged. Running clones keep their mapping of a
    removed memory file.
    """
    removed = []
    for name in os.listdir(root) if os.path.isdir(root) else []:
        image = template_image(os.path.join(root, name))
        manifest = read_text(image.path(MANIFEST))
        if manifest is None and not image.why_out_of_use():
            continue
        if manifest is None or not any(
            is_identity_of(_identity(manifest), qemu, key) for key in guest_keys
        ):
            shutil.rmtree(os.path.join(root, name))
            removed.append(name)
    return removed


def _identity(manifest: str) -> list[str]:
    try:
        identity: list[str] = json.loads(manifest)["identity"]
    except (ValueError, TypeError, KeyError):
        return []  # damaged: no start will use it
    return identity


def remove_abandoned(root: str, prefix: str) -> None:
    """Remove what makers that were killed left; with the lock held, nobody is at work there."""
    for name in os.listdir(root):
        if name.startswith(prefix):
            shutil.rmtree(os.path.join(root, name), ignore_errors=True)


def check_space(root: str, shape: Shape) -> None:
    """ClocheError when there is no room in *root* for what is made of *shape*."""
    stat = os.statvfs(root)
    free = stat.f_bavail * stat.f_frsize // MIB
    needed = 256 + shape.memory // 16  # what a booted guest has touched: its kernel and page tables
    if free < needed:
        raise ClocheError(
            f"template: {root} has {free} MiB free, {needed} MiB are needed",
            hint="free some space, or move it with data_root in /etc/cloche/config.toml",
        )


def _boot_and_save(
    directory: str,
    shape: Shape,
    boot: tuple[str, str, str],
    silence: float,
    report: Callable[[str], None],
    taps: Sequence[int],
) -> None:
    memory = os.path.join(directory, "memory")
    share = os.path.join(directory, "share")
    os.mkdir(share)
    fd = os.open(memory, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.ftruncate(fd, shape.memory * MIB)
    os.close(fd)
    loop = Loop()
    vm = Vm(loop, directory)
    slot = FilesSlot() if shape.files == "fuse" else None  # nobody serves it
    files = slot.fds if slot else ()
    try:
        launch(vm, shape, share=share, taps=taps, boot=boot, memory_file=memory, files=files)
        wait_for_boot(vm, silence)
        report("saving the VM")
        state = save(loop, vm, os.path.join(directory, "save.sock"))
    finally:
        vm.kill()
        if vm.pid:
            loop.run_until(vm.exited)
        loop.close()
        if slot:
            slot.close()
    os.rmdir(share)
    os.unlink(os.path.join(directory, "qemu.log"))
    write_atomically(os.path.join(directory, "device"), state)
    image = template_image(directory)
    manifest = {
        "identity": shape.identity(),
        "device_crc32": zlib.crc32(state),
        "console": vm.console.text,
        "sums": image.sums(),
    }
    for name in ("memory", "device"):
        sync(os.path.join(directory, name))
    write_atomically(image.path(MANIFEST), json.dumps(manifest).encode())
    image.note_known()


def sync(path: str) -> None:
    """Have it on the disk: the manifest must not outlive a crash that its files do not."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def wait(loop: Loop, vm: Vm, future: Future, seconds: float) -> None:
    """Run *loop* until *future* of *vm* is complete; BootError when that takes too long.

    The *seconds* are QEMU's own: what is given up on a busy host would be gone for an hour.
    """
    own = OwnTime(vm.pid)
    left = seconds
    timers: list[Timer] = []

    def look() -> None:
        nonlocal left
        left -= own.passed()
        if left <= 0:
            future.fail(vm.failure(f"no answer after {seconds:.0f} s"))
        else:
            timers[:] = [loop.call_later(min(left, INTERVAL_S), look)]

    timers.append(loop.call_later(INTERVAL_S, look))
    try:
        loop.run_until(future)
    finally:
        timers[0].cancel()


def save(loop: Loop, vm: Vm, path: str) -> bytes:
    """Have QEMU send its device state to a socket at *path*; the memory is in its file already.

    No `stop` before: a guest that is saved running resumes by itself when it is loaded.
    """
    chunks = bytearray()
    done = Future()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        capability = {"capability": "x-ignore-shared", "state": True}
        vm.command("migrate-set-capabilities", {"capabilities": [capability]})
        vm.command("migrate", {"uri": f"unix:{path}"})
        accepted: list[socket.socket] = []

        def receive(_: int) -> None:
            data = read_some(accepted[0].fileno(), 1 << 20)
            if data == b"":
                loop.unwatch(accepted[0].fileno())
                done.set()
            chunks.extend(data or b"")

        def accept(_: int) -> None:
            connection, _address = listener.accept()
            connection.setblocking(False)
            accepted.append(connection)
            loop.unwatch(listener.fileno())
            loop.watch(connection.fileno(), READ, receive)

        loop.watch(listener.fileno(), READ, accept)
        try:
            wait(loop, vm, done, SAVE_TIMEOUT_S)
        finally:
            loop.unwatch(listener.fileno())
            for connection in accepted:
                connection.close()
    os.unlink(path)
    status = vm.command("query-migrate")
    wait(loop, vm, status, SAVE_TIMEOUT_S)
    if status.value.get("status") != "completed":
        raise vm.failure(f"saving ended as {status.value}")
    return bytes(chunks)
