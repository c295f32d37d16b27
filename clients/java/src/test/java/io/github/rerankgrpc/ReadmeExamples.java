package io.github.rerankgrpc;

import io.github.rerankgrpc.v1.Document;
import io.github.rerankgrpc.v1.ErrorReason;
import io.github.rerankgrpc.v1.RerankRequest;
import io.github.rerankgrpc.v1.RerankResponse;
import io.github.rerankgrpc.v1.RerankResult;
import io.github.rerankgrpc.v1.RerankServiceGrpc;
import io.github.rerankgrpc.v1.StreamRerankRequest;
import io.grpc.StatusRuntimeException;
import java.io.IOException;
import java.nio.file.Path;
import java.time.Duration;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;

/** The blocks of README.md, word for word; clients/java/check.py compares, ReadmeExamplesTest runs them. */
final class ReadmeExamples {
  private ReadmeExamples() {}

  static void firstCall(String address, String token) throws IOException {
    try (RerankClient client = RerankClient.builder(address).token(token).build()) {
      RerankRequest request =
          RerankRequest.newBuilder()
              .setQuery("How do I reset my password?")
              .addDocuments(Document.newBuilder().setText("Our office is closed on public holidays."))
              .addDocuments(Document.newBuilder().setText("To choose a new password, open Settings."))
              .setTopN(1)
              .build();
      RerankResponse response = client.rerank(request);
      for (RerankResult result : response.getResultsList()) {
        System.out.println(result.getIndex() + " " + result.getRelevanceScore());
      }
    }
  }

  static void options(String address, String token) throws IOException {
    RerankClient client =
        RerankClient.builder(address)
            .token(token)
            .timeout(Duration.ofSeconds(5))
            .retries(2)
            .configure(channel -> channel.userAgent("search-frontend"))
            .build();
    client.close();
  }

  static RerankResponse errors(RerankClient client, RerankRequest request) {
    try {
      return client.rerank(request, Duration.ofSeconds(2));
    } catch (RerankException error) {
      if (error.reason() == ErrorReason.ERROR_REASON_INVALID_REQUEST) {
        error.fields().forEach(field -> System.err.println(field.getField() + ": " + field.getDescription()));
      } else if (error.retryAfter().isPresent()) {
        System.err.println("busy: again in " + error.retryAfter().get().toMillis() + " ms");
      } else if (error.problem() == RerankException.Problem.TLS) {
        System.err.println(error.getMessage());
      }
      throw error;
    }
  }

  static void streaming(RerankClient client, StreamRerankRequest request) {
    try (RerankStream stream = client.streamRerank(request)) {
      while (stream.hasNext()) {
        RerankResult result = stream.next();
        System.out.println(result.getIndex() + " " + result.getRelevanceScore());
      }
      System.out.println(stream.summary().getUsage().getInputTokens() + " tokens");
    }
  }

  static void tls(String address, String token, String folder) throws IOException {
    RerankClient client =
        RerankClient.builder(address)
            .token(token)
            .ca(Path.of(folder, "ca.pem"))
            .certificate(Path.of(folder, "alice.pem"), Path.of(folder, "alice.key"))
            .build();
    client.health();
    client.close();
  }

  static RerankResponse future(RerankClient client, RerankRequest request)
      throws InterruptedException, ExecutionException {
    RerankServiceGrpc.RerankServiceFutureStub stub =
        RerankServiceGrpc.newFutureStub(client.channel()).withDeadlineAfter(5, TimeUnit.SECONDS);
    try {
      return stub.rerank(request).get();
    } catch (ExecutionException error) {
      if (error.getCause() instanceof StatusRuntimeException) {
        throw RerankException.of((StatusRuntimeException) error.getCause());
      }
      throw error;
    }
  }
}
