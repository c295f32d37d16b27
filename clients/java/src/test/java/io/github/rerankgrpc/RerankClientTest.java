package io.github.rerankgrpc;

import static io.github.rerankgrpc.Servers.failure;
import static io.github.rerankgrpc.Servers.large;
import static io.github.rerankgrpc.Servers.plain;
import static io.github.rerankgrpc.Servers.request;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertThrows;
import static org.junit.Assert.assertTrue;

import io.github.rerankgrpc.RerankException.Problem;
import io.github.rerankgrpc.v1.ErrorReason;
import io.github.rerankgrpc.v1.RerankRequest;
import io.github.rerankgrpc.v1.RerankResponse;
import io.github.rerankgrpc.v1.RerankServiceGrpc;
import io.grpc.CallOptions;
import io.grpc.Context;
import io.grpc.Deadline;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCalls;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;
import org.junit.Test;
import org.junit.function.ThrowingRunnable;

/** Calls with one reply, and what their errors tell. */
public final class RerankClientTest {
  @Test
  public void resultsComeByDescendingRelevance() throws Exception {
    try (RerankClient client = plain("FULL").build()) {
      RerankResponse response =
          client.rerank(request("Our office is closed.", "To reset the password, open Settings."));
      assertEquals(1, response.getResults(0).getIndex());
      assertTrue(response.getResults(0).getRelevanceScore() > response.getResults(1).getRelevanceScore());
      assertEquals("embedded", client.listModels().get(0).getName());
      assertTrue(client.health().getServing());
    }
  }

  @Test
  public void aRefusedFieldIsNamed() throws Exception {
    try (RerankClient client = plain("FULL").build()) {
      RerankException error = failure(() -> client.rerank(request()));
      assertEquals(ErrorReason.ERROR_REASON_INVALID_REQUEST, error.reason());
      assertEquals("documents", error.fields().get(0).getField());
      assertFalse(error.fields().get(0).getDescription().isEmpty());
      assertEquals(Status.Code.INVALID_ARGUMENT, error.code());
      assertTrue(error.retryAfter().isEmpty());
    }
  }

  @Test
  public void anUnknownModelComesWithTheKnownOnes() throws Exception {
    try (RerankClient client = plain("FULL").build()) {
      RerankException error = failure(() -> client.health("no-such-model"));
      assertEquals(ErrorReason.ERROR_REASON_UNKNOWN_MODEL, error.reason());
      assertEquals("embedded", error.metadata().get("known_models"));
    }
  }

  @Test
  public void aWrongTokenIsUnauthenticated() throws Exception {
    try (RerankClient client = RerankClient.builder(Servers.said("PLAIN")).token("wrong").build()) {
      RerankException error = failure(client::health);
      assertEquals(ErrorReason.ERROR_REASON_UNAUTHENTICATED, error.reason());
    }
  }

  @Test
  public void aCallOverItsRateIsTriedAgainWithinTheDeadline() throws Exception {
    try (RerankClient client = plain("PACED").build()) {
      for (int call = 0; call < 3; call++) { // of which the later ones are refused at first
        assertEquals(1, client.rerank(request("document " + call)).getResultsCount());
      }
    }
  }

  @Test
  public void aRetryThatTheDeadlineLeavesNoTimeForIsTheCallers() throws Exception {
    try (RerankClient client = plain("SLOW").build()) {
      failure(() -> spend(client));
      RerankException error = failure(() -> client.rerank(request("one document")));
      assertEquals(ErrorReason.ERROR_REASON_RATE_LIMITED, error.reason());
      assertTrue(error.retryAfter().get().compareTo(Duration.ofSeconds(30)) > 0);
    }
  }

  private static void spend(RerankClient client) {
    for (int call = 0; call < 3; call++) {
      client.rerank(request("document " + call, "another"));
    }
  }

