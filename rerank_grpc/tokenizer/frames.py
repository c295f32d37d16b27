"""The encoder of language models: a prompt around the texts, and all of it before the document shared."""

from __future__ import annotations

from collections.abc import Sequence as ListOf
from pathlib import Path
from weakref import WeakValueDictionary

from tokenizers import Tokenizer

from rerank_grpc.errors import ModelLoadError
from rerank_grpc.models.prompts import Prompt
from rerank_grpc.sequence import TOKEN_BYTES, Prefix, TokenizedRequest
from rerank_grpc.tokenizer.documents import ALL, encode_documents, refuse_instruction
from rerank_grpc.tokenizer.pace import UNHURRIED, Pace
from rerank_grpc.tokenizer.vocabulary import Vocabulary
from rerank_grpc.tokenizer.windows import Cutting, check_unicode, pack, tokenize
from rerank_grpc.types import Truncation

# A model whose prompt leaves less than this for query and document is none.
LEAST_ROOM = 32


class PromptEncoder:
    """Encodes for a language model; only the document is cut to fit, never what stands after it.

    Of the tokens that the prompt leaves free, the query gets at most a half
    and the instruction a quarter.
    """

    def __init__(
        self, vocabulary: Vocabulary, prompt: Prompt, tokenizer_file: Path, *, max_tokens: int
    ) -> None:
        self._vocabulary = vocabulary
        self._prompt = prompt
        # The model's own tokenizer, in which control tokens are what they are: for the prompt's texts only.
        upstream = Tokenizer.from_file(str(tokenizer_file))
        system, suffix = (
            pack([token for text in texts for token in upstream.encode(text, add_special_tokens=False).ids])
            for texts in (prompt.system, prompt.suffix)
        )
        self._system = Prefix(system)
        self._suffix = suffix
        self._room = max_tokens - (len(system) + len(suffix)) // TOKEN_BYTES
        self._free = self._room - len(self._head_ids("", "")) // TOKEN_BYTES
        if self._free < LEAST_ROOM:
            raise ModelLoadError(f"{tokenizer_file.parent}: {max_tokens} tokens are too few for its prompt")
        self._prefixes: WeakValueDictionary[bytes, Prefix] = WeakValueDictionary()

    def encode(
        self,
        query: str,
        documents: ListOf[str],
        *,
        instruction: str = "",
        max_tokens_per_document: int = 0,
        truncation: Truncation = Truncation.END,
        max_chunks: int = 1,
        pace: Pace = UNHURRIED,
    ) -> TokenizedRequest:
        """Encodes one request; see tokenizer.Encoder.encode.

        A query_truncated says that a part of the query or of the instruction was left out.
        """
        if not self._prompt.instruction:
            refuse_instruction(instruction)
        head, shortened = self._head(query, instruction, truncation)
        most = max_tokens_per_document or ALL
        room = max(0, self._room - len(head) // TOKEN_BYTES)
        sequences, encoded = encode_documents(
            self._vocabulary,
            documents,
            Cutting(min(room, most), most, truncation, max_chunks),
            before=b"",
            after=self._suffix,
            lead=self._prompt.lead,
            prefix=self._shared(head),
            pace=pace,
        )
        return TokenizedRequest(tuple(sequences), encoded, None, shortened)

    def _head(self, query: str, instruction: str, truncation: Truncation) -> tuple[bytes, bool]:
        """Encodes what stands between the system's text and the document, and says if it was cut."""
        check_unicode(instruction, "instruction")
        head = self._head_ids(query, instruction)
        if len(head) // TOKEN_BYTES <= self._room - self._free + self._free // 4:
            return head, False
        query, query_cut = self._shorten(query, self._free // 2, truncation, "query")
        instruction, instruction_cut = self._shorten(instruction, self._free // 4, truncation, "instruction")
        if not query_cut and not instruction_cut:
            return head, False
        return self._head_ids(query, instruction), True

    def _head_ids(self, query: str, instruction: str) -> bytes:
        texts = self._prompt.filled(query, instruction)
        whole = Cutting(ALL, ALL, Truncation.END)
        return b"".join(part.ids for part in tokenize(self._vocabulary, texts, whole, lambda _: "query"))

    def _shorten(self, text: str, room: int, truncation: Truncation, field: str) -> tuple[str, bool]:
        """Cuts a text to about `room` tokens, and says if it did; raises InvalidRequest if it may not."""
        (tokens,) = tokenize(self._vocabulary, [text], Cutting(room, room, truncation), lambda _: field)
        if not tokens.truncated:
            return text, False
        offsets = self._vocabulary.tokenizer.encode(text, add_special_tokens=False).offsets
        if truncation is Truncation.START:
            return text[offsets[-room][0] :], True
        return text[: offsets[room - 1][1]], True

    def _shared(self, head: bytes) -> Prefix:
        """The prefix of a request; the same object for requests that have it at the same time."""
        return self._prefixes.setdefault(head, Prefix(head, self._system))
