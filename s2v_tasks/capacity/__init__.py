"""The capacity of an installation: what a job costs beside the GPU, measured, and the queue of many jobs, simulated."""
