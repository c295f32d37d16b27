package io.github.rerankgrpc;

import io.github.rerankgrpc.RerankException.Problem;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.net.ConnectException;
import java.net.UnknownHostException;
import java.security.cert.CertPathBuilderException;
import java.security.cert.CertificateExpiredException;
import java.security.cert.CertificateNotYetValidException;
import java.util.regex.Pattern;

/** Why no server answers: read from the causes of gRPC's status, whose own text is "io exception". */
final class Connections {
  /** The names of the causes, because grpc-netty-shaded has Netty's classes under names of its own. */
  private static final Pattern NO_TLS = Pattern.compile("NotSslRecordException|unrecognized SSL message");

  private static final Pattern OUTDATED =
      Pattern.compile("validity check failed|NotAfter|NotBefore|certificate has expired");
  private static final Pattern WRONG_NAME =
      Pattern.compile("subject alternative|No name matching|hostname verif", Pattern.CASE_INSENSITIVE);
  private static final Pattern WANTS_CERTIFICATE =
      Pattern.compile("TLS negotiation|certificate_required|bad_certificate|CERTIFICATE_REQUIRED|"
          + "BAD_CERTIFICATE|unknown_ca|handshake_failure|closed.*handshake");

  /** The first five bytes of an answer that begins with "HTTP/", as Netty shows them. */
  private static final Pattern HTTP_1 = Pattern.compile("485454502f", Pattern.CASE_INSENSITIVE);

  private static final Pattern CLOSED =
      Pattern.compile("closed for unknown reason|End of stream|Connection reset|closed prematurely|GOAWAY");

  private Connections() {}

  /** Makes the exception of a call that reached no server, in one line. */
  static RerankException unavailable(StatusRuntimeException error, String target) {
    String words = words(error);
    String problem = tls(error, words);
    if (problem != null) {
      return Failures.without(target + ": " + problem, Status.Code.UNAVAILABLE, Problem.TLS, error);
    }
    String text = target + ": " + plain(error, words);
    return Failures.without(text, Status.Code.UNAVAILABLE, Problem.UNREACHABLE, error);
  }

  /** Tells whether a server that speaks HTTP/1, such as the REST port, has answered. */
  static boolean isHttp1(Throwable error) {
    return HTTP_1.matcher(words(error)).find();
  }

  /** Tells whether the server has closed the connection without a word, as one that expects TLS does. */
  static boolean isClosed(Throwable error) {
    return CLOSED.matcher(words(error)).find();
  }

  private static String tls(Throwable error, String words) {
    if (NO_TLS.matcher(words).find()) {
      return "the server speaks no TLS there: leave out tls(), ca() and certificate(), or name its TLS port";
    }
    if (has(error, CertificateExpiredException.class)
        || has(error, CertificateNotYetValidException.class)
        || OUTDATED.matcher(words).find()) {
      return "the server's certificate is out of its time: renew it, or set the clocks";
    }
    if (has(error, CertPathBuilderException.class)) {
      return "the server's certificate is of an authority that is not trusted here: name it with ca()";
    }
    if (WRONG_NAME.matcher(words).find()) {
      return "the server's certificate is for another name: "
          + innermost(error)
          + " Name it with serverName()";
    }
    if (WANTS_CERTIFICATE.matcher(words).find()) {
      return "the server ended the TLS handshake: it wants a certificate of the caller (certificate()), or"
          + " refuses the one shown";
    }
    return null;
  }

  private static String plain(StatusRuntimeException error, String words) {
    if (has(error, UnknownHostException.class)) {
      return "no such host: check the name";
    }
    if (has(error, ConnectException.class)) {
      return "no server listens there: start it, or name its address and port (" + innermost(error) + ")";
    }
    if (CLOSED.matcher(words).find()) {
      return "the connection was closed: the server has ended, or expects TLS";
    }
    String text = Failures.text(error).lines().findFirst().orElse(""); // of which gRPC's pipeline is left out
    return text.equals("io exception") ? innermost(error) : text;
  }

  private static boolean has(Throwable error, Class<? extends Throwable> kind) {
    for (Throwable cause = error; cause != null; cause = cause.getCause()) {
      if (kind.isInstance(cause)) {
        return true;
      }
    }
    return false;
  }

  private static String innermost(Throwable error) {
    Throwable last = error;
    while (last.getCause() != null) {
      last = last.getCause();
    }
    return last.getMessage() == null ? last.toString() : last.getMessage();
  }

  private static String words(Throwable error) {
    StringBuilder words = new StringBuilder();
    for (Throwable cause = error; cause != null; cause = cause.getCause()) {
      words.append(cause).append('\n');
    }
    return words.toString();
  }
}
