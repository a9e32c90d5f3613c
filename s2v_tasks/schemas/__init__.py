"""The vocabulary of the system: what a request, a plan, a manifest and a report are."""
