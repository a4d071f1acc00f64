"""`install` and `uninstall`: register cloche with an engine, and take it out again."""

from __future__ import annotations

from cloche.base.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloche.cli.main import Context

ENGINES = ("docker",)


def install(context: Context, args: list[str]) -> int:
    """`cloche install docker [--default]`."""
    from cloche.engine.docker import main_install

    return main_install(_for_engine("install", args))


def uninstall(context: Context, args: list[str]) -> int:
    """`cloche uninstall docker`."""
    from cloche.engine.docker import main_uninstall

    return main_uninstall(_for_engine("uninstall", args))


def _for_engine(verb: str, args: list[str]) -> list[str]:
    if not args or args[0] not in (*ENGINES, "--help", "-h"):
        raise ConfigError(
            f"{verb}: name an engine", hint=f"cloche {verb} {' | '.join(ENGINES)} [flags]"
        )
    return args
