// A gateway from HTTP to the server at the address given, with nothing but what grpc-gateway generates.
//
// It prints the address that it listens on, and ends when its standard input does.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/grpc-ecosystem/grpc-gateway/runtime"
	rerank "github.com/rerank-grpc/rerank-grpc/clients/go/rerank/v1"
	_ "google.golang.org/genproto/googleapis/rpc/errdetails" // without it details are not written as JSON
	"google.golang.org/grpc"
)

func main() {
	options := []grpc.DialOption{grpc.WithInsecure()}
	json := &runtime.JSONPb{EmitDefaults: true} // as the second version writes it: camelCase, with zeros
	mux := runtime.NewServeMux(runtime.WithMarshalerOption(runtime.MIMEWildcard, json))
	if err := rerank.RegisterRerankServiceHandlerFromEndpoint(context.Background(), mux, os.Args[1], options); err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr())
	go func() { log.Fatal(http.Serve(listener, mux)) }()
	io.Copy(io.Discard, os.Stdin)
}
