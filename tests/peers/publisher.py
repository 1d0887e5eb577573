#!/usr/bin/env python3
"""A libzmq publisher: sends numbered three-frame messages to the pub port of a proxy.

    publisher.py --port P --topic T --count N --size S [--wait-subscriber] [--rate R] [--heartbeat MS]

The frames of a message are topic, metadata (`binary/bytes`) and data. The data is the sequence number, which
starts at 0, in 8 bytes, little-endian, padded with zero bytes to S bytes.

It prints `sent N` once libzmq has written all messages to its connection, without a limit for the linger. If
that takes longer than --timeout, it prints `timeout sent K` and exits with status 1. K messages were given to
libzmq then.

The socket is an XPUB, which differs from a PUB only in that it returns the subscriptions that it receives.
With --wait-subscriber, the first message waits until one of them is a prefix of the topic.
"""

import argparse
import time

import zmq

import peer


def wait_for_subscriber(socket, topic):
    while True:
        event = socket.recv()
        if event[:1] == b"\x01" and topic.startswith(event[1:]):
            return


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True, help="the proxy's pub port")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--count", type=int, default=1, help="number of messages (default 1)")
    parser.add_argument("--size", type=int, default=8, help="bytes of data in each, at least 8 (default 8)")
    parser.add_argument("--rate", type=float, help="messages per second (default: as fast as possible)")
    parser.add_argument("--wait-subscriber", action="store_true", help="first wait for a subscription to the topic")
    peer.add_arguments(parser, timeout=60)
    args = parser.parse_args()
    if args.size < peer.SEQUENCE.size:
        parser.error("--size is at least 8: the sequence number takes that much")

    sent = 0
    peer.bound(args.timeout, lambda: f"timeout sent {sent}")

    context = zmq.Context()
    socket = peer.open_socket(context, zmq.XPUB, args.heartbeat, linger=-1)
    socket.connect(f"tcp://{peer.HOST}:{args.port}")
    topic = args.topic.encode()
    if args.wait_subscriber:
        wait_for_subscriber(socket, topic)

    padding = bytes(args.size - peer.SEQUENCE.size)
    start = time.monotonic()
    for sequence in range(args.count):
        if args.rate:
            time.sleep(max(0.0, start + sequence / args.rate - time.monotonic()))
        socket.send_multipart([topic, peer.META_BYTES, peer.SEQUENCE.pack(sequence) + padding])
        sent += 1
    socket.close()
    context.term()  # returns when everything is written
    peer.say("sent", sent)


if __name__ == "__main__":
    main()
