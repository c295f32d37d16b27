// The servers that the tests call: the real one, and one that answers as a script says.
import { execFileSync, spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { create, toBinary } from "@bufbuild/protobuf";
import { Metadata, Server, ServerCredentials } from "@grpc/grpc-js";
import { HealthResponseSchema, StreamRerankResponseSchema } from "rerank-grpc";

const ROOT = resolve(import.meta.dirname, "../../..");
const OWN = join(ROOT, ".venv/bin/python");
const PYTHON = process.env.PYTHON ?? (existsSync(OWN) ? OWN : "python3");

export const TOKEN = "rrk_node_tests";
export const QUERY = "How do I reset my password?";
export const DOCUMENTS = ["Our office is closed on public holidays.", "To choose a new password, click Forgot password."];
// Enough work to be cancelled in the middle of it, on a busy machine too. The number comes first: texts that are equal
// once they are cut are scored once.
export const MANY = Array.from({ length: 1000 }, (_, number) => `${number} ${"The password is changed in the settings. ".repeat(25)}`);

// Runs the real server with a token; resolves to where it listens, and to what ends it.
export async function serve(...options) {
  const words = ["-m", "rerank_grpc", "serve", "--port", "0", "--rest-port", "0", "--metrics-port", "0"];
  const inherited = Object.entries(process.env).filter(([name]) => !name.startsWith("RERANK_"));
  const env = { ...Object.fromEntries(inherited), PYTHONPATH: ROOT, RERANK_TOKENS: TOKEN };
  const given = [...words, "--admin-port", "off", "--log-format", "text", ...options];
  const child = spawn(PYTHON, given, { env, stdio: ["ignore", "ignore", "pipe"] });
  const said = [];
  const places = {};
  const ready = new Promise((found, failed) => {
    child.on("exit", () => failed(new Error(`the server ended:\n${said.join("\n")}`)));
    createInterface({ input: child.stderr }).on("line", (line) => {
      if (said.push(line) > 50) said.shift();
      const target = /serves rerank\.v1 at (\S+?)[,;]?(?:\s|$)/.exec(line)?.[1];
      if (target) places.target = target;
      for (const url of line.match(/https?:\/\/[^\s,;]+/g) ?? []) {
        if (url.endsWith("/metrics")) places.metrics = url;
        else places.rest ??= url;
      }
      if (places.target && places.rest && places.metrics) found();
    });
  });
  const ended = new Promise((found) => child.on("exit", found));
  ready.catch(() => {});
  await ready;
  return {
    ...places,
    // Has the server's process stand still for a while.
    stopped: async (meanwhile) => {
      child.kill("SIGSTOP");
      try {
        await meanwhile();
      } finally {
        child.kill("SIGCONT");
      }
    },
    stop: async (signal = "SIGTERM") => {
      child.kill(signal);
      await ended;
    },
  };
}

// How many calls are inside of a real server.
export async function callsInside({ metrics }) {
  const text = await (await fetch(metrics)).text();
  return [...text.matchAll(/^rerank_calls_inside\{.*?\} (\S+)$/gm)].reduce((sum, [, count]) => sum + Number(count), 0);
}

// Asks again and again until the answer is as wanted, for 20 seconds at the most.
export async function eventually(ask, wanted) {
  const deadline = performance.now() + 20_000;
  for (let found; ; await new Promise((next) => setTimeout(next, 20))) {
    found = await ask();
    if (wanted(found)) return found;
    if (performance.now() > deadline) throw new Error(`still ${found} after 20 seconds`);
  }
}

// Makes a CA, and a certificate of it for this machine; resolves to the paths.
export function certify() {
  const folder = mkdtempSync(join(tmpdir(), "rerank-node-"));
  const openssl = (text) => execFileSync("openssl", text.split(" "), { cwd: folder, stdio: "pipe" });
  const key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
  writeFileSync(join(folder, "names"), "subjectAltName=IP:127.0.0.1,DNS:localhost");
  openssl(`req -x509 ${key} -days 2 -subj /CN=ca -keyout ca.key -out ca.pem`);
  openssl(`req -new ${key} -subj /CN=server -keyout own.key -out own.csr`);
  openssl("x509 -req -in own.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 1 -extfile names -out own.pem");
  const [ca, cert, own] = ["ca.pem", "own.pem", "own.key"].map((name) => join(folder, name));
  const pem = { ca: readFileSync(ca), cert: readFileSync(cert), key: readFileSync(own) };
  return { folder, paths: { ca, cert, key: own }, pem, remove: () => rmSync(folder, { recursive: true }) };
}

// Serves what a script says: for each call of Health or StreamRerank the next of `steps`, then good answers. A step
// is {code, details, metadata}, or {wait} in milliseconds. Tells of each call when it came and with which deadline.
export async function scripted(steps) {
  const calls = [];
  const answer = (call, good, fail) => {
    calls.push({ at: performance.now(), timeout: call.getDeadline() - Date.now() });
    const { wait, code, details = "", metadata = {} } = steps.shift() ?? {};
    const trailers = new Metadata();
    for (const [name, value] of Object.entries(metadata)) trailers.set(name, value);
    if (wait !== undefined) return;
    if (code === undefined) good();
    else fail({ code, details, metadata: trailers });
  };
  const plain = { requestDeserialize: (bytes) => bytes, requestSerialize: (bytes) => bytes };
  const bytes = { ...plain, responseSerialize: (one) => Buffer.from(one), responseDeserialize: (one) => one };
  const path = (name) => ({ path: `/rerank.v1.RerankService/${name}`, requestStream: false, ...bytes });
  const methods = { Health: { ...path("Health"), responseStream: false }, StreamRerank: { ...path("StreamRerank"), responseStream: true } };
  const server = new Server();
  const health = toBinary(HealthResponseSchema, create(HealthResponseSchema, { model: "scripted", serving: true }));
  const summary = create(StreamRerankResponseSchema, { summary: { model: "scripted" } });
  const result = create(StreamRerankResponseSchema, { results: [{ index: 0 }] });
  server.addService(methods, {
    Health: (call, reply) => answer(call, () => reply(null, health), reply),
    StreamRerank: (call) => {
      const begins = steps[0]?.afterResult;
      if (begins) call.write(toBinary(StreamRerankResponseSchema, result));
      const good = () => {
        if (!steps.incomplete) call.write(toBinary(StreamRerankResponseSchema, summary));
        call.end();
      };
      answer(call, good, (error) => call.emit("error", error));
    },
  });
  const port = await new Promise((found, failed) =>
    server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, bound) => (error ? failed(error) : found(bound))),
  );
  return { target: `127.0.0.1:${port}`, calls, stop: () => server.forceShutdown() };
}

// Finds a port on which nothing listens.
export function unusedPort() {
  const server = createServer();
  return new Promise((found) => {
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => found(port));
    });
  });
}
