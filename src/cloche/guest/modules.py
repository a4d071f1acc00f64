"""Which kernel modules the guest loads, and in which order.

The order comes from depmod's files, never from a list kept by hand: it changes between kernels
(`virtio_ring` before `virtio`; `crc32c_generic` before `libcrc32c`, which is only a soft
dependency).
"""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cloche.base.errors import ClocheError
from cloche.guest.tools import run_tool


class Wanted(NamedTuple):
    """A module that the VM needs (or can do without), and what for."""

    name: str
    reason: str
    required: bool = True


# Not here: tun, veth, nf_tables and the like. They are loaded once something asks for them
# (cloche.guest.module_store).
WANTED = (
    Wanted("virtio_mmio", "devices of machine type microvm"),
    Wanted("virtio_pci", "devices of machine type q35"),
    Wanted("virtio_console", "the agent's channel to the host"),
    Wanted("virtio_net", "network interfaces"),
    Wanted("virtio_blk", "block-backed roots"),
    Wanted("9pnet_virtio", "transport of the shared folders"),
    Wanted("9p", "shared folders"),
    Wanted("fuse", "shared folders that cloche-files serves"),
    Wanted("overlay", "writable layer over a read-only root"),
    Wanted("erofs", "read-only image of a root"),
    Wanted("af_packet", "DHCP clients and packet captures in containers"),
    Wanted("ext4", "writable block-backed roots", required=False),
    Wanted("virtio_rng", "entropy from the host", required=False),
    Wanted("ipv6", "IPv6 in containers", required=False),
    # The kernel itself never asks for these two. iptables-legacy does, by a modprobe of the
    # container's that finds nothing; the tables and matches are loaded when they are used.
    Wanted("ip_tables", "iptables-legacy in containers", required=False),
    Wanted("ip6_tables", "ip6tables-legacy in containers", required=False),
)


class Module(NamedTuple):
    """A module file to load: its path below the modules folder, and for whose sake."""

    name: str
    path: str
    reason: str


class ModulePlan(NamedTuple):
    """What to load, in order; what the kernel has built in; which optional ones it lacks."""

    load: tuple[Module, ...]
    builtin: tuple[str, ...]
    absent: tuple[Wanted, ...]


class ModuleIndex(NamedTuple):
    """depmod's files, parsed. Names have underscores, paths are as depmod wrote them."""

    paths: Mapping[str, str]
    needs: Mapping[str, Sequence[str]]
    soft_pre: Mapping[str, Sequence[str]]
    soft_post: Mapping[str, Sequence[str]]
    aliases: Mapping[str, Sequence[str]]
    builtin: frozenset[str]


