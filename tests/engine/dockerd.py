"""A dockerd of our own: own socket, data root, containerd, network and mount namespace.

The namespaces keep the machine as it was: bridges, iptables rules, ip_forward and overlay mounts
vanish with the last process in them, and a dockerd that the machine itself runs is not touched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .patience import PATIENCE_SECONDS

START_SECONDS = PATIENCE_SECONDS
STOP_SECONDS = PATIENCE_SECONDS
POLL_SECONDS = 0.02
GATEWAY = "172.31.200.1"
"""Address of docker0, the "host" that a container on the default bridge sees."""

_KEPT_VARIABLES = ("CLOCHE_",)
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class EngineError(RuntimeError):
    """dockerd did not do what the tests need; the message carries the tail of its log."""


def wait_until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Poll *condition* until it holds; AssertionError naming *what* after *seconds*.

    For states that nothing signals to us. ``select`` on nothing is the pause between two looks.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not so after {seconds:g} s")
        select.select([], [], [], POLL_SECONDS)


@dataclass(frozen=True)
class Dockerd:
    """A running dockerd. *config* is the daemon.json that it read at its start."""

    directory: Path
    socket: Path
    config: Path
    log: Path
    pid: int
    cgroup: str

    def in_network(self, *argv: str) -> list[str]:
        """*argv*, to be run where dockerd's bridges are: "the host" as containers see it."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *argv]

    def log_tail(self, lines: int = 30) -> str:
        """The last *lines* of the log of dockerd and of its containerd."""
        return _tail(self.log, lines)

    def mounts(self) -> str:
        """/proc/PID/mountinfo of dockerd's mount namespace."""
        return Path(f"/proc/{self.pid}/mountinfo").read_text()

    def cgroup_folders(self) -> list[Path]:
        """The folders of the tests' cgroup parent, one per hierarchy that has it."""
        return _cgroup_folders(self.cgroup)

    def get(self, path: str) -> object:
        """The JSON that the API answers to GET *path*; OSError while nobody listens."""
        connection = _UnixConnection(self.socket)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return json.loads(response.read())
        finally:
            connection.close()


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self._path))


@contextlib.contextmanager
def dockerd(
    directory: Path,
    runtimes: Mapping[str, Path],
    flags: Sequence[str] = (),
    files: Mapping[str, Path] | None = None,
) -> Iterator[Dockerd]:
    """Start a dockerd below *directory* that knows *runtimes*, yield it, stop it.

    *flags* are added to its command line. It sees *files* in place of those of the host.

    The path must be short: the sockets below it must fit the 108 bytes of sockaddr_un.
    """
    name = f"cloche-test-{os.getpid()}-{directory.name}"
    config = _write_config(directory, runtimes, cgroup=f"/{name}")
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_cgroups, f"/{name}")
        process = stack.enter_context(
            _running(directory, config, flags, f"/{name}", files=files or {})
        )
        engine = Dockerd(
            directory=directory,
            socket=directory / "docker.sock",
            config=config,
            log=directory / "dockerd.log",
            pid=process.pid,
            cgroup=f"/{name}",
        )
        _wait_for_api(engine, process)
        yield engine


def _write_config(directory: Path, runtimes: Mapping[str, Path], *, cgroup: str) -> Path:
    """daemon.json; flags are not used, since dockerd refuses to reload what is a flag too."""
    config = {
        "hosts": [f"unix://{directory}/docker.sock"],
        "data-root": f"{directory}/data",
        "exec-root": f"{directory}/exec",
        "pidfile": f"{directory}/docker.pid",
        "bip": f"{GATEWAY}/24",
        "cgroup-parent": cgroup,
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "storage-driver": _storage_driver(directory),
        "debug": True,
    }
    if runtimes:
        config["runtimes"] = {name: {"path": str(path)} for name, path in runtimes.items()}
    path = directory / "daemon.json"
    path.write_text(json.dumps(config, indent=4) + "\n")
    return path


def _storage_driver(directory: Path) -> str:
    """overlay2, or vfs where the file system of *directory* cannot carry an overlay."""
    folders = [directory / "probe" / name for name in ("lower", "upper", "work", "merged")]
    for folder in folders:
        folder.mkdir(parents=True)
    lower, upper, work, merged = folders
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    mounted = subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, str(merged)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode == 0:
        subprocess.run(["umount", str(merged)], check=True)
    shutil.rmtree(directory / "probe")
    return "overlay2" if mounted.returncode == 0 else "vfs"


