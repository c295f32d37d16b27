package rerank

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	rerankv1 "github.com/rerank-grpc/rerank-grpc/clients/go/rerank/v1"
)

var (
	background = context.Background()
	question   = &rerankv1.RerankRequest{
		Query: "How do I reset my password?",
		Documents: Documents(
			"Our office is closed on public holidays.",
			"To choose a new password, open Settings, then Security, and click Forgot password.",
		),
	}
)

func TestTheRealServerRanksTheRightDocumentFirst(t *testing.T) {
	reply, err := client(t, plain.at(t), WithToken(testToken)).Rerank(background, question)
	if err != nil {
		t.Fatal(err)
	}
	if len(reply.Results) != 2 || reply.Results[0].Index != 1 || reply.Model != "embedded" {
		t.Errorf("%v", reply)
	}
}

func TestTheRealServerTellsItsModelsAndItsHealth(t *testing.T) {
	client := client(t, plain.at(t), WithToken(testToken))
	models, err := client.ListModels(background, &rerankv1.ListModelsRequest{})
	if err != nil || len(models.Models) != 1 {
		t.Errorf("%v, %v", models, err)
	}
	health, err := client.Health(background, &rerankv1.HealthRequest{})
	if err != nil || !health.Serving {
		t.Errorf("%v, %v", health, err)
	}
}

