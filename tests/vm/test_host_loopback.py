"""What a container with a user-mode network reaches of the host's loopback, however it starts."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.model.config import load_settings
from engine.patience import PATIENCE_SECONDS

from .bundles import Bundle
from .runtime import Runtime
from .starts import each_start


class Server:
    """A web server and one for datagrams on the same port of 127.0.0.1."""

    def __init__(self, web: http.server.HTTPServer, datagrams: socket.socket) -> None:
        self.port = web.server_port
        self.datagrams = datagrams

    @property
    def fetch(self) -> str:
        """A command that asks it for a page."""
        return f"timeout 20 wget -q -O - http://10.0.2.2:{self.port}/ 2>&1"

    @property
    def send(self) -> str:
        """A command that sends it a datagram, and waits for an answer in vain."""
        return f"timeout 2 tftp -g -l /dev/null -r x 10.0.2.2 {self.port}"

    def heard(self) -> bool:
        """Whether a datagram has come since the last time."""
        came = False
        with contextlib.suppress(BlockingIOError):
            while self.datagrams.recv(1000):
                came = True
        return came


@pytest.fixture
def server() -> Iterator[Server]:
    """Servers that listen on the host's 127.0.0.1 only."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"from the host")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with (
        http.server.HTTPServer(("127.0.0.1", 0), Handler) as web,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.setblocking(False)
        datagrams.bind(web.server_address)
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield Server(web, datagrams)
        web.shutdown()
        thread.join()


@each_start
def test_by_default_nothing(cloche: Runtime, bundle: Bundle, server: Server) -> None:
    script = f"{server.send}; {server.fetch}; {server.fetch}"
    result = cloche("do", bundle.rootfs, "sh", "-c", script, code=None)
    refused = "wget: can't connect to remote host (10.0.2.2): Connection refused"
    assert result.lines == [refused] * 2
    assert not server.heard()
    told = [line for line in result.stderr.splitlines() if "loopback" in line]
    assert told == [
        f"cloche: network: port {server.port} of the host's loopback: refused "
        f"(--host-loopback {server.port} lets it be reached)"
    ]


@each_start
def test_the_ports_that_are_named(cloche: Runtime, bundle: Bundle, server: Server) -> None:
    script = f"{server.fetch}; {server.send}"
    flags = ("--host-loopback", f"1,{server.port}")
    result = cloche("do", *flags, bundle.rootfs, "sh", "-c", script, code=None)
    assert result.output == "from the host"
    assert server.heard()
    result = cloche("do", "--host-loopback", "1", bundle.rootfs, "sh", "-c", script, code=None)
    assert "refused" in result.output
    assert not server.heard()


def test_all_of_it(cloche: Runtime, bundle: Bundle, server: Server) -> None:
    flags = ("--host-loopback", "7", "--host-loopback", "all")
    assert cloche("do", *flags, bundle.rootfs, "sh", "-c", server.fetch).output == "from the host"


def test_the_hosts_network_is_asked_for_with_it(
    cloche: Runtime, bundle: Bundle, server: Server
) -> None:
    bundle.linux["namespaces"] = [
        each for each in bundle.linux["namespaces"] if each["type"] != "network"
    ]
    assert cloche.run(bundle.sh(server.fetch)).output == "from the host"


def test_other_hosts_are_reached(cloche: Runtime, bundle: Bundle) -> None:
    """An address of the host's own that is not its loopback stands for them."""
    argv = ["ip", "-json", "-4", "addr", "show", "scope", "global"]
    links = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    addresses = [each["local"] for link in links for each in link.get("addr_info", [])]
    if not addresses:
        pytest.skip("this machine has no network")
    own = addresses[0]
    with socket.create_server((own, 0)) as server:
        port = server.getsockname()[1]
        words = ("do", bundle.rootfs, "sh", "-c", f"echo hello | nc {own} {port}")
        process = cloche.popen(*words)
        server.settimeout(PATIENCE_SECONDS)
        connection, _ = server.accept()
        with connection:
            assert connection.recv(100) == b"hello\n"
        assert process.wait(PATIENCE_SECONDS) == 0


UNDER_A_LISTENER = """
import os, sys
from cloche.base import syscalls
syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
listener = syscalls.seccomp_listener(bytes.fromhex("060000000000ff7f"))  # asks nothing
os.set_inheritable(listener, True)  # a filter whose listener is closed counts no longer
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_where_nobody_can_be_asked(cloche: Runtime, bundle: Bundle, server: Server) -> None:
    """There is one such filter at most: under another, none of ours can be had."""

    def under_a_listener(*flags: str) -> subprocess.CompletedProcess[str]:
        words = [*cloche.argv, "do", *flags, str(bundle.rootfs), "sh", "-c", server.fetch]
        argv = [sys.executable, "-c", UNDER_A_LISTENER, *words]
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
        )

    cloche("do", bundle.rootfs, "true")
    templates = Path(load_settings().templates)
    images = {path: path.stat().st_ino for path in templates.glob("*/frozen/manifest.json")}
    result = under_a_listener()
    assert result.returncode == 125
    assert "the host's loopback cannot be kept from its user-mode network" in result.stderr
    assert cloche.leftovers() == []
    # What others use does not suffer from it.
    assert images == {path: path.stat().st_ino for path in images}
    assert images
    assert under_a_listener("--host-loopback", "all").stdout == "from the host"
    assert "unreachable" in under_a_listener("--network", "none").stdout


@pytest.mark.parametrize("value", ["0", "65536", "-1", "x", "", "1,", "1-2", "\u0661"])
def test_what_is_no_port(cloche: Runtime, bundle: Bundle, value: str) -> None:
    message = cloche.fails("do", f"--host-loopback={value}", bundle.rootfs, "true", code=125)
    assert message.endswith("ports, or all, are expected")
