"""What every service is made of: settings, lifecycle, admin port, logs, metrics, identity."""
