"""Several ranks render one clip: parallelism applied to a transformer from outside; its files know nothing of it."""
