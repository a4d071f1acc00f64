"""Finding and unpacking kernels, with small ones in the real formats."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path

import pytest

from cloche.base.errors import ClocheError
from cloche.guest.kernel import (
    boot_kernel,
    check_config,
    find_kernel,
    install_package,
    load_kernel,
    version_key,
)
from cloche.guest.modules import WANTED
from cloche.guest.package import (
    KernelPackage,
    candidate_package,
    concrete_package,
    download_fraction,
)

from .guest_samples import (
    CONFIG,
    RELEASE,
    bzimage,
    elf_kernel,
    kernel_deb,
    module_tree,
    unpacked_kernel,
)

PACKAGE = KernelPackage(f"linux-image-{RELEASE}", "6.1.192-2")


def leftovers(root: Path) -> list[str]:
    """Temporary files and folders anywhere below *root*."""
    return [str(path) for path in root.rglob(".*")]


def boot_folder(root: Path, release: str, missing: str = "") -> Path:
    """A /boot of a host beside its /lib/modules, perhaps without one module."""
    boot = root / "boot"
    boot.mkdir(exist_ok=True)
    (boot / f"vmlinuz-{release}").write_bytes(
        bzimage(gzip.compress(elf_kernel(release=release)), release)
    )
    tree = module_tree(root / "lib" / "modules" / release)
    dep = (tree / "modules.dep").read_text().splitlines(keepends=True)
    keep = [line for line in dep if not missing or not line.startswith(f"kernel/{missing}.ko:")]
    (tree / "modules.dep").write_text("".join(keep))
    return boot


@pytest.fixture
def deb(tmp_path: Path) -> Path:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed")
    return kernel_deb(tmp_path / "deb", gzip.compress(elf_kernel()))


def test_a_package_is_unpacked_to_what_the_guest_needs(tmp_path: Path, deb: Path) -> None:
    kernel = install_package(deb, PACKAGE, tmp_path / "data")
    assert kernel.directory == tmp_path / "data" / "kernels" / RELEASE
    assert kernel.vmlinux.read_bytes() == elf_kernel()
    assert (kernel.directory / "config").read_text() == CONFIG
    kept = {path.name for path in kernel.modules.rglob("*.ko")}
    assert kept == {f"{want.name}.ko" for want in WANTED} | {"virtio_ring.ko"}
    assert kernel.source == f"package linux-image-{RELEASE} 6.1.192-2"
    assert load_kernel(kernel.directory) == kernel
    assert leftovers(tmp_path / "data") == []


def test_a_package_takes_the_place_of_its_older_version(tmp_path: Path, deb: Path) -> None:
    data = tmp_path / "data"
    install_package(deb, KernelPackage(PACKAGE.name, "6.1.192-1"), data)
    kernel = install_package(deb, PACKAGE, data)
    assert kernel.origin["version"] == "6.1.192-2"
    assert os.listdir(data / "kernels") == [RELEASE]


def test_a_damaged_package_leaves_nothing_behind(tmp_path: Path) -> None:
    broken = tmp_path / "broken.deb"
    broken.write_bytes(b"!<arch>\nnot a package")
    with pytest.raises(ClocheError, match=r"dpkg-deb: failed to unpack broken\.deb"):
        install_package(broken, PACKAGE, tmp_path / "data")
    assert os.listdir(tmp_path / "data" / "kernels") == []


def test_a_kernel_that_lost_a_file_is_not_used(tmp_path: Path) -> None:
    folder = unpacked_kernel(tmp_path / "k")
    assert load_kernel(folder) is not None
    (folder / "modules" / "kernel" / "9p.ko").unlink()
    assert load_kernel(folder) is None


def test_a_kernel_of_another_format_is_not_used(tmp_path: Path) -> None:
    folder = unpacked_kernel(tmp_path / "k")
    record = json.loads((folder / "origin.json").read_text())
    (folder / "origin.json").write_text(json.dumps(record | {"format": 0}))
    assert load_kernel(folder) is None


def test_a_configured_image_is_unpacked_once_and_again_when_it_changes(tmp_path: Path) -> None:
    image = boot_folder(tmp_path, RELEASE) / f"vmlinuz-{RELEASE}"
    data = tmp_path / "data"
    kernel = find_kernel(data, image)
    assert (kernel.directory.name, kernel.source) == (f"{RELEASE}+configured", str(image))
    first = kernel.vmlinux.stat().st_ino
    assert find_kernel(data, image).vmlinux.stat().st_ino == first
    changed = elf_kernel() + b"a new build"
    image.write_bytes(bzimage(gzip.compress(changed)))
    assert find_kernel(data, image).vmlinux.read_bytes() == changed
    assert leftovers(data) == []


def test_a_configured_folder_is_used_where_it_is(tmp_path: Path) -> None:
    folder = unpacked_kernel(tmp_path / "mine")
    assert find_kernel(tmp_path / "data", folder).directory == folder


@pytest.mark.parametrize(
    ("name", "cause"),
    [("absent", "absent: no such kernel"), ("empty", "empty: holds no complete kernel")],
)
def test_a_configured_path_that_is_no_kernel_is_an_error(
    tmp_path: Path, name: str, cause: str
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ClocheError, match=cause):
        find_kernel(tmp_path / "data", tmp_path / name)


def test_a_configured_image_without_modules_says_where_they_were_looked_for(
    tmp_path: Path,
) -> None:
    image = tmp_path / "bzImage"
    image.write_bytes(bzimage(gzip.compress(elf_kernel(release="9.9-none")), "9.9-none"))
    with pytest.raises(ClocheError) as caught:
        find_kernel(tmp_path / "data", image)
    assert f"no modules for 9.9-none at {tmp_path}/modules" in caught.value.message


def test_the_newest_usable_kernel_in_boot_is_taken(tmp_path: Path) -> None:
    boot_folder(tmp_path, "6.1.0-9-amd64")
    boot_folder(tmp_path, "6.1.0-56-amd64")
    boot = boot_folder(tmp_path, "6.1.0-57-cloud-amd64", missing="9p")
    kernel = boot_kernel(tmp_path / "data", boot)
    assert kernel.release == "6.1.0-56-amd64"
    assert kernel.origin["newest"] == f"{boot}/vmlinuz-6.1.0-57-cloud-amd64"


def test_a_boot_folder_without_usable_kernels_says_why_for_each(tmp_path: Path) -> None:
    boot = boot_folder(tmp_path, "6.1.0-57-cloud-amd64", missing="9p")
    with pytest.raises(ClocheError) as caught:
        boot_kernel(tmp_path / "data", boot)
    assert caught.value.message == (
        "kernel 6.1.0-57-cloud-amd64: lacks the modules 9p (shared folders)"
    )
    with pytest.raises(ClocheError, match=r"no .*/none/vmlinuz-"):
        boot_kernel(tmp_path / "data", tmp_path / "none")


def test_a_kernel_built_without_what_containers_need_is_refused() -> None:
    check_config(CONFIG, "6.1")
    with pytest.raises(ClocheError) as caught:
        check_config(CONFIG.replace("CONFIG_CGROUPS=y", "# CONFIG_CGROUPS is not set"), "6.1")
    assert caught.value.message == "kernel 6.1: built without CONFIG_CGROUPS (resource limits)"


def test_releases_sort_by_number() -> None:
    names = ["6.1.0-9-amd64", "6.1.0-56-amd64", "6.10.1-amd64", "5.10.0-30-amd64"]
    assert sorted(names, key=version_key) == [names[3], names[0], names[1], names[2]]


def test_the_concrete_package_is_found_among_the_dependencies() -> None:
    record = "Package: linux-image-amd64\nDepends: base, linux-image-6.1.0-56-amd64 (= 6.1.192-2)\n"
    assert concrete_package(record, "linux-image-amd64") == "linux-image-6.1.0-56-amd64"
    with pytest.raises(ClocheError, match="depends on no linux-image"):
        concrete_package("Package: x\n", "x")


def test_the_package_names_its_release() -> None:
    assert KernelPackage("linux-image-6.1.0-56-amd64-unsigned", "1").release == RELEASE


@pytest.mark.parametrize(
    ("line", "fraction"),
    [
        (b"dlstatus:1:42.5:Retrieving file 1 of 1 (3s remaining)\n", 0.425),
        (b"pmstatus:dpkg:50:x\n", None),
        (b"dlstatus:1\n", None),
        (b"dlstatus:1:x:y\n", None),
        (b"\n", None),
    ],
)
def test_the_progress_of_a_download(line: bytes, fraction: float | None) -> None:
    assert download_fraction(line) == fraction


def test_without_apt_the_hint_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClocheError, match="apt-cache: not installed") as caught:
        candidate_package()
    assert "/etc/cloche/config.toml" in caught.value.hint


def test_a_package_that_apt_does_not_know_hints_at_its_lists() -> None:
    if shutil.which("apt-cache") is None:
        pytest.skip("apt-cache is not installed")
    with pytest.raises(ClocheError) as caught:
        candidate_package("linux-image-of-no-distribution")
    assert str(caught.value) == (
        "linux-image-of-no-distribution: apt knows no such package (try: apt-get update)"
    )
