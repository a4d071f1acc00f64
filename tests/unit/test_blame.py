"""The field of config.json that an error of the guest is about."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.base.typed import replace
from cloche.heart.blame import explained, explained_exec
from cloche.model.oci import Config, Mount, load_config
from cloche.wire.answers import AgentFailure
from cloche.wire.messages import AgentError

from .oci_data import full, write


def failure(step: str, thing: str, errno: int = 22) -> AgentError:
    """What the agent says when *step* fails on *thing*."""
    return AgentError(AgentFailure(step=step, object=thing, errno=errno, message="it says"))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    raw = copy.deepcopy(full())
    raw["linux"] |= {"maskedPaths": ["/a", "/b"], "readonlyPaths": ["/c"]}
    return load_config(write(tmp_path_factory.mktemp("bundle"), raw))


@pytest.mark.parametrize(
    ("step", "thing", "errno", "field"),
    [
        ("mount", "mounts[0]", 19, "$.mounts[0].type"),
        ("mount", "mounts[1]", 22, "$.mounts[1].options"),
        ("mount", "mounts[1]", 13, "$.mounts[1]"),
        ("mount target", "mounts[2]", 20, "$.mounts[2].destination"),
        ("sysctl", "net/core/somaxconn", 22, '$.linux.sysctl["net.core.somaxconn"]'),
        ("mask", "/b", 13, "$.linux.maskedPaths[1]"),
        ("make read-only", "/c", 13, "$.linux.readonlyPaths[0]"),
        ("mknod", "/dev/hwrng", 1, "$.linux.devices[0]"),
        ("mkdir", "/", 20, "$.process.cwd"),
        ("chdir", "/", 20, "$.process.cwd"),
        ("rlimit", "7", 1, "$.process.rlimits[0]"),
        ("user", "1:2", 22, "$.process.user"),
        ("capabilities", "capset", 1, "$.process.capabilities"),
        ("set", "scheduler", 22, "$.process.scheduler"),
        ("set", "I/O priority", 22, "$.process.ioPriority"),
        ("set", "CPU affinity", 22, "$.process.execCPUAffinity"),
        ("set", "memory policy", 22, "$.linux.memoryPolicy"),
        ("set", "personality", 22, "$.linux.personality"),
        ("sethostname", "x", 1, "$.hostname"),
        ("setdomainname", "x", 1, "$.domainname"),
        ("seccomp", "filter", 22, "$.linux.seccomp"),
        ("cgroup", "memory.max", 22, "$.linux.resources.memory.limit"),
        ("cgroup", "memory.high", 22, "$.linux.resources.unified"),
    ],
)
def test_the_field_comes_first(
    config: Config, step: str, thing: str, errno: int, field: str
) -> None:
    assert explained(failure(step, thing, errno), config).message == f"{field}: it says"


@pytest.mark.parametrize(
    ("step", "thing"),
    [("pivot_root", "/"), ("exec", "sh"), ("mount", "mounts[99]"), ("mount", "mounts[²]")],
)
def test_what_is_no_fields_fault_stays_as_it_is(config: Config, step: str, thing: str) -> None:
    error = failure(step, thing)
    assert explained(error, config) is error


STEPS = st.sampled_from(["mount", "mount target", "set", "sysctl", "rlimit", "cgroup", "mkdir"])


@given(step=STEPS | st.text(), thing=st.text() | st.builds("mounts[{}]".format, st.text()))
def test_whatever_a_guest_says_is_told(config: Config, step: str, thing: str) -> None:
    assert explained(failure(step, thing), config).message.endswith("it says")
    assert explained_exec(failure(step, thing), config.process).message.endswith("it says")


def test_an_execs_fields_are_its_own(config: Config) -> None:
    error = explained_exec(failure("set", "scheduler"), config.process)
    assert error.message == "$.scheduler: it says"


def test_a_folder_for_devices_is_theirs(tmp_path: Path) -> None:
    raw = copy.deepcopy(full())
    raw["linux"]["devices"] = [{"path": "/opt/x/node", "type": "p"}]
    config = load_config(write(tmp_path, raw))
    error = explained(failure("mkdir", "/opt/x", 20), config)
    assert error.message == "$.linux.devices[0]: it says"


def test_a_mount_that_is_part_of_another_one_has_no_place_in_the_plan(config: Config) -> None:
    """The guest counts the mounts that it was given; the config has one more before that."""
    mounts = (
        Mount("/sys/fs/cgroup", "cgroup", "cgroup"),
        Mount("/sys/fs/cgroup/systemd", "bind", "/sys/fs/cgroup/systemd", ("bind",)),
        Mount("/data", "nothing", "nothing"),
    )
    told = explained(failure("mount", "mounts[1]", 19), replace(config, mounts=mounts))
    assert told.message.startswith("$.mounts[2].type: ")
