"""The programs' bench: its shell, its rounds and budget, its table of programs, its report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# The benchmark and the engine tests are no part of the installed package: they are in the checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import kvm_view, program_main, program_report
from bench.compare import Budget, Outcome, compare, run_program
from bench.debian import archive_name
from bench.doors import ALL, DO, FILES, Door
from bench.kvm_view import KINDS, Counted
from bench.program_report import ProgramResults, slowness
from bench.programs import PROGRAMS, Program
from bench.requests import answers_in
from bench.runtimes import RUNC, RUNSC
from bench.sections import section_of, with_section
from bench.session import Answer, Lost, NoContainer, Session
from bench.timing import BenchError

LONG = 60.0
STEPS = [
    pytest.param(step, id=f"{program.name}: {name}")
    for program in PROGRAMS
    for name in ("once", "before", "command", "after")
    if (step := getattr(program, name))
]


@pytest.fixture
def session() -> Iterator[Session]:
    """A shell of the host's: what it is led to is nothing that the session knows."""
    found = Session(["sh"], dict(os.environ))
    yield found
    found.close()


def test_a_script_says_what_it_printed_and_how_long_it_took(session: Session) -> None:
    answer = session.run("echo one\nprintf two", LONG)
    assert answer.output == "one\ntwo"
    assert 0 < answer.wall_ms < LONG * 1000


def test_a_script_leaves_the_shell_as_it_was(session: Session) -> None:
    session.run("cd /; variable=1; set -f; cat", LONG)
    with pytest.raises(BenchError, match="exit status 7"):
        session.run("exit 7", LONG)
    assert session.run('echo "${variable-none}"', LONG).output == "none\n"


def test_what_is_defined_is_there_in_later_scripts(session: Session) -> None:
    session.define("PEER", "a 'quoted' one")
    assert session.run('printf "$PEER"', LONG).output == "a 'quoted' one"


def test_the_first_command_that_fails_ends_a_script_with_what_it_said(session: Session) -> None:
    with pytest.raises(BenchError, match="exit status 3: no luck"):
        session.run("sh -c 'echo no luck >&2; exit 3'\necho not here", LONG)
    assert session.run("echo still there", LONG).output == "still there\n"


def test_much_output_comes_whole(session: Session) -> None:
    assert len(session.run("seq 200000", LONG).output.splitlines()) == 200_000


def test_a_script_that_is_not_done_in_time_is_told(session: Session) -> None:
    with pytest.raises(Lost, match=r"not done after 0\.1 s"):
        session.run("exec sleep 2", 0.1)  # ends soon after its shell


def test_a_shell_that_ends_is_told_with_its_last_words() -> None:
    session = Session(["sh", "-c", "echo no such container >&2; exit 1"], dict(os.environ))
    with pytest.raises(Lost, match="the shell has ended: no such container"):
        session.run("true", LONG)
    session.close()


def test_a_shell_that_does_not_start_is_told() -> None:
    with pytest.raises(BenchError, match="no-such-program: no such file"):
        Session(["no-such-program"], dict(os.environ))


class Fake:
    """A door that answers with what it is told, and notes what it was asked."""

    def __init__(self, name: str, answers: Callable[[str], Answer], asked: list[str]) -> None:
        self.name = name
        self._answers = answers
        self._asked = asked

    def run(self, script: str, timeout: float) -> Answer:
        """As a door's."""
        self._asked.append(f"{self.name} {script}")
        return self._answers(script)


def _answers(*times: float, output: str = "") -> Callable[[str], Answer]:
    left = iter(times)
    return lambda script: Answer(output, next(left) if script == "command" else 0.0)


def _fails_at(step: str, reason: str) -> Callable[[str], Answer]:
    def answer(script: str) -> Answer:
        if script == step:
            raise BenchError(reason)
        return Answer("", 1.0)

    return answer


def _budget(rounds: int, seconds: float = 3600.0) -> Budget:
    return Budget(rounds, time.monotonic() + seconds)


def _ignore(*_: int) -> None:
    pass


FULL = Program("case", "command", once="once", before="before", after="after")


