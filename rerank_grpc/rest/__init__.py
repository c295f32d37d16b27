"""REST: JSON rerank dialects in front of the gRPC service.

A call's path, in this order:

    server.py      uvicorn in a thread, on a port bound at once
    protocol.py    how many connections, and how long a caller may take
    app.py         the routes, and the path of a rerank call
    exchange.py    ids, access token, deadline, the caller's disconnect
    body.py        the body, within its limit
    dispatch.py    the dialect: one table
    dialects/      decode and encode, one file each
    upstream.py    the gRPC calls, over one server or several
    errors.py      errors to HTTP: one table
    discovery.py   models and health
    docs.py        Swagger UI and openapi.json

REST knows the service only through rerank_grpc.client, so it runs in the
server's process or on another machine.
"""
