"""What is refused first: a path or a method that is not there, before the body or the query of the request."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gateway_rig import Gateway, memory_gateway

FORM = {"Content-Type": "multipart/form-data; boundary=x"}
PART = {"Content-Range": "bytes 0-4/10"}
# What a path or a method that is there would be refused for.
WRONG: list[tuple[str, dict[str, str]]] = [
    ("", FORM),
    ("", PART),
    ("?acl", {}),
    ("?a=1&a=2", {}),
    ("?%ff", FORM),
]


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with memory_gateway() as running:
        yield running


@pytest.mark.parametrize(("query", "headers"), WRONG)
def test_a_path_that_is_not_there_goes_first(gateway: Gateway, query: str, headers: dict[str, str]) -> None:
    for path in ("/nothing", "/nothing/x", "/blb/x", "/store/", "/files/", "/page/x", "/AA/BB"):
        for method in ("GET", "PUT", "POST", "DELETE"):
            answer = gateway.request(method, path + query, b"--x--", headers)
            assert (answer.status, answer.code) == (404, "no_such_route"), (method, path)


@pytest.mark.parametrize(("query", "headers"), WRONG)
def test_a_method_that_is_not_there_goes_first(gateway: Gateway, query: str, headers: dict[str, str]) -> None:
    for method, path in (
        ("POST", "/healthz"), ("POST", "/objects/"), ("POST", "/objects/x"), ("PUT", "/blob/x"), ("PUT", "/files/x"),
        ("PUT", "/AA/BB/obj"), ("DELETE", "/fetch/x"),
    ):  # fmt: skip
        answer = gateway.request(method, path + query, b"--x--", headers)
        assert (answer.status, answer.code) == (405, "method_not_allowed"), (method, path)
        assert "Allow" in {name.title() for name in answer.headers}


def test_an_unknown_parameter_is_told_which_ones_are_known(gateway: Gateway) -> None:
    answer = gateway.request("GET", "/store/a?acl")
    assert answer.code == "bad_query" and "this path knows history" in answer.json["message"]


def test_advice_for_a_form_is_of_its_method(gateway: Gateway) -> None:
    for path in ("/objects/x", "/store/x"):
        message = gateway.request("PUT", path, b"--x--", FORM).json["message"]
        assert "-T FILE" in message and "--data-binary" not in message
    for method, path in (("DELETE", "/objects/x"), ("POST", "/gc")):
        answer = gateway.request(method, path, b"--x--", FORM)
        assert answer.status == 415 and "FILE" not in answer.json["message"]
        assert f"this {method} takes no file" in answer.json["message"]
