/** The settings of a client and of a call, checked when they are given. */
import type { SecureClientSessionOptions } from "node:http2";
import { isIPv6 } from "node:net";

/** A certificate or key as PEM: a file's content, not its path. */
export type Pem = string | Uint8Array;

/** The settings of a client. */
export interface ClientOptions {
  /** Sent as `authorization: Bearer TOKEN`. */
  readonly token?: string | undefined;
  /** The deadline of a call in milliseconds, all its attempts together; 30,000 unless said. */
  readonly timeoutMs?: number | undefined;
  /** How many further attempts a call may take, 0 to 4; 3 unless said. */
  readonly retries?: number | undefined;
  /** TLS with the CAs that Node trusts. */
  readonly tls?: boolean | undefined;
  /** TLS with these CAs instead. */
  readonly ca?: Pem | undefined;
  /** The caller's own certificate, for a server of mutual TLS. */
  readonly cert?: Pem | undefined;
  /** The key of `cert`. */
  readonly key?: Pem | undefined;
  /** The name of the server's certificate, if not the target's. */
  readonly serverName?: string | undefined;
  /**
   * Finds a server that hangs: while a call waits and nothing comes, it is pinged after so many milliseconds and
   * left after as many without an answer. 2,000 or more.
   */
  readonly hangTimeoutMs?: number | undefined;
}

/** The settings of one call. */
export interface CallOptions {
  /** The deadline in milliseconds, instead of the client's. */
  readonly timeoutMs?: number | undefined;
  /** Cancels the call, and the server stops working on it. */
  readonly signal?: AbortSignal | undefined;
  /** Further metadata, e.g. a traceparent. */
  readonly headers?: Readonly<Record<string, string>> | undefined;
}

/** A client's settings, complete and checked. */
export interface Settings {
  readonly target: string;
  readonly url: string;
  readonly timeoutMs: number;
  readonly retries: number;
  readonly hangTimeoutMs: number | undefined;
  readonly headers: Readonly<Record<string, string>>;
  readonly tls: SecureClientSessionOptions | undefined;
}

const DEFAULT_PORT = 50_051;
const MAX_RETRIES = 4;
// Servers take pings that come more often for an attack.
const LEAST_HANG_TIMEOUT_MS = 2_000;
// gRPC writes a deadline in eight digits.
const LONGEST_MS = 99_999_999;

/** What each option of a client is; the record has them all. */
const CLIENT_OPTIONS: Readonly<Record<keyof ClientOptions, "boolean" | "number" | "PEM" | "string">> = {
  token: "string",
  timeoutMs: "number",
  retries: "number",
  tls: "boolean",
  ca: "PEM",
  cert: "PEM",
  key: "PEM",
  serverName: "string",
  hangTimeoutMs: "number",
};
const CALL_OPTIONS: Readonly<Record<keyof CallOptions, true>> = { timeoutMs: true, signal: true, headers: true };

/** Checks a client's settings; throws TypeError or RangeError, naming the setting. */
export function settingsOf(target: string, options: ClientOptions): Settings {
  const host = targetOf(target);
  known(options, CLIENT_OPTIONS);
  for (const [name, kind] of Object.entries(CLIENT_OPTIONS)) typed(name, kind, options[name as keyof ClientOptions]);
  const tls = tlsOf(options);
  return {
    target: host,
    url: `${tls ? "https" : "http"}://${host}`,
    timeoutMs: milliseconds("timeoutMs", options.timeoutMs ?? 30_000, 1),
    retries: retriesOf(options.retries ?? 3),
    hangTimeoutMs:
      options.hangTimeoutMs === undefined
        ? undefined
        : milliseconds("hangTimeoutMs", options.hangTimeoutMs, LEAST_HANG_TIMEOUT_MS),
    headers: headersOf(options.token),
    tls,
  };
}

/** Checks the names of a call's options: a misspelt one would have no effect. */
export function callOptionsOf(options: CallOptions): CallOptions {
  known(options, CALL_OPTIONS);
  return options;
}

