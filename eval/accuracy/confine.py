"""Inside the sandbox's process: give up what the program must not have, then run it. Never imported; see sandbox.py.

`python -I confine.py FOLDER READY_FD PARENT LIMITS` confines itself and runs FOLDER/program.py:

limits    CPU seconds, address space, size of a file, open files (setrlimit; nobody but root may raise them again)
root      its capabilities are dropped, so that root is a user like any other
Landlock  files: reads only what Python is made of and FOLDER; creates and writes in FOLDER alone, and removes nothing
seccomp   system calls: a list of those that a computation needs. No process is ever made (threads are), so nothing can
          outlive this one; no sockets, no signals to others, no execution of programs

It writes one byte to READY_FD between the last of these and the program's first line.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import types

EPERM, ENOSYS = 1, 38
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 24, 38

# Landlock: linux/landlock.h. The system calls have the same numbers on every architecture.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
WRITE_FILE, READ_FILE, READ_DIR, MAKE_REG, TRUNCATE = (1 << bit for bit in (1, 2, 3, 8, 14))
#: Bits that each version knows: all of what a right can be asked for is asked for, and so denied unless given.
RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
NET_RIGHTS, SCOPES = 3, 3  # from version 4: bind and connect; from 6: abstract sockets and signals

# seccomp: libseccomp's seccomp.h
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
LE, EQ, MASKED_EQ = 3, 4, 7
SYSTEM_CALLS = """
    read write readv writev pread64 pwrite64 preadv pwritev lseek close close_range dup dup2 dup3 pipe pipe2
    stat lstat fstat newfstatat statx statfs fstatfs access faccessat faccessat2 readlink readlinkat getdents64 getcwd
    chdir fchdir umask ftruncate fsync fdatasync flock
    sendfile copy_file_range select pselect6 poll ppoll epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait
    eventfd2 mmap mprotect munmap mremap madvise brk membarrier
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack pause
    nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times alarm getitimer setitimer
    getpid getppid gettid getuid geteuid getgid getegid getgroups getresuid getresgid getpgrp getpgid getsid
    getrlimit getrusage sysinfo uname getcpu getrandom sched_yield sched_getaffinity sched_getscheduler sched_getparam
    futex futex_waitv set_robust_list get_robust_list rseq arch_prctl set_tid_address restart_syscall exit exit_group
