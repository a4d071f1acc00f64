"""Hooks: all six kinds, in their order, with the state on stdin, in their namespaces."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from .bundles import Bundle
from .runtime import Runtime
from .starts import each_start

ON_HOST = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
KINDS = (*ON_HOST[:3], "startContainer", *ON_HOST[3:])


@pytest.fixture
def record(folder: Path) -> Path:
    """A folder where hooks leave what they saw."""
    directory = folder / "record"
    directory.mkdir()
    return directory


def hook(script: str, **fields: object) -> dict[str, Any]:
    """A hook that runs a shell script."""
    return {
        "path": "/bin/sh",
        "args": ["sh", "-c", script],
        "env": ["PATH=/usr/bin:/bin"],
        **fields,
    }


def recording(bundle: Bundle, record: Path) -> None:
    """Give *bundle* a hook of every kind that keeps its stdin, and appends its kind to a log."""
    bundle.mount("/record", "bind", record, "bind")
    bundle.config["hooks"] = {
        kind: [hook(f"cat >{place}/{kind}; echo {kind} >>{place}/order")]
        for kind in KINDS
        for place in ["/record" if kind == "startContainer" else record]
    }


@each_start
def test_hooks_run_in_their_order_and_see_the_state(
    cloche: Runtime, bundle: Bundle, record: Path
) -> None:
    bundle.config["annotations"] = {"key": "value"}
    recording(bundle, record)
    container = cloche.create(bundle.sh("echo program >>/record/order"))
    order = record / "order"
    assert order.read_text().split() == [*KINDS[:3]]
    container.start()
    container.wait()
    cloche("delete", container.id)
    lines = order.read_text().split()
    # The program runs beside the poststart hooks.
    assert [line for line in lines if line != "program"] == [*KINDS]
    assert lines.index("program") > lines.index("startContainer")
    statuses = {kind: check_state(record, kind, container.id, bundle) for kind in KINDS}
    assert statuses == {
        "prestart": "creating",
        "createRuntime": "creating",
        "createContainer": "creating",
        "startContainer": "created",
        "poststart": "running",
        "poststop": "stopped",
    }


def check_state(record: Path, kind: str, container_id: str, bundle: Bundle) -> str:
    """Check what a hook had on its stdin; the status."""
    state: dict[str, Any] = json.loads((record / kind).read_text())
    assert state["id"] == container_id
    assert state["bundle"] == str(bundle.path)
    assert state["annotations"] == {"key": "value"}
    assert state["ociVersion"].startswith("1.")
    if kind != "poststop":
        assert state["pid"] > 0
    return str(state["status"])


def test_runc_agrees(runc: Runtime, bundle: Bundle, record: Path) -> None:
    """The same hooks under runc: what the tests above expect is not of cloche's own making."""
    bundle.config["annotations"] = {"key": "value"}
    recording(bundle, record)
    runc.run(bundle.args("true"))
    order = (record / "order").read_text().split()
    assert order[:3] == [*KINDS[:3]]
    # startContainer runs inside, beside the poststart hooks of runc's own process.
    assert sorted(order) == sorted(KINDS)
    state = json.loads((record / "createRuntime").read_text())
    assert state["status"] == "creating"


def test_hooks_of_one_kind_run_one_after_the_other(
    cloche: Runtime, bundle: Bundle, record: Path
) -> None:
    log = record / "log"
    scripts = [f"sleep 0.2; echo 1 >>{log}", f"echo 2 >>{log}", f"echo $VAR >>{log}"]
    hooks = [hook(script) for script in scripts]
    hooks[2]["env"] = ["VAR=3"]
    bundle.config["hooks"] = {"createRuntime": hooks}
    cloche.run(bundle.args("true"))
    assert log.read_text().split() == ["1", "2", "3"]


