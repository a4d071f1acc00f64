"""``docker run``: what its options make of a container, seen from inside."""

from __future__ import annotations

import pytest

from cloche.model.capabilities import mask

from .client import Docker
from .image import EXTRA_GROUP_ID, IMAGE, USER_ID

CAP_CHOWN = 1 << 0
CAP_NET_RAW = 1 << 13
CAP_SYS_TIME = 1 << 25
DOCKER_CAPABILITIES = 0xA80425FB
"""What docker gives a container: chown … setfcap, fourteen of them."""

FIELD = "grep {} /proc/self/status | cut -f2"


@pytest.mark.parametrize(
    ("options", "script", "expected"),
    [
        pytest.param((), "id -u; id -g; pwd", "0\n0\n/", id="defaults"),
        pytest.param(("-e", "A=1 2", "-e", "B=ü"), 'echo "$A-$B"', "1 2-ü", id="env"),
        pytest.param(("-w", "/home/app"), "pwd", "/home/app", id="workdir"),
        pytest.param(("-w", "/made/for/it"), "pwd; touch x", "/made/for/it", id="workdir-made"),
        pytest.param(
            ("-u", "app"),
            "id -u; id -g; id -G; echo $HOME",
            f"{USER_ID}\n{USER_ID}\n{USER_ID} {EXTRA_GROUP_ID}\n/home/app",
            id="user-name",
        ),
        pytest.param(
            ("-u", "app:extra"), "id -u; id -g", f"{USER_ID}\n{EXTRA_GROUP_ID}", id="user-group"
        ),
        pytest.param(("-u", "12:34"), "id -u; id -g", "12\n34", id="user-numeric"),
        pytest.param(
            ("-u", "12:34", "--group-add", "56"), "id -G", "34 56", id="user-additional-group"
        ),
        pytest.param(
            ("--hostname", "bell"), "hostname; cat /etc/hostname", "bell\nbell", id="hostname"
        ),
        pytest.param(
            ("--ulimit", "nofile=123:456"), "ulimit -n; ulimit -H -n", "123\n456", id="ulimit"
        ),
        pytest.param(
            ("--shm-size", "8m"),
            "df -k /dev/shm | awk 'END { print $2 }'",
            "8192",
            id="shm-size",
        ),
        pytest.param(
            ("--tmpfs", "/t:size=1m,mode=700"),
            "stat -c %a /t; df -k /t | awk 'END { print $2 }'; echo x > /t/x && cat /t/x",
            "700\n1024\nx",
            id="tmpfs",
        ),
        pytest.param(
            ("--read-only",),
            "touch /x 2>&1; touch /dev/shm/x && echo shm",
            "touch: /x: Read-only file system\nshm",
            id="read-only",
        ),
        pytest.param(
            ("--read-only", "--tmpfs", "/tmp"), "touch /tmp/x && echo ok", "ok", id="read-only-tmp"
        ),
        pytest.param(
            ("--security-opt", "no-new-privileges"),
            FIELD.format("NoNewPrivs"),
            "1",
            id="no-new-privileges",
        ),
        pytest.param(("--entrypoint", "/bin/echo"), None, "-c arg", id="entrypoint"),
        pytest.param(("--oom-score-adj", "321"), "cat /proc/self/oom_score_adj", "321", id="oom"),
        pytest.param(
            ("--sysctl", "net.ipv4.ip_unprivileged_port_start=7"),
            "cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
            "7",
            id="sysctl",
        ),
    ],
)
def test_option(
    docker: Docker, options: tuple[str, ...], script: str | None, expected: str
) -> None:
    """An option has the effect that docker's manual gives it."""
    command = ("sh", "-c", script) if script is not None else ("-c", "arg")
    assert docker.run(*options, IMAGE, *command).output == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param((), DOCKER_CAPABILITIES, id="default"),
        pytest.param(("--cap-add", "SYS_TIME"), DOCKER_CAPABILITIES | CAP_SYS_TIME, id="add"),
        pytest.param(("--cap-drop", "NET_RAW"), DOCKER_CAPABILITIES & ~CAP_NET_RAW, id="drop"),
        pytest.param(("--cap-drop", "ALL"), 0, id="drop-all"),
        pytest.param(("--cap-drop", "ALL", "--cap-add", "CHOWN"), CAP_CHOWN, id="only"),
    ],
)
def test_capabilities(docker: Docker, options: tuple[str, ...], expected: int) -> None:
    """Effective, permitted and bounding set are docker's, with what was added and dropped."""
    script = "grep -E 'Cap(Eff|Prm|Bnd)' /proc/self/status | cut -f2"
    sets = docker.run(*options, IMAGE, "sh", "-c", script).output.split()
    assert [int(value, 16) for value in sets] == [expected] * 3


