"""Images to unpack, built by tools/busybox-image, and a store of its own for every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloche.image.model import Image
from cloche.image.store import resolve

from .support import (
    TOOL,
    Resolve,
    run,
)


@pytest.fixture(autouse=True, scope="session")
def _root() -> None:
    if os.geteuid() != 0:
        pytest.skip("unpacking keeps the owners of files: needs root")


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout with busybox as "latest"; read only, tests that change one copy it."""
    folder = tmp_path_factory.mktemp("image") / "layout"
    run(TOOL, "oci", folder)
    return folder


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A docker archive with busybox."""
    file = tmp_path_factory.mktemp("image") / "busybox.tar"
    run(TOOL, "docker-archive", file)
    return file


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def reports() -> list[str]:
    return []


@pytest.fixture
def get(store: Path, reports: list[str]) -> Resolve:
    """`resolve` into this test's store, what it reports ends up in *reports*."""

    def resolve_here(reference: object, *, refresh: bool = False) -> Image:
        return resolve(str(reference), store, reports.append, refresh=refresh)

    return resolve_here
