"""The settings of a program: flag > `INGEST_*` variable > TOML file > default. Unknown keys are errors.

What each program has for settings, and what must be true of them, is its own (`server_config`, `gateway_config`).
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from ingest.errors import ConfigError, UsageError
from ingest.runtime.service_links import is_service_link

PREFIX = "INGEST_"
CONFIG_VARIABLE = "INGEST_CONFIG"  # the file, when no --config names it

# Variables that other parts of ingest read; every other INGEST_ name is a mistake, or `service_links` knows whose it is.
OTHER_VARIABLES = (
    CONFIG_VARIABLE,
    "INGEST_GATEWAY",  # object commands: the URL of a gateway …
    "INGEST_TOKEN",  # … what it lets us in with …
    "INGEST_TLS_CA",  # … and whom to trust there
    "INGEST_DEBUG",  # setup.py: build with bounds checks
    "INGEST_MAC_PATH",  # _hmac: force one of the SIMD paths
)

C = TypeVar("C")

_UNITS = {"": 1, "B": 1} | {
    f"{letter}{suffix}": base**power
    for suffix, base in (("B", 1000), ("iB", 1024))
    for power, letter in enumerate("KMGT", 1)
}
_SIZE = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,6}))? ?([A-Za-z]*)")


def parse_size(value: str | int) -> int:
    """Bytes of `512MiB`, `1.5 GB`, `1048576` or a plain number. ValueError for anything else."""
    text = str(value)
    match = _SIZE.fullmatch(text)
    unit = {name.lower(): size for name, size in _UNITS.items()}.get(match[3].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(f"{text!r} is not a size: a number of bytes or one with {', '.join(_UNITS)[2:]} is")
    size: int = int(match[1]) * unit
    if match[2]:
        size += int(match[2]) * unit // 10 ** len(match[2])
    return size


def one_of(*choices: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"{value!r} is none of {', '.join(choices)}")
        return str(value)

    return parse


def count(least: int, most: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        text = str(value)
        if not re.fullmatch(r"-?[0-9]{1,18}", text) or not least <= int(text) <= most:
            raise ValueError(f"{text!r} is not a whole number of {least} to {most}")
        return int(text)

    return parse


def seconds_of(value: Any) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= 86_400:
        raise ValueError(f"{value!r} is not a number of seconds, 0 to 86400")
    return seconds


def path_of(value: Any) -> Path:
    text = os.fspath(value)
    if not text or "\0" in text:
        raise ValueError(f"{text!r} is not a path")
    return Path(text)


@dataclass(frozen=True)
class Schema(Generic[C]):
    """The settings of one program: their class, how each is parsed, what the file may hold, and what must be true of all
    of them together. ``other_names``: settings of another program, which may stand beside them."""

    config: type[C]
    parsers: Mapping[str, Callable[[Any], Any]]
    file: type[msgspec.Struct]
    check: Callable[[C], None]
    other_names: tuple[str, ...] = ()

    def resolve(
        self, flags: Mapping[str, Any] | None, environ: Mapping[str, str], file: Path | None
    ) -> tuple[C, dict[str, str]]:
        """What the four sources say, and where the value of each setting comes from: its flag, its variable, the file, or
        `default`. ``flags`` has a value, or None, by name.

        ConfigError names the source and the key; UsageError for a flag that means nothing.
        """
        flags = {name: value for name, value in (flags or {}).items() if value is not None}
        assert flags.keys() <= self.parsers.keys(), flags.keys() - self.parsers.keys()
        variables = self._read_environment(environ)
        if file is None and environ.get(CONFIG_VARIABLE):
            file = Path(environ[CONFIG_VARIABLE])
        written = self._read_file(file) if file is not None else {}
        values: dict[str, Any] = {}
        sources = dict.fromkeys(self.parsers, "default")
        # In the order of precedence, so that what is overridden is checked all the same.
        for name, parse in self.parsers.items():
            if name in written:
                values[name] = _parse(parse, written[name], f"{file}: {name}", ConfigError)
                sources[name] = str(file)
            if name in variables:
                sources[name] = PREFIX + name.upper()
                values[name] = _parse(parse, variables[name], sources[name], ConfigError)
            if name in flags:
                sources[name] = "--" + name.replace("_", "-")
                values[name] = _parse(parse, flags[name], sources[name], UsageError)
        config = self.config(**values)
        self.check(config)
        return config, sources

    def _read_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        names = {PREFIX + name.upper(): name for name in self.parsers}
        others = (*OTHER_VARIABLES, *(PREFIX + name.upper() for name in self.other_names))
        found = {}
        for variable in sorted(environ):
            if not variable.startswith(PREFIX) or variable in others or is_service_link(variable, environ):
                continue
            if variable not in names:
                raise ConfigError(f"unknown variable {variable}{_nearest(variable, [*names, *others])}")
            if environ[variable] != "":  # an empty one is how a script unsets it
                found[names[variable]] = environ[variable]
        return found

    def _read_file(self, path: Path) -> dict[str, Any]:
        try:
            table = msgspec.toml.decode(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"configuration file {path}: {error.strerror}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"configuration file {path}: not TOML: {error}") from error
        for key in table:
            if key not in self.parsers and key not in self.other_names:
                nearest = _nearest(key, [*self.parsers, *self.other_names])
                raise ConfigError(f"configuration file {path}: unknown key {key}{nearest}")
        try:
            checked = msgspec.convert({key: table[key] for key in table if key in self.parsers}, self.file)
        except msgspec.ValidationError as error:
            raise ConfigError(f"configuration file {path}: {error}") from error
        return {name: value for name in self.parsers if (value := getattr(checked, name)) is not None}


def _parse(
    parse: Callable[[Any], Any], value: Any, source: str, error: type[ConfigError] | type[UsageError]
) -> Any:
    try:
        return parse(value)
    except ValueError as problem:
        raise error(f"{source}: {problem}") from None


def _nearest(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {matches[0]}?)" if matches else ""
