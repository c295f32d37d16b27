// OpenRouter's SDK: its rerank, whose errors need a number as code.
import assert from "node:assert/strict";
import { OpenRouter } from "@openrouter/sdk";
import {
  BadRequestResponseError,
  NotFoundResponseError,
  UnauthorizedResponseError,
} from "@openrouter/sdk/models/errors";
import { documents, main, model, noModel, query, ranks, throws, token, url } from "./harness.mjs";

const made = (apiKey) =>
  new OpenRouter({ apiKey, serverURL: `${url}/api/v1`, retryConfig: { strategy: "none" } });
const client = made(token);
const ask = (fields = {}, using = client) =>
  using.rerank.rerank({ requestBody: { model, query, documents, ...fields } });
const pairs = (reply) => reply.results.map((result) => [result.index, result.relevanceScore]);
const is = (kind) => (error) => error instanceof kind;

await main("@openrouter/sdk", "@openrouter/sdk", {
  reranks: async () => ranks(pairs(await ask())),
  documents: async () => {
    for (const sent of [documents, documents.map((text) => ({ text }))]) {
      const reply = await ask({ documents: sent });
      for (const { index, document } of reply.results) assert.equal(document.text, documents[index]);
      assert.ok(reply.usage.totalTokens > 0);
    }
  },
  top_n: async () => ranks(pairs(await ask({ topN: 2 })), 2),
  error: () => throws(is(NotFoundResponseError), () => ask({ model: noModel }), noModel),
  "bad request": () => throws(is(BadRequestResponseError), () => ask({ query: "" }), "query"),
  "wrong token": () => throws(is(UnauthorizedResponseError), () => ask({}, made("wrong")), "token"),
});
