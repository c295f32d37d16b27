// connect-es over fetch, as a browser's page calls the contract: in JSON, in protobuf, and without a library.
import assert from "node:assert/strict";
import { createFileRegistry, fromBinary } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";
import { documents, main, model, noModel, query, ranks, throws, token, url } from "./harness.mjs";

const contract = Buffer.from(process.env.CONFORMANCE_CONTRACT, "base64");
const service = createFileRegistry(fromBinary(FileDescriptorSetSchema, contract)).getService("rerank.v1.RerankService");
const texts = documents.map((text, index) => ({ text, id: `d${index}` }));
const request = { model, query, documents: texts };
const pairs = (reply) => reply.results.map((result) => [result.index, result.relevanceScore]);
const headers = { Authorization: `Bearer ${token}` };
const is = (code, reason) => (error) =>
  error instanceof ConnectError && error.code === code && (!reason || error.details[0].debug.reason === reason);

for (const useBinaryFormat of [false, true]) {
  const client = createClient(service, createConnectTransport({ baseUrl: url, useBinaryFormat }));
  const ask = (fields = {}, options = {}) => client.rerank({ ...request, ...fields }, { headers, ...options });
  await main(`connect-web, ${useBinaryFormat ? "protobuf" : "JSON"}`, "@connectrpc/connect-web", {
    reranks: async () => ranks(pairs(await ask())),
    documents: async () => {
      for (const { index, id, document } of (await ask({ returnDocuments: true })).results)
        assert.deepEqual([id, document.text], [`d${index}`, documents[index]]);
    },
    top_n: async () => ranks(pairs(await ask({ topN: 2 })), 2),
    models: async () => {
      const [first] = (await client.listModels({}, { headers })).models;
      assert.deepEqual([first.name, first.isDefault, first.serving], ["embedded", true, true]);
    },
    health: async () => assert.equal((await client.health({ model }, { headers })).serving, true),
    error: () => throws(is(Code.NotFound, "ERROR_REASON_UNKNOWN_MODEL"), () => ask({ model: noModel }), noModel),
    "bad request": () =>
      throws(is(Code.InvalidArgument, "ERROR_REASON_INVALID_REQUEST"), () => ask({ query: "" }), "query"),
    deadline: () => throws(is(Code.DeadlineExceeded), () => ask({}, { timeoutMs: 1 }), ""),
    "wrong token": () =>
      throws(is(Code.Unauthenticated), () => ask({}, { headers: { Authorization: "Bearer wrong" } }), "token"),
    stream: async () => {
      const scored = [];
      let summary;
      for await (const part of client.streamRerank(request, { headers })) {
        scored.push(...pairs(part));
        summary = part.summary ?? summary;
      }
      ranks(scored.sort(([, one], [, other]) => other - one));
      assert.equal(summary.model, "embedded");
    },
    "stream's error": () =>
      throws(
        is(Code.NotFound, "ERROR_REASON_UNKNOWN_MODEL"),
        async () => {
          for await (const _ of client.streamRerank({ ...request, model: noModel }, { headers }));
        },
        noModel,
      ),
  });
}

const post = async (fields) => {
  const body = JSON.stringify({ ...request, ...fields });
  const method = "rerank.v1.RerankService/Rerank";
  const all = { ...headers, "Content-Type": "application/json" };
  const reply = await fetch(`${url}/${method}`, { method: "POST", headers: all, body });
  return [reply.status, await reply.json()];
};
await main("fetch, Connect's JSON", "@connectrpc/connect-web", {
  reranks: async () => ranks(pairs((await post({}))[1])),
  error: async () => {
    const [status, { code, message }] = await post({ model: noModel });
    assert.deepEqual([status, code], [404, "not_found"]);
    assert.ok(message.includes(noModel));
  },
});
