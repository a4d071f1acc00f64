"""Networks: bridge with published ports, none, user-defined ones with names, DNS options."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .client import Docker, host_path
from .dockerd import GATEWAY, Dockerd, wait_until
from .image import IMAGE, INTERFACES
from .patience import PATIENCE_SECONDS

SERVE = "echo {0} > /index.html; exec httpd -f -p 80 -h /"
HOST_PORT = 8080
OUTSIDE_NAME, OUTSIDE_ADDRESS = "outside.test", "192.0.2.7"
GET = "timeout 60 wget -q -O -"  # wget -T crashes in Debian 12's busybox-static
HOST_FOLDERS = [("bin", "usr/bin"), ("lib", "lib"), ("lib", "usr/lib"), ("lib64", "lib64")]
"""Folders of the host's /usr, and where a program that is linked against libraries needs them."""
UDP_ECHO = """
use Socket; $| = 1;
socket(S, PF_INET, SOCK_DGRAM, 0) && bind(S, pack_sockaddr_in(53, INADDR_ANY)) or die "bind: $!";
print "listening\\n";
$sender = recv(S, $data, 99, 0); send(S, "got $data", 0, $sender)
"""
UDP_CLIENT = """
import socket, sys
s = socket.socket(type=socket.SOCK_DGRAM)
s.settimeout(10)
s.sendto(b"a datagram", (sys.argv[1], int(sys.argv[2])))
print(s.recv(99).decode())
"""


@pytest.fixture
def host_server(engine: Dockerd, tmp_path: Path) -> Iterator[str]:
    """The URL of a web server on the host that says ``host``."""
    host_path(tmp_path, "index.html", "host\n")
    argv = ["busybox", "httpd", "-f", "-p", f"{GATEWAY}:8081", "-h", str(tmp_path)]
    server = subprocess.Popen(engine.in_network(*argv))
    yield f"http://{GATEWAY}:8081/"
    server.kill()
    server.wait()


