#!/usr/bin/env python3
"""Measures how long the connection check takes beside a flood of messages: our own client, and pyzmq.

    tests/bench/checks.py [--checks N] [--programs FOLDER] [--proxy-program FILE]

It starts two proxies. It measures without other traffic, and then while `xmsg bench` publishes through the
first one as fast as it can (4 publishers, 4 subscribers, 1 KiB): checks at the second proxy, which is idle,
show what the load of the machine costs, and those at the first one what the flood in the same proxy adds.
Each check is made over new connections, one after the other:

  xmsg    `xmsg ping`: from the first byte until the answer of the control port
  pyzmq   what C++ and Python programs of xMsg do: a PUB and a DEALER, and a request every 100 ms until it is
          answered. A PUB socket of libzmq drops what it is given before the proxy's subscription has arrived,
          so that the second request is answered, after 100 ms, unless the check waits for that itself
          (`pyzmq, prepared`: the request is sent once the PUB socket is connected, and 30 ms later)

It prints percentiles in milliseconds, and the load of the machine. It needs pyzmq and this build:

    cargo build --release --workspace --bins
"""

import argparse
import json
import math
import os
import pathlib
import random
import subprocess
import sys
import time

import zmq

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
INTERVAL_MS = 100
ATTEMPTS = 40


def percentiles(name, load, times, lost):
    """Prints one row of the table."""
    times = sorted(times)
    if not times:
        sys.exit(f"{name}: nothing was answered")
    at = lambda share: times[math.ceil(share * len(times)) - 1]
    print(
        f"| {name} | {load} | {len(times)} | {at(0.5):.1f} | {at(0.99):.1f} | {times[-1]:.1f} | {lost} |",
        flush=True,
    )


def own(arguments, port):
    """Times of our own client, and how many checks failed."""
    command = [arguments.programs / "xmsg", "ping", "--proxy", f"127.0.0.1:{port}", "--json"]
    command += ["-n", str(arguments.checks), "--interval", "20ms"]
    lines = subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True).stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["handshake_ms"] for row in rows if "ping" in row and "handshake_ms" in row], sum(
        1 for row in rows if "lost" in row and "ping" in row
    )


def foreign(arguments, port, prepared):
    """Times of a client over libzmq, and how many checks failed."""
    context = zmq.Context()
    times, lost = [], 0
    for _ in range(arguments.checks):
        identity = f"3{random.randrange(10**8):08}".encode()
        started = time.monotonic()
        publisher, control = context.socket(zmq.PUB), context.socket(zmq.DEALER)
        for one in (publisher, control):
            one.linger = 0
        control.identity = identity
        publisher.connect(f"tcp://127.0.0.1:{port}")
        control.connect(f"tcp://127.0.0.1:{port + 2}")
        if prepared:
            time.sleep(0.03)
            started = time.monotonic()
        for _ in range(ATTEMPTS):
            publisher.send_multipart([b"xmsg:control", b"pub", identity])
            if control.poll(INTERVAL_MS):
                times.append((time.monotonic() - started) * 1000)
                break
        else:
            lost += 1
        publisher.close()
        control.close()
        time.sleep(0.02)
    context.term()
    return times, lost


def measure(arguments, port, load):
    """Prints the rows for one load."""
    percentiles("xmsg", load, *own(arguments, port))
    percentiles("pyzmq", load, *foreign(arguments, port, False))
    percentiles("pyzmq, prepared", load, *foreign(arguments, port, True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checks", type=int, default=500, help="checks of each kind (default 500)")
    parser.add_argument("--programs", type=pathlib.Path, default=ROOT / "target/release", help="where `xmsg` is")
    parser.add_argument(
        "--nice",
        type=int,
        default=0,
        metavar="N",
        help="run proxies and checks, but not the flood, with this added to their niceness: with -15, as root, other "
        "programs of the machine matter less (default 0)",
    )
    parser.add_argument("--proxy-program", type=pathlib.Path, help="the proxy (default: beside `xmsg`)")
    arguments = parser.parse_args()
    os.nice(arguments.nice)
    program = arguments.proxy_program or arguments.programs / "xmsg-proxy"
    start = lambda: subprocess.Popen(
        [program, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    port_of = lambda proxy: int(proxy.stdout.readline().split(" at 127.0.0.1:")[1].split(":")[0])
    proxies, flood = [start(), start()], None
    try:
        port, idle = map(port_of, proxies)
        print(f"{os.cpu_count()} cores; load {', '.join(f'{one:.1f}' for one in os.getloadavg())}")
        print("| client | beside | checks | 50 % | 99 % | longest | failed |")
        print("|---|---|---|---|---|---|---|", flush=True)
        measure(arguments, port, "nothing")
        command = [arguments.programs / "xmsg", "bench", "--proxy", f"127.0.0.1:{port}", "--quiet"]
        command += ["-p", "4", "-s", "4", "--size", "1KiB", "--duration", "3600s"]
        flood = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: os.nice(-arguments.nice),
        )
        time.sleep(3)
        measure(arguments, idle, "a flood in another proxy")
        measure(arguments, port, "a flood in this proxy")
        if flood.poll() is not None:
            sys.exit("the flood has ended before the checks")
        print(f"load {', '.join(f'{one:.1f}' for one in os.getloadavg())}")
    finally:
        for process in (flood, *proxies):
            if process is not None:
                process.kill()
                process.wait()


if __name__ == "__main__":
    main()
