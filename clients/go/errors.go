package rerank

import (
	"context"
	"errors"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Reason says why a call failed. It is an error itself, so that errors.Is(err, rerank.QueueFull) asks for it.
type Reason string

// The reasons that the server tells: the contract's ErrorReason without its prefix. A newer server may tell others.
const (
	InvalidRequest      Reason = "INVALID_REQUEST"      // Fields says what is wrong
	UnsupportedOption   Reason = "UNSUPPORTED_OPTION"   // the model cannot do it
	UnknownModel        Reason = "UNKNOWN_MODEL"        // Metadata has the known_models
	ModelLoading        Reason = "MODEL_LOADING"        // RetryAfter says when to come back
	ModelFailed         Reason = "MODEL_FAILED"         // somebody has to act
	QueueFull           Reason = "QUEUE_FULL"           // RetryAfter says when to come back
	DeadlineUnreachable Reason = "DEADLINE_UNREACHABLE" // give more time, or come back
	RateLimited         Reason = "RATE_LIMITED"         // RetryAfter says when to come back
	DeadlineExceeded    Reason = "DEADLINE_EXCEEDED"    // also without an answer
	Cancelled           Reason = "CANCELLED"            // by the caller
	PermissionDenied    Reason = "PERMISSION_DENIED"    // the token lacks the right
	PairTooLarge        Reason = "PAIR_TOO_LARGE"       // one document does not fit the device
	Unauthenticated     Reason = "UNAUTHENTICATED"      // no token, or a wrong one
	ShuttingDown        Reason = "SHUTTING_DOWN"        // the server is stopping
	Internal            Reason = "INTERNAL"             // a fault of the server
)

// The reasons that only a caller sees.
const (
	ServerUnavailable Reason = "SERVER_UNAVAILABLE" // none listens, or the connection broke
	TLSFailed         Reason = "TLS_FAILED"         // is ServerUnavailable too; the message says what to do
	MessageTooLarge   Reason = "MESSAGE_TOO_LARGE"  // the request or the reply
	IncompleteStream  Reason = "INCOMPLETE_STREAM"  // a stream ended early: results are missing
	MethodUnknown     Reason = "METHOD_UNKNOWN"     // another service, or another version of this one
	UnexpectedStatus  Reason = "UNEXPECTED_STATUS"  // Code says which
)

func (r Reason) Error() string {
	return "rerank: " + string(r)
}

// FieldViolation is a field of the request that has a value that is not allowed.
type FieldViolation struct {
	Field       string // such as documents[3].text
	Description string
}

// Error is why a call failed.
type Error struct {
	Code       codes.Code
	Reason     Reason
	Message    string
	Fields     []FieldViolation
	RetryAfter time.Duration     // 0 where the server names no delay, or none is needed
	Metadata   map[string]string // of the reason; the contract says which

	described bool // by the server
	delayed   bool // by a RetryInfo, which may name a delay of 0
	status    *status.Status
}

func (e *Error) Error() string {
	return "rerank: " + string(e.Reason) + ": " + e.Message
}

// Is reports whether a Reason is the error's, and lets errors.Is find those of context.
func (e *Error) Is(target error) bool {
	switch target {
	case e.Reason:
		return true
	case ServerUnavailable:
		return e.Reason == TLSFailed
	case context.DeadlineExceeded:
		return e.Reason == DeadlineExceeded
	case context.Canceled:
		return e.Reason == Cancelled
	}
	return false
}

// GRPCStatus lets status.FromError and status.Code of gRPC read the error.
func (e *Error) GRPCStatus() *status.Status {
	if e.status == nil {
		return status.New(e.Code, e.Message)
	}
	return e.status
}

// failure makes the error of an attempt: by what the server said of it, else by its code.
func (c *Client) failure(ctx context.Context, err error) *Error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		err = status.FromContextError(err).Err()
	}
	told := status.Convert(err)
	failure := &Error{Code: told.Code(), Message: told.Message(), status: told}
	failure.describe(told.Details())
	if !failure.described {
		c.explain(ctx, failure)
	}
	return failure
}

// describe takes over the details, if they are of this service.
func (e *Error) describe(details []interface{}) {
	var fields []FieldViolation
	var retryAfter time.Duration
	delayed := false
	for _, detail := range details {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.Domain == "rerank.v1" {
				e.described = true
				e.Reason = Reason(strings.TrimPrefix(detail.Reason, "ERROR_REASON_"))
				e.Metadata = detail.Metadata
			}
		case *errdetails.RetryInfo:
			delayed = true
			// AsDuration stops at 292 years, where a product of the seconds would turn negative.
			if delay := detail.RetryDelay.AsDuration(); delay > 0 {
				retryAfter = delay
			}
		case *errdetails.BadRequest:
			for _, violation := range detail.FieldViolations {
				fields = append(fields, FieldViolation{violation.Field, violation.Description})
			}
		}
	}
	if e.described {
		e.Fields, e.RetryAfter, e.delayed = fields, retryAfter, delayed
	}
}
