"""Pure builders of the Kubernetes objects that the operator makes. Golden files hold them still."""
