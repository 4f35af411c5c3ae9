"""Pictures of numbers: drawn on the server as SVG, or handed to the browser as data."""
