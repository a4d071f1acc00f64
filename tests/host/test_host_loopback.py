"""What a process may connect to that is kept off the host's loopback; by the real kernel."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cloche.base import syscalls
from cloche.base.loop import READ, Future, Loop
from cloche.vmm.loopback import HostLoopback

FAST_OPEN = 0x20000000
IO_URING_SETUP, X32_CONNECT = 425, 0x40000000 + 42
Attempt = Callable[[], object]


def attempt(action: Attempt) -> str:
    """The name of the error of *action*, or `ok`."""
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def kept_off(*actions: Attempt, ports: tuple[int, ...] = ()) -> tuple[list[str], list[int]]:
    """What comes of *actions* in a process that may reach *ports* only, and refusals told of."""
    loop, over = Loop(), Future()
    told: list[int] = []
    guard = HostLoopback(loop, ports)
    guard.on_refusal = told.append
    restrict = guard.prepare()
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
            restrict()
            os.write(write_end, json.dumps([attempt(action) for action in actions]).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    guard.started(pid)
    loop.watch(read_end, READ, lambda _: over.set(os.read(read_end, 65536)))
    answer: Any = json.loads(loop.run_until(over) or b"[]")
    os.close(read_end)
    os.waitpid(pid, 0)
    return answer, told


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """A server on the host's loopback that takes connections and reads nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server


def tcp(address: str, port: int) -> Attempt:
    def connect() -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as client:
            client.setblocking(False)
            client.connect((address, port))

    return connect


def udp(address: str, port: int) -> Attempt:
    def send() -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.sendto(b"x", (address, port))

    return send


LOOPBACK = (
    *("127.0.0.1", "127.9.8.7", "0.0.0.0", "::1", "::"),
    *("::ffff:127.0.0.1", "::ffff:0.0.0.0"),
)


@pytest.mark.parametrize("address", LOOPBACK)
def test_the_loopback_is_refused(server: socket.socket, address: str) -> None:
    port = server.getsockname()[1]
    results, told = kept_off(tcp(address, port), udp(address, port))
    assert results == ["ECONNREFUSED"] * 2
    assert told == [port] * 2


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::ffff:127.0.0.1"])
def test_ports_that_may_be_reached(server: socket.socket, address: str) -> None:
    port = server.getsockname()[1]
    results, told = kept_off(tcp(address, port), udp(address, port), ports=(1, port))
    assert results == ["EINPROGRESS", "ok"]
    assert told == []


def test_a_connection_that_is_made_is_a_whole_one(server: socket.socket) -> None:
    port = server.getsockname()[1]

    def talk() -> None:
        with socket.socket() as client:
            client.setblocking(False)
            assert client.connect_ex(("127.0.0.1", port)) == errno.EINPROGRESS
            assert client.connect_ex(("127.0.0.1", port)) in (0, errno.EINPROGRESS, errno.EISCONN)
            client.setblocking(True)
            client.sendall(b"hello")

    heard = []

    def listen() -> None:
        connection, _ = server.accept()
        with connection:
            heard.append(connection.recv(100))

    thread = threading.Thread(target=listen)
    thread.start()
    assert kept_off(talk, ports=(port,)) == (["ok"], [])
    thread.join(20)
    assert heard == [b"hello"]


def test_other_addresses_are_none_of_its_business() -> None:
    # Nobody routes there; what matters is that the kernel was asked.
    results, told = kept_off(tcp("192.0.2.77", 9), udp("192.0.2.77", 9), tcp("2001:db8::1", 9))
    assert told == []
    assert "EACCES" not in results
    assert "ECONNREFUSED" not in results[:2]


def test_an_association_can_be_dissolved() -> None:
    def dissolve() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.connect(client.fileno(), bytes(16), 16):
                raise OSError(ctypes.get_errno(), "connect")

    assert kept_off(dissolve) == (["ok"], [])


def test_a_datagram_to_no_family_is_one_to_ipv4_for_the_kernel(server: socket.socket) -> None:
    port = server.getsockname()[1]
    libc = ctypes.CDLL(None, use_errno=True)

    def send() -> None:
        address = bytes(2) + port.to_bytes(2, "big") + bytes([127, 0, 0, 1]) + bytes(8)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            if libc.sendto(client.fileno(), b"x", 1, 0, address, 16) < 0:
                raise OSError(ctypes.get_errno(), "sendto")

    assert kept_off(send) == (["EACCES"], [])


def test_sockets_of_other_families(tmp_path: Any) -> None:  # noqa: ANN401
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def connect() -> None:
            with socket.socket(socket.AF_UNIX) as client:
                client.setblocking(False)
                client.connect(path)

        def talk() -> None:  # as QEMU does with its channels
            ours, theirs = socket.socketpair()
            ours.sendmsg([b"x"])
            ours.sendall(b"y")
            assert theirs.recv(10) in (b"x", b"xy")

        assert kept_off(connect, talk)[0] == ["EACCES", "ok"]


def test_other_ways_to_connect_are_shut(server: socket.socket) -> None:
    address = server.getsockname()
    libc = ctypes.CDLL(None, use_errno=True)

    def fast(send: Callable[[socket.socket], object]) -> Attempt:
        def connect() -> None:
            with socket.socket() as client:
                client.setblocking(False)
                send(client)

        return connect

    def call(*arguments: int) -> Attempt:
        def make() -> None:
            if libc.syscall(*arguments) < 0:
                raise OSError(ctypes.get_errno(), "call")

        return make

    def waiting() -> None:
        with socket.socket() as client:
            client.connect(address)

    results, _ = kept_off(
        fast(lambda client: client.sendto(b"x", FAST_OPEN, address)),
        fast(lambda client: client.sendmsg([b"x"], [], FAST_OPEN, address)),
        call(IO_URING_SETUP, 1, 0),
        call(X32_CONNECT, 0, 0, 0),
        waiting,
        ports=(address[1],),
    )
    assert results == ["EACCES", "EACCES", "ENOSYS", "ENOSYS", "EACCES"]


def test_an_address_that_cannot_be_read() -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def connect(pointer: int, size: int) -> Attempt:
        def make() -> None:
            with socket.socket() as client:
                client.setblocking(False)
                if libc.connect(client.fileno(), ctypes.c_void_p(pointer), size):
                    raise OSError(ctypes.get_errno(), "connect")

        return make

    results, _ = kept_off(connect(8, 16), connect((1 << 64) - 8, 16), connect(0, 0))
    assert results[:2] == ["EFAULT", "EFAULT"]
    assert results[2] != "ok"