@pytest.fixture
def dns_server(engine: Dockerd) -> Iterator[str]:
    """The address of a name server on the host that knows one name."""
    argv = [sys.executable, "-m", f"{__package__}.dns_server"]
    server = subprocess.Popen(
        engine.in_network(*argv, GATEWAY, OUTSIDE_NAME, OUTSIDE_ADDRESS),
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[__package__.count(".") + 1],
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"listening\n"
    yield GATEWAY
    server.kill()
    server.communicate()


def _get_from_host(docker: Docker, url: str) -> str:
    """What the host gets from *url*; waits for a server that is about to listen."""
    argv = docker.engine.in_network("busybox", *GET.split(), url)
    found: list[str] = []

    def answered() -> bool:
        done = subprocess.run(
            argv, capture_output=True, check=False, text=True, timeout=PATIENCE_SECONDS
        )
        found.append(done.stdout)
        return done.returncode == 0

    wait_until(answered, f"{url} answers the host")
    return found[-1].strip()


def _server(docker: Docker, *options: str) -> str:
    """A container with *options* that serves its own name on port 80, once it listens."""
    args = docker.run_args("-d", *options, IMAGE, "sh", "-c")
    name = docker.last
    docker(*args, SERVE.format(name))
    wait_until(
        lambda: ":80 " in docker("exec", name, "netstat", "-ltn", code=None).output,
        f"{name} listens",
    )
    return name


def test_bridge_address_and_route(docker: Docker) -> None:
    """On the default bridge a container has the address that docker knows, and its gateway."""
    name = docker.start(IMAGE, "sleep", "1000")
    settings = docker.inspect(name)["NetworkSettings"]
    script = "ip -o -4 addr show eth0; ip route; cat /sys/class/net/eth0/address"
    output = docker.sh(name, script)
    assert f"inet {settings['IPAddress']}/{settings['IPPrefixLen']}" in output
    assert f"default via {GATEWAY} dev eth0" in output
    assert output.splitlines()[-1] == settings["MacAddress"]
    assert settings["Gateway"] == GATEWAY


def test_published_port(docker: Docker) -> None:
    """``-p`` makes a server in the container reachable on the host's addresses."""
    name = _server(docker, "-p", f"{HOST_PORT}:80")
    assert _get_from_host(docker, f"http://127.0.0.1:{HOST_PORT}/") == name
    assert _get_from_host(docker, f"http://{GATEWAY}:{HOST_PORT}/") == name
    assert _get_from_host(docker, f"http://{docker.address(name)}/") == name
    assert docker("port", name).output.splitlines()[0] == f"80/tcp -> 0.0.0.0:{HOST_PORT}"


def test_published_udp_port(docker: Docker) -> None:
    """``-p …/udp`` passes datagrams in and answers back; the server is the host's own perl."""
    host_programs = [f"-v/usr/{name}:/{at}:ro" for name, at in HOST_FOLDERS]
    name = docker.start("-p", "8053:53/udp", *host_programs, IMAGE, "perl", "-e", UDP_ECHO)
    docker.wait_for_log(name, "listening")
    argv = docker.engine.in_network(sys.executable, "-c", UDP_CLIENT, GATEWAY, "8053")
    done = subprocess.run(
        argv, capture_output=True, check=False, text=True, timeout=PATIENCE_SECONDS
    )
    assert done.stdout == "got a datagram\n", done.stderr


def test_container_reaches_host(docker: Docker, host_server: str) -> None:
    """A container reaches servers on the host through its gateway."""
    _get_from_host(docker, host_server)
    assert docker.run(IMAGE, *GET.split(), host_server).output == "host"


def test_containers_reach_each_other(docker: Docker) -> None:
    """On the default bridge containers reach each other by address."""
    server = _server(docker)
    url = f"http://{docker.address(server)}/"
    assert docker.run(IMAGE, *GET.split(), url).output == server


def test_large_transfer(docker: Docker) -> None:
    """A transfer of many segments arrives whole (offloads and MTU agree on both ends)."""
    size = 20_000_000
    name = docker.start(IMAGE, "sh", "-c", f"head -c {size} /dev/urandom > /f; httpd -f -p 80 -h /")
    address = docker.address(name)
    fetch = f"until {GET} http://{address}/index 2>&1 | grep -q 404; do usleep 50000; done;"
    script = f"{fetch} {GET} http://{address}/f | md5sum"
    output = docker.run(IMAGE, "sh", "-c", script).output
    assert output == docker.sh(name, "md5sum < /f")


def test_none(docker: Docker) -> None:
    """``--network none`` leaves a loopback that works, and nothing else."""
    script = "ls /sys/class/net; ip route; ping -c 1 -W 60 127.0.0.1 | grep -c ' 0% packet loss'"
    assert docker.run("--network", "none", IMAGE, "sh", "-c", script).output == "lo\n1"


@pytest.mark.vm_only
def test_host_network_is_left_alone(docker: Docker, host_server: str) -> None:
    """``--network host`` gives a network of the VM's own: it reaches out, and takes nothing."""
    before = _links(docker)
    script = f"ls /sys/class/net; ip -4 addr show eth0 | grep -c 10.0.2.15; {GET} {host_server}"
    output = docker.run("--network", "host", IMAGE, "sh", "-c", script).output
    assert output == "eth0\nlo\n1\nhost"
    assert _links(docker) == before


def _links(docker: Docker) -> list[dict[str, object]]:
    """The interfaces of dockerd's host, but not what a bridge says while ports leave it."""
    argv = docker.engine.in_network("ip", "-json", "link")
    links = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    return [
        {key: value for key, value in link.items() if key not in ("flags", "operstate")}
        for link in links
    ]


def test_user_network_names(docker: Docker) -> None:
    """On a user-defined network names and aliases resolve through docker's 127.0.0.11."""
    network = docker.network()
    server = _server(docker, "--network", network, "--network-alias", "web")
    script = (
        f"grep nameserver /etc/resolv.conf; {GET} http://web/; {GET} http://{server}/;"
        f" ping -c 1 -W 60 web | grep -c ' 0% packet loss'"
    )
    output = docker.run("--network", network, IMAGE, "sh", "-c", script).output
    assert output == f"nameserver 127.0.0.11\n{server}\n{server}\n1"


def test_user_network_lookup_both_ways(docker: Docker) -> None:
    """Two containers find each other."""
    network = docker.network()
    one = docker.start("--network", network, IMAGE, "sleep", "1000")
    two = docker.start("--network", network, IMAGE, "sleep", "1000")
    for here, there in ((one, two), (two, one)):
        found = docker("exec", here, "nslookup", "-type=a", there).output
        assert f"Address: {docker.address(there)}" in found


def test_reverse_lookup(docker: Docker) -> None:
    """docker's resolver knows the name of an address."""
    network = docker.network()
    name = docker.start("--network", network, IMAGE, "sleep", "1000")
    assert name in docker("exec", name, "nslookup", docker.address(name)).output


def test_networks_are_apart(docker: Docker) -> None:
    """Containers of two networks do not reach each other."""
    server = _server(docker, "--network", docker.network())
    url = f"http://{docker.address(server)}/"
    options = ("--init", "--network", docker.network())
    docker.run(*options, IMAGE, "timeout", "2", *GET.split()[2:], url, code=143)


def test_two_networks(docker: Docker) -> None:
    """A container that is created with one network and connected to a second has both."""
    first, second = docker.network(), docker.network()
    args = (*docker.new_container_args(), "--network", first)
    docker("create", *args, IMAGE, "sh", "-c", "ls /sys/class/net; ip -o -4 addr")
    docker("network", "connect", second, docker.last)
    output = docker("start", "-a", docker.last).output
    assert output.split()[:3] == ["eth0", "eth1", "lo"]
    assert output.count("inet ") == 3


def _interfaces(docker: Docker, name: str) -> list[str]:
    return docker.sh(name, INTERFACES).split()


def _has(docker: Docker, name: str, *interfaces: str) -> None:
    """Wait until the running container *name* has these interfaces, and no others but lo."""
    wait_until(
        lambda: {*_interfaces(docker, name)} == {*interfaces, "lo"},
        f"{name} has {interfaces}, not {_interfaces(docker, name)}",
    )


def test_a_network_comes_and_goes_while_the_container_runs(docker: Docker) -> None:
    """``network connect`` and ``disconnect``: address, MAC, routes and names of the second one."""
    network = docker.network()
    server = _server(docker, "--network", network, "--network-alias", "web")
    name = docker.start(IMAGE, "sleep", "1000")
    before = docker.sh(name, "ip -o -4 addr show eth0; ip route; cat /etc/resolv.conf")
    for interface in ("eth1", "eth2"):  # docker gives no name twice
        docker("network", "connect", network, name)
        _has(docker, name, "eth0", interface)
        settings = docker.inspect(name)["NetworkSettings"]["Networks"][network]
        look = f"ip -o -4 addr show {interface}; cat /sys/class/net/{interface}/address"
        shown = docker.sh(name, look)
        assert f"inet {settings['IPAddress']}/{settings['IPPrefixLen']}" in shown
        assert shown.splitlines()[-1] == settings["MacAddress"]
        assert docker.sh(name, f"{GET} http://{docker.address(server)}/") == server
        assert docker.sh(name, f"{GET} http://web/") == server
        docker("network", "disconnect", network, name)
        _has(docker, name, "eth0")
    after = docker.sh(name, "ip -o -4 addr show eth0; ip route")
    assert before.startswith(after)


def test_the_first_network_goes_and_the_second_stays(docker: Docker) -> None:
    """The default route moves to the network that is left, and a connection over that goes on."""
    first, second = docker.network(), docker.network()
    server = _server(docker, "--network", second)
    name = docker.start("--network", first, IMAGE, "sleep", "1000")
    docker("network", "connect", second, name)
    _has(docker, name, "eth0", "eth1")
    ping = f"ping -c 30 -i 0.1 {docker.address(server)} >/tmp/ping; echo ended >>/tmp/ping"
    docker("exec", "-d", name, "sh", "-c", ping)
    docker("network", "disconnect", first, name)
    _has(docker, name, "eth1")
    gateway = docker.inspect(name)["NetworkSettings"]["Networks"][second]["Gateway"]
    assert f"default via {gateway} dev eth1" in docker.sh(name, "ip route")
    assert docker.sh(name, f"{GET} http://{docker.address(server)}/") == server
    wait_until(lambda: "ended" in docker.sh(name, "cat /tmp/ping"), "ping has ended")
    assert " 0% packet loss" in docker.sh(name, "cat /tmp/ping")


@pytest.mark.vm_only
def test_a_container_that_renames_its_interface(docker: Docker) -> None:
    """It may, with the capability; what is connected and disconnected is still what was meant."""
    first, second = docker.network(), docker.network()
    server = _server(docker, "--network", second)
    name = docker.start("--network", first, "--cap-add", "NET_ADMIN", IMAGE, "sleep", "1000")
    docker.sh(name, "ip link set eth0 down && ip link set eth0 name mine && ip link set mine up")
    docker("network", "connect", second, name)
    _has(docker, name, "eth1", "mine")
    docker("network", "disconnect", first, name)
    _has(docker, name, "eth1")
    assert docker.sh(name, f"{GET} http://{docker.address(server)}/") == server


@pytest.mark.vm_only
def test_more_networks_than_the_machine_has_cards(docker: Docker) -> None:
    """Three work; the fourth is told of in the container's log, and the three go on."""
    server = _server(docker)
    name = docker.start(IMAGE, "sleep", "1000")
    for _ in range(2):
        docker("network", "connect", docker.network(), name)
    _has(docker, name, "eth0", "eth1", "eth2")
    docker("network", "connect", docker.network(), name)
    docker.wait_for_log(name, "no device of the VM is left for interface eth3")
    assert _interfaces(docker, name) == ["eth0", "eth1", "eth2", "lo"]
    assert docker.sh(name, f"{GET} http://{docker.address(server)}/") == server


def test_add_host(docker: Docker) -> None:
    """``--add-host`` writes /etc/hosts, and programs resolve by it."""
    script = "ping -c 1 -W 1 bell | head -1; grep bell /etc/hosts"
    output = docker.run("--add-host", "bell:127.0.0.1", IMAGE, "sh", "-c", script).output
    assert output == "PING bell (127.0.0.1): 56 data bytes\n127.0.0.1\tbell"


def test_own_name_resolves(docker: Docker) -> None:
    """The container's host name resolves to its own address."""
    name = docker.start("--hostname", "bell", IMAGE, "sleep", "1000")
    assert docker.address(name) in docker.sh(name, "ping -c 1 -W 1 bell | head -1")


def test_dns_options(docker: Docker) -> None:
    """``--dns``, ``--dns-search`` and ``--dns-option`` end up in /etc/resolv.conf."""
    options = ("--dns", "192.0.2.53", "--dns-search", "example.org", "--dns-option", "ndots:2")
    output = docker.run(*options, IMAGE, "cat", "/etc/resolv.conf").output
    lines = ["search example.org", "nameserver 192.0.2.53", "options ndots:2"]
    found = [line for line in output.splitlines() if line and not line.startswith("#")]
    assert sorted(found) == sorted(lines)


def test_dns_server_is_asked(docker: Docker, dns_server: str) -> None:
    """A server that ``--dns`` names is asked and its answer arrives, also that there is none."""
    options = ("--dns", dns_server)
    found = docker.run(*options, IMAGE, "nslookup", "-type=a", OUTSIDE_NAME).output
    assert f"Address: {OUTSIDE_ADDRESS}" in found
    missing = docker.run(*options, IMAGE, "nslookup", "-type=a", "nosuch.test", code=1)
    assert "NXDOMAIN" in missing.output


def test_dns_server_behind_docker(docker: Docker, dns_server: str) -> None:
    """On a user-defined network docker's resolver asks it, for names that docker does not know."""
    name = docker.start("--network", docker.network(), "--dns", dns_server, IMAGE, "sleep", "1000")
    assert "nameserver 127.0.0.11" in docker.sh(name, "cat /etc/resolv.conf")
    assert f"Address: {OUTSIDE_ADDRESS}" in docker.sh(name, f"nslookup -type=a {OUTSIDE_NAME}")
    assert "NXDOMAIN" in docker.sh(name, "nslookup -type=a nosuch.test", code=1)


def test_dns_over_tcp(docker: Docker, dns_server: str) -> None:
    """An answer too large for a datagram is fetched over TCP, through docker's resolver too."""
    options = ("--network", docker.network(), "--dns", dns_server)
    script = f"ping -c 1 -W 1 big.{OUTSIDE_NAME} 2>&1 | head -1"
    output = docker.run(*options, IMAGE, "sh", "-c", script).output
    assert f"PING big.{OUTSIDE_NAME} (192.0.2." in output


def test_fixed_address_and_mac(docker: Docker) -> None:
    """``--ip`` and ``--mac-address`` are what the container has."""
    network = docker.network("--subnet", "10.99.7.0/24")
    mac = "02:00:00:aa:bb:cc"
    options = ("--network", network, "--ip", "10.99.7.77", "--mac-address", mac)
    script = "ip -o -4 addr show eth0 | awk '{ print $4 }'; cat /sys/class/net/eth0/address"
    assert docker.run(*options, IMAGE, "sh", "-c", script).output == f"10.99.7.77/24\n{mac}"


def test_mtu(docker: Docker) -> None:
    """The network's MTU is the interface's."""
    network = docker.network("-o", "com.docker.network.driver.mtu=1280")
    output = docker.run("--network", network, IMAGE, "cat", "/sys/class/net/eth0/mtu").output
    assert output == "1280"


def test_ipv6(docker: Docker) -> None:
    """An address of a network with IPv6 works."""
    network = docker.network("--ipv6", "--subnet", "fd00:c10c:e::/64")
    server = docker.start("--network", network, IMAGE, "sleep", "1000")
    address = docker.inspect(server)["NetworkSettings"]["Networks"][network]["GlobalIPv6Address"]
    script = f"ping -6 -c 1 -W 2 {address} | grep -c ' 0% packet loss'"
    assert docker.run("--network", network, IMAGE, "sh", "-c", script).output == "1"


@pytest.mark.vm_only
def test_network_and_ipc_of_a_container(docker: Docker) -> None:
    """``--network container:X`` and ``--ipc container:X`` lead into the machine of X."""
    name = docker.start("--ipc", "shareable", IMAGE, "sleep", "1000")
    docker.sh(name, "echo told >/dev/shm/word")
    options = (f"--network=container:{name}", f"--ipc=container:{name}")
    script = "cat /dev/shm/word /proc/sys/kernel/random/boot_id; ip -o -4 addr show eth0"
    joined = docker.run(*options, IMAGE, "sh", "-c", script).output
    there = docker.sh(name, "cat /proc/sys/kernel/random/boot_id; ip -o -4 addr show eth0")
    assert joined == f"told\n{there}"


@pytest.mark.parametrize("kind", ["bridge", "none", "six"])
def test_ipv6_is_on_or_off_as_in_the_namespace(docker: Docker, kind: str) -> None:
    """Docker switches it off but for networks that have it."""
    if kind == "six":
        kind = docker.network("--ipv6", "--subnet", "fd00:c1::/64")
    script = (
        "cd /proc/sys/net/ipv6/conf; grep . */disable_ipv6; "
        "ip -6 -o addr | awk '$4 !~ /^fe80/ {print $2, $4}'"
    )
    told = {}
    for runtime in ("runc", docker.runtime):
        argv = ["--rm", "--runtime", runtime, "--network", kind]
        told[runtime] = docker("run", *argv, IMAGE, "sh", "-c", script).output
    assert told[docker.runtime] == told["runc"]
    assert ("eth0 fd00:c1::" in told["runc"]) == (kind not in ("bridge", "none"))
