"""System calls that no exercise needs, refused in the sandbox: a seccomp filter, as bwrap takes it.

Some would hold memory that no process is charged for (System V memory stays when it is detached, a
tmpfs in a namespace of one's own has no limit); others are doors to the kernel that need not be
open. The rest is what bubblewrap and the limits of `sandbox` are for. The program is classic BPF:
https://docs.kernel.org/userspace-api/seccomp_filter.html
"""

import platform
import struct

# name -> its number on (x86_64, aarch64), from the kernel's tables
REFUSED = {
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "ptrace": (101, 117),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "perf_event_open": (298, 241),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "clone3": (435, 435),  # its flags cannot be looked at; glibc then uses clone
}
CLONE = (56, 220)
NEW_NAMESPACES = 0x7E02_0000  # CLONE_NEWUSER and the like, in the first argument of clone
MACHINES = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}  # as the kernel names them in `arch`
X32 = 0x4000_0000  # numbers from here on are x86_64's second set of the same calls
NUMBER, ARCH, ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, NO_SUCH_CALL = 0x7FFF_0000, 0x8000_0000, 0x0005_0000 | 38  # 38: ENOSYS


def seccomp_filter(machine: str = "") -> bytes:
    """The filter's program; empty on machines whose numbers are not known here."""
    machine = machine or platform.machine()
    if machine not in MACHINES:
        return b""
    column = list(MACHINES).index(machine)
    numbers = [both[column] for both in REFUSED.values()]
    tests = [(AT_LEAST, X32), *((EQUAL, number) for number in numbers)]
    program = [
        (LOAD, 0, 0, ARCH),
        (EQUAL, 1, 0, MACHINES[machine]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
    ]
    to_the_end = len(tests) + 3  # steps from the first test to the last line
    program += [(code, to_the_end - at, 0, value) for at, (code, value) in enumerate(tests)]
    program += [
        (EQUAL, 0, 2, CLONE[column]),
        (LOAD, 0, 0, ARGUMENT),
        (ANY_BIT, 1, 0, NEW_NAMESPACES),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, NO_SUCH_CALL),
    ]
    return b"".join(struct.pack("<HBBI", *line) for line in program)
