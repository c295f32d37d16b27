// grpc-js.md: its blocks, and what it says of grpc-js.
import assert from "node:assert/strict";
import { cpSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Client, credentials, experimental, status } from "@grpc/grpc-js";
import { HealthRequestSchema, HealthResponseSchema } from "rerank-grpc";
import { blocks, compile, MODULES, PACKAGE, project, run, tool } from "./projects.mjs";
import { scripted, serve, TOKEN } from "./servers.mjs";

let server;
before(async () => {
  server = await serve();
});
after(() => server.stop());

test("the page's stubs are made and its program runs", async (context) => {
  const { folder, remove } = project({ "buf.gen.yaml": blocks("grpc-js.md", "yaml")[0] });
  context.after(remove);
  symlinkSync(MODULES, join(folder, "node_modules"));
  cpSync(join(PACKAGE, "proto"), join(folder, "proto"), { recursive: true });
  mkdirSync(join(folder, "proto/rerank/v1"), { recursive: true });
  cpSync(join(PACKAGE, "../../proto/rerank/v1/rerank.proto"), join(folder, "proto/rerank/v1/rerank.proto"));
  process.env.PATH = `${join(MODULES, ".bin")}:${process.env.PATH}`;
  await run(folder, tool("buf"), "generate");
  const [program] = blocks("grpc-js.md", "ts");
  writeFileSync(join(folder, "src/main.ts"), program.replace("localhost:50051", server.target));
  const options = ["--module", "commonjs", "--moduleResolution", "node10", "--esModuleInterop", "--skipLibCheck"];
  const loose = ["--exactOptionalPropertyTypes", "false", "--noUncheckedIndexedAccess", "false"]; // ts-proto's own
  await compile(folder, ...options, ...loose, "--outDir", "out", "src/main.ts");
  process.env.RERANK_TOKEN = TOKEN;
  const lines = (await run(folder, process.execPath, "out/main.js")).trim().split("\n");
  assert.match(lines[0], /^1 0\.\d+$/);
  assert.equal(lines.at(-1), "documents: must not be empty, ERROR_REASON_INVALID_REQUEST, documents");
});

// Calls Health once by grpc-js with a service config; resolves to the status, and how many attempts came.
async function attemptsWith(config, pushback = "1") {
  const metadata = { "grpc-retry-pushback-ms": pushback };
  const one = await scripted(Array.from({ length: 9 }, () => ({ code: status.UNAVAILABLE, metadata })));
  const client = new Client(one.target, credentials.createInsecure(), { "grpc.service_config": JSON.stringify(config) });
  const code = await new Promise((resolve) => {
    client.makeUnaryRequest(
      "/rerank.v1.RerankService/Health",
      (message) => Buffer.from(toBinary(HealthRequestSchema, message)),
      (bytes) => fromBinary(HealthResponseSchema, bytes),
      create(HealthRequestSchema),
      { deadline: Date.now() + 10_000 },
      (error) => resolve(error?.code),
    );
  });
  client.close();
  one.stop();
  return [code, one.calls.length];
}

const name = [{ service: "rerank.v1.RerankService" }];
const policy = (maxAttempts) => ({
  ...{ maxAttempts, initialBackoff: "0.1s", maxBackoff: "2s", backoffMultiplier: 2 },
  retryableStatusCodes: ["UNAVAILABLE"],
});

test("grpc-js retries by a policy in camelCase, and ignores one in snake_case without a word", async () => {
  assert.deepEqual(await attemptsWith({ methodConfig: [{ name, retryPolicy: policy(3) }] }), [status.UNAVAILABLE, 3]);
  assert.deepEqual(await attemptsWith({ method_config: [{ name, retryPolicy: policy(3) }] }), [status.UNAVAILABLE, 1]);
  assert.deepEqual(await attemptsWith({ methodConfig: [{ name, retry_policy: policy(3) }] }), [status.UNAVAILABLE, 1]);
});

test("grpc-js obeys a pushback", async () => {
  assert.deepEqual(await attemptsWith({ methodConfig: [{ name, retryPolicy: policy(3) }] }, "-1"), [status.UNAVAILABLE, 1]);
});

test("grpc-js takes more than five attempts for five", async () => {
  assert.deepEqual(await attemptsWith({ methodConfig: [{ name, retryPolicy: policy(8) }] }), [status.UNAVAILABLE, 5]);
});

test("grpc-js reads a balancing policy's settings in snake_case, and ignores camelCase without a word", () => {
  const read = (settings) => experimental.parseLoadBalancingConfig({ weighted_round_robin: settings });
  assert.equal(read({ enable_oob_load_report: true }).getEnableOobLoadReport(), true);
  assert.equal(read({ enableOobLoadReport: true }).getEnableOobLoadReport(), false);
});

test("grpc-js passes an unknown balancing policy over", () => {
  const chosen = (list) => experimental.selectLbConfigFromList(list, true).getLoadBalancerName();
  assert.equal(chosen([{ roundRobin: {} }]), "pick_first");
  assert.equal(chosen([{ newer_policy: {} }, { round_robin: {} }]), "round_robin");
});
