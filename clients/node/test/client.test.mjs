// What a caller sees of the real server.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { after, before, test } from "node:test";
import * as rerank from "rerank-grpc";
import { callsInside, DOCUMENTS, eventually, MANY, QUERY, serve, TOKEN } from "./servers.mjs";

const { Client } = rerank;
let server;
let client;

before(async () => {
  server = await serve();
  client = new Client(server.target, { token: TOKEN });
});
after(async () => {
  client.close();
  await server.stop();
});

const of = (kind, more = {}) => (error) => {
  assert.ok(error instanceof kind && error instanceof rerank.RerankError, `${error}`);
  assert.equal(error.name, kind.name);
  for (const [name, value] of Object.entries(more)) {
    if (value instanceof RegExp) assert.match(error[name], value);
    else assert.deepEqual(error[name], value, name);
  }
  return true;
};

test("the best document comes first", async () => {
  const { results, model, usage } = await client.rerank(QUERY, DOCUMENTS, { topN: 1, returnDocuments: true });
  assert.equal(results.length, 1);
  assert.equal(results[0].index, 1);
  assert.equal(results[0].document.text, DOCUMENTS[1]);
  assert.ok(results[0].relevanceScore > 0 && results[0].relevanceScore <= 1);
  assert.equal(model, "embedded");
  assert.ok(usage.inputTokens > 0n);
});

test("documents may have ids, be empty, and hold any character", async () => {
  const documents = [{ text: "", id: "empty" }, { text: "a\0b 𠜎", id: "é" }, "plain"];
  const { results } = await client.rerank("pass\0word", new Set(documents), { returnDocuments: true });
  const found = new Map(results.map((result) => [result.id, result.document.text]));
  assert.deepEqual(found, new Map([["empty", ""], ["é", "a\0b 𠜎"], ["", "plain"]]));
});

test("a thousand documents come back in one reply, and calls share a connection", async () => {
  const documents = Array.from({ length: 1000 }, (_, number) => `Line ${number}`);
  const replies = await Promise.all([1, 2, 3].map(() => client.rerank(QUERY, documents)));
  for (const { results } of replies) assert.equal(new Set(results.map(({ index }) => index)).size, 1000);
});

test("a stream yields every result, then its summary", async () => {
  const stream = client.streamRerank(QUERY, DOCUMENTS);
  assert.throws(() => stream.summary, /read the stream to its end/);
  const indices = [];
  for await (const { index } of stream) indices.push(index);
  assert.deepEqual(indices.sort(), [0, 1]);
  assert.equal(stream.summary.model, "embedded");
});

test("a stream is read once, to its end or not", async () => {
  const [read, left] = [client.streamRerank(QUERY, DOCUMENTS), client.streamRerank(QUERY, DOCUMENTS)];
  for await (const _ of read);
  for await (const _ of left) break;
  for (const stream of [read, left]) {
    await assert.rejects(stream[Symbol.asyncIterator]().next(), { name: "Error", message: /^a stream is read once/ });
  }
  assert.equal(read.summary.model, "embedded");
});

test("the server stops when a stream is left", async () => {
  for await (const result of client.streamRerank(QUERY, MANY)) {
    assert.ok(result.relevanceScore >= 0);
    await eventually(() => callsInside(server), (calls) => calls === 1); // the others have left
    break;
  }
  await eventually(() => callsInside(server), (calls) => calls === 0);
});

test("the server stops when a signal cancels a call", async () => {
  const left = new AbortController();
  const call = client.rerank(QUERY, MANY, { signal: left.signal });
  call.catch(() => {});
  await eventually(() => callsInside(server), (calls) => calls === 1);
  left.abort(new Error("the page was closed"));
  await assert.rejects(call, of(rerank.Cancelled, { reason: "CANCELLED" }));
  assert.equal((await call.catch((error) => error)).cause.message, "the page was closed");
  await eventually(() => callsInside(server), (calls) => calls === 0);
});

test("a signal that has been aborted sends no call", async () => {
  const call = client.streamRerank(QUERY, DOCUMENTS, { signal: AbortSignal.abort() });
  await assert.rejects(async () => void (await call[Symbol.asyncIterator]().next()), of(rerank.Cancelled));
});

