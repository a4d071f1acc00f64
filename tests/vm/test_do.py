"""``cloche do``: images and folders in VMs with no engine, and nothing left behind."""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.base.errors import StateError
from cloche.host.cgroup import hierarchies
from cloche.image.store import list_images, remove_image
from cloche.model.config import load_settings
from engine.dockerd import wait_until
from engine.patience import PATIENCE_SECONDS
from engine.terminal import CTRL_C

from . import host
from .runtime import Runtime

TOOL = Path(__file__).resolve().parents[2] / "tools" / "busybox-image"
MIB = 1 << 20
READY = "echo ready; while :; do sleep 0.1; done"


@pytest.fixture
def data_root(folder: Path, program: Path) -> Path:
    """A data folder with images of its own, and the machine's kernels and templates."""
    directory = folder / "data"
    directory.mkdir()
    for name in ("kernels", "guests", "templates"):
        (directory / name).symlink_to(Path(load_settings().data_root, name))
    return directory


@pytest.fixture
def cloche(cloche: Runtime, data_root: Path) -> Iterator[Runtime]:
    """The cloche command; fails afterwards if a `do` has left anything."""
    cloche.env["CLOCHE_DATA_ROOT"] = str(data_root)
    before = _cgroups()
    yield cloche
    assert not cloche.leftovers()
    # Not at once: those of other commands on this machine may be about to go.
    wait_until(lambda: _cgroups() <= before, "the cgroups are gone")


def _cgroups() -> set[str]:
    """The cgroups of `do` commands that run no more."""
    found = [path for top in hierarchies() for path in Path(top).glob("cloche/do-*-*")]
    return {str(path) for path in found if not Path("/proc", path.name.split("-")[1]).exists()}


@pytest.fixture
def root(folder: Path, busybox_root: Path) -> Path:
    """A root file system in a folder that may be written."""
    subprocess.run(["cp", "-a", str(busybox_root), str(folder / "root")], check=True)
    return folder / "root"


@pytest.fixture(params=["oci", "docker-archive"])
def image(request: pytest.FixtureRequest, folder: Path) -> Path:
    """The busybox image in a form that is unpacked first."""
    path = folder / "image"
    subprocess.run([str(TOOL), request.param, str(path)], check=True, capture_output=True)
    return path


def test_folder_is_used_as_it_is(cloche: Runtime, root: Path) -> None:
    (root / "greeting").write_text("hello")
    script = "cat /greeting; echo; uname -r; echo changed > /greeting"
    greeting, kernel = cloche("do", root, "sh", "-c", script).lines
    assert (greeting, (root / "greeting").read_text()) == ("hello", "changed\n")
    assert kernel != os.uname().release


def test_image_is_unpacked_once_and_never_changed(cloche: Runtime, image: Path) -> None:
    script = "cat /new 2>&1; echo x > /new; cat /new; grep ' / ' /proc/mounts"
    first = cloche("do", image, "sh", "-c", script)
    second = cloche("do", image, "sh", "-c", script)
    assert first.lines == second.lines
    assert first.lines[:2] == ["cat: can't open '/new': No such file or directory", "x"]
    assert first.lines[2].startswith("overlay / overlay rw")
    assert ("unpack" in first.stderr, second.stderr) == (True, "")


def test_pull_unpacks_again(cloche: Runtime, image: Path) -> None:
    assert cloche("do", "-q", image, "true").stderr == ""
    assert cloche("do", "--pull", image, "true").stderr == f"cloche: copying {image}\n"


def test_image_is_held_while_it_runs(cloche: Runtime, data_root: Path, image: Path) -> None:
    process = cloche.popen("do", image, "sh", "-c", READY)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    (stored,) = list_images(data_root)
    with pytest.raises(StateError, match="in use"):
        remove_image(data_root, stored.digest)
    process.kill()
    process.communicate()
    # The VM dies with the command that was killed; then the image is free.
    wait_until(lambda: not host.processes(cloche.root), "the VM has ended")
    assert remove_image(data_root, stored.digest) == stored.digest
    cloche("do", image, "true")  # sweeps up


def test_command_and_entrypoint_follow_dockers_rules(cloche: Runtime, image: Path) -> None:
    assert cloche("do", image, data=b"echo from-the-shell\n").output == "from-the-shell"
    assert cloche("do", "--entrypoint", "echo", image, "a", "b").output == "a b"
    assert cloche("do", image, "echo", "-n", "--flag").output == "--flag"


def test_volumes(cloche: Runtime, root: Path, folder: Path) -> None:
    shared, single = folder / "shared", folder / "single"
    shared.mkdir()
    single.write_text("one file")
    volumes = ("-v", f"{shared}:/rw", "-v", f"{shared}:/ro:ro", "-v", f"{single}:/etc/single:ro")
    script = "echo x > /rw/file; cat /ro/file /etc/single; echo y > /ro/file; echo code-$?"
    result = cloche("do", *volumes, root, "sh", "-c", script)
    assert result.lines == ["x", "one filecode-1"]
    assert "Read-only file system" in result.stderr
    assert (shared / "file").read_text() == "x\n"


