#!/usr/bin/env python3
"""A libzmq socket with its monitor, which shows how the socket reacts to the ends of its connections.

    events.py --port P --socket sub|pub --topic T

P is the proxy's *pub* port. A `sub` connects to P+1 and subscribes to T. A `pub` connects to P and publishes
a message to T every 20 ms. The script runs until its standard input ends. It prints these lines:

    connected           a handshake is complete
    disconnected        a connection was lost
    refused CODE        the other side refused the credentials, with this status code of ZAP
    failed              a handshake failed without a reason, or for another reason
    message FRAMES      with `sub`: a message with this number of frames has arrived
"""

import argparse
import sys
import threading

import zmq
from zmq.utils.monitor import recv_monitor_message

import peer

EVENTS = {
    zmq.EVENT_HANDSHAKE_SUCCEEDED: "connected",
    zmq.EVENT_DISCONNECTED: "disconnected",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "refused",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "failed",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "failed",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True, help="the proxy's pub port; the sub port is the next one")
    parser.add_argument("--socket", choices=["sub", "pub"], required=True)
    parser.add_argument("--topic", required=True)
    peer.add_arguments(parser, timeout=120)
    args = parser.parse_args()
    peer.bound(args.timeout)

    context = zmq.Context()
    is_sub = args.socket == "sub"
    socket = peer.open_socket(context, zmq.SUB if is_sub else zmq.PUB)
    monitor = socket.get_monitor_socket(sum(EVENTS))
    topic = args.topic.encode()
    if is_sub:
        socket.subscribe(topic)
    socket.connect(f"tcp://{peer.HOST}:{args.port + is_sub}")

    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    while not ended.is_set():
        if not is_sub:
            socket.send_multipart([topic, peer.META_BYTES, b"data"])
        while monitor.poll(20):
            event = recv_monitor_message(monitor)
            word = EVENTS[event["event"]]
            peer.say(word, event["value"]) if word == "refused" else peer.say(word)
        while is_sub and socket.poll(0):
            peer.say("message", len(socket.recv_multipart()))
    socket.disable_monitor()
    monitor.close()
    socket.close()
    context.term()


if __name__ == "__main__":
    main()
