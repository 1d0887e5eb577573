#!/usr/bin/env python3
"""A registrar on a REP socket, as far as our client needs one: it keeps frames and hands all of them out.

    registrar_server.py [--silent N]

Lines printed: `listening PORT`, then `request ACTION` for each request. The first N requests are answered only when the next
one comes, over the same socket: too late for whoever waits for them. It ends when its standard input does.
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
    # A REP socket answers before it hears again; a ROUTER may be silent.
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