def test_steps_come_in_order_and_doors_in_turn() -> None:
    asked: list[str] = []
    doors = [Fake(name, _answers(9.0, 1.0, 2.0), asked) for name in "ab"]
    outcome = run_program(FULL, doors, _budget(2), _ignore)
    turn = ["a before", "a command", "b before", "b command"]
    assert asked == ["a once", "b once", *turn * 3, "a after", "b after"]
    assert outcome.first == {"a": 9.0, "b": 9.0}
    assert outcome.values == {"a": [1.0, 2.0], "b": [1.0, 2.0]}


def test_a_program_that_has_no_warm_state_counts_its_first_run() -> None:
    program = Program("case", "command", warm=False)
    outcome = run_program(program, [Fake("a", _answers(9.0, 1.0), [])], _budget(2), _ignore)
    assert (outcome.first, outcome.values) == ({}, {"a": [9.0, 1.0]})


@pytest.mark.parametrize("step", ["once", "before", "command"])
def test_a_door_where_it_fails_is_told_and_the_others_go_on(step: str) -> None:
    asked: list[str] = []
    doors = [Fake("a", _fails_at(step, "no luck"), asked), Fake("b", _answers(*[1.0] * 3), asked)]
    outcome = run_program(FULL, doors, _budget(2), _ignore)
    assert outcome.failed.keys() == {"a"}
    assert "no luck" in outcome.failed["a"]
    assert "a" not in outcome.values
    assert outcome.values["b"] == [1.0, 1.0]
    assert asked.count(f"a {step}") == 1


def test_what_cannot_be_tidied_up_has_been_measured_all_the_same() -> None:
    outcome = run_program(FULL, [Fake("a", _fails_at("after", "x"), [])], _budget(1), _ignore)
    assert (outcome.failed, outcome.values) == ({}, {"a": [1.0]})


def test_output_that_is_not_as_it_should_be_is_a_failure() -> None:
    def check(output: str) -> None:
        raise ValueError(f"bad: {output}")

    for program in (
        Program("case", "command", check=check),
        Program("case", "command", unit="/s", read=float),
    ):
        door = Fake("a", _answers(1.0, output="words"), [])
        outcome = run_program(program, [door], _budget(1), _ignore)
        assert "words" in outcome.failed["a"]


def test_a_slow_program_makes_one_round_that_counts() -> None:
    asked: list[str] = []
    door = Fake("a", _answers(*[1.0] * 9), asked)
    run_program(Program("case", "command", warm=False), [door], _budget(5, 0.0), _ignore)
    assert len(asked) == 1


def test_programs_for_which_no_time_is_left_are_told() -> None:
    asked: list[str] = []
    program = Program("case", "command")
    door = Fake("a", _answers(), asked)
    found = compare([program, program], [door], _budget(3, 0.0), lambda _: _ignore)
    assert [outcome.failed for outcome in found] == [{"a": "no time was left (--minutes)"}] * 2
    assert asked == []


def test_names_of_programs_are_unique() -> None:
    assert len({program.name for program in PROGRAMS}) == len(PROGRAMS)


