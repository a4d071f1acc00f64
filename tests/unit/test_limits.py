"""Resource limits: which are raised, what is too little, and how that is put."""

from __future__ import annotations

import pytest

from cloche.base import limits, syscalls
from cloche.base.errors import LimitError
from cloche.base.limits import INFINITY

NEEDS = {**limits.start_needs(2048), **limits.MAKE}
FREE = [(INFINITY, INFINITY)] * 16


def low(resource: int, value: int) -> list[tuple[int, int]]:
    """Without limits but for one."""
    return [(value, value) if number == resource else FREE[0] for number in range(16)]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[int, int]]:
    """What is set, by resource, with CAP_SYS_RESOURCE: few machines of ours have it."""
    made: dict[int, tuple[int, int]] = {}

    def permitted(resource: int, soft: int, hard: int) -> None:
        made[resource] = (soft, hard)

    monkeypatch.setattr(syscalls, "set_limit", permitted)
    return made


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """What is set without it."""
    made: list[tuple[int, int, int]] = []

    def set_limit(resource: int, soft: int, hard: int) -> None:
        if hard in (INFINITY, limits.MOST_FILES):
            raise PermissionError(1, "not permitted")
        made.append((resource, soft, hard))

    monkeypatch.setattr(syscalls, "set_limit", set_limit)
    return made


def test_they_are_as_the_kernel_has_them() -> None:
    found = limits.own_limits()
    assert found == [syscalls.get_limit(number) for number in range(16)]


def test_with_the_privilege_all_that_bounds_a_vm_is_raised(
    made: dict[int, tuple[int, int]],
) -> None:
    lifted = limits.require([(7, 7)] * 16, {**limits.start_needs(2048), limits.CPU: 600})
    assert made[limits.NOFILE] == (limits.MOST_FILES, limits.MOST_FILES)
    del made[limits.NOFILE]
    assert set(made.values()) == {(INFINITY, INFINITY)}
    assert {limits.AS, limits.DATA, limits.FSIZE, limits.CPU, limits.NPROC} < {*made}
    # Nothing that would write a guest's memory to a disk, or permits a priority.
    assert {4, 13, 14, 15}.isdisjoint(made)
    assert lifted[limits.AS] == (INFINITY, INFINITY)
    assert lifted[4] == (7, 7)


def test_without_it_up_to_the_hard_limit(refused: list[tuple[int, int, int]]) -> None:
    lifted = limits.lift([(3, 7)] * 16)
    assert (limits.AS, 7, 7) in refused
    assert lifted[limits.AS] == (7, 7)


@pytest.mark.usefixtures("refused")
@pytest.mark.parametrize(
    ("resource", "value", "said"),
    [
        (limits.NOFILE, 999, "RLIMIT_NOFILE allows 999 open files, 1024 are needed"),
        (limits.AS, 5 << 20, "RLIMIT_AS allows 5 MiB, 3072 MiB are needed"),
        (limits.DATA, 5 << 20, "RLIMIT_DATA allows 5 MiB, 2560 MiB are needed"),
        (limits.FSIZE, 10, "RLIMIT_FSIZE allows 10 bytes, 1048576 MiB are needed"),
        (limits.STACK, 1 << 20, "RLIMIT_STACK allows 1 MiB, 8 MiB are needed"),
        (limits.CPU, 9, "RLIMIT_CPU allows 9 s, 600 are needed"),
    ],
)
def test_what_is_too_little(resource: int, value: int, said: str) -> None:
    with pytest.raises(LimitError) as raised:
        limits.require(low(resource, value), NEEDS)
    assert raised.value.message == said
    name = said.split("_")[1].split()[0]
    assert f"Limit{name}= of a systemd service" in raised.value.hint
    assert "`ulimit -H" in raised.value.hint


def test_with_enough_nothing_is_set(refused: list[tuple[int, int, int]]) -> None:
    assert limits.require(FREE, NEEDS) is FREE
    assert limits.lift(FREE) == FREE
    assert refused == []


@pytest.mark.parametrize("number", [1, 2, 13])
def test_other_failures_are_not_put_down_to_limits(number: int) -> None:
    assert limits.explained(OSError(number, "something else")) is None


def test_too_many_open_files_are() -> None:
    told = limits.explained(OSError(24, "too many open files"))
    assert told is not None
    assert "RLIMIT_NOFILE is too low" in told.message


def test_without_memory_to_look_for_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(12, "cannot allocate memory")

    monkeypatch.setattr(limits, "open", fails, raising=False)
    told = limits.explained(MemoryError())
    assert told is not None
    assert str(told).startswith("out of memory (raise the hard limit")
