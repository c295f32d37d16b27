package io.github.rerankgrpc;

import io.github.rerankgrpc.v1.HealthRequest;
import io.github.rerankgrpc.v1.HealthResponse;
import io.github.rerankgrpc.v1.ListModelsRequest;
import io.github.rerankgrpc.v1.Model;
import io.github.rerankgrpc.v1.RerankRequest;
import io.github.rerankgrpc.v1.RerankResponse;
import io.github.rerankgrpc.v1.RerankServiceGrpc;
import io.github.rerankgrpc.v1.RerankServiceGrpc.RerankServiceBlockingStub;
import io.github.rerankgrpc.v1.StreamRerankRequest;
import io.grpc.Channel;
import io.grpc.ConnectivityState;
import io.grpc.Context;
import io.grpc.Deadline;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.StatusRuntimeException;
import java.io.IOException;
import java.nio.file.Path;
import java.time.Duration;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.BooleanSupplier;
import java.util.function.Consumer;
import java.util.function.Function;

/**
 * A client of one rerank server, or of its replicas behind one name.
 *
 * <p>Threads may share it, and one is enough for a process: it holds the connections. Every call has
 * a deadline, within which it is tried again where that may help. A call that fails throws {@link
 * RerankException}. A blocked call ends with the reason CANCELLED when its thread is interrupted,
 * when the {@link Context} that it was made in is cancelled, or when the client is closed.
 */
public final class RerankClient implements AutoCloseable {
  /** The port of a target that names none. */
  public static final int DEFAULT_PORT = 50051;

  private static final long RECONNECT_NANOS = TimeUnit.SECONDS.toNanos(2);

  private final String target;
  private final Duration timeout;
  private final int retries;
  private final TlsLook look;
  private final ManagedChannel channel;
  private final RerankServiceBlockingStub stub;
  private final AtomicLong lastReconnect = new AtomicLong(System.nanoTime() - RECONNECT_NANOS);
  /** Ends with the client. */
  private final Context.CancellableContext open = Context.ROOT.withCancellation();

  private RerankClient(Builder builder) throws IOException {
    target = builder.channel.target();
    timeout = builder.timeout;
    retries = builder.channel.retries;
    look = builder.channel.tls ? null : new TlsLook(target);
    channel = builder.channel.open();
    stub = RerankServiceGrpc.newBlockingStub(channel);
  }

  /** Makes a client of a server in plaintext that wants no token, such as {@code localhost:50051}. */
  public static RerankClient create(String target) {
    try {
      return builder(target).build();
    } catch (IOException error) {
      throw new IllegalStateException("a client in plaintext reads no files", error);
    }
  }

  /**
   * Begins a client with settings of its own.
   *
   * @param target {@code HOST}, {@code HOST:PORT}, or a URI that gRPC resolves ({@code dns:///HOST:PORT}).
   *     A name with several addresses is several replicas, called in turn.
   */
  public static Builder builder(String target) {
    return new Builder(target);
  }

  /** Scores all documents; the results come by descending relevance. Throws RerankException. */
  public RerankResponse rerank(RerankRequest request) {
    return rerank(request, timeout);
  }

  /** Does the same with a deadline of its own. */
  public RerankResponse rerank(RerankRequest request, Duration timeout) {
    Texts.check(Objects.requireNonNull(request, "request"));
    return call(timeout, stub -> stub.rerank(request));
  }

  /** Scores documents and hands out each result when it is there; close the stream. */
  public RerankStream streamRerank(StreamRerankRequest request) {
    return streamRerank(request, timeout);
  }

  /** Does the same with a deadline of its own, which counts from here to the last result. */
  public RerankStream streamRerank(StreamRerankRequest request, Duration timeout) {
    Texts.check(Objects.requireNonNull(request, "request"));
    Attempts attempts = attempts(timeout);
    return new RerankStream(
        () -> ready(attempts).streamRerank(request),
        attempts,
        (error, left) -> failure(error, attempts, () -> left));
  }

  /** Lists the models that the server is configured with; its default model is first. */
  public List<Model> listModels() {
    return call(timeout, stub -> stub.listModels(ListModelsRequest.getDefaultInstance())).getModelsList();
  }

  /** Tells whether a call for the default model would be answered. */
  public HealthResponse health() {
    return health("");
  }

  /** Tells whether a call for a model would be answered; "" is the default model. */
  public HealthResponse health(String model) {
    HealthRequest request =
        HealthRequest.newBuilder().setModel(Objects.requireNonNull(model, "model")).build();
    Texts.check(request);
    return call(timeout, stub -> stub.health(request));
  }

