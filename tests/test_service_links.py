"""Variables about services that are named like us are passed over; what only looks like them is refused by name."""

from __future__ import annotations

import pytest

from ingest.engine import server_config
from ingest.errors import ConfigError
from ingest.gateway.process import gateway_config
from ingest.runtime.service_links import is_service_link

SERVICES = ["INGEST", "INGEST_GATEWAY", "INGEST_DATA_DIR", "INGEST_8080", "INGEST_B.C"]


def kubernetes(name: str, host: str = "10.96.0.17") -> dict[str, str]:
    """What a kubelet makes of a service with two ports (`pkg/kubelet/envvars`)."""
    about = {f"{name}_SERVICE_HOST": host, f"{name}_SERVICE_PORT": "8080"}
    at = f"[{host}]" if ":" in host else host
    about[f"{name}_PORT"] = f"tcp://{at}:8080"
    for port_name, port, protocol in (("HTTP", 8080, "tcp"), ("METRICS_2", 53, "udp"), ("S", 1, "sctp")):
        about[f"{name}_SERVICE_PORT_{port_name}"] = str(port)
        prefix = f"{name}_PORT_{port}_{protocol.upper()}"
        about[prefix] = f"{protocol}://{at}:{port}"
        about |= {f"{prefix}_PROTO": protocol, f"{prefix}_PORT": str(port), f"{prefix}_ADDR": host}
    return about


def docker(name: str) -> dict[str, str]:
    """What `docker run --link other:name` makes of a port and of a range of ports."""
    about = {f"{name}_NAME": "/angry_hopper/other", f"{name}_PORT": "tcp://172.17.0.2:5000"}
    for suffix in ("", "_START", "_END"):
        about[f"{name}_PORT_5000_TCP{suffix}"] = "tcp://172.17.0.2:5000"
        about[f"{name}_PORT_5000_TCP_PORT{suffix}"] = "5000"
    about |= {f"{name}_PORT_5000_TCP_ADDR": "172.17.0.2", f"{name}_PORT_5000_TCP_PROTO": "tcp"}
    return about | {
        f"{name}_ENV_{key}": value for key, value in (("PATH", "/bin"), ("A_ENV_b", ""), ("X", "1"))
    }


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize("load", [server_config.load_config, gateway_config.load_config])
def test_services_that_are_named_like_us(name, load) -> None:
    for environ in (kubernetes(name), kubernetes(name, "fd00::1:17"), docker(name)):
        assert load({}, environ) == load({}, {})
        assert load({}, environ | {"INGEST_LOG_LEVEL": "debug"}).log_level == "debug"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("INGEST_PORT", "5000"),  # meant for us
        ("INGEST_PORT", "127.0.0.1:5000"),
        ("INGEST_PORT", "tcp://node:5000"),
        ("INGEST_PORT", "http://127.0.0.1:5000"),
        ("INGEST_LISTEN_PORT", "5000"),
        ("INGEST_LISTENN", "tcp://10.0.0.1:5000"),
        ("INGEST_SERVICE_HOST", "node"),
        ("INGEST_SERVICE_HOSTS", "10.0.0.1"),
        ("INGEST_SERVICE_PORT", "http"),
        ("INGEST_PORT_5000_TCP_ADDR", "node"),
        ("INGEST_PORT_TCP", "tcp://10.0.0.1:5000"),
        ("INGEST_NAME", "node-7"),
        ("INGEST_ENV_PATH", "/bin"),  # of no link
        ("INGEST__PORT", ""),
    ],
)
def test_what_only_looks_like_them_is_refused(variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown variable {variable}"):
        server_config.load_config({}, {variable: value})


def test_a_link_hides_no_misspelt_variable() -> None:
    with pytest.raises(ConfigError, match=r"INGEST_WORKER \(did you mean INGEST_WORKERS\?\)"):
        server_config.load_config({}, kubernetes("INGEST") | docker("INGEST") | {"INGEST_WORKER": "2"})


def test_no_setting_of_ours_is_taken_for_one() -> None:
    """Whatever somebody gives it for a value, except an address of a service."""
    for name in (*server_config.PARSERS, *gateway_config.PARSERS):
        variable = f"INGEST_{name.upper()}"
        for value in ("10.0.0.1", "5000", "tcp://10.0.0.1:5000", "tcp", "/a/b"):
            assert not is_service_link(variable, {variable: value, "INGEST_NAME": "/a/b"})
