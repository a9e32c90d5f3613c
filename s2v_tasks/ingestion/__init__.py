"""How requests come in as files: the drop folder and batch manifests."""
