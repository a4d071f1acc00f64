"""Run inside of containers: what programs do with files, each check in a folder of its own.

`python3 -m vm.file_checks FOLDER` prints, as JSON, what every check saw. The same is to be seen in
a container of runc's.
"""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import socket
import stat
import struct
import sys
import tempfile
from collections.abc import Callable

CHECKS: list[Callable[[str], object]] = []
LIBC = ctypes.CDLL(None, use_errno=True)
USER, GROUP = 1234, 4321
SECONDS = 60


def check(function: Callable[[str], object]) -> Callable[[str], object]:
    CHECKS.append(function)
    return function


def tried(action: Callable[[], object]) -> object:
    """What *action* returns, or the name of its error."""
    try:
        return action()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))


def put(path: str, data: str = "data") -> str:
    with open(path, "w") as file:
        file.write(data)
    return path


def get(path: str) -> str:
    with open(path) as file:
        return file.read()


def in_child(action: Callable[[], object], user: int = 0, groups: tuple[int, ...] = ()) -> object:
    """What *action* returns (or its error) in a child, which may be another user."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        if user:
            os.setgroups(groups)
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        os.write(writer, json.dumps(tried(action)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    status = os.waitpid(pid, 0)[1]
    return json.loads(text) if text else f"signal {os.WTERMSIG(status)}"


def system(name: str, *arguments: object) -> int:
    """A function of the C library, with its error."""
    result: int = getattr(LIBC, name)(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


@check
def open_file_that_was_unlinked(folder: str) -> object:
    path = put(f"{folder}/file", "0123456789")
    fd = os.open(path, os.O_RDWR)
    os.unlink(path)
    os.pwrite(fd, b"ab", 2)
    os.ftruncate(fd, 6)
    os.fchmod(fd, 0o640)
    os.fchown(fd, USER, GROUP)
    os.utime(fd, ns=(10**9 + 5, 2 * 10**9 + 7))
    os.setxattr(fd, "user.test", b"value")
    found = os.fstat(fd)
    times_set = [found.st_atime_ns, found.st_mtime_ns]
    with mmap.mmap(fd, 6) as memory:
        mapped = memory[:].decode()
        memory[0:1] = b"M"
        memory.flush()
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    found = os.fstat(fd)
    return [
        times_set,
        mapped,
        os.read(again, 20).decode(),
        oct(found.st_mode),
        [found.st_uid, found.st_gid, found.st_nlink, found.st_size],
        os.getxattr(fd, "user.test").decode(),
    ]


@check
def open_file_that_was_replaced(folder: str) -> object:
    path = put(f"{folder}/file", "old")
    fd = os.open(path, os.O_RDWR)
    os.rename(put(f"{folder}/new", "newer"), path)
    os.pwrite(fd, b"O", 0)
    os.fchmod(fd, 0o600)
    return [os.pread(fd, 9, 0).decode(), get(path), os.fstat(fd).st_size, os.stat(path).st_size]


@check
def temporary_files(folder: str) -> object:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"x" * 100_000)
        file.seek(5)
        return [len(file.read()), os.listdir(folder)]


@check
def mappings_and_reads_see_each_other(folder: str) -> object:
    path = put(f"{folder}/file", "a" * 8192)
    with open(path, "r+b", buffering=0) as file, mmap.mmap(file.fileno(), 8192) as memory:
        memory[0:1] = b"1"
        seen = os.pread(file.fileno(), 2, 0).decode()
        os.pwrite(file.fileno(), b"2", 4096)
        there = memory[4096:4098].decode()
        child = in_child(lambda: get(path)[0])
        memory.flush()
    return [seen, there, child, get(path)[:2]]


@check
def a_mapping_of_what_is_cut_off(folder: str) -> object:
    path = put(f"{folder}/file", "a" * 8192)

    def touch() -> object:
        with open(path, "r+b") as file:
            memory = mmap.mmap(file.fileno(), 8192)
            os.truncate(path, 10)
            return memory[5000:5001].decode()

    return in_child(touch)


@check
def a_running_program_is_not_written(folder: str) -> object:
    path = f"{folder}/program"
    with open("/bin/busybox", "rb") as source, open(path, "wb") as target:
        target.write(source.read())
    os.chmod(path, 0o755)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(reader, 0)
        os.close(writer)
        os.execv(path, ["cat"])
    os.close(reader)
    while os.readlink(f"/proc/{pid}/exe") != path:
        pass
    result = tried(lambda: os.open(path, os.O_WRONLY))
    os.close(writer)
    os.waitpid(pid, 0)
    return result


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


UNDEFINED = 0xFFFFFFFF


@check
def access_control_lists(folder: str) -> object:
    os.chmod(folder, 0o755)
    path = put(f"{folder}/file", "secret")
    os.chmod(path, 0o600)
    before = in_child(lambda: get(path), USER)
    value = acl(
        (1, 6, UNDEFINED), (2, 4, USER), (4, 0, UNDEFINED), (16, 4, UNDEFINED), (32, 0, UNDEFINED)
    )
    os.setxattr(path, "system.posix_acl_access", value)
    after = in_child(lambda: get(path), USER)
    writing = in_child(lambda: put(path), USER)
    other = in_child(lambda: get(path), USER + 1)
    default = acl(
        (1, 7, UNDEFINED), (2, 7, USER), (4, 5, UNDEFINED), (16, 7, UNDEFINED), (32, 0, UNDEFINED)
    )
    os.setxattr(folder, "system.posix_acl_default", default)
    os.umask(0o077)
    inherited = put(f"{folder}/inherited")
    os.mkdir(f"{folder}/sub")
    os.umask(0o022)
    return [
        *(before, after, writing, other, oct(os.stat(path).st_mode)),
        oct(os.stat(inherited).st_mode),
        os.getxattr(inherited, "system.posix_acl_access").hex(),
        os.getxattr(f"{folder}/sub", "system.posix_acl_default").hex(),
    ]


@check
def groups_sticky_and_setgid_folders(folder: str) -> object:
    os.chmod(folder, 0o755)
    shared = f"{folder}/shared"
    os.mkdir(shared)
    os.chown(shared, 0, GROUP)
    os.chmod(shared, 0o2770)
    refused = in_child(lambda: put(f"{shared}/file"), USER)
    made = in_child(lambda: put(f"{shared}/file")[-4:], USER, (GROUP,))
    in_child(lambda: os.mkdir(f"{shared}/sub"), USER, (GROUP,))
    found = os.stat(f"{shared}/file")
    sub = os.stat(f"{shared}/sub")
    sticky = f"{folder}/sticky"
    os.mkdir(sticky)
    os.chmod(sticky, 0o1777)
    put(f"{sticky}/file")
    return [
        *(refused, made, [found.st_uid, found.st_gid, oct(found.st_mode)]),
        [sub.st_uid, sub.st_gid, oct(sub.st_mode)],
        in_child(lambda: os.unlink(f"{sticky}/file"), USER),
        in_child(lambda: os.chmod(f"{sticky}/file", 0o666), USER),
    ]


@check
def set_user_id_bits_go(folder: str) -> object:
    os.chmod(folder, 0o755)
    result = []
    changes: list[Callable[[str], object]] = [
        lambda path: os.pwrite(os.open(path, os.O_WRONLY), b"x", 0),
        lambda path: os.truncate(path, 1),
        lambda path: os.chown(path, -1, USER),
    ]
    for number, change in enumerate(changes):
        path = put(f"{folder}/{number}")
        os.chown(path, USER, USER)
        os.chmod(path, 0o6777)
        bound = change
        result.append(in_child(lambda p=path, c=bound: c(p), USER))  # type: ignore[misc]
        result.append(oct(os.stat(path).st_mode))
    path = put(f"{folder}/root")
    os.chmod(path, 0o6755)
    put(path, "by root")
    return [*result, oct(os.stat(path).st_mode)]


@check
def extended_attributes(folder: str) -> object:
    path = put(f"{folder}/file")
    os.symlink("file", f"{folder}/link")
    result: list[object] = []
    for name in ("user.one", "trusted.two", "security.three", "other.four"):
        result.append(tried(lambda n=name: os.setxattr(path, n, b"value")))  # type: ignore[misc]
        result.append(tried(lambda n=name: os.getxattr(path, n).decode()))  # type: ignore[misc]
    result.append(tried(lambda: os.setxattr(path, "user.one", b"", os.XATTR_CREATE)))
    result.append(tried(lambda: os.setxattr(path, "user.none", b"", os.XATTR_REPLACE)))
    result.append(tried(lambda: os.setxattr(path, "user.large", b"x" * 3000)))
    result.append(len(os.getxattr(path, "user.large")))
    os.removexattr(path, "user.one")
    link = f"{folder}/link"
    result.append(tried(lambda: os.setxattr(link, "user.l", b"", follow_symlinks=False)))
    return [*result, sorted(os.listxattr(path))]


@check
def file_capabilities(folder: str) -> object:
    path = put(f"{folder}/file")
    value = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
    result = [tried(lambda: os.setxattr(path, "security.capability", value))]
    result.append(tried(lambda: os.getxattr(path, "security.capability").hex()))
    put(path, "changed")
    return [*result, tried(lambda: os.getxattr(path, "security.capability").hex())]


@check
def renames_of_every_kind(folder: str) -> object:
    def rename(old: str, new: str, flags: int) -> object:
        names = f"{folder}/{old}".encode(), f"{folder}/{new}".encode()
        return tried(lambda: system("renameat2", -100, names[0], -100, names[1], flags))

    put(f"{folder}/a", "a")
    put(f"{folder}/b", "b")
    os.makedirs(f"{folder}/d/e")
    result = [rename("a", "b", 1), rename("a", "b", 2), get(f"{folder}/a"), get(f"{folder}/b")]
    result += [rename("a", "d", 2), rename("d", "c", 1), rename("c", "c/e", 0), rename("c", "a", 0)]
    result += [rename("a", "b", 0), rename("none", "b", 0), rename("b", "w", 4)]
    return [*result, sorted(os.listdir(folder))]


@check
def links(folder: str) -> object:
    path = put(f"{folder}/file")
    os.link(path, f"{folder}/second")
    os.symlink("nowhere", f"{folder}/link")
    os.link(f"{folder}/link", f"{folder}/linked", follow_symlinks=False)
    put(f"{folder}/second", "both")
    return [
        *(os.stat(path).st_nlink, get(path), os.readlink(f"{folder}/linked")),
        os.stat(path).st_ino == os.stat(f"{folder}/second").st_ino,
        tried(lambda: os.link(path, f"{folder}/second")),
        tried(lambda: os.stat(f"{folder}/link")),
        tried(lambda: os.symlink("x", f"{folder}/file")),
        tried(lambda: os.symlink("y" * 4000, f"{folder}/long")),
        len(os.readlink(f"{folder}/long")),
    ]


@check
def allocation_and_holes(folder: str) -> object:
    path = f"{folder}/file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    result: list[object] = []
    for mode, offset, size in ((0, 0, 65536), (1, 65536, 65536), (3, 4096, 8192), (16, 0, 4096)):
        arguments = (fd, mode, ctypes.c_long(offset), ctypes.c_long(size))
        result.append(tried(lambda a=arguments: system("fallocate", *a)))  # type: ignore[misc]
        result.append(os.fstat(fd).st_size)
    os.ftruncate(fd, 0)
    os.ftruncate(fd, 1 << 20)
    os.pwrite(fd, b"x" * 4096, 1 << 19)
    result += [os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 0, os.SEEK_HOLE)]
    result += [os.lseek(fd, 1 << 19, os.SEEK_HOLE), tried(lambda: os.lseek(fd, 1 << 20, 3))]
    other = os.open(f"{folder}/copy", os.O_RDWR | os.O_CREAT)
    os.lseek(fd, 0, 0)
    return [*result, os.copy_file_range(fd, other, 1 << 20), os.fstat(other).st_size]


@check
def flags_of_files(folder: str) -> object:
    def flags(path: str) -> object:
        fd = os.open(path, os.O_RDONLY)
        return fcntl.ioctl(fd, 0x80086601, bytes(8))[:4].hex()

    def set_flags(path: str, value: int) -> object:
        fd = os.open(path, os.O_RDONLY)
        fcntl.ioctl(fd, 0x40086602, struct.pack("<Q", value))
        return None

    path = put(f"{folder}/file")
    before = tried(lambda: flags(path))
    changed = tried(lambda: set_flags(path, 0x80))  # no access times
    return [before, changed, tried(lambda: flags(path)), tried(lambda: flags(folder))]


@check
def direct_and_appending_writes(folder: str) -> object:
    path = put(f"{folder}/file", "")
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, 8192) as page:
        page[:] = b"d" * 8192
        written = tried(lambda: os.writev(fd, [page]))
        os.lseek(fd, 4096, 0)
        read = tried(lambda: os.readv(fd, [page]))
    log = put(f"{folder}/log", "")

    def append(letter: bytes) -> None:
        end = os.open(log, os.O_WRONLY | os.O_APPEND)
        for _ in range(50):
            os.write(end, letter * 10)

    pids = []
    for letter in (b"a", b"b"):
        pid = os.fork()
        if pid == 0:
            append(letter)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    text = get(log)
    whole = [text[at : at + 10] for at in range(0, len(text), 10)]
    return [written, read, len(text), sorted(set(whole))]


@check
def times(folder: str) -> object:
    path = put(f"{folder}/file")
    result = []
    for accessed, modified in ((1, 2), (-5 * 10**9 + 7, -(10**9)), (4 * 10**18, 123456789)):
        os.utime(path, ns=(accessed, modified))
        found = os.stat(path)
        result.append([found.st_atime_ns, found.st_mtime_ns])
    link = f"{folder}/link"
    os.symlink("file", link)
    os.utime(link, ns=(11, 12), follow_symlinks=False)
    return [*result, os.lstat(link).st_mtime_ns, os.stat(path).st_mtime_ns == 12]


@check
def names(folder: str) -> object:
    raw = os.fsencode(folder)
    odd = [b"x" * 255, b"\xff\xfe", "ä€𝄞".encode(), b"a\nb", b" ", b"...", b"-"]
    for name in odd:
        with open(raw + b"/" + name, "w"):
            pass
    return [
        sorted(name.hex()[:40] for name in os.listdir(raw)) == sorted(n.hex()[:40] for n in odd),
        tried(lambda: put(f"{folder}/{'x' * 256}")),
        tried(lambda: os.stat(f"{folder}/none")),
        tried(lambda: os.rmdir(folder)),
        tried(lambda: os.mkdir(f"{folder}/...")),
        tried(lambda: os.unlink(folder)),
        tried(lambda: os.listdir(f"{folder}/-")),
        tried(lambda: os.rmdir(f"{folder}/.")),
        tried(lambda: os.stat(f"{folder}/-/x")),
    ]


@check
def large_files(folder: str) -> object:
    path = put(f"{folder}/file")
    os.truncate(path, 5 << 30)
    with open(path, "r+b") as file:
        file.seek((4 << 30) + 7)
        file.write(b"beyond")
        file.flush()
        file.seek((4 << 30) + 7)
        return [file.read(6).decode(), os.stat(path).st_size, os.stat(path).st_blocks < 100]


@check
def long_reads_and_writes(folder: str) -> object:
    path = f"{folder}/file"
    block = bytes(range(256)) * 4096
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    for number in range(9):
        os.pwrite(fd, block[number:] + block[:number], number * (len(block) + 13))
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    right = [
        os.pread(fd, len(block), number * (len(block) + 13)) == block[number:] + block[:number]
        for number in range(9)
    ]
    sizes = [1, 4095, 4097, 32_700, 32_768, 32_769, 65_536, 100_001, 1_048_577]
    for size in sizes:
        os.pwrite(fd, block[:size], 3)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        right.append(os.pread(fd, size, 3) == block[:size])
    return [right, os.fstat(fd).st_size]


@check
def folders_with_many_entries(folder: str) -> object:
    for number in range(200):  # several replies' worth of names
        os.close(os.open(f"{folder}/{number:0100}", os.O_WRONLY | os.O_CREAT))
    found = os.listdir(folder)
    with os.scandir(folder) as entries:
        kinds = {entry.is_file() for entry in entries}
    with os.scandir(folder) as entries:
        for entry in entries:  # as rm -r does
            os.unlink(entry.path)
    return [len(found), len(set(found)), sorted(kinds), os.listdir(folder)]


@check
def special_files(folder: str) -> object:
    os.mkfifo(f"{folder}/fifo")
    pid = os.fork()
    if pid == 0:
        put(f"{folder}/fifo", "through")
        os._exit(0)
    text = get(f"{folder}/fifo")
    os.waitpid(pid, 0)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{folder}/socket")
    listener.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect(f"{folder}/socket")
    device = tried(lambda: os.mknod(f"{folder}/null", stat.S_IFCHR | 0o666, os.makedev(1, 3)))
    found = tried(lambda: os.stat(f"{folder}/null").st_rdev)
    return [text, stat.S_ISSOCK(os.stat(f"{folder}/socket").st_mode), device, found]


@check
def locks(folder: str) -> object:
    path = put(f"{folder}/file")
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)

    def flock() -> None:
        fcntl.flock(os.open(path, os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)

    def lockf() -> None:
        fcntl.lockf(os.open(path, os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 5)

    result = [in_child(flock)]
    fcntl.flock(fd, fcntl.LOCK_UN)
    result.append(in_child(flock))
    fcntl.lockf(fd, fcntl.LOCK_EX, 5, 5)
    result.append(in_child(lockf))
    os.close(os.open(path, os.O_RDONLY))  # POSIX: that lets go of them
    return [*result, in_child(lockf)]


@check
def inotify_of_its_own_changes(folder: str) -> object:
    fd = system("inotify_init1", os.O_NONBLOCK)
    system("inotify_add_watch", fd, folder.encode(), 0x3C0 | 0x2)
    put(f"{folder}/file")
    os.rename(f"{folder}/file", f"{folder}/moved")
    os.unlink(f"{folder}/moved")
    data, events = os.read(fd, 4096), []
    while data:
        _, mask, _, length = struct.unpack_from("iIII", data)
        events.append([hex(mask), data[16 : 16 + length].rstrip(b"\0").decode()])
        data = data[16 + length :]
    return events


@check
def a_full_and_synced_file(folder: str) -> object:
    path = put(f"{folder}/file")
    fd = os.open(path, os.O_RDWR)
    found = os.statvfs(folder)
    folder_fd = os.open(folder, os.O_RDONLY)
    return [
        *(tried(lambda n=each: os.fsync(n)) for each in (fd, folder_fd)),  # type: ignore[misc]
        tried(lambda: os.fdatasync(fd)),
        *(found.f_namemax, found.f_bsize, found.f_frsize, found.f_blocks > 0),
        tried(lambda: os.posix_fallocate(fd, 0, 1 << 60)) in ("ENOSPC", "EFBIG"),
    ]


@check
def modes_and_owners(folder: str) -> object:
    os.umask(0o027)
    path = put(f"{folder}/file")
    os.mkdir(f"{folder}/sub", 0o777)
    os.umask(0o022)
    result = [oct(os.stat(path).st_mode), oct(os.stat(f"{folder}/sub").st_mode)]
    os.chmod(path, 0o4755)
    result.append(oct(os.stat(path).st_mode))
    os.chown(path, USER, GROUP)
    found = os.stat(path)
    os.symlink("x", f"{folder}/link")
    os.lchown(f"{folder}/link", 7, 8)
    link = os.lstat(f"{folder}/link")
    return [*result, [found.st_uid, found.st_gid, oct(found.st_mode)], [link.st_uid, link.st_gid]]


def too_slow(*_: object) -> None:
    raise TimeoutError(f"no end in {SECONDS} s")


def run() -> None:
    """Carry the checks out, and print what they saw."""
    signal.signal(signal.SIGALRM, too_slow)
    os.umask(0o022)
    results = {}
    for function in CHECKS:
        name = function.__name__
        folder = os.path.join(sys.argv[1], name)
        os.mkdir(folder)
        signal.alarm(SECONDS)
        try:
            results[name] = function(folder)
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(results))


if __name__ == "__main__":
    run()
