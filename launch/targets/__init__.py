"""Where thinkfirst-pod launches: one module per kind of place, each of which turns a job into steps of shell."""
