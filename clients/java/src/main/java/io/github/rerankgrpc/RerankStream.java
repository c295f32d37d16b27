package io.github.rerankgrpc;

import io.github.rerankgrpc.v1.RerankResult;
import io.github.rerankgrpc.v1.RerankSummary;
import io.github.rerankgrpc.v1.StreamRerankResponse;
import io.grpc.Context;
import io.grpc.StatusRuntimeException;
import java.util.Collections;
import java.util.Iterator;
import java.util.NoSuchElementException;
import java.util.concurrent.locks.ReentrantLock;
import java.util.function.Supplier;

/**
 * The results of one StreamRerank call in the order of scoring, and its summary after the last.
 *
 * <p>One thread reads it. Closing it, from any thread, cancels a call that has not ended. Its methods
 * throw {@link RerankException}, also where the stream ends without its summary, for results may then be
 * missing.
 */
public final class RerankStream implements Iterator<RerankResult>, AutoCloseable {
  private final Supplier<Iterator<StreamRerankResponse>> call;
  private final Attempts attempts;
  private final Translation translation;
  private final Context.CancellableContext context = Context.current().withCancellation();
  private final ReentrantLock reading = new ReentrantLock();
  private volatile boolean closed;
  private Iterator<StreamRerankResponse> messages;
  private Iterator<RerankResult> results = Collections.emptyIterator();
  private RerankSummary summary;
  private RerankException failure;
  private volatile boolean ended;

  RerankStream(Supplier<Iterator<StreamRerankResponse>> call, Attempts attempts, Translation translation) {
    this.call = call;
    this.attempts = attempts;
    this.translation = translation;
    begin();
  }

  /** Makes the exception of a status; `left` tells whether the caller has ended the call itself. */
  interface Translation {
    RerankException of(StatusRuntimeException error, boolean left);
  }

  @Override
  public boolean hasNext() {
    if (closed && !ended) {
      throw new IllegalStateException("the stream is closed");
    }
    while (!results.hasNext() && !ended) {
      read();
    }
    if (failure != null && !results.hasNext()) {
      throw failure;
    }
    return results.hasNext();
  }

  @Override
  public RerankResult next() {
    if (!hasNext()) {
      throw new NoSuchElementException("the stream has ended: ask hasNext first");
    }
    return results.next();
  }

  /** The summary, which comes last; throws IllegalStateException before the last result has been read. */
  public RerankSummary summary() {
    if (summary == null) {
      throw new IllegalStateException("the summary comes last: read the stream to its end first");
    }
    return summary;
  }

  @Override
  public void close() {
    closed = true;
    context.cancel(null);
    if (!ended && reading.tryLock()) { // else the thread that reads sees the end
      try {
        drain();
      } finally {
        reading.unlock();
      }
    }
  }

  /** Reads what came before the end: interceptors are told of the end only when it is read. */
  private void drain() {
    try {
      while (messages.hasNext()) {
        messages.next();
      }
    } catch (StatusRuntimeException cancelled) {
      return; // as asked
    }
  }

  private void begin() {
    Context previous = context.attach();
    try {
      messages = call.get();
    } finally {
      context.detach(previous);
    }
  }

  /** Reads one message; makes the call anew where it was refused before its first. */
  private void read() {
    reading.lock();
    try {
      if (!messages.hasNext()) {
        end(summary == null ? Failures.incomplete() : null);
        return;
      }
      StreamRerankResponse message = messages.next();
      attempts.commit();
      results = message.getResultsList().iterator();
      if (message.hasSummary()) {
        summary = message.getSummary();
      }
    } catch (StatusRuntimeException error) {
      tryAgain(translation.of(error, context.isCancelled()));
    } finally {
      reading.unlock();
    }
  }

  private void tryAgain(RerankException refused) {
    try {
      attempts.waitAfter(refused, context);
    } catch (RerankException last) {
      end(last);
      return;
    }
    begin();
  }

  private void end(RerankException why) {
    ended = true;
    failure = why;
    context.cancel(null); // which lets go of the context around it
  }
}
