// Reads documents out of typed text and out of files. A document is {text, id}.
// A file's fault is {key, values}: a text of texts.js. Lines with a fault are left out and counted.

const MOST_BYTES = 12 * 1024 * 1024;
const TEXT_NAMES = ["text", "document", "content", "passage", "body", "contents", "chunk", "abstract", "answer", "正文", "文本", "内容"];
const ID_NAMES = ["id", "_id", "doc_id", "docid", "document_id"];
const READERS = { txt: readText, jsonl: readJsonLines, ndjson: readJsonLines, csv: readCsv };

export class FileError extends Error {
  constructor(key, values = {}) {
    super(key);
    Object.assign(this, { key, values });
  }
}

/** Replaces halves of characters, which no request can hold. */
export const wellFormed = (text) =>
  text.toWellFormed ? text.toWellFormed() : new TextDecoder().decode(new TextEncoder().encode(text));

/** Splits text at each line, or at each blank line, into documents; blank ones are none. */
export function split(text, by) {
  const pieces = wellFormed(text).split(by === "line" ? /\r\n|\r|\n/ : /(?:\r\n|\r|\n)[^\S\r\n]*(?:\r\n|\r|\n)\s*/);
  return pieces.map((piece) => piece.trim()).filter(Boolean).map((piece) => ({ text: piece, id: "" }));
}

/**
 * Reads a file that was dropped or chosen: its name, the columns that may hold the text, and `documents(column, by)`,
 * which gives {documents, faults}. Raises FileError where nothing of it can be used.
 */
export async function readFile(file) {
  const { name } = file;
  const read = READERS[/\.([^.]+)$/.exec(name)?.[1].toLowerCase()];
  if (!read) throw new FileError("bad_kind", { name });
  if (file.size > MOST_BYTES) throw new FileError("bad_size", { name });
  const text = decode(name, await bytesOf(file));
  if (!text.trim()) throw new FileError("bad_empty", { name });
  const found = { name, column: "", columns: [], ...read(text) };
  const { documents, faults } = found.documents(found.column, "line");
  if (!documents.length && !faults.length) throw new FileError("bad_rows", { name });
  if (!documents.length) throw new FileError("bad_lines", { name, first: faults[0] });
  return found;
}

async function bytesOf(file) {
  try {
    return await file.arrayBuffer();
  } catch {
    throw new FileError("bad_read", { name: file.name });
  }
}

function decode(name, bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new FileError("bad_encoding", { name });
  }
}

const fault = (key, values) => ({ key, values });

function readText(text) {
  const nul = text.indexOf("\0");
  if (nul >= 0) {
    const line = text.slice(0, nul).split("\n").length;
    return { documents: () => ({ documents: [], faults: [fault("line_nul", { line })] }) };
  }
  return { separated: true, documents: (_, by) => ({ documents: split(text, by), faults: [] }) };
}

function readJsonLines(text) {
  const rows = [];
  const faults = [];
  text.split("\n").forEach((content, index) => {
    if (!content.trim()) return;
    const line = index + 1;
    try {
      const value = JSON.parse(content, wholeId);
      if (typeof value === "string") rows.push({ line, cells: { "": value } });
      else if (value && typeof value === "object" && !Array.isArray(value)) rows.push({ line, cells: value });
      else faults.push(fault("line_shape", { line }));
    } catch {
      faults.push(fault("line_json", { line }));
    }
  });
  const keys = new Set(rows.flatMap(({ cells }) => Object.keys(cells)));
  const names = new Set(rows.flatMap(({ cells }) => Object.keys(cells).filter((key) => typeof cells[key] === "string")));
  return table([...names], rows, faults, [...keys]);
}

/** Keeps the digits of an id that no number of JavaScript holds, where the browser hands them out. */
function wholeId(key, value, context) {
  const lost = typeof value === "number" && !Number.isSafeInteger(value) && ID_NAMES.includes(key.toLowerCase());
  return lost ? (context?.source ?? value) : value;
}

