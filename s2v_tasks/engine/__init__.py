"""The S2V model and its inference. Knows tensors; knows nothing of storage, schemas or Airflow."""
