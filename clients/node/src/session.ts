/** The connection of a client: Connect's, that reads a status whose details are broken. */
import type { ClientHttp2Stream, IncomingHttpHeaders } from "node:http2";
import { decodeBinaryHeader } from "@connectrpc/connect";
import { Http2SessionManager } from "@connectrpc/connect-node";
import { StatusSchema } from "./gen/google/rpc/status_pb";

const DETAILS = "grpc-status-details-bin";

/** Drops details that cannot be parsed: Connect would throw for them, and lose the status that came along. */
export class Session extends Http2SessionManager {
  override async request(...call: Parameters<Http2SessionManager["request"]>): Promise<ClientHttp2Stream> {
    const stream = await super.request(...call);
    // These listeners come before Connect's, which get the same object.
    stream.on("response", dropBrokenDetails);
    stream.on("trailers", dropBrokenDetails);
    return stream;
  }
}

function dropBrokenDetails(headers: IncomingHttpHeaders): void {
  const details = headers[DETAILS];
  if (details === undefined) return;
  try {
    decodeBinaryHeader(String(details), StatusSchema);
  } catch {
    delete headers[DETAILS];
  }
}