  /**
   * The channel with this client's token, TLS, limits and retries, for stubs of the caller's own:
   * {@code RerankServiceGrpc.newFutureStub(client.channel())}. They set their deadlines themselves, and
   * {@link RerankException#of} reads their errors.
   */
  public Channel channel() {
    return channel;
  }

  /** Ends the calls in progress and closes the connections. */
  @Override
  public void close() {
    open.cancel(null);
    channel.shutdownNow();
  }

  private <T> T call(Duration timeout, Function<RerankServiceBlockingStub, T> rpc) {
    Attempts attempts = attempts(timeout);
    while (true) {
      try {
        return rpc.apply(ready(attempts));
      } catch (StatusRuntimeException error) {
        Context context = Context.current();
        attempts.waitAfter(failure(error, attempts, context::isCancelled), context);
      }
    }
  }

  private Attempts attempts(Duration timeout) {
    return new Attempts(Deadline.after(nanos(timeout), TimeUnit.NANOSECONDS), open, retries);
  }

  private RerankServiceBlockingStub ready(Attempts attempts) {
    if (open.isCancelled()) {
      throw new IllegalStateException("the client is closed");
    }
    reconnect();
    return stub.withDeadline(attempts.deadline());
  }

  /** Lets a channel without a server look for one now: gRPC itself waits up to two minutes. */
  private void reconnect() {
    long last = lastReconnect.get();
    long now = System.nanoTime();
    if (now - last >= RECONNECT_NANOS
        && channel.getState(false) == ConnectivityState.TRANSIENT_FAILURE
        && lastReconnect.compareAndSet(last, now)) {
      channel.resetConnectBackoff();
    }
  }

  private RerankException failure(
      StatusRuntimeException error, Attempts attempts, BooleanSupplier leftByCaller) {
    boolean cancelled = open.isCancelled() || leftByCaller.getAsBoolean() || Thread.currentThread().isInterrupted();
    RerankException failure = Failures.of(error, target, attempts.limit(), cancelled);
    return look == null ? failure : look.explain(failure, attempts.deadline());
  }

  private static long nanos(Duration timeout) {
    Objects.requireNonNull(timeout, "timeout");
    if (timeout.isNegative() || timeout.isZero() || timeout.compareTo(Duration.ofDays(1)) > 0) {
      throw new IllegalArgumentException("timeout: more than 0 and at most a day, not " + timeout);
    }
    return timeout.toNanos();
  }

  /** The settings of a client; each method checks its argument and throws IllegalArgumentException. None takes null. */
  public static final class Builder {
    private final ChannelSettings channel;
    private Duration timeout = Duration.ofSeconds(30);

    private Builder(String target) {
      channel = new ChannelSettings(target);
    }

    /** Sends a token with every call. */
    public Builder token(String token) {
      channel.token(token);
      return this;
    }

    /** Sets the deadline of a call, all its attempts together; 30 seconds unless set. */
    public Builder timeout(Duration timeout) {
      nanos(timeout);
      this.timeout = timeout;
      return this;
    }

    /** Sets how many further attempts a call may take, 0 to 4; 3 unless set. */
    public Builder retries(int retries) {
      channel.retries(retries);
      return this;
    }

    /** Speaks TLS, and trusts the authorities that this Java trusts. */
    public Builder tls() {
      channel.tls = true;
      return this;
    }

    /** Speaks TLS, and trusts the authorities of this PEM file alone. */
    public Builder ca(Path file) {
      channel.tls = true;
      channel.ca = Objects.requireNonNull(file, "file");
      return this;
    }

    /** Speaks TLS and shows a certificate: its chain and its key, PEM files; the key in PKCS#8. */
    public Builder certificate(Path chain, Path key) {
      channel.tls = true;
      channel.chain = Objects.requireNonNull(chain, "chain");
      channel.key = Objects.requireNonNull(key, "key");
      return this;
    }

    /** Sets the name that the server's certificate is for, where that is not the target's. */
    public Builder serverName(String name) {
      channel.serverName = Objects.requireNonNull(name, "name");
      return this;
    }

    /** Changes gRPC's own builder after this client has set it up: interceptors, an executor, a proxy. */
    public Builder configure(Consumer<ManagedChannelBuilder<?>> change) {
      channel.change = channel.change.andThen(Objects.requireNonNull(change, "change"));
      return this;
    }

    /**
     * Makes the client, which connects with its first call.
     *
     * @throws IOException for a file that cannot be read, or holds no certificate or key
     * @throws IllegalArgumentException for a target of a scheme that gRPC does not resolve, such as http
     */
    public RerankClient build() throws IOException {
      return new RerankClient(this);
    }
  }
}
