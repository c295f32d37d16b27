/** Why no TLS connection comes about: read from Node's errors, or found by one connection of our own. */
import type { SecureClientSessionOptions } from "node:http2";
import { connect, type ConnectionOptions } from "node:tls";
import type { TlsProblem } from "./errors";

const PROBE_MS = 2_000;
// The client's preface of HTTP/2, and its SETTINGS, after which every server answers.
const PREFACE = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", "latin1");

const BY_CODE: readonly (readonly [RegExp, TlsProblem])[] = [
  [/^ERR_TLS_CERT_ALTNAME_INVALID$/, "wrong_name"],
  [/^CERT_HAS_EXPIRED$/, "expired"],
  [/^CERT_NOT_YET_VALID$/, "not_yet_valid"],
  [/SELF_SIGNED_CERT|^UNABLE_TO_(GET_ISSUER|VERIFY)|^CERT_UNTRUSTED$|^INVALID_CA$/, "unknown_ca"],
  [/^ERR_SSL_(WRONG_VERSION_NUMBER|HTTP_REQUEST|PACKET_LENGTH_TOO_LONG)$/, "plaintext_port"],
  [/^ERR_SSL_.*ALERT_CERTIFICATE_REQUIRED$/, "client_certificate_missing"],
  [/^ERR_SSL_.*ALERT_(UNKNOWN_CA|BAD_CERT|CERTIFICATE|UNSUPPORTED_CERT|ACCESS_DENIED)/, "client_certificate_refused"],
];

const ADVICE: Readonly<Record<TlsProblem, string>> = {
  unknown_ca: "the server's certificate is signed by none of the CAs that this client trusts: give its CA, { ca }",
  wrong_name: "the server's certificate is for another name: call it by its name, or give that, { serverName }",
  expired: "the server's certificate has expired: have it renewed, or set this machine's clock",
  not_yet_valid: "the server's certificate is not valid yet: set the clock that is wrong",
  plaintext_port: "it speaks no TLS there: call it without tls and ca, or give the server --tls-cert",
  tls_port: "it speaks TLS there: call it with { tls: true }, or with { ca } for a CA of your own",
  client_certificate_missing: "it wants a certificate from its callers: give yours, { cert, key }",
  client_certificate_refused:
    "it refuses the caller's certificate: give one, { cert, key }, whose CA is among the server's --tls-client-ca",
};

/** Says in one line what is wrong, and what to do. */
export function tlsAdvice(problem: TlsProblem, codes: readonly string[] = []): string {
  return ADVICE[problem] + (codes.length ? ` (${codes.join(", ")})` : "");
}

/** Reads the problem out of the codes of Node's errors; undefined where they do not tell one. */
export function tlsProblemOf(codes: readonly string[]): TlsProblem | undefined {
  return BY_CODE.find(([pattern]) => codes.some((code) => pattern.test(code)))?.[1];
}

/**
 * Connects once, as a client with this TLS does or with undefined as one without, and tells what the reason may
 * be for which the server ended the connection. Takes 2 seconds at the most, and rejects never.
 */
export function probe(target: string, tls: SecureClientSessionOptions | undefined): Promise<TlsProblem | undefined> {
  const { hostname, port } = new URL(`https://${target}`);
  const host = hostname.replace(/^\[(.*)\]$/, "$1");
  const options: ConnectionOptions = { ...tls, host, port: Number(port || 443), ALPNProtocols: ["h2"] };
  if (!tls) options.rejectUnauthorized = false;
  return new Promise((resolve) => {
    const socket = connect(options);
    const found = (problem: TlsProblem | undefined) => {
      socket.destroy();
      resolve(problem);
    };
    let shaken = false;
    socket.setTimeout(PROBE_MS, () => found(undefined));
    socket.on("secureConnect", () => {
      shaken = true;
      // In TLS 1.3 a server looks at the caller's certificate last, and ends the connection for a bad one.
      if (tls) socket.write(PREFACE);
      else found("tls_port");
    });
    socket.on("data", () => found(undefined));
    const ended = () => found(tls && shaken ? (tls.cert ? "client_certificate_refused" : "client_certificate_missing") : undefined);
    socket.on("end", ended);
    socket.on("close", ended);
    socket.on("error", (error: NodeJS.ErrnoException) => {
      const code = error.code ?? "";
      if (!tls) found(/ALERT/.test(code) ? "tls_port" : undefined);
      else if (shaken) ended();
      else found(tlsProblemOf([code]));
    });
  });
}
