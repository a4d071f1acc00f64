"""A network namespace as engines prepare it: a veth whose other end is ours."""

from __future__ import annotations

import http.server
import subprocess
import threading
from collections.abc import Iterator

import pytest

from .cloche import Cloche
from .conftest import Bundle

_OURS, _THEIRS = "10.77.0.1", "10.77.0.2"
_COMMANDS = f"""\
netns add engine
link add host-end type veth peer name eth0 netns engine
address add {_OURS}/24 dev host-end
link set host-end up
"""
_INSIDE = f"""\
address add {_THEIRS}/24 dev eth0
link set eth0 up
route add default via {_OURS}
"""


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Answer with the client's address."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"hello {self.client_address[0]}\n".encode() * 10_000)


@pytest.fixture
def engine_network() -> Iterator[str]:
    """The path of a namespace with eth0, 10.77.0.2; 10.77.0.1 is here."""
    _ip(_COMMANDS)
    _ip(_INSIDE, "-n", "engine")
    yield "/run/netns/engine"
    _ip("netns delete engine\n")


@pytest.fixture
def page(engine_network: str) -> Iterator[str]:
    """The address of a web server at our end."""
    with http.server.ThreadingHTTPServer((_OURS, 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://{_OURS}:{server.server_port}/"
        server.shutdown()
        thread.join()


def _ip(lines: str, *options: str) -> None:
    subprocess.run(["ip", *options, "-batch", "-"], input=lines, text=True, check=True)


def test_guest_takes_over_the_interface(
    cloche: Cloche, bundle: Bundle, engine_network: str, page: str
) -> None:
    for namespace in bundle.config["linux"]["namespaces"]:
        if namespace["type"] == "network":
            namespace["path"] = engine_network
    bundle.write("sleep", "1000")
    cloche.run("run", "--detach", "-b", bundle.folder, "c")
    addresses = cloche.run("exec", "c", "ip", "-4", "address", "show", "eth0").stdout
    assert f"inet {_THEIRS}/24" in addresses
    fetched = cloche.run("exec", "c", "wget", "-q", "-O", "-", page).stdout
    assert fetched == f"hello {_THEIRS}\n" * 10_000
    ping = subprocess.run(
        ["busybox", "ping", "-c1", "-W20", _THEIRS], capture_output=True, check=False
    )
    cloche.run("delete", "--force", "c")
    assert ping.returncode == 0, "the guest does not answer from our end"


def test_no_network_is_a_loopback_only(cloche: Cloche, idle: str) -> None:
    listed = cloche.run("exec", idle, "ls", "/sys/class/net").stdout.split()
    shown = cloche.run("exec", idle, "ip", "address", "show", "up").stdout
    assert "lo" in listed
    assert "127.0.0.1/8" in shown
    assert "eth0" not in shown
