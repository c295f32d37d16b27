// The page: from what was typed to a call, and from its results to what is seen. It keeps nothing.

import { rerank, serverUrl } from "./api.js";
import { TOOLS } from "./calls.js";
import { at, make, makeSvg, onceAFrame } from "./dom.js";
import { EXAMPLES, textOf } from "./examples.js";
import { FileError, readFile, split, wellFormed } from "./files.js";
import { Lines, agreement } from "./lines.js";
import { Panel, aboutModel, stateOf } from "./panel.js";
import { Ranking, facts, score } from "./ranking.js";
import { around } from "./spans.js";
import * as texts from "./texts.js";

const { duration, number, tell, text } = texts;
const SHOWN_CODE = 6_000;
const GRPC_PORT = 50051;
const BEST = 10;
// Where an error about a field of the request is shown; any other is about the call.
const FIELDS = {
  query: "query",
  documents: "documents",
  model: "model",
  instruction: "instruction",
  top_n: "top_n",
  max_chunks_per_document: "chunks",
};
const NO_TOKEN = "unauthenticated";
const SENDABLE = /^[\x21-\x7e]*$/;
const SLOTS = ["a", "b"];

// `token` is the one that was typed to its end; `kept` what was typed before an example took its place.
// `refusal` is what the panel has written beside the token.
const state = { token: "", file: undefined, models: [], kept: undefined, run: undefined, refusal: "" };
const lines = new Lines(at("lines"));

// What was typed

const separator = () => document.querySelector("input[name=by]:checked").value;
const wholeNumber = (value) => (/^\d+$/.test(value) ? Number(value) : value);

function documentsNow() {
  if (state.file) return state.file.documents(state.file.column, separator());
  return { documents: split(at("documents").value, separator()), faults: [] };
}

