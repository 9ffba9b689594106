"""The tests, in folders that mirror vibemq/."""
