// grpc-js over TLS with a private CA, as a caller in Node has it, and Node's own HTTPS to REST.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { request as ask } from "node:https";
import { create, createFileRegistry, fromBinary, toBinary } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { Client, credentials, Metadata, status } from "@grpc/grpc-js";
import { documents, main, query, ranks, throws, token } from "./harness.mjs";

const target = process.env.CONFORMANCE_TLS_TARGET;
const url = process.env.CONFORMANCE_TLS_URL;
const ca = readFileSync(process.env.CONFORMANCE_CA);
const contract = Buffer.from(process.env.CONFORMANCE_CONTRACT, "base64");
const service = createFileRegistry(fromBinary(FileDescriptorSetSchema, contract)).getService("rerank.v1.RerankService");

// Calls a method of the contract once, over a channel of its own.
function call(secure, name, fields, authorization = `Bearer ${token}`) {
  const { input, output } = service.methods.find((method) => method.name === name);
  const client = new Client(target, secure);
  const metadata = new Metadata();
  metadata.set("authorization", authorization);
  return new Promise((resolve, reject) => {
    client.makeUnaryRequest(
      `/${service.typeName}/${name}`,
      (message) => Buffer.from(toBinary(input, message)),
      (bytes) => fromBinary(output, bytes),
      create(input, fields),
      metadata,
      { deadline: Date.now() + 10_000 },
      (error, reply) => (error ? reject(error) : resolve(reply)),
    );
  }).finally(() => client.close());
}

function post(path, body) {
  return new Promise((resolve, reject) => {
    const headers = { "content-type": "application/json", authorization: `Bearer ${token}` };
    const sent = ask(`${url}${path}`, { ca, method: "POST", headers }, async (reply) => {
      const parts = await reply.toArray();
      resolve([reply.statusCode, JSON.parse(Buffer.concat(parts))]);
    });
    sent.on("error", reject);
    sent.end(JSON.stringify(body));
  });
}

const secure = credentials.createSsl(ca);
const texts = documents.map((text) => ({ text }));
const is = (code) => (error) => error.code === code;

await main("grpc-js over TLS", "@grpc/grpc-js", {
  reranks: async () => {
    const { results } = await call(secure, "Rerank", { query, documents: texts });
    ranks(results.map((result) => [result.index, result.relevanceScore]));
  },
  models: async () => assert.equal((await call(secure, "ListModels", {})).models[0].name, "embedded"),
  REST: async () => {
    const [code, { results }] = await post("/v1/rerank", { query, documents });
    assert.equal(code, 200);
    ranks(results.map((result) => [result.index, result.relevance_score]));
  },
  "wrong token": () =>
    throws(is(status.UNAUTHENTICATED), () => call(secure, "Health", {}, "Bearer wrong"), "token"),
  "unknown CA": () => throws(is(status.UNAVAILABLE), () => call(credentials.createSsl(), "Health", {}), "certificate"),
});
