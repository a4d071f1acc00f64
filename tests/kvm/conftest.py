"""The tests in `inside` run in the outer VM; this loads the half of the relay that is needed."""

from __future__ import annotations

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """In the outer VM report to its port; on the machine take the reports from there."""
    if os.environ.get("CLOCHE_OUTER_VM"):
        from .outer.reporter import Reporter

        config.pluginmanager.register(Reporter(config), "cloche-reporter")
    else:
        from .outer.relay import Relay

        config.pluginmanager.register(Relay(config), "cloche-relay")
