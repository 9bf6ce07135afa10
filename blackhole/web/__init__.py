"""The dashboard: shows what the workers count, to browsers, to Prometheus and to scripts."""
