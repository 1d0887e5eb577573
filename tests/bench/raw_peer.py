"""Bytes of ZMTP 3.0 for scripts that need no library, and the first lines of a proxy."""


def hello(socket_type):
    """The greeting and the READY of a socket of this type."""
    ready = b"\x05READY\x0bSocket-Type" + len(socket_type).to_bytes(4) + socket_type
    return b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32) + frame(4, ready)


def frame(flags, data):
    """A short frame."""
    return bytes([flags, len(data)]) + data


def message(topic, data):
    """A message of xMsg without metadata."""
    return frame(1, topic) + frame(1, b"") + frame(0, data)


def ports(lines):
    """The publish port, and host and port of HTTP, from the first lines of a proxy on the loopback."""
    port = int(lines.readline().split(" at 127.0.0.1:")[1].split(":")[0])
    return port, lines.readline().strip().rsplit("//", 1)[1]