def test_where_hooks_run(cloche: Runtime, bundle: Bundle, record: Path) -> None:
    tell = f"readlink /proc/self/ns/net /proc/self/ns/mnt >{record}"
    bundle.config["hooks"] = {
        "createRuntime": [hook(f"{tell}/runtime")],
        "createContainer": [hook(f"{tell}/container")],
    }
    container = cloche.create(bundle)
    network = os.readlink(f"/proc/{container.pid}/ns/net")
    here = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "mnt")]
    assert (record / "runtime").read_text().split() == here
    assert (record / "container").read_text().split()[0] == network != here[0]


def test_the_pid_is_the_containers(cloche: Runtime, bundle: Bundle, record: Path) -> None:
    file = record / "state"
    bundle.config["hooks"] = {"createRuntime": [hook(f"cat >{file}")]}
    container = cloche.create(bundle)
    assert json.loads(file.read_text())["pid"] == container.pid


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
def test_a_failing_hook_stops_the_creation(
    cloche: Runtime, bundle: Bundle, record: Path, kind: str
) -> None:
    bundle.config["hooks"] = {
        kind: [hook("echo because >&2; exit 3"), hook(f"touch {record}/second")],
        "poststop": [hook(f"touch {record}/poststop")],
    }
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert f"hooks.{kind}[0] /bin/sh: exit status 3: because" in message
    assert cloche.leftovers() == []
    assert [path.name for path in record.iterdir()] == ["poststop"]


def test_poststop_hooks_run_whatever_the_creation_fails_of(
    cloche: Runtime, bundle: Bundle, record: Path
) -> None:
    recording(bundle, record)
    bundle.linux["sysctl"] = {"net.nothing": "1"}
    cloche.fails("create", "--bundle", bundle.save(), cloche.new_id())
    assert (record / "order").read_text().split() == [*KINDS[:3], "poststop"]
    assert json.loads((record / "poststop").read_text())["status"] == "stopped"


def test_a_failing_start_container_hook_stops_the_start(cloche: Runtime, bundle: Bundle) -> None:
    bundle.config["hooks"] = {"startContainer": [hook("exit 4")]}
    container = cloche.create(bundle.sh("echo ran"))
    message = cloche.fails("start", container.id)
    assert "startContainer" in message
    container.wait()
    assert container.output == ""


def test_a_hook_that_is_missing(cloche: Runtime, bundle: Bundle) -> None:
    bundle.config["hooks"] = {"prestart": [{"path": "/does/not/exist"}]}
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert "hooks.prestart[0] /does/not/exist" in message
    assert "o such file" in message
    assert cloche.leftovers() == []


def test_a_hook_that_takes_too_long_is_killed(
    cloche: Runtime, bundle: Bundle, record: Path
) -> None:
    script = f"echo $$ >{record}/pid; exec sleep 100"
    bundle.config["hooks"] = {"prestart": [hook(script, timeout=1)]}
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert "hooks.prestart[0] /bin/sh: no end after 1" in message
    assert not Path("/proc", (record / "pid").read_text().strip()).exists()
    assert cloche.leftovers() == []


def test_a_start_container_hook_that_takes_too_long(cloche: Runtime, bundle: Bundle) -> None:
    bundle.config["hooks"] = {"startContainer": [hook("sleep 100", timeout=1)]}
    container = cloche.create(bundle)
    assert "startContainer" in cloche.fails("start", container.id)


def test_failing_poststop_hooks_do_not_keep_the_container(
    cloche: Runtime, bundle: Bundle, record: Path
) -> None:
    bundle.config["hooks"] = {"poststop": [hook("exit 1"), hook(f"touch {record}/second")]}
    cloche.run(bundle.args("true"))
    assert cloche.leftovers() == []


def test_a_hook_need_not_read_its_state(cloche: Runtime, bundle: Bundle) -> None:
    bundle.config["annotations"] = {str(number): "x" * 1000 for number in range(100)}
    bundle.config["hooks"] = {"createRuntime": [hook("exec 0<&-; exit 0")]}
    assert cloche.run(bundle.sh("echo ran")).output == "ran"


