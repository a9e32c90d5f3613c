"""The S2V diffusion transformer and its parts; module names spell the official state-dict keys."""
