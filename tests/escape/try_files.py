"""Attempts on the file system: reading, changing, removing and finding what was not granted."""
# ruff: noqa: D103 - what is attempted stands in the decorator

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import struct
import tempfile

from breakout import AT_FDCWD, Facts, attempts, call, libc, raw, text

attempt = attempts("file system")

_O_PATH = 0o10000000


def _read(path: str, flags: int = 0) -> bytes:
    fd = os.open(path, os.O_RDONLY | flags)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


# --- reading ----------------------------------------------------------------------------------------------------

_READ = {"opens": (), "shows": "token"}


@attempt("open() a file that everybody may read", **_READ)
def read_open(w: Facts) -> bytes:
    return _read(w.secret)


@attempt("the same by Python's io", **_READ)
def read_io(w: Facts) -> str:
    with open(w.secret) as file:
        return file.read()


@attempt("open, the old call, by number", machine="x86_64", **_READ)
def read_old_open(w: Facts) -> bytes:
    return os.read(call(w, "open", text(w.secret), 0), 4096)


@attempt("openat with bits above the 32nd of its flags", **_READ)
def read_high_bits(w: Facts) -> bytes:
    return os.read(call(w, "openat", AT_FDCWD, text(w.secret), 1 << 40), 4096)


@attempt("openat2, whose flags no filter can see", **_READ)
def read_openat2(w: Facts) -> bytes:
    how = ctypes.create_string_buffer(struct.pack("=QQQ", 0, 0, 0))
    return os.read(call(w, "openat2", AT_FDCWD, text(w.secret), how, 24), 4096)


@attempt("through `..` out of a folder that may be read", **_READ)
def read_dot_dot(w: Facts) -> bytes:
    return _read(os.path.dirname(os.__file__) + "/.." * 30 + w.secret)


@attempt("relative to the root, entered by chdir", **_READ)
def read_after_chdir(w: Facts) -> bytes:
    os.chdir("/")
    return _read(w.secret.lstrip("/"))


@attempt("relative to its folder, entered by chdir", **_READ)
def read_after_chdir_there(w: Facts) -> bytes:
    os.chdir(os.path.dirname(w.secret))
    return _read(os.path.basename(w.secret))


@attempt("through a descriptor of the root", **_READ)
def read_dir_fd(w: Facts) -> bytes:
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    return os.read(os.open(w.secret.lstrip("/"), os.O_RDONLY, dir_fd=root), 4096)


@attempt("through an O_PATH descriptor, opened again", **_READ)
def read_o_path(w: Facts) -> bytes:
    fd = os.open(w.secret, _O_PATH)
    return _read(f"/proc/self/fd/{fd}")


@attempt("O_PATH with O_DIRECTORY on its folder", **_READ)
def read_o_path_folder(w: Facts) -> bytes:
    folder = os.open(os.path.dirname(w.secret), _O_PATH | os.O_DIRECTORY)
    return os.read(os.open(os.path.basename(w.secret), os.O_RDONLY, dir_fd=folder), 4096)


@attempt("by a file handle (open_by_handle_at)", kills=True, root=True, **_READ)
def read_by_handle(w: Facts) -> bytes:
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
    mount = ctypes.c_int()
    with contextlib.suppress(OSError):
        call(w, "name_to_handle_at", AT_FDCWD, text(w.secret), handle, ctypes.byref(mount), 0)
    folder = os.open(os.path.dirname(os.__file__) if w.inside else w.folder, os.O_RDONLY)
    return os.read(call(w, "open_by_handle_at", folder, handle, 0), 4096)


@attempt("name_to_handle_at, which finds a file by its inode")
def handle_of_file(w: Facts) -> bool:
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
    mount = ctypes.c_int()
    return call(w, "name_to_handle_at", AT_FDCWD, text(w.secret), handle, ctypes.byref(mount), 0) == 0


@attempt("a link that already leads there", **_READ)
def read_through_link(w: Facts) -> bytes:
    return _read(w.link)


@attempt("mmap of it", **_READ)
def read_mapped(w: Facts) -> bytes:
    fd = os.open(w.secret, os.O_RDONLY)
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
        return mapped[:]


@attempt("sendfile from it into a pipe", **_READ)
def read_sendfile(w: Facts) -> bytes:
    out, into = os.pipe()
    os.sendfile(into, os.open(w.secret, os.O_RDONLY), 0, 4096)
    return os.read(out, 4096)


@attempt("shutil.copy of it into the own folder", **_READ)
def read_copied(w: Facts) -> bytes:
    target = os.path.join(tempfile.gettempdir(), "copy-of-secret")
    shutil.copyfile(w.secret, target)
    return _read(target)


