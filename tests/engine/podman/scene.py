"""A podman of our own: own storage, own configuration, own network and mount namespace.

podman has no daemon: each command enters the namespaces that one sleeping process holds. Bridges,
netavark's iptables rules, the storage's mounts and podman's locks in /dev/shm vanish with them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.host import kernel_release

IMAGE = "localhost/busybox"
CGROUP_PARENT = "libpod_parent"
_TOOL = Path(__file__).resolve().parents[3] / "tools" / "busybox-image"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# podman 5 warns of cgroup v1 at each command.
_QUIET = {"PODMAN_IGNORE_CGROUPSV1_WARNING": "1"}
_NAMESPACES = """
ip link set lo up
mount -t tmpfs shm /dev/shm
mkdir -p /run/netns /run/containers
mount -t tmpfs containers /run/containers
mount -t tmpfs netns /run/netns
mount --make-shared /run/netns
echo ready
exec sleep infinity
"""
_CONFIG = """
[network]
network_backend = "netavark"
network_config_dir = "{directory}/networks"

[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "{runtime}"
helper_binaries_dir = ["/usr/lib/podman", "/usr/libexec/podman"]

[engine.runtimes]
cloche = ["{program}"]
"""


@dataclass(frozen=True)
class Scene:
    """Where podman's commands run: *directory* holds its storage, *pid* the namespaces."""

    directory: Path
    pid: int

    def argv(self, *args: str) -> list[str]:
        """The command line of ``podman ARGS``."""
        folders = {"root": "storage", "runroot": "run", "tmpdir": "tmp"}
        flags = [f"--{flag}={self.directory / name}" for flag, name in folders.items()]
        return [*self.inside("podman"), *flags, *args]

    def inside(self, *argv: str) -> list[str]:
        """*argv*, to be run in the namespaces of podman's "host"."""
        of = f"/proc/{self.pid}/ns"
        return ["nsenter", f"--net={of}/net", f"--mount={of}/mnt", "--", *argv]

    @property
    def environment(self) -> dict[str, str]:
        """The environment of its commands; conmon and cloche inherit it."""
        kept = {name: value for name, value in os.environ.items() if name.startswith("CLOCHE_")}
        config = str(self.directory / "containers.conf")
        return {**kept, "PATH": _PATH, "HOME": "/root", **_QUIET, "CONTAINERS_CONF": config}

    def mounts(self) -> list[str]:
        """The mounts of podman's host."""
        return Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines()

    def interfaces(self) -> set[str]:
        """The interfaces of podman's host."""
        lines = Path(f"/proc/{self.pid}/net/dev").read_text().splitlines()[2:]
        return {line.split(":")[0].strip() for line in lines}


@contextlib.contextmanager
def scene(directory: Path, runtime: str, program: Path) -> Iterator[Scene]:
    """A podman below *directory* with *runtime* as its default; cloche is *program*."""
    config = _CONFIG.format(directory=directory, runtime=runtime, program=program)
    (directory / "containers.conf").write_text(config)
    argv = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-ec", _NAMESPACES]
    holder = subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"ready\n", "namespaces for podman"
        here = Scene(directory, holder.pid)
        build_image(here)
        yield here
        run(here, "rm", "--all", "--force", "--time", "0")
        run(here, "pod", "rm", "--all", "--force")
        # The storage's own mount would keep its folder busy.
        storage = f"{directory}/storage/overlay"
        subprocess.run(here.inside("umount", "-l", storage), check=False, capture_output=True)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def run(here: Scene, *args: str) -> subprocess.CompletedProcess[bytes]:
    """``podman ARGS``, which must not fail."""
    return subprocess.run(
        here.argv(*args), env=here.environment, cwd="/", check=True, capture_output=True
    )


def build_image(here: Scene) -> None:
    """Import ``localhost/busybox``; its /etc/passwd knows ``app`` (1000:1000)."""
    root = here.directory / "rootfs"
    root.mkdir()
    subprocess.run([str(_TOOL), "rootfs", str(root)], check=True, capture_output=True)
    with (root / "etc/passwd").open("a") as passwd:
        passwd.write("app:x:1000:1000:app:/home:/bin/sh\n")
    archive = here.directory / "rootfs.tar"
    subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True)
    run(here, "import", "--change", 'CMD ["sh"]', str(archive), IMAGE)


def is_own_kernel(uname: str) -> bool:
    """Whether a release is that of a guest, and not the host's."""
    return bool(uname) and uname != kernel_release()


def paths_with(word: str, tops: Iterable[Path]) -> list[str]:
    """Files and folders below *tops* with *word* in their name; what vanishes meanwhile is none."""
    walks = (entry for top in tops for entry in os.walk(top))
    return [
        os.path.join(folder, name)
        for folder, folders, files in walks
        for name in (*folders, *files)
        if word in name
    ]


def cgroup_folders(container_id: str) -> list[str]:
    """The folders of a container's cgroup, one per hierarchy that has it."""
    return paths_with(container_id, Path("/sys/fs/cgroup").glob(f"*/{CGROUP_PARENT}"))
