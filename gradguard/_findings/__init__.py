"""What was found, and how it is told: text, JSON, GitHub annotations, SARIF."""