def module_name(path: str) -> str:
    """`kernel/drivers/char/hw_random/virtio-rng.ko.xz` is module `virtio_rng`."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def parse_index(dep: str, builtin: str = "", softdep: str = "", alias: str = "") -> ModuleIndex:
    """Parse the text of modules.dep, modules.builtin, modules.softdep and modules.alias."""
    paths: dict[str, str] = {}
    needs: dict[str, list[str]] = {}
    for line in filter(None, dep.splitlines()):
        path, _, rest = line.partition(":")
        paths[module_name(path)] = path
        # depmod writes the innermost dependency last, insmod wants it first.
        needs[module_name(path)] = [module_name(item) for item in reversed(rest.split())]
    pre, post = _parse_softdep(softdep)
    aliases: dict[str, list[str]] = {}
    for words in (line.split() for line in alias.splitlines()):
        if len(words) == 3 and words[0] == "alias":
            aliases.setdefault(words[1], []).append(words[2].replace("-", "_"))
    names = frozenset(module_name(line) for line in builtin.split())
    return ModuleIndex(paths, needs, pre, post, aliases, names)


def _parse_softdep(text: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """`softdep ext4 pre: crypto-crc32c post: other` (modprobe.d(5))."""
    pre: dict[str, list[str]] = {}
    post: dict[str, list[str]] = {}
    for words in (line.split() for line in text.splitlines()):
        if len(words) < 3 or words[0] != "softdep":
            continue
        into: dict[str, list[str]] | None = None
        for word in words[2:]:
            if word in ("pre:", "post:"):
                into = pre if word == "pre:" else post
            elif into is not None:
                into.setdefault(words[1].replace("-", "_"), []).append(word)
    return pre, post


def read_index(tree: Path) -> ModuleIndex:
    """Parse depmod's files in *tree*; ClocheError when there is no modules.dep.

    A kernel with everything built in has an empty modules.dep and a modules.builtin.
    """

    def text(name: str) -> str:
        try:
            return (tree / name).read_text()
        except FileNotFoundError:
            return ""

    if not (tree / "modules.dep").exists():
        raise ClocheError(
            f"{tree}/modules.dep: no such file", hint="depmod makes it; is the kernel unpacked?"
        )
    return parse_index(
        text("modules.dep"), text("modules.builtin"), text("modules.softdep"), text("modules.alias")
    )


def resolve(index: ModuleIndex, wanted: Iterable[Wanted] = WANTED, kernel: str = "") -> ModulePlan:
    """Put the *wanted* modules and everything they need into load order.

    Raises ClocheError that names every required module which *kernel* neither has nor has
    built in.
    """
    order: dict[str, Module] = {}
    builtin: list[str] = []
    absent: list[Wanted] = []
    for want in wanted:
        if want.name in index.paths:
            _visit(index, want.name, want.reason, order, set())
        elif want.name in index.builtin:
            builtin.append(want.name)
        else:
            absent.append(want)
    if missing := [want for want in absent if want.required]:
        names = ", ".join(f"{want.name} ({want.reason})" for want in missing)
        hint = "Debian's cloud flavour lacks some; use the plain linux-image package"
        raise ClocheError(f"kernel {kernel}: lacks the modules {names}", hint=hint)
    return ModulePlan(tuple(order.values()), tuple(builtin), tuple(absent))


def _visit(
    index: ModuleIndex, name: str, reason: str, order: dict[str, Module], above: set[str]
) -> None:
    """Append *name* after everything that has to be loaded before it."""
    # A soft dependency may point back at a module that is being visited.
    if name in order or name in above or name not in index.paths:
        return
    inner = above | {name}
    for soft in index.soft_pre.get(name, ()):
        for provider in _providers(index, soft):
            _visit(index, provider, f"soft dependency of {name}", order, inner)
    for need in index.needs.get(name, ()):
        _visit(index, need, f"needed by {name}", order, inner)
    order[name] = Module(name, index.paths[name], reason)
    for soft in index.soft_post.get(name, ()):
        for provider in _providers(index, soft):
            _visit(index, provider, f"soft dependency of {name}", order, inner)


def _providers(index: ModuleIndex, soft: str) -> Sequence[str]:
    """The module that a soft dependency means: by name, else by alias.

    Of several providers (`crc32c`: generic, intel) the generic one is taken: it loads on every
    CPU, while the others fail with ENODEV on a CPU model without their instructions.
    """
    name = soft.replace("-", "_")
    if name in index.paths:
        return [name]
    found = index.aliases.get(soft, ())
    return [item for item in found if item.endswith("_generic")][:1] or found[:1]


def read_module(path: Path) -> bytes:
    """The uncompressed contents of a module file (.ko, .ko.xz, .ko.zst, .ko.gz)."""
    data = path.read_bytes()
    try:
        if path.suffix == ".xz":
            return lzma.decompress(data)
        if path.suffix == ".gz":
            return gzip.decompress(data)
    except (lzma.LZMAError, OSError, EOFError) as error:
        raise ClocheError(f"{path}: does not decompress: {error}") from error
    if path.suffix == ".zst":
        return run_tool(["zstd", "-dcq"], f"to decompress {path.name}", data=data)
    return data
