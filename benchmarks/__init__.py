"""What `make bench-serving` and `make bench-load` measure, and with what."""
