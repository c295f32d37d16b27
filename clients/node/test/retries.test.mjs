// Further attempts: what the server asks for, within the deadline. The server is a scripted one.
import assert from "node:assert/strict";
import { constants, createServer } from "node:http2";
import { after, test } from "node:test";
import { create, toBinary } from "@bufbuild/protobuf";
import { anyPack, AnySchema, DurationSchema } from "@bufbuild/protobuf/wkt";
import { status } from "@grpc/grpc-js";
import * as rerank from "rerank-grpc";
import { ErrorInfoSchema, RetryInfoSchema } from "../dist/gen/google/rpc/error_details_pb.js";
import { scripted } from "./servers.mjs";

const stops = [];
after(() => {
  for (const stop of stops) stop();
});

async function against(steps, options = {}) {
  const server = await scripted(steps);
  const client = new rerank.Client(server.target, options);
  stops.push(() => {
    client.close();
    server.stop();
  });
  return { client, server };
}

// Has a server of HTTP/2 answer each stream by a function; resolves to a client of it.
async function answered(context, answer) {
  const server = createServer().on("stream", (stream) => answer(stream.on("error", () => {})));
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  const client = new rerank.Client(`127.0.0.1:${server.address().port}`);
  context.after(() => {
    client.close();
    server.close();
  });
  return client;
}

const HEADERS = { ":status": 200, "content-type": "application/grpc+proto" };
// Half of a message of 50 bytes; and a whole one, a result whose index is 1.
const HALF = Buffer.from([0, 0, 0, 0, 50, 1, 2]);
const RESULT = Buffer.from([0, 0, 0, 0, 4, 0x0a, 2, 0x08, 1]);

// A google.rpc.Status of these details, in the bytes that its fields have.
function refusal(reason, code, delayMs) {
  const domain = "rerank.v1";
  const details = [anyPack(ErrorInfoSchema, create(ErrorInfoSchema, { reason: `ERROR_REASON_${reason}`, domain }))];
  if (delayMs !== undefined) {
    const retryDelay = create(DurationSchema, { seconds: BigInt(Math.floor(delayMs / 1000)), nanos: (delayMs % 1000) * 1e6 });
    details.push(anyPack(RetryInfoSchema, create(RetryInfoSchema, { retryDelay })));
  }
  const parts = [Buffer.from([0x08, code])];
  for (const detail of details) {
    const bytes = toBinary(AnySchema, detail);
    assert.ok(bytes.length < 128, "its length is one byte");
    parts.push(Buffer.from([0x1a, bytes.length]), bytes);
  }
  return { code, details: reason, metadata: { "grpc-status-details-bin": Buffer.concat(parts) } };
}

const gap = ({ calls }) => calls[1].at - calls[0].at;

test("an unavailable server is called again", async () => {
  const { client, server } = await against([{ code: status.UNAVAILABLE }, { code: status.UNAVAILABLE }]);
  assert.equal((await client.health()).model, "scripted");
  assert.equal(server.calls.length, 3);
});

test("the server's pushback is the delay", async () => {
  const metadata = { "grpc-retry-pushback-ms": "600" };
  const { client, server } = await against([{ code: status.UNAVAILABLE, metadata }]);
  await client.health();
  assert.ok(gap(server) >= 595, `${gap(server)} ms`);
});

test("a negative pushback forbids a retry, and one that is no number too", async () => {
  for (const pushback of ["-1", "soon"]) {
    const metadata = { "grpc-retry-pushback-ms": pushback };
    const { client, server } = await against([{ code: status.UNAVAILABLE, metadata }]);
    await assert.rejects(client.health(), rerank.ServerUnavailable);
    assert.equal(server.calls.length, 1);
  }
});

test("a RetryInfo below zero is no time", async () => {
  const refused = refusal("QUEUE_FULL", status.RESOURCE_EXHAUSTED, -5_000);
  const { client } = await against([refused], { retries: 0 });
  await assert.rejects(client.health(), { name: "QueueFull", retryAfterMs: 0 });
});

test("a full queue is asked again after its RetryInfo", async () => {
  const { client, server } = await against([refusal("QUEUE_FULL", status.RESOURCE_EXHAUSTED, 400)]);
  await client.health();
  assert.ok(gap(server) >= 395, `${gap(server)} ms`);
});

