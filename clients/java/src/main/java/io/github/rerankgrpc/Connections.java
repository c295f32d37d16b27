package io.github.rerankgrpc;

import io.github.rerankgrpc.RerankException.Problem;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.util.Locale;

/** Why no server answers: read from the causes of gRPC's status. */
final class Connections {
  private Connections() {}

  static RerankException unavailable(StatusRuntimeException error, String target) {
    String words = words(error);
    System.err.println("WORDS " + words);
    return Failures.without(words, Status.Code.UNAVAILABLE, Problem.UNREACHABLE, error);
  }

  private static String words(Throwable error) {
    StringBuilder words = new StringBuilder();
    for (Throwable cause = error; cause != null; cause = cause.getCause()) {
      words.append(cause).append('\n');
    }
    return words.toString();
  }
}
