"""Which call of the broker each message of the protocol stands for."""

from collections.abc import Callable
from typing import Any

from vibemq.declaration import Misfire, ScheduleSpec
from vibemq.errors import InvalidRequest
from vibemq.protocol import messages as m
from vibemq.protocol.fields import check_name
from vibemq.server.broker import Broker, Subscribing
from vibemq.server.dead_letters import REASONS, Filter, Redriving


def _subscribe(broker: Broker, connection: int, ask: m.Subscribe) -> None:
    broker.subscribe(
        Subscribing(
            connection,
            ask.request,
            ask.queue,
            ask.group,
            ask.messages,
            ask.bytes,
            ask.start,
            ask.at,
            ask.exclusive,
        )
    )


def _unsubscribe(broker: Broker, connection: int, ask: m.Unsubscribe) -> None:
    broker.unsubscribe(connection, ask.request, ask.subscription)


def _seek(broker: Broker, connection: int, ask: m.Seek) -> None:
    broker.groups.seek(connection, ask.request, broker.queues.require(ask.queue), ask.group, ask.start, ask.at)


def _delete_group(broker: Broker, connection: int, ask: m.DeleteGroup) -> None:
    broker.delete_group(connection, ask.request, ask.queue, ask.group)


def _credit(broker: Broker, connection: int, grant: m.Credit) -> None:
    broker.deliveries.credit(connection, grant.subscription, grant.messages, grant.bytes, grant.handed, grant.wait_ms)


def _ack(broker: Broker, connection: int, ack: m.Ack) -> None:
    broker.deliveries.ack(connection, ack.subscription, ack.deliveries, ack.request)


def _nack(broker: Broker, connection: int, nack: m.Nack) -> None:
    broker.deliveries.nack(
        connection,
        nack.subscription,
        nack.deliveries,
        nack.request,
        delay_ms=nack.delay_ms,
        reason=nack.reason,
        reject=nack.reject,
    )


def _extend(broker: Broker, connection: int, ask: m.Extend) -> None:
    broker.deliveries.extend(connection, ask.subscription, ask.deliveries, ask.lease_ms, ask.request)


def _begin(broker: Broker, connection: int, ask: m.Begin) -> None:
    broker.transactions.begin(connection, ask.request, ask.timeout_ms)


def _rollback(broker: Broker, connection: int, ask: m.Rollback) -> None:
    broker.transactions.rollback(connection, ask.request, ask.epoch)


def _declare(broker: Broker, connection: int, ask: m.Declare) -> None:
    _check_target(ask)
    broker.queues.declare(connection, ask.request, ask.queue, ask.settings, ask.on_difference)


def _change(broker: Broker, connection: int, ask: m.Change) -> None:
    _check_target(ask)
    broker.queues.change(connection, ask.request, ask.queue, ask.settings)


def _check_target(ask: m.Declare | m.Change) -> None:
    target = ask.settings.get("dead_letter_queue")
    if isinstance(target, str) and target:
        check_name(target, "dead-letter queue")


def _rename(broker: Broker, connection: int, ask: m.Rename) -> None:
    broker.queues.rename(connection, ask.request, ask.queue, ask.name)


def _bind(broker: Broker, connection: int, ask: m.Bind) -> None:
    broker.queues.bind(connection, ask.request, ask.queue, ask.pattern)


def _unbind(broker: Broker, connection: int, ask: m.Unbind) -> None:
    broker.queues.unbind(connection, ask.request, ask.queue, ask.pattern)


def _list_bindings(broker: Broker, connection: int, ask: m.ListBindings) -> None:
    broker.queues.list_bindings(connection, ask.request, ask.queue)


def _list_queues(broker: Broker, connection: int, ask: m.ListQueues) -> None:
    broker.queues.list_all(connection, ask.request)


def _list_deleted(broker: Broker, connection: int, ask: m.ListDeleted) -> None:
    broker.queues.list_deleted(connection, ask.request)


def _show_queue(broker: Broker, connection: int, ask: m.ShowQueue) -> None:
    broker.queues.show(connection, ask.request, ask.queue)


def _purge(broker: Broker, connection: int, ask: m.Purge) -> None:
    broker.queues.purge(connection, ask.request, ask.queue)


def _delete(broker: Broker, connection: int, ask: m.Delete) -> None:
    broker.delete(connection, ask.request, ask.queue, ask.grace_ms)


def _undelete(broker: Broker, connection: int, ask: m.Undelete) -> None:
    broker.undelete(connection, ask.request, ask.queue, ask.name)


