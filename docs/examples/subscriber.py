"""A subscriber of the alerts topic: KAFKA=localhost:9092 python subscriber.py. See ../notifications.md."""

import json
import os

from confluent_kafka import Consumer

settings = {"bootstrap.servers": os.environ["KAFKA"], "group.id": "my-subscriber", "auto.offset.reset": "earliest"}
consumer = Consumer({**settings, "enable.auto.commit": False})
consumer.subscribe(["tailrace.alerts"])
while True:
    message = consumer.poll(1.0)
    if message is not None and message.error() is None:
        event = json.loads(message.value())
        print(event["id"], event["transition"], event["alert"] and event["alert"]["name"], flush=True)
        consumer.commit(message, asynchronous=False)  # after the work: at least once, and twice is known by the id
