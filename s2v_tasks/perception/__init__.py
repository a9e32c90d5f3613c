"""Measure a talking video on the CPU: face, mouth, lip sync, seams, drift of colour and sharpness."""
