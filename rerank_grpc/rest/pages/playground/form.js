// What was typed and chosen, and the request that it makes.

import { at } from "./dom.js";
import { split, wellFormed } from "./files.js";
import { state } from "./state.js";

const SENDABLE = /^[\x21-\x7e]*$/;

export const separator = () => document.querySelector("input[name=by]:checked").value;
const wholeNumber = (value) => (/^\d+$/.test(value) ? Number(value) : value);

export function documentsNow() {
  if (state.file) return state.file.documents(state.file.column, separator());
  return { documents: split(at("documents").value, separator()), faults: [] };
}

/** Makes the request as the contract's JSON: a query, and without what else has its default value. */
export function messageFor(model, documents) {
  const takesInstruction = state.models.find(({ name }) => name === model)?.acceptsInstruction;
  const fields = {
    model,
    query: wellFormed(at("query").value),
    documents: documents.map(({ text: content, id }) => (id ? { text: content, id } : { text: content })),
    topN: wholeNumber(at("top_n").value.trim()),
    maxChunksPerDocument: wholeNumber(at("chunks").value.trim()),
    instruction: takesInstruction ? wellFormed(at("instruction").value).trim() : "",
  };
  return Object.fromEntries(Object.entries(fields).filter(([name, value]) => name === "query" || value !== ""));
}

export const chosenModels = () => [at("model").value, ...(at("other").value ? [at("other").value] : [])];

/** Whether a token can stand in a header. */
export const isSendable = (token) => SENDABLE.test(token);
