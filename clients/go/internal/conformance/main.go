// Conformance sends the list of requests through this client; clients/conformance/contract/requests.py says what
// its lines mean and what is printed.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"sort"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	rerank "github.com/rerank-grpc/rerank-grpc/clients/go"
	rerankv1 "github.com/rerank-grpc/rerank-grpc/clients/go/rerank/v1"
)

// The longest line of the list.
const lineBytes = 16 << 20

// line is one of the list, its request not yet repeated.
type line struct {
	Name                string
	Method              string
	Request             json.RawMessage
	Repeat              repeat
	Caller              string
	TimeoutMS           int64 `json:"timeout_ms"`
	CancelAfterMS       int64 `json:"cancel_after_ms"`
	CancelAfterMessages int   `json:"cancel_after_messages"`
}

func main() {
	log.SetFlags(0)
	tokens := map[string]string{}
	must(json.Unmarshal([]byte(os.Getenv("CONFORMANCE_TOKENS")), &tokens))
	list, err := os.Open(os.Getenv("CONFORMANCE_REQUESTS"))
	must(err)
	defer list.Close()
	lines := bufio.NewScanner(list)
	lines.Buffer(nil, lineBytes)
	for lines.Scan() {
		line := line{Caller: "full", TimeoutMS: 30_000}
		must(json.Unmarshal(lines.Bytes(), &line))
		var options []rerank.Option
		if token := tokens[line.Caller]; token != "" {
			options = append(options, rerank.WithToken(token))
		}
		client, err := rerank.New(os.Getenv("CONFORMANCE_TARGET"), options...)
		must(err)
		outcome, err := line.ask(client)
		if err != nil {
			outcome = failed(err)
		}
		say(line.Name, outcome)
		must(client.Close())
	}
	must(lines.Err())
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// say prints a line whose name comes first, by which it is known as one.
func say(name string, outcome told) {
	first, err := json.Marshal(told{"name": name})
	must(err)
	rest, err := json.Marshal(outcome)
	must(err)
	fmt.Printf("%s,%s\n", first[:len(first)-1], rest[1:])
}

// ask makes the call of a line.
func (l *line) ask(client *rerank.Client) (told, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(l.TimeoutMS)*time.Millisecond)
	defer cancel()
	if l.CancelAfterMS > 0 {
		defer time.AfterFunc(time.Duration(l.CancelAfterMS)*time.Millisecond, cancel).Stop()
	}
	switch l.Method {
	case "ListModels":
		reply, err := client.ListModels(ctx, read(l, &rerankv1.ListModelsRequest{}))
		return listed(reply), err
	case "Health":
		reply, err := client.Health(ctx, read(l, &rerankv1.HealthRequest{}))
		return healthy(reply), err
	case "StreamRerank":
		request := read(l, &rerankv1.StreamRerankRequest{})
		l.Repeat.apply(&request.Query, &request.Documents)
		return l.stream(ctx, cancel, client, request)
	}
	request := read(l, &rerankv1.RerankRequest{})
	l.Repeat.apply(&request.Query, &request.Documents)
	reply, err := client.Rerank(ctx, request)
	return reranked(reply.GetResults(), reply), err
}

func read[Message proto.Message](l *line, message Message) Message {
	must(protojson.Unmarshal(l.Request, message))
	return message
}

// stream reads a stream to its end, or leaves it.
func (l *line) stream(
	ctx context.Context, cancel context.CancelFunc, client *rerank.Client, request *rerankv1.StreamRerankRequest,
) (told, error) {
	stream, err := client.StreamRerank(ctx, request)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var results []*rerankv1.RerankResult
	for {
		result, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if results = append(results, result); l.CancelAfterMessages > 0 {
			cancel() // and what is read next says so
		}
	}
	sort.SliceStable(results, func(i, j int) bool {
		if results[i].RelevanceScore != results[j].RelevanceScore {
			return results[i].RelevanceScore > results[j].RelevanceScore
		}
		return results[i].Index < results[j].Index
	})
	if most := int(request.TopN); most > 0 && most < len(results) {
		results = results[:most]
	}
	return reranked(results, stream.Summary()), nil
}
