"""Run inside of containers, as file_checks.py is: what few programs do with files.

`python3 -m vm.file_checks_rare FOLDER SMALL`; SMALL is a folder on a file system of 1 MiB.
"""

import ctypes
import fcntl
import mmap
import os
import struct
import sys
from collections.abc import Callable

from .file_checks import CHECKS, check, get, in_child, put, run, system, tried

PAGE = 4096
CHECKS.clear()


@check
def every_mode_of_fallocate(folder: str) -> object:
    """Of those that FUSE knows: its kernel refuses to collapse and to insert ranges."""
    results = []
    for mode in (0, 1, 2, 3, 4, 16, 17, 18, 19, 64, 128):
        fd = os.open(put(f"{folder}/{mode}", "x" * 4 * PAGE), os.O_RDWR)
        size = 8 * PAGE if mode in (0, 1, 16, 17) else PAGE
        arguments = (fd, mode, ctypes.c_long(PAGE), ctypes.c_long(size))
        results.append([tried(lambda a=arguments: system("fallocate", *a)), mode])  # type: ignore[misc]
        results.append([os.fstat(fd).st_size, os.pread(fd, 2 * PAGE, 0).count(b"x")])
    return results


@check
def holes_in_a_file(folder: str) -> object:
    fd = os.open(f"{folder}/file", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 8 << 20)
    for place in (1, 3):
        os.pwrite(fd, b"x" * 65536, place << 20)
    found: list[object] = [tried(lambda: os.lseek(fd, 0, os.SEEK_DATA))]
    for whence in (os.SEEK_HOLE, os.SEEK_DATA) * 2:
        found.append(tried(lambda w=whence: os.lseek(fd, os.lseek(fd, 0, 1), w)))  # type: ignore[misc]
    return [found, tried(lambda: os.lseek(fd, 9 << 20, os.SEEK_HOLE)), os.fstat(fd).st_blocks]


@check
def copies_within_and_between_files(folder: str) -> object:
    one = os.open(put(f"{folder}/one", "0123456789" * 1000), os.O_RDWR)
    two = os.open(f"{folder}/two", os.O_RDWR | os.O_CREAT)
    end = os.open(f"{folder}/two", os.O_WRONLY | os.O_APPEND)
    copy = os.copy_file_range
    return [
        *(tried(lambda: copy(one, two, 5000, 7, 100)), os.fstat(two).st_size),
        *(tried(lambda: copy(one, one, 10, 0, 5000)), tried(lambda: copy(one, one, 10, 0, 5))),
        *(tried(lambda: copy(one, end, 10)), tried(lambda: copy(one, two, 10, 20_000))),
        *(os.lseek(one, 0, 1), get(f"{folder}/one")[:20], get(f"{folder}/two")[:120]),
    ]


IMMUTABLE, APPEND_ONLY = 0x10, 0x20


def set_flag(path: str, flag: int) -> object:
    """Give the file that one of both, or none; returns what it has then."""
    fd = os.open(path, os.O_RDONLY)
    try:
        (others,) = struct.unpack("<I", fcntl.ioctl(fd, 0x80086601, bytes(8))[:4])
        flags = others & ~(IMMUTABLE | APPEND_ONLY) | flag
        fcntl.ioctl(fd, 0x40086602, struct.pack("<Q", flags))
        return hex(struct.unpack("<I", fcntl.ioctl(fd, 0x80086601, bytes(8))[:4])[0])
    finally:
        os.close(fd)


@check
def immutable_and_append_only_files(folder: str) -> object:
    try:
        return what_flags_forbid(folder)
    finally:
        for name in (".", *os.listdir(folder)):
            set_flag(f"{folder}/{name}", 0)


def what_flags_forbid(folder: str) -> object:
    path = put(f"{folder}/file")
    fd = os.open(path, os.O_RDWR)
    changes: list[Callable[[], object]] = [
        lambda: os.truncate(path, 0),
        lambda: os.chmod(path, 0o600),
        lambda: os.rename(path, f"{folder}/other"),
        lambda: os.unlink(path),
        lambda: os.link(path, f"{folder}/link"),
        lambda: os.setxattr(path, "user.x", b""),
    ]
    result = [tried(lambda: set_flag(path, IMMUTABLE))]
    result += [tried(change) for change in changes]
    result += [tried(lambda: set_flag(path, APPEND_ONLY))]
    result += [tried(change) for change in changes]
    log = os.open(path, os.O_WRONLY | os.O_APPEND)
    result += [os.write(log, b" and more"), get(path), os.pread(fd, 4, 0).decode()]
    result += [tried(lambda: set_flag(path, 0)), tried(lambda: set_flag(folder, APPEND_ONLY))]
    result += [tried(lambda: os.unlink(path)), tried(lambda: put(f"{folder}/new")[-3:])]
    return [*result, tried(lambda: set_flag(folder, 0)), tried(lambda: os.unlink(path))]


@check
def a_program_that_is_being_written_is_not_run(folder: str) -> object:
    path = f"{folder}/program"
    with open("/bin/busybox", "rb") as source, open(path, "wb") as target:
        target.write(source.read())
        os.chmod(path, 0o755)
        target.flush()
        while_open = in_child(lambda: os.execv(path, ["true"]))
    pid = os.fork()
    if pid == 0:
        os.execv(path, ["true"])
    return [while_open, os.waitpid(pid, 0)[1]]