def test_process_options(cloche: Runtime, root: Path) -> None:
    options = ("-e", "A=1 2", "-w", "/tmp", "-u", "12:34", "--hostname", "bell")
    script = 'echo "$A"; pwd; id -u; id -g; hostname; echo $HOSTNAME'
    lines = cloche("do", *options, root, "sh", "-c", script).lines
    assert lines == ["1 2", "/tmp", "12", "34", "bell", "bell"]


def test_own_host_name_is_known(cloche: Runtime, image: Path) -> None:
    script = 'test "$(hostname)" = "$HOSTNAME" && ping -c 1 -W 1 $HOSTNAME | head -1'
    assert "10.0.2.15" in cloche("do", image, "sh", "-c", script).output


def test_read_only(cloche: Runtime, image: Path) -> None:
    result = cloche("do", "--read-only", image, "touch", "/x", code=1)
    assert "Read-only file system" in result.stderr


def test_limits(cloche: Runtime, root: Path) -> None:
    script = "cd /sys/fs/cgroup; cat memory.max cpu.max; nproc"
    lines = cloche("do", "-m", "64m", "--cpus", "1.5", root, "sh", "-c", script).lines
    assert lines == [str(64 * MIB), "150000 100000", str(min(2, os.cpu_count() or 1))]


@pytest.fixture
def server() -> Iterator[http.server.HTTPServer]:
    """A web server on the host's loopback."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"from the host")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_user_network(cloche: Runtime, root: Path, server: http.server.HTTPServer) -> None:
    url = f"http://10.0.2.2:{server.server_port}/"
    script = f"timeout 10 wget -q -O - {url}; echo; cat /etc/resolv.conf"
    result = cloche("do", "--host-loopback", "all", root, "sh", "-c", script)
    assert result.lines == ["from the host", "nameserver 10.0.2.3"]


def test_own_mount_wins(cloche: Runtime, root: Path, folder: Path) -> None:
    own = folder / "resolv.conf"
    own.write_text("nameserver 192.0.2.1\n")
    result = cloche("do", "-v", f"{own}:/etc/resolv.conf", root, "cat", "/etc/resolv.conf")
    assert result.output == "nameserver 192.0.2.1"


def test_no_network(cloche: Runtime, root: Path) -> None:
    script = "ls /sys/class/net; ping -c 1 -W 1 127.0.0.1 | grep -c ' 0% packet loss'"
    assert cloche("do", "--network", "none", root, "sh", "-c", script).lines == ["lo", "1"]


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_exit_code_is_the_commands(cloche: Runtime, root: Path, code: int) -> None:
    cloche("do", root, "sh", "-c", f"exit {code}", code=code)


@pytest.mark.parametrize(
    ("command", "code"),
    [("nosuch", 127), ("/bin/nosuch", 127), ("/etc/passwd", 126), ("/etc", 126)],
)
def test_exit_code_of_what_cannot_be_run(
    cloche: Runtime, root: Path, command: str, code: int
) -> None:
    assert f'exec: "{command}"' in cloche.fails("do", root, command, code=code)


def test_exit_code_of_our_own_failures(cloche: Runtime, folder: Path) -> None:
    (folder / "empty").mkdir()
    assert "empty" in cloche.fails("do", folder / "empty", "true", code=125)


def test_bytes_pass_through(cloche: Runtime, root: Path) -> None:
    data = os.urandom(3 * MIB)
    assert cloche("do", root, "cat", data=data).stdout == data


def test_signals_are_passed_on(cloche: Runtime, root: Path) -> None:
    script = f"trap 'echo got; exit 9' TERM; {READY}"
    process = cloche.popen("do", root, "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=PATIENCE_SECONDS)[0] == b"got\n"
    assert process.returncode == 9


def test_terminal(cloche: Runtime, root: Path) -> None:
    with cloche.terminal("do", "-t", root, "sh", rows=33, columns=99) as terminal:
        terminal.expect("# ")
        terminal.line("stty size; tty; echo $TERM")
        terminal.expect("33 99\r\n/dev/pts/0\r\nxterm")
        terminal.resize(20, 60)
        terminal.line("stty size")
        terminal.expect("20 60")
        # A child of the shell's own that has not executed its program yet would swallow Ctrl-C.
        terminal.line("sh -c 'echo u''p; sleep 1000'; echo ended with $?")
        terminal.expect("up\r\n")
        terminal.send(CTRL_C)
        terminal.expect("ended with 130|\\^C\r\n.*# ")
        terminal.line("exit 3")
        assert terminal.wait() == 3


def test_ctrl_c_without_a_terminal_of_its_own(cloche: Runtime, root: Path) -> None:
    # The terminal's SIGINT goes to cloche's whole process group; the command gets it once.
    script = f"trap 'echo got; exit 7' INT; {READY}"
    with cloche.terminal("do", root, "sh", "-c", script) as terminal:
        terminal.expect("ready")
        terminal.send(CTRL_C)
        assert terminal.wait() == 7
        assert terminal.transcript.count(b"got") == 1


def test_killed_do_takes_its_vm_along(cloche: Runtime, root: Path) -> None:
    process = cloche.popen("do", root, "sh", "-c", READY)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.kill()
    process.communicate()
    wait_until(lambda: not host.processes(cloche.root), "the VM has ended")
    assert cloche.leftovers()
    cloche("do", root, "true")
