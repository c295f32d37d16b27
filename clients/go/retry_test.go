package rerank

import (
	"context"
	"errors"
	"io"
	"math"
	"strconv"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	rerankv1 "github.com/rerank-grpc/rerank-grpc/clients/go/rerank/v1"
)

// refusal makes a status as the server does.
func refusal(t *testing.T, code codes.Code, reason string, delay time.Duration) error {
	t.Helper()
	told, err := status.New(code, "not now").WithDetails(
		&errdetails.ErrorInfo{Reason: "ERROR_REASON_" + reason, Domain: "rerank.v1"},
		&errdetails.RetryInfo{RetryDelay: durationpb.New(delay)},
	)
	if err != nil {
		t.Fatal(err)
	}
	return told.Err()
}

// full is a server that refuses its first calls for a while, with a pushback if that is not "".
func full(refused int, err error, pushback string) *scripted {
	return &scripted{answer: func(ctx context.Context, call int) (*rerankv1.RerankResponse, error) {
		if call > refused {
			return &rerankv1.RerankResponse{Model: "model " + strconv.Itoa(call)}, nil
		}
		if pushback != "" {
			grpc.SetTrailer(ctx, metadata.Pairs("grpc-retry-pushback-ms", pushback))
		}
		return nil, err
	}}
}

func TestAFullServerIsAskedAgainAfterTheDelayThatItNames(t *testing.T) {
	const delay = 100 * time.Millisecond
	server := full(2, refusal(t, codes.ResourceExhausted, "QUEUE_FULL", delay), "")
	begun := time.Now()
	reply, err := client(t, server.serve(t)).Rerank(background, question)
	if err != nil || reply.Model != "model 3" {
		t.Errorf("%v, %v", reply, err)
	}
	if waited := time.Since(begun); waited < 2*delay {
		t.Errorf("%v for two delays of %v", waited, delay)
	}
}

func TestTheLastRefusalIsTheErrorOfACallWithoutFurtherRetries(t *testing.T) {
	server := full(9, refusal(t, codes.ResourceExhausted, "QUEUE_FULL", time.Millisecond), "")
	_, err := client(t, server.serve(t), WithRetries(2)).Rerank(background, question)
	if !errors.Is(err, QueueFull) || failure(t, err).RetryAfter != time.Millisecond || server.count() != 3 {
		t.Errorf("%v after %d attempts", err, server.count())
	}
}

func TestADelayThatEndsAfterTheDeadlineIsNotWaitedFor(t *testing.T) {
	server := full(9, refusal(t, codes.ResourceExhausted, "RATE_LIMITED", time.Hour), "")
	_, err := client(t, server.serve(t)).Rerank(background, question)
	if !errors.Is(err, RateLimited) || failure(t, err).RetryAfter != time.Hour || server.count() != 1 {
		t.Errorf("%v after %d attempts", err, server.count())
	}
}

func TestADelayIsWaitedForWhereItIsATimeToWait(t *testing.T) {
	const century = 100 * 365 * 24 * 60 * 60
	for _, told := range []struct {
		delay    *durationpb.Duration
		attempts int
	}{
		{nil, 4},
		{&durationpb.Duration{}, 4},
		{&durationpb.Duration{Seconds: -5}, 4},
		{&durationpb.Duration{Seconds: 120 * century}, 1},
		{&durationpb.Duration{Seconds: math.MaxInt64}, 1},
	} {
		refusal, err := status.New(codes.ResourceExhausted, "not now").WithDetails(
			&errdetails.ErrorInfo{Reason: "ERROR_REASON_QUEUE_FULL", Domain: "rerank.v1"},
			&errdetails.RetryInfo{RetryDelay: told.delay},
		)
		if err != nil {
			t.Fatal(err)
		}
		server := full(9, refusal.Err(), "")
		_, err = client(t, server.serve(t)).Rerank(background, question)
		if !errors.Is(err, QueueFull) || failure(t, err).RetryAfter < 0 || server.count() != told.attempts {
			t.Errorf("%v: %v after %d attempts", told.delay, err, server.count())
		}
	}
}

