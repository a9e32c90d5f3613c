"""The metadata store in PostgreSQL: jobs, clips, attempts, artifacts, events, queue, costs."""
