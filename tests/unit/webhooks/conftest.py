"""A running receiver of webhooks."""

from tests.webhook_receiver import receiver as receiver
