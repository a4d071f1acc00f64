"""Making templates, on taps where their cards are to have some."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloche.host.own_taps import own_taps
from cloche.vmm import template_maker
from cloche.vmm.argv import NIC_SLOTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche.model.config import Settings
    from cloche.vmm.shape import Shape
    from cloche.vmm.template import Template
    from cloche.vmm.trial import Boot
    from cloche.vmm.variant import Variants


def make_template(
    settings: Settings,
    variants: Variants,
    shape: Shape,
    boot: Boot,
    report: Callable[[str], None] = lambda text: None,
) -> Template:
    """As vmm's, which it hands the taps that *shape* asks for. They lead nowhere."""
    with own_taps(NIC_SLOTS if shape.taps else 0) as taps:
        return template_maker.make_template(
            settings.templates, shape, variants, boot, report, taps=taps
        )
