"""Making a frozen QEMU (docs/frozen.md). Imported only where there is none that fits."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import time
import zlib
from typing import TYPE_CHECKING, Any

from cloche.base.errors import ClocheError, DamagedError
from cloche.base.files import write_atomically
from cloche.base.loop import Loop
from cloche.heart.agent import Agent
from cloche.heart.files import serve_files
from cloche.heart.greeting import FUSE
from cloche.heart.rehearsal import BRIEF, BRIEF_STATUS, SCRIPT, SHELL, Act, Rehearsal, make_bundle
from cloche.host.file_server import FileServerError
from cloche.host.own_taps import own_taps, settings_of
from cloche.vmm.argv import NIC_SLOTS
from cloche.vmm.frozen import (
    FOLDER,
    MEMORY,
    PROCESS,
    RETRY_SOON_S,
    Frozen,
    find_thaw,
    frozen_folder,
    frozen_image,
    identity,
    load_frozen,
    print_of,
)
from cloche.vmm.integrity import MANIFEST
from cloche.vmm.launch import file_limit
from cloche.vmm.template_maker import (
    WORK_PREFIX,
    alone_in,
    check_space,
    remove_abandoned,
    sync,
    wait,
)
from cloche.vmm.vm import Vm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cloche.vmm.shape import Shape
    from cloche.vmm.template import Template

# Containers in the first QEMU: the first finds everything new, the others what that has opened.
ROUNDS = 3
TRIAL_TIMEOUT_S = 30.0
# A tmpfs, as every sandbox's share is one: QEMU's 9p server looks once, and where files have
# generations (ext4) opens each file for its own, at every question.
SHARES = "/dev/shm"
# What may be better soon: want of space, memory, descriptors.
PASSING = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE}


def make_frozen(
    root: str,
    shape: Shape,
    template: Template,
    *,
    again: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> Frozen | None:
    """Freeze a VM of *shape*, made from *template*, below *root*; None where that cannot be done.

    It has taps, or a user-mode network, as its shape says. Told to try *again*, it waits for
    another maker, tries out what there is, and does not mind that none could be made the last
    time; else it leaves all that to others: what could not be done is noted, and not tried again
    for an hour. ClocheError or OSError when not even that can be written.
    """
    root = os.path.realpath(root)  # as QEMU's descriptors and maps tell of it
    with contextlib.suppress(BlockingIOError), alone_in(root, wait=again):
        remove_abandoned(SHARES, work_prefix(root))
        remove_abandoned(os.path.join(root, shape.directory_name()), WORK_PREFIX)
        frozen, problem = load_frozen(root, shape)
        if again and frozen is not None and not _thaws(root, frozen, shape.files):
            frozen = None
        if frozen is None and (again or not problem):
            check_space(root, shape)
            template.image.verify()  # else the damage would be in this one as well, unseen
            target = frozen_folder(root, shape)
            _make(root, target, shape, template, report)
            frozen, _ = load_frozen(root, shape)
        return frozen
    return None


def _make(
    root: str,
    target: str,
    shape: Shape,
    template: Template,
    report: Callable[[str], None],
) -> None:
    """Make one beside *target*, and put it there when it is known what became of it."""
    directory = tempfile.mkdtemp(prefix=work_prefix(root), dir=SHARES)
    made = tempfile.mkdtemp(prefix=WORK_PREFIX, dir=os.path.dirname(target))
    facts: dict[str, Any] = {"identity": identity(shape), "problem": "", "time": time.time()}
    try:
        facts |= _freeze(directory, made, shape, template, report)
        report("trying the frozen QEMU out")
        thaw = find_thaw() or ""
        frozen = Frozen(thaw, shape.qemu, made, facts["taps"], facts["file_limit"])
        _try(directory, frozen, shape.files)
    except FileServerError:  # it says nothing about a frozen QEMU
        shutil.rmtree(made, ignore_errors=True)
        raise
    except (ClocheError, OSError) as error:
        for name in (MEMORY, PROCESS):
            if os.path.exists(path := os.path.join(made, name)):
                os.unlink(path)
        facts["problem"] = str(error)
        if getattr(error, "errno", 0) in PASSING:
            facts["retry"] = RETRY_SOON_S
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    write_atomically(os.path.join(made, MANIFEST), json.dumps(facts).encode())
    if not facts["problem"]:
        frozen_image(made).note_known()
    _put(made, target)


def _put(made: str, target: str) -> None:
    """Have the folder *made* take the place of *target*; who has opened that goes on with it."""
    old = f"{made}.old"  # removed by the next maker, if this one is killed
    with contextlib.suppress(FileNotFoundError):
        os.rename(target, old)
    os.rename(made, target)
    shutil.rmtree(old, ignore_errors=True)


def _freeze(
    directory: str,
    target: str,
    shape: Shape,
    template: Template,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Rehearse, and write memory and process to *target*; returns what the manifest tells of them.

    In two QEMUs: the first leaves a guest behind that has done what it does once only; the second
    then translates nothing but what every start needs, so that it lies close together.
    """
    memory, image = os.path.join(target, MEMORY), os.path.join(target, PROCESS)
    copy_sparse(template.memory_file, memory)
    config = make_bundle(directory)
    with own_taps(NIC_SLOTS if shape.taps else 0) as cards:
        report("running containers in a VM, for a QEMU that knows how")
        with Rehearsal(directory, config) as first:
            first.restore(shape, memory, template.state, cards)
            first.run([Act([SHELL], SCRIPT)] * ROUNDS)
            state = first.save()
        with Rehearsal(directory, config) as second:
            second.restore(shape, memory, state, cards)
            second.run([Act([SHELL]), Act([BRIEF], status=BRIEF_STATUS)])
            report("freezing QEMU")
            files = second.freeze(image, memory)
            taps = settings_of(cards[0]) if cards else ()
    for path in (memory, image):
        sync(path)
    known = [print_of(path) for path in files]
    facts = {"taps": taps, "files": known, "size": os.stat(image).st_size}
    return {**facts, "file_limit": file_limit(), "sums": frozen_image(target).sums()}


