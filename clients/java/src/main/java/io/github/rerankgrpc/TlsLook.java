package io.github.rerankgrpc;

import io.github.rerankgrpc.RerankException.Problem;
import io.grpc.Deadline;
import java.io.EOFException;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.net.URI;
import java.util.concurrent.TimeUnit;
import javax.net.ssl.SSLHandshakeException;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.SSLSocketFactory;

/**
 * Finds out whether a server expects TLS, by one connection of its own.
 *
 * <p>A server with TLS closes a plaintext connection without a word, as one that ends does. So after such
 * a call a handshake is tried, for two seconds at most; its answer is believed for five.
 */
final class TlsLook {
  private static final int WAIT_MS = 1_000;
  private static final long BELIEVED_NANOS = TimeUnit.SECONDS.toNanos(5);

  private final String target;
  private long until = System.nanoTime();
  private boolean expected;

  TlsLook(String target) {
    this.target = target;
  }

  /** Makes the exception that tells more, where TLS is the reason and the call has time left to look. */
  RerankException explain(RerankException failure, Deadline deadline) {
    boolean closed = failure.problem() == Problem.UNREACHABLE && Connections.isClosed(failure.getCause());
    if (!closed || deadline.timeRemaining(TimeUnit.MILLISECONDS) < 2 * WAIT_MS || !expectsTls()) {
      return failure;
    }
    String text = target + ": the server expects TLS: add tls() or ca()";
    return Failures.without(text, failure.code(), Problem.TLS, failure.getCause());
  }

  private synchronized boolean expectsTls() {
    if (System.nanoTime() - until >= 0) {
      expected = look();
      until = System.nanoTime() + BELIEVED_NANOS;
    }
    return expected;
  }

  private boolean look() {
    String address = target.substring(target.lastIndexOf('/') + 1);
    URI uri = URI.create("tls://" + address);
    SSLSocketFactory factory = (SSLSocketFactory) SSLSocketFactory.getDefault();
    try (Socket plain = new Socket()) {
      plain.connect(new InetSocketAddress(uri.getHost().replaceAll("[\\[\\]]", ""), uri.getPort()), WAIT_MS);
      plain.setSoTimeout(WAIT_MS);
      try (SSLSocket socket = (SSLSocket) factory.createSocket(plain, uri.getHost(), uri.getPort(), true)) {
        socket.startHandshake();
        return true;
      }
    } catch (SSLHandshakeException answered) {
      return !(answered.getCause() instanceof EOFException); // its certificate need not be trusted here
    } catch (IOException | RuntimeException other) {
      return false; // no TLS, no server, or a target that is no address
    }
  }
}
