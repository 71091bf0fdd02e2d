"""The only importer of nats: streams, writer, follower, leases, request/reply, in-memory fake."""
