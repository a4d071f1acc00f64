"""Users of an image: libcontainer's rules, and a root that no link leads out of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloche.base.errors import ConfigError, NotFoundError
from cloche.image.accounts import (
    TABLE_LIMIT,
    parse_group,
    parse_passwd,
    read_accounts,
    read_table,
    resolve_user,
)
from cloche.image.model import Accounts

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
# comment:x:7:7
broken line
app:x:500:501::/srv:/bin/sh
1234:x:77:78::/:
minus:x:-1:0::/:
"""
GROUP = "root:x:0:\nstaff:x:50:app,root\naudio:x:29:app\nshort:x:60\nbad:x:y:app\n77:x:90:\n"
ACCOUNTS = Accounts(parse_passwd(PASSWD), parse_group(GROUP))


@pytest.mark.parametrize(
    ("text", "uid", "gid", "groups"),
    [
        ("", 0, 0, (0, 50)),
        ("root", 0, 0, (0, 50)),
        ("app", 500, 501, (501, 50, 29)),
        ("500", 500, 501, (501, 50, 29)),  # a number of passwd is that user
        ("4242", 4242, 0, (0,)),
        ("app:staff", 500, 50, (50,)),
        ("app:60", 500, 60, (60,)),
        ("4242:4343", 4242, 4343, (4343,)),
        (":staff", 0, 50, (50,)),
        ("1234", 77, 78, (78,)),  # a name made of digits wins over the number
        ("0:77", 0, 90, (90,)),
    ],
)
def test_users_resolve_as_in_docker(text: str, uid: int, gid: int, groups: tuple[int, ...]) -> None:
    assert resolve_user(text, ACCOUNTS) == (uid, gid, groups)


@pytest.mark.parametrize("text", ["ghost", "app:ghost", "-1", "0x10", "minus", "app:bad"])
def test_unknown_names_are_not_found(text: str) -> None:
    with pytest.raises(NotFoundError, match="not in the image's /etc/"):
        resolve_user(text, ACCOUNTS)


@pytest.mark.parametrize("text", ["2147483648", "0:2147483648", "9999999999"])
def test_ids_out_of_range(text: str) -> None:
    with pytest.raises(ConfigError, match="ids go from 0 to 2147483647"):
        resolve_user(text, ACCOUNTS)


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    (tmp_path / "outside").write_text("outside:x:1:1::/:\n")
    (tmp_path / "rootfs/etc").mkdir(parents=True)
    return tmp_path / "rootfs"


def test_links_are_followed_inside_the_root_only(rootfs: Path, tmp_path: Path) -> None:
    (rootfs / "usr/lib").mkdir(parents=True)
    (rootfs / "usr/lib/passwd").write_text(PASSWD)
    (rootfs / "etc/passwd").symlink_to("/usr/lib/passwd")
    (rootfs / "etc/group").symlink_to("../../../../outside")
    accounts = read_accounts(rootfs)
    assert [user.name for user in accounts.users] == ["root", "app", "1234"]
    assert accounts.groups == ()


def test_absolute_link_to_a_host_file_reads_nothing(rootfs: Path, tmp_path: Path) -> None:
    (rootfs / "etc/passwd").symlink_to(tmp_path / "outside")
    assert read_table(rootfs, "etc/passwd") == ""


def test_a_linked_folder_does_not_lead_out(rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("outside:x:1:1::/:\n")
    (rootfs / "etc").rmdir()
    (rootfs / "etc").symlink_to(tmp_path)
    assert read_accounts(rootfs) == Accounts()


def test_loops_fifos_and_folders_read_as_empty(rootfs: Path) -> None:
    (rootfs / "etc/passwd").symlink_to("passwd")
    os.mkfifo(rootfs / "etc/group")
    assert read_accounts(rootfs) == Accounts()
    (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/passwd").mkdir()
    assert read_table(rootfs, "etc/passwd") == ""


def test_a_huge_table_is_read_in_part_only(rootfs: Path) -> None:
    (rootfs / "etc/passwd").write_bytes(b"a:x:1:1::/:\n" * (TABLE_LIMIT // 10))
    assert len(read_table(rootfs, "etc/passwd")) == TABLE_LIMIT


def test_text_that_is_not_utf8_is_no_obstacle(rootfs: Path) -> None:
    (rootfs / "etc/passwd").write_bytes(b"\xff\xfe:x:1:2::/:\nroot:x:0:0:::\n")
    assert [user.uid for user in read_accounts(rootfs).users] == [1, 0]
