"""What a string of config.json may be, and what it is called there: JSON paths.

Each string of the types says what becomes of it (`PathText`, `Argument` and so on, below): that
decides how long it may be. Strings that are too long for the system call that they end in are
refused here, for all fields alike, and so are NUL bytes.
"""

from __future__ import annotations

from cloche.base import fastjson
from cloche.base.kinds import Misfit, Text, convert
from cloche.model.problems import quoted, refuse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

Step = str | int
_PATH_MAX, _NAME_MAX = 4095, 255
# MAX_ARG_STRLEN of the kernel, less the NUL.
MOST_ARGUMENT = 131_071


class NoText(Misfit):
    """A string that UTF-8 does not have."""


class Bounded(Text):
    """A string of at most *most* bytes, *part* bytes between two slashes; 0: no bound."""

    def __init__(self, most: int = 0, part: int = 0, why: str = "too long", least: int = 0) -> None:
        super().__init__(least)
        self.most = most
        self.part = part
        self.why = why

    def take(self, value: object) -> str:
        """As Kind.take."""
        text: str = super().take(value)
        if "\0" in text:
            raise Misfit("contains a NUL byte, which no path, name or argument can hold")
        if not text.isascii():
            _check_surrogates(text)
        # What is shorter is bounded by nothing.
        if len(text) > _NAME_MAX or (len(text) > _NAME_MAX // 4 and not text.isascii()):
            self._check_size(text)
        return text

    def _check_size(self, text: str) -> None:
        size = len(text.encode())
        if self.most and size > self.most:
            raise Misfit(f"{self.why}: {size} bytes, at most {self.most}")
        if self.part and size > self.part:
            part = max(len(part.encode()) for part in text.split("/"))
            if part > self.part:
                raise Misfit(f"{self.why}: {part} bytes between two slashes, at most {self.part}")


if TYPE_CHECKING:
    PathText = str
    FileName = str
    Argument = str
    Word = str
    PageText = str
    FreeText = str
else:
    PathText = Bounded(_PATH_MAX, _NAME_MAX, "file name too long")
    # One name in a folder.
    FileName = Bounded(_NAME_MAX, _NAME_MAX, "file name too long")
    Argument = Bounded(MOST_ARGUMENT, why="argument list too long")
    # One that is not empty.
    Word = Bounded(MOST_ARGUMENT, why="argument list too long", least=1)
    # A page is what mount(2) reads of a string, and what files of cgroups take in one write.
    PageText = Bounded(4095)
    # Compared with words that are known, checked by a rule of its own, or only kept and told.
    FreeText = Bounded()


def json_path(steps: Sequence[Step]) -> str:
    """*steps* in the notation of JSON paths: ``$.mounts[0].source``."""
    return "$" + "".join(_notation(step) for step in steps)


def _notation(step: Step) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step}" if step.isidentifier() else f"[{quoted(step)}]"


def from_json(data: bytes, kind: Any) -> Any:  # noqa: ANN401 (what *kind* makes of it)
    """A JSON text as a *kind*; ConfigError, JSON path first, where it is none."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        _refuse_no_text(data, kind)
        refuse("$", f"not valid JSON: not UTF-8: the byte 0x{data[error.start]:02x}")
    try:
        return as_kind(fastjson.loads(text), kind)
    except RecursionError:
        refuse("$", "not usable JSON: nested too deeply")
    except ValueError as error:
        refuse("$", f"not valid JSON: {fastjson.problem(text) or error}")


def _refuse_no_text(data: bytes, kind: Any) -> None:  # noqa: ANN401
    """Name the first field that is not UTF-8."""
    try:
        convert(fastjson.loads(data.decode(errors="surrogateescape")), kind)
    except NoText as misfit:
        refuse(json_path(misfit.steps[::-1]), misfit.why)
    except ValueError:  # something else is wrong with it as well
        pass


def as_kind(value: object, kind: Any) -> Any:  # noqa: ANN401
    """A JSON *value* as a *kind*; ConfigError, JSON path first, where it is none."""
    try:
        return convert(value, kind)
    except Misfit as misfit:
        refuse(json_path(misfit.steps[::-1]), misfit.why)


def _check_surrogates(text: str) -> None:
    """Misfit where *text* has what UTF-8 has not."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
    else:
        return
    # surrogateescape stands for a byte from 0x80 on by U+DC80 and so on.
    raw = 0xDC80 <= code <= 0xDCFF
    what = f"the byte 0x{code - 0xDC00:02x}" if raw else f"U+{code:04X}, half a pair of surrogates"
    raise NoText(f"not valid JSON: not UTF-8: {what}")
