"""A link between two interfaces: it forwards Ethernet frames, delays them and loses some.

    cable.py INTERFACE INTERFACE

Each line of standard input, `DELAY_MS LOSS_PERCENT`, is in effect once it was answered with `set LOST`, the
number of frames lost so far. At first the link neither delays nor loses frames. 100 percent is a cut about
which neither side is informed. Frames stay in order. The script needs root or CAP_NET_RAW.
"""

import collections
import os
import random
import select
import socket
import sys
import time

ETH_P_ALL = 3
SOL_PACKET, PACKET_VNET_HDR, PACKET_OUTGOING = 263, 15, 4
FRAME_MAX = 1 << 17


def end(interface):
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    # Checksums and segmentation that the sender left to its interface are left to the next interface.
    end.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    end.bind((interface, 0))
    end.setblocking(False)
    return end


def main():
    first, second = end(sys.argv[1]), end(sys.argv[2])
    other = {first: second, second: first}
    delay, loss, lost = 0.0, 0.0, 0
    under_way = collections.deque()
    commands = b""
    print("ready", flush=True)
    while True:
        wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        readable, _, _ = select.select([first, second, 0], [], [], wait)
        now = time.monotonic()
        for source in readable:
            if source == 0:
                chunk = os.read(0, 4096)
                if not chunk:
                    return
                *lines, commands = (commands + chunk).split(b"\n")
                for line in lines:
                    delay_ms, percent = map(float, line.split())
                    delay, loss = delay_ms / 1000, percent / 100
                    print("set", lost, flush=True)
                continue
            for _ in range(64):
                try:
                    frame, address = source.recvfrom(FRAME_MAX)
                except BlockingIOError:
                    break
                if address[2] == PACKET_OUTGOING:
                    continue
                if random.random() < loss:
                    lost += 1
                else:
                    under_way.append((now + delay, other[source], frame))
        while under_way and under_way[0][0] <= now:
            _, target, frame = under_way.popleft()
            try:
                target.send(frame)
            except OSError as error:
                print(f"not carried: {error}", file=sys.stderr, flush=True)


main()
