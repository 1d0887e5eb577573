#!/usr/bin/env python3
"""Measures how fast the web page answers when there is much to show, and how soon it shows its first picture.

    tests/bench/large_page.py [--connections N] [--topics N] [--programs FOLDER]

It starts a proxy, subscribers with their own prefixes, and a publisher that sends each topic once a round. Then it asks
for what the pages ask for, again and again, and prints times of the answers, and the memory of the proxy. At last it
opens the page in Chromium, if there is one, and prints when there was something to see ("first-contentful-paint").

It needs Debian's `chromium` and `chromium-driver` for the last part, and this build:

    cargo build --release --workspace --bins
"""

import argparse
import json
import pathlib
import re
import resource
import shutil
import socket
import statistics
import subprocess
import threading
import time
import urllib.request

from raw_peer import frame, hello, message, ports

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# What an open page asks for, view by view.
PATHS = [
    "/",
    "/api/v1/session",
    "/api/v1/history?span=1h",
    "/api/v1/connections?limit=100",
    "/api/v1/connections?limit=100&filter=127.1.7",
    "/api/v1/topics?limit=200",
    "/api/v1/topics?limit=200&filter=099",
    "/api/v1/topology?limit=20",
    "/api/v1/topology?limit=100&focus=099",
    "/metrics",
]
ROUNDS = 20
# Subscribers connect from so many addresses, as they would.
ADDRESSES = 250


def topic(number):
    """The topic with this number."""
    return b"plant:%d:%06d" % (number % 10, number)


def subscriber(port, number, prefixes):
    """Connects a subscriber to these topics. It reads nothing: what the proxy has for it stays in its buffers."""
    source = (f"127.1.{number // ADDRESSES % ADDRESSES}.{number % ADDRESSES + 1}", 0)
    connection = socket.create_connection(("127.0.0.1", port), source_address=source)
    connection.sendall(hello(b"SUB") + b"".join(frame(0, b"\x01" + topic(one)) for one in prefixes))
    return connection


def read(connection):
    """Reads to the end of the connection."""
    try:
        while connection.recv(1 << 16):
            pass
    except OSError:
        pass


def publish(port, topics, stop):
    """Publishes each topic once in a round, some 20,000 messages a second, until the proxy ends."""
    messages = [message(topic(one), b"x" * 20) for one in range(topics)]
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(hello(b"PUB"))
        # What the proxy tells of subscriptions is to be read.
        threading.Thread(target=read, args=(connection,), daemon=True).start()
        while not stop.is_set():
            for first in range(0, topics, 200):
                try:
                    connection.sendall(b"".join(messages[first : first + 200]))
                except OSError:
                    return  # The proxy has ended.
                time.sleep(0.01)


def memory_mib(pid):
    """The resident memory now and at most."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return [int(re.search(rf"^{name}:\s+(\d+)", status, re.M)[1]) // 1024 for name in ("VmRSS", "VmHWM")]


def answer(http, path):
    """Milliseconds for an answer, and its bytes."""
    started = time.monotonic()
    request = urllib.request.Request(f"http://{http}{path}", headers={"Accept": "text/html"} if path == "/" else {})
    with urllib.request.urlopen(request, timeout=60) as response:
        body = response.read()
    return (time.monotonic() - started) * 1000, len(body)


def first_picture(http):
    """Milliseconds to the first picture, five times, each with nothing in the cache."""
    driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        port = next(found[1] for line in driver.stdout if (found := re.search(r"successfully on port (\d+)", line)))

        def ask(path, body, method="POST"):
            data = None if method == "DELETE" else json.dumps(body).encode()
            request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"}, method=method)
            return json.load(urllib.request.urlopen(request, timeout=120))["value"]

        found = []
        for _ in range(5):
            options = {"args": ["--headless=new", "--no-sandbox", "--disable-gpu"]}
            session = ask("/session", {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}})["sessionId"]
            # The browser itself has begun: it has shown something else.
            for url in ("data:text/html,<p>anything</p>", f"http://{http}/"):
                ask(f"/session/{session}/url", {"url": url})
            script = "return performance.getEntriesByName('first-contentful-paint').map((entry) => entry.startTime)"
            paint = []
            while not paint:
                paint = ask(f"/session/{session}/execute/sync", {"script": script, "args": []})
            found += paint
            ask(f"/session/{session}", None, "DELETE")
        return found
    finally:
        driver.kill()
        driver.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=10_000, help="subscribers (default 10000)")
    parser.add_argument("--topics", type=int, default=100_000, help="topics (default 100000)")
    parser.add_argument("--programs", type=pathlib.Path, default=ROOT / "target/release", help="where `xmsg-proxy` is")
    arguments = parser.parse_args()
    need = arguments.connections + 1000
    hard = max(resource.getrlimit(resource.RLIMIT_NOFILE)[1], need)
    resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))
    command = [arguments.programs / "xmsg-proxy", "--port", "0", "--admin", "127.0.0.1:0"]
    proxy = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    stop = threading.Event()
    try:
        port, http = ports(proxy.stdout)
        print(f"memory without clients: {memory_mib(proxy.pid)[0]} MiB")
        each = arguments.topics // arguments.connections
        subscribers = [
            subscriber(port + 1, one, range(one * each, (one + 1) * each)) for one in range(arguments.connections)
        ]
        threading.Thread(target=publish, args=(port, arguments.topics, stop), daemon=True).start()
        time.sleep(5)
        text = urllib.request.urlopen(f"http://{http}/metrics").read().decode()
        counted = dict(re.findall(r"^(xmsg_proxy_(?:subscribers|subscriptions)) (\d+)", text, re.M))
        print(f"{len(subscribers)} connected; the proxy says {counted}")
        print(f"memory with them: {memory_mib(proxy.pid)[0]} MiB\n")
        print("| asked | median, ms | longest, ms | bytes |\n|---|---:|---:|---:|")
        times = {path: [] for path in PATHS}
        sizes = {}
        for _ in range(ROUNDS):
            for path in PATHS:
                took, sizes[path] = answer(http, path)
                times[path].append(took)
        for path in PATHS:
            print(f"| `{path}` | {statistics.median(times[path]):.0f} | {max(times[path]):.0f} | {sizes[path]} |")
        now, most = memory_mib(proxy.pid)
        print(f"\nmemory after {ROUNDS} looks at each: {now} MiB, at most {most} MiB")
        if shutil.which("chromedriver"):
            print("first picture, ms:", [round(one) for one in first_picture(http)])
    finally:
        stop.set()
        proxy.kill()
        proxy.wait()


if __name__ == "__main__":
    main()