function readCsv(text) {
  const { records, open } = parseCsv(text);
  const faults = open ? [fault("line_quote", open)] : [];
  if (!records.length) return table([], [], faults);
  const first = records[0].cells;
  const titled = first.some((name) => [...TEXT_NAMES, ...ID_NAMES].includes(name.trim().toLowerCase()));
  const numbered = first.map((name, index) => (titled && name.trim()) || `${index + 1}`);
  const names = titled || first.length > 1 ? numbered : [""];
  const rows = [];
  for (const { line, cells } of records.slice(titled ? 1 : 0)) {
    if (cells.length === names.length) {
      rows.push({ line, cells: Object.fromEntries(names.map((name, index) => [name, cells[index]])) });
    } else {
      faults.push(fault("line_cells", { line, found: cells.length, expected: names.length }));
    }
  }
  return table(names, rows, faults);
}

/** Parses RFC 4180, with the separator that the first line has most of: comma, semicolon or tab. */
function parseCsv(text) {
  const firstLine = text.slice(0, text.search(/[\r\n]|$/));
  const separator = [",", ";", "\t"].reduce((best, each) =>
    firstLine.split(each).length > firstLine.split(best).length ? each : best,
  );
  const token = new RegExp(`"([^"]*(?:""[^"]*)*)("|$)|[^${separator}"\\r\\n][^${separator}\\r\\n]*|${separator}|\\r\\n|\\r|\\n`, "gy");
  const records = [];
  let cells = [""];
  let line = 1;
  let begun = 1;
  const finish = () => {
    if (cells.length > 1 || cells[0].trim()) records.push({ line: begun, cells });
    cells = [""];
    begun = line;
  };
  for (let match = token.exec(text); match && match[0]; match = token.exec(text)) {
    const [whole, quoted, closing] = match;
    if (/^[\r\n]/.test(whole)) {
      line += 1;
      finish();
    } else if (whole === separator) {
      cells.push("");
    } else if (quoted === undefined) {
      cells[cells.length - 1] += whole;
    } else if (closing === "") {
      const more = quoted.trimEnd().split(/\r\n|\r|\n/).length - 1;
      return { records, open: { line, more, lines: line - begun + 1 + more } };
    } else {
      cells[cells.length - 1] += quoted.replaceAll('""', '"');
      line += whole.split(/\r\n|\r|\n/).length - 1;
    }
  }
  finish();
  return { records };
}

/** Makes documents of rows with named cells. `names` are the columns with a text, `keys` all of them. */
function table(names, rows, faults, keys = names) {
  const named = (wanted, among) => {
    const lower = new Map(among.map((name) => [name.toLowerCase(), name]));
    return lower.get(wanted.find((name) => lower.has(name)));
  };
  const id = named(ID_NAMES, keys);
  const columns = names.filter((name) => name !== id || names.length === 1);
  const longest = (name) => rows.slice(0, 50).reduce((sum, { cells }) => sum + (cells[name]?.length ?? 0), 0);
  const column = named(TEXT_NAMES, names) ?? columns.reduce((best, each) => (longest(each) > longest(best) ? each : best), columns[0]);
  return { columns, column: column ?? "", documents: (chosen) => documentsOf(rows, chosen, id, faults) };
}

const idOf = (value) => (["string", "number"].includes(typeof value) ? wellFormed(String(value)) : "");

function documentsOf(rows, column, id, faults) {
  const documents = [];
  const missing = [];
  for (const { line, cells } of rows) {
    const text = cells[column] ?? cells[""];
    if (typeof text !== "string" || !text.trim()) missing.push(fault("line_text", { line, column }));
    else documents.push({ text: wellFormed(text), id: column === id ? "" : idOf(cells[id]) });
  }
  const all = [...faults, ...missing].sort((first, second) => first.values.line - second.values.line);
  return { documents, faults: all };
}
