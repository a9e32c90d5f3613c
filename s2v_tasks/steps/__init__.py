"""The steps of the pipeline, one file each: read artifacts, work, write artifacts with the manifest last."""
