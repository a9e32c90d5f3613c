"""Shared by every step: context, produce-or-reuse, attempts with heartbeats, cancellation, outages, requirements."""
