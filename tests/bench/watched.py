#!/usr/bin/env python3
"""Measures what it costs the proxy to be watched: processor time for a message, with and without watchers.

    tests/bench/watched.py [page|top] [--rate N] [--watchers N] [--rounds N] [--programs FOLDER] [--proxy-program FILE]...

It starts a proxy, a publisher that sends five topics at the rate that is asked for, a hundred times a second what is
due, and one subscriber. Turn about, nobody looks, and the watchers do: clients that read what an open page reads
(`/api/v1/events`), or `xmsg top`. Both have the proxy count topics, too. With `--proxy-program` more than once, each of
them is measured in the same way, turn about as well.

It prints nanoseconds of processor time for a message of all threads of the proxy, and the ratio: medians of all rounds.
It needs no package, and this build:

    cargo build --release --workspace --bins
"""

import argparse
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import threading
import time

from raw_peer import hello, message, ports

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TOPICS = 5
# How often messages are sent in a second.
TURNS = 100
# The proxy goes on counting for so long after the last look.
FORGOTTEN_S = 12


class Proxy:
    """A proxy with traffic."""

    def __init__(self, program, xmsg, rate):
        self.program = program
        command = [program, "--port", "0", "--admin", "127.0.0.1:0"]
        self.children = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        ]
        port, http = ports(self.children[0].stdout)
        host, http_port = http.split(":")
        self.http = (host, int(http_port))
        self.xmsg = xmsg
        self.address = f"127.0.0.1:{port}"
        self.start([xmsg, "sub", "bench:", "--raw", "--proxy", self.address])
        self.is_over = False
        threading.Thread(target=self.publish, args=(port, rate), daemon=True).start()

    def start(self, command):
        """Starts somebody who takes part."""
        null = subprocess.DEVNULL
        self.children.append(subprocess.Popen(command, stdin=null, stdout=null, stderr=null))

    def publish(self, port, rate):
        """Publishes at this rate: a PUB socket of ZMTP 3.0 that reads no subscriptions, since it sends everything."""
        due = rate // TURNS
        messages = b"".join(message(b"bench:%d" % (number % TOPICS), b"x" * 100) for number in range(due))
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(hello(b"PUB"))
            turn = time.monotonic()
            while not self.is_over:
                try:
                    connection.sendall(messages)
                except OSError:
                    return  # The proxy has ended.
                turn += 1 / TURNS
                time.sleep(max(0, turn - time.monotonic()))

    def end(self):
        """Ends everybody."""
        self.is_over = True
        for child in reversed(self.children):
            child.kill()
            child.wait()

    def ask(self, path):
        """A connection on which this was asked for."""
        connection = socket.create_connection(self.http)
        head = f"GET {path} HTTP/1.1\r\nHost: {self.http[0]}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode())
        return connection

    def messages(self):
        """Messages that it has received so far. This question does not count as looking at the page."""
        with self.ask("/metrics") as connection:
            text = b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()
        return int(re.search(r"^xmsg_proxy_messages_received_total (\d+)", text, re.M)[1])

    def nanoseconds(self):
        """Processor time of all its threads."""
        tasks = pathlib.Path(f"/proc/{self.children[0].pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)

    def measure(self, seconds):
        """Nanoseconds for a message, and messages a second."""
        started, messages, used = time.monotonic(), self.messages(), self.nanoseconds()
        time.sleep(seconds)
        used, messages = self.nanoseconds() - used, self.messages() - messages
        return used / messages, messages / (time.monotonic() - started)


class Page:
    """A client that follows what happens as an open page does."""

    TOLD = b"event: overview"

    def __init__(self, proxy):
        self.connection = proxy.ask("/api/v1/events")

    def read(self):
        """Returns the next bytes, or none at the end."""
        try:
            return self.connection.recv(1 << 16)
        except OSError:
            return b""  # It was closed here.

    def end(self):
        """Ends it."""
        self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


class Top:
    """`xmsg top`, which writes a line of JSON each second."""

    TOLD = b"\n"

    def __init__(self, proxy):
        command = [proxy.xmsg, "top", "--json", "--proxy", proxy.address]
        self.child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0)

    def read(self):
        """Returns the next bytes, or none at the end."""
        return self.child.stdout.read(1 << 16)

    def end(self):
        """Ends it."""
        self.child.kill()
        self.child.wait()


WATCHERS = {"page": Page, "top": Top}


def count(watcher, told):
    """Notes how often the watcher was told something, to its end."""
    while data := watcher.read():
        told.append(data.count(watcher.TOLD))


def watched(proxy, kind, number, seconds):
    """The same, while so many watchers of this kind look."""
    told, watchers = [], [WATCHERS[kind](proxy) for _ in range(number)]
    for watcher in watchers:
        threading.Thread(target=count, args=(watcher, told), daemon=True).start()
    time.sleep(4)
    told.clear()
    found = proxy.measure(seconds)
    times = sum(told)
    for watcher in watchers:
        watcher.end()
    if times < number * (seconds - 2):
        sys.exit(f"{number} of {kind} were told {times} times in {seconds} s")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=WATCHERS, default="page", help="who watches (default page)")
    parser.add_argument("--rate", type=int, default=50_000, help="messages a second (default 50000)")
    parser.add_argument("--watchers", type=int, default=3, help="how many watch (default 3)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--seconds", type=int, default=10, help="seconds of each measurement (default 10)")
    parser.add_argument("--programs", type=pathlib.Path, default=ROOT / "target/release", help="where `xmsg` is")
    parser.add_argument("--proxy-program", type=pathlib.Path, action="append", help="a proxy to measure")
    arguments = parser.parse_args()
    programs = arguments.proxy_program or [arguments.programs / "xmsg-proxy"]
    found = {program: ([], []) for program in programs}
    print("| proxy | round | messages/s | unwatched, ns | watched, ns | ratio |\n|---|---|---|---|---|---|", flush=True)
    for number in range(arguments.rounds):
        for program in programs:
            proxy = Proxy(program, arguments.programs / "xmsg", arguments.rate)
            try:
                time.sleep(3)
                before, rate = proxy.measure(arguments.seconds)
                during, _ = watched(proxy, arguments.kind, arguments.watchers, arguments.seconds)
                time.sleep(FORGOTTEN_S)
                after, _ = proxy.measure(arguments.seconds)
            finally:
                proxy.end()
            # Before and after: what else the machine does changes slowly.
            alone = (before + after) / 2
            found[program][0].append(alone)
            found[program][1].append(during)
            print(
                f"| {program} | {number + 1} | {rate:.0f} | {alone:.1f} | {during:.1f} | {during / alone:.3f} |",
                flush=True,
            )
    for program, (alone, during) in found.items():
        ratio = statistics.median(one / other for one, other in zip(during, alone))
        alone, during = statistics.median(alone), statistics.median(during)
        print(f"{program}: {alone:.0f} ns unwatched, {during:.0f} ns watched by {arguments.watchers} of {arguments.kind}: {ratio:.3f}")


if __name__ == "__main__":
    main()
