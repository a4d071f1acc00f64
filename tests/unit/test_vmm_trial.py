"""How long a boot that does not get anywhere is waited for, and what is tried after it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic

import pytest

from cloche.base.cputime import OwnTime
from cloche.base.errors import BootError, ClocheError
from cloche.vmm.shape import Shape
from cloche.vmm.trial import try_in_order
from cloche.vmm.variant import Variants

BUSY = ["sh", "-c", "while :; do :; done"]


@pytest.fixture
def start() -> Iterator[Callable[..., int]]:
    """Starts processes on one processor, and ends them."""
    with ExitStack() as stack:

        def start(*argv: str, cpu: int) -> int:
            process = subprocess.Popen(["taskset", "-c", str(cpu), *argv])
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process.pid

        yield start


def passed(pid: int, seconds: float) -> tuple[float, float]:
    """Own time and time of the clock, over *seconds* or more."""
    own, before = OwnTime(pid), monotonic()
    select.select([], [], [], seconds)
    return own.passed(), monotonic() - before


def test_time_in_which_others_had_the_processor_is_not_its_own(
    start: Callable[..., int],
) -> None:
    cpu = min(os.sched_getaffinity(0))
    pids = [start(*BUSY, cpu=cpu) for _ in range(4)]
    own, clock = passed(pids[0], 1.0)
    assert own < 0.6 * clock


def test_time_in_which_it_wants_no_processor_is_its_own(start: Callable[..., int]) -> None:
    cpu = min(os.sched_getaffinity(0))
    pid = start("sleep", "100", cpu=cpu)
    for _ in range(2):
        own, clock = passed(pid, 0.3)
        assert 0.8 * clock < own
        os.kill(pid, signal.SIGSTOP)  # nor does one that is stopped


def test_a_process_that_has_ended_has_all_the_time() -> None:
    own = OwnTime(2**22)
    assert own.passed() >= 0


@pytest.fixture
def variants(tmp_path: Path) -> Variants:
    """Those of a QEMU that has not been tried."""
    return Variants(str(tmp_path), "/bin/sh", "tcg", "auto")


@pytest.fixture
def shape(variants: Variants) -> Shape:
    """A shape of its first variant."""
    fields = {"accel": "tcg", "cpus": 1, "memory": 256, "guest_key": "key"}
    return Shape(qemu="/bin/sh", variant=variants.best, **fields)  # type: ignore[arg-type]


def blamed(text: str) -> BootError:
    """What a VM says that came to no milestone."""
    error = BootError(f"VM: booting the guest kernel: {text}")
    error.blames_machine = True
    return error


class Boots:
    """Boots of *shape*, with the errors of each; what they were booted on."""

    def __init__(self, shape: Shape, *errors: ClocheError | None) -> None:
        self.shape = shape
        self.errors = list(errors)
        self.seen: list[str] = []
        self.silences: list[float] = []

    def __call__(self, silence: float) -> None:
        self.silences.append(silence)
        self.seen.append(str(self.shape.variant))
        error = self.errors.pop(0)
        if error is not None:
            raise error


def test_the_first_that_works_is_kept(shape: Shape, variants: Variants) -> None:
    order = [str(each) for each in variants.in_order()]
    said: list[str] = []
    boots = Boots(shape, blamed("silent"), blamed("exit status 1"), None)
    try_in_order(shape, variants, boots, said.append)
    assert boots.seen == order[:3]
    assert str(shape.variant) == order[2] == str(variants.best)
    assert variants.is_known
    assert [order[0] in variants.refused[0], "exit status 1" in variants.refused[1]] == [True] * 2
    assert "attempt 1 of at most 4" in said[0]
    assert "starts no kernel, given up after 0.0 s" in said[1]
    assert "attempt 3 of at most 4" in said[4]


def test_what_is_known_to_work_is_tried_twice(shape: Shape, variants: Variants) -> None:
    works, other = variants.in_order()[0], variants.in_order()[1]
    variants.keep(works, [])
    boots = Boots(shape, blamed("once"), None)
    try_in_order(shape, variants, boots, lambda _: None)
    assert boots.seen == [str(works)] * 2
    boots = Boots(shape, blamed("again"), blamed("and again"), None)
    try_in_order(shape, variants, boots, lambda _: None)
    assert boots.seen == [str(works), str(works), str(other)]
    assert variants.best is other


def test_none_that_works_is_an_error_that_tells_of_all(shape: Shape, variants: Variants) -> None:
    order = [str(each) for each in variants.in_order()]
    boots = Boots(shape, *(blamed(f"cause {number}") for number in range(4)))
    with pytest.raises(BootError) as caught:
        try_in_order(shape, variants, boots, lambda _: None)
    assert "/bin/sh starts the guest's kernel on no machine. " in caught.value.message
    for number, variant in enumerate(order):
        assert f"{variant} starts no kernel, given up after 0.0 s: " in caught.value.message
        assert f"cause {number}" in caught.value.message
    assert not variants.is_known


def silence() -> BootError:
    """What a VM is given up with that said nothing."""
    error = blamed("no sign of life")
    error.was_silent = True
    return error


def test_on_a_slow_machine_the_first_gets_more_time_in_the_end(
    shape: Shape, variants: Variants
) -> None:
    boots = Boots(shape, *(silence() for _ in range(4)), None)
    try_in_order(shape, variants, boots, lambda _: None)
    assert boots.seen[4] == boots.seen[0] == str(variants.best)
    assert boots.silences == [8, 8, 8, 8, 60]
    boots = Boots(shape, *(silence() for _ in range(6)))
    with pytest.raises(BootError, match="on no machine"):
        try_in_order(shape, variants, boots, lambda _: None)
    assert boots.silences == [8, 8, 8, 8, 8, 60]


@pytest.mark.parametrize("error", [BootError("panic after a milestone"), ClocheError("no space")])
def test_what_is_not_the_machines_fault_is_raised_as_it_is(
    shape: Shape, variants: Variants, error: ClocheError
) -> None:
    boots = Boots(shape, error)
    with pytest.raises(ClocheError) as caught:
        try_in_order(shape, variants, boots, lambda _: None)
    assert caught.value is error
    assert not variants.is_known