func TestAStreamHandsOutAllResultsAndThenItsSummary(t *testing.T) {
	client := client(t, plain.at(t), WithToken(testToken))
	stream, err := client.StreamRerank(background, &rerankv1.StreamRerankRequest{
		Query: question.Query, Documents: question.Documents,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if stream.Summary() != nil {
		t.Error("a summary before the end")
	}
	seen := map[uint32]bool{}
	for {
		result, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		seen[result.Index] = true
	}
	if len(seen) != 2 || stream.Summary().GetModel() != "embedded" {
		t.Errorf("%v, %v", seen, stream.Summary())
	}
	if _, err := stream.Recv(); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
}

func TestARefusedRequestNamesItsFields(t *testing.T) {
	client := client(t, plain.at(t), WithToken(testToken))
	_, err := client.Rerank(background, &rerankv1.RerankRequest{Query: "query"})
	told := failure(t, err)
	if !errors.Is(err, InvalidRequest) || errors.Is(err, UnknownModel) {
		t.Errorf("%v", err)
	}
	if len(told.Fields) != 1 || told.Fields[0].Field != "documents" || told.Fields[0].Description == "" {
		t.Errorf("%v", told.Fields)
	}
	if told.Code != codes.InvalidArgument || status.Code(err) != codes.InvalidArgument {
		t.Errorf("%v, %v", told.Code, status.Code(err))
	}
}

func TestAnUnknownModelIsToldWithTheKnownOnes(t *testing.T) {
	client := client(t, plain.at(t), WithToken(testToken))
	_, err := client.StreamRerank(background, &rerankv1.StreamRerankRequest{
		Model: "bge", Query: "query", Documents: question.Documents,
	})
	told := failure(t, err)
	if told.Reason != UnknownModel || told.Metadata["known_models"] != "embedded" {
		t.Errorf("%v, %v", err, told.Metadata)
	}
	if !strings.HasPrefix(err.Error(), "rerank: UNKNOWN_MODEL: ") {
		t.Error(err)
	}
}

func TestATokenThatIsWrongOrMissingIsUnauthenticated(t *testing.T) {
	for _, options := range [][]Option{{WithToken("rrk_wrong")}, nil} {
		_, err := client(t, plain.at(t), options...).Rerank(background, question)
		if !errors.Is(err, Unauthenticated) {
			t.Errorf("%v", err)
		}
	}
}

func TestATokenOfTheContextWinsOverTheClients(t *testing.T) {
	ctx := metadata.AppendToOutgoingContext(background, "authorization", "Bearer "+testToken)
	if _, err := client(t, plain.at(t), WithToken("rrk_wrong")).Rerank(ctx, question); err != nil {
		t.Error(err)
	}
}

func TestADeadlineThatPassesIsToldAsOne(t *testing.T) {
	ctx, cancel := context.WithTimeout(background, time.Microsecond)
	defer cancel()
	_, err := client(t, plain.at(t), WithToken(testToken)).Rerank(ctx, question)
	if !errors.Is(err, DeadlineExceeded) || !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestACallThatItsCallerEndsIsCancelled(t *testing.T) {
	server := &scripted{}
	ctx, cancel := context.WithCancel(background)
	server.answer = func(call context.Context, _ int) (*rerankv1.RerankResponse, error) {
		cancel()
		<-call.Done()
		return nil, call.Err()
	}
	_, err := client(t, server.serve(t)).Rerank(ctx, question)
	if !errors.Is(err, Cancelled) || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestACallWithoutADeadlineGetsTheClients(t *testing.T) {
	server := &scripted{}
	server.answer = func(ctx context.Context, _ int) (*rerankv1.RerankResponse, error) {
		deadline, limited := ctx.Deadline()
		if left := time.Until(deadline); !limited || left > time.Hour || left < 59*time.Minute {
			t.Errorf("%v left", left)
		}
		return &rerankv1.RerankResponse{}, nil
	}
	if _, err := client(t, server.serve(t), WithTimeout(time.Hour)).Rerank(background, question); err != nil {
		t.Error(err)
	}
}

func TestATargetNamesItsPortOrHasTheDefaultOne(t *testing.T) {
	for target, wanted := range map[string]string{
		"localhost":            "dns:///localhost:50051",
		"localhost:1":          "dns:///localhost:1",
		"::1":                  "dns:///[::1]:50051",
		"[::1]:1":              "dns:///[::1]:1",
		"one, two:2":           "rerank-list:///one:50051",
		"dns:///rerank:1":      "dns:///rerank:1",
		"unix:/run/rerank":     "unix:/run/rerank",
		"http://localhost:1":   "",
		"":                     "",
		"localhost:":           "",
		"one:1,":               "",
		"one:two:three":        "",
		"grpc://localhost:100": "",
	} {
		place, err := readTarget(target)
		if place.target != wanted || (err == nil) != (wanted != "") {
			t.Errorf("%q: %q, %v", target, place.target, err)
		}
	}
}

func TestAnOptionThatMakesNoSenseIsRefusedAtOnce(t *testing.T) {
	for name, option := range map[string]Option{
		"an empty token":         WithToken(""),
		"a token with a space":   WithToken("a b"),
		"no time":                WithTimeout(0),
		"too many retries":       WithRetries(5),
		"fewer than none":        WithRetries(-1),
		"no file of CAs":         WithCAFile("no-such-file"),
		"a file without a CA":    WithCAFile("go.mod"),
		"no certificate's files": WithCertificateFiles("no-such-file", "go.mod"),
	} {
		if _, err := New("localhost", option); err == nil || !strings.HasPrefix(err.Error(), "rerank: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNoErrorRepeatsTheToken(t *testing.T) {
	if _, err := New("localhost", WithToken("secret word")); err == nil || strings.Contains(err.Error(), "secret") {
		t.Error(err)
	}
}

func TestWhereNobodyListensTheServerIsUnavailable(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	target := listener.Addr().String()
	_, err = client(t, target).Rerank(background, question)
	if !errors.Is(err, ServerUnavailable) || errors.Is(err, TLSFailed) {
		t.Error(err)
	}
	if !strings.Contains(err.Error(), target+": no server answers there") {
		t.Error(err)
	}
}

func TestAServerOfHTTP1IsNotTakenForOneThatIsAway(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	target := "dns:///" + server.Listener.Addr().String()
	_, err := client(t, target).Rerank(background, question)
	if !errors.Is(err, ServerUnavailable) || !strings.Contains(err.Error(), "REST port") {
		t.Error(err)
	}
}

func TestAServerWithoutTheMethodIsOfAnotherVersion(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	_, err = client(t, listener.Addr().String()).Rerank(background, question)
	if !errors.Is(err, MethodUnknown) || !strings.Contains(err.Error(), Version) {
		t.Error(err)
	}
}

func TestARequestAboveTheServersLimitIsTooLarge(t *testing.T) {
	large := &rerankv1.RerankRequest{Query: strings.Repeat("a", requestBytes+1)}
	_, err := client(t, plain.at(t), WithToken(testToken)).Rerank(background, large)
	if !errors.Is(err, MessageTooLarge) || failure(t, err).RetryAfter != 0 {
		t.Error(err)
	}
}

func TestARepliesLimitIsSixteenMebibytes(t *testing.T) {
	server := &scripted{}
	server.answer = func(_ context.Context, call int) (*rerankv1.RerankResponse, error) {
		return &rerankv1.RerankResponse{ModelRevision: strings.Repeat("a", call*15*mebibyte)}, nil
	}
	client := client(t, server.serve(t))
	if _, err := client.Rerank(background, question); err != nil {
		t.Error(err)
	}
	if _, err := client.Rerank(background, question); !errors.Is(err, MessageTooLarge) {
		t.Error(err)
	}
}

func TestARefusalThatIsNotAboutAMessagesSizeIsNoMessageTooLarge(t *testing.T) {
	for text, reason := range map[string]Reason{
		"SERVER: Received message larger than max (9000000 vs. 8388608)": MessageTooLarge, // grpcio
		"grpc: received message larger than max (9000000 vs. 8388608)":   MessageTooLarge, // grpc-go
		"trying to send message larger than max (9000000 vs. 8388608)":   MessageTooLarge,
		"grpc: message too large (9000000 bytes)":                        MessageTooLarge,
		"gRPC message exceeds maximum size 8388608: 9000000":             MessageTooLarge, // grpc-java
		"message size 9000000 is larger than configured maximum":         MessageTooLarge, // Connect
		"quota of the tenant exceeded":                                   UnexpectedStatus,
		"too many requests: the queue exceeds its maximum":               UnexpectedStatus,
		"": UnexpectedStatus,
	} {
		server := full(9, status.Error(codes.ResourceExhausted, text), "")
		_, err := client(t, server.serve(t)).Rerank(background, question)
		if !errors.Is(err, reason) || !strings.Contains(err.Error(), text) || server.count() != 1 {
			t.Errorf("%q: %v after %d attempts", text, err, server.count())
		}
	}
}

func TestTheVersionIsThatOfThePackageBesideIt(t *testing.T) {
	here, err := filepath.EvalSymlinks(".")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile(filepath.Join(here, "..", "..", "rerank_grpc", "__init__.py"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(source), `__version__ = "`+Version+`"`) {
		t.Errorf("%s is not in rerank_grpc/__init__.py", Version)
	}
}
