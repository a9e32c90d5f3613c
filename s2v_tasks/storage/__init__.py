"""Objects in S3: the keys of a job, transfers, and the reuse of artifacts."""
