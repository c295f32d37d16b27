"""Documents in a body: what is scored of each, and what its caller sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rerank_grpc.rest.forms import fields
from rerank_grpc.rest.forms.decoded import Body, Json
from rerank_grpc.types import Document


class Documents(NamedTuple):
    """The documents of a call: those to be scored, and each as it was sent."""

    scored: tuple[Document, ...]
    sent: Sequence[Json]

    @property
    def texts(self) -> list[str]:
        """The texts that are scored."""
        return [document.text for document in self.scored]


def read(body: Body, name: str, rank_fields: Sequence[str] = ()) -> Documents:
    """Reads a list of texts or objects; `rank_fields` names the fields of an object that are scored."""
    texts = fields.texts(body, name)
    return Documents(tuple(map(Document, texts)), body[name])
