package io.github.rerankgrpc;

import static io.github.rerankgrpc.Servers.failure;
import static io.github.rerankgrpc.Servers.large;
import static io.github.rerankgrpc.Servers.plain;
import static io.github.rerankgrpc.Servers.request;
import static io.github.rerankgrpc.Servers.stream;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertThrows;
import static org.junit.Assert.assertTrue;

import io.github.rerankgrpc.RerankException.Problem;
import io.github.rerankgrpc.v1.ErrorReason;
import io.github.rerankgrpc.v1.StreamRerankResponse;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.Context;
import io.grpc.Deadline;
import io.grpc.ForwardingClientCall.SimpleForwardingClientCall;
import io.grpc.ForwardingClientCallListener.SimpleForwardingClientCallListener;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import java.time.Duration;
import java.util.HashSet;
import java.util.NoSuchElementException;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.Test;

/** Streams: read to their end, left, refused, and without their summary. */
public final class RerankStreamTest {
  @Test
  public void everyDocumentComesOnceAndThenTheSummary() throws Exception {
    try (RerankClient client = plain("FULL").build();
        RerankStream stream = client.streamRerank(stream(request("one", "two", "three")))) {
      assertThrows(IllegalStateException.class, stream::summary);
      Set<Integer> indexes = new HashSet<>();
      stream.forEachRemaining(result -> indexes.add(result.getIndex()));
      assertEquals(IntStream.range(0, 3).boxed().collect(Collectors.toSet()), indexes);
      assertEquals("embedded", stream.summary().getModel());
      assertThrows(NoSuchElementException.class, stream::next);
    }
  }

  @Test
  public void aStreamThatIsLeftCancelsItsCall() throws Exception {
    CompletableFuture<Status> end = new CompletableFuture<>();
    try (RerankClient client = plain("FULL").configure(builder -> builder.intercept(telling(end))).build();
        RerankStream stream = client.streamRerank(stream(large()))) {
      assertTrue(stream.hasNext());
      stream.close();
      assertEquals(Status.Code.CANCELLED, end.get(20, TimeUnit.SECONDS).getCode());
    }
  }

  /** Makes an interceptor that tells how a call has ended. */
  private static ClientInterceptor telling(CompletableFuture<Status> end) {
    return new ClientInterceptor() {
      @Override
      public <Q, A> ClientCall<Q, A> interceptCall(
          MethodDescriptor<Q, A> method, CallOptions options, Channel next) {
        return new SimpleForwardingClientCall<Q, A>(next.newCall(method, options)) {
          @Override
          public void start(Listener<A> listener, Metadata headers) {
            super.start(
                new SimpleForwardingClientCallListener<A>(listener) {
                  @Override
                  public void onClose(Status status, Metadata trailers) {
                    end.complete(status);
                    super.onClose(status, trailers);
                  }
                },
                headers);
          }
        };
      }
    };
  }

  @Test
  public void aClosedStreamGivesNoFurtherResults() throws Exception {
    try (RerankClient client = plain("FULL").build()) {
      RerankStream stream = client.streamRerank(stream(request("one", "two")));
      assertTrue(stream.hasNext());
      stream.close();
      assertThrows(IllegalStateException.class, stream::hasNext);
    }
  }

  @Test
  public void aRefusedStreamTellsWhyEachTimeItIsAsked() throws Exception {
    try (RerankClient client = plain("FULL").build();
        RerankStream stream = client.streamRerank(stream(request()))) {
      RerankException error = failure(stream::hasNext);
      assertEquals("documents", error.fields().get(0).getField());
      assertEquals(error, failure(stream::next));
    }
  }

  @Test
  public void aStreamOverItsRateIsTriedAgain() throws Exception {
    try (RerankClient client = plain("PACED").build()) {
      for (int call = 0; call < 3; call++) {
        try (RerankStream stream = client.streamRerank(stream(request("streamed " + call)))) {
          assertTrue(stream.hasNext());
        }
      }
    }
  }

  @Test
  public void aDeadlineEndsTheStream() throws Exception {
    try (RerankClient client = plain("FULL").build();
        RerankStream stream = client.streamRerank(stream(large()), Duration.ofMillis(20))) {
      RerankException error = failure(() -> stream.forEachRemaining(result -> {}));
      assertEquals(ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED, error.reason());
    }
  }

  /** No server here ends a stream so; the messages are what a proxy that cuts it would leave. */
  @Test
  public void aStreamWithoutItsSummaryIsIncomplete() {
    Stream<StreamRerankResponse> cut = Stream.of(StreamRerankResponse.getDefaultInstance());
    Attempts attempts = new Attempts(Deadline.after(1, TimeUnit.HOURS), Context.ROOT, 0);
    RerankStream stream = new RerankStream(cut::iterator, attempts, (error, left) -> null);
    assertEquals(Problem.INCOMPLETE_STREAM, failure(stream::hasNext).problem());
  }
}
