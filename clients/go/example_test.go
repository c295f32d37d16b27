package rerank_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"testing"
	"time"

	rerank "github.com/rerank-grpc/rerank-grpc/clients/go"
	rerankv1 "github.com/rerank-grpc/rerank-grpc/clients/go/rerank/v1"
)

var (
	ctx       = context.Background()
	documents = rerank.Documents(
		"Our office is closed on public holidays.",
		"Open Settings and click Forgot password.",
	)
)

func Example() {
	client, err := rerank.New("localhost:50051", rerank.WithToken(os.Getenv("RERANK_TOKEN")))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	reply, err := client.Rerank(ctx, &rerankv1.RerankRequest{
		Query: "How do I reset my password?",
		Documents: rerank.Documents(
			"Our office is closed on public holidays.",
			"Open Settings and click Forgot password.",
		),
		TopN: 1,
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, result := range reply.Results {
		fmt.Printf("%.3f  document %d\n", result.RelevanceScore, result.Index)
	}
}

func ExampleClient_StreamRerank() {
	client, err := rerank.New("localhost:50051")
	if err != nil {
		log.Fatal(err)
	}
	stream, err := client.StreamRerank(ctx, &rerankv1.StreamRerankRequest{
		Query: "How do I reset my password?", Documents: documents,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer stream.Close()
	for {
		result, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			log.Fatal(err) // some results are missing
		}
		fmt.Println(result.Index, result.RelevanceScore)
	}
	fmt.Println(stream.Summary().Model)
}

func ExampleError() {
	client, err := rerank.New("localhost:50051")
	if err != nil {
		log.Fatal(err)
	}
	_, err = client.Rerank(ctx, &rerankv1.RerankRequest{Query: "How do I reset my password?"})
	if errors.Is(err, rerank.QueueFull) || errors.Is(err, rerank.RateLimited) {
		fmt.Println("come back later")
	}
	var failure *rerank.Error
	if errors.As(err, &failure) {
		fmt.Println(failure.Reason, failure.Code, failure.RetryAfter, failure.Metadata)
		for _, violation := range failure.Fields {
			fmt.Println(violation.Field, violation.Description)
		}
	}
}

func ExampleWithCAFile() {
	client, err := rerank.New("rerank.internal:50051",
		rerank.WithCAFile("ca.pem"),
		rerank.WithCertificateFiles("caller.pem", "caller.key"),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
}

func ExampleWithTLSConfig() {
	client, err := rerank.New("rerank.internal:50051",
		rerank.WithTLSConfig(&tls.Config{MinVersion: tls.VersionTLS13}),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
}

func ExampleNew_severalAddresses() {
	client, err := rerank.New("rerank-1:50051,rerank-2:50051")
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
}

func ExampleClient_Connection() {
	client, err := rerank.New("localhost:50052")
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	models := rerankv1.NewModelAdminServiceClient(client.Connection())
	if _, err := models.LoadModel(ctx, &rerankv1.LoadModelRequest{Model: "embedded"}); err != nil {
		log.Fatal(err)
	}
}

func TestEachBlockOfTheReadmeIsPartOfAnExample(t *testing.T) {
	page, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	examples := strings.ReplaceAll("\n"+string(source), "\n\t", "\n")
	blocks := strings.Split(string(page), "```go\n")[1:]
	if len(blocks) < 5 {
		t.Errorf("%d blocks", len(blocks))
	}
	for _, rest := range blocks {
		block, _, _ := strings.Cut(rest, "```")
		if !strings.Contains(examples, "\n"+block) {
			t.Errorf("in no example:\n%s", block)
		}
	}
}
