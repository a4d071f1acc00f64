"""What several of the unit tests start from."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for the full config.json of oci_data: a folder with what that one binds."""
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "data").mkdir()
    return folder
