"""``cloche install podman`` and the real podman, which reads its drop-ins with each command."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from .scene import IMAGE, Scene, is_own_kernel

DROP_INS = "/etc/containers/containers.conf.d"
OTHER = '[engine.runtimes]\nother = ["/bin/true"]\n\n[network]\nnetwork_backend = "netavark"\n'


def _podman(scene: Scene, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """``podman ARGS`` that finds *folder* in the place of the machine's drop-ins."""
    flags = ("--cgroup-manager=cgroupfs", "--events-backend=file")
    argv = scene.argv(*flags, *args)
    name = argv.index("podman")
    script = f'mkdir -p {DROP_INS} && mount --bind "$0" {DROP_INS} && exec "$@"'
    private = ["unshare", "--mount", "sh", "-c", script, str(folder)]
    environment = {k: v for k, v in scene.environment.items() if k != "CONTAINERS_CONF"}
    return subprocess.run(
        [*argv[:name], *private, *argv[name:]],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


def test_install_and_uninstall(podman_scene: Scene, cloche_program: Path, tmp_path: Path) -> None:
    """podman knows the runtime at once, keeps the others, and forgets it again."""
    (tmp_path / "other.conf").write_text(OTHER)

    def cloche(*words: str) -> str:
        argv = [str(cloche_program), *words, "--config-dir", str(tmp_path)]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

    run = ("run", "--rm", "--network=none", IMAGE, "uname", "-r")
    assert _podman(podman_scene, tmp_path, "--runtime", "cloche", *run).returncode != 0
    assert "written" in cloche("install", "podman")
    done = _podman(podman_scene, tmp_path, "--runtime", "cloche", *run)
    assert is_own_kernel(done.stdout.strip()), done.stderr
    other = _podman(podman_scene, tmp_path, "--runtime", "other", "info", "--format", "json")
    assert json.loads(other.stdout)["host"]["ociRuntime"]["path"] == "/bin/true"

    cloche("install", "podman", "--default")
    done = _podman(podman_scene, tmp_path, *run)
    assert is_own_kernel(done.stdout.strip()), done.stderr

    assert "removed" in cloche("uninstall", "podman")
    assert os.listdir(tmp_path) == ["other.conf"]
    assert _podman(podman_scene, tmp_path, "--runtime", "cloche", *run).returncode != 0