/** Makes the request as the contract's JSON: a query, and without what else has its default value. */
function messageFor(model, documents) {
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

const chosenModels = () => [at("model").value, ...(at("other").value ? [at("other").value] : [])];

// Errors, beside the field that they concern

function clearErrors() {
  for (const element of at("form").querySelectorAll(".error")) say(element.id.replace("-error", ""), () => "");
}

function say(name, what, lang) {
  const element = at(`${name}-error`);
  tell(element, what);
  if (lang) element.lang = lang;
  else element.removeAttribute("lang");
  const field = at(name);
  if (field) field.setAttribute("aria-invalid", String(Boolean(what())));
}

/** Shows an error of a call of the model in a slot; returns the field's name. */
function showError(error, slot) {
  const name = fieldOf(error, slot);
  const said = error.fields?.length ? error.fields.map(({ message }) => message).join("\n") : error.message;
  const own = text(error.code) ? () => text(error.code) : undefined;
  const wait = () => (error.retrySeconds ? ` ${text("retry", { seconds: duration(error.retrySeconds) })}` : "");
  const what = own && !error.message ? own : () => said;
  say(name, () => `${what()}${wait()}`, own ? undefined : "en");
  return name;
}

function fieldOf(error, slot) {
  if (error.code === NO_TOKEN) return "token";
  const model = slot === "b" ? "other" : "model";
  if (["UNKNOWN_MODEL", "MODEL_FAILED", "MODEL_LOADING"].includes(error.reason)) return model;
  const field = error.fields?.map(({ name }) => FIELDS[name.replace(/[[.].*/, "")]).find(Boolean);
  if (field) return field === "model" ? model : field;
  // What is too large for the way comes without a reason; documents are what can be large.
  if (error.code === "resource_exhausted" && !error.reason) return "documents";
  return "call";
}

function focusOn(name) {
  const field = at(name);
  if (field && field.offsetParent) field.focus();
}

// A run: one call for each chosen model, at the same time

async function start() {
  clearErrors();
  const token = at("token").value.trim();
  if (!SENDABLE.test(token)) {
    say("token", () => text("token_characters"));
    focusOn("token");
    return;
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
  if (state.run !== run) return;
  run.done = true;
  at("stop").hidden = true;
  showBoard(run.columns.some(({ ranking, state: now }) => ranking.results.length || now !== "failed"));
  if (wrong.length) focusOn(wrong[0]);
  else if (run.columns.every(({ summary }) => summary)) announce(run);
  panel.refresh();
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

function stop() {
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

// What a run shows

function showBoard(shown) {
  at("empty").hidden = shown;
  at("board").hidden = !shown;
}

function showRun(run) {
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

const changed = onceAFrame(() => {
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

function setThreshold() {
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

function highlight(target, on) {
  const index = target.closest?.("[data-index]")?.dataset.index;
  if (index === undefined) return;
  for (const { ranking } of state.run?.columns ?? []) {
    ranking.rows.get(Number(index))?.element.classList.toggle("lit", on);
  }
  lines.highlight(Number(index), on);
}

function read(index, slot) {
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

// Documents: typed, of an example, of a file

const showCount = onceAFrame(() => {
  const { documents } = documentsNow();
  const characters = documents.reduce((sum, each) => sum + each.text.length, 0);
  at("count").textContent = text("counted", { documents: texts.documents(documents.length), characters: number(characters) });
  showCode();
});

function showFile() {
  const { file } = state;
  at("file").hidden = !file;
  at("documents").hidden = Boolean(file);
  at("separator").hidden = Boolean(file) && !file.separated;
  showCount();
  if (!file) return;
  const { documents, faults } = documentsNow();
  at("file-name").textContent = file.name;
  at("column-row").hidden = file.columns.length < 2;
  at("column").replaceChildren(...file.columns.map((name) => make("option", { value: name, selected: name === file.column }, name)));
  const count = faults.reduce((sum, { values }) => sum + (values.lines ?? 1), 0);
  at("file-left-out").textContent = count
    ? text("left_out", { count: number(count), first: text(faults[0].key, faults[0].values) })
    : "";
  at("preview").replaceChildren(...documents.slice(0, 4).map((each) => make("li", { dir: "auto" }, each.text.slice(0, 200))));
}

async function take(files) {
  if (!files.length) return;
  say("documents", () => "");
  try {
    if (files.length > 1) throw new FileError("bad_many");
    state.file = await readFile(files[0]);
    showFile();
  } catch (error) {
    if (!(error instanceof FileError)) throw error;
    const { key, values } = error;
    const first = () => (values.first ? text(values.first.key, values.first.values) : "");
    say("documents", () => text(key, { ...values, first: first() }));
  }
}

function putAway() {
  state.file = undefined;
  showFile();
}

function fill({ query, value, by, chunks, file }) {
  at("query").value = query;
  at("documents").value = value;
  document.querySelector(`input[name=by][value=${by}]`).checked = true;
  at("chunks").value = chunks ?? "";
  state.file = file;
  showFile();
}

const typedNow = () => ({
  query: at("query").value,
  value: at("documents").value,
  by: separator(),
  chunks: at("chunks").value,
  file: state.file,
});

const isExample = ({ query, value, file }) =>
  !file &&
  (EXAMPLES.some((example) => example.query === query && textOf(example) === value) || !(query.trim() || value.trim()));

function takeExample(example) {
  if (!isExample(typedNow())) state.kept = typedNow();
  fill({ ...example, value: textOf(example) });
  at("restore").hidden = !state.kept;
  clearErrors();
}

function restore() {
  fill(state.kept);
  state.kept = undefined;
  at("restore").hidden = true;
  at("query").focus();
}

// Models

function showModels(models) {
  state.models = models;
  const label = ({ name, state: now, isDefault }) =>
    [name, text("states")[stateOf({ state: now })], isDefault && text("is_default")].filter(Boolean).join(" · ");
  const options = models.map((model) => [model.name, label(model)]);
  choices(at("model"), options.length ? options : [["", text("default_model")]]);
  choices(at("other"), [["", text("nothing")], ...options]);
  showChosen();
}

/**
 * Puts options into a select, and touches it only where they differ: it may be open. What is chosen stays, even where
 * it is offered no more: the service says what is wrong with it.
 */
function choices(select, offered) {
  const gone = select.value && !offered.some(([name]) => name === select.value);
  const options = gone ? [...offered, [select.value, select.value]] : offered;
  const shown = [...select.options].map(({ value, text: label }) => [value, label]);
  if (JSON.stringify(shown) === JSON.stringify(options)) return;
  const { value } = select;
  select.replaceChildren(...options.map(([name, label]) => make("option", { value: name }, label)));
  select.value = options.some(([name]) => name === value) ? value : options[0][0];
}

function showChosen() {
  const codeModel = at("code-model").value;
  const chosen = chosenModels();
  const found = (name) => state.models.find((model) => model.name === name);
  at("model-about").textContent = found(at("model").value) ? aboutModel(found(at("model").value)) : "";
  at("other-about").textContent = found(at("other").value) ? aboutModel(found(at("other").value)) : "";
  const takers = chosen.filter((name) => found(name)?.acceptsInstruction);
  at("instruction-row").hidden = !takers.length;
  at("instruction-hint").textContent =
    takers.length === chosen.length ? text("instruction_both") : text("instruction_one", { model: takers[0] ?? "" });
  at("code-model-row").hidden = chosen.length < 2;
  at("code-model").replaceChildren(...chosen.map((name) => make("option", { value: name, selected: name === codeModel }, name)));
  showCode();
}

// The same call from elsewhere

function codeOf(documents) {
  const tool = document.querySelector("input[name=tool]:checked").value;
  const chosen = chosenModels();
  const model = chosen.includes(at("code-model").value) ? at("code-model").value : chosen[0];
  return TOOLS[tool]({
    message: messageFor(model, documents),
    url: serverUrl().href,
    target: wellFormed(at("target").value.trim()),
    secure: location.protocol === "https:",
    token: at("token").value.trim() !== "",
  });
}

/** Takes so many of the documents that what is shown of the call is full. */
function firstOf(documents) {
  let length = 0;
  const end = documents.findIndex(({ text: content }) => (length += content.length) > SHOWN_CODE);
  return end < 0 ? documents : documents.slice(0, end + 1);
}

const showCode = onceAFrame(() => {
  const { documents } = documentsNow();
  const code = codeOf(firstOf(documents));
  const cut = code.length > SHOWN_CODE;
  at("target-row").hidden = document.querySelector("input[name=tool]:checked").value === "curl";
  at("code").textContent = cut ? `${code.slice(0, SHOWN_CODE)}…` : code;
  at("code-hint").textContent = [cut && text("code_cut"), at("token").value && text("code_token")].filter(Boolean).join(" ");
});

async function copy() {
  const code = codeOf(documentsNow().documents);
  const done = (await written(code)) ? "copied" : "not_copied";
  at("copied").textContent = text(done);
  at("copy").textContent = text(done);
  at("copy").addEventListener("blur", () => (at("copy").textContent = text("copy")), { once: true });
}

/** Puts a text on the clipboard, also where a page without TLS may not use navigator.clipboard. */
async function written(content) {
  try {
    await navigator.clipboard.writeText(content);
    return true;
  } catch {
    const area = make("textarea", { class: "hidden", "aria-hidden": "true" });
    area.value = content;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    at("copy").focus();
    return done;
  }
}

// All together

const panel = new Panel({
  token: () => (SENDABLE.test(state.token) ? state.token : ""),
  chosen: (models) => {
    const names = chosenModels().filter((name) => models.some((model) => model.name === name));
    return names.length ? names : models.slice(0, 1).map(({ name }) => name);
  },
  onModels: showModels,
  onError: showServerError,
});

function showServerError(error) {
  const refused = error?.code === NO_TOKEN;
  showRefusal(refused ? error : undefined);
  const said = !error || refused ? "" : error.message && error.name !== "TimeoutError" ? error.message : text("no_answer");
  tell(at("server-error"), () => said);
}

/** Shows beside the token that the panel's calls are refused, and takes that away once they are answered. */
function showRefusal(error) {
  const said = at("token-error").textContent;
  // A token that is still being typed is not the one that was refused.
  if (error && !said && at("token").value.trim() === state.token) {
    showError(error);
    state.refusal = at("token-error").textContent;
  } else if (!error && state.refusal) {
    if (said === state.refusal) say("token", () => "");
    state.refusal = "";
  }
}

function changeLanguage(name) {
  texts.speak(name);
  const other = name === "en" ? "zh" : "en";
  at("language").textContent = text("switch");
  at("language").lang = other;
  if (state.models.length) panel.show();
  showModels(state.models);
  showFile();
  for (const { ranking } of state.run?.columns ?? []) ranking.renew();
  changed();
}

function listen(id, event, act) {
  at(id).addEventListener(event, act);
}

function listenToForm() {
  listen("form", "submit", (event) => {
    event.preventDefault();
    start();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !at("reader").open) {
      event.preventDefault();
      if (!event.repeat) start();
    } else if (event.key === "Enter" && event.repeat && event.target.closest("input, #rerank")) {
      // A key that is held down is one press: the browser would else submit the form for each repetition.
      event.preventDefault();
    } else if (event.key === "Escape" && !at("reader").open) stop();
  });
  listen("stop", "click", stop);
  listen("restore", "click", restore);
  for (const id of ["query", "documents", "instruction", "top_n", "chunks"]) listen(id, "input", showCount);
  for (const id of ["target", "code-model", "tool"]) listen(id, "input", showCode);
  for (const id of ["model", "other"]) {
    listen(id, "change", () => {
      showChosen();
      panel.refresh();
    });
  }
  // Not when the field is left: the button below would move away under a press of it.
  listen("token", "input", () => {
    say("token", () => "");
    showCode();
  });
  listen("token", "change", () => {
    state.token = at("token").value.trim();
    panel.refresh();
  });
  listen("separator", "change", showFile);
  listen("copy", "click", copy);
  listen("language", "click", () => changeLanguage(texts.currentLanguage() === "en" ? "zh" : "en"));
}

function listenToFiles() {
  listen("choose", "change", () => {
    take([...at("choose").files]);
    // The same name can be chosen again, once the file is mended.
    at("choose").value = "";
  });
  listen("file-remove", "click", () => {
    putAway();
    at("documents").focus();
  });
  listen("column", "change", () => {
    state.file.column = at("column").value;
    showFile();
  });
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  // A file that misses the field is taken too: the browser would else leave the page and what was typed on it.
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    at("drop").classList.add("over");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget ?? at("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    at("drop").classList.remove("over");
    if (!hasFiles(event)) return;
    event.preventDefault();
    take(event.dataTransfer.files);
  });
}

function listenToResults() {
  listen("threshold", "input", setThreshold);
  for (const [event, on] of [["pointerover", true], ["pointerout", false], ["focusin", true], ["focusout", false]]) {
    listen("columns", event, ({ target }) => highlight(target, on));
  }
  listen("columns", "click", ({ target }) => {
    const open = target.closest(".open");
    if (open) read(Number(open.dataset.index), open.closest("ol").id.slice(-1));
  });
  listen("reader-close", "click", () => at("reader").close());
  listen("reader", "click", (event) => event.target === at("reader") && at("reader").close());
}

at("target").value = `${location.hostname}:${GRPC_PORT}`;
at("examples").replaceChildren(
  ...EXAMPLES.map((example) => {
    const chip = make("button", { type: "button", class: "chip", lang: example.language }, example.name);
    chip.addEventListener("click", () => takeExample(example));
    return chip;
  }),
);
listenToForm();
listenToFiles();
listenToResults();
fill((({ ...example }) => ({ ...example, value: textOf(example) }))(EXAMPLES.find(({ language }) => language === texts.currentLanguage())));
changeLanguage(texts.currentLanguage());
panel.refresh();
// The page is ready, and this is the server that it calls.
document.documentElement.dataset.server = serverUrl().href;
