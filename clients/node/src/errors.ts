/**
 * Everything that a call can fail with, each defined once; the names are those of the Python client.
 *
 *     RerankError
 *     ├── InvalidRequest            a field has a value that is not allowed: `violations`
 *     │   └── UnsupportedOption     the model cannot do what an option asks
 *     ├── UnknownModel
 *     ├── ModelLoading              `retryAfterMs`
 *     ├── ModelFailed
 *     ├── QueueFull                 `retryAfterMs`
 *     ├── DeadlineUnreachable       `retryAfterMs`
 *     ├── RateLimited               `retryAfterMs`
 *     ├── DeadlineExceeded
 *     ├── Cancelled
 *     ├── PairTooLarge              one pair exceeds the device's memory
 *     ├── Unauthenticated
 *     ├── PermissionDenied
 *     ├── ShuttingDown              `retryAfterMs`
 *     ├── InternalError
 *     └── TransportError            no reason that this client knows came with the status
 *         ├── ServerUnavailable
 *         │   └── TlsError          no TLS connection comes about: `problem`
 *         ├── MessageTooLarge
 *         ├── IncompleteStream      results may be missing
 *         └── UnexpectedStatus      `code`
 */
import type { ErrorReason } from "./gen/rerank/v1/rerank_pb";

/** The names of the contract's ErrorReason, without their prefix. */
export type Reason = Exclude<keyof typeof ErrorReason, "UNSPECIFIED">;

/** A field of a request that is wrong, such as "documents[3].text", and how. */
export interface FieldViolation {
  readonly field: string;
  readonly description: string;
}

/** What an error is made of, besides its message. */
export interface ErrorDetails {
  readonly metadata?: Readonly<Record<string, string>>;
  readonly retryAfterMs?: number | undefined;
  readonly violations?: readonly FieldViolation[];
  readonly cause?: unknown;
}

/** The base of all errors of a call. */
export class RerankError extends Error {
  /** The server's reason; undefined for what only a caller sees. */
  readonly reason: Reason | undefined = undefined;
  /** For programs; never holds a query, document or token. */
  readonly metadata: Readonly<Record<string, string>>;
  /** How long to wait before another attempt, in milliseconds; undefined where the server names no time. */
  readonly retryAfterMs: number | undefined;
  /** The fields that are wrong; empty unless the request was. */
  readonly violations: readonly FieldViolation[];

  constructor(message: string, details: ErrorDetails = {}) {
    super(message, { cause: details.cause });
    this.name = new.target.name;
    this.metadata = details.metadata ?? {};
    this.retryAfterMs = details.retryAfterMs;
    this.violations = details.violations ?? [];
  }
}

/** A field of the request has a value that is not allowed: `violations` names it. */
export class InvalidRequest extends RerankError {
  override readonly reason: Reason = "INVALID_REQUEST";
}

/** The model cannot do what an option asks. */
export class UnsupportedOption extends InvalidRequest {
  override readonly reason = "UNSUPPORTED_OPTION";
}

/** No model of that name is configured. */
export class UnknownModel extends RerankError {
  override readonly reason = "UNKNOWN_MODEL";
}

/** The model is still being loaded. */
export class ModelLoading extends RerankError {
  override readonly reason = "MODEL_LOADING";
}

/** The model could not be loaded, or its device broke. */
export class ModelFailed extends RerankError {
  override readonly reason = "MODEL_FAILED";
}

/** The queue has no room for the call. */
export class QueueFull extends RerankError {
  override readonly reason = "QUEUE_FULL";
}

/** The call's deadline cannot be met at the present load. */
export class DeadlineUnreachable extends RerankError {
  override readonly reason = "DEADLINE_UNREACHABLE";
}

/** The caller's own rate is used up. */
export class RateLimited extends RerankError {
  override readonly reason = "RATE_LIMITED";
}

/** The deadline passed before the scores were there. */
export class DeadlineExceeded extends RerankError {
  override readonly reason = "DEADLINE_EXCEEDED";
}

/** The caller cancelled: `cause` is its signal's reason. */
export class Cancelled extends RerankError {
  override readonly reason = "CANCELLED";
}

/** One pair alone exceeds the device's memory. */
export class PairTooLarge extends RerankError {
  override readonly reason = "PAIR_TOO_LARGE";
}

/** The token is missing or wrong. */
export class Unauthenticated extends RerankError {
  override readonly reason = "UNAUTHENTICATED";
}

/** The token does not carry the right. */
export class PermissionDenied extends RerankError {
  override readonly reason = "PERMISSION_DENIED";
}

/** The server is stopping. */
export class ShuttingDown extends RerankError {
  override readonly reason = "SHUTTING_DOWN";
}

/** A fault of the server; the text is fixed, the details are in its log. */
export class InternalError extends RerankError {
  override readonly reason = "INTERNAL";
}

/** A failure whose status is gRPC's own, a proxy's, or a newer server's; `reason` is undefined. */
export class TransportError extends RerankError {}

/** No server answered: none listens, the connection broke, or it went away. */
export class ServerUnavailable extends TransportError {}

/** Why no TLS connection comes about. */
export type TlsProblem =
  | "unknown_ca"
  | "wrong_name"
  | "expired"
  | "not_yet_valid"
  | "plaintext_port"
  | "tls_port"
  | "client_certificate_missing"
  | "client_certificate_refused";

/** No TLS connection comes about; a retry does not help until somebody acts. */
export class TlsError extends ServerUnavailable {
  constructor(
    message: string,
    /** The reason, for programs. */
    readonly problem: TlsProblem,
    details: ErrorDetails = {},
  ) {
    super(message, details);
  }
}

/** The request or the reply is larger than one side allows; a retry does not help. */
export class MessageTooLarge extends TransportError {}

/** A stream of results ended without its summary: results may be missing. */
export class IncompleteStream extends TransportError {}

/** A status that came without a reason of the service. */
export class UnexpectedStatus extends TransportError {
  constructor(
    message: string,
    /** The status's name, e.g. "UNIMPLEMENTED". */
    readonly code: string,
    details: ErrorDetails = {},
  ) {
    super(`${code}: ${message}`, details);
  }
}
