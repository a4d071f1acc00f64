"""Messages, by the vectors that the agent is tested with as well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.base.errors import GuestError
from cloche.base.typed import plain as plain_record
from cloche.wire import frames
from cloche.wire.messages import AgentError, Credit, Data, Eof, Event, Protocol, Reply

VECTORS = json.loads((Path(__file__).parents[1] / "vectors/frames.json").read_text())
KINDS = {"data": frames.DATA, "credit": frames.CREDIT, "eof": frames.EOF}


def plain(value: Any) -> Any:  # noqa: ANN401 (any JSON value)
    """A value of the vectors, with bytes in place of their hex form."""
    if isinstance(value, dict):
        if value.keys() == {"bin"}:
            return bytes.fromhex(value["bin"])
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def vectors(section: str, to: str) -> list[Any]:
    """The vectors of a *section* that travel *to* `host` or `guest`, named."""
    found = [vector for vector in VECTORS[section] if vector["to"] == to]
    assert found
    return [pytest.param(vector, id=vector["name"]) for vector in found]


@pytest.mark.parametrize("vector", vectors("frames", "guest"))
def test_what_goes_to_the_guest(vector: dict[str, Any]) -> None:
    expected = bytes.fromhex(vector["frame"])
    if vector["kind"] == "request":
        number, request = plain(vector["message"])
        ((op, fields),) = request.items()
        protocol = Protocol()
        for _ in range(number - 1):
            protocol.request("sync", {})
        assert protocol.request(op, fields) == (number, expected)
    else:
        payload = bytes.fromhex(vector["payload"])
        assert frames.encode(vector["stream"], KINDS[vector["kind"]], payload) == expected


@pytest.mark.parametrize("vector", vectors("frames", "host"))
def test_what_comes_from_the_guest(vector: dict[str, Any]) -> None:
    protocol = Protocol()
    if vector["kind"] == "reply":
        _, _, op = vector["name"].partition("reply to ")
        protocol._asked[vector["message"][0]] = op or "sync"
    (received,) = protocol.receive(bytes.fromhex(vector["frame"]))
    if vector["kind"] == "reply":
        check_reply(received, *plain(vector["message"]))
    elif vector["kind"] == "event":
        assert isinstance(received, Event)
        assert {received.name: received.fields} == plain(vector["message"])
    else:
        payload = bytes.fromhex(vector["payload"])
        expected = {
            "data": Data(vector["stream"], payload),
            "credit": Credit(vector["stream"], int.from_bytes(payload, "little")),
            "eof": Eof(vector["stream"]),
        }
        assert received == expected[vector["kind"]]


def check_reply(received: object, number: int, body: dict[str, Any]) -> None:
    """Compare a reply with what the vector says of it."""
    assert isinstance(received, Reply)
    assert received.request == number
    if "ok" in body:
        assert (listed(received.value), received.error) == (body["ok"], None)
    else:
        assert received.error is not None
        assert plain_record(received.error) == body["err"]


def listed(value: Any) -> Any:  # noqa: ANN401 (any value of a reply)
    """A value with lists in place of tuples."""
    if isinstance(value, dict):
        return {key: listed(item) for key, item in value.items()}
    return [listed(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("vector", vectors("not_frames", "host"))
def test_what_ends_the_connection(vector: dict[str, Any]) -> None:
    with pytest.raises(GuestError):
        Protocol().receive(bytes.fromhex(vector["frame"]))


@pytest.mark.parametrize(
    "message",
    [
        None,
        1,
        [],
        {},
        [1],
        [1, 2, 3],
        [1, {}],
        [1, None],
        ["x", {"ok": 1}],
        [1, {"err": {}}],
        [1, {"err": {"step": 1, "object": "", "errno": 0, "message": ""}}],
        {"exit": None},
        {"exit": [1]},
        {"a": {}, "b": {}},
    ],
    ids=repr,
)
@pytest.mark.parametrize("kind", [frames.REPLY, frames.EVENT])
def test_a_malformed_message_is_the_guests_error(message: object, kind: int) -> None:
    with pytest.raises(GuestError, match="malformed message"):
        asked().receive(frames.encode(0, kind, msgspec.msgpack.encode(message)))


def asked() -> Protocol:
    """A connection on which there is one request that waits for its answer."""
    protocol = Protocol()
    protocol.request("sync", {})
    return protocol


@given(st.binary(max_size=200), st.sampled_from([frames.REPLY, frames.EVENT]))
def test_any_payload_is_a_message_or_the_guests_error(payload: bytes, kind: int) -> None:
    try:
        (received,) = asked().receive(frames.encode(0, kind, payload))
    except GuestError:
        return
    assert isinstance(received, Reply if kind == frames.REPLY else Event)


def test_deep_nesting_is_the_guests_error() -> None:
    payload = b"\x92\x01\x81\xa2ok" + b"\x91" * 60_000 + b"\xc0"
    with pytest.raises(GuestError, match="malformed message"):
        Protocol().receive(frames.encode(0, frames.REPLY, payload))


def test_requests_are_numbered_and_bounded() -> None:
    protocol = Protocol()
    assert [protocol.request("sync", {})[0] for _ in range(3)] == [1, 2, 3]
    with pytest.raises(GuestError, match=r"create: request of \d+ bytes is too long"):
        protocol.request("create", {"id": "x" * frames.MAX_REQUEST})


def test_an_error_of_the_agent_in_words() -> None:
    def told(**fields: object) -> AgentError:
        failure = {"step": "mount", "object": "/x", "errno": 0, "message": "", **fields}
        data = msgspec.msgpack.encode([1, {"err": failure}])
        (reply,) = asked().receive(frames.encode(0, frames.REPLY, data))
        assert isinstance(reply, Reply)
        assert reply.error is not None
        return AgentError(reply.error)

    assert str(told(errno=2)) == "mount /x: no such file or directory"
    assert told(errno=2).errno == 2
    assert str(told(message="as told")) == "as told"
    assert str(told()) == "mount /x: failed"
