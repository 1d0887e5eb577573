"""Starts a program with listening sockets, as systemd does.

    systemd.py NAMES PROGRAM [ARGUMENT…]

NAMES are the names of the sockets (FileDescriptorName=), separated by colons. Sockets named "proxy" get
consecutive ports. The program replaces this process, so that LISTEN_PID is right.
"""

import fcntl
import os
import socket
import sys

FIRST = 3
# These numbers do not collide with the descriptors that the program gets.
ASIDE = 100


def listen(port):
    one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    one.bind(("127.0.0.1", port))
    one.listen(128)
    return one


def in_a_row(count):
    """Returns this many sockets on consecutive ports."""
    while True:
        found = [listen(0)]
        port = found[0].getsockname()[1]
        try:
            found += [listen(port + offset) for offset in range(1, count)]
            return found
        except (OSError, OverflowError):
            for one in found:
                one.close()


names = sys.argv[1].split(":") if sys.argv[1] else []
proxy = in_a_row(names.count("proxy")) if "proxy" in names else []
sockets = [proxy.pop() if name == "proxy" else listen(0) for name in names]
aside = [fcntl.fcntl(one.fileno(), fcntl.F_DUPFD, ASIDE) for one in sockets]
for number, descriptor in enumerate(aside, FIRST):
    os.dup2(descriptor, number, inheritable=True)
    os.close(descriptor)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(names)), LISTEN_FDNAMES=":".join(names))
os.execv(sys.argv[2], sys.argv[2:])