func TestARefusalWithoutADelayIsNotTriedAgain(t *testing.T) {
	told, err := status.New(codes.ResourceExhausted, "not now").WithDetails(
		&errdetails.ErrorInfo{Reason: "ERROR_REASON_QUEUE_FULL", Domain: "rerank.v1"},
	)
	if err != nil {
		t.Fatal(err)
	}
	server := full(9, told.Err(), "")
	_, err = client(t, server.serve(t)).Rerank(background, question)
	if !errors.Is(err, QueueFull) || server.count() != 1 {
		t.Errorf("%v after %d attempts", err, server.count())
	}
}

func TestAWaitEndsWithItsCallersPatience(t *testing.T) {
	ctx, cancel := context.WithCancel(background)
	server := full(9, refusal(t, codes.ResourceExhausted, "RATE_LIMITED", time.Minute), "")
	answer := server.answer
	server.answer = func(call context.Context, number int) (*rerankv1.RerankResponse, error) {
		time.AfterFunc(50*time.Millisecond, cancel)
		return answer(call, number)
	}
	_, err := client(t, server.serve(t), WithTimeout(time.Hour)).Rerank(ctx, question)
	if !errors.Is(err, Cancelled) || server.count() != 1 {
		t.Errorf("%v after %d attempts", err, server.count())
	}
}

// closing returns the error of a call that waits an hour for another attempt while its client is closed.
func closing(t *testing.T, refusal error, pushback string, call func(*Client) error) error {
	t.Helper()
	server := full(9, refusal, pushback)
	caller := client(t, server.serve(t), WithTimeout(2*time.Hour))
	answer := server.answer
	server.answer = func(ctx context.Context, number int) (*rerankv1.RerankResponse, error) {
		time.AfterFunc(50*time.Millisecond, func() { caller.Close() })
		return answer(ctx, number)
	}
	server.stream = func(int, rerankv1.RerankService_StreamRerankServer) error {
		time.AfterFunc(50*time.Millisecond, func() { caller.Close() })
		return refusal
	}
	ended := make(chan error, 1)
	go func() { ended <- call(caller) }()
	select {
	case err := <-ended:
		return err
	case <-time.After(20 * time.Second):
		return errors.New("the call goes on")
	}
}

func TestAWaitEndsWithItsClient(t *testing.T) {
	limited := refusal(t, codes.ResourceExhausted, "RATE_LIMITED", time.Hour)
	rerank := func(client *Client) error {
		_, err := client.Rerank(background, question)
		return err
	}
	stream := func(client *Client) error {
		_, err := client.StreamRerank(background, &rerankv1.StreamRerankRequest{})
		return err
	}
	for wait, err := range map[string]error{
		"this package's":              closing(t, limited, "", rerank),
		"this package's for a stream": closing(t, limited, "", stream),
		"gRPC's":                      closing(t, refusal(t, codes.Unavailable, "MODEL_LOADING", 0), "3600000", rerank),
	} {
		if !errors.Is(err, Cancelled) {
			t.Errorf("%s: %v", wait, err)
		}
	}
}

func TestAnAttemptThatRunsOutOfTimeLeavesTheRefusalBeforeIt(t *testing.T) {
	server := full(1, refusal(t, codes.ResourceExhausted, "QUEUE_FULL", time.Millisecond), "")
	answer := server.answer
	server.answer = func(ctx context.Context, call int) (*rerankv1.RerankResponse, error) {
		if call == 2 {
			<-ctx.Done()
			return nil, status.FromContextError(ctx.Err()).Err()
		}
		return answer(ctx, call)
	}
	_, err := client(t, server.serve(t), WithTimeout(5*time.Second)).Rerank(background, question)
	if !errors.Is(err, QueueFull) || server.count() != 2 {
		t.Errorf("%v after %d attempts", err, server.count())
	}
}

func TestAServerThatIsAwayIsAskedAgainByGRPC(t *testing.T) {
	server := full(2, refusal(t, codes.Unavailable, "MODEL_LOADING", time.Millisecond), "1")
	reply, err := client(t, server.serve(t)).Rerank(background, question)
	if err != nil || reply.Model != "model 3" {
		t.Errorf("%v, %v (gRPC before 1.40 needs GRPC_GO_RETRY=on)", reply, err)
	}
}

