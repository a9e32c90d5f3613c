"""Webhook messages: allowed receivers, delivery and signature."""
