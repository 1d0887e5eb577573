#!/usr/bin/env python3
"""A ZeroMQ socket of libzmq that does one thing.

    zmq_socket.py TYPE bind|connect ENDPOINT send COUNT     sends messages of two frames, its number and "data"
    zmq_socket.py TYPE bind|connect ENDPOINT receive COUNT  receives as many, in their order, and says "done"
    zmq_socket.py TYPE bind|connect ENDPOINT echo           sends back what it receives, until its standard input ends

Says "ready ENDPOINT" first, with the actual port. Options: --security plain|curve (as a server if it binds, else as a client),
--server-key KEY, --public-key KEY, --secret-key KEY, in Z85.
"""

import argparse
import sys
import threading

import zmq
import zmq.auth.thread

PATIENCE_MS = 60_000


def secure(context, socket, options):
    if options.security == "plain":
        if options.end == "bind":
            authenticator = zmq.auth.thread.ThreadAuthenticator(context)
            authenticator.start()
            authenticator.configure_plain(domain="*", passwords={"user": "secret"})
            socket.plain_server = True
        else:
            socket.plain_username, socket.plain_password = b"user", b"secret"
    if options.security == "curve":
        socket.curve_publickey, socket.curve_secretkey = options.public_key.encode(), options.secret_key.encode()
        if options.end == "bind":
            socket.curve_server = True
        else:
            socket.curve_serverkey = options.server_key.encode()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("type")
    parser.add_argument("end", choices=["bind", "connect"])
    parser.add_argument("endpoint")
    parser.add_argument("action", choices=["send", "receive", "echo"])
    parser.add_argument("count", type=int, nargs="?", default=0)
    parser.add_argument("--security", choices=["null", "plain", "curve"], default="null")
    for key in ["--server-key", "--public-key", "--secret-key"]:
        parser.add_argument(key, default="")
    options = parser.parse_args()
    context = zmq.Context()
    socket = context.socket(getattr(zmq, options.type))
    socket.rcvtimeo = socket.sndtimeo = PATIENCE_MS
    socket.linger = PATIENCE_MS if options.action == "send" else 0
    if options.type == "SUB":
        socket.subscribe(b"")
    secure(context, socket, options)
    getattr(socket, options.end)(options.endpoint)
    endpoint = socket.last_endpoint.decode().rstrip("\0") if options.end == "bind" else options.endpoint
    print("ready", endpoint, flush=True)
    if options.action == "send":
        for number in range(options.count):
            socket.send_multipart([str(number).encode(), b"data"])
        print("done", flush=True)
        sys.stdin.read()
    elif options.action == "receive":
        for number in range(options.count):
            frames = socket.recv_multipart()
            assert frames == [str(number).encode(), b"data"], (number, frames)
        print("done", flush=True)
        sys.stdin.read()
    else:
        threading.Thread(target=lambda: (sys.stdin.read(), context.term()), daemon=True).start()
        try:
            while True:
                frames = socket.recv_multipart()
                socket.send_multipart(frames)
        except zmq.ContextTerminated:
            pass
        socket.close()
        return
    socket.close()
    context.term()


if __name__ == "__main__":
    main()
