"""The mesh config: mesh.istio.io/v1alpha1."""
