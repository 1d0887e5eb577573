#!/usr/bin/env python3
"""A foreign AMQP client, pika, at the other side of an exchange.

    amqp.py publish --port P --exchange E --key K --body TEXT [--properties JSON]
    amqp.py consume --port P --queue Q --count N [--reject]

`publish` sends one message, with publisher confirms and mandatory, so that a broker that has no queue for it is an error.
Properties have the names of pika; `headers` is an object, and may have objects and lists in it. Prints `published`.

`consume` takes N messages, prints `message JSON` for each, and acknowledges it, or rejects it for good (--reject):

    {"exchange": …, "routing_key": …, "redelivered": …, "properties": {…}, "body": TEXT}

Properties that are not set are left out; bytes are shown as texts of Latin-1.
"""

import argparse
import json

import pika


def channel(port):
    parameters = pika.ConnectionParameters("127.0.0.1", port, connection_attempts=5, retry_delay=1)
    connection = pika.BlockingConnection(parameters)
    return connection, connection.channel()


def publish(args):
    connection, sender = channel(args.port)
    sender.confirm_delivery()
    properties = pika.BasicProperties(**json.loads(args.properties))
    sender.basic_publish(args.exchange, args.key, args.body.encode(), properties, mandatory=True)
    print("published", flush=True)
    connection.close()


def shown(value):
    if isinstance(value, (bytes, bytearray)):
        return value.decode("latin-1")
    if isinstance(value, dict):
        return {name: shown(of) for name, of in value.items()}
    if isinstance(value, list):
        return [shown(of) for of in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


NAMES = [
    "content_type", "content_encoding", "headers", "delivery_mode", "priority", "correlation_id", "reply_to",
    "expiration", "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id",
]


def consume(args):
    connection, receiver = channel(args.port)
    left = args.count
    for method, properties, body in receiver.consume(args.queue):
        found = {name: shown(getattr(properties, name)) for name in NAMES}
        message = {
            "exchange": method.exchange,
            "routing_key": method.routing_key,
            "redelivered": method.redelivered,
            "properties": {name: value for name, value in found.items() if value is not None},
            "body": shown(body),
        }
        if args.reject:
            receiver.basic_reject(method.delivery_tag, requeue=False)
        else:
            receiver.basic_ack(method.delivery_tag)
        print("message", json.dumps(message), flush=True)
        left -= 1
        if left == 0:
            break
    receiver.cancel()
    connection.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    sending = commands.add_parser("publish")
    sending.add_argument("--exchange", default="")
    sending.add_argument("--key", default="")
    sending.add_argument("--body", default="")
    sending.add_argument("--properties", default="{}")
    sending.set_defaults(run=publish)
    taking = commands.add_parser("consume")
    taking.add_argument("--queue", required=True)
    taking.add_argument("--count", type=int, required=True)
    taking.add_argument("--reject", action="store_true")
    taking.set_defaults(run=consume)
    for command in (sending, taking):
        command.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
