"""Config on Kubernetes: the API server is the store, and config follows it into MODEL."""
