"""The embedded default: the services that a laptop or a fresh machine has not, installed by pip, run on loopback."""
