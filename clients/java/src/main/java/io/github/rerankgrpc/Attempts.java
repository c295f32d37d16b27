package io.github.rerankgrpc;

import io.grpc.Context;
import io.grpc.Deadline;
import io.grpc.Status;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;

/** One call's attempts, all within one deadline. */
final class Attempts {
  /** The largest random share that is added to a wait: callers refused together return apart. */
  private static final double JITTER = 0.2;

  /** Above every deadline. */
  private static final Duration LONGEST = Duration.ofDays(2);

  private final Deadline deadline;
  private final Context client;
  private final String limit;
  private int left;
  private RerankException refusal;

  /** Takes the client's context, whose end ends a wait. */
  Attempts(Deadline deadline, Context client, int retries) {
    this.deadline = deadline;
    this.client = client;
    Deadline outer = Context.current().getDeadline();
    Deadline first = outer == null ? deadline : deadline.minimum(outer);
    long nanos = first.timeRemaining(TimeUnit.NANOSECONDS);
    limit = (Math.max(0, nanos) + 999_999) / 1_000_000 + " ms"; // rounded up, as some have passed
    this.left = retries;
  }

  Deadline deadline() {
    return deadline;
  }

  /** The time that the call had as it began, for people. */
  String limit() {
    return limit;
  }

  /** Rules out another attempt, because a part of the answer has been handed out. */
  void commit() {
    left = 0;
    refusal = null;
  }

  /**
   * Waits until the next attempt may be made, or throws the failure; CANCELLED if the call's context or the
   * client ends before.
   *
   * <p>Only RESOURCE_EXHAUSTED with a RetryInfo is tried again here: gRPC itself retries UNAVAILABLE, and
   * an oversized message stays one.
   */
  void waitAfter(RerankException failure, Context call) {
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
    sleep(delay, call);
  }

  private void sleep(long nanos, Context call) {
    CountDownLatch ended = new CountDownLatch(1);
    Context.CancellationListener end = context -> ended.countDown();
    try {
      for (Context context : List.of(client, call)) {
        context.addListener(end, Runnable::run);
      }
      if (ended.await(nanos, TimeUnit.NANOSECONDS)) {
        Deadline limit = call.getDeadline();
        throw limit != null && limit.isExpired() ? refusal : Failures.cancelled(null);
      }
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
      throw Failures.cancelled(interrupted);
    } finally {
      client.removeListener(end);
      call.removeListener(end);
    }
  }

  /** Later than asked, never earlier: before that moment there is no room. In nanoseconds. */
  private static long late(Duration asked) {
    if (asked.compareTo(LONGEST) > 0) {
      return Long.MAX_VALUE; // such a delay may be more than a long holds
    }
    return (long) (asked.toNanos() * (1 + JITTER * ThreadLocalRandom.current().nextDouble()));
  }
}
