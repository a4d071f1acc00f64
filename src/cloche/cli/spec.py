"""`spec` and `features`: what can be asked for, and what is carried out."""

from __future__ import annotations

import json
import os

from cloche.base.errors import ClocheError, ConfigError
from cloche.cli.flags import BOOL, TEXT, Flag, Verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloche.cli.main import Context

SPEC = Verb(
    "spec [flags]",
    "Write a config.json to start from.",
    (
        Flag("bundle b", TEXT, "folder to write it to (default: the current one)"),
        Flag("rootless", BOOL, "not possible: cloche needs root"),
    ),
)
FEATURES = Verb("features", "Print what this runtime can do (OCI features.md), as JSON.")


def spec(context: Context, args: list[str]) -> int:
    """`cloche spec`."""
    from cloche.model.spec import default_spec

    flags = SPEC.parse(args)
    if flags.on("rootless"):
        raise ConfigError("spec --rootless: cloche needs root", hint="leave it out")
    path = os.path.join(flags.text("bundle", "."), "config.json")
    try:
        with open(path, "x", encoding="utf-8") as file:
            json.dump(default_spec(), file, indent="\t")
            file.write("\n")
    except FileExistsError:
        raise ClocheError(f"{path}: exists already", hint="remove it first") from None
    except OSError as error:
        raise ClocheError(f"{path}: {(error.strerror or '').lower()}") from None
    return 0


def features(context: Context, args: list[str]) -> int:
    """`cloche features`."""
    from cloche.model.features import features as document

    FEATURES.parse(args)
    print(json.dumps(document(), indent=2))
    return 0
