// What a run shows: its columns, the lines between them, the threshold.

import { at, make, makeSvg, onceAFrame } from "./dom.js";
import { Lines, agreement } from "./lines.js";
import { score } from "./ranking.js";
import { state } from "./state.js";
import * as texts from "./texts.js";

const { duration, number, text } = texts;
const BEST = 10;
const lines = new Lines(at("lines"));

export function showBoard(shown) {
  at("empty").hidden = shown;
  at("board").hidden = !shown;
}

export function showRun(run) {
  const two = run.columns.length > 1;
  showBoard(true);
  at("stop").hidden = false;
  at("columns").classList.toggle("two", two);
  at("column-b").hidden = !two;
  lines.clear();
  for (const { slot, model } of run.columns) {
    at(`name-${slot}`).replaceChildren(make("bdi", {}, model || text("default_model")));
    const progress = at(`progress-${slot}`);
    progress.hidden = false;
    progress.max = run.documents.length || 1;
    progress.removeAttribute("value");
  }
  setThreshold();
  changed();
}

export const changed = onceAFrame(() => {
  const { run } = state;
  if (!run) return;
  for (const column of run.columns) showColumn(run, column);
  const [first, second] = run.columns.map(({ ranking }) => ranking.results);
  if (second) lines.draw(first, second);
  showAgreement(run, first, second);
  showAbove(run);
  showCut(run);
  drawTicks(run);
});

function showColumn(run, { slot, ranking, state: now, summary, seconds, model }) {
  const progress = at(`progress-${slot}`);
  progress.hidden = now !== "scoring";
  if (ranking.received && !ranking.topN) progress.value = ranking.received;
  at(`name-${slot}`).replaceChildren(make("bdi", {}, summary?.model || model || text("default_model")));
  const scored = ranking.topN ? text("scoring_best", { done: number(ranking.received) }) : scoredOf(run, ranking);
  at(`about-${slot}`).textContent = now === "scoring" ? scored : now === "ranked" ? aboutRun(run, summary, seconds) : text(now);
}

const scoredOf = (run, ranking) =>
  text("scoring", { done: number(ranking.received), total: number(run.documents.length) });

function aboutRun(run, { usage = {}, queryTruncated }, seconds) {
  const queued = Number.parseFloat(usage.queueDuration ?? "0");
  return [
    text("ranked", { documents: texts.documents(run.documents.length), seconds: duration(seconds) }),
    text("pair_tokens", { tokens: number(Number(usage.inputTokens ?? 0)) }),
    queued >= 0.05 && text("queued", { seconds: duration(queued) }),
    usage.cachedPairs && text("cached", { count: number(usage.cachedPairs) }),
    queryTruncated && text("query_truncated"),
  ]
    .filter(Boolean)
    .join(" · ");
}

function showAgreement(run, first, second) {
  const shown = Boolean(second) && run.columns.every((column) => column.state === "ranked");
  at("agreement").hidden = !shown;
  if (!shown) return;
  const { count, total, tau } = agreement(first, second, BEST);
  const values = { count: number(count), total: number(total), tau: tau === undefined ? "–" : tau.toFixed(2).replace("-", "−") };
  at("agreement").textContent = text("agreement", values);
}

export function setThreshold() {
  const value = Number(at("threshold").value);
  at("threshold-value").textContent = score(value);
  if (!state.run) return;
  for (const { ranking } of state.run.columns) ranking.setThreshold(value);
  showAbove(state.run);
}

function showAbove(run) {
  const counts = run.columns.map(({ ranking }) => number(ranking.countAbove()));
  const total = number(run.columns[0].ranking.results.length);
  at("above").textContent =
    counts.length > 1 ? text("above_two", { first: counts[0], second: counts[1] }) : text("above", { count: counts[0], total });
}

/** Says what to do where a result is cut off. */
function showCut(run) {
  at("cut").hidden = !run.columns.some(({ ranking }) => ranking.results.some(({ truncated }) => truncated));
  const chunks = run.columns[0].message.maxChunksPerDocument ?? 1;
  at("cut").textContent = text("cut", { field: text("chunks"), chunks: number(chunks) });
}

function drawTicks(run) {
  const ticks = run.columns.map(({ ranking, slot }) => {
    const path = makeSvg("path");
    path.classList.add(slot);
    const [top, bottom] = run.columns.length < 2 ? [0, 1] : slot === "a" ? [0, 0.5] : [0.5, 1];
    path.setAttribute("d", ranking.results.map(({ relevanceScore: at }) => `M${at} ${top}V${bottom}`).join(""));
    return path;
  });
  at("ticks").replaceChildren(...ticks);
}

export function highlight(target, on) {
  const index = target.closest?.("[data-index]")?.dataset.index;
  if (index === undefined) return;
  for (const { ranking } of state.run?.columns ?? []) {
    ranking.rows.get(Number(index))?.element.classList.toggle("lit", on);
  }
  lines.highlight(Number(index), on);
}
