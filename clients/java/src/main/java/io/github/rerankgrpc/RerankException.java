package io.github.rerankgrpc;

import com.google.rpc.BadRequest;
import io.github.rerankgrpc.v1.ErrorReason;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/** A call that failed: what the server said of it, or what went wrong on the way to it. */
public final class RerankException extends RuntimeException {
  private static final long serialVersionUID = 1;

  private final Status.Code code;
  private final ErrorReason reason;
  private final Problem problem;
  private final transient Details details;

  /** What went wrong where the server gave no reason. */
  public enum Problem {
    /** Nothing on the way: {@link RerankException#reason} tells. */
    NONE,
    /** No server answers: no such host, none listens there, or the connection broke. Retried by gRPC. */
    UNREACHABLE,
    /** No TLS connection comes about; a retry does not help until somebody acts. */
    TLS,
    /** The request or the reply is larger than one side allows. */
    MESSAGE_TOO_LARGE,
    /** A stream ended without its summary: results may be missing. */
    INCOMPLETE_STREAM,
    /** The server does not know the method: it is older than this client, or another service. */
    VERSION_SKEW,
    /** Another status without a reason; {@link RerankException#code} says which. */
    OTHER
  }

  RerankException(String text, Status.Code code, ErrorReason reason, Problem problem, Throwable cause) {
    this(text, code, reason, problem, Details.NONE, cause);
  }

  RerankException(
      String text, Status.Code code, ErrorReason reason, Problem problem, Details details, Throwable cause) {
    super(text, cause);
    this.code = code;
    this.reason = reason;
    this.problem = problem;
    this.details = details;
  }

  /** Reads the error of a stub that the caller has made with {@link RerankClient#channel}. */
  public static RerankException of(StatusRuntimeException error) {
    return Failures.of(error, "the server", "the deadline", Thread.currentThread().isInterrupted());
  }

  /**
   * Why the call failed, in the service's words. ERROR_REASON_UNSPECIFIED where {@link #problem} tells
   * instead, UNRECOGNIZED for a reason that is newer than this client.
   */
  public ErrorReason reason() {
    return reason;
  }

  /** What went wrong on the way, where the server gave no reason. */
  public Problem problem() {
    return problem;
  }

  /** The status code of gRPC. */
  public Status.Code code() {
    return code;
  }

  /** The fields of the request that are wrong, such as {@code documents[3].text}, and how. */
  public List<BadRequest.FieldViolation> fields() {
    return details().fields;
  }

  /** After which time a retry may help; empty where it does not. */
  public Optional<Duration> retryAfter() {
    return Optional.ofNullable(details().retryAfter);
  }

  /** What the reason tells to programs, e.g. {@code known_models}; never a query, document or token. */
  public Map<String, String> metadata() {
    return details().metadata;
  }

  /** The details do not travel by Java's serialization. */
  private Details details() {
    return details == null ? Details.NONE : details;
  }

  /** The details of a status. */
  static final class Details {
    static final Details NONE = new Details(List.of(), null, Map.of());

    private final List<BadRequest.FieldViolation> fields;
    private final Duration retryAfter;
    private final Map<String, String> metadata;

    Details(List<BadRequest.FieldViolation> fields, Duration retryAfter, Map<String, String> metadata) {
      this.fields = List.copyOf(fields);
      this.retryAfter = retryAfter;
      this.metadata = Map.copyOf(metadata);
    }
  }
}
