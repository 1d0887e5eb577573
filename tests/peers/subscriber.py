#!/usr/bin/env python3
"""A libzmq subscriber: receives N messages from the sub port of a proxy and checks their order.

    subscriber.py --port P --topic T --count N [--hex] [--heartbeat MS]

P is the proxy's *pub* port, and the subscriber connects to P+1. It prints these lines:

    ready                       the handshake is complete, and the subscription was sent
    disconnected                the connection was lost; libzmq connects again by itself
    message HEX HEX HEX         with --hex: the frames of a message, with `-` for an empty one
    received N disorder D       at the end; D messages had a sequence number not above the one before
    timeout received K          --timeout was over first (status 1)

Sequence numbers (the first 8 bytes of data, little-endian) are compared within one topic, so each publisher
needs its own topic. If D is above 0, or a message lacks topic, metadata or sequence number, the status is 1.
Two-frame messages are skipped, because they are late replies to subscriptions. With --hex the data may be
anything, and D stays 0.
"""

import argparse

import zmq
from zmq.utils.monitor import recv_monitor_message

import peer


class Order:
    """Counts messages, and those whose sequence number does not rise."""

    def __init__(self):
        self.received = 0
        self.disorder = 0
        self.last = {}

    def take(self, frames):
        if len(frames) != 3 or len(frames[2]) < peer.SEQUENCE.size:
            peer.fail(f"not a numbered message: {len(frames)} frames of {[len(f) for f in frames]} bytes")
        topic = frames[0]
        (sequence,) = peer.SEQUENCE.unpack_from(frames[2])
        if sequence <= self.last.get(topic, -1):
            self.disorder += 1
        self.last[topic] = sequence
        self.received += 1


def hex_line(frames):
    return " ".join(frame.hex() or "-" for frame in frames)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True, help="the proxy's pub port; the sub port is the next one")
    parser.add_argument("--topic", required=True, help="prefix to subscribe to; may be empty")
    parser.add_argument("--count", type=int, default=1, help="number of messages to wait for (default 1)")
    parser.add_argument("--hex", action="store_true", help="print every message")
    peer.add_arguments(parser, timeout=60)
    args = parser.parse_args()

    order = Order()
    peer.bound(args.timeout, lambda: f"timeout received {order.received}")

    context = zmq.Context()
    socket = peer.open_socket(context, zmq.SUB, args.heartbeat)
    monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
    socket.subscribe(args.topic.encode())
    socket.connect(f"tcp://{peer.HOST}:{args.port + 1}")

    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    poller.register(monitor, zmq.POLLIN)
    ready = False
    while order.received < args.count:
        events = dict(poller.poll())
        if monitor in events:
            event = recv_monitor_message(monitor)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED and not ready:
                ready = True
                peer.say("ready")
            elif event == zmq.EVENT_DISCONNECTED and ready:
                peer.say("disconnected")
        if socket in events and ready:
            receive(socket, order, args)

    peer.say("received", order.received, "disorder", order.disorder)
    socket.disable_monitor()
    monitor.close()
    socket.close()
    context.term()
    if order.disorder:
        peer.fail(f"{order.disorder} messages out of order")


def receive(socket, order, args):
    """Receives up to a thousand available messages. To poll for each would halve the speed."""
    for _ in range(min(1000, args.count - order.received)):
        try:
            frames = socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        if len(frames) == 2:
            continue
        if args.hex:
            order.received += 1
            peer.say("message", hex_line(frames))
        else:
            order.take(frames)


if __name__ == "__main__":
    main()
