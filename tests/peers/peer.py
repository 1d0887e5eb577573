"""The common parts of the foreign peers: output, heartbeats, a time limit, and sequence numbers.

The peers are real libzmq sockets (pyzmq), so a test that passes with them shows that our side works with
libzmq, and not only with itself. Each script prints one fact per line on standard output, flushed at once,
and reports errors on standard error. The exit status is 0 for success, 1 for a failure or a timeout, and 2
for wrong usage.
"""

import argparse
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


SECURITY = {}


def secure(socket, inside):
    """Sets the options of --curve-server, --curve-client or --plain. `inside`: for a client of our server."""
    if "curve-server" in SECURITY and inside:
        (secret,) = SECURITY["curve-server"]
        socket.curve_serverkey = zmq.curve_public(secret.encode())
        socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
    elif "curve-server" in SECURITY:
        (secret,) = SECURITY["curve-server"]
        socket.curve_server = True
        socket.curve_secretkey = secret.encode()
    elif "curve-client" in SECURITY:
        server, secret = SECURITY["curve-client"]
        socket.curve_serverkey = server.encode()
        socket.curve_publickey = zmq.curve_public(secret.encode())
        socket.curve_secretkey = secret.encode()
    elif "plain" in SECURITY:
        user, password = SECURITY["plain"]
        socket.plain_username = user.encode()
        socket.plain_password = password.encode()


class Secure(argparse.Action):
    """Stores the values of an option for every socket."""

    def __call__(self, parser, namespace, values, option_string=None):
        SECURITY[self.dest] = values


# The number of unanswered heartbeats after which a connection is ended.
HEARTBEATS_MISSED = 40


def open_socket(context, kind, heartbeat=None, identity=None, linger=0, inside=False):
    """Returns a socket without high-water marks, like those of every xMsg peer.

    `heartbeat` is the interval in milliseconds. On a loaded machine an answer may take longer than that, so libzmq
    gives up after HEARTBEATS_MISSED of them.
    """
    socket = context.socket(kind)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.LINGER, linger)
    if heartbeat:
        socket.setsockopt(zmq.HEARTBEAT_IVL, heartbeat)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEATS_MISSED * heartbeat)
    secure(socket, inside)
    if identity is not None:
        socket.setsockopt(zmq.IDENTITY, identity)
    return socket


def add_arguments(parser, timeout):
    """Adds the options that every peer has."""
    parser.add_argument("--heartbeat", type=int, metavar="MS", help="send ZMTP heartbeats at this interval")
    parser.add_argument("--curve-server", dest="curve-server", action=Secure, nargs=1, metavar="SECRET",
                        help="be a CURVE server with this secret key, which lets everybody in")
    parser.add_argument("--curve-client", dest="curve-client", action=Secure, nargs=2, metavar=("SERVER", "SECRET"),
                        help="use CURVE towards the server of this public key, with this secret key")
    parser.add_argument("--plain", dest="plain", action=Secure, nargs=2, metavar=("USER", "PASSWORD"),
                        help="use PLAIN")
    parser.add_argument("--timeout", type=float, default=timeout, metavar="SECONDS",
                        help=f"give up, with status 1, after this time (default {timeout:g})")


def fail(reason):
    """Ends the script with status 1 and prints the reason."""
    sys.exit(f"{os.path.basename(sys.argv[0])}: {reason}")
