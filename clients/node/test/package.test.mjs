// The package as others install it, and the blocks of its README.
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import * as esm from "rerank-grpc";
import { blocks, compile, PACKAGE, project, run, tool } from "./projects.mjs";
import { certify, serve, TOKEN } from "./servers.mjs";

const own = JSON.parse(readFileSync(join(PACKAGE, "package.json"), "utf8"));
let empty;
let files;
let plain;
let mutual;

before(async () => {
  files = certify();
  empty = project({
    "package.json": JSON.stringify({ name: "empty", private: true }),
    ...{ "ca.pem": files.pem.ca, "alice.pem": files.pem.cert, "alice.key": files.pem.key },
  });
  process.env.RERANK_TOKEN = TOKEN;
  const tls = ["--tls-cert", files.paths.cert, "--tls-key", files.paths.key, "--tls-client-ca", files.paths.ca];
  const install = async () => {
    await run(PACKAGE, "npm", "pack", "--ignore-scripts", "--pack-destination", empty.folder);
    const quiet = ["--prefer-offline", "--no-audit", "--no-fund", "--ignore-scripts"];
    await run(empty.folder, "npm", "install", ...quiet, `./${own.name}-${own.version}.tgz`);
  };
  [plain, mutual] = await Promise.all([serve(), serve(...tls), install()]);
});
after(async () => {
  empty.remove();
  files.remove();
  await Promise.all([plain, mutual].map((server) => server.stop()));
});

const here = (text) => text.replaceAll("localhost:50051", plain.target).replaceAll("rerank.internal:50051", mutual.target);

test("every program of the README runs, and is right by TypeScript's strictest rules", async () => {
  const programs = blocks("README.md", "ts");
  assert.equal(programs.length, 5);
  const [required] = blocks("README.md", "js");
  const sources = programs.map((text, number) => [`block${number}.mts`, text]);
  const typed = required.replace("const { Client } = require(", "import rerank = require(").replace("new Client", "new rerank.Client");
  for (const [name, text] of [...sources, ["block.cjs", required], ["typed.cts", typed]]) {
    writeFileSync(join(empty.folder, name), here(text));
  }
  const names = sources.map(([name]) => name);
  await compile(empty.folder, "--module", "node16", "--lib", "es2022", ...names, "typed.cts");
  const runs = [...names.map((name) => name.replace(".mts", ".mjs")), "block.cjs"];
  const said = await Promise.all(runs.map((name) => run(empty.folder, process.execPath, name)));
  assert.match(said[0], /^1 0\.\d+\n$/);
  assert.match(said[1], /^[01] 0\.\d+\n[01] 0\.\d+\nembedded\n$/);
  assert.deepEqual(said.slice(2, 5), ["cancelled\n", "documents\n", "true\n"]);
  assert.match(said[5], /^1 0\.\d+\n$/);
});

test("types tell what does not exist", async () => {
  const wrong = 'import { Client } from "rerank-grpc";\nvoid new Client("localhost").rerank("q", ["d"], { top_n: 1 });\n';
  writeFileSync(join(empty.folder, "wrong.mts"), wrong);
  await assert.rejects(compile(empty.folder, "--module", "node16", "--noEmit", "wrong.mts"), /TS2\d\d\d/);
});

test("import and require give the same classes", async () => {
  const script = `import * as esm from "rerank-grpc"; import { createRequire } from "node:module";
    const cjs = createRequire(import.meta.url)("rerank-grpc");
    console.log(Object.keys(cjs).filter((name) => cjs[name] !== esm[name]).length, esm.Client.name);`;
  writeFileSync(join(empty.folder, "both.mjs"), script);
  assert.equal(await run(empty.folder, process.execPath, "both.mjs"), "0 Client\n");
});

test("publint has nothing against the package", async () => {
  await run(PACKAGE, tool("publint"), "--strict", "--pack", "false");
});

test("the package holds its build alone", async () => {
  const [{ files: packed, size }] = JSON.parse(await run(PACKAGE, "npm", "pack", "--dry-run", "--json", "--ignore-scripts"));
  const stray = packed.filter(({ path }) => !/^(dist\/.*\.(d\.ts|d\.mts|js|mjs)|README\.md|package\.json|LICENSE)$/.test(path));
  assert.deepEqual(stray, []);
  assert.ok(packed.some(({ path }) => path === "LICENSE"));
  assert.ok(size < 100_000, `${size} bytes`);
});

test("versions agree, and the lock names no registry", () => {
  const { version } = JSON.parse(readFileSync(join(PACKAGE, "package-lock.json"), "utf8"));
  const [, python] = /__version__ = "(.*?)"/.exec(readFileSync(join(PACKAGE, "../../rerank_grpc/__init__.py"), "utf8"));
  const [, sent] = /version = "(.*?)"/.exec(readFileSync(join(PACKAGE, "src/version.ts"), "utf8"));
  assert.deepEqual([own.version, version, sent], [python, python, python]);
  assert.doesNotMatch(readFileSync(join(PACKAGE, "package-lock.json"), "utf8"), /"resolved"|"file:/);
});

test("the README has a line for each class of errors and each option", () => {
  const text = readFileSync(join(PACKAGE, "README.md"), "utf8");
  const errors = Object.values(esm).filter((one) => one.prototype instanceof esm.RerankError && one !== esm.TransportError);
  assert.ok(errors.length > 15);
  for (const { name } of errors) assert.ok(text.includes(`\`${name}\``), name);
  const source = readFileSync(join(PACKAGE, "src/options.ts"), "utf8");
  const [, settings] = /interface ClientOptions \{([\s\S]*?)^\}/m.exec(source);
  for (const [, name] of settings.matchAll(/readonly (\w+)\?/g)) assert.match(text, new RegExp(`^\\|.*\`${name}\`.*\\|$`, "m"), name);
});