func TestAServerThatForbidsRetriesIsAskedOnce(t *testing.T) {
	server := full(9, refusal(t, codes.Unavailable, "MODEL_LOADING", time.Millisecond), "-1")
	_, err := client(t, server.serve(t)).Rerank(background, question)
	if !errors.Is(err, ModelLoading) || server.count() != 1 {
		t.Errorf("%v after %d attempts", err, server.count())
	}
}

func TestAClientWithoutRetriesAsksOnce(t *testing.T) {
	for code, reason := range map[codes.Code]Reason{
		codes.Unavailable: ModelLoading, codes.ResourceExhausted: QueueFull,
	} {
		server := full(9, refusal(t, code, string(reason), time.Millisecond), "1")
		_, err := client(t, server.serve(t), WithRetries(0)).Rerank(background, question)
		if !errors.Is(err, reason) || server.count() != 1 {
			t.Errorf("%v after %d attempts", err, server.count())
		}
	}
}

// result is a message of a stream with one result, and last the one that ends it.
var (
	result = &rerankv1.StreamRerankResponse{Results: []*rerankv1.RerankResult{{Index: 1}}}
	last   = &rerankv1.StreamRerankResponse{Summary: &rerankv1.RerankSummary{Model: "model"}}
)

// streaming sends messages after it has refused its first calls, and then ends with an error or none.
func streaming(refused int, refusal, end error, messages ...*rerankv1.StreamRerankResponse) *scripted {
	return &scripted{stream: func(call int, stream rerankv1.RerankService_StreamRerankServer) error {
		if call <= refused {
			return refusal
		}
		for _, message := range messages {
			if err := stream.Send(message); err != nil {
				return err
			}
		}
		return end
	}}
}

// drained reads a stream to its end.
func drained(t *testing.T, server *scripted) (int, error) {
	t.Helper()
	stream, err := client(t, server.serve(t)).StreamRerank(background, &rerankv1.StreamRerankRequest{})
	if err != nil {
		return 0, err
	}
	defer stream.Close()
	for count := 0; ; count++ {
		if _, err := stream.Recv(); err != nil {
			return count, err
		}
	}
}

func TestARefusedStreamIsAskedForAgain(t *testing.T) {
	full := refusal(t, codes.ResourceExhausted, "QUEUE_FULL", time.Millisecond)
	server := streaming(1, full, nil, result, last)
	if count, err := drained(t, server); count != 1 || err != io.EOF || server.count() != 2 {
		t.Errorf("%d results, %v after %d attempts", count, err, server.count())
	}
}

func TestAStreamWithoutASummaryIsIncomplete(t *testing.T) {
	for wanted, messages := range [][]*rerankv1.StreamRerankResponse{{}, {result}} {
		count, err := drained(t, streaming(0, nil, nil, messages...))
		if count != wanted || !errors.Is(err, IncompleteStream) {
			t.Errorf("%d results, %v", count, err)
		}
	}
}

func TestAStreamThatBreaksAfterAResultIsNotAskedForAgain(t *testing.T) {
	full := refusal(t, codes.ResourceExhausted, "QUEUE_FULL", time.Millisecond)
	server := streaming(0, nil, full, result)
	if count, err := drained(t, server); count != 1 || !errors.Is(err, QueueFull) || server.count() != 1 {
		t.Errorf("%d results, %v after %d attempts", count, err, server.count())
	}
}

func TestAStreamWithoutResultsHasItsSummary(t *testing.T) {
	if count, err := drained(t, streaming(0, nil, nil, last)); count != 0 || err != io.EOF {
		t.Errorf("%d results, %v", count, err)
	}
}

func TestAStreamThatTheServerCancelsSaysThatTheCallerDidNot(t *testing.T) {
	_, err := drained(t, streaming(0, nil, status.Error(codes.Canceled, ""), result))
	if !errors.Is(err, UnexpectedStatus) || errors.Is(err, Cancelled) {
		t.Error(err)
	}
}
