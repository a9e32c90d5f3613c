"""Turn files into jobs: dropped folders and batch manifests."""
