"""A clone of a template shares nothing with its siblings that should be its own."""

from __future__ import annotations

import time

from .bundles import Bundle
from .runtime import Runtime
from .starts import each_start

UUID = "/proc/sys/kernel/random/uuid"


def test_two_clones_draw_different_random_numbers(cloche: Runtime, bundle: Bundle) -> None:
    sources = ("head -c 16 /dev/urandom", "head -c 16 /dev/random", f"cat {UUID}")
    script = "; ".join(f"{source} | od -An -tx1 | tr -d ' \\n'; echo" for source in sources)
    first, second = (cloche.run(bundle.sh(script)).lines for _ in range(2))
    assert len(first) == len(second) == 3
    assert {*first}.isdisjoint(second)


def test_address_space_layout_differs(cloche: Runtime, bundle: Bundle) -> None:
    """Where there are random addresses at all: see test_randomize."""
    path = bundle.sh("grep -E 'stack|vdso' /proc/self/maps").save()
    env = {"CLOCHE_RANDOMIZE": "on", "CLOCHE_FREEZE": "off"}
    first, second = (
        cloche("run", "--bundle", path, cloche.new_id(), env=env).lines for _ in range(2)
    )
    assert len(first) == len(second) == 2
    assert first != second


@each_start
def test_the_clock_is_the_hosts(cloche: Runtime, bundle: Bundle) -> None:
    container = cloche.start(bundle)
    before = time.time()
    inside = float(container.sh("date -u +%s").output)
    assert before - 1 <= inside <= time.time() + 1


def test_the_clock_goes_on_at_the_hosts_pace(cloche: Runtime, bundle: Bundle) -> None:
    uptime = "cut -d' ' -f1 /proc/uptime"
    result = cloche.run(bundle.sh(f"{uptime}; sleep 1.5; {uptime}"))
    start, end = map(float, result.lines)
    assert 1.4 < end - start < 3


def test_names_and_ids_are_the_containers_own(cloche: Runtime, bundle: Bundle) -> None:
    del bundle.config["hostname"]
    spaces = bundle.linux["namespaces"]
    # Without these the guest's own are seen.
    bundle.linux["namespaces"] = [each for each in spaces if each["type"] not in ("uts", "pid")]
    script = "hostname; cat /proc/1/root/run/machine-id"
    bundle.capabilities("CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN")
    ids = []
    for _ in range(2):
        container = cloche.start(bundle.args("sleep", "1000"))
        host_name, machine_id = container.sh(script).lines
        assert host_name == container.id
        assert len(machine_id) == 32
        assert int(machine_id, 16)
        ids.append(machine_id)
    assert ids[0] != ids[1]


def test_a_write_in_one_clone_is_not_seen_in_another(cloche: Runtime, bundle: Bundle) -> None:
    bundle.mount("/scratch", "tmpfs")
    first, second = cloche.start(bundle), cloche.start(bundle)
    first.sh("echo one >/scratch/file")
    assert second.sh("ls /scratch").output == ""


def test_a_template_is_as_good_after_a_hundred_megabytes_of_writes(
    cloche: Runtime, bundle: Bundle
) -> None:
    """Clones map the template's memory: what one of them dirties must stay its own."""
    bundle.mount("/scratch", "tmpfs")
    first = cloche.run(bundle.sh("head -c 100000000 /dev/zero >/scratch/x; echo done"))
    second = cloche.run(bundle.sh("ls /scratch; uname -s; echo fine"))
    assert (first.output, second.lines) == ("done", ["Linux", "fine"])
