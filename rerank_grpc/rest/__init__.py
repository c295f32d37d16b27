"""The REST shim: JSON rerank dialects in front of the gRPC service.

A call's story, in this order:

    server.py      uvicorn in a thread, on a port bound at once
    protocol.py    how long a caller may take
    connections.py the bound on connections, and which one is closed for a new one
    app.py         the routes, and the path of a rerank call
    exchange.py    request ids, traces, deadlines, the caller's disconnect
    auth.py        the caller's token
    body.py        the body, within its limit
    dispatch.py    which dialect: one table
    dialects/      decode and encode, one file each
    upstream.py    the gRPC calls, over one server or several
    target.py      one of those servers, and the connections to it
    errors.py      errors to HTTP: one table
    discovery.py   models, health, what a caller asks first
    docs.py        Swagger UI and openapi.json

It knows the service only through rerank_grpc.client, so that it runs in the
server's process or on another machine.
"""