"""
#: Bits of an `open` that are looked at: with O_TMPFILE's own set, no rule matches. A file without a name, like one that
#: has been removed, would not be counted among the folder's.
O_ACCESS_OR_TRUNCATE = os.O_ACCMODE | os.O_TRUNC | (os.O_TMPFILE & ~os.O_DIRECTORY)
CLONE_THREAD = 0x00010000
FCNTL_LAST_HARMLESS = 7  # the next ones choose whom signals go to
#: Calls allowed for some arguments: (number of the argument, comparison, value[, value behind a mask]).
SOME_OF = [
    *[("kill", (0, EQ, os.getpid())), ("tgkill", (0, EQ, os.getpid())), ("prlimit64", (0, EQ, 0))],
    ("clone", (0, MASKED_EQ, CLONE_THREAD, CLONE_THREAD)),
    *[
        ("fcntl", (1, LE, FCNTL_LAST_HARMLESS)),
        ("fcntl", (1, EQ, 1030)),
        ("prctl", (0, EQ, 15)),
        ("prctl", (0, EQ, 16)),
    ],
    *[("ioctl", (1, EQ, request)) for request in (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)],
    # Opening for reading must not truncate, which Landlock notices from version 3 only.
    *[("open", (1, MASKED_EQ, O_ACCESS_OR_TRUNCATE, mode)) for mode in (0, 1, 2, 1 | os.O_TRUNC, 2 | os.O_TRUNC)],
    *[("openat", (2, MASKED_EQ, O_ACCESS_OR_TRUNCATE, mode)) for mode in (0, 1, 2, 1 | os.O_TRUNC, 2 | os.O_TRUNC)],
]

libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """What this machine lacks."""


class Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


class Comparison(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def _must(result: int, what: str) -> int:
    if result < 0:
        raise Refused(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def limit(limits: dict[str, int]) -> None:
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def drop_capabilities() -> None:
    number = 0
    while libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) == 0:
        number += 1
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _must(libc.capset(header, (ctypes.c_uint32 * 6)()), "capabilities cannot be dropped")
    _must(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def restrict_files(folder: str) -> None:
    version = libc.syscall(CREATE_RULESET, None, 0, 1)
    if version < 1:
        raise Refused("this kernel has no Landlock (Linux 5.13 or later, with `landlock` among its security modules)")
    rights = RIGHTS[min(version, max(RIGHTS))]
    rules = Ruleset(rights, NET_RIGHTS if version >= 4 else 0, SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _must(libc.syscall(CREATE_RULESET, ctypes.byref(rules), size, 0), "Landlock")

    def allow(path: str, wanted: int) -> None:
        if not os.path.exists(path):
            return
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not os.path.isdir(path):
            wanted &= WRITE_FILE | READ_FILE | TRUNCATE
        beneath = Beneath(wanted & rights, parent)
        _must(libc.syscall(ADD_RULE, ruleset, 1, ctypes.byref(beneath), 0), f"Landlock, {path}")
        os.close(parent)

    python = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    for path in (*python, "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/dev/zero"):
        allow(path, READ_FILE | READ_DIR)
    allow("/dev/null", READ_FILE | WRITE_FILE)
    allow(folder, READ_FILE | READ_DIR | WRITE_FILE | MAKE_REG | TRUNCATE)
    _must(libc.syscall(RESTRICT_SELF, ruleset, 0), "Landlock")
    os.close(ruleset)


def restrict_calls() -> None:
    try:
        seccomp = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError as error:
        raise Refused("there is no libseccomp.so.2 (Debian, Ubuntu: apt install libseccomp2)") from error
    seccomp.seccomp_init.restype = ctypes.c_void_p
    seccomp.seccomp_rule_add_array.argtypes = [
        *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
    ]
    seccomp.seccomp_load.argtypes = [ctypes.c_void_p]
    rules = seccomp.seccomp_init(ctypes.c_uint32(ERRNO | EPERM))

    def add(action: int, name: str, *comparisons: tuple[int, ...]) -> None:
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number == -1:
            return  # unknown to this libseccomp, and so denied
        given = (Comparison * max(1, len(comparisons)))(*(Comparison(*(*c, 0)[:4]) for c in comparisons))
        if seccomp.seccomp_rule_add_array(rules, action, number, len(comparisons), given) < 0:
            raise Refused(f"seccomp has no rule for {name}")

    for name in SYSTEM_CALLS.split():
        add(ALLOW, name)
    for name, comparison in SOME_OF:
        add(ALLOW, name, comparison)
    add(ERRNO | ENOSYS, "clone3")  # its flags cannot be seen; libc then uses clone
    failed = seccomp.seccomp_load(rules)
    if failed < 0:
        raise Refused(f"seccomp filters cannot be loaded ({os.strerror(-failed)})")


def main(folder: str, ready: str, parent: str, limits: str) -> None:
    _must(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if os.getppid() != int(parent):
        return  # whoever asked is gone
    with open(f"{folder}/program.py", encoding="utf-8") as file:
        source = file.read()
    try:
        limit(json.loads(limits))
        drop_capabilities()
        restrict_files(folder)
        restrict_calls()
    except (Refused, OSError, ValueError, AttributeError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = ["program.py"]
    os.write(int(ready), b"+")
    os.close(int(ready))
    exec(compile(source, "program.py", "exec"), module.__dict__)


if __name__ == "__main__":
    main(*sys.argv[1:])
