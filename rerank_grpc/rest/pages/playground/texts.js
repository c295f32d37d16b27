// What the page says, in English and Chinese. The service's own texts are shown as they come, in English.

export const TEXTS = {
  en: {
    title: "Playground",
    skip: "Skip to the results",
    pages: "Pages",
    reference: "API",
    switch: "中文",
    form: "Query and documents",
    examples: "Examples",
    query: "Query",
    documents: "Documents",
    separator: "What stands between two documents",
    by_line: "One a line",
    by_blank: "Blank line between",
    choose: "Choose a file",
    documents_hint: "Or drop a .txt, .jsonl or .csv here.",
    counted: ({ documents, characters }) => `${documents} · ${characters} characters`,
    file_remove: "Take it away",
    column: "Text is in",
    left_out: ({ count, first }) => `${count} left out; the first: ${first}`,
    bad_kind: ({ name }) => `${name}: expected a .txt, .jsonl or .csv file`,
    bad_many: "One file at a time, please: nothing was taken of these.",
    bad_size: ({ name }) => `${name}: larger than the 12 MiB that a call may have`,
    bad_read: ({ name }) => `${name}: the browser cannot read it`,
    bad_encoding: ({ name }) => `${name}: not UTF-8; save it as UTF-8`,
    bad_empty: ({ name }) => `${name}: holds no text`,
    bad_lines: ({ name, first }) => `${name}: holds no document; the first: ${first}`,
    bad_rows: ({ name }) => `${name}: holds no document; expected rows with a text, below the titles if it has any`,
    line_json: ({ line }) => `line ${line}: not JSON; expected an object with a text, or a text in quotes`,
    line_shape: ({ line }) => `line ${line}: expected an object with a text, or a text in quotes`,
    line_text: ({ line, column }) =>
      column ? `line ${line}: no text in “${column}”` : `line ${line}: no text in it; expected one, as in {"text": "…"}`,
    line_quote: ({ line, more }) =>
      `line ${line}: a quote is never closed; it ${more ? `and the ${more === 1 ? "line" : `${more} lines`} after it are` : "is"} left out`,
    line_cells: ({ line, found, expected }) => `line ${line}: ${found} cells, expected ${expected}`,
    line_nul: ({ line }) => `line ${line}: a NUL character, as in a file that is not text`,
    model: "Model",
    other: "Compare with",
    default_model: "the default model",
    nothing: "nothing",
    is_default: "default",
    about_model: ({ family, precision, device, tokens }) =>
      [family, precision, device, tokens && `${tokens} tokens`].filter(Boolean).join(" · "),
    instruction: "Instruction",
    instruction_both: "What the model is to judge; empty means its own default.",
    instruction_one: ({ model }) => `What the model is to judge; only ${model} takes one.`,
    top_n: "Top n",
    all: "all",
    chunks: "Max chunks",
    token: "Access token",
    token_none: "none",
    token_characters: "a token has visible ASCII characters alone",
    rerank: "Rerank",
    stop: "Stop",
    restore: "Bring back my own text",
    results: "Results",
    empty_lead: "Type a query and documents, or keep the example, and press Rerank.",
    empty_more: "Each document gets a score from 0 to 1, and the best come first.",
    threshold: "Threshold",
    above: ({ count, total }) => `${count} of ${total} at or above it`,
    above_two: ({ first, second }) => `${first} and ${second} at or above it`,
    agreement: ({ count, total, tau }) => `Best ${total}: ${count} in both · Kendall’s τ ${tau}`,
    scoring: ({ done, total }) => `${done} of ${total} scored`,
    scoring_best: ({ done }) => `${done} so far`,
    stopped: "stopped",
    failed: "failed",
    ranked: ({ documents, seconds }) => `${documents} in ${seconds}`,
    pair_tokens: ({ tokens }) => `${tokens} tokens`,
    queued: ({ seconds }) => `${seconds} in the queue`,
    cached: ({ count }) => `${count} known already`,
    query_truncated: "the query was cut",
    logit: "logit",
    tokens: ({ count }) => `${count} ${count === "1" ? "token" : "tokens"}`,
    calibrated: "probability",
    truncated: "truncated",
    cut: ({ field, chunks }) => `Truncated: a part was cut off and not scored. Set “${field}” above ${chunks} to score all of it.`,
    chunk: "best chunk marked",
    input: ({ place }) => `input ${place}`,
    up: ({ places }) => `up ${places} from the input`,
    down: ({ places }) => `down ${places} from the input`,
    same: "where it was in the input",
    below: "below the threshold",
    blank: "(no text)",
    read: ({ place }) => `Read document ${place}`,
    document: ({ place }) => `Document ${place}`,
    document_count: ({ count, one }) => (one ? `${count} document` : `${count} documents`),
    close: "Close",
    announce_start: ({ documents }) => `Reranking ${documents}.`,
    announce_done: ({ model, documents, first }) => `${model}: ${documents} ranked. First: ${first}`,
    announce_none: ({ model }) => `${model}: no result.`,
    announce_stopped: "Stopped.",
    code: "The same call from elsewhere",
    code_text: "The call as text",
    tool: "Made for",
    target: "gRPC at",
    copy: "Copy",
    copied: "Copied",
    not_copied: "Select the text and copy it yourself: this browser does not allow it",
    code_cut: "Shown up to here; what is copied is whole.",
    code_token: "The token is not in it: put it into the variable RERANK_TOKEN.",
    server: "Server",
    up_state: "answers",
    down_state: "does not answer",
    asking_state: "asked …",
    no_answer: "The server does not answer. Is it running, and can this browser reach it?",
    broken_stream: "The connection broke before the last result was there.",
    retry: ({ seconds }) => `Try again in ${seconds}.`,
    queue: ({ model }) => `Queue of ${model}`,
    queue_about: ({ tokens, capacity }) => `${tokens} of ${capacity} tokens`,
    rate: ({ rate }) => `${rate} tokens/s`,
    server_about: ({ version, uptime }) => `Version ${version}, up for ${uptime}`,
    models: "Models",
    states: {
      UNLOADED: "not loaded",
      LOADING: "loading",
      READY: "ready",
      UNLOADING: "unloading",
      FAILED: "failed",
      UNSPECIFIED: "unknown",
    },
    privacy:
      "What you type goes to this server alone, and this page keeps none of it: not the texts, not the token.",
  },
  zh: {
    title: "试用",
    skip: "跳到结果",
    pages: "页面",
    reference: "接口",
    switch: "English",
    form: "查询与文档",
    examples: "示例",
    query: "查询",
    documents: "文档",
    separator: "文档之间的分隔",
    by_line: "每行一篇",
    by_blank: "空行分隔",
    choose: "选择文件",
    documents_hint: "也可以把 .txt、.jsonl 或 .csv 拖到这里。",
    counted: ({ documents, characters }) => `${documents} · ${characters} 个字符`,
    file_remove: "移除",
    column: "正文所在列",
    left_out: ({ count, first }) => `略过 ${count} 行；第一处：${first}`,
    bad_kind: ({ name }) => `${name}：需要 .txt、.jsonl 或 .csv 文件`,
    bad_many: "一次只能用一个文件，这些都没有读入。",
    bad_size: ({ name }) => `${name}：超过一次调用允许的 12 MiB`,
    bad_read: ({ name }) => `${name}：浏览器无法读取`,
    bad_encoding: ({ name }) => `${name}：不是 UTF-8，请另存为 UTF-8`,
    bad_empty: ({ name }) => `${name}：没有文字`,
    bad_lines: ({ name, first }) => `${name}：没有可用的文档；第一处：${first}`,
    bad_rows: ({ name }) => `${name}：没有可用的文档；需要含正文的行，如有标题行，正文在其下`,
    line_json: ({ line }) => `第 ${line} 行：不是 JSON；需要含正文的对象，或带引号的文本`,
    line_shape: ({ line }) => `第 ${line} 行：需要含正文的对象，或带引号的文本`,
    line_text: ({ line, column }) =>
      column ? `第 ${line} 行：“${column}”中没有文本` : `第 ${line} 行：没有文本；应如 {"text": "…"}`,
    line_quote: ({ line, more }) => `第 ${line} 行：引号没有闭合；该行${more ? `及其后 ${more} 行` : ""}已略过`,
    line_cells: ({ line, found, expected }) => `第 ${line} 行：有 ${found} 列，应为 ${expected} 列`,
    line_nul: ({ line }) => `第 ${line} 行：含 NUL 字符，不像文本文件`,
    model: "模型",
    other: "对比模型",
    default_model: "默认模型",
    nothing: "不对比",
    is_default: "默认",
    about_model: ({ family, precision, device, tokens }) =>
      [family, precision, device, tokens && `${tokens} 词元`].filter(Boolean).join(" · "),
    instruction: "指令",
    instruction_both: "告诉模型如何判断；留空则用模型自带的指令。",
    instruction_one: ({ model }) => `告诉模型如何判断；只有 ${model} 接受指令。`,
    top_n: "前 n 名",
    all: "全部",
    chunks: "最多分段",
    token: "访问令牌",
    token_none: "无",
    token_characters: "令牌只能含可见的 ASCII 字符",
    rerank: "重排",
    stop: "停止",
    restore: "恢复我输入的内容",
    results: "结果",
    empty_lead: "输入查询和文档，或直接用示例，然后按“重排”。",
    empty_more: "每篇文档得到 0 到 1 的分数，最相关的排在最前。",
    threshold: "阈值",
    above: ({ count, total }) => `${total} 篇中有 ${count} 篇达到`,
    above_two: ({ first, second }) => `分别有 ${first} 篇和 ${second} 篇达到`,
    agreement: ({ count, total, tau }) => `前 ${total} 名中有 ${count} 篇相同 · Kendall τ ${tau}`,
    scoring: ({ done, total }) => `已评分 ${done} / ${total}`,
    scoring_best: ({ done }) => `已有 ${done} 篇`,
    stopped: "已停止",
    failed: "失败",
    ranked: ({ documents, seconds }) => `${documents}，用时 ${seconds}`,
    pair_tokens: ({ tokens }) => `${tokens} 词元`,
    queued: ({ seconds }) => `排队 ${seconds}`,
    cached: ({ count }) => `${count} 对已有结果`,
    query_truncated: "查询被截断",
    logit: "logit",
    tokens: ({ count }) => `${count} 词元`,
    calibrated: "概率",
    truncated: "已截断",
    cut: ({ field, chunks }) => `已截断的文档有一部分未参与评分。把“${field}”设为大于 ${chunks} 的数，即可为全文评分。`,
    chunk: "已标出最佳段落",
    input: ({ place }) => `原第 ${place}`,
    up: ({ places }) => `比输入顺序上升 ${places} 位`,
    down: ({ places }) => `比输入顺序下降 ${places} 位`,
    same: "与输入顺序相同",
    below: "低于阈值",
    blank: "（无文字）",
    read: ({ place }) => `阅读文档 ${place}`,
    document: ({ place }) => `文档 ${place}`,
    document_count: ({ count }) => `${count} 篇文档`,
    close: "关闭",
    announce_start: ({ documents }) => `正在重排 ${documents}。`,
    announce_done: ({ model, documents, first }) => `${model}：${documents}已排序。第一名：${first}`,
    announce_none: ({ model }) => `${model}：没有结果。`,
    announce_stopped: "已停止。",
    code: "在别处发出同样的调用",
    code_text: "调用的文本",
    tool: "工具",
    target: "gRPC 地址",
    copy: "复制",
    copied: "已复制",
    not_copied: "浏览器不允许复制，请自行选中文本复制",
    code_cut: "此处只显示一部分，复制的是全部。",
    code_token: "其中不含令牌：请放进环境变量 RERANK_TOKEN。",
    server: "服务器",
    up_state: "正常应答",
    down_state: "没有应答",
    asking_state: "询问中……",
    no_answer: "服务器没有应答。它在运行吗？浏览器能连上吗？",
    broken_stream: "最后的结果到达之前，连接断开了。",
    retry: ({ seconds }) => `请在 ${seconds} 后重试。`,
    queue: ({ model }) => `${model} 的队列`,
    queue_about: ({ tokens, capacity }) => `${tokens} / ${capacity} 词元`,
    rate: ({ rate }) => `${rate} 词元/秒`,
    server_about: ({ version, uptime }) => `版本 ${version}，已运行 ${uptime}`,
    models: "模型",
    states: {
      UNLOADED: "未加载",
      LOADING: "加载中",
      READY: "就绪",
      UNLOADING: "卸载中",
      FAILED: "失败",
      UNSPECIFIED: "未知",
    },
    privacy: "您输入的内容只发给这台服务器，本页不保存任何内容：不存文本，也不存令牌。",
  },
};

