// The same call from elsewhere, shown and copied.

import { serverUrl } from "./api.js";
import { TOOLS } from "./calls.js";
import { at, make, onceAFrame } from "./dom.js";
import { wellFormed } from "./files.js";
import { chosenModels, documentsNow, messageFor } from "./form.js";
import { text } from "./texts.js";

const SHOWN_CODE = 6_000;

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

export const showCode = onceAFrame(() => {
  const { documents } = documentsNow();
  const code = codeOf(firstOf(documents));
  const cut = code.length > SHOWN_CODE;
  at("target-row").hidden = document.querySelector("input[name=tool]:checked").value === "curl";
  at("code").textContent = cut ? `${code.slice(0, SHOWN_CODE)}…` : code;
  at("code-hint").textContent = [cut && text("code_cut"), at("token").value && text("code_token")].filter(Boolean).join(" ");
});

export async function copy() {
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
