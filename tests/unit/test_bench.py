"""The benchmark's arithmetic: statistics, interleaving, memory parsing, targets, report."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

# The benchmark is no part of the installed package: it is found in the checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench import report, targets
from bench.cases import Phases
from bench.memory import (
    GOFER,
    PAYLOAD,
    QEMU,
    SANDBOX,
    SUPERVISOR,
    TOGETHER,
    Crowd,
    Idle,
    role_of,
)
from bench.processes import (
    Process,
    Usage,
    all_processes,
    memory_of,
    parse_rollup,
    present_pages,
    processes_below,
)
from bench.results import RUN, Results
from bench.rounds import Limits, Series, interleave
from bench.runtimes import CLOCHE, RUNC, RUNSC
from bench.stats import (
    Summary,
    number,
    pairwise_ratios,
    spread,
    steps_between,
    summarize,
)
from bench.timing import BenchError, Sample, cpu_ns, timed

durations = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=30)


def test_summary_of_an_even_count_takes_the_middle_of_both() -> None:
    assert summarize([4.0, 1.0, 3.0, 10.0]) == Summary(3.5, 1.0, 10.0, 4)


def test_nothing_has_no_summary() -> None:
    with pytest.raises(ValueError, match="no values"):
        summarize([])


@given(durations)
def test_the_median_lies_between_the_extremes(values: list[float]) -> None:
    found = summarize(values)
    assert found.low <= found.median <= found.high
    assert found.count == len(values)


def test_ratios_are_taken_within_a_round() -> None:
    # The machine was ten times slower in the second round: the ratio does not notice.
    assert pairwise_ratios([6.0, 60.0], [2.0, 20.0]) == [3.0, 3.0]


@pytest.mark.parametrize(("ours", "theirs"), [([1.0], [1.0, 2.0]), ([1.0], [0.0])])
def test_series_that_do_not_pair_have_no_ratio(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match=r"rounds|zero"):
        pairwise_ratios(ours, theirs)


@given(durations)
def test_steps_add_up_to_the_last_mark(values: list[float]) -> None:
    marks = [(f"phase {index}", at) for index, at in enumerate(sorted(values))]
    assert sum(took for _, took in steps_between(marks)) == pytest.approx(marks[-1][1])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (3.469, "3.47"),
        (9.996, "10.0"),
        (34.71, "34.7"),
        (99.96, "100"),
        (347.2, "347"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_a_single_value_has_no_range() -> None:
    assert spread(summarize([5.0])) == "5.00"
    assert spread(summarize([5.0, 7.0])) == "6.00 (5.00–7.00)"


def _recorder(calls: list[str], name: str, fail_at: int = 0) -> Callable[[], Sample]:
    def measure() -> Sample:
        calls.append(name)
        if calls.count(name) == fail_at:
            raise BenchError(f"{name} broke")
        return Sample(float(len(calls)), None)

    return measure


def test_contenders_take_turns_and_the_first_round_is_not_counted() -> None:
    calls: list[str] = []
    rounds: list[tuple[int, int]] = []
    series = Series("case")
    contenders = {name: _recorder(calls, name) for name in "abc"}
    interleave(series, contenders, Limits(2, 60.0), lambda *done: rounds.append(done))
    assert calls == list("abcabcabc")
    assert rounds == [(1, 2), (2, 2)]
    assert series.wall("a") == [4.0, 7.0]
    assert series.wall("c") == [6.0, 9.0]
    assert series.cpu("a") == []


def test_a_contender_that_fails_is_left_out_with_its_reason() -> None:
    calls: list[str] = []
    series = Series("case")
    contenders = {"a": _recorder(calls, "a", fail_at=3), "b": _recorder(calls, "b")}
    interleave(series, contenders, Limits(3, 60.0), lambda *_: None)
    assert series.left_out == {"a": "a broke"}
    assert series.wall("a") == []
    assert len(series.wall("b")) == 3


def test_a_case_ends_when_its_time_is_over() -> None:
    calls: list[str] = []
    series = Series("case")
    interleave(series, {"a": _recorder(calls, "a")}, Limits(1000, 0.0), lambda *_: None)
    assert len(series.wall("a")) == 1


def test_a_process_is_timed_with_its_cpu() -> None:
    sample = timed([sys.executable, "-c", "sum(range(1000000))"], dict(os.environ))
    assert sample.cpu_ms is not None
    assert sample.cpu_ms > 0
    assert 0 < sample.wall_ms < 30_000


def test_a_process_that_fails_is_told_with_what_it_said() -> None:
    with pytest.raises(BenchError, match=r"sh -c .*: exit status 3: no luck"):
        timed(["sh", "-c", "echo no luck >&2; exit 3"], dict(os.environ))


def test_a_program_that_is_missing_is_told() -> None:
    with pytest.raises(BenchError, match="no-such-program: no such file"):
        timed(["no-such-program"], dict(os.environ))


def test_cpu_time_of_this_process_grows() -> None:
    before = cpu_ns([os.getpid()])
    assert before > 0
    sum(range(100_000))
    assert cpu_ns([os.getpid()]) > before


ROOT = Path("/tmp/bench/c")
PROCESSES = [
    Process(10, 1, "cloche", ("python3", "cloche", "--root", "/tmp/bench/c", "run", "x")),
    Process(11, 10, "qemu-system-x86", ("/usr/bin/qemu-system-x86_64", "-name", "cloche")),
    Process(12, 11, "worker", ()),
    Process(20, 1, "cloche", ("python3", "cloche", "--root", "/tmp/bench/c2", "run", "x")),
    Process(30, 1, "gofer", ("gofer", "--spec=/tmp/bench/c/x/spec")),
]


def test_processes_are_found_by_their_root_folder_and_descent() -> None:
    assert [found.pid for found in processes_below(ROOT, PROCESSES, own=0)] == [10, 11, 12, 30]
    assert [found.pid for found in processes_below(ROOT, PROCESSES, own=30)] == [10, 11, 12]


def test_this_process_is_among_all() -> None:
    own = next(found for found in all_processes() if found.pid == os.getpid())
    assert own.parent == os.getppid()
    assert own.argv[0]


@pytest.mark.parametrize(
    ("runtime", "first", "role"),
    [
        (CLOCHE, "/usr/bin/python3.11", SUPERVISOR),
        (CLOCHE, "/usr/bin/qemu-system-x86_64", QEMU),
        (RUNSC, "runsc-sandbox", SANDBOX),
        (RUNSC, "runsc-gofer", GOFER),
        (RUNSC, "", PAYLOAD),
        (RUNC, "/bin/sleep", PAYLOAD),
    ],
)
def test_roles(runtime: str, first: str, role: str) -> None:
    process = Process(7, 1, "", (first,) if first else ())
    assert role_of(runtime, process, container_pid=7) == role


ROLLUP = """\
55d2-7ffd ---p 00000000 00:00 0                          [rollup]
Rss:               16476 kB
Pss:               10630 kB
Pss_Anon:           6000 kB
Private_Clean:      1000 kB
Private_Dirty:      8000 kB
"""


def test_a_rollup_is_summed_up() -> None:
    assert parse_rollup(ROLLUP) == (10630, 9000)


def test_pages_in_memory_are_counted_by_frame() -> None:
    present, swapped = 1 << 63, 1 << 62
    entries = struct.pack("=4Q", 0, present | 7, swapped | 8, present | 1 << 55 | 9)
    assert present_pages(entries) == [7, 9]


def test_the_memory_of_a_process_that_is_gone_is_none() -> None:
    assert memory_of([1 << 22]) == Usage(0, 0, 0)


def _results() -> Results:
    return Results({"CPU": "a|b"}, load_before=0.0)


def _timed(title: str, **walls: list[float]) -> Series:
    samples = {name: [Sample(wall, wall / 2) for wall in found] for name, found in walls.items()}
    return Series(title, samples)


def _verdict(results: Results, start: str) -> targets.Verdict:
    return next(found for found in targets.verdicts(results) if found.target.startswith(start))


def test_targets_follow_the_numbers() -> None:
    results = _results()
    results.series[RUN] = _timed("run", cloche=[150.0, 130.0, 170.0], runsc=[160.0, 155.0, 165.0])
    assert _verdict(results, "`run` of /bin/true: not above").reached is True
    assert _verdict(results, "`run` of /bin/true, stretch").reached is False
    results.series[RUN] = _timed("run", cloche=[161.0], runsc=[160.0])
    assert _verdict(results, "`run` of /bin/true: not above").reached is False
    results.series["exec"] = _timed("exec", cloche=[60.0, 6.0], runc=[20.0, 2.0])
    assert _verdict(results, "`exec`") == targets.Verdict(
        "`exec` of /bin/true: at most 3 × runc's", "3.00 ×", True
    )


def test_a_target_without_numbers_is_neither_reached_nor_missed() -> None:
    results = _results()
    results.skipped["docker"] = "no dockerd"
    results.series[RUN] = _timed("run", cloche=[100.0])
    results.series[RUN].drop("runsc", "runsc is not installed")
    docker = _verdict(results, "`docker run --rm`")
    assert (docker.word, docker.measured) == ("not measured", "no dockerd")
    run = _verdict(results, "`run` of /bin/true: not above")
    assert (run.reached, run.measured) == (None, "runsc: runsc is not installed")


@pytest.mark.parametrize(("mib", "reached"), [(80, True), (81, False)])
def test_memory_targets_take_the_median(mib: int, reached: bool) -> None:
    results = _results()
    sizes = [mib, 1, 1000]
    results.memory = Idle(
        {
            CLOCHE: [
                {SUPERVISOR: Usage(size * 100, 0, 0), TOGETHER: Usage(size * 1024, 0, 0)}
                for size in sizes
            ]
        }
    )
    assert _verdict(results, "idle container, all").reached is reached


@pytest.mark.parametrize(
    ("running", "left_over", "reached"), [(20, [], True), (19, [], False), (20, ["x"], False)]
)
def test_a_crowd_must_run_and_go(running: int, left_over: list[str], reached: bool) -> None:
    results = _results()
    results.crowd = Crowd(20, running, 1.0, {TOGETHER: Usage(1, 1, 1)}, 1.0, left_over, [])
    assert _verdict(results, "20 containers").reached is reached


def test_the_report_tells_what_is_there_and_what_is_not() -> None:
    results = _results()
    results.series[RUN] = _timed("run /bin/true", cloche=[120.0, 130.0], runc=[20.0, 26.0])
    results.series[RUN].drop(RUNSC, "runsc is not installed: apt-get install runsc")
    results.skipped["docker"] = "no dockerd"
    marks = [
        [("QEMU started", 0.0), ("VM resumed", 30.0)],
        [("QEMU started", 0.0), ("VM resumed", 40.0)],
    ]
    results.phases.append(Phases("cloche", marks, [100.0, 90.0]))
    text = report.to_markdown(results)
    times = "125 (120–130) | – | – | 23.0 (20.0–26.0) | – | 5.50 (5.00–6.00) | – | 2 |"
    assert f"| run /bin/true | {times}" in text
    assert "| VM resumed | 35.0 (30.0–40.0) | 35.0 (30.0–40.0) |" in text
    assert "| before the first and after the last phase |  | 60.0 (50.0–70.0) |" in text
    assert "- run /bin/true: runsc: runsc is not installed: apt-get install runsc" in text
    assert "- docker: no dockerd" in text
    assert "- memory: not asked for" in text
    assert "- run: not asked for" not in text
    assert r"| CPU | a\|b |" in text


def test_every_table_is_rectangular() -> None:
    results = _results()
    results.series[RUN] = _timed("run", cloche=[1.0], runc=[1.0], runsc=[2.0])
    results.memory = Idle({CLOCHE: [{QEMU: Usage(1, 1, 1), TOGETHER: Usage(1, 1, 1)}]})
    results.crowd = Crowd(20, 20, 1.0, {TOGETHER: Usage(1, 1, 1)}, 1.0, [], ["one", "two"])
    text = report.to_markdown(results)
    assert "| did not start: 2; the first | one |" in text
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({row.replace(r"\|", "").count("|") for row in rows}) <= 1, block


def test_raw_numbers_and_verdicts_are_in_the_json() -> None:
    results = _results()
    results.series[RUN] = _timed("run", cloche=[100.0], runsc=[160.0])
    document = json.loads(report.to_json(results))
    assert document["series"]["run"]["samples"]["cloche"] == [{"wall_ms": 100.0, "cpu_ms": 50.0}]
    assert document["targets"][0]["reached"] is True
