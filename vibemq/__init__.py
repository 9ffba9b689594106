"""VibeMQ: a durable message broker in which the log is the truth."""