test("a deadline ends a call, and so does a signal's time", async () => {
  const texts = { message: /^no answer in 20 ms|deadline/ };
  await assert.rejects(client.rerank(QUERY, MANY, { timeoutMs: 20 }), of(rerank.DeadlineExceeded, texts));
  const signal = AbortSignal.timeout(20);
  await assert.rejects(client.rerank(QUERY, MANY, { signal }), of(rerank.DeadlineExceeded));
});

test("a refused field is named", async () => {
  const refused = of(rerank.InvalidRequest, {
    reason: "INVALID_REQUEST",
    retryAfterMs: undefined,
    violations: [{ field: "min_relevance_score", description: "is nan, must be from 0 to 1" }],
  });
  await assert.rejects(client.rerank(QUERY, DOCUMENTS, { minRelevanceScore: Number.NaN }), refused);
  const unsupported = of(rerank.UnsupportedOption, { reason: "UNSUPPORTED_OPTION" });
  await assert.rejects(client.rerank(QUERY, DOCUMENTS, { minCalibratedScore: 0 }), unsupported);
});

test("a value that no message can hold is refused before it is sent", async () => {
  const negative = { message: /^top_n: / };
  await assert.rejects(client.rerank(QUERY, DOCUMENTS, { topN: -1 }), of(rerank.InvalidRequest, negative));
  const half = { message: /^documents\[1\]\.text: holds half of a surrogate pair/ };
  await assert.rejects(client.rerank(QUERY, ["whole", "half \ud800"]), of(rerank.InvalidRequest, half));
  const told = { message: /^instruction: holds half of a surrogate pair/ };
  await assert.rejects(client.rerank(QUERY, DOCUMENTS, { instruction: "\udc00" }), of(rerank.InvalidRequest, told));
});

test("an argument of a wrong type or name is a TypeError", async () => {
  await assert.rejects(client.rerank(QUERY, "one text"), { name: "TypeError", message: /^documents: / });
  await assert.rejects(client.rerank(QUERY, [7]), { name: "TypeError", message: /^documents\[0\]: / });
  await assert.rejects(client.rerank(undefined, []), { name: "TypeError", message: /^query: / });
  await assert.rejects(client.rerank(QUERY, DOCUMENTS, { top_n: 1 }), { name: "TypeError", message: /^top_n: no such option/ });
  for (const headers of [{ "x-note": "two\nlines of rrk_secret" }, { "x-note": "\u20ac rrk_secret" }, { "a name": "" }]) {
    await assert.rejects(client.health("", { headers }), (error) => {
      assert.ok(error instanceof TypeError && !/rrk_secret|\n/.test(error.message), `${error}`);
      return error.message.startsWith("headers: ");
    });
  }
  await assert.rejects(client.rerank(QUERY, DOCUMENTS, { timeoutMs: -1 }), { name: "RangeError", message: /^timeoutMs: / });
});

test("settings are checked when a client is made", () => {
  const wrong = {
    "target: HOST": ["http://localhost:50051"],
    "target: ": ["localhost:0"],
    "retries: 0 to 4": ["localhost", { retries: 5 }],
    "token: ": ["localhost", { token: "two words" }],
    "ca: PEM": ["localhost", { ca: "ca.pem" }],
    "cert, key: ": ["localhost", { cert: "-----BEGIN CERTIFICATE-----" }],
    "tls: false": ["localhost", { tls: false, serverName: "other" }],
    "hangTimeoutMs: ": ["localhost", { hangTimeoutMs: 100 }],
    "timeoutMs: 1 to": ["localhost", { timeoutMs: 0 }],
  };
  for (const [text, given] of Object.entries(wrong)) {
    assert.throws(() => new Client(...given), (error) => error.message.startsWith(text), text);
  }
  assert.throws(() => new Client("localhost", { token: "se cret" }), (error) => !error.message.includes("cret"));
});

