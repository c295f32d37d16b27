package io.github.rerankgrpc;

import io.grpc.ChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.ManagedChannelProvider.ProviderNotFoundException;
import io.grpc.Metadata;
import io.grpc.TlsChannelCredentials;
import io.grpc.stub.MetadataUtils;
import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import java.util.stream.Collectors;
import java.util.stream.Stream;

/** What a client's channel is opened with. */
final class ChannelSettings {
  private static final int MIB = 1 << 20;

  /** The server's limit of a request. */
  private static final int REQUEST_BYTES = 8 * MIB;

  /** The server's limit of a reply; gRPC accepts 4 MiB unless told. */
  private static final int REPLY_BYTES = 16 * MIB;

  /** gRPC cuts a policy of more attempts down to five. */
  private static final int MOST_RETRIES = 4;

  private static final Metadata.Key<String> AUTHORIZATION =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

  private final String target;
  private String token;
  int retries = 3;
  boolean tls;
  Path ca;
  Path chain;
  Path key;
  String serverName;
  Consumer<ManagedChannelBuilder<?>> change = builder -> {};

  ChannelSettings(String target) {
    if (Objects.requireNonNull(target, "target").isBlank()) {
      throw new IllegalArgumentException("target: HOST or HOST:PORT, not empty");
    }
    boolean complete = target.contains("://") || target.matches(".*[^:]:[^:\\]]*|.*]:\\d+");
    boolean bare = target.matches("[0-9a-fA-F:]*:[0-9a-fA-F:]*:[0-9a-fA-F:]*");
    String host = bare ? "[" + target + "]" : target;
    this.target = complete && !bare ? target : host + ":" + RerankClient.DEFAULT_PORT;
  }

  String target() {
    return target;
  }

  void token(String token) {
    // The text itself is never repeated in an error.
    if (!Objects.requireNonNull(token, "token").matches("[!-~]+")) {
      throw new IllegalArgumentException("token: not empty, printable ASCII without spaces");
    }
    this.token = token;
  }

  void retries(int retries) {
    if (retries < 0 || retries > MOST_RETRIES) {
      throw new IllegalArgumentException("retries: 0 to " + MOST_RETRIES + ", not " + retries);
    }
    this.retries = retries;
  }

  ManagedChannel open() throws IOException {
    ManagedChannelBuilder<?> builder = builder();
    builder
        .defaultServiceConfig(serviceConfig(retries))
        .enableRetry()
        .userAgent("rerank-grpc-java")
        .maxInboundMessageSize(REPLY_BYTES)
        // A request over the first is never retried, silently: 1 MiB unless told. The MiB is for
        // metadata, which counts too. The second is of all calls of the channel together.
        .perRpcBufferLimit(REQUEST_BYTES + MIB)
        .retryBufferSize(8L * REQUEST_BYTES)
        // Servers close a connection that is pinged more often than every 5 minutes, and allow a ping
        // without calls every 2 hours only.
        .keepAliveTime(330, TimeUnit.SECONDS)
        .keepAliveTimeout(10, TimeUnit.SECONDS)
        .keepAliveWithoutCalls(false);
    if (token != null) {
      Metadata headers = new Metadata();
      headers.put(AUTHORIZATION, "Bearer " + token);
      builder.intercept(MetadataUtils.newAttachHeadersInterceptor(headers));
    }
    if (serverName != null) {
      builder.overrideAuthority(serverName);
    }
    change.accept(builder);
    try {
      return builder.build();
    } catch (IllegalArgumentException unresolved) {
      if (!target.contains("://")) {
        throw unresolved;
      }
      throw new IllegalArgumentException(
          "target: HOST:PORT without a scheme such as http://, or dns:///HOST:PORT, not " + target, unresolved);
    }
  }

  private ManagedChannelBuilder<?> builder() throws IOException {
    ChannelCredentials credentials = credentials();
    try {
      return Grpc.newChannelBuilder(target, credentials);
    } catch (IllegalArgumentException | ProviderNotFoundException unreadable) {
      String files =
          Stream.of(ca, chain, key)
              .filter(Objects::nonNull)
              .map(Path::toString)
              .distinct()
              .collect(Collectors.joining(", "));
      if (files.isEmpty()) {
        throw unreadable;
      }
      throw new IOException(
          files + ": no certificate in PEM, or no key in PKCS#8: " + unreadable.getMessage(), unreadable);
    }
  }

  private ChannelCredentials credentials() throws IOException {
    if (!tls) {
      return InsecureChannelCredentials.create();
    }
    TlsChannelCredentials.Builder builder = TlsChannelCredentials.newBuilder();
    if (ca != null) {
      builder.trustManager(ca.toFile());
    }
    if (chain != null) {
      builder.keyManager(chain.toFile(), key.toFile());
    }
    return builder.build();
  }

  /**
   * Makes gRPC's service config: its choice of a replica, and its own retries.
   *
   * <p>Its numbers are doubles, as JSON's are: gRPC refuses integers. The throttle allows 1.5 attempts
   * per call in the long run, and 50 retries in an outage. A server that stops says CANCELLED to calls
   * that were on their way; a call that its caller cancels is not retried.
   */
  private static Map<String, ?> serviceConfig(int retries) {
    List<?> policies = List.of(Map.of("round_robin", Map.of()));
    if (retries == 0) {
      return Map.of("loadBalancingConfig", policies);
    }
    Map<String, ?> policy =
        Map.of(
            "maxAttempts", retries + 1.0,
            "initialBackoff", "0.1s",
            "maxBackoff", "2s",
            "backoffMultiplier", 2.0,
            "retryableStatusCodes", List.of("UNAVAILABLE", "CANCELLED"));
    Map<String, ?> method =
        Map.of(
            "name", List.of(Map.of("service", "rerank.v1.RerankService")),
            "retryPolicy", policy);
    return Map.of(
        "loadBalancingConfig", policies,
        "methodConfig", List.of(method),
        "retryThrottling", Map.of("maxTokens", 100.0, "tokenRatio", 0.5));
  }
}
