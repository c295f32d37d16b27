// Projects of others, in temporary folders: with the packed package in them, or with stubs of their own.
import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { promisify } from "node:util";

export const PACKAGE = resolve(import.meta.dirname, "..");
export const MODULES = join(PACKAGE, "node_modules");

const execute = promisify(execFile);

// Runs a command; resolves to what it printed, and rejects with that.
export async function run(cwd, command, ...words) {
  try {
    const { stdout, stderr } = await execute(command, words, { cwd, timeout: 120_000, env: { ...process.env, FORCE_COLOR: "0" } });
    return stdout + stderr;
  } catch (error) {
    throw new Error(`${command} ${words.join(" ")}: ${error.message}\n${error.stdout}\n${error.stderr}`);
  }
}

export const tool = (name) => join(MODULES, ".bin", name);

export function project(files) {
  const folder = mkdtempSync(join(tmpdir(), "rerank-node-"));
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text);
  return { folder, remove: () => rmSync(folder, { recursive: true, force: true }) };
}

// Compiles a project's files as strictly as TypeScript can.
export async function compile(folder, ...words) {
  const types = ["--types", "node", "--typeRoots", join(MODULES, "@types")];
  const strict = ["--strict", "--exactOptionalPropertyTypes", "--noUncheckedIndexedAccess", "--target", "es2022"];
  return await run(folder, tool("tsc"), ...strict, ...types, ...words);
}

// The blocks of a page, by language.
export function blocks(page, language) {
  const text = readFileSync(join(PACKAGE, page), "utf8");
  return [...text.matchAll(/^```(\w+)\n([\s\S]*?)^```$/gm)].filter(([, name]) => name === language).map(([, , block]) => block);
}