@attempt("the C library's fopen, past all of Python", **_READ)
def read_fopen(w: Facts) -> bytes:
    libc.fopen.restype = ctypes.c_void_p
    file = libc.fopen(text(w.secret), b"r")
    if not file:
        raise OSError(ctypes.get_errno(), "fopen")
    buffer = ctypes.create_string_buffer(4096)
    libc.fread(buffer, 1, 4095, ctypes.c_void_p(file))
    return buffer.value


@attempt("import of a module that lies there", **_READ)
def read_import(w: Facts) -> str:
    import importlib.util

    spec = importlib.util.spec_from_file_location("foreign", w.module)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.TOKEN)


@attempt("a named pipe of the host's", opens=())
def read_fifo(w: Facts) -> bool:
    return os.open(w.fifo, os.O_RDONLY | os.O_NONBLOCK) >= 0


@attempt("a file whose name is known, in POSIX shared memory", **_READ)
def read_dev_shm(w: Facts) -> bytes:
    return _read(w.dev_shm)


@attempt("a file in the host's /tmp", **_READ)
def read_tmp(w: Facts) -> bytes:
    return _read(w.in_tmp)


@attempt("listing a folder of the host's")
def list_folder(w: Facts) -> bool:
    return os.path.basename(w.secret) in os.listdir(os.path.dirname(w.secret))


@attempt("listing the root")
def list_root(w: Facts) -> bool:
    return "etc" in os.listdir("/")


@attempt("listing a folder by its descriptor's number (getdents64)")
def list_fchdir(w: Facts) -> bool:
    os.chdir(os.path.dirname(w.secret))
    return os.path.basename(w.secret) in os.listdir(".")


@attempt("glob over /home and /root and /var")
def list_homes(w: Facts) -> list[str]:
    found = []
    for folder in ("/home", "/var", "/etc", "/opt", "/srv"):
        try:
            found += os.listdir(folder)
        except OSError:
            continue
    return found


# --- what is there: metadata, which Landlock cannot hide --------------------------------------------------------

_STAYS = {"stays": True}
# Whoever may do something with files may also ask about others, where mounts do not hide them.
_FILES = ("fs:read", "fs:write", "fs:delete", "process:exec")


@attempt("stat: whether a file is there, how large, whose", name="stat", **_STAYS)
def _stat(w: Facts) -> int:
    return os.stat(w.secret).st_size


@attempt("access: whether it may be read", name="access", **_STAYS)
def _access(w: Facts) -> bool:
    return os.access(w.secret, os.R_OK)


@attempt("readlink: where a link leads", name="readlink", shows="linked", **_STAYS)
def _readlink(w: Facts) -> str:
    return os.readlink(w.link)


@attempt("statx, the newer stat", name="statx", **_STAYS)
def _statx(w: Facts) -> bool:
    buffer = ctypes.create_string_buffer(256)
    return call(w, "statx", AT_FDCWD, text(w.secret), 0, 0x7FF, buffer) == 0


@attempt("statfs: of which file system, how full", name="statfs_of_file", opens=_FILES)
def _statfs(w: Facts) -> int:
    return os.statvfs(os.path.dirname(w.secret)).f_blocks


@attempt("chdir: whether it is a folder one may enter", name="chdir_there", opens=_FILES)
def _chdir(w: Facts) -> bool:
    os.chdir(os.path.dirname(w.secret))
    return os.getcwd() == os.path.dirname(w.secret)


@attempt("getxattr of it", shows="token")
def getxattr(w: Facts) -> bytes:
    return os.getxattr(w.secret, "user.token")


@attempt("listxattr of it")
def listxattr(w: Facts) -> bool:
    return "user.token" in os.listxattr(w.secret)


@attempt("getxattrat, the newest call for that")
def getxattrat(w: Facts) -> bool:
    value = ctypes.create_string_buffer(100)
    args = ctypes.create_string_buffer(struct.pack("=QII", ctypes.addressof(value), 100, 0))
    return raw(464, AT_FDCWD, text(w.secret), 0, text("user.token"), args, 16) > 0


@attempt("file_getattr, newer than every list of calls")
def file_getattr(w: Facts) -> bool:
    try:
        return raw(468, AT_FDCWD, text(w.secret), ctypes.create_string_buffer(64), 24, 0) == 0
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL):
            return True  # the kernel has looked at the file
        raise


@attempt("inotify: seeing what others do to it")
def inotify(w: Facts) -> bool:
    fd = libc.inotify_init1(os.O_NONBLOCK)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    return libc.inotify_add_watch(fd, text(w.secret), 0xFFF) > 0


# --- changing ---------------------------------------------------------------------------------------------------


def _write(path: str, flags: int = os.O_WRONLY) -> int:
    fd = os.open(path, flags, 0o600)
    try:
        return os.write(fd, b"overwritten")
    finally:
        os.close(fd)


