"""From a request to a running VM: shape, template, and the cold boot where there is none."""

from __future__ import annotations

import os

from cloche.base.errors import BootError, ClocheError, ConfigError, DamagedError, LaunchError
from cloche.base.limits import MAKE, NOFILE, THAW, lacking
from cloche.base.loop import Loop
from cloche.guest.agent_binary import find_agent, require_agent
from cloche.guest.guest import guest_for, is_current, other_than_configured
from cloche.heart.greeting import FUSE, Greeting
from cloche.model.disks import MOST_DISKS
from cloche.model.state import DEFAULT_ROOT
from cloche.vmm.accel import choose_accel, tsc_khz
from cloche.vmm.argv import NIC_SLOTS, kernel_cmdline
from cloche.vmm.frozen import FROZEN_ACCEL, frozen_folder, frozen_image, load_frozen
from cloche.vmm.shape import Shape, cpu_count, memory_step
from cloche.vmm.template import Template, load_template, template_image
from cloche.vmm.variant import Variants
from cloche.vmm.vm import Vm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloche.guest.guest import Guest
    from cloche.heart.files import Files
    from cloche.heart.launch import Request
    from cloche.host.share import Share
    from cloche.model.config import Settings
    from cloche.vmm.argv import RootImage
    from cloche.vmm.frozen import Frozen
    from cloche.vmm.integrity import Image
    from cloche.vmm.jail import Jail


COLD_FOR_DISKS = "VM: cold boot: block devices of the host are no part of a template"


def find_guest(settings: Settings) -> Guest:
    """The guest that VMs boot; built anew when the agent has changed since `cloche setup`.

    ClocheError where there is none, or where kernel or agent are not those asked for by name.
    """
    # An agent that nobody named may be gone: the guest has its own copy.
    agent = require_agent() if os.environ.get("CLOCHE_AGENT") else find_agent()
    guest = guest_for(settings.data_root, agent)
    if guest is None:
        raise ClocheError(
            f"guest: no kernel and initramfs in {settings.data_root}", hint="run `cloche setup`"
        )
    if settings.kernel and (wrong := other_than_configured(guest, settings.kernel)):
        raise ClocheError(f"guest: {wrong}", hint="run `cloche setup`")
    if agent is None or is_current(guest, agent):
        return guest
    from pathlib import Path

    from cloche.guest.build import refresh_guest

    return refresh_guest(Path(settings.data_root), guest, agent)


def find_variants(settings: Settings, qemu: str = "") -> Variants:
    """The ways to spell a machine for *qemu*, by default the configured one."""
    accel = choose_accel(DEFAULT_ROOT, settings.accel).name
    found = Variants(settings.data_root, qemu or settings.qemu, accel, settings.machine)
    found.randomize = settings.randomize
    found.files = settings.files
    return found


def choose_shape(
    variants: Variants,
    guest: Guest,
    memory: int | None,
    cpus: float | None,
    *,
    taps: bool = False,
) -> Shape:
    """The shape for limits of *memory* bytes and *cpus* processors, its cards on *taps* or not."""
    return Shape(
        qemu=variants.qemu,
        variant=variants.best,
        accel=variants.accel,
        cpus=cpu_count(cpus, os.cpu_count() or 1),
        memory=memory_step(memory),
        guest_key=guest.key,
        randomize=variants.randomize,
        files=variants.files,
        taps=taps,
    )


def boot_of(guest: Guest, shape: Shape) -> tuple[str, str, str]:
    """Kernel, initramfs and command line to boot *shape* with."""
    from cloche.vmm.randomize import is_randomized

    khz = tsc_khz() if shape.accel == "tcg" else 0
    cmdline = kernel_cmdline(
        machine=shape.variant.machine,
        accel=shape.accel,
        tsc_khz=khz,
        randomize=is_randomized(shape),
    )
    return str(guest.vmlinux), str(guest.initramfs), cmdline


class Choice:
    """What is to be started. *cold* says why no template can be used, or is empty.

    *words* are added to the kernel's command line, *parameters* to QEMU's; *initramfs* takes the
    place of the guest's own; *root_image* is a disk with the container's root.
    """

    def __init__(self, guest: Guest, variants: Variants, shape: Shape) -> None:
        self.guest = guest
        self.variants = variants
        self.shape = shape
        self.cold = ""
        # There is no template, and none could be saved: that has been said.
        self.is_untemplated = False
        self.words: list[str] = []
        self.parameters: list[str] = []
        self.initramfs = ""
        self.root_image: RootImage | None = None
        # `vm` in config.json has a say in it.
        self.is_own = False

    def boot(self) -> tuple[str, str, str]:
        """Kernel, initramfs and command line."""
        kernel, initramfs, cmdline = boot_of(self.guest, self.shape)
        return kernel, self.initramfs or initramfs, " ".join([cmdline, *self.words])


