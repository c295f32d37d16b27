package rerank

import (
	"context"
	"encoding/json"
	"math/rand"
	"time"

	"google.golang.org/grpc/codes"
)

// jitter is the largest random share that is added to a wait: callers refused together return apart.
const jitter = 0.2

// serviceConfig makes gRPC's service config: its choice of a server, and its own retries.
//
// gRPC waits as long as the server's pushback says, and not at all where that is negative. The throttle allows
// 1.5 attempts per call in the long run, and 50 retries in an outage. A server that stops says CANCELLED to calls
// that were on their way; a call that its caller cancels is not retried.
func serviceConfig(retries int) (string, error) {
	type object = map[string]interface{}
	config := object{"loadBalancingConfig": []object{{"round_robin": object{}}}}
	if retries > 0 {
		config["methodConfig"] = []object{{
			"name": []object{{"service": "rerank.v1.RerankService"}},
			"retryPolicy": object{
				"maxAttempts":          retries + 1,
				"initialBackoff":       "0.1s",
				"maxBackoff":           "2s",
				"backoffMultiplier":    2,
				"retryableStatusCodes": []string{"UNAVAILABLE", "CANCELLED"},
			},
		}}
		config["retryThrottling"] = object{"maxTokens": 100, "tokenRatio": 0.5}
	}
	text, err := json.Marshal(config)
	return string(text), err
}

// attempts are those of one call, all within the deadline of its context.
type attempts struct {
	client  *Client
	ctx     context.Context
	left    int
	refusal *Error // of the attempt before
}

func (c *Client) attempts(ctx context.Context) *attempts {
	return &attempts{client: c, ctx: ctx, left: c.settings.retries}
}

// after waits as long as the server asked for after a failed attempt, and returns nil for another one. Otherwise it
// returns the call's error.
//
// Only RESOURCE_EXHAUSTED with a RetryInfo is tried again here. gRPC itself retries UNAVAILABLE.
func (a *attempts) after(err error) error {
	failure := a.client.failure(a.ctx, err)
	if failure.Reason == DeadlineExceeded && !failure.described && a.refusal != nil {
		// The attempt only ran out of time: the refusal before it tells more.
		return a.refusal
	}
	if failure.Code != codes.ResourceExhausted || !failure.delayed || a.left == 0 {
		return failure
	}
	deadline, _ := a.ctx.Deadline() // of each call, by prepare
	left := time.Until(deadline)
	if failure.RetryAfter >= left {
		return failure
	}
	// Later than asked, never earlier: before that moment there is no room.
	// The source is new, because Go's own is the same in every process before 1.20.
	random := rand.New(rand.NewSource(time.Now().UnixNano())).Float64()
	delay := time.Duration(float64(failure.RetryAfter) * (1 + jitter*random))
	if delay >= left {
		return failure
	}
	if !pause(a.ctx, delay) {
		return a.client.failure(a.ctx, a.ctx.Err())
	}
	a.left--
	a.refusal = failure
	return nil
}

// commit rules out another attempt, because a part of the answer has been handed out.
func (a *attempts) commit() {
	a.left, a.refusal = 0, nil
}
