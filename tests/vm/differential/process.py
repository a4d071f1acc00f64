"""Cases of the ``process`` section: who and where the program is, and what it may."""

from __future__ import annotations

from vm.bundles import Bundle

from .cases import add_case, case, more, null_input, on_terminal, with_input


@case()
def default(bundle: Bundle) -> None:
    pass


@case()
def arguments(bundle: Bundle) -> None:
    more(bundle, 'for each in "$@"; do echo "<$each>"; done')
    bundle.args("sh", "/probe", "a b", "", "ü$HOME", "'\"\\", "two\nlines", "-x")


@case()
def environment(bundle: Bundle) -> None:
    bundle.process["env"] += ["A=", "B=x=y", "C=zwei Wörter", "D='\"\\$A", "E=two\nlines", "A=2"]


@case()
def no_environment(bundle: Bundle) -> None:
    del bundle.process["env"]
    bundle.args("/bin/sh", "/probe")


@case()
def home_of_a_user(bundle: Bundle) -> None:
    bundle.process["user"] = {"uid": 1, "gid": 1}


@case()
def home_of_nobody_known(bundle: Bundle) -> None:
    bundle.process["user"] = {"uid": 4242, "gid": 4243}


@case()
def home_without_a_passwd_file(bundle: Bundle) -> None:
    (bundle.rootfs / "etc/passwd").unlink()


@case()
def home_that_is_given(bundle: Bundle) -> None:
    bundle.process["env"].append("HOME=/somewhere")


@case()
def home_that_is_empty(bundle: Bundle) -> None:
    bundle.process["env"].append("HOME=")


@case()
def directory_that_is_made(bundle: Bundle) -> None:
    bundle.process["cwd"] = "/new/folder"
    more(bundle, "stat -c '%a %u:%g' /new /new/folder")


@case()
def directory_of_another_user(bundle: Bundle) -> None:
    (bundle.rootfs / "closed").mkdir(mode=0o700)
    bundle.process["cwd"] = "/closed"
    bundle.process["user"] = {"uid": 1000, "gid": 1000}


@case()
def directory_that_is_a_file(bundle: Bundle) -> None:
    bundle.process["cwd"] = "/etc/passwd"


@case()
def directory_that_is_a_link(bundle: Bundle) -> None:
    (bundle.rootfs / "link").symlink_to("/usr/bin")
    bundle.process["cwd"] = "/link/../bin/."


@case()
def directory_that_is_on_a_mount(bundle: Bundle) -> None:
    bundle.mount("/scratch", "tmpfs", "tmpfs", "size=1m").process["cwd"] = "/scratch/below"


@case()
def user_and_groups(bundle: Bundle) -> None:
    groups = [5, 2000, 2000, 1001, 2**31 - 1]
    bundle.process["user"] = {"uid": 1000, "gid": 1001, "additionalGids": groups}


@case()
def group_beyond_31_bits(bundle: Bundle) -> None:
    bundle.process["user"] = {"uid": 1000, "gid": 1001, "additionalGids": [2**32 - 2]}


@case()
def root_with_groups(bundle: Bundle) -> None:
    bundle.process["user"] = {"uid": 0, "gid": 0, "additionalGids": [10, 0, 9]}


@case()
def largest_ids(bundle: Bundle) -> None:
    bundle.process["user"] = {"uid": 2**31 - 1, "gid": 2**31 - 1}


def _umask(bundle: Bundle, mask: int) -> None:
    bundle.process["user"]["umask"] = mask


for _mask in (0, 0o027, 0o777):
    add_case(f"umask-{_mask:03o}", _umask, _mask)

_ALL = ["bounding", "effective", "inheritable", "permitted", "ambient"]
_SETS: dict[str, dict[str, list[str]]] = {
    "none": {},
    "bounding": {"bounding": ["CAP_KILL", "CAP_CHOWN"]},
    "permitted": {"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"]},
    "inheritable": {name: ["CAP_CHOWN"] for name in ("bounding", "permitted", "inheritable")},
    "ambient": {name: ["CAP_NET_BIND_SERVICE", "CAP_KILL"] for name in _ALL},
    "differing": {
        "bounding": ["CAP_KILL", "CAP_CHOWN", "CAP_SETUID"],
        "effective": ["CAP_KILL"],
        "inheritable": ["CAP_CHOWN"],
        "permitted": ["CAP_KILL", "CAP_CHOWN"],
        "ambient": ["CAP_CHOWN"],
    },
}


def _capabilities(bundle: Bundle, sets: dict[str, list[str]], uid: int) -> None:
    bundle.process["capabilities"] = sets
    bundle.process["user"] = {"uid": uid, "gid": uid}
    bundle.process["noNewPrivileges"] = False


for _name, _sets in _SETS.items():
    for _who, _uid in (("root", 0), ("user", 1000)):
        add_case(
            f"capabilities-{_name}-{_who}",
            _capabilities,
            _sets,
            _uid,
        )


@case()
def no_capabilities_section(bundle: Bundle) -> None:
    del bundle.process["capabilities"]


@case()
def new_privileges(bundle: Bundle) -> None:
    bundle.process["noNewPrivileges"] = False


@case()
def oom_score(bundle: Bundle) -> None:
    bundle.process["oomScoreAdj"] = 333


@case(on_terminal)
def terminal(bundle: Bundle) -> None:
    bundle.process["terminal"] = True


@case(on_terminal)
def terminal_of_a_user(bundle: Bundle) -> None:
    bundle.process["terminal"] = True
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    more(bundle, "echo written >/dev/tty; ls -ln /proc/$$/fd/0 >/dev/null && echo listed")


@case(null_input)
def input_from_null(bundle: Bundle) -> None:
    more(bundle, "wc -c")


@case(with_input(b"line\n" * 30000 + b"end"))
def input_from_a_pipe(bundle: Bundle) -> None:
    more(bundle, "md5sum; wc -c")


@case(with_input(b"not read\n" * 30000))
def input_that_is_not_read(bundle: Bundle) -> None:
    more(bundle, "exec <&-; echo closed")


def _exit(bundle: Bundle, code: int) -> None:
    bundle.process["env"].append(f"CODE={code}")


for _code in (1, 126, 255):
    add_case(f"exit-{_code}", _exit, _code)


@case()
def child_killed_by_a_signal(bundle: Bundle) -> None:
    more(bundle, "sh -c 'kill -SEGV $$'; echo $?; sh -c 'kill -9 $$'; echo $?; kill -9 $$")


@case()
def orphan_outlives_the_program(bundle: Bundle) -> None:
    more(bundle, "(sleep 100 >/dev/null 2>&1 </dev/null &); echo left; exit 5")
