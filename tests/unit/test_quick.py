"""msgspec with hardly anything beside it: it does all that cloche wants of it, in any version."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BEFORE = """
import sys
from pathlib import Path
from cloche.base import quick
"""
AFTER = """
quick.import_msgspec()
loaded = {*sys.modules}
from cloche.model.oci import load_config
import msgspec.inspect, uuid, decimal
assert uuid.uuid4().version == 4
assert decimal.Decimal("1.5") * 2 == 3
assert msgspec.json.decode(b"[1]", type=list[int]) == [1]
assert msgspec.inspect.type_info(int) == msgspec.inspect.IntType()
try:
    load_config(sys.argv[1])
except Exception as error:
    assert "$.process.args[0]" in str(error), error
else:
    raise AssertionError
print(*loaded & {"uuid", "decimal", "platform", "textwrap", "typing_extensions"}, sep="\\n")
"""
SPOILED = {
    "as it is": "",
    "a version that takes more": """
quick._UNUSED_BY_MSGSPEC["uuid"] = ()
""",
    "what it would import is there": """
import uuid, decimal
""",
}


@pytest.mark.parametrize("name", SPOILED)
def test_it_is_whole(name: str, tmp_path: Path) -> None:
    config = f"{tmp_path}/config.json"
    with open(config, "w", encoding="ascii") as file:
        file.write('{"ociVersion": "1.0.2", "root": {"path": "r"}, "process": {"args": [7]}}')
    code = f"import sys\nsys.path[:0] = {[path for path in sys.path if path]!r}\n{BEFORE}"
    words = [sys.executable, "-I", "-S", "-c", code + SPOILED[name] + AFTER, config]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if name == "as it is":
        assert done.stdout.split() == []
