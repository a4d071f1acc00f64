"""`install` and `uninstall`: register cloche with an engine, and take it out again."""

from __future__ import annotations

from cloche.base.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloche.cli.main import Context

ENGINES = ("docker", "podman")


def install(context: Context, args: list[str]) -> int:
    """`cloche install docker | podman [--default]`."""
    if _engine("install", args) == "podman":
        from cloche.engine import podman

        return podman.main_install(args)
    from cloche.engine import docker

    return docker.main_install(args)


def uninstall(context: Context, args: list[str]) -> int:
    """`cloche uninstall docker | podman`."""
    if _engine("uninstall", args) == "podman":
        from cloche.engine import podman

        return podman.main_uninstall(args)
    from cloche.engine import docker

    return docker.main_uninstall(args)


def _engine(verb: str, args: list[str]) -> str:
    """The engine that *args* begin with; ConfigError when they name none that we know."""
    if not args or args[0] not in (*ENGINES, "--help", "-h"):
        raise ConfigError(
            f"{verb}: name an engine", hint=f"cloche {verb} {' | '.join(ENGINES)} [flags]"
        )
    return args[0]
