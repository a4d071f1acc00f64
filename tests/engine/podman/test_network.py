"""podman's networks, made by netavark: bridges, names, published ports."""

from __future__ import annotations

import socket
import subprocess

import pytest

from engine.dockerd import wait_until
from engine.image import INTERFACES

from .client import Podman
from .scene import IMAGE

GET = "timeout 60 busybox wget -q -O -"  # wget -T crashes in Debian 12's busybox-static


def test_none(podman: Podman) -> None:
    """A loopback and nothing else."""
    printed = podman.run("--network=none", IMAGE, "ip", "-o", "link").output
    assert [line.split(": ")[1] for line in printed.splitlines()] == ["lo"]


@pytest.mark.parametrize("mode", ["bridge", "podman"])
def test_default_bridge(podman: Podman, mode: str) -> None:
    """Address, route and gateway are what podman has given it."""
    # ping needs it: podman 5 gives it to nobody who does not ask, nor a range of groups that may.
    options = (f"--network={mode}", "--cap-add=NET_RAW")
    name = podman.start(*options, IMAGE, "sleep", "1000")
    settings = podman.inspect(name)["NetworkSettings"]["Networks"]["podman"]
    shown = podman.sh(name, "ip -o -4 addr show eth0; cat /sys/class/net/eth0/address")
    assert f"{settings['IPAddress']}/{settings['IPPrefixLen']}" in shown
    assert settings["MacAddress"] in shown
    assert f"default via {settings['Gateway']}" in podman.sh(name, "ip route")
    podman.sh(name, f"ping -c 1 -W 60 {settings['Gateway']}")


def test_names(podman: Podman) -> None:
    """On a network of the user's, containers find each other by name, through aardvark."""
    network = podman.new_name("network")
    podman("network", "create", network)
    script = "mkdir /www; echo served >/www/index.html; exec httpd -f -p 80 -h /www"
    server = podman.start(f"--network={network}", IMAGE, "sh", "-c", script)
    client = podman.start(f"--network={network}", IMAGE, "sleep", "1000")

    def fetch() -> str:
        return podman.sh(client, f"{GET} http://{server}/", code=None)

    wait_until(lambda: fetch() == "served", f"{server} serves")


def test_a_network_comes_and_goes_while_the_container_runs(podman: Podman) -> None:
    """``podman network connect`` and ``disconnect``, and a server of the new one."""
    networks = [podman.new_name("network") for _ in range(2)]
    for network in networks:
        podman("network", "create", network)
    first, second = networks
    script = "mkdir /www; echo served >/www/index.html; exec httpd -f -p 80 -h /www"
    server = podman.start(f"--network={second}", IMAGE, "sh", "-c", script)
    name = podman.start(f"--network={first}", IMAGE, "sleep", "1000")
    podman("network", "connect", second, name)
    address = podman.inspect(server)["NetworkSettings"]["Networks"][second]["IPAddress"]

    def fetch(host: str) -> str:
        return podman.sh(name, f"{GET} http://{host}/", code=None)

    wait_until(lambda: fetch(address) == "served", f"{name} reaches {second}")
    podman("network", "disconnect", second, name)
    wait_until(
        lambda: podman.sh(name, INTERFACES).split() == ["eth0", "lo"],
        f"{name} has left {second}",
    )


def test_published_port(podman: Podman) -> None:
    """-p: a port of the host leads into the guest."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = "mkdir /www; echo published >/www/index.html; exec httpd -f -p 80 -h /www"
    name = podman.start("--network=bridge", "-p", f"{port}:80", IMAGE, "sh", "-c", script)

    gateway = podman.inspect(name)["NetworkSettings"]["Gateway"]

    def fetch() -> str:
        words = [*GET.split(), f"http://{gateway}:{port}/"]
        done = subprocess.run(podman.scene.inside(*words), capture_output=True, check=False)
        return done.stdout.decode()

    wait_until(lambda: fetch() == "published\n", "the port answers")
