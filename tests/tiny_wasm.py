"""Assembles the smallest Proxy-Wasm module that shows itself: it adds a header to requests."""


def number(value: int) -> bytes:
    """LEB128, unsigned."""
    out = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)


def _text(name: str) -> bytes:
    return number(len(name)) + name.encode()


def _many(items: list[bytes]) -> bytes:
    return number(len(items)) + b"".join(items)


def _section(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + number(len(body)) + body


def _const(value: int) -> bytes:
    """i32.const, of a small positive number (signed LEB128)."""
    out = bytearray()
    while True:
        low, value = value & 0x7F, value >> 7
        if value == 0 and not low & 0x40:
            out.append(low)
            return b"\x41" + bytes(out)
        out.append(low | 0x80)


I32 = b"\x7f"


def module(header: str, value: str) -> bytes:
    """A module that adds `header: value` to every request."""
    types = _many(
        [
            b"\x60" + _many([]) + _many([]),
            b"\x60" + _many([I32] * 5) + _many([I32]),
            b"\x60" + _many([I32]) + _many([I32]),
            b"\x60" + _many([I32] * 3) + _many([I32]),
            b"\x60" + _many([I32] * 2) + _many([I32]),
            b"\x60" + _many([I32] * 2) + _many([]),
        ]
    )
    imports = _many([_text("env") + _text("proxy_add_header_map_value") + b"\x00" + number(1)])
    # abi version, malloc, on_context_create, on_vm_start, on_configure, on_request_headers
    functions = _many([number(t) for t in (0, 2, 5, 4, 4, 3)])
    memory = _many([b"\x00" + number(1)])
    exported = (
        "proxy_abi_version_0_2_1",
        "malloc",
        "proxy_on_context_create",
        "proxy_on_vm_start",
        "proxy_on_configure",
        "proxy_on_request_headers",
    )
    exports = _many(
        [_text("memory") + b"\x02" + number(0)]
        + [_text(name) + b"\x00" + number(i + 1) for i, name in enumerate(exported)]
    )

    def code(body: bytes) -> bytes:
        whole = number(0) + body + b"\x0b"
        return number(len(whole)) + whole

    where = 1024
    add = b"".join(_const(v) for v in (0, where, len(header), where + len(header), len(value)))
    bodies = [
        code(b""),
        code(_const(4096)),
        code(b""),
        code(_const(1)),
        code(_const(1)),
        code(add + b"\x10" + number(0) + b"\x1a" + _const(0)),
    ]
    text = (header + value).encode()
    data = _many([b"\x00" + _const(where) + b"\x0b" + number(len(text)) + text])
    return (
        b"\0asm\1\0\0\0"
        + _section(1, types)
        + _section(2, imports)
        + _section(3, functions)
        + _section(5, memory)
        + _section(7, exports)
        + _section(10, _many(bodies))
        + _section(11, data)
    )
