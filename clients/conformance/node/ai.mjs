// The Vercel AI SDK's rerank through three providers.
import assert from "node:assert/strict";
import { createCohere } from "@ai-sdk/cohere";
import { createTogetherAI } from "@ai-sdk/togetherai";
import { APICallError, rerank } from "ai";
import { createVoyage } from "voyage-ai-provider";
import { documents, main, model, noModel, query, ranks, throws, token, url } from "./harness.mjs";

const providers = {
  "@ai-sdk/cohere": [createCohere, `${url}/v2`],
  "@ai-sdk/togetherai": [createTogetherAI, `${url}/v1`],
  "voyage-ai-provider": [createVoyage, `${url}/v1`],
};

// Who takes records, and with which options: the field that is named has the scores of the plain texts.
const objects = {
  "@ai-sdk/cohere": {},
  "@ai-sdk/togetherai": { providerOptions: { togetherai: { rankFields: ["body"] } } },
};

for (const [name, [create, baseURL]] of Object.entries(providers)) {
  const provider = create({ apiKey: token, baseURL });
  const wrong = create({ apiKey: "wrong", baseURL });
  const ask = (fields = {}, of = provider, id = model) =>
    rerank({ model: (of.reranking ?? of.rerankingModel)(id), documents, query, maxRetries: 0, ...fields });
  const pairs = (reply) => reply.ranking.map((result) => [result.originalIndex, result.score]);
  await main(`ai with ${name}`, name, {
    reranks: async () => ranks(pairs(await ask())),
    documents: async () => {
      const { rerankedDocuments, ranking } = await ask();
      assert.deepEqual(rerankedDocuments, ranking.map((result) => documents[result.originalIndex]));
    },
    ...(objects[name] && {
      objects: async () => {
        const records = documents.map((body, page) => ({ page, body }));
        const { ranking } = await ask({ documents: records, ...objects[name] });
        assert.deepEqual(ranking.map((result) => result.document), ranking.map((result) => records[result.originalIndex]));
        if (objects[name].providerOptions) ranks(ranking.map((result) => [result.originalIndex, result.score]));
      },
    }),
    top_n: async () => ranks(pairs(await ask({ topN: 2 })), 2),
    error: () => throws(APICallError.isInstance, () => ask({}, provider, noModel), noModel),
    "wrong token": () => throws(APICallError.isInstance, () => ask({}, wrong), "token"),
  });
}
