"""The modules that a guest may ask for while it runs: kept with its kernel, found by name.

The tree that `cloche setup` keeps has those modules that something else than hardware asks for,
and depmod's files cut down to them. The supervisor looks names up here for its guest, which is not
trusted: a name only selects among what the host has.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from cloche.guest.modules import Module, ModuleIndex, Wanted, module_name, read_index, resolve

# Raised when other modules are to be kept: `cloche setup` then unpacks the kernel once more.
STORE = 1

# What is asked for by name: file systems, network protocols and devices, netfilter, ciphers, block
# devices made of files or of others. Not the drivers of hardware that a VM does not have; what
# these need is added.
_KEPT = (
    "arch",
    "block",
    "crypto",
    "drivers/block",
    "drivers/md",
    "drivers/net/bonding",
    "drivers/net/can",
    "drivers/net/ipvlan",
    "drivers/net/netdevsim",
    "drivers/net/ppp",
    "drivers/net/slip",
    "drivers/net/team",
    "drivers/net/vxlan",
    "drivers/net/wireguard",
    "drivers/vhost",
    "fs",
    "lib",
    "mm",
    "net",
)
# Files of drivers/net itself: tun, veth, dummy, vxlan, macvlan. Its folders are hardware.
_KEPT_FILES = ("drivers/net",)
_NOT_KEPT = (
    "arch/x86/events",
    "drivers/block/mtip32xx",
    "drivers/block/xen-blkback",
    "drivers/net/can/spi",
    "drivers/net/can/usb",
    "fs/ocfs2",
    "net/bluetooth",
    "net/ieee802154",
    "net/mac80211",
    "net/mac802154",
    "net/nfc",
    "net/wireless",
)
_NOT_KEPT_NAMES = {"thunderbolt_net", "xen_netback", "xen_netfront"}


def stored(index: ModuleIndex) -> set[str]:
    """The names of the modules to keep, with all that they need."""
    kept: set[str] = set()
    waiting = [name for name, path in index.paths.items() if _is_kept(name, path)]
    while waiting:
        name = waiting.pop()
        if name not in kept and name in index.paths:
            kept.add(name)
            waiting += index.needs.get(name, ())
    return kept


def _is_kept(name: str, path: str) -> bool:
    folder, _, rest = path.partition("/")
    if folder != "kernel":  # a module that the host's administrator has built (updates, extra)
        return False
    if name in _NOT_KEPT_NAMES or name.startswith("test_") or _below(rest, _NOT_KEPT):
        return False
    return _below(rest, _KEPT) or os.path.dirname(rest) in _KEPT_FILES


def _below(path: str, folders: Iterable[str]) -> bool:
    return any(path.startswith(f"{folder}/") for folder in folders)


def cut_down(name: str, text: str, kept: Collection[str]) -> str:
    """depmod's file *name* without the lines about modules that are not *kept*.

    Names of devices on a bus (`pci:…`) are left out: nothing in a guest looks for their drivers.
    """

    def is_needed(line: str) -> bool:
        words = line.split()
        if name == "modules.dep":
            return module_name(line.partition(":")[0]) in kept
        if name == "modules.alias":
            return len(words) == 3 and ":" not in words[1] and words[2].replace("-", "_") in kept
        return True

    return "".join(line for line in text.splitlines(keepends=True) if is_needed(line))


class ModuleStore:
    """The modules of one kernel, by the names that the kernel itself asks for.

    Raises ClocheError where there are none (a kernel that an older cloche has unpacked).
    """

    def __init__(self, tree: Path) -> None:
        self._tree = tree
        self._index = read_index(tree)
        self._aliases: dict[str, list[str]] = {}
        self._patterns: dict[str, list[str]] = {}
        for alias, names in self._index.aliases.items():
            is_pattern = any(character in alias for character in "*?[")
            into = self._patterns if is_pattern else self._aliases
            into.setdefault(alias.replace("-", "_"), []).extend(names)

    def find(self, name: str, loaded: Collection[str]) -> list[tuple[Module, Path]] | None:
        """The modules to load for what is asked for as *name*, in order, with their files.

        Without those that are *loaded*. None where there is nothing of that name; a name that is
        built into the kernel needs no module.
        """
        plain = name.replace("-", "_")
        names = [plain] if plain in self._index.paths else self._called(plain)
        if not names:
            return [] if plain in self._index.builtin else None
        plan = resolve(self._index, [Wanted(each, f"asked for as {name}") for each in names])
        missing = [module for module in plan.load if module.name not in loaded]
        return [(module, self._tree / module.path) for module in missing]

    def _called(self, name: str) -> list[str]:
        """The modules that have *name* as an alias (modules.alias of depmod(8))."""
        found = list(self._aliases.get(name, ()))
        for pattern, names in self._patterns.items():
            if fnmatchcase(name, pattern):
                found += names
        return [each for each in dict.fromkeys(found) if each in self._index.paths]


def keeps_modules(origin: Mapping[str, object]) -> bool:
    """Whether a kernel of this origin was unpacked with the modules that are kept now."""
    return origin.get("store") == STORE
