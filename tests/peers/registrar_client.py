#!/usr/bin/env python3
"""Talks to a registrar with REQ sockets, the way the Java, C++ and Python implementations of xMsg do.

    registrar_client.py --port P [--clients N]

It prints these lines, in this order:

    registered      a publisher and a subscriber were registered, and the replies were as expected
    found NAME...   the names that `findPublisher` found
    refused STATUS  the reply to an unknown action
    served N        N sockets with one identity were served at the same time
    removed         `removeAllRegistration` was done, and nothing is found any more
"""

import argparse

import zmq

import peer


def text(number, value):
    data = value.encode()
    return bytes([number << 3 | 2, len(data)]) + data


def registration(name, host, port, domain, subject, kind, owner):
    """The protobuf message xMsgRegistration, as protobuf encodes it."""
    return (text(1, name) + text(3, host) + b"\x25" + port.to_bytes(4, "little") + text(5, domain)
            + text(6, subject) + text(7, kind) + bytes([0x40, owner]))


def ask(socket, action, data):
    socket.send_multipart([action, b"peer", data])
    if not socket.poll(30_000):
        peer.fail(f"no reply to {action}")
    return socket.recv_multipart()


def expect(reply, *frames):
    if reply != list(frames):
        peer.fail(f"expected {frames}, got {reply}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--clients", type=int, default=20)
    peer.add_arguments(parser, 60)
    args = parser.parse_args()
    peer.bound(args.timeout)
    context = zmq.Context()

    def connect(identity=None):
        socket = peer.open_socket(context, zmq.REQ, args.heartbeat, identity)
        socket.connect(f"tcp://{peer.HOST}:{args.port}")
        return socket

    socket = connect()
    sender = f"{peer.HOST}:registrar".encode()
    publisher = registration("bass", "10.0.0.7", 7771, "rock", "metal", "x", 1)
    subscriber = registration("fan", "10.0.0.7", 7772, "rock", "*", "*", 2)
    for action, data in ((b"registerPublisher", publisher), (b"registerSubscriber", subscriber)):
        expect(ask(socket, action, data), action, sender, b"success")
    peer.say("registered")

    query = registration("undefined", "undefined", 0, "rock", "metal", "*", 1)
    reply = ask(socket, b"findPublisher", query)
    expect(reply, b"findPublisher", sender, b"success", publisher)
    expect(ask(socket, b"findSubscriber", query), b"findSubscriber", sender, b"success", subscriber)
    peer.say("found", "bass")

    reply = ask(socket, b"dance", b"")
    expect(reply, b"dance", sender, b"unknown registration request")
    peer.say("refused", reply[2].decode())

    # All sockets have one identity, which a REP socket ignores.
    sockets = [connect(b"same") for _ in range(args.clients)]
    for one in sockets:
        one.send_multipart([b"allPublisher", b"peer", b""])
    for one in sockets:
        if not one.poll(30_000):
            peer.fail("one of several peers with the same identity was not served")
        expect(one.recv_multipart(), b"allPublisher", sender, b"success", publisher)
    peer.say("served", len(sockets))

    expect(ask(socket, b"removeAllRegistration", b"10.0.0.7"), b"removeAllRegistration", sender, b"success")
    expect(ask(socket, b"allSubscriber", b""), b"allSubscriber", sender, b"success")
    peer.say("removed")
    context.destroy(linger=0)


if __name__ == "__main__":
    main()
