"""The QEMU after the distribution's: Debian's backport of 10, or a newer one that is installed.

Its packages are unpacked into a folder of the tests' own and installed nowhere; that takes a
network. `$CLOCHE_TEST_QEMU10` names one that is unpacked already.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cloche.guest.guest import current_guest
from cloche.model.config import load_settings

from . import host
from .bundles import Bundle
from .runtime import TIMEOUT_SECONDS, Runtime

INSTALLED = Path("/usr/bin/qemu-system-x86_64")
PACKAGES = ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def version(qemu: Path) -> int:
    """The major version of a QEMU."""
    said = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"version (\d+)", said.stdout)
    assert found is not None, said.stdout
    return int(found[1])


def apt(folder: Path, *words: str) -> None:
    """Run apt-get on lists and a cache in *folder*; skip the test where it cannot fetch."""
    options = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "root",
        "Acquire::http::Timeout": 15,
        "Acquire::Retries": 1,
        "Acquire::Languages": "none",
    }
    argv = ["apt-get", "--quiet"]
    argv += [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    try:
        subprocess.run(
            [*argv, *words],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"QEMU 10 cannot be fetched: apt-get {words[0]} never ends")
    except subprocess.CalledProcessError as error:
        if "Failed to fetch" not in error.stderr:
            pytest.fail(f"{argv} {words}: {error.stderr}")
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"QEMU 10 cannot be fetched: apt-get {words[0]}: {reason}")


def mirror() -> str:
    """Where this machine's apt has Debian itself from; skips where that is not configured."""
    wanted = ["$(SITE)", "Codename: bookworm", "Created-By: Packages"]
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", *wanted], capture_output=True, text=True, check=True
    )
    if not done.stdout:
        pytest.skip("QEMU 10 cannot be fetched: apt has no mirror of bookworm")
    return done.stdout.split()[0]


@pytest.fixture(scope="module")
def qemu10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A QEMU of version 10 or later."""
    named = os.environ.get("CLOCHE_TEST_QEMU10")
    if named or version(INSTALLED) >= 10:
        return Path(named or INSTALLED)
    release = platform.freedesktop_os_release()
    if (release.get("ID"), release.get("VERSION_ID")) != ("debian", "12"):
        pytest.skip("the QEMU here is older than 10, and only Debian 12's backport is fetched")
    folder = tmp_path_factory.mktemp("qemu10")
    archive = f"deb [signed-by={KEYRING}] {mirror()}"
    suites = ("bookworm", "bookworm-backports")
    sources = "".join(f"{archive} {suite} main\n" for suite in suites)
    (folder / "sources.list").write_text(sources)
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    apt(folder, "update", "--error-on=any")
    apt(folder, "download", "--target-release=bookworm-backports", *PACKAGES)
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", package, folder / "root"], check=True)
    return folder / "root/usr/bin/qemu-system-x86_64"


@pytest.fixture
def bundle10(cloche: Runtime, bundle: Bundle, qemu10: Path, folder: Path) -> Bundle:
    """A bundle for the smallest VM, run by that QEMU, with templates of the test's own."""
    guest = current_guest(load_settings().data_root)
    assert guest is not None, "run `cloche setup` first"
    root = folder / "data"
    root.mkdir()
    (root / "guests").symlink_to(Path(guest.directory).parent)
    if (agents := Path(load_settings().data_root, "agents")).is_dir():
        (root / "agents").symlink_to(agents)
    cloche.env |= {"CLOCHE_DATA_ROOT": str(root), "CLOCHE_QEMU": str(qemu10)}
    bundle.linux["resources"] = {"memory": {"limit": 64 << 20}}
    return bundle


def test_it_is_the_one(qemu10: Path) -> None:
    assert version(qemu10) >= 10
    assert shutil.which(str(qemu10)) is not None


@pytest.mark.parametrize("cloche", ["cold", "q35-cold"], indirect=True)
def test_a_cold_boot(cloche: Runtime, bundle10: Bundle) -> None:
    assert cloche.run(bundle10.sh("mkfifo /pipe && uname -s")).output == "Linux"
    assert (bundle10.rootfs / "pipe").is_fifo()


def test_a_template_and_its_clones(
    cloche: Runtime, bundle10: Bundle, qemu10: Path, folder: Path
) -> None:
    data = folder / "shared"
    data.mkdir()
    bundle10.mount("/data", "bind", data, "bind").sh("echo made")
    name = cloche.new_id()
    maker = cloche.popen("run", "--bundle", bundle10.save(), name)
    output, errors = maker.communicate(timeout=TIMEOUT_SECONDS)
    assert (output, maker.returncode) == (b"made\n", 0), errors
    told = cloche.messages("warning")
    assert any("no template of 1 vCPU and 256 MiB" in each for each in told)
    assert any("no frozen QEMU of 1 vCPU and 256 MiB: made one" in each for each in told)
    cloche.log.unlink()
    for freeze, sign in (("on", "-thawed"), ("off", "-incoming defer")):
        cloche.env["CLOCHE_FREEZE"] = freeze
        container = cloche.start(bundle10.args("sleep", "1000"))
        processes = host.processes(cloche.root / container.id)
        (command,) = [each for _, each in processes if str(qemu10) in each.split()[0]]
        assert sign in command
        assert container.sh(f"echo {sign} >/data/file; id -u").output == "0"
        assert (data / "file").read_text() == f"{sign}\n"
        assert container.sh("exit 7", code=7).output == ""
        assert cloche.messages("warning") == []
        container.end()
