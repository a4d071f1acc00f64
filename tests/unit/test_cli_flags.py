"""Flags as urfave/cli, runc's library, reads them."""

from __future__ import annotations

import pytest

from cloche.base.errors import ConfigError
from cloche.cli.flags import BOOL, LIST, TEXT, Flag, Flags, Verb

VERB = Verb(
    "verb [flags] ID",
    "Does something.",
    (
        Flag("bundle b", TEXT, "a folder"),
        Flag("detach d", BOOL, "leave it"),
        Flag("env e", LIST, "variables"),
        Flag("count", TEXT, "a number"),
    ),
)


def parse(*args: str) -> Flags:
    """The flags of VERB."""
    return VERB.parse(args)


@pytest.mark.parametrize(
    "words",
    [
        ["--bundle", "x"],
        ["--bundle=x"],
        ["-b", "x"],
        ["-b=x"],
        ["-bundle", "x"],
        ["--b", "x"],
    ],
    ids=" ".join,
)
def test_spellings_of_a_value(words: list[str]) -> None:
    flags = parse(*words, "id")
    assert (flags.text("bundle"), flags.arguments) == ("x", ["id"])


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("--detach", True),
        ("-d", True),
        ("--detach=true", True),
        ("--detach=1", True),
        ("--detach=false", False),
        ("-d=F", False),
    ],
)
def test_spellings_of_a_switch(word: str, value: bool) -> None:
    assert parse(word, "id").on("detach") is value


def test_flags_end_at_the_first_argument() -> None:
    flags = parse("-d", "id", "sh", "-c", "--bundle")
    assert flags.arguments == ["id", "sh", "-c", "--bundle"]
    assert flags.text("bundle", "none") == "none"


def test_two_dashes_end_the_flags() -> None:
    assert parse("-d", "--", "-b", "x").arguments == ["-b", "x"]
    assert parse("-").arguments == ["-"]


def test_a_verb_with_one_id_takes_flags_behind_it() -> None:
    flags, container_id = VERB.one_id(["-d", "id", "--bundle", "x"])
    assert (container_id, flags.on("detach"), flags.text("bundle")) == ("id", True, "x")


def test_lists_keep_their_order_and_values_may_look_like_flags() -> None:
    flags = parse("-e", "A=1", "--env=B=2", "-e", "-x", "id")
    assert flags.all("env") == ["A=1", "B=2", "-x"]
    assert parse("id").all("env") == []


def test_the_last_value_wins() -> None:
    assert parse("-b", "x", "--bundle", "y").text("bundle") == "y"
    assert parse("--detach", "--detach=false").on("detach") is False


def test_numbers() -> None:
    assert parse("--count", "12").number("count") == 12
    assert parse("id").number("count") == 0
    with pytest.raises(ConfigError, match="a whole number"):
        parse("--count", "-1").number("count")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--what"], "flag provided but not defined: --what"),
        (["-x"], "flag provided but not defined: -x"),
        (["--bundle"], "flag needs an argument: --bundle"),
        (["--detach=maybe"], "true or false"),
    ],
)
def test_wrong_flags(words: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse(*words)


@pytest.mark.parametrize("words", [[], ["a", "b"], ["-d"]], ids=str)
def test_exactly_one_id(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="requires exactly 1 argument") as raised:
        VERB.one_id(words)
    assert raised.value.hint == "cloche verb [flags] ID"


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["-help"], ["-d", "--bundle", "b", "-h"]])
def test_help_names_every_flag(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        parse(*words)
    assert raised.value.code == 0
    output = capsys.readouterr().out
    assert output.startswith("Usage: cloche verb [flags] ID\n")
    for text in ("--bundle, -b value", "--detach, -d ", "--env, -e value", "a folder"):
        assert text in output


def test_help_is_an_id_like_any_other() -> None:
    assert VERB.one_id(["help"])[1] == "help"
