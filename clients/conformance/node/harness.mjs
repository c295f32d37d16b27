// What every client's script uses: the call to make, the answer to expect, a line for each check.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

export const url = process.env.CONFORMANCE_URL;
export const token = process.env.CONFORMANCE_TOKEN;
export const query = process.env.CONFORMANCE_QUERY;
export const documents = JSON.parse(process.env.CONFORMANCE_DOCUMENTS);
export const model = "rerank-test";
export const noModel = "no-such-model";

const scores = JSON.parse(process.env.CONFORMANCE_SCORES);
const bestFirst = scores.map((_, index) => index).sort((a, b) => scores[b] - scores[a]);

// Checks that indices and scores are those of the plain call, best first.
export function ranks(pairs, count = documents.length) {
  assert.deepEqual(pairs.map(([index]) => index), bestFirst.slice(0, count));
  for (const [index, score] of pairs) assert.ok(Math.abs(score - scores[index]) < 1e-6);
}

// Checks that a call throws this very error, and that its text says what REST said.
export async function throws(kind, call, word) {
  try {
    await call();
  } catch (error) {
    assert.ok(kind(error), `${error.name}: ${error.message}`);
    const text = `${error.message} ${error.responseBody ?? ""} ${JSON.stringify(error.body ?? "")}`;
    assert.ok(text.includes(word), text);
    return;
  }
  assert.fail("nothing was thrown");
}

export async function main(client, name, checks) {
  const { version } = JSON.parse(readFileSync(new URL(`node_modules/${name}/package.json`, import.meta.url)));
  for (const [check, run] of Object.entries(checks)) {
    let problem = "";
    try {
      await run();
    } catch (error) {
      problem = `${error.name}: ${error.message}`.slice(0, 500);
    }
    console.log(JSON.stringify({ client, version, check, problem }));
  }
}
