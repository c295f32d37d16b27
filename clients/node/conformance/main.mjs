// Sends the list of clients/conformance/contract/requests.py through this client, and prints what became of each line.
import { readFileSync } from "node:fs";
import { fromJson } from "@bufbuild/protobuf";
import { Client, ModelState, RerankError, RerankRequestSchema } from "rerank-grpc";

const CANCELLED = { error: { reason: "CANCELLED", fields: [], retry: false } };

function repeated(request, times) {
  if (!times) return request;
  const [first, ...others] = request.documents;
  const one = { ...first };
  for (const name of ["id", "text"]) if (name in one) one[name] = one[name].repeat(times[name] ?? 1);
  const numbered = Array.from({ length: times.documents ?? 0 }, (_, number) => ({ ...one, text: `${one.text} ${number}` }));
  const documents = times.documents === undefined ? [one, ...others] : numbered;
  return { ...request, query: request.query.repeat(times.query ?? 1), documents };
}

function told(results, { model, queryTruncated }) {
  return {
    results: results.map((result) => ({
      index: result.index,
      id: result.id,
      relevance_score: result.relevanceScore,
      logit: result.logit,
      tokens: result.tokens,
      truncated: result.truncated,
      ...(result.document ? { text: result.document.text } : {}),
      ...(result.bestChunk ? { best_chunk: [result.bestChunk.start, result.bestChunk.end] } : {}),
      ...(result.calibratedScore === undefined ? {} : { calibrated_score: result.calibratedScore }),
    })),
    model,
    query_truncated: queryTruncated,
  };
}

async function rerank(client, line, call) {
  const { $typeName, query, documents, ...fields } = fromJson(RerankRequestSchema, repeated(line.request, line.repeat));
  const options = { ...fields, ...call };
  if (line.method === "Rerank") {
    const response = await client.rerank(query, documents, options);
    return told(response.results, response);
  }
  const stream = client.streamRerank(query, documents, options);
  const results = [];
  for await (const result of stream) {
    results.push(result);
    if (line.cancel_after_messages) return CANCELLED;
  }
  results.sort((one, other) => other.relevanceScore - one.relevanceScore || one.index - other.index);
  return told(results.slice(0, options.topN || undefined), stream.summary);
}

async function ask(client, line, call) {
  if (line.method === "ListModels") {
    const models = await client.listModels(call);
    return {
      models: models.map(({ name, aliases, state, serving, acceptsInstruction, maxTokens, calibration }) => ({
        ...{ name, aliases, state: ModelState[state], serving },
        ...{ accepts_instruction: acceptsInstruction, max_tokens: maxTokens },
        ...(calibration ? { calibration: calibration.method } : {}),
      })),
    };
  }
  if (line.method === "Health") {
    const { model, state, serving } = await client.health(line.request.model, call);
    return { health: { model, state: ModelState[state], serving } };
  }
  return await rerank(client, line, call);
}

function failed(error) {
  if (!(error instanceof RerankError)) throw error;
  const fields = error.violations.map(({ field }) => field);
  return { error: { reason: error.reason ?? error.name, fields, retry: error.retryAfterMs !== undefined } };
}

const { CONFORMANCE_TARGET: target, CONFORMANCE_TOKENS: tokens, CONFORMANCE_REQUESTS: list } = process.env;
for (const text of readFileSync(list, "utf8").split("\n").filter(Boolean)) {
  const line = JSON.parse(text);
  const client = new Client(target, { token: JSON.parse(tokens)[line.caller ?? "full"] });
  const left = new AbortController();
  if (line.cancel_after_ms !== undefined) setTimeout(() => left.abort(), line.cancel_after_ms);
  const outcome = await ask(client, line, { timeoutMs: line.timeout_ms, signal: left.signal }).catch(failed);
  console.log(JSON.stringify({ name: line.name, ...outcome }));
  client.close();
}
