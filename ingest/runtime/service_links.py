"""Environment variables that orchestrators make about other services, which may begin as ours do.

For each service NAME (upper case, `_` for `-`) Kubernetes puts these into every container of its namespace, unless
enableServiceLinks is false:

    NAME_SERVICE_HOST=10.0.0.11             NAME_PORT=tcp://10.0.0.11:6379
    NAME_SERVICE_PORT=6379                  NAME_PORT_6379_TCP=tcp://10.0.0.11:6379
    NAME_SERVICE_PORT_HTTP=6379             NAME_PORT_6379_TCP_PROTO=tcp, …_PORT=6379, …_ADDR=10.0.0.11

`docker run --link` has the same without SERVICE, for ranges of ports also NAME_PORT_6379_TCP_START and …_END. It adds
NAME_NAME=/this/name, and NAME_ENV_X for each variable X of the other container.

Sources: https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables,
https://docs.docker.com/engine/network/links/#environment-variables
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping

_NUMBER = r"[0-9]{1,5}"
_PROTOCOL = "TCP|UDP|SCTP"
_RANGE = "(?:_START|_END)?"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_url(text: str) -> bool:
    """`tcp://10.0.0.11:6379`, `udp://[fd00::1]:53`."""
    match = re.fullmatch(rf"(?:tcp|udp|sctp)://\[?([0-9A-Fa-f.:]+?)\]?:{_NUMBER}", text)
    return match is not None and _is_address(match[1])


def _is_number(text: str) -> bool:
    return re.fullmatch(_NUMBER, text) is not None


def _is_protocol(text: str) -> bool:
    return text.upper() in _PROTOCOL.split("|")


def _is_link(text: str) -> bool:
    """`/this/name`: the container that has the link, and what it calls the other one."""
    return re.fullmatch(r"/[^/]+/[^/]+", text) is not None


# How a name ends, and what its value is. A misspelt variable of ours that ends so has another value.
_SHAPES: tuple[tuple[re.Pattern[str], Callable[[str], bool]], ...] = tuple(
    (re.compile(f".+_{ending}"), is_value)
    for ending, is_value in (
        ("SERVICE_HOST", _is_address),
        ("SERVICE_PORT", _is_number),
        ("SERVICE_PORT_[A-Z0-9_]+", _is_number),
        ("PORT", _is_url),
        (f"PORT_{_NUMBER}_(?:{_PROTOCOL}){_RANGE}", _is_url),
        (f"PORT_{_NUMBER}_(?:{_PROTOCOL})_ADDR", _is_address),
        (f"PORT_{_NUMBER}_(?:{_PROTOCOL})_PORT{_RANGE}", _is_number),
        (f"PORT_{_NUMBER}_(?:{_PROTOCOL})_PROTO", _is_protocol),
        ("NAME", _is_link),
    )
)
_COPY = re.compile(r"(.+?)_ENV_.+")


def is_service_link(variable: str, environ: Mapping[str, str]) -> bool:
    """Whether an orchestrator made this variable, by its name and its value. Of a copy of another container's variable
    only the name is known; the link's own NAME_NAME stands beside it."""
    if any(name.fullmatch(variable) and is_value(environ[variable]) for name, is_value in _SHAPES):
        return True
    copy = _COPY.fullmatch(variable)
    return copy is not None and _is_link(environ.get(f"{copy[1]}_NAME", ""))
