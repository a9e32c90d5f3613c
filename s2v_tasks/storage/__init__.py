"""Objects in S3: where everything of a job lies, how it gets there, and when it may be reused."""
