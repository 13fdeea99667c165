"""What is refused first: a method that is not there, before the body or the query of the request."""

from __future__ import annotations

from gateway_rig import memory_gateway


def test_a_method_that_is_not_there_is_said_before_a_form() -> None:
    with memory_gateway() as gateway:
        form = {"Content-Type": "multipart/form-data; boundary=x"}
        for path in ("/healthz", "/objects/"):
            answer = gateway.request("POST", path, b"--x--", form)
            assert (answer.status, answer.code) == (405, "method_not_allowed")


def test_an_unknown_parameter_is_told_which_ones_are_known() -> None:
    with memory_gateway() as gateway:
        answer = gateway.request("GET", "/store/a?acl")
        assert answer.code == "bad_query" and "this path knows history" in answer.json["message"]
