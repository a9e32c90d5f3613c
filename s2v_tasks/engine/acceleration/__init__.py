"""Options that make rendering faster or smaller, applied to a transformer from outside."""
