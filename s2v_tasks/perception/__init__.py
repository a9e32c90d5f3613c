"""Measure a talking video: face, mouth, lip sync, seams, colour and sharpness drift. Pure functions on the CPU, no torch."""
