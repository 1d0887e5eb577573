"""What the foreign peers share: output, heartbeats, a bound on their time, sequence numbers.

The peers are real libzmq sockets (pyzmq), so a test that passes with them shows that our side speaks
with libzmq, not only with itself. Each script prints one fact a line on standard output, flushed at
once, and reports errors on standard error. Exit status: 0 done, 1 failed or out of time, 2 usage.
"""

import os
import struct
import sys
import threading

import zmq

HOST = "127.0.0.1"

# The protobuf message Meta with only its required field 14, dataType = "binary/bytes".
META_BYTES = b"r\x0cbinary/bytes"

SEQUENCE = struct.Struct("<Q")


def say(*words):
    """Prints one line of the script's machine-readable output."""
    print(*words, flush=True)


def bound(seconds, last_line=None):
    """Ends the process with status 1 after `seconds`, whatever it is doing.

    `last_line` is called for the line to print. A thread does it, so it also works while libzmq
    blocks, as in terminating a context whose messages nobody takes.
    """

    def expire():
        line = last_line() if last_line else "timeout"
        # Not print(): the main thread may hold the lock of the buffered standard output.
        os.write(1, f"{line}\n".encode())
        os._exit(1)

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()


def open_socket(context, kind, heartbeat=None, identity=None, linger=0):
    """A socket without high-water marks, as every xMsg peer sets them.

    `heartbeat` is the interval in milliseconds; libzmq then also takes it as the time within which it
    expects an answer.
    """
    socket = context.socket(kind)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.LINGER, linger)
    if heartbeat:
        socket.setsockopt(zmq.HEARTBEAT_IVL, heartbeat)
    if identity is not None:
        socket.setsockopt(zmq.IDENTITY, identity)
    return socket


def add_arguments(parser, timeout):
    """The options that every peer has."""
    parser.add_argument("--heartbeat", type=int, metavar="MS", help="send ZMTP heartbeats at this interval")
    parser.add_argument("--timeout", type=float, default=timeout, metavar="SECONDS",
                        help=f"give up, with status 1, after this time (default {timeout:g})")


def fail(reason):
    """Ends the script with status 1 and says why."""
    sys.exit(f"{os.path.basename(sys.argv[0])}: {reason}")
