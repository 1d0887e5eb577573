#!/usr/bin/env python3
"""Measures the cost of encryption for zmq_proxy (libzmq) and xmsg-proxy, each with and without CURVE.

    tests/bench/curve.py [--rounds N]

Publisher and subscriber always use libzmq. For each size, the script prints the processor time of the proxy
per message (in microseconds, the median of the rounds), the delivered rate, and the ratio of the costs of
CURVE in xmsg-proxy and in zmq_proxy. Run it on an idle machine. It needs cc, libzmq3-dev, and this build:

    cargo build --release --workspace --bins --examples
"""

import argparse
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
CASES = [(20, 300_000), (100, 300_000), (1024, 200_000), (65536, 20_000)]


def free_port():
    """Returns the first of three consecutive free ports."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        try:
            for offset in range(3):
                with socket.socket() as other:
                    other.bind(("127.0.0.1", port + offset))
            return port
        except (OSError, OverflowError):
            continue


def wait_open(port, process):
    for _ in range(500):
        if process.poll() is not None:
            sys.exit(f"the proxy ended with {process.returncode}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    sys.exit("the proxy does not listen")


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def measure(load, command, port, keys, size, count):
    """Returns the microseconds of the proxy per message, and the messages per second."""
    proxy = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_open(port, proxy)
        wait_open(port + 1, proxy)
        subscriber = subprocess.Popen([load, "sub", str(port), str(count), *keys], stdout=subprocess.PIPE, text=True)
        time.sleep(0.5)
        before = cpu_seconds(proxy.pid)
        publisher = subprocess.Popen([load, "pub", str(port), str(count), str(size), *keys])
        out, _ = subscriber.communicate(timeout=120)
        publisher.wait(timeout=30)
        used = cpu_seconds(proxy.pid) - before
    finally:
        proxy.kill()
        proxy.wait()
    seconds, missing = out.split()
    if int(missing):
        sys.exit(f"{missing} messages are missing")
    return used / count * 1e6, count / float(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        load = str(folder / "curve")
        subprocess.run(["cc", "-O2", str(HERE / "curve.c"), "-o", load, "-lzmq"], check=True)
        xmsg = str(target / "xmsg")
        public, client = {}, {}
        for key in ("proxy", "client"):
            made = subprocess.run([xmsg, "keygen", str(folder / key)], check=True, capture_output=True, text=True)
            public[key] = made.stdout.strip()
        secret = {key: (folder / key).read_text().split('secret-key = "')[1].split('"')[0] for key in public}
        client = [public["proxy"], secret["client"]]
        config = folder / "proxy.toml"
        config.write_text(f"""
slow_subscriber = "block"
[security]
mechanism = "curve"
key_file = "{folder / 'proxy'}"
[[security.client]]
key = {public['client']!r}
""")
        cipher = subprocess.run([str(target / "examples" / "cipher_bench"), *(str(size) for size, _ in CASES)],
                                check=True, capture_output=True, text=True).stdout.split()
        print(f"{'data':>6}  {'libzmq':>14}  {'libzmq CURVE':>14}  {'xmsg':>14}  {'xmsg CURVE':>14}  CURVE/CURVE  cipher")
        for (size, count), boxes in zip(CASES, cipher):
            results = {}
            for _ in range(args.rounds):
                for kind in ("libzmq", "libzmq CURVE", "xmsg", "xmsg CURVE"):
                    port = free_port()
                    sealed = kind.endswith("CURVE")
                    if kind.startswith("libzmq"):
                        command = [load, "proxy", str(port), *([secret["proxy"]] if sealed else [])]
                    else:
                        command = [str(target / "xmsg-proxy"), "--port", str(port), "--slow-subscriber", "block",
                                   *(["--config", str(config)] if sealed else [])]
                    results.setdefault(kind, []).append(
                        measure(load, command, port, client if sealed else [], size, count))
            row = {kind: [statistics.median(column) for column in zip(*values)] for kind, values in results.items()}
            cells = "  ".join(f"{cpu:6.2f}µs {rate / 1e3:4.0f}k" for cpu, rate in row.values())
            ratio = row["xmsg CURVE"][0] / row["libzmq CURVE"][0]
            share = float(boxes) / row["xmsg CURVE"][0]
            print(f"{size:>6}  {cells}  {ratio:11.2f}  {share:5.0%}", flush=True)


if __name__ == "__main__":
    main()
