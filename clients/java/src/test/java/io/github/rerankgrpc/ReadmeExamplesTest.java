package io.github.rerankgrpc;

import static io.github.rerankgrpc.Servers.failure;
import static io.github.rerankgrpc.Servers.plain;
import static io.github.rerankgrpc.Servers.request;
import static io.github.rerankgrpc.Servers.said;
import static io.github.rerankgrpc.Servers.stream;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;

import java.io.ByteArrayOutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import org.junit.Test;
import org.junit.function.ThrowingRunnable;

/** Runs what README.md shows. */
public final class ReadmeExamplesTest {
  @Test
  public void theFirstCallPrintsTheBestDocument() throws Throwable {
    String printed = printed(() -> ReadmeExamples.firstCall(said("PLAIN"), said("TOKEN_FULL")));
    assertTrue(printed, printed.startsWith("1 0."));
  }

  @Test
  public void theOthersRun() throws Throwable {
    ReadmeExamples.options(said("PLAIN"), said("TOKEN_FULL"));
    String folder = Servers.file("CA").getParent().toString();
    ReadmeExamples.tls(said("MUTUAL"), said("TOKEN_FULL"), folder);
    try (RerankClient client = plain("FULL").build()) {
      assertEquals(1, ReadmeExamples.errors(client, request("text")).getResultsCount());
      failure(() -> ReadmeExamples.errors(client, request()));
      assertEquals(1, ReadmeExamples.future(client, request("text")).getResultsCount());
      failure(() -> ReadmeExamples.future(client, request()));
      String printed = printed(() -> ReadmeExamples.streaming(client, stream(request("one", "two"))));
      assertTrue(printed, printed.contains("tokens"));
    }
  }

  private static String printed(ThrowingRunnable example) throws Throwable {
    PrintStream before = System.out;
    ByteArrayOutputStream caught = new ByteArrayOutputStream();
    System.setOut(new PrintStream(caught, true, StandardCharsets.UTF_8));
    try {
      example.run();
    } finally {
      System.setOut(before);
    }
    return caught.toString(StandardCharsets.UTF_8);
  }
}
