"""Cases of programs that cannot be executed, or only so."""

from __future__ import annotations

from vm.bundles import Bundle

from .cases import add_case, case, execed, sleep


def _file(bundle: Bundle, name: str, data: bytes, mode: int) -> None:
    path = bundle.rootfs / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)


for _name, _words in {
    "missing-in-path": ("nothing",),
    "missing-file": ("/nothing",),
    "missing-relative": ("./nothing",),
    "missing-below-a-file": ("/etc/passwd/x",),
    "folder": ("/etc",),
    "folder-relative": ("./etc",),
    "empty-word": ("",),
    "not-executable": ("/etc/passwd",),
    "dot": (".",),
}.items():
    add_case(f"program-{_name}", Bundle.args, *_words)
    add_case(f"exec-{_name}", sleep, run=execed(*_words))


@case()
def program_without_path_variable(bundle: Bundle) -> None:
    bundle.process["env"] = ["A=1"]
    bundle.args("sh", "-c", "echo found")


@case()
def program_with_an_empty_path_variable(bundle: Bundle) -> None:
    bundle.process["env"] = ["PATH="]
    bundle.args("sh", "-c", "echo found")


@case()
def program_in_the_second_folder_of_path(bundle: Bundle) -> None:
    bundle.process["env"] = ["PATH=/nowhere:/opt:/bin"]
    _file(bundle, "opt/tool", b"#!/bin/sh\necho tool $0\n", 0o755)
    bundle.args("tool")


@case()
def program_in_path_is_not_executable(bundle: Bundle) -> None:
    bundle.process["env"] = ["PATH=/opt"]
    _file(bundle, "opt/tool", b"#!/bin/sh\n", 0o644)
    bundle.args("tool")


@case()
def program_relative_to_the_directory(bundle: Bundle) -> None:
    _file(bundle, "opt/tool", b"#!/bin/sh\necho tool $0\n", 0o755)
    bundle.process["cwd"] = "/opt"
    bundle.args("./tool")


@case()
def program_of_another_user(bundle: Bundle) -> None:
    _file(bundle, "tool", b"#!/bin/sh\necho ran\n", 0o700)
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    bundle.args("/tool")


@case()
def program_in_a_closed_folder(bundle: Bundle) -> None:
    _file(bundle, "closed/tool", b"#!/bin/sh\necho ran\n", 0o755)
    (bundle.rootfs / "closed").chmod(0o700)
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    bundle.args("/closed/tool")


@case()
def program_without_interpreter(bundle: Bundle) -> None:
    _file(bundle, "tool", b"#!/bin/nothing\n", 0o755)
    bundle.args("/tool")


@case()
def program_whose_interpreter_is_not_executable(bundle: Bundle) -> None:
    _file(bundle, "tool", b"#!/etc/passwd\n", 0o755)
    bundle.args("/tool")


@case()
def program_for_another_machine(bundle: Bundle) -> None:
    _file(bundle, "tool", b"\x7fELF" + bytes(60), 0o755)
    bundle.args("/tool")


@case()
def program_that_is_text(bundle: Bundle) -> None:
    _file(bundle, "tool", b"just text\n", 0o755)
    bundle.args("/tool")


@case()
def program_that_is_empty(bundle: Bundle) -> None:
    _file(bundle, "tool", b"", 0o755)
    bundle.args("/tool")


@case()
def program_that_is_a_loop_of_links(bundle: Bundle) -> None:
    (bundle.rootfs / "tool").symlink_to("other")
    (bundle.rootfs / "other").symlink_to("tool")
    bundle.args("/tool")


@case()
def program_through_a_link_out_of_the_root(bundle: Bundle) -> None:
    (bundle.rootfs / "tool").symlink_to("../../../../bin/echo")
    bundle.args("/tool", "ran")


@case()
def program_on_a_mount_without_exec(bundle: Bundle) -> None:
    _file(bundle, "data/tool", b"#!/bin/sh\n", 0o755)
    bundle.mount("/mnt", "bind", bundle.rootfs / "data", "bind", "noexec").args("/mnt/tool")


@case()
def program_name_is_kept(bundle: Bundle) -> None:
    (bundle.rootfs / "show").symlink_to("/bin/busybox")
    bundle.args("busybox", "sh", "-c", "tr '\\0' ' ' </proc/1/cmdline; cat /proc/1/comm")
