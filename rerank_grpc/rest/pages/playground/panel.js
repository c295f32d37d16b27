// The panel about the server: its models and their state, the queue and the rate; asked again while somebody looks.

import { health, listModels } from "./api.js";
import { at, make } from "./dom.js";
import { duration, number, tell, text } from "./texts.js";

const EVERY = 5_000;
const MOST_BETWEEN = 60_000;
const PATIENCE = 10_000;

export const stateOf = (model) => (model.state ?? "MODEL_STATE_UNSPECIFIED").replace("MODEL_STATE_", "");

export class Panel {
  /** `token` and `chosen` give the token and the names of the chosen models; `onModels` takes the models. */
  constructor({ token, chosen, onModels, onError }) {
    Object.assign(this, { token, chosen, onModels, onError, wait: EVERY, models: [], queues: [], timer: 0, asked: 0 });
    tell(at("server-state"), () => text(this.state ?? "asking_state"));
    tell(at("server-about"), () => this.#about());
    document.addEventListener("visibilitychange", () => this.refresh());
  }

  /** Asks now and, while the page is seen, again and again: more seldom the longer there is no answer. */
  async refresh() {
    clearTimeout(this.timer);
    if (document.hidden) return;
    const mine = ++this.asked;
    const answered = await this.#ask(() => mine === this.asked);
    if (mine !== this.asked) return;
    this.wait = answered ? EVERY : Math.min(this.wait * 2, MOST_BETWEEN);
    this.timer = setTimeout(() => this.refresh(), this.wait);
  }

  async #ask(current) {
    const options = { token: this.token(), signal: AbortSignal.timeout(PATIENCE) };
    try {
      const models = await listModels(options);
      const queues = await Promise.all(this.chosen(models).map((name) => health(name, options)));
      if (!current()) return true;
      Object.assign(this, { models, queues, state: "up_state", error: undefined });
      this.onModels(models);
      return true;
    } catch (error) {
      if (!current()) return false;
      Object.assign(this, { state: error.code === "no_answer" || error.name === "TimeoutError" ? "down_state" : "up_state" });
      this.queues = [];
      this.error = error;
      return false;
    } finally {
      if (current()) this.show();
    }
  }

  /** Shows what was last heard, in the language of now. */
  show() {
    at("server-state").textContent = text(this.state ?? "asking_state");
    at("server-state").dataset.state = this.state ?? "asking_state";
    at("server-about").textContent = this.#about();
    at("queues").replaceChildren(...this.queues.map(queue));
    at("models").replaceChildren(...this.models.map(modelItem));
    this.onError(this.error);
  }

  #about() {
    const { version, uptime } = this.queues[0] ?? {};
    return version ? text("server_about", { version, uptime: duration(Number.parseFloat(uptime ?? "0")) }) : "";
  }
}

function queue({ model, queueTokens = 0, queueCapacityTokens = 0, tokensPerSecond = 0 }) {
  const share = Number(queueCapacityTokens) ? Number(queueTokens) / Number(queueCapacityTokens) : 0;
  const fill = make("span", { class: "fill" });
  fill.style.setProperty("inline-size", `${Math.min(share, 1) * 100}%`);
  const tokens = text("queue_about", { tokens: number(Number(queueTokens)), capacity: number(Number(queueCapacityTokens)) });
  const rate = tokensPerSecond ? text("rate", { rate: number(Math.round(tokensPerSecond)) }) : "";
  return make(
    "div",
    { class: "queue" },
    make("span", { class: "queue-name", dir: "auto" }, text("queue", { model })),
    make("span", { class: "rate muted" }, rate),
    make("span", { class: "track", "aria-hidden": "true" }, fill),
    make("span", { class: "queue-about muted" }, tokens),
  );
}

function modelItem(model) {
  const state = stateOf(model);
  const about = aboutModel(model);
  return make(
    "li",
    { "data-state": state },
    make("span", { class: "dot", "aria-hidden": "true" }),
    make("bdi", { class: "model-name" }, model.name),
    make("span", { class: "muted" }, text("states")[state] ?? state),
    make("span", { class: "hint" }, model.stateMessage || about),
  );
}

export const aboutModel = ({ family, precision, device, maxTokens }) =>
  text("about_model", { family, precision, device, tokens: maxTokens ? number(maxTokens) : "" });
