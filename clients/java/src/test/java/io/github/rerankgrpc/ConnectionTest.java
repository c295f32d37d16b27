package io.github.rerankgrpc;

import static io.github.rerankgrpc.Servers.failure;
import static io.github.rerankgrpc.Servers.file;
import static io.github.rerankgrpc.Servers.said;
import static io.github.rerankgrpc.Servers.speaking;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;

import io.github.rerankgrpc.RerankException.Problem;
import java.io.IOException;
import java.net.ServerSocket;
import java.nio.file.Path;
import org.junit.Test;

/** TLS that comes about, and each way in which a connection does not. */
public final class ConnectionTest {
  @Test
  public void aServerOfATrustedAuthorityIsCalledByTls() throws Exception {
    try (RerankClient client = speaking("TLS").ca(file("CA")).build()) {
      assertTrue(client.health().getServing());
    }
  }

  @Test
  public void aCertificateOfAnotherNameIsTakenWhereTheNameIsGiven() throws Exception {
    try (RerankClient client = speaking("TLS").ca(file("CA")).serverName("localhost").build()) {
      assertTrue(client.health().getServing());
    }
    tells(Problem.TLS, "for another name", speaking("TLS").ca(file("CA")).serverName("elsewhere.example"));
  }

  @Test
  public void mutualTlsShowsACertificate() throws Exception {
    try (RerankClient client = certified("ALICE").build()) {
      assertTrue(client.health().getServing());
    }
    tells(Problem.TLS, "wants a certificate", speaking("MUTUAL").ca(file("CA")));
    tells(Problem.TLS, "refuses the one shown", certified("MALLORY"));
  }

  @Test
  public void anUnknownAuthorityIsToldApart() throws Exception {
    tells(Problem.TLS, "not trusted here", speaking("TLS").ca(file("OTHER_CA")));
    tells(Problem.TLS, "not trusted here", speaking("TLS").tls());
  }

  @Test
  public void tlsOnOneSideAloneIsToldApart() throws Exception {
    tells(Problem.TLS, "speaks no TLS", speaking("PLAIN").ca(file("CA")));
    tells(Problem.TLS, "expects TLS", speaking("TLS"));
  }

  @Test
  public void aWrongAddressIsToldApart() throws Exception {
    tells(Problem.UNREACHABLE, "no such host", RerankClient.builder("no-such-host.invalid"));
    tells(Problem.UNREACHABLE, "no server listens there", RerankClient.builder("127.0.0.1:" + unused()));
    tells(Problem.UNREACHABLE, "name the port of gRPC", RerankClient.builder(said("REST")));
  }

  private static RerankClient.Builder certified(String name) {
    String path = said(name);
    return speaking("MUTUAL").ca(file("CA")).certificate(Path.of(path + ".pem"), Path.of(path + ".key"));
  }

  private static void tells(Problem problem, String words, RerankClient.Builder builder) throws IOException {
    RerankException error = told(builder);
    // A look that a busy machine lets end first finds nothing, but not every time.
    boolean looks = problem == Problem.TLS;
    for (int times = 0; times < 2 && looks && error.problem() == Problem.UNREACHABLE; times++) {
      error = told(builder);
    }
    assertEquals(error.getMessage(), problem, error.problem());
    assertTrue(error.getMessage(), error.getMessage().contains(words));
  }

  private static RerankException told(RerankClient.Builder builder) throws IOException {
    try (RerankClient client = builder.build()) {
      return failure(client::health);
    }
  }

  private static int unused() throws IOException {
    try (ServerSocket socket = new ServerSocket(0)) {
      return socket.getLocalPort();
    }
  }
}
