/** The status of a failed call, read from its trailers or from what Node says of the connection. */
import { Code, ConnectError } from "@connectrpc/connect";
import * as errors from "./errors";
import type { ErrorDetails, FieldViolation, Reason, RerankError, TlsProblem } from "./errors";
import { type BadRequest, BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb";
import { tlsAdvice, tlsProblemOf } from "./tls";

const DOMAIN = "rerank.v1";
const PREFIX = "ERROR_REASON_";
const PUSHBACK = "grpc-retry-pushback-ms";
const STATUS = "grpc-status";
// What Node says of a connection that broke, or never came about: for most, Connect's code is INTERNAL or ABORTED.
const BROKEN = /^E[A-Z]+$|^ERR_HTTP2_(ERROR|GOAWAY_SESSION|INVALID_SESSION|INVALID_STREAM|SESSION_ERROR|STREAM_CANCEL)$/;
// A server that has as many calls as it takes: gRPC counts that as UNAVAILABLE, Connect as INTERNAL.
const REFUSED = /REFUSED_STREAM/;
// What gRPC's libraries say of a message's size: a proxy's rate limit has the same code.
const TOO_LARGE: readonly RegExp[] = [
  // grpc-core, grpc-go, grpc-js
  /message (after decompression )?larger than max/i,
  /message (that decompresses to|with) a size larger than/i,
  // grpc-java, .NET
  /message exceeds (the )?maximum (configured message )?size/i,
  /message too large \d/,
  // Connect
  /larger than configured (read|write)MaxBytes/,
];
// A reply that ends within a message: Connect blames the caller for it.
const CUT = /^protocol error: incomplete envelope/;

/** The classes of the reasons that a server gives. */
const BY_REASON: Readonly<Record<Reason, new (message: string, details?: ErrorDetails) => RerankError>> = {
  INVALID_REQUEST: errors.InvalidRequest,
  UNKNOWN_MODEL: errors.UnknownModel,
  MODEL_LOADING: errors.ModelLoading,
  MODEL_FAILED: errors.ModelFailed,
  QUEUE_FULL: errors.QueueFull,
  DEADLINE_UNREACHABLE: errors.DeadlineUnreachable,
  RATE_LIMITED: errors.RateLimited,
  DEADLINE_EXCEEDED: errors.DeadlineExceeded,
  CANCELLED: errors.Cancelled,
  UNSUPPORTED_OPTION: errors.UnsupportedOption,
  PERMISSION_DENIED: errors.PermissionDenied,
  PAIR_TOO_LARGE: errors.PairTooLarge,
  UNAUTHENTICATED: errors.Unauthenticated,
  SHUTTING_DOWN: errors.ShuttingDown,
  INTERNAL: errors.InternalError,
};

/** A failed call, as the server, a proxy, Connect or Node tells it. */
export interface Failure {
  readonly code: Code;
  readonly text: string;
  /** Whether an ErrorInfo of this service came along. */
  readonly described: boolean;
  /** Undefined without an ErrorInfo, or if newer than this client. */
  readonly reason: Reason | undefined;
  readonly metadata: Readonly<Record<string, string>>;
  readonly retryAfterMs: number | undefined;
  readonly violations: readonly FieldViolation[];
  /** What `grpc-retry-pushback-ms` says; negative forbids a retry. */
  readonly pushbackMs: number | undefined;
  readonly tls: TlsProblem | undefined;
  /** Whether a status came from the other side; otherwise the connection failed, or this client did. */
  readonly told: boolean;
  readonly cause: unknown;
}

/** Reads a failure; a detail that cannot be parsed counts as absent. */
export function readFailure(reason: unknown): Failure {
  const error = ConnectError.from(reason);
  const [info] = error.findDetails(ErrorInfoSchema).filter((one) => one.domain === DOMAIN);
  const [retry] = info ? error.findDetails(RetryInfoSchema) : [];
  const [bad] = info ? error.findDetails(BadRequestSchema) : [];
  const delay = retry?.retryDelay;
  const told = error.metadata.has(STATUS);
  const codes = told ? [] : codesOf(error);
  const tls = tlsProblemOf(codes);
  const lost = !told && (REFUSED.test(error.rawMessage) || CUT.test(error.rawMessage));
  const broken = lost || codes.some((code) => BROKEN.test(code));
  return {
    code: tls || broken ? Code.Unavailable : error.code,
    // Node's error for several addresses has no text.
    text: error.rawMessage || codes.join(", "),
    described: info !== undefined,
    reason: reasonOf(info?.reason),
    metadata: { ...info?.metadata },
    retryAfterMs: delay && Math.max(0, Number(delay.seconds) * 1_000 + delay.nanos / 1e6),
    violations: told ? violationsOf(bad) : unwritable(error.rawMessage),
    pushbackMs: pushbackOf(error.metadata.get(PUSHBACK)),
    tls,
    told,
    cause: error,
  };
}

/** Makes the error of a failure: by its reason, else by its code. */
export function errorOf(failure: Failure, target: string): RerankError {
  const { code, text, reason } = failure;
  const details: ErrorDetails = failure;
  if (reason !== undefined) return new BY_REASON[reason](text, details);
  if (failure.tls) {
    return new errors.TlsError(`${target}: ${tlsAdvice(failure.tls, codesOf(failure.cause))}`, failure.tls, details);
  }
  if (!failure.told && failure.violations.length) {
    const [{ field, description }] = failure.violations as [FieldViolation];
    return new errors.InvalidRequest(`${field}: ${description}`, details);
  }
  switch (code) {
    case Code.InvalidArgument:
      return failure.described ? new errors.InvalidRequest(text, details) : unexpected(failure);
    case Code.ResourceExhausted:
      return isTooLarge(failure) ? new errors.MessageTooLarge(text, details) : unexpected(failure);
    case Code.Unavailable:
      return new errors.ServerUnavailable(failure.told ? text : unanswered(failure, target), details);
    case Code.DeadlineExceeded:
      return new errors.DeadlineExceeded(text, details);
    case Code.Unauthenticated:
      return new errors.Unauthenticated(text, details);
    case Code.PermissionDenied:
      return new errors.PermissionDenied(text, details);
    case Code.Unimplemented: {
      const advice = `what listens at ${target} is older than this client, or no rerank-grpc on its gRPC port`;
      return new errors.UnexpectedStatus(`${text}: ${advice}`, "UNIMPLEMENTED", details);
    }
    default:
      return unexpected(failure);
  }
}

function isTooLarge({ described, text }: Failure): boolean {
  return !described && TOO_LARGE.some((words) => words.test(text));
}

function unanswered({ text, cause }: Failure, target: string): string {
  if (CUT.test(text)) return `the connection to ${target} was cut in the middle of a reply (${text})`;
  const foreign = codesOf(cause).includes("ERR_HTTP2_ERROR");
  return foreign
    ? `what listens at ${target} does not speak HTTP/2 as gRPC does; is it the REST port? (${text})`
    : `no server answers at ${target}: ${text}`;
}

function unexpected(failure: Failure): RerankError {
  // Connect spells it as HTTP does.
  const name = failure.code === Code.Canceled ? "CANCELLED" : Code[failure.code] ?? String(failure.code);
  const code = name.replace(/(?<=[a-z])(?=[A-Z])/g, "_").toUpperCase();
  const ended = "the server or a proxy ended the call: its request came too slowly, or its results were not read";
  const text = failure.code === Code.Canceled && !failure.described ? ended : failure.text;
  return new errors.UnexpectedStatus(text, code, failure);
}

function reasonOf(name: string | undefined): Reason | undefined {
  const short = name?.startsWith(PREFIX) ? name.slice(PREFIX.length) : "";
  return Object.hasOwn(BY_REASON, short) ? (short as Reason) : undefined;
}

function pushbackOf(text: string | null): number | undefined {
  if (text === null) return undefined;
  // gRPC takes what is no number for a ban.
  return /^\d{1,9}$/.test(text) ? Number(text) : -1;
}

function violationsOf(bad: BadRequest | undefined): FieldViolation[] {
  return (bad?.fieldViolations ?? []).map(({ field, description }) => ({ field, description }));
}

/** Reads from protobuf's words which field has a value that no message can hold. */
function unwritable(text: string): FieldViolation[] {
  const [, field, description] = /cannot encode field [\w.]+\.(\w+) to binary: (.*)/.exec(text) ?? [];
  return field && description ? [{ field, description }] : [];
}

/** Lists the codes of Node's errors below one of Connect's. */
export function codesOf(error: unknown): string[] {
  const codes: string[] = [];
  for (let one: unknown = error; one instanceof Error; one = one.cause) {
    if ("code" in one && typeof one.code === "string") codes.push(one.code);
  }
  return codes;
}
