"""Webhook messages: allowed receivers, delivery and signature. Their fields and events: `schemas.events`."""
