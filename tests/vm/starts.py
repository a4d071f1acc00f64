"""Marks of tests that are run on VMs which came up in more than one way."""

from __future__ import annotations

import pytest

# What can differ between a frozen QEMU, a clone of a template and a VM that booted.
each_start = pytest.mark.parametrize("cloche", ["thawed", "restored", "cold"], indirect=True)
# The other machine type has PCI in place of virtio-mmio: other drivers, other device order.
each_machine = pytest.mark.parametrize(
    "cloche",
    ["thawed", "restored", "cold", "q35", "q35-restored", "q35-cold"],
    indirect=True,
)
