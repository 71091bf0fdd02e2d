"""The mesh on one machine: supervises nats-server, services, workloads and sidecars."""
