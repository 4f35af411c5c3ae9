"""Pure builders of the Kubernetes objects that the operator creates. Golden files pin them."""
