package io.github.rerankgrpc;

import static org.junit.Assert.assertThrows;

import io.github.rerankgrpc.v1.Document;
import io.github.rerankgrpc.v1.RerankRequest;
import io.github.rerankgrpc.v1.StreamRerankRequest;
import java.nio.file.Path;
import org.junit.function.ThrowingRunnable;

/** The servers that clients/java/check.py has started, and what the tests ask them. */
final class Servers {
  static final String QUERY = "How do I reset my password?";

  private Servers() {}

  /** Reads what check.py has put into the environment. */
  static String said(String name) {
    String value = System.getenv("RERANK_TEST_" + name);
    if (value == null) {
      throw new IllegalStateException("no servers: run `python -m clients.java.check`, or make test-java");
    }
    return value;
  }

  static Path file(String name) {
    return Path.of(said(name));
  }

  static RerankClient.Builder plain(String caller) {
    return RerankClient.builder(said("PLAIN")).token(said("TOKEN_" + caller));
  }

  static RerankClient.Builder speaking(String server) {
    return RerankClient.builder(said(server)).token(said("TOKEN_FULL"));
  }

  static RerankRequest request(String... texts) {
    RerankRequest.Builder request = RerankRequest.newBuilder().setQuery(QUERY);
    for (String text : texts) {
      request.addDocuments(Document.newBuilder().setText(text));
    }
    return request.build();
  }

  /** A request that keeps the server busy for longer than any test waits. */
  static RerankRequest large() {
    RerankRequest.Builder request = RerankRequest.newBuilder().setQuery(QUERY);
    for (int number = 0; number < 1000; number++) {
      // The number comes first: equal texts are scored once, and so are those that are equal once cut.
      String text = number + " The password is changed in the settings.".repeat(60);
      request.addDocuments(Document.newBuilder().setText(text));
    }
    return request.build();
  }

  static StreamRerankRequest stream(RerankRequest request) {
    return StreamRerankRequest.newBuilder()
        .setQuery(request.getQuery())
        .addAllDocuments(request.getDocumentsList())
        .build();
  }

  static RerankException failure(ThrowingRunnable call) {
    return assertThrows(RerankException.class, call);
  }
}
