"""The frames of models that are asked in a prompt, whose tokens before the document can be shared."""

from __future__ import annotations

from weakref import WeakValueDictionary

from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.pasting import filled
from rerank_grpc.evidence.prompt import Placeholder, Prompt, Segment
from rerank_grpc.sequence import TOKEN_BYTES, Prefix
from rerank_grpc.tokenizer.frames import Frame, Yielding
from rerank_grpc.tokenizer.layout import Means, PromptLayout, Texts, lay_out, literals
from rerank_grpc.tokenizer.pace import UNHURRIED, Pace
from rerank_grpc.tokenizer.truncation import UNBOUNDED, Cutting, Ends, check_unicode, tokenize
from rerank_grpc.tokenizer.vocabulary import TokenizerFile
from rerank_grpc.types import Truncation

# A prompt that leaves fewer tokens to query and document is refused.
LEAST_FREE_TOKENS = 32


class PromptFraming:
    """Frames of models with a prompt.

    If a document does not fit beside the whole query and instruction, the query gets at most a half of the
    tokens that the prompt leaves free, and the instruction a quarter.
    """

    def __init__(
        self, file: TokenizerFile, prompt: Prompt, *, max_tokens: int, shares_prefixes: bool
    ) -> None:
        self._prompt = prompt
        self.accepts_instruction = bool(prompt.instructed)
        inner, written = file.inside(), literals({*prompt.segments, *prompt.instructed})
        first = Means(file, file.vocabulary(written))
        inside = first if inner is file else Means(inner, inner.vocabulary(written))

        shortest = {Placeholder.QUERY: "", Placeholder.INSTRUCTION: prompt.instruction}

        def questioned(segments: tuple[Segment, ...]) -> Question:
            layout = lay_out(prompt, segments, first, inside)
            return Question(layout, first, shortest, max_tokens, shares_prefixes=shares_prefixes)

        self._plain = questioned(prompt.chosen(""))
        given = prompt.instructed
        self._instructed = questioned(given) if given and given != prompt.chosen("") else self._plain

    def frame(self, query: str, instruction: str, truncation: Truncation, pace: Pace) -> Frame:
        """Frames a document by the prompt; requests with equal texts at the same time share a prefix."""
        check_unicode(instruction, "instruction")
        question = self._instructed if instruction else self._plain
        texts = {Placeholder.QUERY: query, Placeholder.INSTRUCTION: instruction or self._prompt.instruction}
        texts |= {slot: texts[slot].strip() for slot in texts if slot in self._prompt.strips}
        frame = question.frame(texts, truncation, pace)
        return frame._replace(strips=True) if Placeholder.DOCUMENT in self._prompt.strips else frame


class Question:
    """A prompt that is laid out, and the tokens that its own words leave free."""

    def __init__(
        self, layout: PromptLayout, means: Means, shortest: Texts, max_tokens: int, *, shares_prefixes: bool
    ) -> None:
        self._layout = layout
        self._vocabulary = means.vocabulary
        self._shares_prefixes = shares_prefixes
        self._system = Prefix(layout.system) if layout.system else None
        self._inner_tokens = max_tokens - len(layout.system) // TOKEN_BYTES
        self._prefixes: WeakValueDictionary[bytes, Prefix] = WeakValueDictionary()
        empty = self._filled(shortest, UNHURRIED)
        self._free_tokens = empty.room - empty.ends.tokens
        if self._free_tokens < LEAST_FREE_TOKENS:
            reason = f"{max_tokens} tokens are too few for its prompt"
            raise ModelLoadError(f"{means.file.path.parent}: {reason}")

    def frame(self, texts: Texts, truncation: Truncation, pace: Pace) -> Frame:
        """Frames a document by the whole texts, or by shorter ones where it does not fit beside these."""
        whole, free = self._filled(texts, pace), self._free_tokens
        if whole.room - whole.ends.tokens >= free - free // 4:
            return whole
        shares = {Placeholder.QUERY: free // 2, Placeholder.INSTRUCTION: free // 4}
        if not any(self._cut(texts[slot], most, Truncation.END, slot, pace) for slot, most in shares.items()):
            return whole

        def cut(_: int) -> Frame:
            parts = {
                slot: self._shortened(texts[slot], most, truncation, slot, pace)
                for slot, most in shares.items()
            }
            return self._filled(parts, pace)._replace(query_truncated=True)

        return cut(0) if whole.room < 0 else whole._replace(yielding=Yielding(whole.room + 1, cut))

    def _filled(self, texts: Texts, pace: Pace) -> Frame:
        """Puts texts into the prompt; `room` is negative if the prompt alone is then too long."""
        layout = self._layout
        before, after = layout.before_ids(texts, pace), layout.after_ids(texts, pace)
        ends = Ends.of(layout.documents, filled(layout.lead, texts), filled(layout.tail, texts))
        room = self._inner_tokens - (len(before) + len(after)) // TOKEN_BYTES
        if not self._shares_prefixes:
            return Frame(layout.documents, room, layout.system + before, after, ends=ends)
        prefix = self._system
        if before:
            prefix = self._prefixes.setdefault(before, Prefix(before, self._system))
        return Frame(layout.documents, room, b"", after, ends=ends, prefix=prefix)

    def _shortened(self, text: str, most: int, truncation: Truncation, slot: Placeholder, pace: Pace) -> str:
        """Cuts a text to about `most` tokens; raises InvalidRequest if it may not."""
        if not self._cut(text, most, truncation, slot, pace):
            return text
        offsets = self._vocabulary.tokenizer.encode(text, add_special_tokens=False).offsets
        if truncation is Truncation.START:
            return text[offsets[-most][0] :]
        return text[: offsets[most - 1][1]]

    def _cut(self, text: str, most: int, truncation: Truncation, slot: Placeholder, pace: Pace) -> bool:
        """Tells whether a text has more than `most` tokens; raises InvalidRequest if it may not."""
        cutting = Cutting(most, UNBOUNDED, truncation)
        (tokenized,) = tokenize(self._vocabulary, [text], lambda _: slot.value, cutting, pace)
        return tokenized.truncated
