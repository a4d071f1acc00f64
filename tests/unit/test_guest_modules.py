"""Load order out of depmod's files."""

from __future__ import annotations

import gzip
import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from cloche.base.errors import ClocheError
from cloche.guest.guest import RECIPE
from cloche.guest.modules import (
    WANTED,
    ModulePlan,
    Wanted,
    module_name,
    parse_index,
    read_index,
    read_module,
    resolve,
)

# Taken from Debian's linux-image-6.1.0-56-amd64.
DEP = """\
kernel/crypto/crc32c_generic.ko:
kernel/arch/x86/crypto/crc32c-intel.ko:
kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko kernel/fs/fscache/fscache.ko kernel/fs/netfs/netfs.ko
kernel/net/9p/9pnet.ko:
kernel/fs/fscache/fscache.ko: kernel/fs/netfs/netfs.ko
kernel/fs/netfs/netfs.ko:
kernel/fs/erofs/erofs.ko: kernel/lib/libcrc32c.ko
kernel/lib/libcrc32c.ko:
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/virtio/virtio_mmio.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/char/hw_random/virtio-rng.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
"""  # noqa: E501 - depmod's own lines
BUILTIN = "kernel/net/unix/unix.ko\nkernel/net/packet/af_packet.ko\n"
SOFTDEP = """\
# Soft dependencies extracted from modules themselves.
softdep libcrc32c pre: crc32c
softdep cifs gcm
"""
ALIAS = """\
# Aliases extracted from modules themselves.
alias crc32c crc32c_intel
alias crc32c crc32c_generic
alias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci
"""
INDEX = parse_index(DEP, BUILTIN, SOFTDEP, ALIAS)


def want(*names: str) -> list[Wanted]:
    return [Wanted(name, f"to test {name}") for name in names]


def order(plan: ModulePlan) -> list[str]:
    return [module.name for module in plan.load]


def test_everything_comes_after_what_it_needs() -> None:
    plan = resolve(INDEX, want("virtio_mmio", "9p"))
    assert order(plan) == [
        *("virtio_ring", "virtio", "virtio_mmio"),
        *("9pnet", "netfs", "fscache", "9p"),
    ] or order(plan) == [
        *("virtio_ring", "virtio", "virtio_mmio"),
        *("netfs", "fscache", "9pnet", "9p"),
    ]


def test_a_module_is_loaded_once_and_says_for_whose_sake() -> None:
    plan = resolve(INDEX, want("virtio_rng", "virtio_mmio", "virtio"))
    assert order(plan) == ["virtio_ring", "virtio", "virtio_rng", "virtio_mmio"]
    assert [module.reason for module in plan.load] == [
        "needed by virtio_rng",
        "needed by virtio_rng",
        "to test virtio_rng",
        "to test virtio_mmio",
    ]
    assert plan.load[2].path == "kernel/drivers/char/hw_random/virtio-rng.ko"


def test_a_soft_dependency_takes_the_generic_provider_of_an_alias() -> None:
    assert order(resolve(INDEX, want("erofs"))) == ["crc32c_generic", "libcrc32c", "erofs"]


def test_a_soft_dependency_that_nobody_provides_is_left_out() -> None:
    index = parse_index(DEP, softdep="softdep libcrc32c pre: crc32c post: nothing")
    assert order(resolve(index, want("erofs"))) == ["libcrc32c", "erofs"]


def test_a_post_dependency_follows() -> None:
    index = parse_index(DEP, softdep="softdep 9pnet post: virtio-mmio")
    assert order(resolve(index, want("9pnet"))) == ["9pnet", "virtio_ring", "virtio", "virtio_mmio"]


def test_soft_dependencies_in_a_circle_end() -> None:
    index = parse_index("a.ko:\nb.ko:\n", softdep="softdep a pre: b\nsoftdep b pre: a\n")
    assert order(resolve(index, want("a", "b"))) == ["b", "a"]


def test_builtin_modules_are_not_loaded() -> None:
    plan = resolve(INDEX, want("af_packet", "9pnet"))
    assert order(plan) == ["9pnet"]
    assert plan.builtin == ("af_packet",)


def test_a_missing_required_module_is_named_with_its_reason() -> None:
    with pytest.raises(ClocheError) as caught:
        resolve(INDEX, [*want("9p"), Wanted("nope", "its purpose")], kernel="6.1.0-cloud")
    assert caught.value.message == "kernel 6.1.0-cloud: lacks the modules nope (its purpose)"
    assert "cloud" in caught.value.hint


def test_a_missing_optional_module_is_reported_as_absent() -> None:
    nope = Wanted("nope", "its purpose", required=False)
    plan = resolve(INDEX, [nope, *want("9pnet")])
    assert (order(plan), plan.absent) == (["9pnet"], (nope,))


def test_the_folder_of_a_kernel_is_read(tmp_path: Path) -> None:
    texts = {"dep": DEP, "builtin": BUILTIN, "softdep": SOFTDEP, "alias": ALIAS}
    for name, text in texts.items():
        (tmp_path / f"modules.{name}").write_text(text)
    assert read_index(tmp_path) == INDEX


def test_a_folder_without_modules_dep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClocheError, match=r"modules\.dep: no such file"):
        read_index(tmp_path)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("kernel/drivers/char/hw_random/virtio-rng.ko", "virtio_rng"),
        ("kernel/fs/9p/9p.ko.xz", "9p"),
        ("updates/overlay.ko.zst", "overlay"),
    ],
)
def test_module_names(path: str, name: str) -> None:
    assert module_name(path) == name


def test_compressed_modules_are_uncompressed(tmp_path: Path) -> None:
    code = b"\x7fELF" + bytes(1000)
    (tmp_path / "a.ko").write_bytes(code)
    (tmp_path / "a.ko.xz").write_bytes(lzma.compress(code, check=lzma.CHECK_CRC32))
    (tmp_path / "a.ko.gz").write_bytes(gzip.compress(code))
    for name in ("a.ko", "a.ko.xz", "a.ko.gz"):
        assert read_module(tmp_path / name) == code


def test_a_zstd_module_is_uncompressed(tmp_path: Path) -> None:
    if shutil.which("zstd") is None:
        pytest.skip("zstd is not installed")
    (tmp_path / "a.ko").write_bytes(b"code" * 500)
    subprocess.run(["zstd", "-q", tmp_path / "a.ko"], check=True)
    assert read_module(tmp_path / "a.ko.zst") == b"code" * 500


def test_without_zstd_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # zstd lies in /usr/bin, which the tools' extra folders (sbin) do not hold.
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "a.ko.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    with pytest.raises(ClocheError) as caught:
        read_module(tmp_path / "a.ko.zst")
    assert str(caught.value) == (
        "zstd: not installed, but needed to decompress a.ko.zst (try: apt-get install zstd)"
    )


def test_a_broken_module_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.ko.xz").write_bytes(b"\xfd7zXZ\x00 broken")
    with pytest.raises(ClocheError, match=r"a\.ko\.xz: does not decompress"):
        read_module(tmp_path / "a.ko.xz")


def test_a_change_of_the_wanted_modules_raises_the_recipe() -> None:
    """Guests built by an older cloche must not stay in use: raise RECIPE, then this line."""
    assert (RECIPE, [want.name for want in WANTED]) == (
        3,
        [
            *("virtio_mmio", "virtio_pci", "virtio_console", "virtio_net", "virtio_blk"),
            *("9pnet_virtio", "9p", "fuse", "overlay", "erofs", "af_packet"),
            *("ext4", "virtio_rng", "ipv6", "ip_tables", "ip6_tables"),
        ],
    )
