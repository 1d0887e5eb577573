#!/usr/bin/env python3
"""Checks that the cipher is as fast in a crate that depends on xmsg-core as in this workspace.

    tests/bench/dependent.py

It builds the example cipher_bench here, and once more as the program of a crate in a temporary folder, to
which neither the settings nor the build profile of this workspace apply. It prints the microseconds per
message for both, and exits with 1 if the outer crate takes more than 1.5 times as long. It needs the crates
that a build of the workspace has downloaded.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
EXAMPLE = ROOT / "xmsg-core" / "examples" / "cipher_bench.rs"
SIZES = [20, 100, 1024, 65536]
ROUNDS = 3
# The profile of the workspace optimizes across crates. Other crates have to ask for that themselves.
LIMIT = 1.5
MANIFEST = f"""
[package]
name = "dependent"
version = "0.0.0"
edition = "2024"

[dependencies]
bytes = "1"
futures = {{ version = "0.3", default-features = false, features = ["std"] }}
xmsg-core.path = '{ROOT / "xmsg-core"}'

[workspace]
"""


def build(folder, target, *args):
    env = {name: value for name, value in os.environ.items() if not name.endswith("RUSTFLAGS")}
    subprocess.run(["cargo", "build", "--release", "--offline", *args], cwd=folder, check=True,
                   env={**env, "CARGO_TARGET_DIR": str(target)})


def main():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    build(ROOT, target, "-p", "xmsg-core", "--example", "cipher_bench")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "src").mkdir()
        shutil.copy(EXAMPLE, folder / "src" / "main.rs")
        shutil.copy(ROOT / "Cargo.lock", folder)
        (folder / "Cargo.toml").write_text(MANIFEST)
        build(folder, target / "dependent")
    programs = {
        "here": target / "release" / "examples" / "cipher_bench",
        "outside": target / "dependent" / "release" / "dependent",
    }
    best = {side: [float("inf")] * len(SIZES) for side in programs}
    for _ in range(ROUNDS):
        for side, program in programs.items():
            run = subprocess.run([program, *map(str, SIZES)], check=True, capture_output=True, text=True)
            best[side] = list(map(min, best[side], map(float, run.stdout.split())))
    print(f"{'data':>6}  {'here':>9}  {'outside':>9}  outside/here")
    worst = 0
    for size, here, outside in zip(SIZES, best["here"], best["outside"]):
        print(f"{size:>6}  {here:7.2f}µs  {outside:7.2f}µs  {outside / here:12.2f}")
        worst = max(worst, outside / here)
    if worst > LIMIT:
        sys.exit(f"the cipher takes {worst:.1f} times as long outside of this workspace")


if __name__ == "__main__":
    main()
