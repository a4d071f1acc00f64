"""Addresses of programs in the guest: random, unless QEMU makes each exec pay for that."""

from __future__ import annotations

from .bundles import Bundle
from .runtime import Runtime

SWITCH = "/proc/sys/kernel/randomize_va_space"


def test_the_setting_reaches_the_guest(cloche: Runtime, bundle: Bundle) -> None:
    for setting, shown in (("on", "2"), ("off", "0")):
        env = {"CLOCHE_RANDOMIZE": setting, "CLOCHE_TEMPLATE": "off"}
        name = cloche.new_id()
        result = cloche("run", "--bundle", bundle.args("cat", SWITCH).save(), name, env=env)
        assert result.output == shown


def test_a_setting_that_is_none_is_refused(cloche: Runtime, bundle: Bundle) -> None:
    env = {"CLOCHE_RANDOMIZE": "perhaps"}
    name = cloche.new_id()
    line = cloche.fails("run", "--bundle", bundle.args("true").save(), name, env=env)
    assert "randomize" in line.lower()
    assert "auto" in line
