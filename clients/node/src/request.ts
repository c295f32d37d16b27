/** The messages of a call, made of a caller's arguments. */
import { create, type DescMessage } from "@bufbuild/protobuf";
import { InvalidRequest } from "./errors";
import { type RerankRequest, RerankRequestSchema } from "./gen/rerank/v1/rerank_pb";

/** A text, or one with the caller's own name for it. */
export type DocumentLike = string | { readonly text: string; readonly id?: string | undefined };

/** The optional fields of RerankRequest. */
export type RerankOptions = {
  readonly [Field in keyof Omit<RerankRequest, "$typeName" | "$unknown" | "query" | "documents">]?:
    | RerankRequest[Field]
    | undefined;
};

const FIELDS: ReadonlySet<string> = new Set(
  (RerankRequestSchema as DescMessage).fields.map((field) => field.localName),
);

/**
 * Makes the request of a call.
 *
 * Throws TypeError for an argument of a wrong type or name, InvalidRequest for a value that no message can hold.
 */
export function rerankRequest(
  query: string,
  documents: Iterable<DocumentLike>,
  options: RerankOptions,
): RerankRequest {
  const unknown = Object.keys(options).find((name) => !FIELDS.has(name));
  if (unknown !== undefined) throw new TypeError(`${unknown}: no such option; there are ${[...FIELDS].join(", ")}`);
  if (typeof documents === "string" || typeof documents?.[Symbol.iterator] !== "function") {
    throw new TypeError("documents: a list of texts is expected");
  }
  const given = Object.entries(options).filter(([, value]) => value !== undefined);
  for (const [name, value] of given) if (typeof value === "string") text(name, value);
  return create(RerankRequestSchema, {
    ...Object.fromEntries(given),
    query: text("query", query),
    documents: Array.from(documents, document),
  });
}

function document(value: DocumentLike, index: number): { text: string; id: string } {
  const place = `documents[${index}]`;
  if (typeof value === "string") return { text: text(`${place}.text`, value), id: "" };
  if (typeof value !== "object" || value === null) {
    throw new TypeError(`${place}: a text, or an object with a text, is expected`);
  }
  return { text: text(`${place}.text`, value.text), id: text(`${place}.id`, value.id ?? "") };
}

function text(field: string, value: string): string {
  if (typeof value !== "string") throw new TypeError(`${field}: a string is expected`);
  // UTF-8 has no bytes for half a surrogate pair.
  if (/\p{Surrogate}/u.test(value)) {
    const description = "holds half of a surrogate pair, which UTF-8 cannot hold";
    throw new InvalidRequest(`${field}: ${description}`, { violations: [{ field, description }] });
  }
  return value;
}
