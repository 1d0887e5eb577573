#!/usr/bin/env python3
"""A forwarder of libzmq: `zmq.proxy` between an XSUB and an XPUB socket, as ZeroMQ's guide has it.

    forwarder.py [--subscribe-at PORT]... [--publish-at PORT]... [--timeout SECONDS]

Prints `listening XSUB XPUB`, the two ports that it listens on, and runs until its standard input closes. Its XSUB socket also connects to
each port of --subscribe-at, and its XPUB socket to each port of --publish-at.
"""

import argparse
import os
import sys
import threading

import zmq

import peer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subscribe-at", type=int, action="append", default=[], metavar="PORT")
    parser.add_argument("--publish-at", type=int, action="append", default=[], metavar="PORT")
    peer.add_arguments(parser, timeout=120)
    args = parser.parse_args()

    context = zmq.Context()
    xsub, xpub = peer.open_socket(context, zmq.XSUB), peer.open_socket(context, zmq.XPUB)
    ports = []
    for socket, others in ((xsub, args.subscribe_at), (xpub, args.publish_at)):
        socket.bind(f"tcp://{peer.HOST}:*")
        ports.append(socket.getsockopt_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1])
        for port in others:
            socket.connect(f"tcp://{peer.HOST}:{port}")
    threading.Thread(target=zmq.proxy, args=(xsub, xpub), daemon=True).start()
    end = threading.Timer(args.timeout, os._exit, [0])
    end.daemon = True
    end.start()

    peer.say("listening", *ports)
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(0)  # the thread blocks inside libzmq; there is nothing to save


if __name__ == "__main__":
    main()
