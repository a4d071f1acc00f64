"""The command line under test."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_LIMIT_S = 1200
_PROGRAM = Path(sys.executable).parent / "cloche"


class Cloche:
    """Runs `cloche` as an engine would: output in files, which a container may keep open."""

    def run(
        self,
        *args: str | Path,
        stdin: bytes = b"",
        check: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run one command; a failure that is not expected (*check*) quotes its stderr."""
        settings = [f"{name}={value}" for name, value in (environment or {}).items()]
        argv = ["/usr/bin/env", *settings, _PROGRAM, *args]
        with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as output:
            source.write(stdin)
            source.seek(0)
            with tempfile.TemporaryFile() as errors:
                done = subprocess.run(
                    argv, stdin=source, stdout=output, stderr=errors, timeout=_LIMIT_S, check=False
                )
                texts = [_text(output), _text(errors)]
        if check:
            assert done.returncode == 0, f"cloche {args[0]}: {done.returncode}: {texts[1]}"
        return subprocess.CompletedProcess(argv, done.returncode, *texts)

    def state(self, container: str) -> dict[str, Any]:
        """What `cloche state` prints."""
        found: dict[str, Any] = json.loads(self.run("state", container).stdout)
        return found


def _text(file: Any) -> str:  # noqa: ANN401 (tempfile's wrapper has no name of its own)
    file.seek(0)
    return str(file.read().decode(errors="replace"))