test("a setting of a wrong name or type is a TypeError that does not repeat it", async () => {
  const wrong = { timeoutMS: 5, token: 567, tls: "yes", serverName: 567, ca: 567, key: {}, retries: "2", timeoutMs: null };
  for (const [name, value] of Object.entries(wrong)) {
    assert.throws(() => new Client("localhost", { [name]: value }), (error) => {
      assert.ok(error instanceof TypeError && error.message.startsWith(`${name}: `), `${error}`);
      return !error.message.includes("567");
    });
  }
  assert.throws(() => new Client("localhost", { timeoutMS: 5 }), /no such option; there are token, timeoutMs, /);
  const misspelt = { name: "TypeError", message: /^timeout: no such option; there are timeoutMs, signal, headers$/ };
  await assert.rejects(client.health("", { timeout: 5 }), misspelt);
  await assert.rejects(client.listModels({ timeout: 5 }), misspelt);
});

test("settings that are left undefined have their defaults", () => {
  const given = ["token", "timeoutMs", "retries", "tls", "ca", "cert", "key", "serverName", "hangTimeoutMs"];
  new Client("localhost", Object.fromEntries(given.map((name) => [name, undefined]))).close();
});

test("an unknown model is told with those that are known", async () => {
  const known = { reason: "UNKNOWN_MODEL", metadata: { model: "no-such", known_models: "embedded" } };
  await assert.rejects(client.rerank(QUERY, DOCUMENTS, { model: "no-such" }), of(rerank.UnknownModel, known));
  await assert.rejects(client.health("no-such"), of(rerank.UnknownModel));
});

test("a wrong token and a missing one are told apart from a wrong address", async () => {
  for (const token of ["wrong", undefined]) {
    const stranger = new Client(server.target, { token });
    await assert.rejects(stranger.listModels(), of(rerank.Unauthenticated, { message: /token/ }));
    const stream = stranger.streamRerank(QUERY, DOCUMENTS)[Symbol.asyncIterator]();
    await assert.rejects(stream.next(), of(rerank.Unauthenticated));
    stranger.close();
  }
});

test("a call's own token takes the place of the client's, however its name is written", async () => {
  const other = new rerank.Client(server.target, { token: "wrong" });
  assert.ok(await other.health("", { headers: { Authorization: `Bearer ${TOKEN}` } }));
  other.close();
});

test("a message too large says so", async () => {
  const documents = Array(1000).fill("x".repeat(9000));
  await assert.rejects(client.rerank(QUERY, documents), of(rerank.MessageTooLarge, { message: /8388608/ }));
});

test("the models and their health are told", async () => {
  const [model] = await client.listModels();
  assert.deepEqual([model.name, model.state], ["embedded", rerank.ModelState.READY]);
  assert.equal((await client.health()).serving, true);
});

test("a client that was closed sends nothing", async () => {
  const closed = new Client(server.target, { token: TOKEN });
  assert.ok(await closed.health());
  closed.close();
  await assert.rejects(closed.health(), { message: "the client is closed" });
});

test("closing a client cancels its calls, and opens no connection again", async () => {
  const closed = new Client(server.target, { token: TOKEN });
  const call = closed.rerank(QUERY, MANY);
  const stream = closed.streamRerank(QUERY, MANY)[Symbol.asyncIterator]();
  const [first] = [stream.next(), call.catch(() => {})];
  first.catch(() => {});
  await eventually(() => callsInside(server), (calls) => calls === 2);
  closed.close();
  await assert.rejects(call, of(rerank.Cancelled, { message: "the client is closed" }));
  await assert.rejects(async () => {
    await first;
    while (!(await stream.next()).done);
  }, of(rerank.Cancelled));
  await eventually(() => callsInside(server), (calls) => calls === 0);
});

test("a connection that is idle does not keep the process", () => {
  const script = `import { Client } from "rerank-grpc";
    await new Client("${server.target}", { token: "${TOKEN}" }).health();`;
  const options = { cwd: import.meta.dirname, timeout: 60_000, encoding: "utf8" };
  const done = spawnSync(process.execPath, ["--input-type=module", "-e", script], options);
  assert.equal(done.status, 0, done.stderr);
});
