package io.github.rerankgrpc;

import io.grpc.Deadline;
import io.grpc.Status;
import java.time.Duration;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;

/** One call's attempts, all within one deadline. */
final class Attempts {
  /** The largest random share that is added to a wait: callers refused together return apart. */
  private static final double JITTER = 0.2;

  private final Deadline deadline;
  private int left;
  private RerankException refusal;

  Attempts(Deadline deadline, int retries) {
    this.deadline = deadline;
    this.left = retries;
  }

  Deadline deadline() {
    return deadline;
  }

  /** Rules out another attempt, because a part of the answer has been handed out. */
  void commit() {
    left = 0;
    refusal = null;
  }

  /**
   * Waits until the next attempt may be made, or throws the failure.
   *
   * <p>Only RESOURCE_EXHAUSTED with a RetryInfo is tried again here: gRPC itself retries UNAVAILABLE, and
   * an oversized message stays one.
   */
  void waitAfter(RerankException failure) {
    if (failure.code() == Status.Code.DEADLINE_EXCEEDED && refusal != null) {
      throw refusal; // The attempt only ran out of time: the refusal before it tells more.
    }
    long delay = failure.retryAfter().map(Attempts::late).orElse(Long.MAX_VALUE);
    if (failure.code() != Status.Code.RESOURCE_EXHAUSTED
        || left == 0
        || delay >= deadline.timeRemaining(TimeUnit.NANOSECONDS)) {
      throw failure;
    }
    left--;
    refusal = failure;
    try {
      TimeUnit.NANOSECONDS.sleep(delay);
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
      throw Failures.cancelled(interrupted);
    }
  }

  /** Later than asked, never earlier: before that moment there is no room. In nanoseconds. */
  private static long late(Duration asked) {
    return (long) (asked.toNanos() * (1 + JITTER * ThreadLocalRandom.current().nextDouble()));
  }
}