@pytest.mark.parametrize("step", STEPS)
def test_every_step_is_shell(step: str) -> None:
    """As far as a shell can tell without doing it."""
    done = subprocess.run(["sh", "-n"], input=step, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


FIO = "note: x\n" + json.dumps({"jobs": [{"read": {"iops": 12.5}, "write": {"bw_bytes": 1 << 21}}]})
IPERF = json.dumps({"end": {"sum_received": {"bits_per_second": 5e8}}})


@pytest.mark.parametrize(
    ("name", "output", "value"),
    [
        ("fio: 4 KiB random read", FIO, 12.5),
        ("fio: 1 MiB sequential write", FIO, 2.0),
        ("iperf3, into the container", IPERF, 500.0),
        ("redis, 2,000 GETs", '"test","rps"\n"GET","1234.50","0.1"\n', 1234.5),
        ("PostgreSQL pgbench", "tps = 88.25 (without initial connection time)\n", 88.25),
    ],
)
def test_numbers_are_read_from_what_programs_print(name: str, output: str, value: float) -> None:
    read = next(program.read for program in PROGRAMS if program.name == name)
    assert read is not None
    assert read(output) == pytest.approx(value)
    with pytest.raises(ValueError, match=r"."):
        read("nothing of the kind")


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_speed_is_read_and_better_when_higher(program: Program) -> None:
    is_time = program.unit == "ms"
    assert is_time == (program.read is None)
    assert is_time != program.higher_is_better


def test_lost_lines_of_output_are_a_failure() -> None:
    check = next(program.check for program in PROGRAMS if "stdout" in program.name)
    assert check is not None
    check("line\n" * 20_000)
    with pytest.raises(ValueError, match="19999 lines came of 20000"):
        check("line\n" * 19_999)


def test_the_archive_is_named_after_its_list(monkeypatch: pytest.MonkeyPatch) -> None:
    before = archive_name()
    assert archive_name() == before
    monkeypatch.setattr("bench.debian.PACKAGES", ("python3",))
    assert archive_name() != before


def _outcome(name: str, higher: bool = False, **values: list[float]) -> Outcome:
    return Outcome(name, "/s" if higher else "ms", higher, values)


def test_slowness_is_a_ratio_of_times_and_the_inverse_of_speeds() -> None:
    times = _outcome("x", runc=[1.0, 10.0], fuse=[3.0, 30.0])
    speeds = _outcome("x", higher=True, runc=[30.0], fuse=[10.0])
    assert slowness(times, "fuse", RUNC) == [3.0, 3.0]
    assert slowness(speeds, "fuse", RUNC) == [3.0]
    assert slowness(times, "fuse", RUNSC) == []


def _results(*outcomes: Outcome) -> ProgramResults:
    return ProgramResults({"CPU": "some"}, load_before=0.0, outcomes=list(outcomes))


def test_the_report_has_ratios_numbers_targets_and_failures() -> None:
    values = {**{door: [20.0, 30.0] for door in (*FILES, DO)}, RUNC: [10.0, 10.0]}
    python = Outcome("Python start", "ms", False, dict(values), {"fuse": 50.0, RUNC: 10.0})
    python.fail(RUNSC, "exit status 1:\nno luck")
    forks = _outcome("100 × fork and exec", fuse=[20.0], runsc=[30.0], runc=[1.0])
    text = program_report.to_markdown(_results(python, forks))
    assert text.startswith("## Programs\n")
    assert "| Python start | 2.50 | 2.50 | 2.50 | failed | – | – | – |" in text
    assert "| Python start, first | – | 5.00 | – | failed | – | – | – |" in text
    assert "| 100 × fork and exec | – | 20.0 | – | 30.0 | – | 0.67 | – |" in text
    assert "| 100 × fork and exec: at most 1 × runsc's | 0.67 × | reached |" in text
    assert "| Python start: at most 2.5 × runsc's |  | not measured |" in text
    assert "- runsc: Python start: exit status 1: no luck" in text
    assert "| Python start | ms | 25.0 (20.0–30.0) |" in text
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1, block


def test_a_reason_that_programs_share_is_told_once() -> None:
    outcomes = [_outcome("one"), _outcome("two")]
    for outcome in outcomes:
        outcome.fail(RUNSC, "no container")
    text = program_report.to_markdown(_results(*outcomes))
    assert "- runsc: one; two: no container" in text


def test_raw_numbers_are_in_the_json() -> None:
    document = json.loads(program_report.to_json(_results(_outcome("x", runc=[1.0]))))
    assert document["outcomes"][0]["values"] == {RUNC: [1.0]}


DOCUMENT = "# Benchmarks\nintro\n\n## Times\nt\n\n## Machine and versions\nm\n"


def test_a_section_is_put_before_the_machine_and_replaced_there() -> None:
    first = with_section(DOCUMENT, "## Programs\none\n\n### Part\np\n")
    assert section_of(first, "## Programs") == "## Programs\none\n\n### Part\np\n\n"
    assert first.index("## Times") < first.index("## Programs") < first.index("## Machine")
    second = with_section(first, "## Programs\ntwo\n")
    assert second == DOCUMENT.replace("## Machine", "## Programs\ntwo\n\n## Machine")
    assert with_section(DOCUMENT, section_of(second, "## Programs")) == second


def test_a_document_without_the_section_stays_as_it_is() -> None:
    assert with_section(DOCUMENT, section_of(DOCUMENT, "## Programs")) == DOCUMENT


def test_programs_are_chosen_by_a_part_of_their_names() -> None:
    assert {program.name for program in program_main.chosen(["git S", "GCC"])} == {
        "git status",
        "gcc of a small program",
    }
    assert program_main.chosen([]) == list(PROGRAMS)
    with pytest.raises(BenchError, match="no program is called like that; there are: Python"):
        program_main.chosen(["no such"])


class ShellDoor(Door):
    """A door to a shell of the host's; it notes what is started and stopped."""

    def __init__(self, argv: list[str]) -> None:
        super().__init__("shell", peer="there")
        self.argv = argv
        self.asked: list[str] = []

    def start(self) -> list[str]:
        """As a door's."""
        self.asked.append("start")
        return self.argv

    def stop(self) -> None:
        """As a door's."""
        self.asked.append("stop")


@pytest.fixture
def shell_door(monkeypatch: pytest.MonkeyPatch) -> Iterator[ShellDoor]:
    """One whose container has no folder to make."""
    monkeypatch.setattr("bench.doors.FOLDER", "/tmp")
    door = ShellDoor(["sh"])
    yield door
    door.close()


def test_a_door_is_opened_once_and_knows_its_peer(shell_door: ShellDoor) -> None:
    assert shell_door.run('echo "$PEER"', LONG).output == "there\n"
    with pytest.raises(BenchError, match="exit status 1"):
        shell_door.run("false", LONG)
    shell_door.run("true", LONG)
    assert shell_door.asked == ["start"]


@pytest.mark.parametrize(
    ("script", "seconds", "said"),
    [
        ("exec sleep 2", 0.1, "not done after"),
        ("kill -KILL $$", LONG, "has ended"),
    ],
)
def test_a_container_that_is_lost_is_made_anew(
    shell_door: ShellDoor, script: str, seconds: float, said: str
) -> None:
    with pytest.raises(BenchError, match=said):
        shell_door.run(script, seconds)
    assert shell_door.run("echo again", LONG).output == "again\n"
    assert shell_door.asked == ["start", "stop", "start"]


def test_a_door_that_does_not_open_is_tried_once(shell_door: ShellDoor) -> None:
    shell_door.argv = ["sh", "-c", "echo no such image >&2; exit 1"]
    for _ in range(2):
        with pytest.raises(NoContainer, match="no container: the shell has ended: no such image"):
            shell_door.run("true", LONG)
    assert shell_door.asked == ["start", "stop"]


def test_doors_are_told_apart() -> None:
    assert len(set(ALL)) == len(ALL)


CALLS = """\
7 sendto(4, ""..., 40, MSG_NOSIGNAL, NULL, 0 <unfinished ...>
8 sendto(4, ""..., 16, MSG_NOSIGNAL, NULL, 0) = 16
7 <... sendto resumed>) = 40
"""


def test_an_answer_that_was_interrupted_counts_once() -> None:
    assert answers_in(CALLS) == 2


def test_exits_are_told_by_program_and_files() -> None:
    one = Counted("Python start", requests=1234)
    one.exits["fuse"] = dict.fromkeys(KINDS, 10_000)
    one.failed["9p"] = "no\nluck"
    other = Counted("git status", requests="not counted")
    text = kvm_view.to_markdown([one, other])
    assert text.startswith("## Programs under KVM\n")
    failed, found = ["failed"] * len(KINDS), ["10,000"] * len(KINDS)
    assert f"| Python start | 1,234 | {' | '.join([*failed, *found])} |" in text
    assert f"| git status | not counted | {' | '.join(['–'] * 2 * len(KINDS))} |" in text
    assert "- Python start, 9p: no luck" in text


def test_programs_for_kvm_are_there() -> None:
    for text in kvm_view.DEFAULT_PROGRAMS:
        assert program_main.chosen([text])
