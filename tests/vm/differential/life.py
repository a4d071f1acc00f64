"""Cases of a container's life: signals, `exec`, hooks, and the verbs in good and bad order."""

from __future__ import annotations

import json
import signal

from vm.bundles import Bundle
from vm.runtime import Runtime

from .cases import add_case, case, execed, foreground, keys, more, signalled, sleep, verbs, verdict
from .facts import Facts

_TRAP = "trap 'echo got; exit 42' {}; echo ready; while :; do sleep 0.1; done"


@case(signalled(signal.SIGTERM, "ready"))
def signal_that_is_caught(bundle: Bundle) -> None:
    bundle.sh(_TRAP.format("TERM"))


@case(signalled(signal.SIGUSR1, "ready"))
def signal_of_the_user(bundle: Bundle) -> None:
    bundle.sh(_TRAP.format("USR1"))


@case(signalled(signal.SIGHUP, "ready"))
def signal_for_a_hangup(bundle: Bundle) -> None:
    bundle.sh(_TRAP.format("HUP"))


@case(signalled(signal.SIGKILL))
def signal_that_kills(bundle: Bundle) -> None:
    bundle.args("sleep", "1000")


for _flags in (
    (), ("--user", "1:2"), ("--user", "1000"), ("--cwd", "/tmp"), ("--cwd", "/missing"),
    ("-e", "A=1", "-e", "B=2 3"), ("--cap", "CAP_KILL"), ("--no-new-privs",),
    ("--additional-gids", "7", "--additional-gids", "8"),
):  # fmt: skip
    add_case(
        "-".join(["exec", *(flag.strip("-/").replace("=", "") for flag in _flags)]).replace(
            " ", ""
        ),
        sleep,
        run=execed(flags=_flags),
    )

add_case("exec-tty", sleep, run=execed(flags=("-t",), terminal=True))
add_case("exec-code", sleep, run=execed("sh", "-c", "exit 77"))
add_case("exec-killed", sleep, run=execed("sh", "-c", "kill -9 $$"))


@case(execed())
def exec_in_a_restricted_container(bundle: Bundle) -> None:
    """What `exec` takes over from the container's own process."""
    rule = {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}
    bundle.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    bundle.process["user"] = {"uid": 1000, "gid": 1000, "additionalGids": [5], "umask": 0o77}
    bundle.config["process"] |= {"oomScoreAdj": 100, "cwd": "/tmp", "noNewPrivileges": False}
    bundle.capabilities("CAP_KILL", ambient=True).args("sleep", "1000")


def _process(runtime: Runtime, bundle: Bundle) -> Facts:
    """``exec --process`` with a file that says everything."""
    process = bundle.process | {
        "args": ["sh", "/probe"],
        "cwd": "/usr",
        "user": {"uid": 3, "gid": 4, "umask": 0o13, "additionalGids": [6]},
        "capabilities": {"bounding": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"]},
        "oomScoreAdj": 200,
        "env": ["PATH=/bin", "X=y"],
    }
    path = bundle.path / "process.json"
    path.write_text(json.dumps(process))
    return execed(flags=("--process", str(path)))(runtime, bundle)


add_case("exec-process-file", sleep, run=_process)

add_case(
    "verbs-in-order",
    sleep,
    run=verbs("state", "start", "pause", "resume", "kill KILL", "wait", "state", "delete", "state"),
)
add_case(
    "verbs-out-of-order",
    sleep,
    run=verbs("resume", "pause", "start", "start", "delete", "kill KILL", "wait", "start", "pause",
          "resume", "kill TERM", "kill --all TERM", "delete"),
)  # fmt: skip
add_case(
    "verbs-on-a-paused-container",
    sleep,
    run=verbs("start", "pause", "pause", "kill TERM", "resume", "resume", "kill KILL", "wait"),
)
add_case("verbs-kill-before-start", sleep, run=verbs("kill KILL", "wait", "delete"))
add_case("verbs-delete-before-start", sleep, run=verbs("delete", "state"))
add_case("verbs-force", sleep, run=verbs("start", "delete --force", "delete --force"))
add_case("state-keys", sleep, run=keys("state", "ID"))
add_case("list-keys", sleep, run=keys("list", "-f", "json"))
add_case("ps-json-keys", sleep, run=keys("ps", "-f", "json", "ID"))


def _hooks(runtime: Runtime, bundle: Bundle) -> Facts:
    """The order in which hooks run, their words, environment, directory and keys of the state."""
    facts = foreground(runtime, bundle)
    log = (bundle.path / "hooks").read_text().replace(str(bundle.path), "BUNDLE")
    return {**facts, "hooks": log}


def _hook(bundle: Bundle, name: str) -> list[dict[str, object]]:
    keys_of = "tr , '\\n' | sed -n 's/^[{ ]*\"\\([a-zA-Z]*\\)\":.*/\\1/p' | sort | tr '\\n' ' '"
    script = f'echo "{name} $0 $1 $X $(pwd) $({keys_of})" >>{bundle.path}/hooks'
    argv = ["sh", "-c", script, "zero", "one"]
    return [{"path": "/bin/sh", "args": argv, "env": ["X=y", "PATH=/bin:/usr/bin"]}]


@case(_hooks)
def hooks(bundle: Bundle) -> None:
    names = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    bundle.config["hooks"] = {name: _hook(bundle, name) for name in names}


@case()
def start_container_hook(bundle: Bundle) -> None:
    script = 'echo "$0 $X $(pwd) $(id -u)" >/hook; tr , "\\n" >/state'
    hook = {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["X=y"]}
    bundle.config["hooks"] = {"startContainer": [hook]}
    bundle.config["annotations"] = {"some.key": "value"}
    more(bundle, "cat /hook; grep -v -e bundle -e Version -e '\"id\"' /state")


def _only_hook(bundle: Bundle, name: str, hook: dict[str, object]) -> None:
    bundle.config["hooks"] = {name: [hook]}


for _name in ("prestart", "createRuntime", "createContainer", "startContainer", "poststart"):
    add_case(
        f"hook-fails-{_name}",
        _only_hook,
        _name,
        {"path": "/bin/sh", "args": ["sh", "-c", "exit 9"]},
        run=verdict,
    )
    add_case(
        f"hook-missing-{_name}",
        _only_hook,
        _name,
        {"path": "/bin/nothing"},
        run=verdict,
    )
