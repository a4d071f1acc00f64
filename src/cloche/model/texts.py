"""Every value of config.json as it is in the file, before it is given its type.

Each string of the types says what becomes of it (`PathText`, `Argument` and so on, below): that
decides how long it may be. Strings that are too long for the system call that they end in are
refused here, for all fields alike, with their JSON path, and so are NUL bytes and numbers that
no field can hold.
"""

# Annotations are objects here: msgspec would take 2 ms of each start to compile strings.

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, NoReturn, get_args, get_origin

from msgspec import Meta, Struct, structs

from cloche.model.problems import quoted, refuse

Step = str | int
# Below a JSON object: its key, not what stands there.
KEY = object()


class Bound(NamedTuple):
    """What a string may be: *most* bytes, *part* bytes between two slashes; 0: no bound."""

    most: int = 0
    part: int = 0
    why: str = "too long"


_PATH_MAX, _NAME_MAX = 4095, 255
# MAX_ARG_STRLEN of the kernel, less the NUL.
MOST_ARGUMENT = 131_071
_FREE = Bound()
_PATH = Bound(_PATH_MAX, _NAME_MAX, "file name too long")
# One name in a folder.
_NAME = Bound(_NAME_MAX, _NAME_MAX, "file name too long")
_ARGUMENT = Bound(MOST_ARGUMENT, why="argument list too long")
# A page is what mount(2) reads of a string, and what files of cgroups take in one write.
_PAGE = Bound(4095)

PathText = Annotated[str, Meta(extra={"bound": _PATH})]
FileName = Annotated[str, Meta(extra={"bound": _NAME})]
Argument = Annotated[str, Meta(extra={"bound": _ARGUMENT})]
PageText = Annotated[str, Meta(extra={"bound": _PAGE})]
# Compared with words that are known, checked by a rule of its own, or only kept and told.
FreeText = Annotated[str, Meta(extra={"bound": _FREE})]


def cleaned(value: object, kind: object) -> object:
    """*value*, to become a *kind*, without nulls in objects: those mean absent.

    ConfigError, JSON path first, for what no field can carry to a system call.
    """
    return _Walk(kind).clean(value)


class _Walk:
    """One walk over a JSON value; *at* is the path of what it has come to."""

    def __init__(self, kind: object) -> None:
        self.kind = kind
        self.at: list[Step] = []

    def clean(self, value: object) -> object:
        if isinstance(value, dict):
            return {
                self._key(key): self._below(key, item)
                for key, item in value.items()
                if item is not None
            }
        if isinstance(value, list):
            return [self._below(index, item) for index, item in enumerate(value)]
        if isinstance(value, str):
            self._check(value)
        elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
            refuse(json_path(self.at), "number out of range: expected at most 64 bits")
        return value

    def _below(self, step: Step, value: object) -> object:
        self.at.append(step)
        clean = self.clean(value)
        self.at.pop()
        return clean

    def _key(self, key: str) -> str:
        self._check(key, KEY)
        return key

    def _check(self, text: str, *last: object) -> None:
        if "\0" in text:
            refuse(
                json_path(self.at), "contains a NUL byte, which no path, name or argument can hold"
            )
        # What is shorter is bounded by nothing.
        if len(text) > _NAME_MAX or (len(text) > _NAME_MAX // 4 and not text.isascii()):
            _check_length(text, bound_of(self.kind, [*self.at, *last]), json_path(self.at))


def _check_length(text: str, bound: Bound, path: str) -> None:
    size = len(text.encode())
    if bound.most and size > bound.most:
        refuse(path, f"{bound.why}: {size} bytes, at most {bound.most}")
    if bound.part and size > bound.part:
        part = max(len(part.encode()) for part in text.split("/"))
        if part > bound.part:
            refuse(path, f"{bound.why}: {part} bytes between two slashes, at most {bound.part}")


def bound_of(kind: Any, steps: Sequence[object]) -> Bound:  # noqa: ANN401 (typing's forms have no type)
    """What the types say of the string to which *steps* lead from *kind*.

    Nothing of what the specification does not know: that is ignored.
    """
    for step in steps:
        kind = next(iter(_inner(kind, step)), None)
    for part in _parts(kind):
        for meta in get_args(part)[1:] if get_origin(part) is Annotated else ():
            if meta.extra and "bound" in meta.extra:
                found: Bound = meta.extra["bound"]
                return found
    return _FREE


def _parts(kind: Any) -> list[Any]:  # noqa: ANN401
    """The members of a union, or *kind* alone."""
    if get_origin(kind) in (tuple, dict, Annotated) or not get_args(kind):
        return [kind]
    return list(get_args(kind))


def _inner(kind: Any, step: object) -> list[Any]:  # noqa: ANN401
    """The types of what stands at *step* in a *kind*."""
    found: list[Any] = []
    for part in _parts(kind):
        whole = get_args(part)[0] if get_origin(part) is Annotated else part
        if get_origin(whole) is tuple:
            found.append(get_args(whole)[0])
        elif get_origin(whole) is dict:
            found.append(get_args(whole)[0 if step is KEY else 1])
        elif isinstance(whole, type) and issubclass(whole, Struct):
            found += [one.type for one in structs.fields(whole) if one.encode_name == step]
    return found


def json_path(steps: Sequence[Step]) -> str:
    """*steps* in the notation of JSON paths: ``$.mounts[0].source``."""
    return "$" + "".join(_notation(step) for step in steps)


def _notation(step: Step) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step}" if step.isidentifier() else f"[{quoted(step)}]"


def refuse_no_text(data: bytes) -> None:
    """ConfigError that names the first string of a JSON text which is not UTF-8, if one is not."""
    from cloche.base import fastjson

    try:
        value = fastjson.loads(data.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return
    _find_no_text(value, [])


def _find_no_text(value: object, at: list[Step]) -> None:
    items: list[tuple[Step, object]] = []
    if isinstance(value, dict):
        items = list(value.items())
        for key in value:
            _check_utf8(key, at)
    elif isinstance(value, list):
        items = list(enumerate(value))
    elif isinstance(value, str):
        _check_utf8(value, at)
    for step, item in items:
        _find_no_text(item, [*at, step])


def _check_utf8(text: str, at: list[Step]) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        _refuse_byte(ord(text[error.start]), at)


def _refuse_byte(code: int, at: list[Step]) -> NoReturn:
    # surrogateescape stands for a byte from 0x80 on by U+DC80 and so on.
    raw = 0xDC80 <= code <= 0xDCFF
    what = f"the byte 0x{code - 0xDC00:02x}" if raw else f"U+{code:04X}, half a pair of surrogates"
    refuse(json_path(at), f"not valid JSON: not UTF-8: {what}")