  @Test
  public void aDeadlineEndsTheCall() throws Exception {
    try (RerankClient client = plain("FULL").build()) {
      RerankException error = failure(() -> client.rerank(large(), Duration.ofMillis(20)));
      assertEquals(ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED, error.reason());
      assertTrue(error.getMessage(), error.getMessage().matches("no answer within \\d+ ms"));
      assertTrue(error.getCause().getMessage().startsWith("DEADLINE_EXCEEDED"));
    }
  }

  @Test
  public void aCancelledContextEndsTheCall() throws Exception {
    try (RerankClient client = plain("FULL").build();
        Context.CancellableContext context = Context.current().withCancellation()) {
      Thread canceller = new Thread(() -> context.cancel(null));
      RerankException error =
          failure(
              () ->
                  context.call(
                      () -> {
                        canceller.start();
                        return client.rerank(large());
                      }));
      assertEquals(ErrorReason.ERROR_REASON_CANCELLED, error.reason());
    }
  }

  @Test
  public void anInterruptedThreadEndsItsCallAndStaysInterrupted() throws Exception {
    AtomicReference<RerankException> seen = new AtomicReference<>();
    try (RerankClient client = plain("FULL").build()) {
      Thread caller =
          new Thread(
              () -> {
                Thread.currentThread().interrupt();
                seen.set(failure(() -> client.rerank(large())));
                assertTrue(Thread.currentThread().isInterrupted());
              });
      caller.start();
      caller.join(20_000);
    }
    assertEquals(ErrorReason.ERROR_REASON_CANCELLED, seen.get().reason());
  }

  @Test
  public void aClosedClientSaysSo() throws Exception {
    RerankClient client = plain("FULL").build();
    client.close();
    assertThrows(IllegalStateException.class, client::health);
  }

  @Test
  public void aRequestOverTheServersLimitIsTooLarge() throws Exception {
    RerankRequest.Builder request = RerankRequest.newBuilder(request());
    for (int number = 0; number < 100; number++) {
      request.addAllDocuments(request("x".repeat(100_000)).getDocumentsList());
    }
    try (RerankClient client = plain("FULL").build()) {
      RerankException error = failure(() -> client.rerank(request.build()));
      assertEquals(error.getMessage(), Problem.MESSAGE_TOO_LARGE, error.problem());
    }
  }

  @Test
  public void aReplyOfMoreThanGrpcsOwnFourMebibytesArrives() throws Exception {
    RerankRequest.Builder request = RerankRequest.newBuilder(request()).setReturnDocuments(true);
    request.setMaxTokensPerDocument(4);
    for (int number = 0; number < 50; number++) {
      request.addAllDocuments(request("y".repeat(99_000)).getDocumentsList());
    }
    try (RerankClient client = plain("FULL").build()) {
      assertTrue(client.rerank(request.build()).getSerializedSize() > 4 << 20);
    }
  }

  @Test
  public void aMethodThatTheServerDoesNotKnowIsAVersionSkew() throws Exception {
    MethodDescriptor<RerankRequest, RerankResponse> newer =
        RerankServiceGrpc.getRerankMethod().toBuilder()
            .setFullMethodName("rerank.v1.RerankService/RerankImages")
            .build();
    try (RerankClient client = plain("FULL").build()) {
      CallOptions options = CallOptions.DEFAULT.withDeadline(Deadline.after(10, TimeUnit.SECONDS));
      StatusRuntimeException status =
          assertThrows(
              StatusRuntimeException.class,
              () -> ClientCalls.blockingUnaryCall(client.channel(), newer, options, request("text")));
      RerankException error = RerankException.of(status);
      assertEquals(Problem.VERSION_SKEW, error.problem());
      assertTrue(error.getMessage(), error.getMessage().contains("older than this client"));
    }
  }

