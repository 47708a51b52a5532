"""What the Celery tasks call: settings, policy, LMS client, ledger, steps."""
