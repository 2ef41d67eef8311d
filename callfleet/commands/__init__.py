"""The verbs of the `callfleet` command, one module a noun."""
