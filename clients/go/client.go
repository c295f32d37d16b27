// Package rerank calls a rerank-grpc server: it scores documents against a query.
//
// The messages are those of the contract, in package rerankv1. A Client adds to their stubs what each caller
// would write again: a deadline, a token, TLS, limits that fit the server's, retries that respect its wishes,
// and errors as values of type *Error.
package rerank

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	rerankv1 "github.com/rerank-grpc/rerank-grpc/clients/go/rerank/v1"
)

// Version is this package's version, which a server sees in the user agent.
const Version = "0.1.0"

// DefaultPort is the port of a target that names none.
const DefaultPort = "50051"

// Client calls one server, or several that are alike. It may be used by many goroutines at once.
type Client struct {
	connection *grpc.ClientConn
	stub       rerankv1.RerankServiceClient
	settings   settings
	target     string   // as it was given, for errors
	addresses  []string // HOST:PORT, where the target names them
	open       context.Context
	end        context.CancelFunc
}

// New makes a client of a target. It does not wait for a connection: a server that is not there shows when it
// is called.
//
// A target is HOST:PORT, HOST for the default port, several of them with commas between, or what gRPC itself
// resolves, such as dns:///rerank.internal:50051 and unix:/run/rerank.sock. Calls are spread over all addresses.
func New(target string, options ...Option) (*Client, error) {
	settings := settings{timeout: DefaultTimeout, retries: DefaultRetries}
	for _, option := range options {
		if err := option(&settings); err != nil {
			return nil, err
		}
	}
	place, err := readTarget(target)
	if err != nil {
		return nil, err
	}
	dialOptions, err := settings.dialOptions()
	if err != nil {
		return nil, err
	}
	dialOptions = append(place.dialOptions(), dialOptions...)
	// NewClient is its newer name. Dial is in every version of gRPC 1.
	connection, err := grpc.Dial(place.target, dialOptions...)
	if err != nil {
		return nil, err
	}
	stub := rerankv1.NewRerankServiceClient(connection)
	open, end := context.WithCancel(context.Background())
	return &Client{connection, stub, settings, target, place.addresses, open, end}, nil
}

// Close ends the connections. Calls in progress fail with Cancelled.
func (c *Client) Close() error {
	c.end()
	return c.connection.Close()
}

// Connection returns gRPC's own connection, for stubs of other services: health, or the models' administration.
func (c *Client) Connection() *grpc.ClientConn {
	return c.connection
}

// Rerank scores all documents and returns the results by descending score. Its errors are of type *Error.
func (c *Client) Rerank(
	ctx context.Context, request *rerankv1.RerankRequest, options ...grpc.CallOption,
) (*rerankv1.RerankResponse, error) {
	return call(ctx, c, c.stub.Rerank, request, options)
}

// ListModels returns the configured models, the default one first. Its errors are of type *Error.
func (c *Client) ListModels(
	ctx context.Context, request *rerankv1.ListModelsRequest, options ...grpc.CallOption,
) (*rerankv1.ListModelsResponse, error) {
	return call(ctx, c, c.stub.ListModels, request, options)
}

// Health tells whether a call for a model would be answered. Its errors are of type *Error.
func (c *Client) Health(
	ctx context.Context, request *rerankv1.HealthRequest, options ...grpc.CallOption,
) (*rerankv1.HealthResponse, error) {
	return call(ctx, c, c.stub.Health, request, options)
}

// Documents makes documents of texts.
func Documents(texts ...string) []*rerankv1.Document {
	documents := make([]*rerankv1.Document, len(texts))
	for index, text := range texts {
		documents[index] = &rerankv1.Document{Text: text}
	}
	return documents
}

// call makes the attempts of a call with one reply.
func call[Request, Reply any](
	ctx context.Context,
	client *Client,
	method func(context.Context, *Request, ...grpc.CallOption) (*Reply, error),
	request *Request,
	options []grpc.CallOption,
) (*Reply, error) {
	ctx, cancel := client.prepare(ctx)
	defer cancel()
	attempts := client.attempts(ctx)
	for {
		reply, err := method(ctx, request, options...)
		if err == nil {
			return reply, nil
		}
		if err := attempts.after(err); err != nil {
			return nil, err
		}
	}
}

// prepare gives a call its deadline, unless the caller did, and its token. The call ends with its client, also
// while it waits for another attempt.
func (c *Client) prepare(ctx context.Context) (context.Context, context.CancelFunc) {
	cancel := context.CancelFunc(func() {})
	if _, limited := ctx.Deadline(); !limited {
		ctx, cancel = context.WithTimeout(ctx, c.settings.timeout)
	} else {
		ctx, cancel = context.WithCancel(ctx)
	}
	go func() {
		select {
		case <-c.open.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	own, _ := metadata.FromOutgoingContext(ctx)
	if c.settings.token != "" && len(own.Get(tokenHeader)) == 0 {
		ctx = metadata.AppendToOutgoingContext(ctx, tokenHeader, "Bearer "+c.settings.token)
	}
	return ctx, cancel
}

// pause waits, and reports false if the context ended before.
func pause(ctx context.Context, delay time.Duration) bool {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
