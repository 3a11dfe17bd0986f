"""HTTP/2 and gRPC without I/O: bytes and a clock in, bytes and events out."""
