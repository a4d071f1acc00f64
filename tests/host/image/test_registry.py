"""Registry references, pulled by skopeo over HTTP from a registry that serves one OCI layout."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

from cloche.base.errors import ClocheError
from cloche.image.store import list_images, prune
from engine.patience import PATIENCE_SECONDS

from .support import Resolve, copy_of, leftovers, run, start

MEDIA_TYPES = {
    "manifests": "application/vnd.oci.image.manifest.v1+json",
    "blobs": "application/octet-stream",
}


class Registry(ThreadingHTTPServer):
    """The reading half of the distribution protocol, for repository "demo/busybox".

    *damage* flips a bit in everything that is large, *private* asks for a password, *delay* is
    waited for before each answer; *arrived* is set by a request.
    """

    damage = False
    private = False
    delay: Event | None = None

    def __init__(self, layout: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.arrived = Event()
        self.layout = layout
        self.requests: list[str] = []

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def digest(self, reference: str) -> str:
        """The digest that a tag, or a digest, stands for; "" for an unknown tag."""
        if ":" in reference:
            return reference
        index = json.loads((self.layout / "index.json").read_text())
        key = "org.opencontainers.image.ref.name"
        found = [m["digest"] for m in index["manifests"] if m["annotations"][key] == reference]
        return found[0] if found else ""


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of /v2/, manifests and blobs."""

    server: Registry
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        self.server.arrived.set()
        if self.server.delay:
            self.server.delay.wait(PATIENCE_SECONDS)
        if self.server.private:
            return self._answer(401, b'{"errors": [{"code": "UNAUTHORIZED"}]}')
        if self.path == "/v2/":
            return self._answer(200, b"{}")
        kind, reference = self.path.removeprefix("/v2/demo/busybox/").split("/")
        digest = self.server.digest(reference)
        blob = self.server.layout / "blobs" / digest.replace(":", "/")
        if not digest or not blob.is_file():
            return self._answer(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}')
        data = bytearray(blob.read_bytes())
        if self.server.damage and len(data) > 10_000:
            data[5_000] ^= 1
        return self._answer(200, bytes(data), MEDIA_TYPES[kind])

    do_HEAD = do_GET

    def _answer(self, status: int, data: bytes, media_type: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(data)))
        if status == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="demo"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Keep the test's output free of access logs."""


@pytest.fixture
def registry(layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    folder = copy_of(layout, tmp_path)
    with Registry(folder) as server:
        settings = tmp_path / ".config/containers/registries.conf"
        settings.parent.mkdir(parents=True)
        settings.write_text(f'[[registry]]\nlocation = "{server.host}"\ninsecure = true\n')
        # Neither settings nor credentials of whoever runs the tests.
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("HTTP_PROXY", raising=False)
        monkeypatch.delenv("http_proxy", raising=False)
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_pull_is_kept_until_refreshed(get: Resolve, registry: Registry, layout: Path) -> None:
    name = f"{registry.host}/demo/busybox:latest"
    image = get(name)
    assert image.config.cmd == ("sh",)
    assert image.digest == run("skopeo", "inspect", "-f", "{{.Digest}}", f"oci:{layout}").strip()
    run("umoci", "config", "--image", f"{registry.layout}:latest", "--config.cmd", "date")
    registry.requests.clear()
    assert get(name) == image
    assert registry.requests == []
    newer = get(name, refresh=True)
    assert newer.config.cmd == ("date",)
    assert get(name) == newer


def test_pull_by_digest(get: Resolve, registry: Registry) -> None:
    digest = registry.digest("latest")
    assert get(f"docker://{registry.host}/demo/busybox@{digest}").digest == digest


def test_unknown_tag(get: Resolve, registry: Registry) -> None:
    with pytest.raises(ClocheError, match="manifest unknown") as caught:
        get(f"{registry.host}/demo/busybox:nope")
    assert "no such tag" in caught.value.hint


def test_private_repository(get: Resolve, registry: Registry) -> None:
    registry.private = True
    with pytest.raises(ClocheError, match="skopeo") as caught:
        get(f"{registry.host}/demo/busybox")
    assert "skopeo login" in caught.value.hint


def test_a_registry_that_lies(get: Resolve, registry: Registry, store: Path) -> None:
    registry.damage = True
    with pytest.raises(ClocheError, match=r"[Dd]igest did not match"):
        get(f"{registry.host}/demo/busybox:latest")
    assert list_images(store) == []
    assert leftovers(store) == []


def test_a_registry_that_is_not_there(get: Resolve, registry: Registry) -> None:
    with pytest.raises(ClocheError, match="connection refused") as caught:
        get("127.0.0.1:1/demo/busybox:latest")
    assert "cannot be reached" in caught.value.hint


def test_what_a_dead_process_started_keeps_its_folder(registry: Registry, store: Path) -> None:
    """skopeo outlives cloche for a moment: nobody may take the folder away below it."""
    registry.delay = Event()
    process = start(f"{registry.host}/demo/busybox:latest", store)
    assert registry.arrived.wait(PATIENCE_SECONDS)
    process.kill()
    process.wait()
    [name] = os.listdir(store / "images/work")
    fd = os.open(store / "images/work" / name, os.O_RDONLY)
    prune(store)
    assert os.listdir(store / "images/work") == [name]
    registry.delay.set()
    fcntl.flock(fd, fcntl.LOCK_EX)  # until skopeo has ended
    os.close(fd)
    prune(store)
    assert leftovers(store) == []
