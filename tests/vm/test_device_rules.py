"""Device rules: what a container may open, by its rules and by none, the same as under runc."""

from __future__ import annotations

from typing import Any

import pytest

from .bundles import Bundle
from .runtime import Runtime
from .test_process import same_under_runc

DENY_ALL = {"allow": False, "access": "rwm"}
# kmsg's number is 1:11; mem is 1:1.
PROBE = (
    "umask 0; cd /tmp; mknod kmsg c 1 11; mknod again c 1 3; mknod disk b 7 200;"
    "for each in kmsg again /dev/zero /dev/ptmx; do"
    " (exec 3<$each) 2>/dev/null && echo $each read;"
    " (exec 3>>$each) 2>/dev/null && echo $each write; done; stat -c '%t:%T %n' *"
)


@pytest.mark.parametrize(
    ("rules", "seen"),
    [
        (None, set()),
        ([DENY_ALL], set()),
        ([DENY_ALL, {"allow": True, "type": "c", "major": 1, "access": "r"}], {"kmsg read"}),
        (
            [DENY_ALL, {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "rw"}],
            {"kmsg read", "kmsg write"},
        ),
    ],
    ids=["none", "deny", "read", "write"],
)
def test_rules(
    cloche: Runtime, runc: Runtime, bundle: Bundle, rules: list[Any] | None, seen: set[str]
) -> None:
    bundle.linux["resources"] = {} if rules is None else {"devices": rules}
    bundle.capabilities("CAP_MKNOD", "CAP_SYS_ADMIN", "CAP_SYSLOG")
    bundle.mount("/tmp", "tmpfs")
    result = same_under_runc(cloche, runc, bundle.sh(PROBE))
    assert {line for line in result.lines if line.startswith("kmsg ")} == seen
    assert "again write" in result.lines


@pytest.mark.parametrize("but", [[], [{"allow": False, "type": "c", "major": 1, "minor": 1}]])
def test_everything_allowed(cloche: Runtime, bundle: Bundle, but: list[Any]) -> None:
    bundle.linux["resources"] = {"devices": [{"allow": True, "access": "rwm"}, *but]}
    bundle.capabilities("CAP_MKNOD", "CAP_SYS_ADMIN", "CAP_SYSLOG")
    bundle.mount("/tmp", "tmpfs")
    assert {"kmsg read", "kmsg write"} <= {*cloche.run(bundle.sh(PROBE)).lines}


def test_rules_hold_for_an_exec_and_in_a_container_that_is_no_spare(
    cloche: Runtime, bundle: Bundle
) -> None:
    spaces = bundle.linux["namespaces"]
    bundle.linux["namespaces"] = [each for each in spaces if each["type"] != "ipc"]
    bundle.capabilities("CAP_MKNOD", "CAP_SYS_ADMIN", "CAP_SYSLOG")
    bundle.mount("/tmp", "tmpfs")
    container = cloche.start(bundle)
    lines = container.sh(PROBE).lines
    assert "kmsg read" not in lines
    assert "/dev/zero read" in lines
