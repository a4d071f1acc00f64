"""Making the guest: kernel and initramfs in one folder named by their contents."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from cloche.base.errors import ClocheError, DamagedError
from cloche.base.files import write_atomically
from cloche.guest.compile import newer_source
from cloche.guest.guest import (
    RECIPE,
    Guest,
    agent_record,
    changed_source,
    current_guest,
    fingerprint,
    guest_for,
    guests_root,
    is_current,
    load_guest,
    other_than_configured,
    recorded_key,
)
from cloche.guest.initramfs import build_initramfs
from cloche.guest.kernel import (
    BUILT,
    Kernel,
    built_kernel,
    find_kernel,
    is_built,
    kernels_root,
    load_kernel,
    newest_boot_image,
)
from cloche.guest.module_store import keeps_modules
from cloche.guest.modules import ModulePlan, read_index, resolve
from cloche.guest.package import candidate_package
from cloche.guest.report import Report, SilentReport
from cloche.guest.tools import explained_os_errors, new_directory


def build_guest(
    data_root: Path, kernel: Kernel, agent: str | Path, *, current: bool = True
) -> Guest:
    """Make the guest of *kernel* and *agent*, and make it the *current* one.

    Idempotent: the same kernel and agent give the same key, and what is there is kept. Raises
    ClocheError (no space, no permission, a module that does not decompress).
    """
    with explained_os_errors("build the guest"):
        plan = resolve(read_index(kernel.modules), kernel=kernel.release)
        # Before reading, so that a file written meanwhile counts as changed.
        agent_print = fingerprint(agent)
        agent_data = Path(agent).read_bytes()
        initramfs = build_initramfs(agent_data, kernel.modules, plan.load)
        agent_print["sha256"] = hashlib.sha256(agent_data).hexdigest()
        key = _guest_key(kernel.vmlinux, initramfs)
        manifest = _manifest(key, kernel, plan, agent_print, len(initramfs))
        directory = Path(guests_root(data_root), key)
        made = load_guest(directory)
        if made is None:
            with new_directory(directory) as work:
                _link_or_copy(kernel.vmlinux, work / "vmlinux")
                (work / "initramfs").write_bytes(initramfs)
                _write_manifest(work, manifest)
        elif not current:
            return made  # where it is from is for those to say whose current one it is
        elif made.manifest != manifest:
            _write_manifest(directory, manifest)
        if current:
            _record_agent(data_root, agent_print, key)
            _replace_symlink(Path(guests_root(data_root), "current"), key)
        return Guest(str(directory), manifest)


def make_guest(
    data_root: Path, agent: str | Path, configured: Path | None = None, report: Report | None = None
) -> Guest:
    """Find the kernel (see `find_kernel`) and make the guest; old guests stay as they are."""
    report = report or SilentReport()
    with setup_lock(data_root):
        kernel = find_kernel(data_root, configured, report)
        report.step("Building the initramfs")
        return build_guest(data_root, kernel, agent)


def guest_of_kernel(data_root: Path, kernel: Path, agent: str) -> Guest:
    """A guest that boots the kernel image (or unpacked kernel) at *kernel*, for one container.

    The current one stays what it is; `cloche setup` removes this one again.
    """
    with setup_lock(data_root):
        return build_guest(data_root, find_kernel(data_root, kernel), agent, current=False)


def refresh_guest(data_root: Path, guest: Guest, agent: str) -> Guest:
    """The guest made anew because `is_current` said no: the same kernel, the agent as it is now.

    For the start path: neither network nor apt is asked, unless the kernel's folder is gone. Of
    several starts at once the first makes it.
    """
    configured = None
    if image := guest.manifest["kernel"].get("image"):
        configured = Path(image["path"])
    with setup_lock(data_root):
        made = guest_for(data_root, agent)
        if made is not None and is_current(made, agent):
            return made
        kernel = load_kernel(Path(guest.manifest["kernel_directory"]))
        if kernel is None or (configured is not None and changed_source(guest, None)):
            kernel = find_kernel(data_root, configured)
        return build_guest(data_root, kernel, agent)


def check_whole(guest: Guest) -> None:
    """DamagedError where kernel or initramfs are not what was built. Takes about 0.1 s."""
    if _guest_key(Path(guest.vmlinux), Path(guest.initramfs).read_bytes()) != guest.key:
        raise DamagedError(
            f"guest: {guest.directory}: damaged: its checksum is not the maker's",
            hint=f"remove it and {guest.manifest['kernel_directory']}, and run `cloche setup`",
        )


def _guest_key(vmlinux: Path, initramfs: bytes) -> str:
    with open(vmlinux, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
    digest.update(initramfs)
    return digest.hexdigest()[:16]


def _manifest(
    key: str, kernel: Kernel, plan: ModulePlan, agent: dict[str, object], initramfs_size: int
) -> dict[str, Any]:
    return {
        "recipe": RECIPE,
        "key": key,
        "kernel_release": kernel.release,
        "kernel": kernel.origin,
        "kernel_directory": str(kernel.directory),
        "agent": agent,
        "modules": [module._asdict() for module in plan.load],
        "builtin": list(plan.builtin),
        "absent": [want.name for want in plan.absent],
        "vmlinux_size": kernel.vmlinux.stat().st_size,
        "initramfs_size": initramfs_size,
    }


def _write_manifest(directory: Path, manifest: dict[str, Any]) -> None:
    text = json.dumps(manifest, indent=2) + "\n"
    write_atomically(str(directory / "manifest.json"), text.encode(), 0o644)


def _record_agent(data_root: Path, agent: dict[str, Any], key: str) -> None:
    if recorded_key(data_root, agent["path"]) == key:
        return
    path = agent_record(data_root, agent["path"])
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write_atomically(path, json.dumps({"agent": agent, "guest": key}).encode(), 0o644)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def _replace_symlink(link: Path, target: str) -> None:
    if link.is_symlink() and os.readlink(link) == target:
        return
    with tempfile.TemporaryDirectory(prefix=".link.", dir=link.parent) as folder:
        os.symlink(target, os.path.join(folder, "link"))
        os.replace(os.path.join(folder, "link"), link)


def guest_is_stale(guest: Guest | None, agent: str | None, configured: Path | None) -> str | None:
    """Why the guest has to be made anew, in words for people; None when it is current.

    Asks apt's lists for a newer kernel package (a few tenths of a second, no network).
    """
    if guest is None:
        return "there is no guest yet"
    if changed := changed_source(guest, agent):
        return f"{changed} has changed"
    if configured is not None:
        return other_than_configured(guest, str(configured))
    origin = guest.manifest["kernel"]
    if not keeps_modules(origin):
        return "an older cloche has not kept the modules that containers may ask for"
    built = built_kernel(Path(guest.directory).parents[1])
    if built is not None and built.origin != origin:
        return f"the own kernel {built.release} is there, the guest has {origin['source']}"
    if is_built(origin):
        return newer_source(origin) if built else "the own kernel has been removed"
    return _newer_kernel(origin)


def _newer_kernel(origin: dict[str, Any]) -> str | None:
    newest = newest_boot_image()
    if "newest" in origin and newest is not None and origin["newest"] != str(newest):
        return f"{newest} is there, the guest has {origin['source']}"
    try:
        package = candidate_package()
    except ClocheError:
        return None  # no apt here, or no lists: nothing newer can be known of
    if (package.name, package.version) == (origin.get("package"), origin.get("version")):
        return None
    return f"package {package.name} {package.version} is there, the guest has {origin['source']}"


def wanted_guests(data_root: Path) -> set[str]:
    """The keys of the current guest and of those of its kernel that other installations boot.

    Forgets agents that are gone or have changed: the next start with one makes its guest.
    """
    current = current_guest(data_root)
    wanted = {current.key} if current else set()
    for path in sorted((data_root / "agents").glob("*.json")):
        agent = _recorded_agent(path)
        if agent is None or not os.path.isfile(agent) or recorded_key(data_root, agent) is None:
            path.unlink(missing_ok=True)
        elif guest := guest_for(data_root, agent):
            wanted.add(guest.key)
    return wanted


def _recorded_agent(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_bytes())["agent"]["path"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove_unused(data_root: Path, keep: Collection[str] = ()) -> list[str]:
    """Remove guests that are neither wanted (see `wanted_guests`) nor in *keep* (keys), and
    kernels of no guest.

    A running VM loses nothing: QEMU has read its kernel, and one that may ask for modules holds
    the folder that they are in. Returns the names of what was removed,
    with leftovers of interrupted runs not counted. Call with `setup_lock` held.
    """
    removed: list[str] = []
    kernels: set[str] = set()
    with explained_os_errors("remove old guests"):
        wanted = {*keep, *wanted_guests(data_root)}
        for directory in _folders(Path(guests_root(data_root))):
            guest = load_guest(directory)
            if guest is not None and guest.key in wanted:
                kernels.add(str(guest.manifest["kernel_directory"]))
                continue
            _remove(directory, removed)
        for directory in _folders(kernels_root(data_root)):
            # Compiling one took minutes: only `cloche kernel remove` takes it away.
            is_built = directory.name.endswith(f"+{BUILT}")
            if str(directory) not in kernels and not is_built and not _is_held(directory):
                _remove(directory, removed)
    return removed


def _is_held(kernel: Path) -> bool:
    """Whether a VM runs that may still ask for modules of *kernel* (see `hold_kernel`)."""
    fd = os.open(kernel, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return [path for path in sorted(root.iterdir()) if path.is_dir() and not path.is_symlink()]


def _remove(directory: Path, removed: list[str]) -> None:
    shutil.rmtree(directory)
    if not directory.name.startswith("."):
        removed.append(f"{directory.parent.name}/{directory.name}")


@contextlib.contextmanager
def setup_lock(data_root: Path) -> Iterator[None]:
    """Only one process at a time prepares guests in *data_root*; waits for the other."""
    with explained_os_errors("lock cloche's data"):
        data_root.mkdir(parents=True, exist_ok=True)
        lock = open(data_root / "setup.lock", "w")  # noqa: SIM115 - closed just below
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
