#!/usr/bin/env python3
"""A libzmq socket that does one thing.

    zmq_socket.py TYPE bind|connect ENDPOINT send COUNT|receive COUNT|echo|ask COUNT

    send COUNT      sends messages of two frames: the number, and "data"
    receive COUNT   receives these messages in order, and prints "done"
    echo            sends back what it receives until its standard input ends
    ask COUNT       sends these messages, each after the one before came back, and prints "done"

It first prints "ready ENDPOINT", with the actual port. A PUB sends "hello" until it reads a line, which means
that a peer receives its messages. An XPUB waits for a subscription. When the script reads a line, it waits
until its connection has ended, and prints "settled". With --rounds COUNT it then repeats everything.

Options: --late (the socket is not used until a line was read), --identity NAME, --security plain|curve (as a
server if it binds, and otherwise as a client), --server-key KEY, --public-key KEY, --secret-key KEY. Keys are
in Z85.
"""

import argparse
import select
import sys
import threading
import time

import zmq
from zmq.utils.monitor import recv_monitor_message

PATIENCE_MS = 60_000


def secure(context, socket, options):
    if options.security == "plain":
        if options.end == "bind":
            # The import takes as long as everything else.
            import zmq.auth.thread

            authenticator = zmq.auth.thread.ThreadAuthenticator(context)
            authenticator.start()
            authenticator.configure_plain(domain="*", passwords={"user": "secret"})
            socket.plain_server = True
            return authenticator
        else:
            socket.plain_username, socket.plain_password = b"user", b"secret"
    if options.security == "curve":
        socket.curve_publickey, socket.curve_secretkey = options.public_key.encode(), options.secret_key.encode()
        if options.end == "bind":
            socket.curve_server = True
        else:
            socket.curve_serverkey = options.server_key.encode()
    return None


def wait_for_end(monitor):
    """Waits until the connection has ended, and the socket has noticed it."""
    recv_monitor_message(monitor)
    # The socket itself notices it just after the monitor.
    time.sleep(0.05)
    print("settled", flush=True)


def wait_for_subscriber(socket, options):
    if options.type == "PUB":
        while not select.select([sys.stdin], [], [], 0.001)[0]:
            socket.send(b"hello")
        sys.stdin.readline()
    if options.type == "XPUB":
        # The end of an earlier subscription may arrive first.
        while socket.recv() != b"\x01":
            pass


def act(socket, options):
    if options.action == "send":
        for number in range(options.count):
            socket.send_multipart([str(number).encode(), b"data"])
    elif options.action == "receive":
        for number in range(options.count):
            frames = socket.recv_multipart()
            assert frames == [str(number).encode(), b"data"], (number, frames)
    else:
        envelope = [b""] if options.type == "DEALER" else []
        for number in range(options.count):
            question = [*envelope, str(number).encode(), b"data"]
            socket.send_multipart(question)
            answer = socket.recv_multipart()
            assert answer == question, (number, answer)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("type")
    parser.add_argument("end", choices=["bind", "connect"])
    parser.add_argument("endpoint")
    parser.add_argument("action", choices=["send", "receive", "echo", "ask"])
    parser.add_argument("count", type=int, nargs="?", default=0)
    parser.add_argument("--security", choices=["null", "plain", "curve"], default="null")
    parser.add_argument("--identity", default="")
    parser.add_argument("--late", action="store_true")
    parser.add_argument("--rounds", type=int, default=1)
    for key in ["--server-key", "--public-key", "--secret-key"]:
        parser.add_argument(key, default="")
    options = parser.parse_args()
    context = zmq.Context()
    socket = context.socket(getattr(zmq, options.type))
    socket.rcvtimeo = socket.sndtimeo = PATIENCE_MS
    socket.linger = PATIENCE_MS if options.action == "send" else 0
    if options.identity:
        socket.routing_id = options.identity.encode()
    if options.type == "SUB":
        socket.subscribe(b"")
    authenticator = secure(context, socket, options)
    monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    if options.type == "XPUB":
        # With this option, the socket also reports a subscription that a reconnected peer repeats.
        socket.xpub_verbose = True
    if options.type in ("PUB", "XPUB"):
        # Otherwise the socket would drop messages beyond its high-water mark.
        socket.sndhwm = 0
    getattr(socket, options.end)(options.endpoint)
    if options.type == "XSUB":
        socket.send(b"\x01")
    endpoint = socket.last_endpoint.decode().rstrip("\0") if options.end == "bind" else options.endpoint
    print("ready", endpoint, flush=True)
    if options.late:
        sys.stdin.readline()
    if options.action != "echo":
        for number in range(options.rounds):
            if number > 0:
                if not sys.stdin.readline():
                    break
                wait_for_end(monitor)
            wait_for_subscriber(socket, options)
            act(socket, options)
            print("done", flush=True)
        sys.stdin.read()
    else:

        def end():
            while sys.stdin.readline():
                wait_for_end(monitor)
            if authenticator:
                authenticator.stop()
            context.term()

        threading.Thread(target=end, daemon=True).start()
        try:
            while True:
                frames = socket.recv_multipart()
                socket.send_multipart(frames)
        except zmq.ContextTerminated:
            pass
        socket.close()
        return
    socket.disable_monitor()
    monitor.close(linger=0)
    socket.close()
    if authenticator:
        authenticator.stop()
    context.term()


if __name__ == "__main__":
    main()
