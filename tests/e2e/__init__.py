"""A whole local Kubernetes with nodes: images and chart as built, pods that run."""
