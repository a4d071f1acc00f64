"""`make bench`: start times and memory of cloche beside runc and runsc; `--help` tells the rest.

A script, so that it can be run by its path: it finds its own package and the engine tests'
dockerd, then hands over to `bench.main`.
"""

from __future__ import annotations

import sys
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[1]
# Ahead of the script's own folder, in which modules of the standard library could be shadowed.
sys.path[:1] = [str(_REPOSITORY), str(_REPOSITORY / "tests")]

from bench.main import main  # noqa: E402 (the path above makes it findable)

if __name__ == "__main__":
    sys.exit(main())