def _choose(request: Request, *, taps: bool) -> Choice:
    settings, glance = request.settings, request.glance
    guest = find_guest(settings)
    variants = find_variants(settings)
    shape = choose_shape(variants, guest, glance.memory, glance.cpus, taps=taps)
    choice = Choice(guest, variants, shape)
    if not settings.template:
        choice.cold = "VM: cold boot: templates are switched off (template = off)"
    if glance.disks:
        choice.cold = COLD_FOR_DISKS
    if len(glance.disks) > MOST_DISKS:
        raise ConfigError(f"$.linux.devices: more than {MOST_DISKS} block devices of the host")
    if glance.vm is not None:
        from cloche.heart.own_machine import apply

        choice.is_own = True
        apply(choice, request)
    return choice


class Machine:
    """A VM that starts, and its *shape*. A launch that is still to come adds to the *warnings*.

    *kernel_directory* has the modules of its kernel, *greeting* is what a thawed VM has been
    greeted with, *frozen* the one that it was, *image* what it has come from, if it was not booted.
    """

    def __init__(self, vm: Vm, choice: Choice, *, user_network: bool) -> None:
        self.vm = vm
        self.user_network = user_network
        self._is_own = choice.is_own
        self.shape = choice.shape
        self.kernel_directory: str = choice.guest.manifest["kernel_directory"]
        self.warnings: list[str] = []
        self.greeting = Greeting(choice.shape.files)
        self.frozen: Frozen | None = None
        self.image: Image | None = None
        self.files: Files | None = None

    def serve_files(self, directory: str, share: Share) -> None:
        """Start the program that serves the *share*, where it is not QEMU itself."""
        if self.shape.files != FUSE:
            return
        from cloche.heart.files import Files

        self.files = Files(self.vm, directory, share.directory)

    @property
    def files_fds(self) -> Sequence[int]:
        """What the VM is launched with for that."""
        return self.files.fds if self.files is not None else ()

    def jail(self, *names: str) -> Jail | None:
        """Where QEMU is kept, which reads the files *names*; None: it has files to serve itself.

        What `vm` in config.json names of the host's is QEMU's to open, so that has no jail either.
        """
        if self.files is None or self._is_own:
            return None
        from cloche.vmm.jail import Jail
        from cloche.vmm.preload import preloaded

        files = [self.shape.qemu, *names, *preloaded()]
        return Jail(files, kvm=self.shape.accel == "kvm", user_network=self.user_network)

    def distrust(self) -> None:
        """The next start is to make another frozen QEMU."""
        if self.frozen is not None:
            self.frozen.give_up()

    def ended(self) -> None:
        """Where it has crashed, what it came from is to be read before it is used again."""
        if self.image is not None and self.vm.has_crashed():
            self.image.note_suspect()


def start_machine(loop: Loop, request: Request, share: Share, *, taps: Sequence[int]) -> Machine:
    """Start the VM for *request*: thawed, else from its template, else cold."""
    user_network = not taps and request.has_user_network()
    # What has nothing to tie to a tap came up with some all the same, if the host has any.
    has_taps = bool(taps) or (not user_network and os.path.exists("/dev/net/tun"))
    choice = _choose(request, taps=has_taps)
    machine = Machine(Vm(loop, request.directory), choice, user_network=user_network)
    machine.serve_files(request.directory, share)
    vm, warnings = machine.vm, machine.warnings
    vm.exited.on_done(lambda _: machine.ended())
    if user_network and request.host_loopback is not None:
        from cloche.vmm.loopback import HostLoopback

        vm.guard = HostLoopback(loop, request.host_loopback)
    frozen = machine.frozen = _find_frozen(request, choice, warnings)

    def otherwise(held: Sequence[int]) -> None:
        machine.distrust()
        _launch(machine, request, choice, share, held)

    if frozen is None:
        otherwise(taps)
        return machine
    try:
        vm.thaw(
            frozen,
            share=share.directory,
            taps=taps,
            image=request.image,
            greeting=machine.greeting.encode(),
            otherwise=otherwise,
            files=machine.files_fds,
            jail=machine.jail(frozen.program),
        )
    except OSError as error:  # it was taken away just now, or there is no descriptor left
        warnings.append(f"VM: started from its template: thawing: {error}")
        _launch(machine, request, choice, share, taps)
    else:
        machine.image = frozen.image
    return machine


def _launch(
    machine: Machine, request: Request, choice: Choice, share: Share, taps: Sequence[int]
) -> None:
    """Start it from its template, else cold."""
    shape = choice.shape
    template = _find_template(request, choice, machine.warnings)
    machine.image = template.image if template else None
    if template is None:
        _settle(request, choice, machine.warnings)
    idle = []
    if template and shape.taps and not taps:
        # The namespace is our own, so they go with it; a thaw has a cheaper stand-in.
        from cloche.host.taps import open_taps

        idle = open_taps(NIC_SLOTS, persistent=True)
    disks = [
        (share.open_device(number, read_only=read_only), read_only)
        for number, read_only in request.glance.disks.items()
    ]
    boot = None if template else choice.boot()
    from cloche.vmm.boot import launch

    launch(
        machine.vm,
        shape,
        share=share.directory,
        taps=taps or [tap.fd for tap in idle],
        user_network=machine.user_network,
        images=[request.image] if request.image else [],
        disks=disks,
        root_image=choice.root_image,
        parameters=choice.parameters,
        boot=boot,
        memory_file=template.memory_file if template else "",
        state=template.state if template else None,
        files=machine.files_fds,
        jail=machine.jail(*boot[:2] if boot else ()),
    )
    for fd in [*(fd for fd, _ in disks), *(tap.fd for tap in idle)]:
        os.close(fd)


