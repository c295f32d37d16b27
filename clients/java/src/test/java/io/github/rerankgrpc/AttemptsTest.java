package io.github.rerankgrpc;

import static io.github.rerankgrpc.Servers.failure;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.github.rerankgrpc.RerankException.Problem;
import io.github.rerankgrpc.v1.ErrorReason;
import io.grpc.Context;
import io.grpc.Deadline;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.time.Duration;
import java.util.Arrays;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.LockSupport;
import org.junit.Test;

/** Waits between the attempts of a call: how long, and what ends them. */
public final class AttemptsTest {
  @Test
  public void aDelayBeyondAllDeadlinesIsNotWaitedFor() {
    for (long seconds : new long[] {315_360_000, 12_000_000_000L, Long.MAX_VALUE}) {
      RerankException refused = RerankException.of(refusal(seconds));
      Attempts attempts = new Attempts(Deadline.after(1, TimeUnit.DAYS), Context.ROOT, 3);
      assertEquals(refused, failure(() -> attempts.waitAfter(refused, Context.ROOT)));
    }
  }

  @Test
  public void aDelayBelowNothingIsNone() {
    assertEquals(Duration.ZERO, RerankException.of(refusal(-5)).retryAfter().get());
    assertEquals(Duration.ZERO, RerankException.of(refusal(Long.MIN_VALUE)).retryAfter().get());
  }

  @Test
  public void aWaitEndsWithItsContextAndWithItsClient() throws Exception {
    for (boolean closes : new boolean[] {true, false}) {
      try (Context.CancellableContext ends = Context.ROOT.withCancellation();
          Context.CancellableContext stays = Context.ROOT.withCancellation()) {
        Deadline deadline = Deadline.after(1, TimeUnit.HOURS);
        Attempts attempts = new Attempts(deadline, closes ? ends : stays, 3);
        RerankException refused = RerankException.of(refusal(600));
        endsWaitOf(() -> attempts.waitAfter(refused, closes ? stays : ends), () -> ends.cancel(null));
      }
    }
  }

  @Test
  public void aReplyThatCannotBeReadIsNotTheServersEnd() {
    Status cancelled = Status.CANCELLED.withDescription("Failed to read message.");
    Throwable unreadable = new StatusRuntimeException(
        Status.INTERNAL.withCause(new InvalidProtocolBufferException("its tag is invalid")));
    RerankException error =
        RerankException.of(new StatusRuntimeException(cancelled.withCause(unreadable)));
    assertTrue(error.getMessage(), error.getMessage().startsWith("the reply cannot be read"));
  }

  @Test
  public void onlyARefusalAboutAMessagesSizeIsOneTooLarge() {
    for (String text :
        new String[] {
          "SERVER: Received message larger than max (9000000 vs. 8388608)",
          "grpc: trying to send message larger than max (9000000 vs. 8388608)",
          "gRPC message exceeds maximum size 8388608: 9000000",
          "message too large 9000000 > 8388608",
        }) {
      assertEquals(text, Problem.MESSAGE_TOO_LARGE, undescribed(text).problem());
    }
    for (String text : new String[] {"quota of the tenant exceeded", "the queue exceeds its maximum", null}) {
      RerankException error = undescribed(text);
      assertEquals(text, Problem.OTHER, error.problem());
      assertTrue(error.getMessage(), error.getMessage().startsWith("RESOURCE_EXHAUSTED: "));
    }
  }

  private static RerankException undescribed(String text) {
    return RerankException.of(new StatusRuntimeException(Status.RESOURCE_EXHAUSTED.withDescription(text)));
  }

  /** Begins a wait, ends it as soon as it is seen, and expects that the call is cancelled. */
  private static void endsWaitOf(Runnable wait, Runnable end) throws InterruptedException {
    Thread caller = Thread.currentThread();
    Thread ender =
        new Thread(
            () -> {
              while (!waits(caller)) {
                LockSupport.parkNanos(TimeUnit.MILLISECONDS.toNanos(5));
              }
              end.run();
            });
    ender.setDaemon(true);
    ender.start();
    RerankException error = failure(wait::run);
    assertEquals(ErrorReason.ERROR_REASON_CANCELLED, error.reason());
    ender.join(20_000);
    assertFalse(ender.isAlive());
  }

  private static boolean waits(Thread caller) {
    return Arrays.stream(caller.getStackTrace())
        .anyMatch(frame -> frame.getClassName().equals(Attempts.class.getName()));
  }

  /** The status of a full queue, as the server sends it. */
  private static StatusRuntimeException refusal(long seconds) {
    com.google.protobuf.Duration delay = com.google.protobuf.Duration.newBuilder().setSeconds(seconds).build();
    ErrorInfo info = ErrorInfo.newBuilder().setDomain("rerank.v1").setReason("ERROR_REASON_QUEUE_FULL").build();
    com.google.rpc.Status status =
        com.google.rpc.Status.newBuilder()
            .addDetails(Any.pack(info))
            .addDetails(Any.pack(RetryInfo.newBuilder().setRetryDelay(delay).build()))
            .build();
    Metadata trailers = new Metadata();
    trailers.put(
        Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER), status.toByteArray());
    return new StatusRuntimeException(Status.RESOURCE_EXHAUSTED, trailers);
  }
}
