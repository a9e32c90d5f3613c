"""The road, one file per step. A step reads artifacts, works, writes artifacts with its manifest last."""