@check
def direct_reads_and_writes(folder: str) -> object:
    path = put(f"{folder}/file", "a" * 3 * PAGE)
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    cached = os.open(path, os.O_RDWR)
    before = os.pread(cached, 2, PAGE).decode()
    with mmap.mmap(-1, 2 * PAGE) as pages:
        pages[:] = b"d" * (2 * PAGE)
        written = tried(lambda: os.pwritev(fd, [pages], PAGE))
        after = os.pread(cached, 2, PAGE).decode()
        os.pwrite(cached, b"cached", PAGE)
        read = os.preadv(fd, [pages], PAGE)
        seen = pages[:8].decode()
        past = os.preadv(fd, [pages], 3 * PAGE)
    return [before, written, after, read, seen, past, os.fstat(fd).st_size]


@check
def a_file_system(folder: str) -> object:
    """Less what others change meanwhile."""
    found = os.statvfs(folder)
    sizes = [found.f_bsize, found.f_frsize, found.f_blocks, found.f_files, found.f_namemax]
    with open(f"{folder}/file", "w") as file:
        same = os.fstatvfs(file.fileno()).f_blocks == found.f_blocks
    small = os.statvfs(sys.argv[2])
    return [sizes, same, [small.f_bsize, small.f_blocks, small.f_bfree, small.f_files]]


@check
def a_full_disk(_: str) -> object:
    path = f"{sys.argv[2]}/file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    written, result = 0, []
    while isinstance(count := tried(lambda: os.write(fd, b"x" * 100_000)), int):
        written += count
    result += [count, written, os.fstat(fd).st_size, os.statvfs(sys.argv[2]).f_bfree]
    result += [tried(lambda: os.posix_fallocate(fd, 0, 2 << 20)), os.fstat(fd).st_blocks]
    result += [tried(lambda: put(f"{sys.argv[2]}/other")[-5:]), tried(lambda: os.fsync(fd))]
    os.unlink(path)
    result += [tried(lambda: os.pwrite(fd, b"y", 0)), os.pread(fd, 2, 0).decode()]
    os.close(fd)
    os.unlink(f"{sys.argv[2]}/other")
    result += [put(f"{sys.argv[2]}/again", "z" * 1000)[-5:], get(f"{sys.argv[2]}/again")[-2:]]
    return result


@check
def no_room_for_further_files(_: str) -> object:
    free = os.statvfs(sys.argv[2]).f_ffree
    places = [f"{sys.argv[2]}/{number}" for number in range(free + 1)]
    results = [tried(lambda p=place: os.mknod(p)) for place in places]  # type: ignore[misc]
    for place in places[:free]:
        os.unlink(place)
    return [results.count(None), results[-1], len(results) == free + 1]


@check
def times_far_away(folder: str) -> object:
    path = put(f"{folder}/file")
    result = []
    for seconds in (-(1 << 31), -1, (1 << 31) + 5, (1 << 33) + 7, 1 << 40, -(1 << 40)):
        moment = seconds * 10**9 + 123456789
        result.append(tried(lambda m=moment: os.utime(path, ns=(m, m + 1))))  # type: ignore[misc]
        found = os.stat(path)
        result.append([found.st_atime_ns, found.st_mtime_ns])
    before = os.stat(path).st_ctime_ns
    put(path, "other")
    found = os.stat(path)
    return [*result, found.st_mtime_ns == found.st_ctime_ns, found.st_ctime_ns > before]


@check
def names_of_any_bytes(folder: str) -> object:
    raw = os.fsencode(folder)
    longest = "é".encode() * 127 + b"x"
    odd = [longest, b"\x80" * 255, bytes(range(1, 47)), bytes(range(48, 256)), b"\n", b"\xc3("]
    for name in odd:
        os.mkdir(raw + b"/" + name)
        os.rename(raw + b"/" + name, raw + b"/" + name[::-1])
        os.symlink(name, raw + b"/" + name[::-1] + b"/l")
    found = {name: os.readlink(raw + b"/" + name + b"/l") for name in os.listdir(raw)}
    deep = folder
    os.chdir(folder)
    for _ in range(12):  # longer than PATH_MAX, by the working directory
        deep += "/" + "d" * 255
        os.mkdir("d" * 255)
        os.chdir("d" * 255)
    os.chdir("/")
    return [found == {name[::-1]: name for name in odd}, tried(lambda: os.stat(deep).st_size)]


@check
def an_unnamed_temporary_file(folder: str) -> object:
    """O_TMPFILE: FUSE has it since Linux 6.2."""
    fd = tried(lambda: os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o640))
    if not isinstance(fd, int):
        release = tuple(map(int, os.uname().release.split(".")[:2]))
        return [fd == "ENOTSUP" and release < (6, 2)] * 5
    os.write(fd, b"unnamed")
    names = f"/proc/self/fd/{fd}".encode(), f"{folder}/named".encode()
    system("linkat", -100, names[0], -100, names[1], 0x400)
    os.pwrite(fd, b"U", 0)
    found = os.stat(f"{folder}/named")
    return [
        *(get(f"{folder}/named") == "Unnamed", found.st_nlink == 1),
        *(oct(found.st_mode) == "0o100640", os.fstat(fd).st_ino == found.st_ino),
        os.listdir(folder) == ["named"],
    ]


if __name__ == "__main__":
    run()
