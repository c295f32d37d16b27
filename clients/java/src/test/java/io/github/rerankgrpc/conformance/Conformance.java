package io.github.rerankgrpc.conformance;

import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import io.github.rerankgrpc.RerankClient;
import io.github.rerankgrpc.RerankException;
import io.github.rerankgrpc.RerankStream;
import io.github.rerankgrpc.v1.RerankResponse;
import io.github.rerankgrpc.v1.RerankResult;
import io.grpc.Context;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;

/** Sends the conformance list through RerankClient; contract/requests.py tells its form. */
public final class Conformance {
  private static final ScheduledExecutorService TIMER =
      Executors.newSingleThreadScheduledExecutor(
          task -> {
            Thread thread = new Thread(task, "cancels");
            thread.setDaemon(true);
            return thread;
          });

  private Conformance() {}

  /** Sends each line over a client of its own, with the token of its caller. */
  public static void main(String[] arguments) throws Exception {
    PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
    JsonObject tokens = JsonParser.parseString(System.getenv("CONFORMANCE_TOKENS")).getAsJsonObject();
    for (String text : Files.readAllLines(Path.of(System.getenv("CONFORMANCE_REQUESTS")))) {
      Line line = new Line(text);
      RerankClient.Builder builder = RerankClient.builder(System.getenv("CONFORMANCE_TARGET"));
      if (tokens.has(line.caller)) {
        builder.token(tokens.get(line.caller).getAsString());
      }
      try (RerankClient client = builder.timeout(line.timeout).build()) {
        JsonObject outcome = cancelling(client, line);
        outcome.addProperty("name", line.name);
        out.println(Outcomes.line(outcome));
      }
    }
  }

  /** Makes one call in a context that is cancelled when the line says. */
  private static JsonObject cancelling(RerankClient client, Line line) throws Exception {
    try (Context.CancellableContext context = Context.current().withCancellation()) {
      if (line.cancelAfter != null) {
        Runnable cancel = () -> context.cancel(null);
        TIMER.schedule(cancel, line.cancelAfter.toMillis(), TimeUnit.MILLISECONDS);
      }
      return context.call(() -> ask(client, line));
    }
  }

  private static JsonObject ask(RerankClient client, Line line) throws Exception {
    try {
      switch (line.method) {
        case "ListModels":
          return Outcomes.models(client.listModels());
        case "Health":
          return Outcomes.health(client.health(line.model()));
        case "StreamRerank":
          return stream(client, line);
        default:
          RerankResponse response = client.rerank(line.rerank(), line.timeout);
          return Outcomes.results(
              response.getResultsList(), response.getModel(), response.getQueryTruncated());
      }
    } catch (RerankException error) {
      return Outcomes.error(error);
    }
  }

  /** Reads a stream, or leaves it after its first results. */
  private static JsonObject stream(RerankClient client, Line line) throws Exception {
    List<RerankResult> results = new ArrayList<>();
    try (RerankStream stream = client.streamRerank(line.stream())) {
      while (stream.hasNext()) {
        results.add(stream.next());
        if (line.leaves) {
          return Outcomes.cancelled();
        }
      }
      return Outcomes.best(results, line.stream().getTopN(), stream.summary());
    }
  }
}
