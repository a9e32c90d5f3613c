"""What is known about every job, in PostgreSQL: status, clips, artifacts, events."""
