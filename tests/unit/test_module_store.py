"""Modules that are asked for by name: which are kept, and what a name stands for."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from cloche.base.errors import ClocheError
from cloche.base.loop import Future, Loop
from cloche.guest.build import build_guest, remove_unused
from cloche.guest.guest import hold_kernel
from cloche.guest.kernel import load_kernel
from cloche.guest.module_store import ModuleStore, cut_down, stored
from cloche.guest.modules import parse_index, read_index
from cloche.heart.modules import LONGEST_NAME, MOST_QUESTIONS, PIECE, GuestModules

from .guest_samples import unpacked_kernel

# Lines of Debian's linux-image-6.1.0-57-amd64.
DEP = """\
kernel/drivers/gpu/drm/i915/i915.ko: kernel/drivers/gpu/drm/drm.ko
kernel/drivers/gpu/drm/drm.ko:
kernel/drivers/infiniband/core/ib_core.ko:
kernel/drivers/net/dummy.ko:
kernel/drivers/net/ethernet/intel/e1000/e1000.ko:
kernel/drivers/net/wireguard/wireguard.ko: kernel/net/ipv4/udp_tunnel.ko
kernel/drivers/block/loop.ko:
kernel/fs/fuse/fuse.ko:
kernel/fs/smb/client/cifs.ko: kernel/drivers/infiniband/core/ib_core.ko
kernel/lib/libcrc32c.ko:
kernel/lib/test_user_copy.ko:
kernel/net/bridge/br_netfilter.ko: kernel/net/bridge/bridge.ko
kernel/net/bridge/bridge.ko: kernel/net/802/stp.ko kernel/net/llc/llc.ko
kernel/net/802/stp.ko: kernel/net/llc/llc.ko
kernel/net/ipv4/udp_tunnel.ko:
kernel/net/llc/llc.ko:
kernel/net/wireless/cfg80211.ko:
updates/dkms/vendor.ko: kernel/drivers/gpu/drm/drm.ko
"""
ALIAS = """\
# Aliases extracted from modules themselves.
alias pci:v00008086d00001000sv*sd*bc*sc*i* e1000
alias char-major-10-229 fuse
alias devname:fuse fuse
alias fs-fuse fuse
alias block-major-7-* loop
alias rtnl-link-dummy dummy
alias rtnl-link-wireguard wireguard
alias fs-smb3 cifs
alias two dummy
alias two fuse
"""
BUILTIN = "kernel/net/unix/unix.ko\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "modules.dep").write_text(DEP)
    (tmp_path / "modules.alias").write_text(ALIAS)
    (tmp_path / "modules.builtin").write_text(BUILTIN)
    for path in (line.partition(":")[0] for line in DEP.splitlines()):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(path.encode())
    return tmp_path


def found(tree: Path, name: str, *loaded: str) -> list[str] | None:
    modules = ModuleStore(tree).find(name, loaded)
    return None if modules is None else [module.name for module, _ in modules]


def test_drivers_of_hardware_are_not_kept_but_where_something_needs_them() -> None:
    assert stored(parse_index(DEP)) == {
        *("bridge", "br_netfilter", "cifs", "dummy", "fuse", "ib_core", "libcrc32c", "llc"),
        *("loop", "stp", "udp_tunnel", "wireguard"),
    }


def test_depmods_files_are_cut_down_to_what_is_kept() -> None:
    index = parse_index(
        cut_down("modules.dep", DEP, {"fuse", "loop"}),
        cut_down("modules.builtin", BUILTIN, set()),
        alias=cut_down("modules.alias", ALIAS, {"fuse", "e1000"}),
    )
    assert {*index.paths} == {"fuse", "loop"}
    assert index.builtin == {"unix"}
    assert index.aliases == {name: ["fuse"] for name in ("char-major-10-229", "fs-fuse", "two")}


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("char-major-10-229", ["fuse"]),
        ("char_major_10_229", ["fuse"]),
        ("block-major-7-0", ["loop"]),
        ("rtnl-link-wireguard", ["udp_tunnel", "wireguard"]),
        ("br_netfilter", ["llc", "stp", "bridge", "br_netfilter"]),
        ("br-netfilter", ["llc", "stp", "bridge", "br_netfilter"]),
        ("two", ["dummy", "fuse"]),
        ("unix", []),
        ("nosuch", None),
        ("../../etc/passwd", None),
        ("kernel/fs/fuse/fuse.ko", None),
        ("*", None),
        ("", None),
    ],
)
def test_what_a_name_stands_for(tree: Path, name: str, modules: list[str] | None) -> None:
    assert found(tree, name) == modules


def test_what_is_loaded_is_not_sent_again(tree: Path) -> None:
    assert found(tree, "br_netfilter", "bridge", "stp", "llc") == ["br_netfilter"]
    assert found(tree, "fs-fuse", "fuse") == []


def test_a_kernel_without_an_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClocheError, match=r"modules\.dep: no such file"):
        ModuleStore(tmp_path)


def test_a_kernel_that_a_vm_uses_is_not_removed(tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    agent.write_bytes(b"agent")
    for name in ("old", "held", "new"):
        kernel = load_kernel(unpacked_kernel(tmp_path / "kernels" / name, name))
        assert kernel is not None
        build_guest(tmp_path, kernel, agent)
    held = os.open(tmp_path / "kernels/held", os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(held, fcntl.LOCK_SH)
    removed = remove_unused(tmp_path)
    assert "kernels/old" in removed
    assert "kernels/held" not in removed
    os.close(held)
    assert remove_unused(tmp_path) == ["kernels/held"]


def test_a_kernel_that_is_gone_can_be_held(tmp_path: Path) -> None:
    hold_kernel(str(tmp_path / "gone"))


class Recorder:
    """In place of an agent: notes what is asked of it, and answers when told to."""

    broken = None

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.futures: list[Future] = []

    def call(self, op: str, fields: dict[str, Any]) -> Future:
        self.calls.append((op, fields))
        self.futures.append(Future())
        return self.futures[-1]

    def answer_all(self) -> None:
        """Answer until nothing more is asked."""
        for future in self.futures:
            future.set(None)


def guest_modules(folder: Path) -> tuple[GuestModules, Recorder, list[str]]:
    """What answers a guest with the kernel in *folder*, and what it says."""
    recorder, said = Recorder(), []  # type: tuple[Recorder, list[str]]
    modules = GuestModules(Loop(), recorder, str(folder), said.append)  # type: ignore[arg-type]
    return modules, recorder, said


def test_files_are_sent_in_order_and_in_pieces(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "modules").symlink_to(tree)
    (tree / "kernel/net/ipv4/udp_tunnel.ko").write_bytes(b"u" * (2 * PIECE))
    (tree / "kernel/drivers/net/wireguard/wireguard.ko").write_bytes(b"w" * (PIECE + 1))
    modules, recorder, _ = guest_modules(tmp_path)
    modules.ask({"query": 7, "name": "rtnl-link-wireguard", "loaded": []})
    assert len(recorder.calls) == 1  # the next piece waits for the answer
    recorder.answer_all()
    sent = [(f.get("module"), f.get("data"), f.get("complete")) for _, f in recorder.calls[:-1]]
    assert sent == [
        ("udp_tunnel", b"u" * PIECE, False),
        ("udp_tunnel", b"u" * PIECE, True),
        ("wireguard", b"w" * PIECE, False),
        ("wireguard", b"w", True),
    ]
    assert recorder.calls[-1] == ("module_end", {"query": 7, "found": True})


def test_a_guest_that_asks_too_much_is_refused(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "modules").symlink_to(tree)
    modules, recorder, said = guest_modules(tmp_path)
    for query in range(MOST_QUESTIONS + 5):
        modules.ask({"query": query, "name": "fs-fuse", "loaded": []})
    refused = [fields for op, fields in recorder.calls if op == "module_end"]
    assert [fields["query"] for fields in refused] == [*range(MOST_QUESTIONS, MOST_QUESTIONS + 5)]
    modules.ask({"query": 99, "name": "x" * (LONGEST_NAME + 1), "loaded": []})
    assert recorder.calls[-1] == ("module_end", {"query": 99, "found": False})
    recorder.answer_all()
    modules.ask({"query": 100, "name": "fs-fuse", "loaded": []})
    last = recorder.calls[-1]
    assert last[0] == "module_data"
    assert said == []


@pytest.mark.parametrize("fields", [{}, {"query": "x", "name": "a", "loaded": []}])
def test_a_guest_that_asks_nonsense_breaks_the_protocol(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    modules, _, _ = guest_modules(tmp_path)
    with pytest.raises((KeyError, TypeError, ValueError)):
        modules.ask(fields)


def test_what_cannot_be_read_is_said_once(tmp_path: Path) -> None:
    modules, recorder, said = guest_modules(tmp_path)
    for query in (1, 2):
        modules.ask({"query": query, "name": "fs-fuse", "loaded": []})
    ends = [("module_end", {"query": query, "found": False}) for query in (1, 2)]
    assert recorder.calls == ends
    assert len(said) == 1
    assert "kernel module fs-fuse: " in said[0]


def test_the_index_is_the_trees_own(tree: Path) -> None:
    assert read_index(tree) == parse_index(DEP, BUILTIN, alias=ALIAS)
