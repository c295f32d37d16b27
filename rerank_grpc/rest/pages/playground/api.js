// Calls of rerank.v1.RerankService over Connect, in JSON: https://connectrpc.com/docs/protocol

const SERVICE = new URL("../rerank.v1.RerankService/", import.meta.url);
const ENVELOPE_BYTES = 5;
const END_OF_STREAM = 2;

/** An error of the service or of the way to it; `message` is the service's own text, "" where it said none. */
export class CallError extends Error {
  constructor({ message = "", code = "", reason = "", fields = [], retrySeconds }) {
    super(message);
    Object.assign(this, { code, reason, fields, retrySeconds });
  }
}

export const serverUrl = () => new URL("..", SERVICE);

export const listModels = async (options) => (await ask("ListModels", {}, options)).models ?? [];

export const health = (model, options) => ask("Health", { model }, options);

/** Reranks; gives results to `onResults` as they are scored, and returns what is said once about the call. */
export async function rerank(message, { onResults, ...options }) {
  if (streams) {
    const summary = await stream(message, onResults, options);
    if (summary) return summary;
    streams = false;
  }
  const { results = [], ...summary } = await ask("Rerank", message, options);
  onResults(results);
  return summary;
}

// Whether this server offers StreamRerank over Connect: assumed until it says no.
let streams = true;

async function ask(method, message, options) {
  const response = await post(method, "application/json", JSON.stringify(message), options);
  const content = await json(response);
  if (!response.ok || !content) throw errorOf(content, response);
  return content;
}

/** Returns the summary, or undefined where the method is not offered. */
async function stream(message, onResults, options) {
  const body = envelope(JSON.stringify(message));
  const response = await post("StreamRerank", "application/connect+json", body, options);
  if (!response.headers.get("content-type")?.startsWith("application/connect+json")) {
    const error = errorOf(await json(response), response);
    if (error.code === "unimplemented" || response.status === 415) return undefined;
    throw error;
  }
  let summary;
  for await (const { flags, content } of envelopes(response.body)) {
    if (flags & END_OF_STREAM) {
      if (content.error?.code === "unimplemented") return undefined;
      if (content.error) throw errorOf(content.error, response, content.metadata?.["retry-after"]?.[0]);
      if (summary) return summary;
      break;
    }
    if (content.results?.length) onResults(content.results);
    summary = content.summary ?? summary;
  }
  throw new CallError({ code: "broken_stream" });
}

async function post(method, mediaType, body, { token, signal }) {
  const headers = { "Content-Type": mediaType, "Connect-Protocol-Version": "1" };
  if (token) headers.Authorization = `Bearer ${token}`;
  // A proxy with a login knows the caller by what the browser sends along.
  const credentials = "same-origin";
  return reach(() =>
    fetch(new URL(method, SERVICE), { method: "POST", headers, body, signal, cache: "no-store", credentials }),
  );
}

/** Turns a failure of the network into a CallError; one that the caller has cancelled stays what it is. */
async function reach(promise) {
  try {
    return await promise();
  } catch (error) {
    if (error instanceof TypeError || error.name === "NetworkError") throw new CallError({ code: "no_answer" });
    throw error;
  }
}

async function json(response) {
  const content = await reach(() => response.text());
  try {
    return JSON.parse(content);
  } catch {
    return undefined;
  }
}

function envelope(content) {
  const bytes = new TextEncoder().encode(content);
  const message = new Uint8Array(ENVELOPE_BYTES + bytes.length);
  new DataView(message.buffer).setUint32(1, bytes.length);
  message.set(bytes, ENVELOPE_BYTES);
  return message;
}

async function* envelopes(body) {
  const reader = body.getReader();
  let held = new Uint8Array(0);
  for (;;) {
    const { done, value } = await reach(() => reader.read());
    if (done) return;
    held = joined(held, value);
    let begin = 0;
    while (held.length - begin >= ENVELOPE_BYTES) {
      const end = begin + ENVELOPE_BYTES + new DataView(held.buffer, held.byteOffset + begin).getUint32(1);
      if (end > held.length) break;
      const content = new TextDecoder().decode(held.subarray(begin + ENVELOPE_BYTES, end));
      yield { flags: held[begin], content: JSON.parse(content) };
      begin = end;
    }
    held = held.subarray(begin);
  }
}

function joined(first, second) {
  if (!first.length) return second;
  const both = new Uint8Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}

/** Reads Connect's error, whose details say in `debug` what gRPC's say; a stream's end has headers of its own. */
function errorOf(content, response, retryAfter = response.headers.get("retry-after")) {
  const details = Object.fromEntries((content?.details ?? []).map((each) => [each.type, each.debug ?? {}]));
  const delay = details["google.rpc.RetryInfo"]?.retryDelay ?? retryAfter;
  return new CallError({
    message: content?.message ?? `HTTP ${response.status} ${response.statusText}`.trim(),
    code: content?.code ?? "",
    reason: (details["google.rpc.ErrorInfo"]?.reason ?? "").replace("ERROR_REASON_", ""),
    fields: (details["google.rpc.BadRequest"]?.fieldViolations ?? []).map(({ field, description }) => ({
      name: field.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`),
      message: `${field}: ${description}`,
    })),
    retrySeconds: Number.parseFloat(delay) > 0 ? Number.parseFloat(delay) : undefined,
  });
}