test("a message too large is told by gRPC's own words, and is never sent again", async () => {
  const words = [
    "SERVER: Received message larger than max (9437230 vs. 8388608)",
    "CLIENT: Sent message larger than max (9437230 vs. 8388608)",
    "grpc: received message larger than max (9437230 vs. 8388608)",
    "grpc: received message larger than max length allowed on current machine (9437230 vs. 8388608)",
    "grpc: received message after decompression larger than max 8388608",
    "trying to send message larger than max (9437230 vs. 8388608)",
    "Received message that decompresses to a size larger than 8388608",
    "gRPC message exceeds maximum size 8388608: 9437230",
    "Decompressed gRPC message exceeds maximum size 8388608",
    "message too large 9437230 > 8388608",
    "Received message exceeds the maximum configured message size.",
    "message size 9437230 is larger than configured readMaxBytes 8388608",
  ];
  for (const details of words) {
    const { client, server } = await against([{ code: status.RESOURCE_EXHAUSTED, details }]);
    await assert.rejects(client.health(), { name: "MessageTooLarge", message: details });
    assert.equal(server.calls.length, 1);
  }
});

test("a proxy's rate limit is not told as a message too large", async () => {
  for (const details of ["", "rate limit exceeded", "message rate exceeds the maximum: too many requests"]) {
    const { client, server } = await against([{ code: status.RESOURCE_EXHAUSTED, details }]);
    await assert.rejects(client.health(), { name: "UnexpectedStatus", code: "RESOURCE_EXHAUSTED" });
    assert.equal(server.calls.length, 1);
  }
});

test("a delay beyond the deadline is no retry, and the refusal is typed", async () => {
  const { client, server } = await against([refusal("RATE_LIMITED", status.RESOURCE_EXHAUSTED, 60_000)]);
  await assert.rejects(client.health("", { timeoutMs: 5_000 }), (error) => {
    assert.ok(error instanceof rerank.RateLimited);
    assert.equal(error.retryAfterMs, 60_000);
    return true;
  });
  assert.equal(server.calls.length, 1);
});

test("a further attempt gets what is left of the deadline", async () => {
  const metadata = { "grpc-retry-pushback-ms": "500" };
  const { client, server } = await against([{ code: status.UNAVAILABLE, metadata }]);
  await client.health("", { timeoutMs: 8_000 });
  const [first, second] = server.calls.map(({ timeout }) => timeout);
  assert.ok(first <= 8_000 && second <= 7_510, `${first}, ${second}`);
});

test("an attempt that runs out of time tells of the refusal before it", async () => {
  const { client } = await against([refusal("QUEUE_FULL", status.RESOURCE_EXHAUSTED, 100), { wait: true }]);
  await assert.rejects(client.health("", { timeoutMs: 5_000 }), rerank.QueueFull);
});

test("a call that a full connection refuses is sent again", async (context) => {
  let calls = 0;
  const client = await answered(context, (stream) => {
    calls += 1;
    stream.close(constants.NGHTTP2_REFUSED_STREAM);
  });
  await assert.rejects(client.health(), rerank.ServerUnavailable);
  assert.equal(calls, 4);
});

test("a reply that is cut within a message is a lost connection, and is asked for again", async (context) => {
  let calls = 0;
  const client = await answered(context, (stream) => {
    calls += 1;
    stream.respond(HEADERS);
    if (calls % 2) stream.end(HALF);
    else stream.write(HALF, () => stream.close(constants.NGHTTP2_CANCEL));
  });
  const cut = { name: "ServerUnavailable", message: /^the connection to 127\.0\.0\.1:\d+ was cut in the middle of a reply/ };
  await assert.rejects(client.health(), cut);
  assert.equal(calls, 4);
  await assert.rejects(client.streamRerank("query", ["document"])[Symbol.asyncIterator]().next(), cut);
  assert.equal(calls, 8);
});

test("a stream that is cut after a result is not begun again", async (context) => {
  let calls = 0;
  const client = await answered(context, (stream) => {
    calls += 1;
    stream.respond(HEADERS);
    stream.end(Buffer.concat([RESULT, HALF]));
  });
  const results = client.streamRerank("query", ["document"])[Symbol.asyncIterator]();
  assert.equal((await results.next()).value.index, 1);
  await assert.rejects(results.next(), { name: "ServerUnavailable", message: /was cut in the middle of a reply/ });
  assert.equal(calls, 1);
});