def test_hooks_may_set_up_the_network(cloche: Runtime, bundle: Bundle) -> None:
    """As engines that have no namespace ready do: an interface is there before the guest asks."""
    script = (
        "pid=$(grep -o '\"pid\": *[0-9]*' | grep -o '[0-9]*'); "
        "nsenter -t $pid -n ip link add eth7 type veth peer name peer7 && "
        "nsenter -t $pid -n ip addr add 10.99.0.2/24 dev eth7 && "
        "nsenter -t $pid -n ip link set eth7 up"
    )
    bundle.config["hooks"] = {"createRuntime": [hook(script)]}
    result = cloche.run(bundle.sh("ip -o -4 addr show; ip route"))
    assert "10.99.0.2/24" in result.output


def test_a_failing_poststart_hook_ends_the_container(cloche: Runtime, bundle: Bundle) -> None:
    bundle.config["hooks"] = {"poststart": [hook("exit 5")]}
    container = cloche.create(bundle)
    assert "hooks.poststart[0] /bin/sh: exit status 5" in cloche.fails("start", container.id)
    container.wait()
    assert container.status == "stopped"
    message = cloche.fails("run", "--bundle", bundle.path, cloche.new_id())
    assert "hooks.poststart[0]" in message


def test_every_poststop_hook_runs_and_failures_are_warnings(
    cloche: Runtime, bundle: Bundle, record: Path
) -> None:
    hooks = [hook("echo sorry >&2; exit 1"), hook("sleep 100", timeout=1)]
    bundle.config["hooks"] = {"poststop": [*hooks, hook(f"touch {record}/third")]}
    cloche.run(bundle.args("true"))
    assert (record / "third").exists()
    told = [each for each in cloche.messages("warning") if "hooks.poststop" in each]
    assert "hooks.poststop[0] /bin/sh: exit status 1: sorry" in told[0]
    assert "hooks.poststop[1] /bin/sh: no end after 1" in told[1]


def test_later_changes_of_the_config_do_not_matter(
    cloche: Runtime, bundle: Bundle, record: Path
) -> None:
    kinds = ("poststart", "poststop")
    bundle.config["hooks"] = {kind: [hook(f"touch {record}/{kind}")] for kind in kinds}
    container = cloche.create(bundle.args("true"))
    bundle.config["hooks"] = {kind: [hook(f"touch {record}/wrong")] for kind in kinds}
    bundle.save()
    container.start()
    container.wait()
    (bundle.path / "config.json").unlink()
    cloche("delete", container.id)
    assert sorted(path.name for path in record.iterdir()) == sorted(kinds)


def test_what_a_hook_is_given_is_as_under_runc(
    cloche: Runtime, runc: Runtime, bundle: Bundle, record: Path
) -> None:
    """Folder, environment, arguments and the keys of the state of those that run on the host.

    runc runs poststart hooks before `start`, with the status that they then have; the pid of its
    createContainer hooks is that inside the container.
    """
    tell = "pwd; env | grep -v -e ^_ -e ^SHLVL -e ^OLDPWD | sort; echo $0 $1; cat"
    kinds = ("prestart", "createRuntime", "poststart", "poststop")

    def told(runtime: Runtime) -> dict[str, list[str]]:
        for kind in kinds:
            each = hook(f"{{ {tell}; }} >{record}/{kind}", env=["A=b c", "PATH=/bin:/usr/bin"])
            each["args"] += ["name", "argument"]
            bundle.config["hooks"] = {**bundle.config.get("hooks", {}), kind: [each]}
        runtime.run(bundle.args("true"))
        found = {}
        for kind in kinds:
            *lines, state = (record / kind).read_text().splitlines()
            found[kind] = [
                *lines,
                *sorted(key for key, value in json.loads(state).items() if value),
            ]
        return found

    ours, theirs = told(cloche), told(runc)
    assert ours["prestart"][0] == str(bundle.path)
    assert ours == theirs


