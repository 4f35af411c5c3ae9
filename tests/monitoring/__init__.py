"""A real Prometheus that reads a real operator, and pictures of the chart's dashboards from its answers."""
