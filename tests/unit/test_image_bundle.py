"""config.json of `cloche do`: what Docker would write, from image and flags."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.base.errors import ClocheError, ConfigError, NotFoundError
from cloche.image.bundle import (
    DoOptions,
    arguments,
    bundle_config,
    parse_cpus,
    parse_memory,
    parse_size,
    parse_volume,
)
from cloche.image.model import Accounts, Group, Image, ImageConfig, User
from cloche.model.oci import load_config

ACCOUNTS = Accounts(
    (User("root", 0, 0), User("app", 500, 501)),
    (Group("root", 0, ()), Group("staff", 50, ("app",)), Group("app", 501, ())),
)


def image(**config: str | tuple[str, ...]) -> Image:
    fields = cast(dict[str, Any], config)
    digest = "sha256:" + "0" * 64
    return Image(digest, Path("/s/image.erofs"), None, ImageConfig(**fields), "x", ACCOUNTS)


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "options", "expected"),
    [
        ((), ("sh",), DoOptions(), ["sh"]),
        ((), ("sh",), DoOptions(command=("ls", "-l")), ["ls", "-l"]),
        (("e", "f"), ("c",), DoOptions(), ["e", "f", "c"]),
        (("e",), ("c",), DoOptions(command=("d",)), ["e", "d"]),
        (("e",), ("c",), DoOptions(entrypoint=("n",)), ["n"]),
        (("e",), ("c",), DoOptions(entrypoint=("n",), command=("d",)), ["n", "d"]),
        (("e",), ("c",), DoOptions(entrypoint=("",), command=("d",)), ["d"]),
    ],
)
def test_arguments_follow_dockers_rules(
    entrypoint: tuple[str, ...], cmd: tuple[str, ...], options: DoOptions, expected: list[str]
) -> None:
    assert arguments(image(entrypoint=entrypoint, cmd=cmd), options) == expected


@pytest.mark.parametrize("options", [DoOptions(), DoOptions(entrypoint=("",))])
def test_no_command_at_all_is_an_error_with_a_hint(options: DoOptions) -> None:
    with pytest.raises(ConfigError, match="no command given") as caught:
        arguments(image(), options)
    assert "cloche do x sh" in caught.value.hint


def test_config_passes_cloches_own_parser(tmp_path: Path) -> None:
    options = DoOptions(
        ("id",), ("A=1",), "/w", "app", (f"{tmp_path}:/data:ro",), "512m", "1.5", "box", True
    )
    path = tmp_path / "config.json"
    path.write_text(json.dumps(bundle_config(image(stop_signal="SIGINT"), options)))
    config = load_config(str(path))
    assert config.root.path == "/s/image.erofs"
    assert config.hostname == "box"
    assert config.process.terminal
    assert config.process.cwd == "/w"
    assert config.process.user.uid == 500
    assert config.process.user.additional_gids == (501, 50)
    assert config.linux.resources is not None
    assert config.linux.resources.memory is not None
    assert config.linux.resources.memory.limit == 512 << 20
    assert config.annotations == {
        "cloche.network": "user",
        "org.opencontainers.image.stopSignal": "SIGINT",
    }


def test_environment_flags_win_over_image_wins_over_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FROM_HOST", "yes")
    monkeypatch.delenv("NOT_ON_HOST", raising=False)
    options = DoOptions(
        ("x",), ("B=flag=2", "FROM_HOST", "NOT_ON_HOST", "EMPTY="), hostname="box", tty=True
    )
    wanted = image(env=("PATH=/image", "A=image", "B=image", "NOT_ON_HOST=image"))
    assert bundle_config(wanted, options)["process"]["env"] == [
        "PATH=/image",
        "HOSTNAME=box",
        "TERM=xterm",
        "A=image",
        "B=flag=2",
        "FROM_HOST=yes",
        "EMPTY=",
    ]


def test_root_has_dockers_capabilities_others_only_the_bounding_set() -> None:
    as_root = bundle_config(image(), DoOptions(("x",)))["process"]["capabilities"]
    as_user = bundle_config(image(user="app"), DoOptions(("x",)))["process"]["capabilities"]
    assert set(as_root) == {"bounding", "effective", "permitted"}
    assert len(as_root["effective"]) == 14
    assert as_user == {"bounding": as_root["bounding"]}


@pytest.mark.parametrize(
    ("given_dir", "image_dir", "expected"),
    [("", "", "/"), ("", "app", "/app"), ("", "/a//b/", "/a/b"), ("//w", "/a", "/w")],
)
def test_working_dir(given_dir: str, image_dir: str, expected: str) -> None:
    config = bundle_config(image(working_dir=image_dir), DoOptions(("x",), workdir=given_dir))
    assert config["process"]["cwd"] == expected


def test_binds_come_outer_first_and_replace_a_default(tmp_path: Path) -> None:
    volumes = (f"{tmp_path}:/a/b/c", f"{tmp_path}:/a", f"{tmp_path}:/dev/shm:ro")
    mounts = bundle_config(image(), DoOptions(("x",), volumes=volumes))["mounts"]
    places = [mount["destination"] for mount in mounts]
    assert places.index("/a") < places.index("/a/b/c")
    assert places.index("/dev") < places.index("/dev/shm")
    assert places.count("/dev/shm") == 1
    [shm] = [mount for mount in mounts if mount["destination"] == "/dev/shm"]
    assert (shm["type"], shm["options"]) == ("bind", ["rbind", "ro", "rprivate"])


def test_relative_volume_source_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_volume("data:/x//y/")["source"] == str(tmp_path / "data")
    assert parse_volume("./data:/x//y/")["destination"] == "/x/y"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("/", "not SRC:DST"),
        (":/data", "not SRC:DST"),
        ("/:/data:rw:x", "not SRC:DST"),
        ("/:/data:maybe", "unknown mode 'maybe'"),
        ("/:data", "not an absolute path"),
        ("/tmp:/", "not an absolute path below /"),
        ("/does/not/exist:/data", "/does/not/exist does not exist"),
    ],
)
def test_bad_volumes_are_refused_by_flag(text: str, says: str) -> None:
    with pytest.raises(ClocheError, match=says) as caught:
        parse_volume(text)
    assert caught.value.message.startswith(f"--volume {text}")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (DoOptions(("x",), network="host"), "--network host"),
        (DoOptions(("x",), workdir="w"), "--workdir w"),
        (DoOptions(("x",), hostname="a b"), "--hostname 'a b'"),
        (DoOptions(("x",), hostname="a" * 64), "--hostname"),
        (DoOptions(("x",), env=("=v",)), "--env '=v'"),
        (DoOptions(("x",), user="nobody:nowhere"), "--user: user 'nobody'"),
        (DoOptions(("x",), user="app:nowhere"), "--user: group 'nowhere'"),
        (DoOptions(("x",), volumes=("/:/a", "/:/a/")), "/a is named twice"),
        (DoOptions(("x",), memory="5m"), "--memory 5m: the least is 6m"),
        (DoOptions(("x",), memory="much"), "--memory 'much': not a size"),
        (DoOptions(("x",), cpus="nan"), "--cpus 'nan'"),
        (DoOptions(("x",), cpus="0"), "--cpus '0'"),
    ],
)
def test_bad_flags_are_named(options: DoOptions, says: str) -> None:
    with pytest.raises(ClocheError, match=says) as caught:
        bundle_config(image(), options)
    assert caught.value.hint


def test_an_images_own_bad_user_names_the_image() -> None:
    with pytest.raises(NotFoundError, match=r"image x: user 'ghost'"):
        bundle_config(image(user="ghost"), DoOptions(("x",)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1b", 1),
        ("10k", 10 << 10),
        ("512m", 512 << 20),
        ("512M", 512 << 20),
        ("2g", 2 << 30),
        ("1.5g", 3 << 29),
        ("64MiB", 64 << 20),
        ("64 mb", 64 << 20),
        ("1t", 1 << 40),
    ],
)
def test_sizes_as_docker_takes_them(text: str, expected: int) -> None:
    assert parse_size("--memory", text) == expected


@pytest.mark.parametrize("text", ["", "m", "-1m", "1e3", "1,5g", "12x", "1 2", "٣m", "0x10"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="--memory"):
        parse_memory("--memory", text)


@given(st.text(max_size=20))
def test_any_text_is_a_size_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert parse_size("--x", text) >= 0


@given(st.text(max_size=20) | st.floats().map(str))
def test_any_text_is_a_cpu_count_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert 0.01 <= parse_cpus("--cpus", text) <= 4096