let language = navigator.languages.find((each) => /^(en|zh)\b/i.test(each))?.slice(0, 2).toLowerCase() ?? "en";
const told = new Map();

export const currentLanguage = () => language;

export function text(key, values = {}) {
  const found = TEXTS[language][key];
  return typeof found === "function" ? found(values) : found;
}

/** Puts a text into an element, again whenever the language changes. `make` gives the text, or "". */
export function tell(element, make) {
  told.set(element, make);
  element.textContent = make();
}

/** Changes the language of the page, or sets it for the first time. */
export function speak(name) {
  language = name;
  document.documentElement.lang = name;
  document.title = `${text("title")} · rerank-grpc`;
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = text(element.dataset.text);
  for (const element of document.querySelectorAll("[data-text-label]"))
    element.setAttribute("aria-label", text(element.dataset.textLabel));
  for (const element of document.querySelectorAll("[data-text-placeholder]"))
    element.setAttribute("placeholder", text(element.dataset.textPlaceholder));
  for (const [element, make] of told) element.textContent = make();
}

export const number = (value) => new Intl.NumberFormat(language).format(value);

export const documents = (count) => text("document_count", { count: number(count), one: count === 1 });

/** Writes a duration as people read it: "35 ms", "1.2 s", "4 min", "3 h". */
export function duration(seconds) {
  const unit = (value, name, digits = 0) =>
    new Intl.NumberFormat(language, {
      style: "unit",
      unit: name,
      unitDisplay: language === "zh" ? "narrow" : "short",
      maximumFractionDigits: digits,
    }).format(value);
  if (seconds < 1) return unit(seconds * 1000, "millisecond");
  if (seconds < 60) return unit(seconds, "second", 1);
  if (seconds < 3600) return unit(Math.floor(seconds / 60), "minute");
  if (seconds < 86400) return unit(Math.floor(seconds / 3600), "hour");
  return unit(Math.floor(seconds / 86400), "day");
}
