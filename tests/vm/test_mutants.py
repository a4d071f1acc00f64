"""Configs that hypothesis makes, run in real VMs: they do what they say, or say why they do not."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from cloche.base.errors import ConfigError
from cloche.model.capabilities import CAPABILITIES, mask
from unit.mutations import MUTATIONS, Path_, mutated
from unit.oci_data import compiled

from .bundles import Bundle
from .differential.cases import new_bundle
from .differential.facts import Facts, facts_of
from .runtime import Runtime

# The same examples in every run, and no search for smaller ones: each is a VM.
IN_VMS = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def runtime(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """The cloche command; fails afterwards if anything is left of what it made."""
    runtime = Runtime(program, tmp_path_factory.mktemp("mutants") / "cloche", {})
    yield runtime
    runtime.clean_up()


@pytest.fixture(scope="module")
def template(busybox_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that each example gives a config of its own."""
    bundle = new_bundle(tmp_path_factory.mktemp("mutant") / "bundle", busybox_root)
    (bundle.path / "data").mkdir()
    return bundle


def harmless(config: dict[str, Any]) -> dict[str, Any]:
    """*config* without what would reach out to this machine's own files, programs and disks."""
    config["root"] = {"path": "rootfs"}
    config.pop("hooks", None)
    config.pop("vm", None)
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        config["mounts"] = [each for each in config["mounts"] if _is_harmless(each)]
        config["linux"]["devices"] = [
            each for each in config["linux"]["devices"] if each.get("type") != "b"
        ]
    with contextlib.suppress(KeyError, TypeError):
        config["process"]["terminal"] = False
    return config


def _is_harmless(mount: dict[str, Any]) -> bool:
    source = mount.get("source")
    return not (isinstance(source, str) and source.startswith(("/", "."))) and source != ""


@settings(IN_VMS, max_examples=40)
@given(mutations=MUTATIONS)
def test_an_accepted_mutant_runs_or_says_why_not(
    runtime: Runtime, template: Bundle, mutations: list[tuple[Path_, object]]
) -> None:
    config = harmless(mutated(mutations))
    with contextlib.suppress(KeyError, TypeError):
        config["process"]["args"] = ["true"]
        config["process"]["user"]["uid"] = 0
    try:
        compiled(config, template.path)
    except ConfigError:
        assume(False)
    runtime.log.unlink(missing_ok=True)
    template.write(json.dumps(config))
    result = runtime("run", "--bundle", template.path, runtime.new_id(), code=None)
    errors = runtime.messages("error")
    assert "Traceback" not in result.stderr
    if result.code:
        assert len(errors) == 1, result
        assert errors[0].startswith(("run failed: ", f"{template.path}/config.json: $")), result
        assert "\n" not in errors[0].partition("; console: ")[0]
    else:
        assert errors == [], result
    assert runtime.leftovers() == []


NAMES = st.text("abcdefghij0123456789-", min_size=1, max_size=63).filter(
    lambda name: not name.startswith("-")
)
VALUES = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\n\r", exclude_categories=["Cs"])
)
IDS = st.sampled_from([0, 1, 1000, 65534, 2**31 - 1])
WISHES = st.fixed_dictionaries(
    {
        "uid": IDS,
        "gid": IDS,
        "groups": st.lists(IDS, unique=True, max_size=4),
        "umask": st.integers(0, 0o777),
        "value": VALUES,
        "hostname": NAMES,
        "folder": NAMES,
        "capabilities": st.sets(st.sampled_from(list(CAPABILITIES))),
        "no_new_privileges": st.booleans(),
        "files": st.tuples(st.integers(64, 2000), st.integers(2000, 100_000)),
        "oom": st.integers(-1000, 1000),
        "size": st.integers(1, 4000).map(lambda pages: pages * 4),
        "mode": st.integers(0, 0o1777),
        "flags": st.sets(st.sampled_from(["nosuid", "nodev", "noexec", "ro"])),
        "backlog": st.integers(1, 60_000),
        "memory": st.integers(8000, 60_000).map(lambda pages: pages << 12),
        "processes": st.integers(50, 5000),
        "read_only": st.booleans(),
    }
)


def granted(bundle: Bundle, wish: dict[str, Any]) -> None:
    """Ask for all of *wish* in the bundle's config."""
    soft, hard = wish["files"]
    names = sorted(wish["capabilities"])
    user = {"uid": wish["uid"], "gid": wish["gid"], "umask": wish["umask"]}
    bundle.process.update(
        user={**user, "additionalGids": wish["groups"]},
        env=["PATH=/bin:/usr/bin", f"VALUE={wish['value']}"],
        cwd=f"/tmp/{wish['folder']}",
        capabilities=dict.fromkeys(("bounding", "effective", "permitted"), names),
        noNewPrivileges=wish["no_new_privileges"],
        rlimits=[{"type": "RLIMIT_NOFILE", "soft": soft, "hard": hard}],
        oomScoreAdj=wish["oom"],
    )
    options = [*sorted(wish["flags"]), f"size={wish['size']}k", f"mode={wish['mode']:o}"]
    bundle.without_mount("/scratch").mount("/scratch", "tmpfs", "tmpfs", *options)
    bundle.config["hostname"] = wish["hostname"]
    bundle.config["root"]["readonly"] = wish["read_only"]
    bundle.linux["sysctl"] = {"net.core.somaxconn": str(wish["backlog"])}
    bundle.linux["resources"] = {
        "memory": {"limit": wish["memory"]},
        "pids": {"limit": wish["processes"]},
    }


def expected(wish: dict[str, Any]) -> Facts:
    """What the probe is to find."""
    capabilities = f"{mask(wish['capabilities'])[0]:016x}"
    soft, hard = wish["files"]
    flags = ["ro" if "ro" in wish["flags"] else "rw"]
    flags += [name for name in ("nosuid", "nodev", "noexec") if name in wish["flags"]]
    return {
        "status Uid": " ".join([str(wish["uid"])] * 4),
        "status Gid": " ".join([str(wish["gid"])] * 4),
        "status Groups": " ".join(map(str, sorted(wish["groups"]))),
        "status Umask": f"{wish['umask']:04o}",
        "status CapBnd": capabilities,
        "status CapEff": capabilities if wish["uid"] == 0 else f"{0:016x}",
        "status NoNewPrivs": str(int(wish["no_new_privileges"])),
        "limits open files": f"{soft} {hard}",
        "env VALUE": wish["value"],
        "misc hostname": wish["hostname"],
        "misc pwd": f"/tmp/{wish['folder']}",
        "misc oom_score_adj": str(wish["oom"]),
        "mounts flags /scratch": ",".join([*flags, "relatime"]),
        "sysctl net.core.somaxconn": str(wish["backlog"]),
        "cgroup memory limit": str(wish["memory"]),
        "cgroup processes": str(wish["processes"]),
        "mounts flags /": ("ro" if wish["read_only"] else "rw") + ",relatime",
    }


@settings(IN_VMS, max_examples=25)
@given(wish=WISHES)
def test_what_is_asked_for_is_so(runtime: Runtime, template: Bundle, wish: dict[str, Any]) -> None:
    granted(template, wish)
    result = runtime.run(template)
    facts = facts_of(result.output)
    wanted = expected(wish)
    assert {name: facts.get(name) for name in wanted} == wanted
    assert f"size={wish['size']}k" in facts["mounts options /scratch"]
    assert runtime.leftovers() == []
