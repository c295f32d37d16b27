module github.com/rerank-grpc/rerank-grpc/clients/go

go 1.19
