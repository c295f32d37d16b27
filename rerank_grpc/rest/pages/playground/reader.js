// A whole document, with what each model has found in it.

import { at, make } from "./dom.js";
import { facts, score } from "./ranking.js";
import { around } from "./spans.js";
import { state } from "./state.js";
import { number, text } from "./texts.js";

export function read(index, slot) {
  const document = state.run.documents[index];
  const found = state.run.columns.map((column) => ({ ...column, result: column.ranking.results.find((each) => each.index === index) }));
  const { result } = found.find((column) => column.slot === slot);
  at("reader-title").textContent = text("document", { place: number(index + 1) });
  const about = found
    .filter(({ result: each }) => each)
    .map(({ summary, model, result: each }) =>
      make("span", { class: "about" }, make("bdi", {}, summary?.model ?? model), make("strong", {}, score(each.relevanceScore)), ...facts(each, document)),
    );
  at("reader-about").replaceChildren(...about);
  const { before, marked, after } = around(document.text, result.bestChunk);
  const mark = make("mark", {}, marked);
  at("reader-text").replaceChildren(before, ...(marked ? [mark] : []), after);
  at("reader").showModal();
  at("reader-text").scrollTop = marked ? mark.offsetTop - at("reader-text").offsetTop - 24 : 0;
}