  @Test
  public void settingsAreCheckedWhenTheyAreMade() {
    RerankClient.Builder builder = RerankClient.builder("localhost");
    assertThrows(IllegalArgumentException.class, () -> builder.retries(5));
    assertThrows(IllegalArgumentException.class, () -> builder.timeout(Duration.ZERO));
    IllegalArgumentException error =
        assertThrows(IllegalArgumentException.class, () -> builder.token("two words"));
    assertFalse(error.getMessage().contains("two words"));
    assertThrows(IllegalArgumentException.class, () -> RerankClient.builder(" "));
  }

  @Test
  public void nothingIsTakenWhereItIsMissing() {
    RerankClient.Builder builder = RerankClient.builder("localhost");
    missing("target", () -> RerankClient.create(null));
    missing("token", () -> builder.token(null));
    missing("timeout", () -> builder.timeout(null));
    missing("file", () -> builder.ca(null));
    missing("key", () -> builder.certificate(Path.of("chain.pem"), null));
  }

  private static void missing(String name, ThrowingRunnable call) {
    assertEquals(name, assertThrows(NullPointerException.class, call).getMessage());
  }

  @Test
  public void aTargetOfAnotherSchemeIsRefused() {
    for (String target : new String[] {"http://localhost:1", "grpc://localhost:1"}) {
      IllegalArgumentException error =
          assertThrows(IllegalArgumentException.class, () -> RerankClient.create(target));
      assertTrue(error.getMessage(), error.getMessage().startsWith("target: HOST:PORT without a scheme"));
      assertTrue(error.getMessage(), error.getMessage().endsWith(target));
    }
  }

  @Test
  public void aFileThatHoldsNoCertificateIsNamed() throws Exception {
    Path text = Files.createTempFile("rerank", ".pem");
    try {
      Files.writeString(text, "no certificate");
      for (RerankClient.Builder builder :
          List.of(
              RerankClient.builder("localhost").ca(text),
              RerankClient.builder("localhost").certificate(text, text))) {
        IOException error = assertThrows(IOException.class, builder::build);
        assertTrue(error.getMessage(), error.getMessage().startsWith(text.toString()));
      }
    } finally {
      Files.delete(text);
    }
  }

  @Test
  public void halfOfASurrogatePairIsRefusedBeforeItIsSent() throws Exception {
    String half = "a \uD83D b";
    RerankRequest whole = request("one", "two \uD83D\uDE00");
    try (RerankClient client = plain("FULL").build()) {
      assertEquals(2, client.rerank(whole).getResultsCount());
      unwritable("query", () -> client.rerank(whole.toBuilder().setQuery(half).build()));
      unwritable("model", () -> client.rerank(whole.toBuilder().setModel("\uDE00").build()));
      unwritable("instruction", () -> client.rerank(whole.toBuilder().setInstruction("\uD83D").build()));
      unwritable("documents[1].text", () -> client.rerank(request("one", half)));
      unwritable("documents[0].text", () -> client.streamRerank(Servers.stream(request(half))));
      unwritable("model", () -> client.health(half));
    }
  }

  private static void unwritable(String field, ThrowingRunnable call) {
    RerankException error = failure(call);
    assertEquals(ErrorReason.ERROR_REASON_INVALID_REQUEST, error.reason());
    assertEquals(field, error.fields().get(0).getField());
    assertTrue(error.getMessage(), error.getMessage().startsWith(field + ": holds half"));
  }

  @Test
  public void aTargetWithoutAPortHasTheDefaultOne() {
    assertEquals("localhost:50051", new ChannelSettings("localhost").target());
    assertEquals("localhost:9", new ChannelSettings("localhost:9").target());
    assertEquals("[::1]:50051", new ChannelSettings("::1").target());
    assertEquals("[::1]:50051", new ChannelSettings("[::1]").target());
    assertEquals("[::1]:9", new ChannelSettings("[::1]:9").target());
    assertEquals("dns:///rerank:9", new ChannelSettings("dns:///rerank:9").target());
  }
}
