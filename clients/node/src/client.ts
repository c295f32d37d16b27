import { create } from "@bufbuild/protobuf";
import {
  Code,
  ConnectError,
  type CallOptions as ConnectOptions,
  createClient,
  createContextValues,
  type Client as Stub,
} from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { Cancelled, DeadlineExceeded, type RerankError, type TlsProblem } from "./errors";
import { codesOf, errorOf, type Failure, readFailure } from "./failures";
import {
  type HealthResponse,
  type Model,
  type RerankResponse,
  RerankService,
  type StreamRerankResponse,
  StreamRerankRequestSchema,
} from "./gen/rerank/v1/rerank_pb";
import {
  type CallOptions,
  callOptionsOf,
  type ClientOptions,
  metadataOf,
  milliseconds,
  type Settings,
  settingsOf,
} from "./options";
import { type DocumentLike, type RerankOptions, rerankRequest } from "./request";
import { ATTEMPTS, type Attempts, retrying } from "./retries";
import { Session } from "./session";
import { RerankStream } from "./stream";
import { probe } from "./tls";
import { version } from "./version";

const MIB = 2 ** 20;
// The service's own limits, in bytes.
const LONGEST_REQUEST = 8 * MIB;
const LONGEST_REPLY = 16 * MIB;
// Above the 5 minutes below which servers close the connection, and never sent without calls, which they allow
// every 2 hours only. A connection that has been idle so long is looked at before its next call.
const PING_INTERVAL_MS = 330_000;
const PING_TIMEOUT_MS = 10_000;
const CONNECT_TIMEOUT_MS = 5_000;

/** A client of one server, with one connection that opens at the first call and again when it breaks. */
export class Client {
  readonly #settings: Settings;
  readonly #session: Session;
  readonly #stub: Stub<typeof RerankService>;
  // Of the calls that are on their way; AbortSignal.any would stay in a signal that lives longer than its call.
  readonly #calls = new Set<AbortController>();
  #closed = false;
  #probe: Promise<TlsProblem | undefined> | undefined;

  /**
   * Makes a client of a target, HOST or HOST:PORT; the port is 50051 unless said.
   *
   * Throws TypeError or RangeError, naming the setting.
   */
  constructor(target = "localhost", options: ClientOptions = {}) {
    const settings = settingsOf(target, options);
    const { hangTimeoutMs, url } = settings;
    const pings = {
      pingIntervalMs: hangTimeoutMs ?? PING_INTERVAL_MS,
      pingTimeoutMs: hangTimeoutMs ?? PING_TIMEOUT_MS,
      connectTimeoutMs: CONNECT_TIMEOUT_MS,
    };
    this.#settings = settings;
    this.#session = new Session(url, pings, settings.tls);
    const transport = createGrpcTransport({
      baseUrl: url,
      sessionManager: this.#session,
      readMaxBytes: LONGEST_REPLY,
      writeMaxBytes: LONGEST_REQUEST,
      interceptors: [retrying(settings.retries)],
    });
    this.#stub = createClient(RerankService, transport);
  }

  /**
   * Scores documents against a query; the results come by descending relevance.
   *
   * Rejects with a RerankError; with a TypeError for an argument of a wrong type.
   */
  async rerank(
    query: string,
    documents: Iterable<DocumentLike>,
    options: RerankOptions & CallOptions = {},
  ): Promise<RerankResponse> {
    const [call, fields] = split(options);
    const request = rerankRequest(query, documents, fields);
    return await this.#call(call, (connect) => this.#stub.rerank(request, connect));
  }

  /**
   * Scores documents and yields each result as it is scored; takes the options of `rerank`.
   *
   * The call is sent, and its deadline begins, when the first result is asked for.
   */
  streamRerank(
    query: string,
    documents: Iterable<DocumentLike>,
    options: RerankOptions & CallOptions = {},
  ): RerankStream {
    const [call, fields] = split(options);
    const { $typeName: _, ...request } = rerankRequest(query, documents, fields);
    return new RerankStream(this.#messages(create(StreamRerankRequestSchema, request), call));
  }

  /** Lists the configured models, the default one first. */
  async listModels(options: CallOptions = {}): Promise<Model[]> {
    return (await this.#call(callOptionsOf(options), (connect) => this.#stub.listModels({}, connect))).models;
  }

  /** Tells whether a call for a model would be answered, the default one unless named. */
  async health(model = "", options: CallOptions = {}): Promise<HealthResponse> {
    return await this.#call(callOptionsOf(options), (connect) => this.#stub.health({ model }, connect));
  }

  /** Cancels the calls that are on their way, and closes the connection. */
  close(): void {
    this.#closed = true;
    for (const call of this.#calls) call.abort();
    this.#session.abort(new ConnectError("the client is closed", Code.Canceled));
  }

  [Symbol.dispose](): void {
    this.close();
  }

  async #call<Reply>(options: CallOptions, send: (connect: ConnectOptions) => Promise<Reply>): Promise<Reply> {
    const [connect, attempts] = this.#connectOptions(options);
    const [signal, end] = this.#begin(options.signal);
    try {
      return await send({ ...connect, signal });
    } catch (error) {
      throw await this.#errorOf(error, options, attempts, signal);
    } finally {
      end();
    }
  }

  async *#messages(
    request: Parameters<Stub<typeof RerankService>["streamRerank"]>[0],
    options: CallOptions,
  ): AsyncGenerator<StreamRerankResponse, void, undefined> {
    const [connect, attempts] = this.#connectOptions(options);
    const [signal, end] = this.#begin(options.signal);
    try {
      yield* this.#stub.streamRerank(request, { ...connect, signal });
    } catch (error) {
      throw await this.#errorOf(error, options, attempts, signal);
    } finally {
      // Cancels the call where a loop was left early, so that the server stops.
      end();
    }
  }

  /** Makes the signal of a call, which its caller's signal and `close` abort, and the function that ends it. */
  #begin(given: AbortSignal | undefined): [AbortSignal, () => void] {
    const call = new AbortController();
    const abort = () => call.abort(given?.reason);
    if (given?.aborted) abort();
    given?.addEventListener("abort", abort, { once: true });
    this.#calls.add(call);
    const end = () => {
      given?.removeEventListener("abort", abort);
      this.#calls.delete(call);
      call.abort();
    };
    return [call.signal, end];
  }

