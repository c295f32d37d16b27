import { IncompleteStream } from "./errors";
import type { RerankResult, RerankSummary, StreamRerankResponse } from "./gen/rerank/v1/rerank_pb";

/** The results of one StreamRerank call as they are scored; leaving the loop early cancels the call. */
export class RerankStream implements AsyncIterable<RerankResult> {
  readonly #messages: AsyncIterable<StreamRerankResponse>;
  #begun = false;
  #summary: RerankSummary | undefined;

  /** @internal */
  constructor(messages: AsyncIterable<StreamRerankResponse>) {
    this.#messages = messages;
  }

  /** What is said once about the whole call; throws an Error before the last result has been read. */
  get summary(): RerankSummary {
    if (!this.#summary) throw new Error("the summary comes last: read the stream to its end first");
    return this.#summary;
  }

  /** Reads the stream; throws an Error the second time, and IncompleteStream where it ends without its summary. */
  async *[Symbol.asyncIterator](): AsyncGenerator<RerankResult, void, undefined> {
    if (this.#begun) throw new Error("a stream is read once: keep its results, or call streamRerank again");
    this.#begun = true;
    for await (const message of this.#messages) {
      if (message.summary) this.#summary = message.summary;
      yield* message.results;
    }
    if (!this.#summary) throw new IncompleteStream("the stream ended without its summary");
  }
}