def test_capabilities_of_other_user(docker: Docker) -> None:
    """Who is not root has no effective capability, but the bounding set."""
    script = "grep -E 'Cap(Eff|Bnd)' /proc/self/status | cut -f2"
    effective, bounding = docker.run("-u", "app", IMAGE, "sh", "-c", script).output.split()
    assert (int(effective, 16), int(bounding, 16)) == (0, DOCKER_CAPABILITIES)


def test_privileged(docker: Docker, all_capabilities: int) -> None:
    """``--privileged`` gives every capability that dockerd knows and a writable /proc/sys."""
    script = "grep CapEff /proc/self/status | cut -f2; echo 1 > /proc/sys/net/ipv4/ip_forward"
    effective = docker.run("--privileged", IMAGE, "sh", "-c", script).output
    assert int(effective, 16) == all_capabilities


def test_privileged_has_what_docker_names(docker: Docker, all_capabilities: int) -> None:
    """What the tests take for dockerd's list of all capabilities is what its config.json has."""
    name = docker.start("--privileged", IMAGE, "sleep", "1000")
    named = docker.config_json(name)["process"]["capabilities"]
    assert mask(named["effective"]) == mask(named["bounding"]) == (all_capabilities, [])


def test_dropped_capability_is_missed(docker: Docker) -> None:
    """Without CAP_CHOWN, root cannot give files away."""
    result = docker.run("--cap-drop", "CHOWN", IMAGE, "chown", "12", "/tmp", code=1)
    assert "Operation not permitted" in result.stderr


def test_init(docker: Docker) -> None:
    """``--init`` puts docker-init before the program; it reaps what the program orphans."""
    orphan = "(usleep 50000 &); usleep 200000"
    script = f"cat /proc/1/comm; {orphan}; ps -o stat | grep -c Z || true"
    output = docker.run("--init", IMAGE, "sh", "-c", script).output
    assert output == "docker-init\n0"


def test_masked_paths(docker: Docker) -> None:
    """What docker masks is empty, what it write-protects cannot be written."""
    script = "cat /proc/keys /proc/timer_list; ls /proc/acpi; echo 1 > /proc/sys/vm/swappiness"
    result = docker.run(IMAGE, "sh", "-c", script, code=None)
    assert result.output == ""
    assert "Read-only file system" in result.stderr


def test_rm_leaves_nothing(docker: Docker) -> None:
    """``--rm`` removes the container, its root and its anonymous volumes."""
    volumes = docker("volume", "ls", "-q").output
    docker.run("-v", "/anonymous", IMAGE, "true")
    assert docker("ps", "-aq", "--filter", f"name={docker.last}").output == ""
    assert docker("volume", "ls", "-q").output == volumes


def test_detached_prints_id(docker: Docker) -> None:
    """``-d`` prints the id and returns while the program runs."""
    result = docker(*docker.run_args("-d", IMAGE, "sleep", "1000"))
    assert docker.inspect(docker.last)["Id"] == result.output
    assert docker.state(docker.last)["Running"] is True


def test_devices(docker: Docker) -> None:
    """The devices that every container has work."""
    script = (
        "head -c 3 /dev/zero | od -An -tx1; head -c 8 /dev/urandom | wc -c; echo x > /dev/null;"
        "echo x > /dev/full; ls -l /dev/stdout | awk '{ print $NF }'; [ -c /dev/ptmx ] && echo ptmx"
    )
    result = docker.run(IMAGE, "sh", "-c", script)
    assert result.output.split() == ["00", "00", "00", "8", "/proc/self/fd/1", "ptmx"]
    assert "No space left" in result.stderr
