"""The same checks of files in a container of cloche's and in one of runc's (file_checks.py)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from engine.patience import PATIENCE_SECONDS

from .bundles import Bundle
from .runtime import Runtime

FUSE = {"CLOCHE_FILES": "fuse"}
_TESTS = Path(__file__).parents[1]
_CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "MKNOD", "SETUID", "SETGID"),
    *("SETFCAP", "SYS_ADMIN", "LINUX_IMMUTABLE", "KILL"),
)


def names_of_checks(program: str) -> list[str]:
    """The checks of that module."""
    return re.findall(
        r"^@check\ndef (\w+)", (_TESTS / "vm" / f"{program}.py").read_text(), re.MULTILINE
    )


def with_python(bundle: Bundle) -> Bundle:
    """Let the container have the host's Python."""
    for source, target in (("/usr", "/usr"), ("/usr/lib", "/lib"), ("/usr/lib64", "/lib64")):
        bundle.mount(target, "bind", source, "rbind", "ro")
    return bundle


def seen_by_both(
    program: Path, root: Path, below: Path, checks: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the module *checks* sees in a container of cloche's, and in one of runc's."""
    directory = Path(tempfile.mkdtemp(prefix="cloche-", dir=below))
    results = []
    for name, path, env in (("cloche", program, FUSE), ("runc", Path("/usr/sbin/runc"), {})):
        with ExitStack() as stack:
            runtime = Runtime(path, directory / name, env)
            stack.callback(runtime.clean_up)
            bundle = with_python(Bundle(directory / f"bundle-{name}", root))
            for mounted, kind in (("data", ""), ("small", "size=1m,nr_inodes=50")):
                source = directory / f"{mounted}-{name}"
                source.mkdir()
                if kind:
                    _mount_tmpfs(source, kind, stack)
                bundle.mount(f"/{mounted}", "bind", source, "rbind")
            bundle.mount("/tests", "bind", _TESTS, "bind", "ro")
            bundle.process["cwd"] = "/tests"
            bundle.capabilities(*(f"CAP_{each}" for each in _CAPABILITIES))
            bundle.args("python3", "-B", "-m", f"vm.{checks}", "/data", "/small")
            container = runtime.start(bundle)
            assert container.wait(PATIENCE_SECONDS) == 0, container.output
            results.append(json.loads(container.out.read_text()))
    shutil.rmtree(directory)
    return results[0], results[1]


def _mount_tmpfs(place: Path, options: str, stack: ExitStack) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
    stack.callback(lambda: subprocess.run(["umount", place], check=True))
