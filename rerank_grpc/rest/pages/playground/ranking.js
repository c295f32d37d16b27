// One model's results as a list: in order, while they come, with what is known about each.

import { make, onceAFrame } from "./dom.js";
import { excerpt } from "./spans.js";
import { number, text } from "./texts.js";

// How much of a long text a row has, and how much of it before its best chunk; less where rows are low.
const ROOMY = { most: 420, led: 60 };
const TIGHT = { most: 200, led: 16 };

/** The contract's order: relevance_score, then logit, then the caller's order. */
export const byRelevance = (first, second) =>
  second.relevanceScore - first.relevanceScore || second.logit - first.logit || first.index - second.index;

export class Ranking {
  /** Shows results of `documents` in `list`; `onChange` is called after each change that is shown. */
  constructor(list, { documents, topN, tight, onChange }) {
    Object.assign(this, { list, documents, topN, room: tight ? TIGHT : ROOMY, onChange, results: [], rows: new Map(), threshold: 0, final: false });
    this.received = 0;
    this.show = onceAFrame(() => this.#show());
    list.replaceChildren();
  }

  add(results) {
    this.received += results.length;
    const all = this.results.concat(results.map(complete)).sort(byRelevance);
    this.results = this.topN ? all.slice(0, this.topN) : all;
    this.show();
  }

  /** Says that no more results come; ranks can then be compared with the input. */
  finish() {
    this.final = true;
    this.#show();
  }

  /** Leaves the list to another ranking. */
  close() {
    this.closed = true;
  }

  setThreshold(threshold) {
    this.threshold = threshold;
    for (const result of this.results) this.#shade(result);
  }

  countAbove() {
    return this.results.filter(({ relevanceScore }) => relevanceScore >= this.threshold).length;
  }

  /** Writes all rows anew, in the language of now. */
  renew() {
    this.rows.clear();
    this.list.replaceChildren();
    this.#show();
  }

  #show() {
    if (this.closed) return;
    const kept = new Set(this.results.map(({ index }) => index));
    for (const [index, row] of this.rows) {
      if (kept.has(index)) continue;
      row.element.remove();
      this.rows.delete(index);
    }
    let next = this.list.firstElementChild;
    this.results.forEach((result, rank) => {
      const row = this.#rowOf(result);
      if (row.element === next) next = next.nextElementSibling;
      else this.list.insertBefore(row.element, next);
      this.#place(row, result, rank);
      this.#shade(result);
    });
    this.onChange();
  }

  #rowOf(result) {
    if (!this.rows.has(result.index)) this.rows.set(result.index, makeRow(result, this.documents[result.index], this.room));
    return this.rows.get(result.index);
  }

  #place(row, result, rank) {
    const shown = `${rank + 1}${this.final ? "=" : ""}`;
    if (row.shown === shown) return;
    row.shown = shown;
    row.rank.textContent = number(rank + 1);
    if (this.final) row.move.replaceChildren(...movement(result.index - rank));
  }

  #shade(result) {
    const row = this.rows.get(result.index);
    const below = result.relevanceScore < this.threshold;
    if (!row || row.below === below) return;
    row.below = below;
    row.element.classList.toggle("below", below);
    row.note.textContent = below ? text("below") : "";
  }
}

/** Fills in what JSON leaves out: values of zero. */
const complete = (result) => ({ index: 0, relevanceScore: 0, logit: 0, tokens: 0, id: "", truncated: false, ...result });

export const score = (value) => value.toFixed(3);

/** Writes a logit; the service's -1e9 says that there was nothing to score. */
export const logit = (value) => (Math.abs(value) < 1e6 ? value.toFixed(3) : value.toExponential(0)).replace("-", "−");

function makeRow(result, document, room) {
  const { index, relevanceScore } = result;
  const rank = make("span", { class: "rank" });
  const move = make("span", { class: "move" });
  const bar = make("span", { class: "track", "aria-hidden": "true" }, make("span", { class: "fill" }));
  bar.firstElementChild.style.setProperty("inline-size", `${Math.min(Math.max(relevanceScore, 0), 1) * 100}%`);
  const note = make("span", { class: "hidden" });
  const value = make("span", { class: "score", "data-score": relevanceScore }, score(relevanceScore));
  const open = make("button", { type: "button", class: "open", "data-index": index });
  open.setAttribute("aria-label", text("read", { place: number(index + 1) }));
  const element = make(
    "li",
    { class: "row", "data-index": index },
    make("span", { class: "place" }, rank, move),
    make("span", { class: "value" }, bar, value, note),
    passage(document.text, result.bestChunk, room),
    make("span", { class: "facts" }, ...facts(result, document)),
    open,
  );
  return { element, rank, move, note, below: false, shown: "" };
}

function passage(content, span, room) {
  const { before, marked, after } = excerpt(content, span, room);
  const block = make("p", { class: "passage", dir: "auto" }, before);
  if (marked) block.append(make("mark", {}, marked));
  block.append(after);
  if (!content.trim()) block.replaceChildren(make("em", {}, text("blank")));
  return block;
}

/** Makes what is said of a result besides its score. */
export function facts(result, document) {
  const fact = (kind, content) => make("span", { class: `fact ${kind}` }, content);
  const said = [];
  if (result.calibratedScore !== undefined) {
    said.push(fact("calibrated", `${text("calibrated")} ${score(result.calibratedScore)}`));
  }
  said.push(fact("logit", `${text("logit")} ${logit(result.logit)}`));
  said.push(fact("tokens", text("tokens", { count: number(result.tokens) })));
  said.push(fact("input", text("input", { place: number(result.index + 1) })));
  if (result.bestChunk) said.push(fact("chunk", text("chunk")));
  if (result.truncated) said.push(fact("truncated", text("truncated")));
  if (document.id) said.push(make("bdi", { class: "fact id" }, document.id));
  return said;
}

/** Makes the sign of how far a document moved, and its words for those who hear the page. */
function movement(places) {
  const kind = places > 0 ? "up" : places < 0 ? "down" : "same";
  const sign = { up: "▲", down: "▼", same: "=" }[kind];
  const count = number(Math.abs(places));
  return [
    make("span", { class: kind, "aria-hidden": "true" }, places ? `${sign}${count}` : sign),
    make("span", { class: "hidden" }, text(kind, { places: count })),
  ];
}
