"""`make bench`: start times and memory of cloche beside runc and runsc; `--help` tells the rest.
`make bench-programs`, with `programs` as its first word: what users run in containers.
`make bench-kvm`, with `kvm`: what these ask of KVM.

A script, so that it can be run by its path: it finds its own package and the engine tests'
dockerd and outer VM, then hands over to `bench.main` or one of the others.
"""

from __future__ import annotations

import sys
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[1]
# Ahead of the script's own folder, in which modules of the standard library could be shadowed.
sys.path[:1] = [str(_REPOSITORY), str(_REPOSITORY / "tests")]

from bench import kvm_inside, kvm_view, main, program_main  # noqa: E402 (found by the path above)

_MAINS = {
    "programs": program_main.main,
    "kvm": kvm_view.main,
    kvm_view.INSIDE: kvm_inside.main,
}

if __name__ == "__main__":
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    sys.exit(_MAINS[word](sys.argv[2:]) if word in _MAINS else main.main())
