"""Watches for training libraries; each module can be imported where its library is installed."""
