"""Pictures, sound and video: everything that ffmpeg and Pillow do for a job."""