def _settle(request: Request, choice: Choice, warnings: list[str]) -> None:
    """Before a cold boot: have a variant that is known to work, which templates tell else.

    What is found is noted for all, and so not tried with limits that are this caller's.
    """
    if choice.variants.is_known or lacking(request.raised, MAKE):
        return
    from cloche.vmm.trial import settle

    settle(choice.shape, choice.variants, lambda: boot_of(choice.guest, choice.shape))
    warnings += refusals(choice.variants)


def refusals(variants: Variants) -> list[str]:
    """What is to be said where a machine was found after others had been tried in vain."""
    return [f"VM: {why}; {variants.best} does" for why in variants.refused]


def _may_be_thawed(request: Request, shape: Shape) -> bool:
    """Not with KVM, which gains nothing; and what has no taps leads to the network if thawed."""
    return shape.accel == FROZEN_ACCEL and (shape.taps or request.has_user_network())


def _find_frozen(request: Request, choice: Choice, warnings: list[str]) -> Frozen | None:
    """The frozen QEMU of the shape, made now where there might be one; None means: another way."""
    settings, shape = request.settings, choice.shape
    if choice.cold or not settings.freeze or not _may_be_thawed(request, shape):
        return None
    frozen, problem = load_frozen(settings.templates, shape)
    if frozen is not None and not _is_whole(frozen.image):
        frozen = None
    if why := lacking(request.raised, {**THAW, NOFILE: frozen.files} if frozen else THAW):
        # That is this caller's: what others share stays as it is.
        warnings.append(f"VM: started from its template, which takes longer: {why}")
        return None
    if frozen is not None or problem:
        return frozen
    if why := lacking(request.raised, MAKE):
        warnings.append(f"VM: started from its template: no frozen QEMU is made: {why}")
        return None
    template = _find_template(request, choice, warnings)
    choice.is_untemplated = template is None
    if template is None:
        return None
    from cloche.heart.frozen_maker import make_frozen
    from cloche.host.file_server import FileServerError

    folder = frozen_folder(settings.templates, shape)
    damage = frozen_image(folder).why_out_of_use()
    try:
        made = make_frozen(settings.templates, shape, template)
        problem = ""
        if made is None:  # nothing is noted where another start is at it
            _, problem = load_frozen(settings.templates, shape)
    except (ClocheError, OSError) as error:
        if isinstance(error, FileServerError):
            raise
        made, problem = None, str(error)
    if made is not None:
        size = f"{shape.cpus} vCPU and {shape.memory} MiB"
        warnings.append(
            f"VM: the frozen QEMU of {size} was damaged ({damage}): made another one"
            if damage
            else f"VM: no frozen QEMU of {size}: made one"
        )
    elif problem:
        warnings.append(f"VM: started from its template: no frozen QEMU could be made: {problem}")
    return made


def _find_template(request: Request, choice: Choice, warnings: list[str]) -> Template | None:
    """The template of the shape, made now where there is none yet; None means a cold boot."""
    settings, shape = request.settings, choice.shape
    if choice.is_untemplated:
        return None
    if choice.cold:
        warnings.append(choice.cold)
        return None
    template = load_template(settings.templates, shape)
    if template is not None and _is_whole(template.image):
        return template
    folder = os.path.join(settings.templates, shape.directory_name())
    damage = template_image(folder).why_out_of_use()
    if why := lacking(request.raised, MAKE):
        warnings.append(f"VM: cold boot: no template is made: {why}")
        return None
    from cloche.guest.build import check_whole
    from cloche.heart.templates import make_template

    check_whole(choice.guest)  # else each clone has the damage
    try:
        was_known = choice.variants.is_known
        made = make_template(settings, choice.variants, shape, choice.boot)
    except (BootError, LaunchError):
        raise
    except ClocheError as error:
        warnings.append(f"VM: cold boot: the template could not be saved: {error}")
        return None
    except OSError as error:
        cause = f"{error.filename}: {(error.strerror or '').lower()}"
        warnings.append(f"VM: cold boot: the template could not be saved: {cause}")
        return None
    if not was_known:
        warnings += refusals(choice.variants)
    size = f"{shape.cpus} vCPU and {shape.memory} MiB"
    warnings.append(
        f"VM: the template of {size} was damaged ({damage}): booted and saved another one"
        if damage
        else f"VM: no template of {size}: booted and saved one"
    )
    return made


def _is_whole(image: Image) -> bool:
    """Whether a start may use it: one whose guest has crashed is read first."""
    try:
        if image.is_suspect():
            image.verify()
    except DamagedError:
        return False
    return True
