#!/usr/bin/env python3
"""Connects and subscribes to a proxy the way the Java, C++ and Python implementations of xMsg do.

    control.py --port P --language {java,cpp,python} [--topic T] [--settle MS] [--heartbeat MS]

It prints these lines, in this order. ATTEMPTS is the number of requests that were sent, and MS the time since
the sockets were opened:

    connected ATTEMPTS MS       the `pub` request was answered
    replied ATTEMPTS MS         the `rep` request was answered
    subscribed ATTEMPTS MS      the `sub` request was answered
    echo OK                     a message published to the topic came back

A request is sent every 100 ms until its answer arrives, at most as often as in the implementation: 10 times
in Java, 9 times in C++ and 40 times in Python. The PUB socket drops a request that is sent before the proxy's
subscription has arrived, so two attempts are usual even with a proxy that answers each request at once.

The languages differ in this:
  java     a new DEALER, with a new ID, for each check; a new PUB for the subscription check; the topics
           `xmsg:control:con` and `xmsg:control:sub`
  cpp, python   one DEALER and one PUB for the connection; the topic `xmsg:control`

The message is published once, --settle milliseconds after the subscription was answered (by default 10, as in
Java). With 0 it shows whether the answer really means that the subscription is active.
"""

import argparse
import random
import time

import zmq

import peer

INTERVAL_MS = 100

#            digit  attempts  topic of connection checks   topic of subscription checks
LANGUAGES = {
    "java":   ("1", 10, b"xmsg:control:con", b"xmsg:control:sub"),
    "cpp":    ("2", 9, b"xmsg:control", b"xmsg:control"),
    "python": ("3", 40, b"xmsg:control", b"xmsg:control"),
}

# The node digits are the same for every connection of a node. In the real peers they are a hash of its
# address modulo 1000.
NODE = f"{random.randrange(1000):03}"


def new_id(digit):
    """Returns a connection ID: the digit of the language, the node, and five random digits."""
    return f"{digit}{NODE}{random.randrange(100_000):05}".encode()


class Peer:
    """One connection of an actor: PUB, DEALER, and SUB after it has subscribed."""

    def __init__(self, context, args):
        digit, self.attempts, self.connection_topic, self.subscription_topic = LANGUAGES[args.language]
        self.context = context
        self.args = args
        self.id = new_id(digit)
        self.pub = self.open(zmq.PUB, 0)
        self.control = self.open(zmq.DEALER, 2, self.id)
        self.sub = None

    def open(self, kind, offset, identity=None):
        socket = peer.open_socket(self.context, kind, self.args.heartbeat, identity)
        socket.connect(f"tcp://{peer.HOST}:{self.args.port + offset}")
        return socket

    def check_connection(self, request):
        """Sends `pub` or `rep` until the ROUTER answers with that frame. Returns the number of attempts."""
        message = [self.connection_topic, request, self.id]
        return self.ask(self.pub, message, self.control, lambda frames: frames == [request], request.decode())

    def subscribe(self, topic):
        """Subscribes, and sends `sub` until the answer is published. Returns the number of attempts."""
        self.sub = self.open(zmq.SUB, 1)
        self.sub.subscribe(topic)
        java = self.args.language == "java"
        pub = self.open(zmq.PUB, 0) if java else self.pub
        message = [self.subscription_topic, b"sub", topic]
        attempts = self.ask(pub, message, self.sub, lambda frames: frames == [topic, b"sub"], "sub")
        if java:
            pub.close()
        return attempts

    def ask(self, out, message, answers, is_answer, name):
        for attempt in range(1, self.attempts + 1):
            out.send_multipart(message)
            deadline = time.monotonic() + INTERVAL_MS / 1000
            while (left := deadline - time.monotonic()) > 0:
                if not answers.poll(left * 1000):
                    continue
                frames = answers.recv_multipart()
                if is_answer(frames):
                    return attempt
                if answers is self.control and frames != [b"pub"]:
                    peer.fail(f"unexpected answer to `{name}`: {frames}")
        peer.fail(f"no answer to `{name}` after {self.attempts} attempts, {INTERVAL_MS} ms apart")

    def echo(self, topic):
        """Publishes one message and waits for it. Late answers to `sub` (two frames) are skipped."""
        message = [topic, peer.META_BYTES, self.id]
        self.pub.send_multipart(message)
        deadline = time.monotonic() + 5
        while (left := deadline - time.monotonic()) > 0:
            if self.sub.poll(left * 1000):
                frames = self.sub.recv_multipart()
                if len(frames) == 2:
                    continue
                if frames == message:
                    return
                peer.fail(f"another message came back: {frames}")
        peer.fail("the published message did not come back within 5 s")

    def close(self):
        for socket in (self.pub, self.control, self.sub):
            if socket is not None:
                socket.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True, help="the proxy's pub port")
    parser.add_argument("--language", choices=LANGUAGES, required=True)
    parser.add_argument("--topic", help="topic of the subscription (default: one of its own)")
    parser.add_argument("--settle", type=float, default=10, metavar="MS", help="pause after subscribing (default 10)")
    peer.add_arguments(parser, timeout=30)
    args = parser.parse_args()
    peer.bound(args.timeout)

    context = zmq.Context()

    start = time.monotonic()
    connection = Peer(context, args)
    attempts = connection.check_connection(b"pub")
    report("connected", attempts, start)

    if args.language == "java":
        renew_control(connection)
    start = time.monotonic()
    attempts = connection.check_connection(b"rep")
    report("replied", attempts, start)

    topic = (args.topic or f"peer:{connection.id.decode()}").encode()
    start = time.monotonic()
    attempts = connection.subscribe(topic)
    report("subscribed", attempts, start)

    time.sleep(args.settle / 1000)
    connection.echo(topic)
    peer.say("echo OK")
    connection.close()
    context.term()


def renew_control(connection):
    """Opens a new DEALER with another random ID, as Java does for each check."""
    connection.control.close()
    connection.id = new_id(LANGUAGES["java"][0])
    connection.control = connection.open(zmq.DEALER, 2, connection.id)


def report(what, attempts, start):
    peer.say(what, attempts, round((time.monotonic() - start) * 1000))


if __name__ == "__main__":
    main()
