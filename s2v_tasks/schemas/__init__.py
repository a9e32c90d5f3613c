"""The vocabulary of the system as types: request, plan, manifest, facts, report, job, steps, events."""
