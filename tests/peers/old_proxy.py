#!/usr/bin/env python3
"""A reference proxy on libzmq for our actors, built like the Java, C++ and Python proxies.

    old_proxy.py [--port P] [--max-message-size BYTES] [--timeout SECONDS]

It prints `listening P` once it accepts connections on P (XSUB), P+1 (XPUB) and P+2 (ROUTER with handover).
Without --port it chooses free ports. It runs until its standard input closes, or for --timeout seconds, and
then exits with status 0.

Data is forwarded by `zmq_proxy`. A control thread subscribes to `xmsg:control` at the proxy's own XPUB side.
As in the real proxies, it answers messages of exactly three frames: topic, request and argument.

    pub ID      ROUTER to ID: pub
    rep ID      ROUTER to ID: rep
    sub TOPIC   published: TOPIC, sub

With --max-message-size it ends the connection of a peer that sends a longer frame, without a reason.

It also has the weaknesses of these proxies: the answer to `sub` may arrive a little before every publisher
knows of the subscription.
"""

import argparse
import os
import sys
import threading
import time

import zmq

import peer

HIGHEST_PORT = 65533  # P+2 must be a valid port, too


def bind(context, port, max_message_size):
    """Returns three sockets, bound to P, P+1 and P+2. With `port` 0, P is the first of three free ports."""
    for _ in range(100):
        sockets = [peer.open_socket(context, kind) for kind in (zmq.XSUB, zmq.XPUB, zmq.ROUTER)]
        xsub, xpub, router = sockets
        router.setsockopt(zmq.ROUTER_HANDOVER, 1)
        xsub.setsockopt(zmq.MAXMSGSIZE, max_message_size)
        try:
            xsub.bind(f"tcp://{peer.HOST}:{port or '*'}")
            pub_port = int(xsub.getsockopt_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1])
            if pub_port > HIGHEST_PORT:
                raise zmq.ZMQError(zmq.EADDRINUSE)
            xpub.bind(f"tcp://{peer.HOST}:{pub_port + 1}")
            router.bind(f"tcp://{peer.HOST}:{pub_port + 2}")
            return pub_port, xsub, xpub, router
        except zmq.ZMQError as error:
            for socket in sockets:
                socket.close()
            if error.errno != zmq.EADDRINUSE:
                raise
            # A given port may still be used by a predecessor that is just ending.
            time.sleep(0.1 if port else 0)
    peer.fail("found no three free ports in a row" if not port else f"ports {port} to {port + 2} are in use")


def answer_control(requests, answers, router):
    """Runs the control thread, which owns its three sockets and never returns."""
    while True:
        frames = requests.recv_multipart()
        if len(frames) != 3:
            continue
        _, request, argument = frames
        if request in (b"pub", b"rep"):
            router.send_multipart([argument, request])
        elif request == b"sub":
            answers.send_multipart([argument, b"sub"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="pub port (default: any three free ports in a row)")
    parser.add_argument("--max-message-size", type=int, default=-1, metavar="BYTES",
                        help="bytes of the longest frame from a publisher (default: any)")
    peer.add_arguments(parser, timeout=120)
    args = parser.parse_args()

    context = zmq.Context()
    port, xsub, xpub, router = bind(context, args.port, args.max_message_size)
    requests = peer.open_socket(context, zmq.SUB, inside=True)
    requests.connect(f"tcp://{peer.HOST}:{port + 1}")
    requests.subscribe(b"xmsg:control")
    answers = peer.open_socket(context, zmq.PUB, inside=True)
    answers.connect(f"tcp://{peer.HOST}:{port}")

    for target, sockets in ((zmq.proxy, (xsub, xpub)), (answer_control, (requests, answers, router))):
        threading.Thread(target=target, args=sockets, daemon=True).start()
    end = threading.Timer(args.timeout, os._exit, [0])
    end.daemon = True
    end.start()

    peer.say("listening", port)
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(0)  # the threads block inside libzmq; there is nothing to save


if __name__ == "__main__":
    main()
