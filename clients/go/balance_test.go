package rerank

import (
	"context"
	"net"
	"testing"

	"google.golang.org/grpc"

	rerankv1 "github.com/rerank-grpc/rerank-grpc/clients/go/rerank/v1"
)

func TestCallsAreSpreadOverAllAddresses(t *testing.T) {
	answer := func(context.Context, int) (*rerankv1.RerankResponse, error) {
		return &rerankv1.RerankResponse{}, nil
	}
	one, other := &scripted{answer: answer}, &scripted{answer: answer}
	client := client(t, one.serve(t)+", "+other.serve(t))
	// The second connection may come later than the first call.
	for call := 0; call < 10_000 && (one.count() == 0 || other.count() == 0); call++ {
		if _, err := client.Rerank(background, question); err != nil {
			t.Fatal(err)
		}
	}
	if one.count() == 0 || other.count() == 0 {
		t.Errorf("%d and %d calls", one.count(), other.count())
	}
}

func TestAnAddressWhereNobodyListensIsLeftOut(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	client := client(t, listener.Addr().String()+","+full(0, nil, "").serve(t))
	for call := 0; call < 20; call++ {
		if _, err := client.Rerank(background, question); err != nil {
			t.Fatal(err)
		}
	}
}

func TestACallWhoseServerDiesIsAnsweredByAnother(t *testing.T) {
	dead, alive := &scripted{}, full(0, nil, "")
	dead.answer = func(ctx context.Context, _ int) (*rerankv1.RerankResponse, error) {
		go dead.grpc.Stop()
		<-ctx.Done()
		return nil, ctx.Err()
	}
	client := client(t, dead.serve(t)+","+alive.serve(t))
	for call := 0; call < 10_000 && dead.count() == 0; call++ {
		if _, err := client.Rerank(background, question); err != nil {
			t.Fatal(err)
		}
	}
	if dead.count() != 1 || alive.count() == 0 {
		t.Errorf("%d and %d calls", dead.count(), alive.count())
	}
}

func TestAServerThatComesBackIsFoundAgainWithoutANewClient(t *testing.T) {
	first := full(0, nil, "")
	target := first.serve(t)
	client := client(t, target)
	if _, err := client.Rerank(background, question); err != nil {
		t.Fatal(err)
	}
	first.grpc.Stop()
	full(0, nil, "").serveAt(t, target)
	if _, err := client.Rerank(background, question, grpc.WaitForReady(true)); err != nil {
		t.Error(err)
	}
}
