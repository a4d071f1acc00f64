"""What others wrote, made fit to be shown."""

from __future__ import annotations

import pytest

from cloche.base.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain \\ text", "plain \\ text"),
        ("größer 名前 ☂", "größer 名前 ☂"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("one\r\ntwo\tthree", r"one\r\ntwo\tthree"),
        ("\x00\x7f\x9b31m\x85", r"\x00\x7f\x9b31m\x85"),  # C1: the CSI of a terminal that has them
        ("a\u202eb\u2066c\u200fd\u2028e\ufefff", r"a\u202eb\u2066c\u200fd\u2028e\ufefff"),
        ("\udc80\U000e0041", r"\udc80\U000e0041"),  # no UTF-8 has the first; a tag that hides
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown
    assert shown.encode().decode() == shown


def test_every_control_character_is_escaped() -> None:
    for number in [
        *range(0x20),
        *range(0x7F, 0xA0),
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
    ]:
        assert printable(chr(number)).isascii()
