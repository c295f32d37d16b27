// The models that can be chosen, and what goes with those that are.

import { showCode } from "./code.js";
import { at, make } from "./dom.js";
import { chosenModels } from "./form.js";
import { aboutModel, stateOf } from "./panel.js";
import { state } from "./state.js";
import { text } from "./texts.js";

export function showModels(models) {
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

export function showChosen() {
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
