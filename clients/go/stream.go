package rerank

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	rerankv1 "github.com/rerank-grpc/rerank-grpc/clients/go/rerank/v1"
)

// Stream hands out results in the order in which they are scored. Only one goroutine may use it.
type Stream struct {
	messages rerankv1.RerankService_StreamRerankClient
	attempts *attempts
	cancel   context.CancelFunc
	results  []*rerankv1.RerankResult // that came and were not handed out
	summary  *rerankv1.RerankSummary
	end      error
}

// StreamRerank scores all documents and returns once the first results are there. Its errors, and those of the
// stream, are of type *Error. Close the stream, or read it to its end: its call goes on until then.
//
// A context without a deadline gets the client's timeout for the whole stream.
func (c *Client) StreamRerank(
	ctx context.Context, request *rerankv1.StreamRerankRequest, options ...grpc.CallOption,
) (*Stream, error) {
	ctx, cancel := c.prepare(ctx)
	attempts := c.attempts(ctx)
	for {
		messages, err := c.stub.StreamRerank(ctx, request, options...)
		if err == nil {
			stream := &Stream{messages: messages, attempts: attempts, cancel: cancel}
			if err = stream.read(); err == nil || errors.Is(err, io.EOF) {
				attempts.commit()
				return stream, nil
			}
		}
		if err := attempts.after(err); err != nil {
			cancel()
			return nil, err
		}
	}
}

// Recv returns the next result. After the last one it returns io.EOF, and Summary has the summary. A stream that
// ends early is an *Error: some of its results are missing.
func (s *Stream) Recv() (*rerankv1.RerankResult, error) {
	for len(s.results) == 0 && s.end == nil {
		if err := s.read(); err != nil && s.end == nil {
			s.finish(s.attempts.after(err))
		}
	}
	if len(s.results) == 0 {
		return nil, s.end
	}
	next := s.results[0]
	s.results = s.results[1:]
	return next, nil
}

// Summary returns what is said once about the whole call. It is nil until Recv has returned io.EOF.
func (s *Stream) Summary() *rerankv1.RerankSummary {
	if s.end != io.EOF {
		return nil
	}
	return s.summary
}

// Close ends the call, also before its last result. It may be called more than once.
func (s *Stream) Close() {
	s.cancel()
}

// read takes in the next message, and returns io.EOF after the last one.
func (s *Stream) read() error {
	message, err := s.messages.Recv()
	switch {
	case err == io.EOF && s.summary == nil:
		s.finish(&Error{
			Code: codes.DataLoss, Reason: IncompleteStream, Message: "the stream ended without its summary",
		})
		return io.EOF
	case err == io.EOF:
		s.finish(io.EOF)
		return io.EOF
	case err != nil:
		return err
	}
	s.results = message.Results
	if message.Summary != nil {
		s.summary = message.Summary
	}
	return nil
}

func (s *Stream) finish(err error) {
	s.end = err
	s.cancel()
}
