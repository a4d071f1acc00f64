"""The Debian that the programs run in: made by debootstrap once, kept as an archive.

`docker load` reads the archive, and `cloche do` does. Its name has what it was made from, so that
a change of the list makes a new one; older ones are removed then.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from bench.timing import BenchError

SUITE = "bookworm"
"""Fixed, so that figures taken on machines of different releases are of the same programs."""
PACKAGES = (
    *("python3", "python3-pip", "git", "gcc", "libc6-dev", "perl"),
    *("sqlite3", "postgresql", "redis-server", "fio", "iperf3"),
)
IMAGE = "cloche-bench:latest"
_FORMAT = "1"
_SECONDS = 1800
# Not what programs need, and a container's image has none of it either.
_SUPERFLUOUS = (
    *("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man"),
    *("usr/share/locale", "usr/share/info", "usr/share/i18n", "var/lib/postgresql/15/main"),
)
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def archive_name() -> str:
    """What the archive is called that is made from the list as it is now."""
    made_from = " ".join((_FORMAT, SUITE, *PACKAGES, *_SUPERFLUOUS))
    return f"debian-{hashlib.sha256(made_from.encode()).hexdigest()[:12]}.tar"


def make_archive(cache: Path) -> Path:
    """The archive in *cache*, made if it is not there; BenchError when that fails."""
    archive = cache / archive_name()
    if archive.exists():
        return archive
    cache.mkdir(parents=True, exist_ok=True)
    # In the same file system, so that the archive appears whole or not at all.
    with tempfile.TemporaryDirectory(prefix=".new-", dir=cache) as work:
        root = Path(work, "root")
        _debootstrap(root)
        for name in _SUPERFLUOUS:
            shutil.rmtree(root / name, ignore_errors=True)
        new = _pack(root, Path(work))
        new.rename(archive)
    for older in set(cache.glob("debian-*.tar")) - {archive}:
        older.unlink()
    return archive


def _debootstrap(root: Path) -> None:
    """Debian in *root*; services that packages start are gone with the pid namespace."""
    if shutil.which("debootstrap") is None:
        raise BenchError("debootstrap is not installed: apt-get install debootstrap")
    alone = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private")
    include = f"--include={','.join(PACKAGES)}"
    _call([*alone, "debootstrap", "--variant=minbase", include, SUITE, str(root), _mirror()])


def _mirror() -> str:
    """Where this machine's apt has Debian from."""
    query = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"]
    found = _call([*query, "Label: Debian"]).split()
    if not found:
        raise BenchError("apt here knows no mirror of Debian: add one to its sources")
    return found[0]


def _pack(root: Path, work: Path) -> Path:
    """*root* as an archive of the kind that `docker save` writes (image-spec v1.2)."""
    layer = work / "layer.tar"
    _call(["tar", "-C", str(root), "--numeric-owner", "--xattrs", "-cf", str(layer), "."])
    with layer.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": [_PATH], "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    (work / "config.json").write_text(json.dumps(config))
    (work / "manifest.json").write_text(json.dumps(manifest))
    archive = work / "archive.tar"
    _call(["tar", "-C", str(work), "-cf", str(archive), "manifest.json", "config.json", layer.name])
    return archive


def _call(argv: list[str]) -> str:
    """What *argv* prints; BenchError with its last words when it fails."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", check=False, timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"{argv[0]}: {error}") from None
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise BenchError(f"{' '.join(argv)[:120]}: {' | '.join(lines[-3:])}")
    return done.stdout
