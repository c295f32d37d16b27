"""The caller's name in a certificate is the same over gRPC and over HTTP."""

import pytest

from rerank_grpc.tls.names import name_in_certificate, name_in_context

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
