// Documents: typed, of an example, of a file.

import { showCode } from "./code.js";
import { at, make, onceAFrame } from "./dom.js";
import { clearErrors, say } from "./errors.js";
import { EXAMPLES, textOf } from "./examples.js";
import { FileError, readFile } from "./files.js";
import { documentsNow, separator } from "./form.js";
import { state } from "./state.js";
import * as texts from "./texts.js";

const { number, text } = texts;

export const showCount = onceAFrame(() => {
  const { documents } = documentsNow();
  const characters = documents.reduce((sum, each) => sum + each.text.length, 0);
  at("count").textContent = text("counted", { documents: texts.documents(documents.length), characters: number(characters) });
  showCode();
});

export function showFile() {
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

export async function take(files) {
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

export function putAway() {
  state.file = undefined;
  showFile();
}

export function fill({ query, value, by, chunks, file }) {
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

export function takeExample(example) {
  if (!isExample(typedNow())) state.kept = typedNow();
  fill({ ...example, value: textOf(example) });
  at("restore").hidden = !state.kept;
  clearErrors();
}

export function restore() {
  fill(state.kept);
  state.kept = undefined;
  at("restore").hidden = true;
  at("query").focus();
}