@contextlib.contextmanager
def after_a_crash(engine: Dockerd, meanwhile: Callable[[], None]) -> Iterator[Dockerd]:
    """Kill *engine*, and with it its containerd; start it again where it was, yield it, stop it.

    *meanwhile* is called when it is dead.
    """
    with contextlib.ExitStack() as stack:
        paths = [f"/proc/{engine.pid}/ns/{name}" for name in ("net", "mnt")]
        namespaces = [stack.enter_context(open(path, "rb")).fileno() for path in paths]
        mounts = os.readlink(f"/proc/{engine.pid}/ns/mnt")
        stack.callback(_kill_left_over, mounts, engine.cgroup)
        files = [
            engine.directory / name for name in ("docker.pid", "exec/containerd/containerd.pid")
        ]
        pids = [int(file.read_text()) for file in files]
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: not any(map(_is_alive, pids)), "dockerd and its containerd are dead")
        # Their pids may be somebody else's by now, and dockerd would not start beside those.
        for file in files:
            file.unlink()
        meanwhile()
        process = stack.enter_context(
            _running(engine.directory, engine.config, (), engine.cgroup, namespaces)
        )
        again = dataclasses.replace(engine, pid=process.pid)
        _wait_for_api(again, process)
        yield again


@contextlib.contextmanager
def _running(
    directory: Path,
    config: Path,
    flags: Sequence[str],
    cgroup: str,
    namespaces: Sequence[int] = (),
    files: Mapping[str, Path] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    # exec keeps the pid through unshare and sh, so that the process's pid is dockerd's.
    binds = [
        shlex.join(["mount", "--bind", str(source), path]) for path, source in (files or {}).items()
    ]
    script = " && ".join(["ip link set lo up", *binds, 'exec dockerd "$@"'])
    argv = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    if namespaces:
        network, mount = namespaces
        argv = ["nsenter", f"--net=/proc/self/fd/{network}", f"--mount=/proc/self/fd/{mount}"]
        argv += ["--", "dockerd"]
    environment = {key: value for key, value in os.environ.items() if _is_kept(key)}
    with open(directory / "dockerd.log", "ab") as log:
        process = subprocess.Popen(
            [*argv, "--config-file", str(config), *flags],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            pass_fds=namespaces,
            env={**environment, "PATH": _PATH, "HOME": "/root"},
        )
    try:
        yield process
    finally:
        namespace = os.readlink(f"/proc/{process.pid}/ns/mnt") if process.poll() is None else ""
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _kill_left_over(namespace, cgroup)


def _is_kept(variable: str) -> bool:
    """Whether dockerd gets *variable*: it runs with as little as an init system gives it."""
    return variable.startswith(_KEPT_VARIABLES)


def _wait_for_api(engine: Dockerd, process: subprocess.Popen[bytes]) -> None:
    def answers() -> bool:
        if process.poll() is not None:
            raise EngineError(f"dockerd ended with {process.returncode}:\n{engine.log_tail()}")
        try:
            engine.get("/info")
        except OSError:
            return False
        return True

    try:
        wait_until(answers, "dockerd answers", START_SECONDS)
    except AssertionError as error:
        raise EngineError(f"{error}; its log ends:\n{engine.log_tail()}") from None


def _kill_left_over(namespace: str, cgroup: str) -> None:
    """Kill what is left in dockerd's mount *namespace* and below its *cgroup*.

    Shims and containers that a test could not remove; nothing else ever gets in there.
    """
    left = {int(pid) for folder in _cgroup_folders(cgroup) for pid in _processes(folder)}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(entry / "ns/mnt") == namespace:
                left.add(int(entry.name))
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(_is_alive(pid) for pid in left), "what dockerd left is killed")


def _processes(cgroup: Path) -> list[str]:
    return [pid for path in cgroup.rglob("cgroup.procs") for pid in path.read_text().split()]


def parent_of(pid: int) -> int:
    """The pid of the parent of *pid*."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _is_alive(pid: int) -> bool:
    """Whether *pid* runs: a zombie, whoever has to reap it, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _cgroup_folders(cgroup: str) -> list[Path]:
    root = Path("/sys/fs/cgroup")
    candidates = [root, *(path for path in root.iterdir() if path.is_dir())]
    return [folder for path in candidates if (folder := path / cgroup.lstrip("/")).is_dir()]


def _remove_cgroups(cgroup: str) -> None:
    """Remove our cgroup parent; what still has processes in it stays, and is seen."""
    for top in _cgroup_folders(cgroup):
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)


def _tail(path: Path, lines: int) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