def _peek(broker: Broker, connection: int, ask: m.Peek) -> None:
    broker.peek(connection, ask.request, ask.queue, ask.group, ask.start, ask.count, ask.priority)


def _dead_letters(broker: Broker, connection: int, ask: m.DeadLetters) -> None:
    broker.dead_letters.peek(connection, ask.request, ask.queue, ask.start, ask.count, _filter(ask))


def _redrive(broker: Broker, connection: int, ask: m.Redrive) -> None:
    redriving = Redriving(connection, ask.request, ask.queue, ask.target, ask.start, ask.end, ask.count, _filter(ask))
    broker.dead_letters.redrive(redriving, dry_run=ask.dry_run)


def _filter(ask: m.DeadLetters | m.Redrive) -> Filter:
    if ask.reason and ask.reason not in REASONS:
        raise InvalidRequest(f"dead letters have one of the reasons {', '.join(REASONS)}, not {ask.reason!r}")
    return Filter(ask.reason, ask.source, ask.error, ask.since_us, ask.until_us)


def _set_schedule(broker: Broker, connection: int, ask: m.SetSchedule) -> None:
    spec = ScheduleSpec(
        queue=ask.queue,
        to_topic=ask.to_topic,
        body=ask.body,
        headers=ask.headers,
        priority=ask.priority,
        ttl_ms=ask.ttl_ms,
        cron=ask.cron,
        zone=ask.zone,
        every_ms=ask.every_ms,
        start_us=ask.start_us,
        end_us=ask.end_us,
        times=ask.times,
        misfire=Misfire(ask.misfire),
    )
    broker.schedules.set(connection, ask.request, ask.name, spec)


def _list_schedules(broker: Broker, connection: int, ask: m.ListSchedules) -> None:
    broker.schedules.list_all(connection, ask.request, ask.name)


def _pause_schedule(broker: Broker, connection: int, ask: m.PauseSchedule) -> None:
    broker.schedules.pause(connection, ask.request, ask.name, paused=ask.paused)


def _delete_schedule(broker: Broker, connection: int, ask: m.DeleteSchedule) -> None:
    broker.schedules.delete(connection, ask.request, ask.name)


def _list_delayed(broker: Broker, connection: int, ask: m.ListDelayed) -> None:
    broker.list_delayed(connection, ask.request, ask.queue, ask.after, ask.count)


def _show_delayed(broker: Broker, connection: int, ask: m.ShowDelayed) -> None:
    broker.show_delayed(connection, ask.request, ask.queue, ask.id)


def _cancel_delayed(broker: Broker, connection: int, ask: m.CancelDelayed) -> None:
    broker.delayed.cancel(connection, ask.request, broker.queues.require(ask.queue), ask.ids)


def _reschedule(broker: Broker, connection: int, ask: m.Reschedule) -> None:
    queue = broker.queues.require(ask.queue)
    broker.delayed.reschedule(connection, ask.request, queue, ask.ids, ask.delay_ms, ask.due_us)


def _flush(broker: Broker, connection: int, ask: m.Flush) -> None:
    broker.flush(connection, ask.request)


def _digest(broker: Broker, connection: int, ask: m.Digest) -> None:
    broker.digest(connection, ask.request)


COMMANDS: dict[type, Callable[[Broker, int, Any], None]] = {
    m.Subscribe: _subscribe,
    m.Unsubscribe: _unsubscribe,
    m.Seek: _seek,
    m.DeleteGroup: _delete_group,
    m.Credit: _credit,
    m.Ack: _ack,
    m.Nack: _nack,
    m.Extend: _extend,
    m.Begin: _begin,
    m.Rollback: _rollback,
    m.Declare: _declare,
    m.Change: _change,
    m.Rename: _rename,
    m.Bind: _bind,
    m.Unbind: _unbind,
    m.ListBindings: _list_bindings,
    m.ListQueues: _list_queues,
    m.ListDeleted: _list_deleted,
    m.ShowQueue: _show_queue,
    m.Purge: _purge,
    m.Delete: _delete,
    m.Undelete: _undelete,
    m.Peek: _peek,
    m.DeadLetters: _dead_letters,
    m.Redrive: _redrive,
    m.SetSchedule: _set_schedule,
    m.ListSchedules: _list_schedules,
    m.PauseSchedule: _pause_schedule,
    m.DeleteSchedule: _delete_schedule,
    m.ListDelayed: _list_delayed,
    m.ShowDelayed: _show_delayed,
    m.CancelDelayed: _cancel_delayed,
    m.Reschedule: _reschedule,
    m.Flush: _flush,
    m.Digest: _digest,
}
"""Publish, Commit and what concerns the connection itself are the connection's own affair."""