  #connectOptions(options: CallOptions): [ConnectOptions, Attempts] {
    if (this.#closed) throw new Error("the client is closed");
    const timeoutMs = Math.ceil(milliseconds("timeoutMs", options.timeoutMs ?? this.#settings.timeoutMs, 0));
    const attempts: Attempts = { deadline: performance.now() + timeoutMs };
    return [
      {
        timeoutMs: Math.max(timeoutMs, 1),
        headers: metadataOf(
          { "user-agent": `rerank-grpc-node/${version}`, ...this.#settings.headers },
          options.headers,
        ),
        contextValues: createContextValues().set(ATTEMPTS, attempts),
      },
      attempts,
    ];
  }

  /** Makes the error of a call; `ended` is the call's own signal. */
  async #errorOf(
    error: unknown,
    { signal, timeoutMs }: CallOptions,
    attempts: Attempts,
    ended: AbortSignal,
  ): Promise<RerankError> {
    const failure = readFailure(error);
    if (signal?.aborted && !failure.described) {
      const cause: unknown = signal.reason;
      return cause instanceof Error && cause.name === "TimeoutError"
        ? new DeadlineExceeded("the caller's signal has timed out", { cause })
        : new Cancelled("the caller cancelled", { cause });
    }
    if (this.#closed && !failure.told) return new Cancelled("the client is closed", { cause: failure.cause });
    if (failure.code === Code.DeadlineExceeded && !failure.described) {
      // The last attempt only ran out of time: the failure before it tells more.
      const { failure: before } = attempts;
      if (before) return errorOf(await this.#examined(before, attempts.deadline, ended), this.#settings.target);
      const cause = failure.cause;
      return new DeadlineExceeded(`no answer in ${timeoutMs ?? this.#settings.timeoutMs} ms`, { cause });
    }
    return errorOf(await this.#examined(failure, attempts.deadline, ended), this.#settings.target);
  }

  /** Finds out, while the call has time, whether TLS is why a connection ended, which Node does not tell. */
  async #examined(failure: Failure, deadline: number, ended: AbortSignal): Promise<Failure> {
    const refused = /ECONNREFUSED|ENOTFOUND|EAI_AGAIN|ETIMEDOUT/.test(codesOf(failure.cause).join());
    const lost = [Code.Unavailable, Code.Canceled].includes(failure.code) && !/^(idle|open)$/.test(this.#session.state());
    if (failure.told || failure.tls || refused || !lost) return failure;
    const known: Failure = { ...failure, code: Code.Unavailable };
    const left = deadline - performance.now();
    if (left <= 0 || ended.aborted) return known;
    // One for all calls that the connection has taken with it.
    this.#probe ??= probe(this.#settings.target, this.#settings.tls).finally(() => (this.#probe = undefined));
    return { ...known, tls: await within(this.#probe, left, ended) };
  }
}

/** Waits for what never rejects, so many milliseconds at the most; undefined if that or the signal comes first. */
function within<Value>(promise: Promise<Value>, ms: number, signal: AbortSignal): Promise<Value | undefined> {
  return new Promise((resolve) => {
    const found = (value?: Value) => {
      clearTimeout(timer);
      signal.removeEventListener("abort", left);
      resolve(value);
    };
    const left = () => found();
    const timer = setTimeout(left, ms);
    signal.addEventListener("abort", left);
    void promise.then(found);
  });
}

function split(options: RerankOptions & CallOptions): [CallOptions, RerankOptions] {
  const { timeoutMs, signal, headers, ...fields } = options;
  return [{ timeoutMs, signal, headers }, fields];
}
