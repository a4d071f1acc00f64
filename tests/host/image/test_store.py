"""The store: several users at once, damage, listing, removing, pruning."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloche.base.errors import NotFoundError, StateError
from cloche.image.store import hold, list_images, prune, remove_image
from engine.patience import PATIENCE_SECONDS

from .support import (
    Resolve,
    leftovers,
    open_locked,
    run,
    start,
    two_images,
)


def test_two_at_once_unpack_once(archive: Path, store: Path) -> None:
    both = [start(archive, store) for _ in range(2)]
    outputs = [process.communicate(timeout=PATIENCE_SECONDS)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len({output.splitlines()[-1] for output in outputs}) == 1
    assert sum("packing the files" in output for output in outputs) == 1
    assert leftovers(store) == []


def test_damaged_store_entries_are_made_anew(get: Resolve, archive: Path) -> None:
    image = get(archive)
    assert image.erofs is not None
    for damage in ("manifest", "short", "source"):
        if damage == "manifest":
            (image.erofs.parent / "manifest.json").write_text('{"format": 1}')
        elif damage == "short":
            os.truncate(image.erofs, 4096)
        else:
            [record] = (image.erofs.parents[1] / "sources").iterdir()
            record.write_text("[1, 2")
        assert get(archive) == image
        assert image.erofs.stat().st_size > 100_000


def test_list_and_remove(get: Resolve, archive: Path, layout: Path, store: Path) -> None:
    first, second = get(archive), get(layout)
    listed = list_images(store)
    assert [entry.digest for entry in listed] == [second.digest, first.digest]
    assert listed[0].sources == (str(layout),)
    assert listed[0].size > 100_000
    assert remove_image(store, first.digest[:20]) == first.digest
    assert remove_image(store, str(layout)) == second.digest
    assert list_images(store) == []
    assert os.listdir(store / "images/sources") == []
    with pytest.raises(NotFoundError, match="not in the store"):
        remove_image(store, first.digest)
    with pytest.raises(NotFoundError, match="not in the store"):
        remove_image(store, "")


def test_an_image_that_is_held_stays(get: Resolve, archive: Path, store: Path) -> None:
    image = get(archive)
    fd = hold(image)
    with pytest.raises(StateError, match="in use by a container"):
        remove_image(store, image.digest)
    assert prune(store, everything=True) == []
    os.close(fd)
    assert prune(store, everything=True) == [image.digest]
    with pytest.raises(NotFoundError, match="removed meanwhile"):
        hold(image)


def test_prune_keeps_what_can_still_be_named(get: Resolve, layout: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    folder = two_images(layout, tmp_path)
    kept, gone = get(f"{folder}:latest"), get(f"{folder}:date")
    file = tmp_path / "x.tar"
    run("skopeo", "copy", f"oci:{folder}:latest", f"oci-archive:{file}")
    assert get(file).digest == kept.digest
    assert prune(store) == []
    run("umoci", "rm", "--image", f"{folder}:date")
    assert prune(store) == [gone.digest]  # the other is known by the archive
    file.unlink()
    assert prune(store) == [kept.digest]


def test_prune_takes_away_what_the_dead_left(store: Path, archive: Path) -> None:
    process = start(archive, store, "unpacking")
    process.communicate(timeout=PATIENCE_SECONDS)
    with open_locked(store) as busy:
        prune(store)
        assert os.listdir(store / "images/work") == [busy.name]
