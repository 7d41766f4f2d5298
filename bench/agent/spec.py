"""Checks of the controller's commands, before anything is touched."""

from __future__ import annotations

import ipaddress
from typing import Any, Dict, List, Tuple, cast

from bench.wire import (
    COUNT_BY,
    COUNT_RANGES,
    COUNT_SIDES,
    TCP_STATES,
    ClientSpec,
    CountSpec,
    Endpoint,
    ServerSpec,
)

MOST_CONNECTIONS = 1 << 32
NONCE_BYTES = 16


class BadSpec(ValueError):
    """An invalid command; the text names the field."""


def server(spec: Any) -> ServerSpec:
    """Check and return a server's spec. :raises BadSpec: with one line that names the field."""
    found = _table(spec)
    _nonce(found)
    endpoints = [_endpoint(entry, "endpoints") for entry in _list(found, "endpoints")]
    if len(set(endpoints)) < len(endpoints):
        raise BadSpec("endpoints: the same endpoint is listed twice")
    fronts = [_endpoint(entry, "fronts") for entry in found.get("fronts") or []]
    control = _endpoint(found.get("control"), "control")
    if control in endpoints:
        raise BadSpec(f"control: {control[0]} port {control[1]} is a data endpoint too")
    _whole(found, "connections", 1, MOST_CONNECTIONS)
    _whole(found, "backlog", 1, (1 << 31) - 1)
    _choice(found, "listener", ("shared", "reuseport"))
    _choice(found, "watch", ("epoll", "none"))
    _whole(found, "acceptors", 1, 1024)
    _number(found, "nap_ms", 0, 1000)
    _common(found)
    return cast(ServerSpec, {**found, "endpoints": endpoints, "fronts": fronts, "control": control})


def client(spec: Any) -> ClientSpec:
    """Check and return a client's spec. :raises BadSpec: with one line that names the field."""
    found = _table(spec)
    _nonce(found)
    controls = [_endpoint(entry, "controls") for entry in _list(found, "controls")]
    fronts = [_endpoint(entry, "fronts") for entry in found.get("fronts") or []]
    routers = [_address(entry, "routers") for entry in found.get("routers") or []]
    blocks = [_block(entry, at) for at, entry in enumerate(_list(found, "blocks"))]
    _apart(blocks)
    _whole(found, "max_in_flight", 1, 1 << 20)
    _number(found, "connect_rate", 0, 1e9)
    _whole(found, "connect_timeout_ms", 1, 3_600_000)
    _whole(found, "retries", 0, 1000)
    _whole(found, "backoff_ms", 0, 600_000)
    _whole(found, "active", 1, 1024)
    _choice(found, "source_ports", ("plan", "kernel"))
    _common(found)
    ends = {"controls": controls, "fronts": fronts, "routers": routers, "blocks": blocks}
    return cast(ClientSpec, {**found, **ends})


def count(command: Dict[str, Any]) -> CountSpec:
    """Check and return what to count. :raises BadSpec: with one line that names the field."""
    ranges = [_range(entry) for entry in _list(command, "ranges")]
    if len(ranges) > COUNT_RANGES:
        raise BadSpec(f"ranges: got {len(ranges)}, expected at most {COUNT_RANGES}")
    states = [str(name) for name in _list(command, "states")]
    for name in states:
        _choice({"states": name}, "states", tuple(TCP_STATES))
    _choice(command, "side", COUNT_SIDES)
    _choice(command, "by", COUNT_BY)
    return {
        "ranges": ranges,
        "side": command["side"],
        "states": states,
        "by": command["by"],
    }


def _common(found: Dict[str, Any]) -> None:
    """Check the fields that both sides have."""
    _whole(found, "memory_floor_kib", 0, 1 << 40)
    if isinstance(found.get("nofile"), str):
        _choice(found, "nofile", ("hard", "soft"))
    else:
        _whole(found, "nofile", 1, (1 << 31) - 1)
    _whole(found, "workers", 0, 1024)
    if not isinstance(found.get("limit"), bool):
        raise BadSpec(f"limit: {found.get('limit')!r} is none of true, false")


def _table(spec: Any) -> Dict[str, Any]:
    if not isinstance(spec, dict):
        raise BadSpec("spec: not an object")
    return spec


def _list(found: Dict[str, Any], key: str) -> List[Any]:
    value = found.get(key)
    if not isinstance(value, list) or not value:
        raise BadSpec(f"{key}: needs a list with at least one entry")
    return value


def _nonce(found: Dict[str, Any]) -> None:
    try:
        size = len(bytes.fromhex(found.get("nonce", "")))
    except (TypeError, ValueError):
        size = 0
    if size < NONCE_BYTES:
        raise BadSpec(f"nonce: needs at least {NONCE_BYTES} bytes in hex")


def _whole(found: Dict[str, Any], key: str, low: int, high: int) -> int:
    value = found.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise BadSpec(f"{key}: {value!r} is not a whole number from {low} to {high}")
    return value


def _number(found: Dict[str, Any], key: str, low: float, high: float) -> None:
    value = found.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        raise BadSpec(f"{key}: {value!r} is not a number from {low} to {high:g}")


def _choice(found: Dict[str, Any], key: str, choices: Tuple[str, ...]) -> None:
    if found.get(key) not in choices:
        raise BadSpec(f"{key}: {found.get(key)!r} is none of {', '.join(choices)}")


def _address(value: Any, key: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError as error:
        raise BadSpec(f"{key}: {value!r} is not an IP address") from error


def _endpoint(entry: Any, key: str) -> Endpoint:
    if not isinstance(entry, (list, tuple)) or len(entry) != 2:
        raise BadSpec(f"{key}: {entry!r} is not [address, port]")
    return _address(entry[0], key), _whole({key: entry[1]}, key, 1, 65535)


def _range(entry: Any) -> Tuple[int, int]:
    if not isinstance(entry, (list, tuple)) or len(entry) != 2:
        raise BadSpec(f"ranges: {entry!r} is not [first port, last port]")
    low = _whole({"ranges": entry[0]}, "ranges", 1, 65535)
    return low, _whole({"ranges": entry[1]}, "ranges", low, 65535)


def _block(entry: Any, at: int) -> Dict[str, Any]:
    if not isinstance(entry, dict):
        raise BadSpec(f"blocks: entry {at} is not an object")
    source = _address(entry.get("source"), "source")
    target = _address(entry.get("target"), "target")
    if (":" in source) != (":" in target):
        raise BadSpec(f"blocks: {source} and {target} are of different IP versions")
    first = _whole(entry, "first_port", 1, 65535)
    _whole(entry, "count", 1, 65536 - first)
    _whole(entry, "target_port", 1, 65535)
    return {**entry, "source": source, "target": target}


def _apart(blocks: List[Dict[str, Any]]) -> None:
    """Check that no connection is planned twice. :raises BadSpec: if one is."""
    ends: Dict[Tuple[str, str, int], int] = {}
    for block in sorted(blocks, key=lambda entry: int(entry["first_port"])):
        key = (block["source"], block["target"], block["target_port"])
        if ends.get(key, 0) > block["first_port"]:
            raise BadSpec(
                f"blocks: {key[0]} port {block['first_port']} to {key[1]} port {key[2]} "
                "is planned twice"
            )
        ends[key] = block["first_port"] + block["count"]