function known(options: object, all: object): void {
  const unknown = Object.keys(options).find((name) => !Object.hasOwn(all, name));
  if (unknown !== undefined) throw new TypeError(`${unknown}: no such option; there are ${Object.keys(all).join(", ")}`);
}

/** Checks an option's type; the value may be a secret and is not repeated. */
function typed(name: string, kind: string, value: unknown): void {
  if (value === undefined) return;
  const right = kind === "PEM" ? typeof value === "string" || ArrayBuffer.isView(value) : typeof value === kind;
  const wanted = kind === "PEM" ? "a file's content as a string or bytes" : `a ${kind}`;
  if (!right) throw new TypeError(`${name}: ${wanted} is expected`);
}

/** Checks a time in milliseconds. */
export function milliseconds(name: string, value: number, least: number): number {
  if (typeof value !== "number" || !(value >= least && value <= LONGEST_MS)) {
    throw new RangeError(`${name}: ${least} to ${LONGEST_MS} milliseconds, not ${value}`);
  }
  return value;
}

/**
 * Makes the metadata of a call: the client's, and in its place the call's own of the same name.
 *
 * Throws TypeError, which holds no value: it may be a token.
 */
export function metadataOf(client: Record<string, string>, call: Readonly<Record<string, string>> = {}): Headers {
  const headers = new Headers(client);
  for (const [name, value] of Object.entries(call)) {
    try {
      headers.set(name, value);
    } catch {
      const what = "a name of letters, digits and hyphens, and a value in one line of Latin-1, are expected";
      throw new TypeError(`headers: ${JSON.stringify(name)}: ${what}`);
    }
  }
  return headers;
}

/** Adds the port that a target leaves out. */
function targetOf(target: string): string {
  const wanted = "target: HOST or HOST:PORT, e.g. localhost:50051 or [::1]:50051";
  if (typeof target !== "string") throw new TypeError(wanted);
  if (target.includes("://")) throw new TypeError(`${wanted}, without a scheme; TLS is an option: { tls: true }`);
  const host = isIPv6(target) ? `[${target}]` : target;
  const matched = /^(\[[0-9A-Fa-f:.]+\]|[^\s:/?#@[\]]+)(?::(\d{1,5}))?$/.exec(host);
  const port = Number(matched?.[2] ?? DEFAULT_PORT);
  if (!matched || port < 1 || port > 65_535) throw new TypeError(wanted);
  return `${matched[1]}:${port}`;
}

function retriesOf(retries: number): number {
  if (!Number.isInteger(retries) || retries < 0 || retries > MAX_RETRIES) {
    throw new RangeError(`retries: 0 to ${MAX_RETRIES}, not ${retries}`);
  }
  return retries;
}

function headersOf(token: string | undefined): Record<string, string> {
  if (token === undefined) return {};
  // A header holds nothing else; the text itself is never repeated in an error.
  if (!/^[!-~]+$/.test(token)) throw new TypeError("token: not empty, printable ASCII without spaces");
  return { authorization: `Bearer ${token}` };
}

function tlsOf({ tls, ca, cert, key, serverName }: ClientOptions): SecureClientSessionOptions | undefined {
  const given = [ca, cert, key, serverName].some((value) => value !== undefined);
  if (tls === false && given) throw new TypeError("tls: false contradicts ca, cert, key and serverName");
  if (!tls && !given) return undefined;
  if ((cert === undefined) !== (key === undefined)) throw new TypeError("cert, key: give both, or neither");
  return {
    ...pem("ca", ca),
    ...pem("cert", cert),
    ...pem("key", key),
    ...(serverName === undefined ? {} : { servername: serverName }),
  };
}

function pem(name: string, value: Pem | undefined): Record<string, Buffer> {
  if (value === undefined) return {};
  const content = Buffer.from(value);
  if (!content.includes("-----BEGIN ")) throw new TypeError(`${name}: PEM is expected; read the file: readFileSync(path)`);
  return { [name]: content };
}
