"""The options of an adapter as fields of pydantic, which LangChain and LlamaIndex build on."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, field_validator

from rerank_grpc.client import AsyncClient, Client
from rerank_grpc.integrations.connection import CallArguments, ClosesClients, Connection


class RerankFields(ClosesClients, BaseModel):
    """The fields that say where the server is and what to ask of it.

    Those of the connection are read when the adapter is made; those of a call may be changed later.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    target: str | None = Field(
        default=None, frozen=True, description="The server's address, localhost:50051 by default."
    )
    token: str | SecretStr | None = Field(
        default=None, frozen=True, exclude=True, repr=False, description="The caller's token; never dumped."
    )
    client: Client | None = Field(
        default=None, frozen=True, exclude=True, repr=False, description="A client in place of an address."
    )
    async_client: AsyncClient | None = Field(
        default=None, frozen=True, exclude=True, repr=False, description="The same for asynchronous calls."
    )
    retries: int | None = Field(default=None, frozen=True, description="Further attempts of a call, 0 to 4.")
    hang_timeout: float | None = Field(
        default=None, frozen=True, description="Seconds after which a server that hangs is left."
    )
    tls: bool | None = Field(default=None, frozen=True, description="Whether to trust the system's CAs.")
    ca: str | None = Field(default=None, frozen=True, description="A file of CAs to trust instead.")
    cert: str | None = Field(default=None, frozen=True, description="A file: the caller's certificate.")
    key: str | None = Field(default=None, frozen=True, description="A file: its key.")
    server_name: str | None = Field(default=None, frozen=True, description="The name in the certificate.")

    model: str | None = Field(default=None, description="A model's name; None is the server's default.")
    top_n: int | None = Field(default=None, description="The most results; None is all.")
    instruction: str | None = Field(default=None, description="The task, for models that take one.")
    min_relevance_score: float | None = Field(default=None, description="The least score of a result.")
    min_calibrated_score: float | None = Field(
        default=None, description="The least probability of a result, of a model with a calibration."
    )
    max_tokens_per_document: int | None = Field(default=None, description="Cuts longer documents.")
    truncation: Literal["end", "start", "none"] | None = Field(
        default=None, description="The end that is cut off; none refuses what is too long."
    )
    max_chunks_per_document: int | None = Field(default=None, description="Chunks of a long document.")
    priority: Literal["interactive", "batch"] | None = Field(default=None, description="Who goes first.")
    ignore_unsupported_options: bool = Field(
        default=False, description="Whether to leave out an instruction that the model cannot take."
    )
    timeout: float | None = Field(default=None, description="The deadline of a call in seconds.")
    metadata: dict[str, str] | None = Field(default=None, description="gRPC metadata of each call.")

    _connection: Connection = PrivateAttr()

    @field_validator("token")
    @classmethod
    def _hide(cls, token: str | SecretStr | None) -> SecretStr | None:
        return SecretStr(token) if isinstance(token, str) else token

    def model_post_init(self, context: Any, /) -> None:
        """Makes the connection; raises ValueError where a client and an address are given."""
        super().model_post_init(context)
        token = self.token.get_secret_value() if isinstance(self.token, SecretStr) else None
        self._connection = Connection(
            self.target,
            self.client,
            self.async_client,
            token=token,
            retries=self.retries,
            hang_timeout=self.hang_timeout,
            tls=self.tls,
            ca=self.ca,
            cert=self.cert,
            key=self.key,
            server_name=self.server_name,
        )

    def _arguments(self) -> CallArguments:
        return {
            "model": self.model,
            "top_n": self.top_n,
            "instruction": self.instruction,
            "min_relevance_score": self.min_relevance_score,
            "min_calibrated_score": self.min_calibrated_score,
            "max_tokens_per_document": self.max_tokens_per_document,
            "truncation": self.truncation,
            "max_chunks_per_document": self.max_chunks_per_document,
            "priority": self.priority,
            "ignore_unsupported_options": self.ignore_unsupported_options,
            "timeout": self.timeout,
            "metadata": self.metadata,
        }

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.__copy__()  # nothing in it is to be changed, and a client cannot be copied

    def __getstate__(self) -> dict[Any, Any]:
        self._connection.__getstate__()  # LlamaIndex leaves out in silence what cannot be pickled
        return super().__getstate__()