def work_prefix(root: str) -> str:
    """What the folders of makers for *root* begin with, in a folder that is not theirs alone.

    Other roots than ours (containers, chroots) may share that, and have one of the same name.
    """
    stat = os.stat(root)
    return f".cloche-{zlib.crc32(b'%d %d' % (stat.st_dev, stat.st_ino)):08x}-"


def remove_all(root: str) -> None:
    """Remove all frozen QEMUs below *root*; what runs goes on."""
    for name in os.listdir(root) if os.path.isdir(root) else []:
        shutil.rmtree(os.path.join(root, name, FOLDER), ignore_errors=True)


def _thaws(root: str, frozen: Frozen, kind: str) -> bool:
    """Whether it is whole and comes to life; one that may open more files than we is not tried."""
    try:
        frozen.image.verify()
    except DamagedError:
        return False
    if frozen.files > file_limit():
        return True
    with tempfile.TemporaryDirectory(prefix=work_prefix(root), dir=SHARES) as directory:
        try:
            _try(directory, frozen, kind)
        except (ClocheError, OSError):
            return False
    return True


def _try(directory: str, frozen: Frozen, kind: str) -> None:
    """Have a first VM thaw, and its agent answer; BootError if it does not."""
    loop = Loop()
    vm = Vm(loop, directory)
    agent = Agent(vm, lambda _: None)
    files = serve_files(vm, directory, directory) if kind == FUSE else ()
    try:
        vm.thaw(frozen, share=directory, taps=[], otherwise=None, files=files)
        wait(loop, vm, vm.running, TRIAL_TIMEOUT_S)
        wait(loop, vm, agent.hello(), TRIAL_TIMEOUT_S)
    finally:
        vm.kill()
        if vm.pid:
            loop.run_until(vm.exited)
        loop.close()


def copy_sparse(source: str, target: str) -> None:
    """Copy a file to a new one that only we may read, its holes as holes; OSError on failure."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    old, new = os.open(source, os.O_RDONLY | os.O_CLOEXEC), os.open(target, flags, 0o600)
    try:
        size = os.fstat(old).st_size
        os.ftruncate(new, size)
        for start, end in _data_of(old, size):
            while start < end:
                count = os.copy_file_range(old, new, end - start, start, start)
                if count == 0:
                    raise OSError(errno.EIO, "nothing could be copied", target)
                start += count
    finally:
        os.close(old)
        os.close(new)


def _data_of(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Start and end of each stretch that is no hole."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end
