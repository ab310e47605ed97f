"""The online journey: residency, engines, the server and its metrics."""
