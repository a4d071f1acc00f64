"""cloche's own configuration: /etc/cloche/config.toml, and environment variables over it."""

from __future__ import annotations

import os

from cloche.base.errors import ConfigError
from cloche.base.files import read_text

CONFIG_FILE = "/etc/cloche/config.toml"

# Every key, with its default. Environment variables CLOCHE_<KEY> come before the file.
DEFAULTS: dict[str, str] = {
    "data_root": "/var/lib/cloche",
    "qemu": "/usr/bin/qemu-system-x86_64",
    "machine": "auto",
    "accel": "auto",
    "template": "on",
    "freeze": "on",
    "randomize": "auto",
    "files": "9p",
    "kernel": "",
}
_CHOICES = {
    "machine": ("auto", "microvm", "q35"),
    "accel": ("auto", "kvm", "tcg"),
    "template": ("on", "off"),
    "freeze": ("on", "off"),
    "randomize": ("auto", "on", "off"),
    "files": ("9p", "fuse"),
}


class Settings:
    """The configuration in force."""

    def __init__(self, values: dict[str, str]) -> None:
        self.data_root = values["data_root"]
        self.qemu = values["qemu"]
        self.machine = values["machine"]
        self.accel = values["accel"]
        self.template = values["template"] == "on"
        self.freeze = values["freeze"] == "on"
        self.randomize = values["randomize"]
        self.files = values["files"]
        self.kernel = values["kernel"]

    @property
    def templates(self) -> str:
        """Where templates are kept."""
        return os.path.join(self.data_root, "templates")


def load_settings(path: str = CONFIG_FILE) -> Settings:
    """Defaults, overlaid by *path*, overlaid by the environment; ConfigError names the key."""
    values = dict(DEFAULTS)
    text = read_text(path)
    if text is not None:
        values.update(_parse(text, path))
    for key in DEFAULTS:
        override = os.environ.get(f"CLOCHE_{key.upper()}")
        if override is not None:
            values[key] = override
    for key, choices in _CHOICES.items():
        if values[key] not in choices:
            raise ConfigError(
                f"configuration: {key} = {values[key]!r}: unknown value",
                hint=f"use one of {', '.join(choices)}",
            )
    return Settings(values)


def _parse(text: str, path: str) -> dict[str, str]:
    import tomllib  # 4 ms, paid only where there is a configuration file

    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}", hint="it must be TOML: key = value") from None
    for key, value in data.items():
        if key not in DEFAULTS:
            raise ConfigError(f"{path}: unknown key {key!r}", hint=f"known: {', '.join(DEFAULTS)}")
        if not isinstance(value, str):
            raise ConfigError(f"{path}: {key}: a string is expected")
    return data
