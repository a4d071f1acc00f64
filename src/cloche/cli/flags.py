"""Command-line flags of the OCI verbs.

argparse would do, but costs 9 ms to import, and containerd starts five to ten of these processes
per container. The syntax is the one of runc (urfave/cli): flags before arguments, `--flag value`,
`--flag=value`, `-f value`; a boolean flag takes no value but may be written `--flag=true`, or with
whatever else Go's strconv.ParseBool takes.
"""

from __future__ import annotations

from cloche.base.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

BOOL = "bool"
TEXT = "text"
LIST = "list"

HELP = ("--help", "-help", "-h", "--h")

# strconv.ParseBool of Go
BOOLS = dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True)
BOOLS |= dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False)


class Flag:
    """One flag: its *names* without dashes (the first one is the key), *kind* and help text."""

    def __init__(self, names: str, kind: str, text: str) -> None:
        self.names = names.split()
        self.kind = kind
        self.text = text

    def usage(self) -> str:
        """How it is written."""
        spelled = ", ".join(("--" if len(name) > 1 else "-") + name for name in self.names)
        return spelled if self.kind == BOOL else f"{spelled} value"


class Flags:
    """The values given, by key, and the arguments that follow."""

    def __init__(self, defined: Sequence[Flag]) -> None:
        self._defined = {name: flag for flag in defined for name in flag.names}
        self._texts: dict[str, str] = {}
        self._lists: dict[str, list[str]] = {}
        self._bools: dict[str, bool] = {}
        self.help = False
        """Whether the help was asked for, by a flag that is always there."""
        self.arguments: list[str] = []

    def text(self, key: str, default: str = "") -> str:
        """The value of a TEXT flag."""
        return self._texts.get(key, default)

    def on(self, key: str) -> bool:
        """Whether a BOOL flag was given."""
        return self._bools.get(key, False)

    def chosen(self, key: str) -> bool | None:
        """What a BOOL flag was set to; None where it was not given."""
        return self._bools.get(key)

    def all(self, key: str) -> list[str]:
        """All values of a LIST flag."""
        return self._lists.get(key, [])

    def number(self, key: str) -> int:
        """A TEXT flag as a whole number; 0 where it was not given."""
        value = self.text(key, "0")
        if not value.isdigit():
            raise ConfigError(f"--{key} {value!r}: a whole number is expected")
        return int(value)

    def parse(self, args: Sequence[str], *, stop_at_argument: bool = True) -> Flags:
        """Read *args*; the first word that is no flag ends the flags."""
        words = list(args)
        while words:
            word = words.pop(0)
            if word == "--":
                break
            if not word.startswith("-") or word == "-":
                words.insert(0, word)
                if stop_at_argument:
                    break
                self.arguments.append(words.pop(0))
                continue
            if word in HELP:
                self.help = True
                continue
            name, has_value, value = word.lstrip("-").partition("=")
            flag = self._defined.get(name)
            if flag is None:
                raise ConfigError(f"flag provided but not defined: {word}", hint="see --help")
            self._set(flag, word, value if has_value else None, words)
        self.arguments += words
        return self

    def _set(self, flag: Flag, word: str, value: str | None, words: list[str]) -> None:
        key = flag.names[0]
        if flag.kind == BOOL:
            on = BOOLS.get("true" if value is None else value)
            if on is None:
                raise ConfigError(f"{word}: true or false is expected")
            self._bools[key] = on
            return
        if value is None:
            if not words:
                raise ConfigError(f"flag needs an argument: {word}")
            value = words.pop(0)
        if flag.kind == LIST:
            self._lists.setdefault(key, []).append(value)
        else:
            self._texts[key] = value


class Verb:
    """What a verb accepts, and its help."""

    def __init__(self, usage: str, text: str, flags: Sequence[Flag] = ()) -> None:
        self.usage = usage
        self.text = text
        self.flags = flags

    def parse(self, args: Sequence[str], *, stop_at_argument: bool = True) -> Flags:
        """Parse *args*; `--help` prints the help and exits."""
        flags = Flags(self.flags).parse(args, stop_at_argument=stop_at_argument)
        if flags.help:
            print(self.help(), end="")
            raise SystemExit(0)
        return flags

    def one_id(self, args: Sequence[str]) -> tuple[Flags, str]:
        """Parse a verb whose only argument is a container's id."""
        # runc takes flags after the id as well.
        flags = self.parse(args, stop_at_argument=False)
        if len(flags.arguments) != 1:
            name = self.usage.split()[0]
            raise ConfigError(
                f"{name}: requires exactly 1 argument, the container's id, "
                f"{len(flags.arguments)} given",
                hint=f"cloche {self.usage}",
            )
        return flags, flags.arguments[0]

    def help(self) -> str:
        """The text of `--help`."""
        lines = [f"Usage: cloche {self.usage}", "", self.text, ""]
        lines += [f"  {flag.usage():<34} {flag.text}" for flag in self.flags]
        return "\n".join(lines) + "\n"
