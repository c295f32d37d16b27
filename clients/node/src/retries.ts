/** Further attempts of a call, after the delay that the server asks for and within the call's deadline. */
import { setTimeout as sleep } from "node:timers/promises";
import { Code, createContextKey, type Interceptor, type StreamResponse } from "@connectrpc/connect";
import { type Failure, readFailure } from "./failures";

// The largest random share that is added to a wait: callers refused together return apart.
const JITTER = 0.2;
const FIRST_BACKOFF_MS = 100;
const LONGEST_BACKOFF_MS = 2_000;
// gRPC's throttle: a failed attempt costs a token, a good one brings back half, and a retry needs more than half of
// all: after 50 failed attempts there are none.
const TOKENS = 100;
const TOKEN_RATIO = 0.5;

/** One call's attempts: its deadline on the clock of performance.now(), and the last failure before a retry. */
export interface Attempts {
  readonly deadline: number;
  failure?: Failure;
}

/** Where an interceptor finds the attempts of its call. */
export const ATTEMPTS = createContextKey<Attempts>({ deadline: Number.POSITIVE_INFINITY });

/** Makes the interceptor of a client that allows so many retries. */
export function retrying(retries: number): Interceptor {
  let tokens = TOKENS;
  return (next) => async (request) => {
    const attempts = request.contextValues.get(ATTEMPTS);
    const messages: unknown[] = [];
    if (request.stream) for await (const message of request.message) messages.push(message);
    for (let left = retries; ; left--) {
      try {
        // A stream's request can be read once: each attempt gets one of its own.
        const response = await next(request.stream ? { ...request, message: iterable(messages) as never } : request);
        const opened = response.stream ? await begun(response) : response;
        tokens = Math.min(TOKENS, tokens + TOKEN_RATIO);
        return opened;
      } catch (error) {
        const failure = readFailure(error);
        if (isTransient(failure)) tokens = Math.max(0, tokens - 1);
        const remaining = attempts.deadline - performance.now();
        const delay = delayAfter(failure, retries - left);
        const allowed = left > 0 && (tokens > TOKENS / 2 || !isTransient(failure));
        if (delay === undefined || !allowed || delay >= remaining || request.signal.aborted) throw error;
        attempts.failure = failure;
        await sleep(delay, undefined, { signal: request.signal });
        request.header.set("grpc-timeout", `${Math.max(1, Math.floor(attempts.deadline - performance.now()))}m`);
      }
    }
  };
}

/** Tells how many milliseconds to wait before another attempt; undefined means give up. */
function delayAfter(failure: Failure, failed: number): number | undefined {
  const { pushbackMs } = failure;
  if (failure.tls || (pushbackMs !== undefined && pushbackMs < 0)) return undefined;
  const jitter = 1 + JITTER * Math.random();
  if (isTransient(failure)) {
    return pushbackMs ?? Math.min(FIRST_BACKOFF_MS * 2 ** failed, LONGEST_BACKOFF_MS) * jitter;
  }
  // An oversized message has this code too, and stays one.
  if (failure.code !== Code.ResourceExhausted || failure.retryAfterMs === undefined) return undefined;
  // Later than asked, never earlier: before that moment there is no room.
  return Math.max(failure.retryAfterMs, pushbackMs ?? 0) * jitter;
}

/** Tells whether another attempt may find a server; one that stops says CANCELLED to calls on their way. */
function isTransient(failure: Failure): boolean {
  return failure.code === Code.Unavailable || (failure.code === Code.Canceled && !failure.described);
}

/** Waits for a stream's first message: until then, and no longer, the call can be tried again. */
async function begun<R extends StreamResponse>(response: R): Promise<R> {
  const rest = response.message[Symbol.asyncIterator]();
  const first = await rest.next();
  async function* messages() {
    for (let one = first; one.done !== true; one = await rest.next()) yield one.value;
  }
  return { ...response, message: messages() };
}

async function* iterable(messages: readonly unknown[]): AsyncGenerator<unknown> {
  yield* messages;
}
