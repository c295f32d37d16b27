// The page: joins what is typed, what is called and what is shown. It keeps nothing.

import { serverUrl } from "./api.js";
import { changed, highlight, setThreshold } from "./board.js";
import { copy, showCode } from "./code.js";
import { fill, putAway, restore, showCount, showFile, take, takeExample } from "./documents.js";
import { at, make } from "./dom.js";
import { isRefused, say, showRefusal } from "./errors.js";
import { EXAMPLES, textOf } from "./examples.js";
import { chosenModels, isSendable } from "./form.js";
import { showChosen, showModels } from "./models.js";
import { Panel } from "./panel.js";
import { read } from "./reader.js";
import { start, stop } from "./run.js";
import { state } from "./state.js";
import * as texts from "./texts.js";

const { tell, text } = texts;
const GRPC_PORT = 50051;

const panel = new Panel({
  token: () => (isSendable(state.token) ? state.token : ""),
  chosen: (models) => {
    const names = chosenModels().filter((name) => models.some((model) => model.name === name));
    return names.length ? names : models.slice(0, 1).map(({ name }) => name);
  },
  onModels: showModels,
  onError: showServerError,
});

async function press() {
  if (await start()) panel.refresh();
}

function showServerError(error) {
  const refused = isRefused(error);
  showRefusal(refused ? error : undefined);
  const said = !error || refused ? "" : error.message && error.name !== "TimeoutError" ? error.message : text("no_answer");
  tell(at("server-error"), () => said);
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
    press();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !at("reader").open) {
      event.preventDefault();
      if (!event.repeat) press();
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
