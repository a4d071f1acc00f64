"""Marks of tests that are run on VMs which came up in more than one way."""

from __future__ import annotations

import pytest

# What can differ between a VM that booted and a clone of a template.
each_start = pytest.mark.parametrize("cloche", ["restored", "cold"], indirect=True)
# The other machine type has PCI in place of virtio-mmio: other drivers, other device order.
each_machine = pytest.mark.parametrize(
    "cloche", ["restored", "cold", "q35", "q35-cold"], indirect=True
)
