"""The DNS relay against real servers on loopback addresses of a namespace."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from cloche.base.loop import Future, Loop
from cloche.host import dns
from cloche.host.dns import DnsRelay, loopback_nameservers
from engine.patience import PATIENCE_SECONDS

from .conftest import Namespace

SERVER = "127.0.0.11"
QUESTION = bytes.fromhex("beef01000001000000000000") + b"\x03web\x00\x00\x01\x00\x01"


class Bench:
    """A relay inside a namespace, the loop it runs on, and the answers it gave."""

    def __init__(self, inside: Namespace) -> None:
        self.inside = inside
        self.loop = Loop()
        self.answers: dict[int, bytes] = {}
        self._awaited: dict[int, Future] = {}
        self.relay = DnsRelay(self.loop, [SERVER, "::1"], self._answer)

    def _answer(self, query: int, data: bytes) -> None:
        self.answers[query] = data
        self._awaited.pop(query, Future()).set()

    def ask(self, query: int, *, server: str = SERVER, tcp: bool = False) -> None:
        with self.inside.entered():
            self.relay.query(query, server, tcp, QUESTION)

    def wait(self, query: int) -> bytes:
        if query not in self.answers:
            self._awaited[query] = Future()
            self.loop.run_until(self._awaited[query])
        return self.answers[query]

    def udp_server(self, address: str = SERVER) -> socket.socket:
        with self.inside.entered():
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            server = socket.socket(family, socket.SOCK_DGRAM)
        server.bind((address, 53))
        server.settimeout(PATIENCE_SECONDS)
        return server

    def tcp_server(self) -> socket.socket:
        with self.inside.entered():
            server = socket.create_server((SERVER, 53))
        server.settimeout(PATIENCE_SECONDS)
        return server


@pytest.fixture
def bench(namespace: Callable[[], Namespace]) -> Iterator[Bench]:
    made = Bench(namespace())
    yield made
    made.relay.close()
    made.loop.close()


@pytest.mark.parametrize("address", [SERVER, "::1"])
def test_udp_answers_meet_their_queries(bench: Bench, address: str) -> None:
    with bench.udp_server(address) as server:
        senders = []
        for query in (1, 2, 3):
            bench.ask(query, server=address)
            question, sender = server.recvfrom(0x10000)
            assert question == QUESTION
            senders.append(sender)
        for query in (3, 1, 2):
            server.sendto(b"answer %d" % query, senders[query - 1])
            assert bench.wait(query) == b"answer %d" % query


@pytest.mark.parametrize("length", [12, 65535])
def test_tcp_answer_of_any_length_is_whole(bench: Bench, length: int) -> None:
    answer = bytes(number % 251 for number in range(length))
    asked: list[bytes] = []

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            asked.append(connection.recv(0x10000))
            framed = struct.pack(">H", length) + answer
            connection.sendall(framed[:1])
            connection.sendall(framed[1:])
            connection.recv(1)  # until the relay hangs up

    with bench.tcp_server() as server:
        thread = threading.Thread(target=serve)
        thread.start()
        bench.ask(1, tcp=True)
        assert bench.wait(1) == answer
        thread.join()
    assert asked == [struct.pack(">H", len(QUESTION)) + QUESTION]


def test_server_that_hangs_up_gives_no_answer(bench: Bench) -> None:
    with bench.tcp_server() as server:
        bench.ask(1, tcp=True)
        connection, _ = server.accept()
        connection.sendall(b"\x00\x20half")
        connection.shutdown(socket.SHUT_WR)
        assert bench.wait(1) == b""
        connection.close()


@pytest.mark.parametrize("tcp", [False, True])
def test_port_without_a_server_gives_no_answer_at_once(bench: Bench, tcp: bool) -> None:
    bench.ask(1, tcp=tcp)
    assert bench.wait(1) == b""


def test_silent_server_gives_no_answer_after_a_while(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns, "EXPIRY_SECONDS", 0.1)
    with bench.udp_server():
        bench.ask(1)
        assert bench.answers == {}
        assert bench.wait(1) == b""


def test_other_servers_are_not_asked(bench: Bench) -> None:
    with bench.udp_server("127.0.0.53") as other:
        bench.ask(1, server="127.0.0.53")
        assert bench.answers == {1: b""}
        other.settimeout(0.1)
        with pytest.raises(TimeoutError):
            other.recv(100)


def test_queries_in_flight_are_bounded(bench: Bench) -> None:
    with bench.udp_server():
        for query in range(dns.MAX_PENDING + 1):
            bench.ask(query)
    assert bench.answers == {dns.MAX_PENDING: b""}


@pytest.mark.parametrize("length", [0, 11, 65536])
def test_what_cannot_be_a_message_is_not_asked(bench: Bench, length: int) -> None:
    with bench.inside.entered():
        bench.relay.query(1, SERVER, True, bytes(length))
    assert bench.answers == {1: b""}


def test_loopback_nameservers_are_found_in_order() -> None:
    text = (
        "# nameserver 127.0.0.1\nsearch example\nnameserver 127.0.0.11\nnameserver 10.0.0.1\n"
        "nameserver ::1\nnameserver 127.0.0.11\noptions ndots:0\nnameserver\n"
    )
    assert loopback_nameservers(text) == ["127.0.0.11", "::1"]