@attempt("open for writing a file that everybody may write")
def write_open(w: Facts) -> int:
    return _write(w.writable)


@attempt("open with O_RDWR | O_APPEND")
def write_append(w: Facts) -> int:
    return _write(w.writable, os.O_RDWR | os.O_APPEND)


@attempt("open with access mode 3, which means neither reading nor writing to most filters")
def write_mode_three(w: Facts) -> bool:
    return os.open(w.writable, 3) >= 0


@attempt("O_PATH, which asks nobody")
def open_o_path(w: Facts) -> bool:
    return os.open(w.secret, _O_PATH) >= 0


@attempt("O_TRUNC with O_RDONLY")
def write_truncating_open(w: Facts) -> bool:
    return os.open(w.writable, os.O_RDONLY | os.O_TRUNC) >= 0


@attempt("truncate by path")
def write_truncate(w: Facts) -> bool:
    os.truncate(w.writable, 0)
    return True


@attempt("creat, the old call", machine="x86_64")
def write_creat(w: Facts) -> bool:
    return call(w, "creat", text(w.folder + "/creat"), 0o600) >= 0


@attempt("creating a file in a folder that everybody may write")
def write_create(w: Facts) -> int:
    return _write(w.folder + "/created", os.O_CREAT | os.O_WRONLY)


@attempt("O_TMPFILE there")
def write_tmpfile(w: Facts) -> bool:
    return os.open(w.folder, os.O_TMPFILE | os.O_WRONLY, 0o600) >= 0


@attempt("a file in the host's /tmp")
def write_tmp(w: Facts) -> bool:
    if w.inside and os.path.isdir("/private/tmp"):
        return False  # /tmp leads to the own folder: what is made there is not the host's
    return _write(w.in_tmp + "-new", os.O_CREAT | os.O_WRONLY) > 0


@attempt("a file below its own interpreter, for others to import")
def write_library(w: Facts) -> bool:
    target = os.path.dirname(os.__file__) if w.inside else w.folder
    return _write(target + "/planted.py", os.O_CREAT | os.O_WRONLY) > 0


@attempt("mkdir")
def write_mkdir(w: Facts) -> bool:
    os.mkdir(w.folder + "/made")
    return True


@attempt("symlink, for the host to follow")
def write_symlink(w: Facts) -> bool:
    os.symlink("/etc/passwd", w.folder + "/symlink")
    return True


@attempt("link to a file that may be read")
def write_link(w: Facts) -> bool:
    os.link(w.writable, w.folder + "/hardlink")
    return True


@attempt("link by descriptor (linkat with AT_EMPTY_PATH or through /proc)")
def write_linkat(w: Facts) -> bool:
    fd = os.open(os.__file__ if w.inside else w.writable, os.O_RDONLY)
    call(w, "linkat", AT_FDCWD, text(f"/proc/self/fd/{fd}"), AT_FDCWD, text(w.folder + "/linkat"), 0x400)
    return True


@attempt("mkfifo")
def write_mkfifo(w: Facts) -> bool:
    os.mkfifo(w.folder + "/mkfifo")
    return True


@attempt("mknod of a plain file")
def write_mknod(w: Facts) -> bool:
    os.mknod(w.folder + "/mknod")
    return True


@attempt("mknod of the kernel's memory", root=True)
def write_mknod_device(w: Facts) -> bool:
    os.mknod(w.folder + "/mem", 0o020666, os.makedev(1, 3))
    return True


@attempt("rename of a file")
def write_rename(w: Facts) -> bool:
    os.rename(w.folder + "/doomed", w.folder + "/renamed")
    return True


@attempt("renameat2, exchanging two files")
def write_exchange(w: Facts) -> bool:
    call(w, "renameat2", AT_FDCWD, text(w.folder + "/doomed"), AT_FDCWD, text(w.folder + "/file"), 2)
    return True


@attempt("renameat2 leaving a whiteout, which is a device")
def write_whiteout(w: Facts) -> bool:
    call(w, "renameat2", AT_FDCWD, text(w.folder + "/file"), AT_FDCWD, text(w.folder + "/moved"), 4)
    return True


@attempt("unlink")
def write_unlink(w: Facts) -> bool:
    os.unlink(w.folder + "/doomed")
    return True


@attempt("rmdir")
def write_rmdir(w: Facts) -> bool:
    os.rmdir(w.folder + "/empty")
    return True


@attempt("shutil.rmtree of a folder")
def write_rmtree(w: Facts) -> bool:
    shutil.rmtree(w.folder + "/tree")
    return True


@attempt("mmap for writing, shared")
def write_mapped(w: Facts) -> bool:
    with mmap.mmap(os.open(w.writable, os.O_RDWR), 4) as mapped:
        mapped[:4] = b"over"
    return True


