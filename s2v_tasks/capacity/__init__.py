"""The capacity of an installation: measured overhead of a job outside the GPU, and a simulation of the job queue."""