test("details that cannot be parsed count as absent", async (context) => {
  const broken = { "grpc-status": "13", "grpc-message": "broken", "grpc-status-details-bin": "////" };
  const headers = (stream) => stream.respond({ ...HEADERS, ...broken }, { endStream: true });
  const trailers = (stream) => {
    stream.on("wantTrailers", () => stream.sendTrailers(broken));
    stream.respond(HEADERS, { waitForTrailers: true });
    stream.end();
  };
  const told = { name: "UnexpectedStatus", message: "INTERNAL: broken" };
  for (const answer of [headers, trailers]) {
    const client = await answered(context, answer);
    await assert.rejects(client.health(), told);
    await assert.rejects(client.streamRerank("query", ["document"])[Symbol.asyncIterator]().next(), told);
  }
});

test("retries: 0 makes one attempt, and 3 make four", async () => {
  for (const [retries, attempts] of [[0, 1], [3, 4]]) {
    const steps = Array.from({ length: 9 }, () => ({ code: status.UNAVAILABLE, metadata: { "grpc-retry-pushback-ms": "1" } }));
    const { client, server } = await against(steps, { retries });
    await assert.rejects(client.health(), rerank.ServerUnavailable);
    assert.equal(server.calls.length, attempts);
  }
});

test("an outage of 50 attempts uses the retries of a client up", async () => {
  const steps = Array.from({ length: 999 }, () => ({ code: status.UNAVAILABLE, metadata: { "grpc-retry-pushback-ms": "0" } }));
  const { client, server } = await against(steps);
  for (let call = 0; call < 60; call++) await assert.rejects(client.health());
  assert.equal(server.calls.length, 60 + 37);
});

test("a signal ends the wait for a retry", async () => {
  const { client, server } = await against([refusal("QUEUE_FULL", status.RESOURCE_EXHAUSTED, 20_000)]);
  const left = new AbortController();
  const call = client.health("", { signal: left.signal });
  call.catch(() => {});
  while (!server.calls.length) await new Promise((next) => setTimeout(next, 5));
  left.abort();
  await assert.rejects(call, rerank.Cancelled);
});

test("a stream is begun again until its first result, and not after it", async () => {
  const before = await against([{ code: status.UNAVAILABLE }]);
  const stream = before.client.streamRerank("query", ["document"]);
  for await (const _ of stream);
  assert.equal(stream.summary.model, "scripted");
  assert.equal(before.server.calls.length, 2);
  const late = await against([{ code: status.UNAVAILABLE, afterResult: true }]);
  await assert.rejects(async () => {
    for await (const _ of late.client.streamRerank("query", ["document"]));
  }, rerank.ServerUnavailable);
  assert.equal(late.server.calls.length, 1);
});

test("a stream without its summary is incomplete", async () => {
  const { client } = await against(Object.assign([], { incomplete: true }));
  await assert.rejects(async () => {
    for await (const _ of client.streamRerank("query", ["document"]));
  }, rerank.IncompleteStream);
});

test("a server that does not know the method is told as a version skew", async () => {
  const { client, server } = await against([]);
  await assert.rejects(client.listModels(), (error) => {
    assert.ok(error instanceof rerank.UnexpectedStatus && error.code === "UNIMPLEMENTED", `${error}`);
    assert.match(error.message, new RegExp(`what listens at ${server.target} is older than this client`));
    return true;
  });
});

test("a reason that is newer than the client counts as its code", async () => {
  const cases = [
    [status.UNAVAILABLE, rerank.ServerUnavailable, undefined],
    [status.RESOURCE_EXHAUSTED, rerank.UnexpectedStatus, 100],
    [status.INVALID_ARGUMENT, rerank.InvalidRequest, undefined],
    [status.PERMISSION_DENIED, rerank.PermissionDenied, undefined],
  ];
  for (const [code, kind, delay] of cases) {
    const { client } = await against([refusal("OF_TOMORROW", code, delay)], { retries: 0 });
    await assert.rejects(client.health(), kind);
  }
});