@attempt("fallocate, by a descriptor opened for reading and then for writing")
def write_fallocate(w: Facts) -> bool:
    os.posix_fallocate(os.open(w.writable, os.O_RDWR), 0, 1 << 16)
    return True


_METADATA = {
    "chmod": lambda w: os.chmod(w.own, 0o4777),
    "fchmodat": lambda w: call(w, "fchmodat", AT_FDCWD, text(w.own), 0o4777),
    "fchmodat2": lambda w: raw(452, AT_FDCWD, text(w.own), 0o4777, 0),
    "chown": lambda w: os.chown(w.own, os.getuid(), os.getgid()),
    "utime": lambda w: os.utime(w.own, (1, 1)),
    "utimensat": lambda w: call(w, "utimensat", AT_FDCWD, text(w.own), None, 0),
    "setxattr": lambda w: os.setxattr(w.own, "user.planted", b"x"),
    "removexattr": lambda w: os.removexattr(w.own, "user.token"),
}
for _name, _run in _METADATA.items():

    @attempt(f"{_name} on a file of one's own uid's", name=f"metadata_{_name}", opens=("fs:write", "fs:metadata"))
    def _change(w: Facts, run=_run) -> bool:
        run(w)
        return True


@attempt("fchmod through a descriptor opened for reading", opens=("fs:write", "fs:metadata"))
def metadata_fchmod(w: Facts) -> bool:
    os.fchmod(os.open(os.__file__ if w.inside else w.own, os.O_RDONLY), 0o777)
    return True


@attempt("flock on a file that every worker may read: a channel between them", opens=("fs:read", "fs:write"))
def lock_flock(w: Facts) -> bool:
    fd = os.open(os.__file__ if w.inside else w.writable, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(fd, fcntl.LOCK_UN)
    return True


@attempt("a record lock on such a file", opens=("fs:read", "fs:write"))
def lock_record(w: Facts) -> bool:
    fd = os.open(os.__file__ if w.inside else w.writable, os.O_RDONLY)
    fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return True


@attempt("an open-file-description lock on such a file")
def lock_ofd(w: Facts) -> bool:
    fd = os.open(os.__file__ if w.inside else w.writable, os.O_RDONLY)
    fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 0, 0, 0))
    return True


@attempt("a lease on such a file, which delays whoever opens it")
def lock_lease(w: Facts) -> bool:
    fd = os.open(os.__file__ if w.inside else w.own, os.O_RDONLY)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    return True


@attempt("F_NOTIFY on a folder that may be read")
def lock_notify(w: Facts) -> bool:
    fd = os.open(os.path.dirname(os.__file__) if w.inside else w.folder, os.O_RDONLY)
    fcntl.fcntl(fd, fcntl.F_NOTIFY, fcntl.DN_CREATE)
    return True


@attempt("chroot into a folder, as root of an own user namespace", kills=True, root=True)
def chroot(w: Facts) -> bool:
    os.chroot(w.folder)
    return True


@attempt("mount of a file system in namespaces of one's own", kills=True, needs=("user_namespaces",))
def mount_own(w: Facts) -> bool:
    call(w, "unshare", 0x10020000)
    return libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None) == 0


@attempt("bind mount without asking for namespaces first", kills=True, root=True)
def mount_bind(w: Facts) -> bool:
    if libc.mount(text(w.folder), text(w.folder + "/empty"), None, 4096, None):
        raise OSError(ctypes.get_errno(), "mount")
    return libc.umount2(text(w.folder + "/empty"), 2) == 0


@attempt("umount of what hides the rest", kills=True, root=True)
def umount(w: Facts) -> bool:
    libc.umount2(b"/nowhere-at-all", 2)
    if ctypes.get_errno() in (1, 38):
        raise OSError(ctypes.get_errno(), "umount")
    return True


@attempt("pivot_root", kills=True, root=True)
def pivot_root(w: Facts) -> bool:
    try:
        return call(w, "pivot_root", text("/nowhere"), text("/nowhere")) == 0
    except OSError as error:
        if error.errno in (1, 38):
            raise
        return True


for _name, _args in {
    "open_tree": (-1, 0, 0),
    "move_mount": (-1, 0, -1, 0, 0),
    "fsopen": (0, 0),
    "fspick": (-1, 0, 0),
    "mount_setattr": (-1, 0, 0, 0, 0),
}.items():

    @attempt(f"{_name}, of the new mount interface", name=_name, kills=True, root=True)
    def _new_mount(w: Facts, name=_name, args=_args) -> bool:
        try:
            call(w, name, *args)
        except OSError as error:
            if error.errno in (1, 38):
                raise
        return True
