// Errors, beside the field that they concern.

import { at } from "./dom.js";
import { state } from "./state.js";
import { duration, tell, text } from "./texts.js";

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

export function clearErrors() {
  for (const element of at("form").querySelectorAll(".error")) say(element.id.replace("-error", ""), () => "");
}

export function say(name, what, lang) {
  const element = at(`${name}-error`);
  tell(element, what);
  if (lang) element.lang = lang;
  else element.removeAttribute("lang");
  const field = at(name);
  if (field) field.setAttribute("aria-invalid", String(Boolean(what())));
}

/** Shows an error of a call of the model in a slot; returns the field's name. */
export function showError(error, slot) {
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

export function focusOn(name) {
  const field = at(name);
  if (field && field.offsetParent) field.focus();
}

export const isRefused = (error) => error?.code === NO_TOKEN;

/** Shows beside the token that the panel's calls are refused, and takes that away once they are answered. */
export function showRefusal(error) {
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
