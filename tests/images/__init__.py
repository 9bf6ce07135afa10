"""Tests that build an image or a package in a Debian made by mmdebstrap: `make image`, `make deb-test`."""
