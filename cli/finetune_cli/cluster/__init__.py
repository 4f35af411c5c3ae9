"""The way to the API server: the kubeconfig, credentials, and a light HTTP client."""
