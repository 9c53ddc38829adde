"""The embedded stack: secrets, Postgres, processes, health, and the command line."""
