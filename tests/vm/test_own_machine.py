"""The `vm` section of config.json: QEMU, kernel and size of one container's own choice."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from cloche.guest.guest import current_guest
from cloche.model.config import load_settings

from . import host
from .bundles import Bundle
from .runtime import Runtime

QEMU = "/usr/bin/qemu-system-x86_64"


@pytest.fixture
def kernel(program: Path, folder: Path) -> Path:
    """A kernel image with its modules beside it, as a user may have built one."""
    guest = current_guest(load_settings().data_root)
    assert guest is not None, "run `cloche setup` first"
    kernel = folder / "kernel/vmlinux"
    kernel.parent.mkdir()
    shutil.copyfile(guest.vmlinux, kernel)
    modules = Path(guest.manifest["kernel_directory"], "modules")
    shutil.copytree(modules, kernel.parent / "modules")
    return kernel


def test_processors_and_memory(cloche: Runtime, bundle: Bundle) -> None:
    bundle.config["vm"] = {"hwConfig": {"vcpus": 2, "memory": 200 << 20}}
    result = cloche.run(bundle.sh("nproc; grep MemTotal /proc/meminfo"))
    assert result.lines[0] == "2"
    assert 100 << 10 < int(result.lines[1].split()[1]) < 200 << 10
    # The first start of this size has saved its template; no later one says anything.
    told = cloche.messages("warning")
    assert cloche.run(bundle.sh("nproc")).output == "2"
    assert cloche.messages("warning") == told


def test_a_qemu_of_its_own(cloche: Runtime, bundle: Bundle, folder: Path) -> None:
    program = folder / "qemu-system-of-mine"
    program.symlink_to(QEMU)
    cloche.env["CLOCHE_TEMPLATE"] = "off"
    more = ["-device", "virtio-rng-device"]
    bundle.config["vm"] = {"hypervisor": {"path": str(program), "parameters": more}}
    container = cloche.start(bundle)
    (command,) = [each for _, each in host.processes(cloche.root) if str(program) in each]
    assert command.split()[-2:] == more
    assert container.sh("cat /sys/bus/virtio/devices/*/device").lines.count("0x0004") == 1


def test_parameters_are_no_part_of_a_template(cloche: Runtime, bundle: Bundle) -> None:
    bundle.config["vm"] = {"hypervisor": {"path": QEMU, "parameters": ["-name", "mine"]}}
    assert cloche.run(bundle.sh("echo ran")).output == "ran"
    assert any("$.vm names parameters" in each for each in cloche.messages("warning"))


def test_a_kernel_of_its_own(cloche: Runtime, bundle: Bundle, kernel: Path) -> None:
    guest = current_guest(load_settings().data_root)
    words = ["cloche.test=1", 'b="c d"']
    bundle.config["vm"] = {"kernel": {"path": str(kernel), "parameters": words}}
    result = cloche.run(bundle.sh("cat /proc/cmdline"))
    assert result.output.endswith(" ".join(words))
    now = current_guest(load_settings().data_root)
    assert guest is not None
    assert now is not None
    assert now.key == guest.key


def test_an_initrd_beside_the_agents(
    cloche: Runtime, bundle: Bundle, kernel: Path, folder: Path
) -> None:
    tree = folder / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/mine").write_text("from the initrd\n")
    (tree / "init").write_text("no program\n")
    archive = ["sh", "-c", "find . | cpio --quiet -o -H newc | gzip"]
    initrd = folder / "initrd.gz"
    initrd.write_bytes(subprocess.run(archive, cwd=tree, capture_output=True, check=True).stdout)
    bundle.config["vm"] = {"kernel": {"path": str(kernel), "initrd": str(initrd)}}
    # In the guest's pid namespace the agent's root can be seen.
    spaces = bundle.linux["namespaces"]
    bundle.linux["namespaces"] = [each for each in spaces if each["type"] != "pid"]
    bundle.capabilities("CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE")
    result = cloche.run(bundle.sh("cat /proc/1/root/etc/mine"))
    assert result.output == "from the initrd"


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_root_in_an_image(cloche: Runtime, bundle: Bundle, folder: Path, kind: str) -> None:
    image = folder / f"root.{kind}"
    raw = folder / "root.raw"
    subprocess.run(["mkfs.ext4", "-q", "-d", str(bundle.rootfs), str(raw), "64M"], check=True)
    if kind != "raw":
        subprocess.run(["qemu-img", "convert", "-O", kind, str(raw), str(image)], check=True)
    bundle.config["vm"] = {"image": {"path": str(image), "format": kind}}
    script = "grep ' / ' /proc/mounts | cut -d' ' -f3; echo here >/written"
    assert cloche.run(bundle.sh(script)).output == "ext4"
    assert not (bundle.rootfs / "written").exists()
    assert cloche.run(bundle.sh("cat /written")).output == "here"
    bundle.config["root"]["readonly"] = True
    result = cloche.run(bundle.sh("cat /written; echo more >/written"), code=None)
    assert result.output == "here"
    assert "Read-only file system" in result.stderr


def test_a_root_in_a_read_only_image(cloche: Runtime, bundle: Bundle, folder: Path) -> None:
    image = folder / "root.erofs"
    subprocess.run(["mkfs.erofs", image, bundle.rootfs], check=True, capture_output=True)
    bundle.config["root"]["readonly"] = True
    bundle.config["vm"] = {"image": {"path": str(image), "format": "raw"}}
    result = cloche.run(bundle.sh("grep ' / ' /proc/mounts | cut -d' ' -f3"))
    assert result.output == "erofs"


def test_an_image_is_written_by_one_vm_only(cloche: Runtime, bundle: Bundle, folder: Path) -> None:
    image = folder / "root.raw"
    subprocess.run(["mkfs.ext4", "-q", "-d", bundle.rootfs, image, "64M"], check=True)
    bundle.config["vm"] = {"image": {"path": str(image), "format": "raw"}}
    cloche.start(bundle)
    assert 'Failed to get "write" lock' in cloche.fails(
        "run", "--bundle", bundle.save(), cloche.new_id()
    )


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"hypervisor": {"path": "qemu"}}, "$.vm.hypervisor.path: expected an absolute path"),
        ({"hypervisor": {"path": "/no/qemu"}}, "$.vm.hypervisor.path: /no/qemu: no such file"),
        ({"hypervisor": {}}, "$.vm.hypervisor.path: missing, but required"),
        ({"kernel": {"path": "/no/kernel"}}, "$.vm.kernel.path: /no/kernel: no such file"),
        ({"kernel": {"path": "/etc/passwd"}}, "/etc/passwd: "),
        ({"image": {"path": "/no/image", "format": "raw"}}, "$.vm.image.path: /no/image: no such"),
        ({"image": {"path": "/etc/passwd", "format": "iso"}}, "$.vm.image.format: expected raw"),
        ({"hwConfig": {"memory": 1 << 20}}, "$.vm.hwConfig.memory: expected 134217728 bytes"),
        ({"hwConfig": {"vcpus": 0}}, "$.vm.hwConfig.vcpus: expected 1 to 255, got 0"),
        (
            {"hwConfig": {"vcpus": 255}},
            "$.vm.hwConfig.vcpus: 255 processors: this host has ",
        ),
        ({"hwConfig": {"irqs": [3]}}, "$.vm.hwConfig.irqs: hardware cannot be passed"),
        ("qemu", "$.vm: expected object, got str"),
    ],
)
def test_what_cannot_be(cloche: Runtime, bundle: Bundle, section: object, problem: str) -> None:
    bundle.config["vm"] = section
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert problem in message
    assert cloche.leftovers() == []


@pytest.mark.parametrize(
    ("kind", "problem"),
    [("raw", "guest cannot mount it, neither as ext4"), ("qcow2", "Image is not in qcow2 format")],
)
def test_an_image_of_nothing(
    cloche: Runtime, bundle: Bundle, folder: Path, kind: str, problem: str
) -> None:
    image = folder / "image"
    image.write_bytes(bytes(1 << 20))
    bundle.config["vm"] = {"image": {"path": str(image), "format": kind}}
    assert problem in cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())


def test_a_qemu_that_does_not_know_a_parameter(cloche: Runtime, bundle: Bundle) -> None:
    bundle.config["vm"] = {"hypervisor": {"path": QEMU, "parameters": ["-nonsense"]}}
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert "-nonsense: invalid option" in message


def test_a_size_as_programs_in_go_write_it(cloche: Runtime, bundle: Bundle) -> None:
    bundle.config["vm"] = {"hwconfig": {"vcpus": 2, "memory": 200 << 20}}
    assert cloche.run(bundle.sh("nproc")).output == "2"


def test_a_command_line_that_the_kernel_would_cut(
    cloche: Runtime, bundle: Bundle, kernel: Path
) -> None:
    words = [f"word{number}=" + "x" * 100 for number in range(20)]
    bundle.config["vm"] = {"kernel": {"path": str(kernel), "parameters": words}}
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert "$.vm.kernel.parameters: a command line of 2" in message
    assert cloche.leftovers() == []


@pytest.mark.parametrize("memory", [1, 1 << 53, (1 << 64) - 1])
def test_a_size_that_no_vm_has(cloche: Runtime, bundle: Bundle, memory: int) -> None:
    bundle.config["vm"] = {"hwConfig": {"memory": memory}}
    message = cloche.fails("run", "--bundle", bundle.save(), cloche.new_id())
    assert "$.vm.hwConfig.memory: expected 134217728 bytes at least" in message
    assert cloche.leftovers() == []
