"""A server's names are those of its certificate, and a caller's is the same over gRPC and HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from rerank_grpc.tls.names import called_by, fits, name_in_certificate, name_in_context

SUBJECT = ((("organizationName", "Example"),), (("commonName", "search"),))


@pytest.mark.parametrize(
    ("alternatives", "common", "name"),
    [
        ((("DNS", "a.example"), ("URI", "spiffe://x/y"), ("email", "q@a.example")), "search", "spiffe://x/y"),
        ((("email", "q@a.example"), ("DNS", "a.example"), ("DNS", "b.example")), "search", "a.example"),
        ((("IP Address", "10.0.0.1"), ("email", "q@a.example")), "search", "q@a.example"),
        ((("IP Address", "10.0.0.1"),), "search", "search"),
        ((), "search", "search"),
        ((), "Suchdienst Köln", "Suchdienst Köln"),
        ((), "", ""),
        ((), "two\nlines", ""),
        ((), " blank", ""),
        ((), "x" * 257, ""),
        ((("URI", "bad\x00spiffe://x/y"),), "search", "search"),
    ],
)
def test_uri_goes_before_dns_before_e_mail_before_the_common_name(alternatives, common, name):
    shown = {"subjectAltName": alternatives, "subject": ((("commonName", common),),) if common else ()}
    keys = {"URI": "peer_uri", "DNS": "peer_dns", "email": "peer_email"}
    context = {"x509_common_name": [common.encode()]} if common else {}
    for kind, value in alternatives:
        if kind in keys:
            context.setdefault(keys[kind], []).append(value.encode())
    assert name_in_certificate(shown) == name_in_context(context) == name


def test_without_a_certificate_there_is_no_name():
    assert name_in_certificate(None) == name_in_certificate({}) == name_in_context({}) == ""
    assert name_in_certificate({"subject": SUBJECT}) == "search"
    assert name_in_context({"x509_common_name": [b"\xff"]}) == ""


def named(*names: str, common: str = "old") -> dict[str, Any]:
    """Makes what Python decodes of a certificate."""
    kinds = [("IP Address" if name[0].isdigit() else "DNS", name) for name in names]
    return {"subject": ((("commonName", common),),), "subjectAltName": tuple(kinds)}


@pytest.mark.parametrize(
    ("certificate", "name", "fitting"),
    [
        (named("rerank.internal"), "rerank.internal", True),
        (named("rerank.internal"), "RERANK.internal.", True),
        (named("rerank.internal"), "a.rerank.internal", False),
        (named("*.rerank.internal"), "a.rerank.internal", True),
        (named("*.rerank.internal"), "a.b.rerank.internal", False),
        (named("*.rerank.internal"), "rerank.internal", False),
        (named("10.0.0.1", "a"), "10.0.0.1", True),
        (named("a"), "10.0.0.1", False),
        (named("0:0:0:0:0:0:0:1", "a"), "[::1]", True),
        (named("a"), "old", False),
        (named(), "old", True),
    ],
)
def test_a_certificate_fits_the_names_that_it_is_for(certificate: Any, name: str, fitting: bool):
    assert fits(certificate, name) is fitting


def test_a_server_can_be_called_by_a_name_of_its_certificate():
    for certificate in (named("*.a", "b"), named("10.0.0.1"), named()):
        name = called_by(certificate)
        assert name is not None
        assert fits(certificate, name)
    assert called_by({}) is None
