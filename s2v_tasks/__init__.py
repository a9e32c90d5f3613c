"""Talking videos with Wan2.2-S2V-14B: planned, clip by clip, durable, from S3 to S3."""

__version__ = "0.1.0"
