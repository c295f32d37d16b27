// cohere-ai: CohereClient and CohereClientV2.
import assert from "node:assert/strict";
import * as cohere from "cohere-ai";
import { documents, main, model, noModel, query, ranks, throws, token, url } from "./harness.mjs";

for (const name of ["CohereClient", "CohereClientV2"]) {
  const client = new cohere[name]({ token, environment: url, baseUrl: url });
  const wrong = new cohere[name]({ token: "wrong", environment: url, baseUrl: url });
  const second = name.endsWith("V2");
  const ask = (fields = {}, using = client) =>
    using.rerank({ model, query, documents, ...fields }, { maxRetries: 0 });
  const pairs = (reply) => reply.results.map((result) => [result.index, result.relevanceScore]);
  await main(`cohere-ai ${name}`, "cohere-ai", {
    reranks: async () => ranks(pairs(await ask())),
    documents: async () => {
      // The second version has no word for them, and gets them all the same.
      for (const result of (await ask(second ? {} : { returnDocuments: true })).results)
        assert.equal(result.document?.text, documents[result.index]);
    },
    top_n: async () => ranks(pairs(await ask({ topN: 2 })), 2),
    error: () => throws((e) => e instanceof cohere.Cohere.NotFoundError, () => ask({ model: noModel }), noModel),
    "wrong token": () =>
      throws((e) => e instanceof cohere.Cohere.UnauthorizedError, () => ask({}, wrong), "token"),
  });
}
