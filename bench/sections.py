"""The sections of docs/benchmarks.md: each command that writes there leaves the others' alone."""

from __future__ import annotations

import re

PROGRAMS = "## Programs"
"""The heading of what `make bench-programs` writes."""
KVM = "## Programs under KVM"
"""The heading of what `make bench-kvm` writes."""
_NEXT = "## Machine and versions"


def section_of(text: str, heading: str) -> str:
    """The section *heading* of *text* with that line, up to the next of its level; "" if none."""
    found = re.search(rf"^{re.escape(heading)}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return found[0] if found else ""


def with_section(text: str, section: str) -> str:
    """*text* with *section* in place of its own of the same heading, or before the machine's."""
    if not section:
        return text
    section = f"{section.rstrip()}\n\n"
    heading = section.partition("\n")[0]
    old = section_of(text, heading)
    if old:
        return text.replace(old, section)
    at = text.find(f"\n{_NEXT}\n") + 1
    return text[:at] + section + text[at:] if at else f"{text.rstrip()}\n\n{section.rstrip()}\n"
