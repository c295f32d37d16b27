"""A file with a caller for each thing that may be wrong with one, and the headers by which it calls."""

from __future__ import annotations

from pathlib import Path

from rerank_grpc.access.entries import Known
from rerank_grpc.access.tokens import TokenFile
from rerank_grpc.callers import Right
from rerank_grpc.config.settings import ModelSpec, ServerSettings

MODELS = (ModelSpec("one", "one", aliases=("uno",)), ModelSpec("two", "two", aliases=("due",)))
KNOWN = Known({name: model.name for model in MODELS for name in (model.name, *model.aliases)})
EVERY = [right.value for right in Right]
CALLERS = f"""
[all]
token = "all-token"
rights = {EVERY}
[expired]
token = "expired-token"
rights = {EVERY}
expires = 2020-01-01
[narrow]
token = "narrow-token"
rights = {EVERY}
models = ["due"]
""" + "".join(
    f'[no-{right.value}]\ntoken = "no-{right.value}-token"\n'
    f"rights = {[each.value for each in Right if each is not right]}\n"
    for right in Right
)
# What a caller may send that is nobody's token; each is the value of one authorization.
STRANGERS = {
    "no token": [],
    "wrong": ["Bearer some-token"],
    "empty": [""],
    "Bearer alone": ["Bearer "],
    "twice": ["Bearer all-token", "Bearer all-token"],
    "twice, and one is wrong": ["Bearer all-token", "Bearer some-token"],
    "expired": ["Bearer expired-token"],
}


def settings_of(callers: str = CALLERS) -> ServerSettings:
    """Makes settings of two models and these callers; the file is never read again."""
    file = TokenFile.of(Path("nowhere"), callers.encode(), KNOWN)
    return ServerSettings(models=MODELS, token_file=file)
