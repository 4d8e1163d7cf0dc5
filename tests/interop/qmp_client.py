"""Drives a move with QEMU's own client (qemu.qmp): start, capabilities, parameters, descriptors, migrate, events, query-migrate,
cancel, and a second move over a socket that is passed. It knows nothing of who answers: whimbrel and real QEMU get the same.

usage: qmp_client.py SOURCE-SOCKET DESTINATION-SOCKET
Prints one JSON object: every reply by the name of its step, and both ends' events in order. Units are checked here, against this
script's own clock and the guest's size: they must hold for every answerer.
"""

import asyncio
import json
import os
import socket
import sys
import time

from qemu.qmp import ExecuteError, QMPClient

LIMIT = 30
replies = {}


class Peer:
    def __init__(self, name):
        self.name = name
        self.client = QMPClient(name)
        self.events = []
        self.statuses = []
        self.news = asyncio.Event()

    async def connect(self, path):
        await self.client.connect(path)
        self.listening = asyncio.create_task(self.listen(self.client.events))
        replies[f"{self.name} greeting"] = self.client.greeting._asdict()

    async def listen(self, listener):
        async for event in listener:
            assert isinstance(event["timestamp"]["seconds"], int)
            assert abs(event["timestamp"]["seconds"] - time.time()) < 60
            assert 0 <= event["timestamp"]["microseconds"] < 1_000_000
            self.events.append({"event": event["event"], "data": event.get("data")})
            if event["event"] == "MIGRATION":
                self.statuses.append(event["data"]["status"])
            self.news.set()

    async def ask(self, step, command, arguments=None, fd=None):
        if fd is not None:
            self.client.send_fd_scm(fd)
        try:
            reply = await self.client.execute(command, arguments)
        except ExecuteError as error:
            reply = {"error": {"class": error.error_class, "desc": str(error)}}
        if step:
            replies[f"{self.name} {step}"] = reply
        return reply

    async def status(self, wanted):
        async def wait():
            while wanted not in self.statuses:
                assert "failed" not in self.statuses, self.statuses
                self.news.clear()
                await self.news.wait()

        await asyncio.wait_for(wait(), LIMIT)


async def swallowing_server():
    """A destination that takes everything and says nothing; its port. (10.0 does not cancel an `exec:` before it ends.)"""

    async def swallow(reader, _writer):
        while await reader.read(1 << 16):
            pass

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    return server.sockets[0].getsockname()[1]


def check_units(info, begin):
    elapsed = (time.monotonic() - begin) * 1000
    ram = info["ram"]
    assert 0 <= info["setup-time"] <= info["total-time"] <= elapsed + 50, (info, elapsed)
    assert ram["page-size"] == 4096, ram
    assert 64 << 20 <= ram["total"] < 256 << 20, ram
    assert ram["normal-bytes"] == ram["normal"] * 4096, ram
    assert ram["remaining"] <= ram["total"] and ram["transferred"] > 0, ram
    # No faster than memory: a rate in bits or in kilobits would be.
    assert ram["mbps"] < 200_000, ram


async def main():
    source, destination = Peer("source"), Peer("destination")
    await source.connect(sys.argv[1])
    await destination.connect(sys.argv[2])
    for query in ("version", "status", "name", "uuid", "cpus-fast", "migrate", "fdsets", "migrationthreads"):
        await source.ask(f"query-{query}", f"query-{query}")
    await destination.ask("query-status", "query-status")
    await destination.ask("query-migrate", "query-migrate")

    names = ("events", "return-path")
    on = {"capabilities": [{"capability": name, "state": True} for name in names]}
    for peer in (source, destination):
        await peer.ask("set capabilities", "migrate-set-capabilities", on)
        shown = await peer.ask(None, "query-migrate-capabilities")
        assert {item["capability"] for item in shown if item["state"]} == set(names), shown
    parameters = {"downtime-limit": 500, "max-bandwidth": 1 << 20}
    await source.ask("set parameters", "migrate-set-parameters", parameters)
    shown = await source.ask(None, "query-migrate-parameters")
    assert all(shown[name] == value for name, value in parameters.items()), shown

    null = os.open("/dev/null", os.O_RDWR)
    await source.ask("getfd", "getfd", {"fdname": "null"}, null)
    await source.ask("closefd", "closefd", {"fdname": "null"})
    await source.ask("closefd again", "closefd", {"fdname": "null"})
    await source.ask("add-fd", "add-fd", {"opaque": "rdwr:/dev/null"}, null)
    await source.ask("query-fdsets with one", "query-fdsets")
    await source.ask("remove-fd", "remove-fd", {"fdset-id": 0})

    # A move that is cancelled.
    begin = time.monotonic()
    await source.ask("migrate", "migrate", {"uri": f"tcp:127.0.0.1:{await swallowing_server()}"})
    await source.status("active")
    await asyncio.sleep(0.5)
    info = await source.ask("query-migrate, active", "query-migrate")
    check_units(info, begin)
    assert info["expected-downtime"] >= 0, info
    await source.ask("query-migrationthreads, active", "query-migrationthreads")
    await source.ask("migrate again", "migrate", {"uri": "tcp:127.0.0.1:1"})
    await source.ask("set capabilities again", "migrate-set-capabilities", on)
    await source.ask("migrate_cancel", "migrate_cancel")
    await source.status("cancelled")
    info = await source.ask("query-migrate, cancelled", "query-migrate")
    # 10.0 may tell how its own end of the connection looked to it.
    info.pop("error-desc", None)
    await source.ask("query-status, cancelled", "query-status")
    events = [event for event in source.events if event["event"] != "MIGRATION_PASS"]
    replies["source events, cancelled"] = [named(event) for event in events]

    # A move over a socket that is passed to both.
    source.events.clear(), source.statuses.clear(), destination.events.clear(), destination.statuses.clear()
    here, there = socket.socketpair()
    await source.ask("getfd for a move", "getfd", {"fdname": "mig"}, here.fileno())
    await destination.ask("getfd for a move", "getfd", {"fdname": "mig"}, there.fileno())
    here.close(), there.close()
    await source.ask(None, "migrate-set-parameters", {"max-bandwidth": 0})
    await destination.ask("migrate-incoming", "migrate-incoming", {"uri": "fd:mig"})
    begin = time.monotonic()
    await source.ask("migrate over a descriptor", "migrate", {"uri": "fd:mig"})
    await source.status("completed")
    await destination.status("completed")
    info = await source.ask("query-migrate, completed", "query-migrate")
    check_units(info, begin)
    assert info["ram"]["remaining"] == 0 and 0 <= info["downtime"] <= info["total-time"], info
    for peer in (source, destination):
        await peer.ask("query-status, completed", "query-status")
        events = [named(event) for event in peer.events if event["event"] != "MIGRATION_PASS"]
        # Whether it runs first and is then told completed, or the other way round, is a race of its threads.
        replies[f"{peer.name} events, completed"] = sorted(events) if peer is destination else events
    await destination.ask("query-migrate, completed", "query-migrate")
    await source.ask("migrate after the move", "migrate", {"uri": "tcp:127.0.0.1:1"})
    for peer in (source, destination):
        await peer.client.disconnect()
    print(json.dumps(replies))


def named(event):
    return event["event"] if event["data"] is None else f'{event["event"]} {event["data"].get("status", "")}'.strip()


asyncio.run(main())
