package io.github.rerankgrpc;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.github.rerankgrpc.RerankException.Details;
import io.github.rerankgrpc.RerankException.Problem;
import io.github.rerankgrpc.v1.ErrorReason;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.regex.Pattern;

/** The exception of each failed call. */
final class Failures {
  private static final String DOMAIN = "rerank.v1";
  private static final long LONGEST_SECONDS = 315_576_000_000L;
  private static final Metadata.Key<byte[]> DETAILS =
      Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER);

  /** The meaning of a code whose reason is missing, as a proxy leaves it. */
  private static final Map<Status.Code, ErrorReason> BY_CODE =
      Map.of(
          Status.Code.UNAUTHENTICATED, ErrorReason.ERROR_REASON_UNAUTHENTICATED,
          Status.Code.PERMISSION_DENIED, ErrorReason.ERROR_REASON_PERMISSION_DENIED);

  /** What implementations of gRPC say of a message above a limit; their code is that of a quota too. */
  private static final Pattern OVERSIZED =
      Pattern.compile(
          "\\bmessage\\b.*\\b(larger than|exceeds (the )?max|too large)|\\bmessage size\\b",
          Pattern.CASE_INSENSITIVE);

  private Failures() {}

  /** Makes the exception of a status: by its reason, else by its code; `limit` is the time that the call had. */
  static RerankException of(
      StatusRuntimeException error, String target, String limit, boolean cancelledHere) {
    Metadata trailers = error.getTrailers();
    byte[] details = trailers == null ? null : trailers.get(DETAILS);
    try {
      if (details != null) {
        RerankException told = described(error, com.google.rpc.Status.parseFrom(details));
        if (told != null) {
          return told;
        }
      }
    } catch (InvalidProtocolBufferException unreadable) {
      error.addSuppressed(unreadable); // details that cannot be parsed count as absent
    }
    return undescribed(error, target, limit, cancelledHere);
  }

  static RerankException cancelled(Throwable cause) {
    ErrorReason reason = ErrorReason.ERROR_REASON_CANCELLED;
    return new RerankException(
        "the caller cancelled the call", Status.Code.CANCELLED, reason, Problem.NONE, cause);
  }

  static RerankException incomplete() {
    String text = "the stream ended without its summary: results may be missing";
    return without(text, Status.Code.UNKNOWN, Problem.INCOMPLETE_STREAM, null);
  }

  /** Reads the service's ErrorInfo, the RetryInfo and the BadRequest; null without the first. */
  private static RerankException described(StatusRuntimeException error, com.google.rpc.Status status)
      throws InvalidProtocolBufferException {
    ErrorInfo info = null;
    Duration retryAfter = null;
    List<BadRequest.FieldViolation> fields = List.of();
    for (Any detail : status.getDetailsList()) {
      if (detail.is(ErrorInfo.class) && info == null) {
        info = detail.unpack(ErrorInfo.class);
      } else if (detail.is(RetryInfo.class)) {
        com.google.protobuf.Duration delay = detail.unpack(RetryInfo.class).getRetryDelay();
        retryAfter = duration(delay.getSeconds(), delay.getNanos());
      } else if (detail.is(BadRequest.class)) {
        fields = detail.unpack(BadRequest.class).getFieldViolationsList();
      }
    }
    if (info == null || !info.getDomain().equals(DOMAIN)) {
      return null;
    }
    Details details = new Details(fields, retryAfter, info.getMetadataMap());
    return new RerankException(
        text(error), error.getStatus().getCode(), reason(info.getReason()), Problem.NONE, details, error);
  }

  /** Reads a delay within the bounds of protobuf's, which hold 10,000 years; none is below 0. */
  private static Duration duration(long seconds, int nanos) {
    Duration delay = Duration.ofSeconds(Math.max(-1, Math.min(seconds, LONGEST_SECONDS)), nanos);
    return delay.isNegative() ? Duration.ZERO : delay;
  }

  private static ErrorReason reason(String name) {
    try {
      return ErrorReason.valueOf(name);
    } catch (IllegalArgumentException newer) {
      return ErrorReason.UNRECOGNIZED;
    }
  }

  private static RerankException undescribed(
      StatusRuntimeException error, String target, String limit, boolean cancelledHere) {
    Status.Code code = error.getStatus().getCode();
    String text = text(error);
    if (Connections.isHttp1(error)) {
      String http = target + " speaks HTTP/1, as the REST port does: name the port of gRPC";
      return without(http, code, Problem.UNREACHABLE, error);
    }
    switch (code) {
      case CANCELLED:
        return cancelledHere ? cancelled(error) : without(ended(error, text), code, Problem.OTHER, error);
      case UNAVAILABLE:
        return cancelledHere ? cancelled(error) : Connections.unavailable(error, target);
      case DEADLINE_EXCEEDED:
        ErrorReason late = ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED;
        return new RerankException("no answer within " + limit, code, late, Problem.NONE, error);
      case RESOURCE_EXHAUSTED:
        if (!OVERSIZED.matcher(text).find()) {
          return without(code + ": " + text, code, Problem.OTHER, error);
        }
        String hint = ": a request has at most 8 MiB, a reply 16 MiB: send fewer documents at once";
        return without(text + hint, code, Problem.MESSAGE_TOO_LARGE, error);
      case UNIMPLEMENTED:
        String skew = target + " does not know this call: it is older than this client, or another service";
        return without(skew + " (" + text + ")", code, Problem.VERSION_SKEW, error);
      default:
        ErrorReason reason = BY_CODE.get(code);
        return reason == null
            ? without(code + ": " + text, code, Problem.OTHER, error)
            : new RerankException(text, code, reason, Problem.NONE, error);
    }
  }

  private static String ended(StatusRuntimeException error, String text) {
    for (Throwable cause = error.getCause(); cause != null; cause = cause.getCause()) {
      if (cause instanceof InvalidProtocolBufferException) { // gRPC itself cancels the call then
        return "the reply cannot be read: another service answers there, or another version (" + text + ")";
      }
    }
    return "the server or a proxy ended the call: its request came too slowly, or its results were not read ("
        + text
        + ")";
  }

  static RerankException without(String text, Status.Code code, Problem problem, Throwable cause) {
    return new RerankException(text, code, ErrorReason.ERROR_REASON_UNSPECIFIED, problem, cause);
  }

  static String text(StatusRuntimeException error) {
    String text = error.getStatus().getDescription();
    return text == null ? error.getStatus().getCode().toString() : text;
  }
}
