// A run: one call for each chosen model, at the same time.

import { rerank } from "./api.js";
import { changed, showBoard, showRun } from "./board.js";
import { at } from "./dom.js";
import { clearErrors, focusOn, say, showError } from "./errors.js";
import { chosenModels, documentsNow, isSendable, messageFor } from "./form.js";
import { Ranking } from "./ranking.js";
import { state } from "./state.js";
import * as texts from "./texts.js";

const { text } = texts;
const SLOTS = ["a", "b"];

/** Starts a run, and ends the one before; returns whether it came to its end. */
export async function start() {
  clearErrors();
  const token = at("token").value.trim();
  if (!isSendable(token)) {
    say("token", () => text("token_characters"));
    focusOn("token");
    return false;
  }
  leave(state.run);
  state.token = token;
  const { documents } = documentsNow();
  const run = { controller: new AbortController(), documents, token, begun: performance.now() };
  run.columns = chosenModels().map((model, place) => columnFor(run, model, SLOTS[place], documents));
  state.run = run;
  showRun(run);
  at("announce").textContent = text("announce_start", { documents: texts.documents(documents.length) });
  const wrong = (await Promise.all(run.columns.map((column) => call(run, column)))).filter(Boolean);
  if (state.run !== run) return false;
  run.done = true;
  at("stop").hidden = true;
  showBoard(run.columns.some(({ ranking, state: now }) => ranking.results.length || now !== "failed"));
  if (wrong.length) focusOn(wrong[0]);
  else if (run.columns.every(({ summary }) => summary)) announce(run);
  return true;
}

/** Ends a run whose results nobody waits for any more. */
function leave(run) {
  run?.controller.abort();
  for (const { ranking } of run?.columns ?? []) ranking.close();
}

function columnFor(run, model, slot, documents) {
  const message = messageFor(model, documents);
  const topN = typeof message.topN === "number" ? message.topN : 0;
  const column = { model, slot, message, state: "scoring" };
  column.ranking = new Ranking(at(`rows-${slot}`), { documents, topN, tight: chosenModels().length > 1, onChange: changed });
  return column;
}

/** Calls for one column; returns the name of the field that an error was shown at, if any. */
async function call(run, column) {
  const { signal } = run.controller;
  const onResults = (results) => state.run === run && column.ranking.add(results);
  try {
    column.summary = await rerank(column.message, { token: run.token, signal, onResults });
    column.state = "ranked";
    return undefined;
  } catch (error) {
    column.state = signal.aborted ? "stopped" : "failed";
    return state.run === run && !signal.aborted ? showError(error, column.slot) : undefined;
  } finally {
    column.seconds = (performance.now() - run.begun) / 1000;
    if (state.run === run) column.ranking.finish();
  }
}

export function stop() {
  if (!state.run || state.run.done) return;
  state.run.controller.abort();
  at("announce").textContent = text("announce_stopped");
  at("rerank").focus();
}

function announce(run) {
  const parts = run.columns.map(({ ranking, summary }) => {
    const first = ranking.results[0];
    const model = summary.model ?? "";
    if (!first) return text("announce_none", { model });
    const count = texts.documents(ranking.results.length);
    return text("announce_done", { model, documents: count, first: run.documents[first.index].text.slice(0, 80) });
  });
  at("announce").textContent = parts.join(" ");
}
