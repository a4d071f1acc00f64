"""docs/oci.md against the code: every field has a row, and every row tells the truth."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloche.base.errors import ConfigError
from cloche.base.typed import Struct
from cloche.model.oci import Config

from .kinds import fields, inner, is_structure, item_of, pair_of
from .oci_data import compiled, compiled_exec, full

DOCS = Path(__file__).parents[2] / "docs/oci.md"
ROW = re.compile(r"^\| `([^`]+)` \| (\w+) \|", re.MULTILINE)
ROWS = dict(ROW.findall(DOCS.read_text().partition("\n## Differences from runc\n")[0]))
SPECIFIED = [
    line
    for line in (Path(__file__).parents[1] / "vectors/oci-fields.txt").read_text().splitlines()
    if not line.startswith("#")
]

# A value that each refused field is refused for; `[]` in a path takes the first item.
REFUSED: dict[str, object] = {
    "linux.netDevices": {"eth0": {"name": "net0"}},
    "vm.hwConfig.deviceTree": "/tree",
    "vm.hwConfig.dtdevs": ["/soc/uart"],
    "vm.hwConfig.iomems": [{"firstMFN": 1, "nrMFNs": 2}],
    "vm.hwConfig.irqs": [9],
    "linux.seccomp.listenerPath": "/run/listener",
    "linux.seccomp.listenerMetadata": "x",
    "linux.intelRdt": {"closID": "x"},
}


def fields_of(kind: type[Struct], prefix: str = "") -> Iterator[str]:
    """The JSON paths of all leaves below *kind*."""
    for field in fields(kind):
        path, item = f"{prefix}{field.name}", item_of(inner(field.kind))
        pair = pair_of(inner(field.kind))
        nested = item or (pair[1] if pair else inner(field.kind))
        if is_structure(nested):
            yield from fields_of(nested, f"{path}[]." if item else f"{path}.")
        else:
            yield path


def covers(row: str, field: str) -> bool:
    """Whether the row is that field's, or that of a whole section it belongs to."""
    return field == row or field.startswith((f"{row}.", f"{row}[]."))


def places(config: Any, path: str) -> list[tuple[Any, str]]:  # noqa: ANN401
    """The objects in which *path* ends, with its last name; one for each item of a `[]`."""
    found = [config]
    *parents, last = path.removesuffix("[]").split(".")
    for step in parents:
        name = step.removesuffix("[]")
        found = [place[name] for place in found if name in place]
        if step.endswith("[]"):
            found = [item for items in found for item in items]
    return [(place, last) for place in found]


def without(path: str) -> dict[str, Any]:
    """The full config with *path* taken out wherever it is."""
    config = full()
    for place, name in places(config, path):
        place.pop(name, None)
    return config


def outcome(config: dict[str, Any], folder: Path) -> object:
    """What goes to the guest: the container's plan, and that of its process as an exec's."""
    try:
        plans = compiled(config, folder, folder / "seccomp")[0]
        return plans, compiled_exec(config, folder, folder / "seccomp")[0]
    except ConfigError as error:
        return str(error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "data").mkdir()
    return folder


def rows(*kinds: str) -> list[str]:
    return [row for row, kind in ROWS.items() if kind in kinds]


def test_every_field_has_a_row_and_every_row_a_field() -> None:
    fields = list(fields_of(Config))
    assert len(fields) > 120
    assert [field for field in fields if not any(covers(row, field) for row in ROWS)] == []
    strays = [row for row in ROWS if not any(covers(row.removesuffix("[]"), f) for f in fields)]
    assert strays == []
    assert {*ROWS.values()} == {"guest", "host", "both", "refused", "warned", "ignored"}


@pytest.mark.parametrize("field", SPECIFIED)
def test_every_field_of_the_specification_has_a_row(field: str) -> None:
    name = field.replace("{}", "")
    assert any(covers(row.removesuffix("[]"), name) for row in ROWS)


@pytest.mark.parametrize("field", SPECIFIED)
def test_every_field_of_the_specification_is_read(field: str) -> None:
    """It has the place that the specification gives it in the types, or its whole section has."""
    wanted = field.replace("{}", "")
    assert any(wanted == name or covers(name, wanted) for name in fields_of(Config))


def test_nothing_is_read_that_is_not_specified() -> None:
    known = [name.replace("{}", "").removesuffix("[]") for name in SPECIFIED]
    # Of versions before 1.3, and the name that specs-go has for vm.hwConfig.
    others = {"linux.intelRdt.enableCMT", "linux.intelRdt.enableMBM", "vm.hwconfig"}
    read = [name for name in fields_of(Config) if not any(covers(one, name) for one in others)]
    assert [
        name for name in read if not any(covers(name, each) or covers(each, name) for each in known)
    ] == []


@pytest.mark.parametrize("row", rows("host", "both", "guest"))
def test_what_is_carried_out_is_checked(row: str, folder: Path) -> None:
    """What no such field can be is an error that names it."""
    config = copy.deepcopy(full())
    place, name = places(config, row)[0]
    place[name] = 1.5
    message = outcome(config, folder)
    assert isinstance(message, str)
    assert f"$.{row.replace('[]', '[0]').removesuffix('[0]')}" in message


@pytest.mark.parametrize("row", rows("guest", "both"))
def test_what_the_guest_carries_out_is_in_the_plan(row: str, folder: Path) -> None:
    assert places(full(), row), "not in the full config"
    assert outcome(without(row), folder) != outcome(full(), folder)


@pytest.mark.parametrize("row", rows("warned"))
def test_what_is_warned_about_is_named(row: str, folder: Path) -> None:
    before = compiled(full(), folder, folder / "seccomp")
    after = compiled(without(row), folder, folder / "seccomp")
    gone = [warning for warning in before[1] if warning not in after[1]]
    assert [warning.partition(":")[0] for warning in gone] == [f"$.{row}"]
    assert before[0] == after[0]


def test_every_warning_of_the_full_config_has_a_row(folder: Path) -> None:
    warnings = compiled(full(), folder, folder / "seccomp")[1]
    assert sorted(warning.partition(":")[0] for warning in warnings) == sorted(
        f"$.{row}" for row in rows("warned")
    )


@pytest.mark.parametrize("row", rows("refused"))
def test_what_is_refused_is_named(row: str, folder: Path) -> None:
    config = copy.deepcopy(full())
    place, name = places(config, row)[0]
    place[name] = REFUSED[row]
    message = outcome(config, folder)
    assert isinstance(message, str)
    assert f"$.{row.replace('[]', '[0]')}" in message


@pytest.mark.parametrize("row", rows("ignored"))
def test_what_is_ignored_is_taken_and_changes_nothing(row: str, folder: Path) -> None:
    assert any(name in place for place, name in places(full(), row)), "not in the full config"
    assert outcome(without(row), folder) == outcome(full(), folder)
