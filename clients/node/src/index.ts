export { Client } from "./client";
export type { DocumentLike, RerankOptions } from "./request";
export type { CallOptions, ClientOptions, Pem } from "./options";
export { RerankStream } from "./stream";
export * from "./errors";
export * from "./gen/rerank/v1/rerank_pb";
