"""Process pictures, audio and video with ffmpeg and Pillow."""
