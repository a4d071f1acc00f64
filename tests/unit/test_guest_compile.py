"""cloche's own kernel: its configuration, and which kernel is taken when. Compiling one is
`make test-kernel`."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from cloche.base.errors import ClocheError
from cloche.guest import compile as own
from cloche.guest.build import build_guest, guest_is_stale, remove_unused
from cloche.guest.kernel import (
    BUILT,
    BUILT_ROOT,
    REQUIRED_CONFIG,
    built_kernel,
    check_config,
    find_kernel,
    install_built,
    load_kernel,
)
from cloche.guest.module_store import STORE
from cloche.guest.modules import WANTED
from cloche.guest.package import KernelPackage, concrete_package

from .guest_samples import RELEASE, elf_kernel, unpacked_kernel

SOURCE = KernelPackage("linux-source-6.1", "6.1.192-2")


def source_tree(folder: Path, release: str = "6.1.192-cloche") -> Path:
    """What a finished compilation leaves of use."""
    folder.mkdir()
    (folder / "vmlinux").write_bytes(elf_kernel(release=release))
    (folder / ".config").write_text("".join(f"{name}=y\n" for name in REQUIRED_CONFIG))
    names = [f"kernel/drivers/{want.name}.ko" for want in WANTED]
    modules = folder / BUILT_ROOT / "lib" / "modules" / release
    (modules / "kernel" / "net").mkdir(parents=True)
    (modules / "modules.builtin").write_text("\n".join(names) + "\n")
    (modules / "modules.dep").write_text("kernel/net/bridge.ko:\n")
    (modules / "kernel" / "net" / "bridge.ko").write_bytes(b"code")
    return folder


def test_the_fragment_has_what_a_guest_must_have() -> None:
    text = own.FRAGMENT.read_text()
    check_config(text, "fragment")
    options = re.findall(r"^(CONFIG_\w+)=", text, re.MULTILINE)
    assert len(options) == len(set(options))


def test_what_could_not_be_had_is_named() -> None:
    fragment = '# a comment\nCONFIG_A=y\nCONFIG_B=n\nCONFIG_C="text"\nCONFIG_D=64\n'
    assert own.lost_options(fragment, 'CONFIG_A=y\nCONFIG_C="text"\nCONFIG_D=64\n') == []
    config = "# CONFIG_A is not set\nCONFIG_D=8\n"
    assert own.lost_options(fragment, config) == ["CONFIG_A=y", 'CONFIG_C="text"', "CONFIG_D=64"]


def test_an_own_kernel_comes_before_the_distributions(tmp_path: Path) -> None:
    unpacked_kernel(tmp_path / "kernels" / RELEASE, package=f"linux-image-{RELEASE}")
    kernel = install_built(tmp_path, source_tree(tmp_path / "tree"), own.origin_of(SOURCE))
    assert kernel.directory == tmp_path / "kernels" / f"6.1.192-cloche+{BUILT}"
    assert load_kernel(kernel.directory) == kernel == built_kernel(tmp_path)
    assert find_kernel(tmp_path) == kernel
    assert (kernel.modules / "kernel/net/bridge.ko").read_bytes() == b"code"


def test_the_configured_kernel_comes_before_an_own_one(tmp_path: Path) -> None:
    install_built(tmp_path, source_tree(tmp_path / "tree"), own.origin_of(SOURCE))
    folder = unpacked_kernel(tmp_path / "mine")
    assert find_kernel(tmp_path, folder).directory == folder


def test_a_new_one_replaces_the_one_before(tmp_path: Path) -> None:
    install_built(tmp_path, source_tree(tmp_path / "a"), own.origin_of(SOURCE))
    tree = source_tree(tmp_path / "b", "6.1.200-cloche")
    install_built(tmp_path, tree, own.origin_of(SOURCE))
    assert os.listdir(tmp_path / "kernels") == [f"6.1.200-cloche+{BUILT}"]


def test_it_stays_while_no_guest_has_it(tmp_path: Path) -> None:
    install_built(tmp_path, source_tree(tmp_path / "tree"), own.origin_of(SOURCE))
    assert remove_unused(tmp_path) == []


def test_a_guest_of_the_distributions_kernel_is_stale_beside_it(tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    agent.write_bytes(b"agent")
    other = load_kernel(unpacked_kernel(tmp_path / "kernels" / RELEASE, store=STORE))
    assert other is not None
    guest = build_guest(tmp_path, other, agent)
    kernel = install_built(tmp_path, source_tree(tmp_path / "tree"), own.origin_of(SOURCE))
    reason = guest_is_stale(guest, str(agent), None)
    assert reason is not None
    assert "own kernel 6.1.192-cloche is there" in reason
    for path in sorted(kernel.directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert "own kernel" not in (guest_is_stale(guest, str(agent), None) or "")


def test_a_guest_whose_kernel_was_unpacked_without_all_modules_is_stale(tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    agent.write_bytes(b"agent")
    folder = unpacked_kernel(tmp_path / "kernels" / RELEASE)
    kernel = load_kernel(folder)
    assert kernel is not None
    guest = build_guest(tmp_path, kernel, agent)
    assert "has not kept the modules" in (guest_is_stale(guest, str(agent), None) or "")


def test_source_packages_are_told_from_kernels() -> None:
    record = "Package: linux-source\nDepends: linux-source-6.1 (= 6.1.192-2), xz-utils\n"
    assert concrete_package(record, "linux-source", "linux-source-") == "linux-source-6.1"
    with pytest.raises(ClocheError, match="depends on no linux-image-"):
        concrete_package(record, "linux-source")


def test_missing_tools_are_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "_TOOLS", {"no-such-make": "make", "no-such-cc": "gcc", "sh": "dash"})
    monkeypatch.setattr(own, "_HEADERS", {"no-such-header.h": "libelf-dev"})
    with pytest.raises(ClocheError) as caught:
        own.check_tools()
    assert caught.value.hint == "try: apt-get install gcc make"
    monkeypatch.setattr(own, "_TOOLS", {"sh": "dash"})
    with pytest.raises(ClocheError, match="libelf-dev"):
        own.check_tools()


def test_only_one_compiles_at_a_time(tmp_path: Path) -> None:
    with own._workshop(tmp_path) as folder:
        (folder / "left").touch()
        with pytest.raises(ClocheError, match="another"), own._workshop(tmp_path):
            pass
    assert not folder.exists()
