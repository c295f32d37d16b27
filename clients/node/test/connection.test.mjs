// Why no server answers: a wrong address, TLS of the wrong kind, a server that ends.
import assert from "node:assert/strict";
import { createServer } from "node:net";
import { after, before, test } from "node:test";
import { Client, DeadlineExceeded, ServerUnavailable, TlsError } from "rerank-grpc";
import { certify, callsInside, DOCUMENTS, eventually, MANY, QUERY, serve, TOKEN, unusedPort } from "./servers.mjs";

let files;
let other;
let secure;
let mutual;
let plain;

before(async () => {
  [files, other] = [certify(), certify()];
  const own = ["--tls-cert", files.paths.cert, "--tls-key", files.paths.key];
  const kinds = [serve(...own), serve(...own, "--tls-client-ca", files.paths.ca), serve()];
  [secure, mutual, plain] = await Promise.all(kinds);
});
after(async () => {
  for (const one of [files, other]) one.remove();
  await Promise.all([secure, mutual, plain].map((server) => server.stop()));
});

async function failure(target, options = {}) {
  const client = new Client(target, { token: TOKEN, ...options });
  const error = await client.health().then(() => undefined, (thrown) => thrown);
  client.close();
  return error;
}

async function tlsProblem(server, options) {
  let error = await failure(server.target, options);
  // A look ends after two seconds, which a busy machine may take for itself, but not every time. Nothing is found then.
  for (let times = 0; times < 2 && error?.constructor === ServerUnavailable; times++) {
    error = await failure(server.target, options);
  }
  assert.ok(error instanceof TlsError, `${error}`);
  assert.ok(error instanceof ServerUnavailable);
  assert.ok(error.message.startsWith(`${server.target}: `) && !error.message.includes("\n"), error.message);
  return error.problem;
}

test("calls go over TLS, and over mutual TLS", async () => {
  const { ca, cert, key } = files.pem;
  assert.equal(await failure(secure.target, { ca }), undefined);
  assert.equal(await failure(secure.target.replace("127.0.0.1", "localhost"), { ca: ca.toString() }), undefined);
  assert.equal(await failure(secure.target, { ca, serverName: "localhost" }), undefined);
  assert.equal(await failure(mutual.target, { ca, cert, key }), undefined);
});

test("each mismatch of TLS has a name of its own", async () => {
  const { ca } = files.pem;
  assert.equal(await tlsProblem(secure, { tls: true }), "unknown_ca");
  assert.equal(await tlsProblem(secure, { ca: other.pem.ca }), "unknown_ca");
  assert.equal(await tlsProblem(secure, { ca, serverName: "other.example" }), "wrong_name");
  assert.equal(await tlsProblem(plain, { ca }), "plaintext_port");
  assert.equal(await tlsProblem(secure, {}), "tls_port");
  assert.equal(await tlsProblem(mutual, { ca }), "client_certificate_missing");
  const { cert, key } = other.pem;
  assert.equal(await tlsProblem(mutual, { ca, cert, key }), "client_certificate_refused");
});

test("an address where nothing listens is named", async () => {
  const target = `127.0.0.1:${await unusedPort()}`;
  const error = await failure(target);
  assert.ok(error instanceof ServerUnavailable && !(error instanceof TlsError), `${error}`);
  assert.match(error.message, new RegExp(`no server answers at ${target}: .*ECONNREFUSED`));
  const nowhere = await failure("no-such-host.invalid");
  assert.match(nowhere.message, /no server answers at no-such-host\.invalid:50051: .*no-such-host/);
});

test("the REST port is told from a port where nothing listens", async () => {
  const error = await failure(new URL(plain.rest).host);
  assert.ok(error instanceof ServerUnavailable, `${error}`);
  assert.match(error.message, /is it the REST port\?/);
});

test("the look for a reason ends with its call", async () => {
  // It ends the first of two connections, which is the call's, and says nothing on the other.
  const sockets = [];
  const silent = createServer((socket) => {
    socket.on("error", () => {}).resume();
    if (sockets.push(socket) % 2) socket.end();
  });
  await new Promise((listening) => silent.listen(0, "127.0.0.1", listening));
  // A busy machine may take a second for itself, or the time of the call, but not every time.
  const tooLate = [];
  try {
    while (tooLate.length < 3) {
      const client = new Client(`127.0.0.1:${silent.address().port}`, { retries: 0 });
      const begun = performance.now();
      const error = await client.health("", { timeoutMs: 300 }).catch((thrown) => thrown);
      const seconds = (performance.now() - begun) / 1_000;
      client.close();
      for (const socket of sockets.splice(0)) socket.destroy();
      const expected = error instanceof ServerUnavailable || error instanceof DeadlineExceeded;
      assert.ok(expected && !(error instanceof TlsError), `${error}`);
      if (error instanceof ServerUnavailable && seconds < 1) return;
      tooLate.push(`${error} after ${seconds} s`);
    }
    assert.fail(`a look takes two seconds, and these took: ${tooLate.join("; ")}`);
  } finally {
    silent.close();
  }
});

test("a server that hangs is left after twice the hang timeout", async () => {
  const client = new Client(plain.target, { token: TOKEN, retries: 0, hangTimeoutMs: 2_000 });
  assert.ok(await client.health());
  await plain.stopped(async () => {
    const begun = performance.now();
    await assert.rejects(client.health("", { timeoutMs: 30_000 }), (error) => {
      assert.ok(error instanceof ServerUnavailable && !(error instanceof DeadlineExceeded), `${error}`);
      return true;
    });
    assert.ok(performance.now() - begun < 25_000);
  });
  client.close();
});

test("a server that is killed is unavailable, and one that comes back is found", async () => {
  const port = plain.target.split(":")[1];
  const client = new Client(plain.target, { token: TOKEN, retries: 0 });
  const call = client.rerank(QUERY, MANY);
  call.catch(() => {});
  await eventually(() => callsInside(plain), (calls) => calls === 1);
  await plain.stop("SIGKILL");
  await assert.rejects(call, (error) => error instanceof ServerUnavailable);
  await assert.rejects(client.health(), /ECONNREFUSED/);
  plain = await serve("--port", port);
  const { results } = await client.rerank(QUERY, DOCUMENTS);
  assert.equal(results.length, 2);
  client.close();
});
