"""The outbox: messages that are published exactly once from a program's own SQL transaction.

    outbox = SqliteOutbox("shop.db")                  # or PostgresOutbox("postgresql://...")
    outbox.create()                                   # once: two tables

    with sqlite3.connect("shop.db") as connection:    # the program's own transaction
        connection.execute("INSERT INTO orders ...")
        outbox.add(connection, "orders", b"...")      # a row: it is there when the order is, and not otherwise

    await outbox.relay("vibemq://127.0.0.1:2925").run()   # a task, a thread or a process of its own

How it works, and what it promises, is told in docs/transactions.md.
"""

from vibemq.outbox.postgres import PostgresOutbox
from vibemq.outbox.relay import Relay
from vibemq.outbox.sqlite import SqliteOutbox
from vibemq.outbox.tables import Outbox, ParkedRow, Status

__all__ = ["Outbox", "ParkedRow", "PostgresOutbox", "Relay", "SqliteOutbox", "Status"]