@pytest.mark.parametrize("env", [None, []])
def test_hooks_without_variables_of_their_own(
    cloche: Runtime, runc: Runtime, bundle: Bundle, record: Path, env: list[str] | None
) -> None:
    """They have those of runc's process where they run, its container's ones too; `[]` is none."""
    tell = "env | grep -v -e ^_ -e ^SHLVL -e ^OLDPWD | sort; pwd"
    record.chmod(0o777)
    bundle.mount("/record", "bind", record, "bind")
    bundle.process["user"] = {"uid": 1, "gid": 1}
    bundle.process["env"] = ["A=from the config", "B=1", "PATH=/bin:/usr/bin"]
    places = {kind: "/record" if kind == "startContainer" else str(record) for kind in KINDS}
    bundle.config["hooks"] = {
        kind: [
            {
                "path": "/bin/sh",
                "args": ["sh", "-c", f"PATH=$PATH:/bin:/usr/bin; {{ {tell}; }} >{place}/{kind}"],
                "env": env,
            }
        ]
        for kind, place in places.items()
    }

    def told(runtime: Runtime) -> dict[str, list[str]]:
        variables = {"A": "from the caller", "PATH": "/usr/bin:/bin:/sbin:/usr/sbin"}
        name = runtime.new_id()
        runtime("run", "--bundle", bundle.save(), name, env=variables)
        return {kind: (record / kind).read_text().splitlines() for kind in KINDS}

    bundle.args("true")
    ours, theirs = told(cloche), told(runc)
    assert ours == theirs
    assert ours["createContainer"][-1] == str(bundle.rootfs)
    callers = {kind for kind, lines in ours.items() if "A=from the caller" in lines}
    configs = {kind for kind, lines in ours.items() if "A=from the config" in lines}
    if env is None:
        assert callers == {"prestart", "createRuntime", "poststart", "poststop"}
        assert configs == {"createContainer", "startContainer"}
        assert "HOME=/usr/sbin" in ours["startContainer"]
    else:
        assert not callers | configs


def test_start_container_hooks_run_as_the_program_would(
    cloche: Runtime, runc: Runtime, bundle: Bundle, record: Path
) -> None:
    """As its user, in its folder and namespaces, with its capabilities, not its variables."""
    record.chmod(0o777)
    bundle.mount("/record", "bind", record, "bind")
    bundle.process["user"] = {"uid": 1000, "gid": 1001, "additionalGids": [7]}
    bundle.process["cwd"] = "/var/tmp"
    bundle.config["hostname"] = "inside"
    status = "grep -E '^(CapEff|CapPrm|NoNewPrivs|Groups)' /proc/self/status"
    tell = f"id -u; id -g; pwd; hostname; {status}; umask; env | sort; echo $0 $1; cat >/dev/null"
    each = hook(f"{{ {tell}; }} >/record/seen", env=["PATH=/bin", "A=b"])
    each["args"] += ["name", "argument"]
    bundle.config["hooks"] = {"startContainer": [each]}
    seen = []
    for runtime in (cloche, runc):
        runtime.run(bundle.args("true"))
        seen.append((record / "seen").read_text().split())
        (record / "seen").unlink()
    assert seen[0] == seen[1]
    assert seen[0][:4] == ["1000", "1001", "/var/tmp", "inside"]


@pytest.mark.parametrize(
    "kind", ["createRuntime", "createContainer", "startContainer", "poststart"]
)
def test_hooks_that_fail_have_the_same_consequences_as_under_runc(
    cloche: Runtime, runc: Runtime, bundle: Bundle, record: Path, kind: str
) -> None:
    """The command fails, the program does not go on, and nothing is left of the container."""
    bundle.mount("/record", "bind", record, "bind")
    bundle.config["hooks"] = {
        kind: [hook("exit 3")],
        "poststop": [hook(f"echo poststop >>{record}/order")],
    }
    bundle.sh("sleep 20; echo went on >>/record/order")
    orders = []
    for runtime in (cloche, runc):
        name = runtime.new_id()
        assert runtime("run", "--bundle", bundle.save(), name, code=1).stderr
        runtime("delete", "--force", name)
        order = record / "order"
        orders.append(order.read_text() if order.exists() else "")
        order.unlink(missing_ok=True)
    assert "went on" not in "".join(orders)
    assert orders[0] == "poststop\n"
