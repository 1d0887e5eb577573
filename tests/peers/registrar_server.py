#!/usr/bin/env python3
"""A minimal registrar on a REP socket for our client: it stores frames and returns all of them.

    registrar_server.py [--silent N]

It prints `listening PORT`, and then `request ACTION` for each request. The first N requests are answered only
when the next one arrives over the same socket, which is too late for the client that waits for the answer.
The script ends when its standard input does.
"""

import argparse
import sys
import threading
import os

import zmq

import peer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--silent", type=int, default=0)
    peer.add_arguments(parser, 120)
    args = parser.parse_args()
    peer.bound(args.timeout)

    def ends():
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=ends, daemon=True).start()
    context = zmq.Context()
    # A REP socket has to answer before it receives again. A ROUTER need not.
    socket = peer.open_socket(context, zmq.ROUTER, args.heartbeat)
    port = socket.bind_to_random_port(f"tcp://{peer.HOST}")
    peer.say("listening", port)
    kept, late = [], []
    while True:
        *envelope, action, sender, data = socket.recv_multipart()
        peer.say("request", action.decode())
        reply = [*envelope, action, b"server:registrar", b"success"]
        if action.startswith(b"register"):
            kept.append(data)
        elif not action.startswith(b"remove"):
            reply += kept
        if len(late) < args.silent:
            late.append(reply)
            continue
        for old in late:
            socket.send_multipart(old)
        args.silent, late = 0, []
        socket.send_multipart(reply)


if __name__ == "__main__":
    main()
