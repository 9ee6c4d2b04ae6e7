"""Talks to a monitor with QEMU's own client library (qemu.qmp), as it is.

    qmp_client.py SOCKET

Works on any monitor that has a device `disk0`; what it expects comes from the QMP specification
(docs/interop/qmp-spec) and QEMU's schema. Ends with `quit`. Prints one line a check; the exit
status is not 0 as soon as one fails.
"""

import asyncio
import sys

from qemu.qmp import EventListener, ExecuteError, QMPClient


def check(what, holds):
    """Ends the program where something does not hold."""
    if not holds:
        sys.exit(f"FAILED: {what}")
    print(f"ok: {what}")


async def refused(qmp, command, arguments, error_class, part):
    """The command is refused with this class and a sentence that has this part."""
    try:
        await qmp.execute(command, arguments)
    except ExecuteError as error:
        check(f"{command} {arguments} is refused as {error_class}: {error}",
              error.received['error']['class'] == error_class and part in error.received['error']['desc'])
        return
    check(f"{command} {arguments} is refused", False)


async def talk(path):
    """One client's round of questions."""
    qmp = QMPClient("first")
    await qmp.connect(path)
    check("the greeting offers oob", "oob" in qmp.greeting.QMP.capabilities)

    version = await qmp.execute("query-version")
    check("query-version has the form of QEMU's", set(version) == {"qemu", "package"}
          and set(version["qemu"]) == {"major", "minor", "micro"})
    commands = {command["name"] for command in await qmp.execute("query-commands")}
    check("the commands are listed", {"device-create", "snapshot-merge", "quit"} <= commands)

    schema = {info["name"]: info for info in await qmp.execute("query-qmp-schema")}
    described = {name for name, info in schema.items() if info["meta-type"] == "command"}
    check("the schema describes exactly the commands that are listed", described == commands)
    check("the schema describes the events",
          schema["JOB_STATUS_CHANGE"]["meta-type"] == "event")

    await refused(qmp, "nope", {}, "CommandNotFound", "nope")
    await refused(qmp, "query-jobs", {"x": 1}, "GenericError", "'x' is unexpected")
    await refused(qmp, "job-pause", {}, "GenericError", "'id' is missing")
    await refused(qmp, "job-pause", {"id": "none"}, "GenericError", "Job not found")
    await refused(qmp, "device-resume", {"name": "none"}, "DeviceNotFound", "none")
    await refused(qmp, "qmp_capabilities", {}, "CommandNotFound", "already complete")

    # Ids of any type come back; execute() makes its own, so the message is made by hand.
    for ident in ["text", 7, {"a": [None, 1.5]}, None]:
        message = QMPClient.make_execute_msg("query-jobs")
        reply = await raw(qmp, message, ident)
        check(f"id {ident!r} comes back", reply["id"] == ident and reply["return"] == [])

    # Out of band.
    check("a command out of band", await qmp.execute("query-jobs", oob=True) == [])
    try:
        await qmp.execute("quit", oob=True)
        check("quit is not for out of band", False)
    except ExecuteError as error:
        check("quit is not for out of band", "does not support OOB" in error.received['error']['desc'])

    await clients_and_events(qmp, path)
    with qmp.listener("SHUTDOWN") as listener:
        check("quit", await qmp.execute("quit") == {})
        check("SHUTDOWN is announced", (await listener.get())["data"]["guest"] is False)
    try:
        await qmp.disconnect()
    except EOFError:
        pass  # the server hung up first, as it should


async def raw(qmp, message, ident):
    """Sends a message with an id of its own and returns the whole reply."""
    message["id"] = ident
    replies = asyncio.Queue(maxsize=1)
    # pylint: disable=protected-access
    original = qmp._on_message

    async def catch(reply):
        if "event" not in reply:
            await replies.put(reply)
        else:
            await original(reply)

    qmp._on_message = catch
    try:
        await qmp._outgoing.put(message)
        return await asyncio.wait_for(replies.get(), 30)
    finally:
        qmp._on_message = original


async def clients_and_events(qmp, path):
    """A second client waits in a command; the first goes on, and both hear of it."""
    second = QMPClient("second")
    await second.connect(path)
    await second.execute("query-jobs")
    with qmp.listener(("DEVICE_SUSPENDED", "DEVICE_RESUMED")) as listener, \
            second.listener(("DEVICE_SUSPENDED", "DEVICE_RESUMED")) as other:
        suspend = asyncio.create_task(second.execute("device-suspend", {"name": "disk0"}))
        event = await asyncio.wait_for(listener.get(), 30)
        check("DEVICE_SUSPENDED with its data and time",
              event["event"] == "DEVICE_SUSPENDED" and event["data"] == {"device": "disk0"}
              and set(event["timestamp"]) == {"seconds", "microseconds"})
        check("the device is seen suspended",
              (await qmp.execute("query-devices"))[0]["state"] == "suspended")
        check("the waiting client is answered out of band",
              await asyncio.wait_for(second.execute("query-jobs", oob=True), 30) == [])
        await qmp.execute("device-resume", {"name": "disk0"})
        check("the suspend is answered", await asyncio.wait_for(suspend, 30) == {})
        names = [(await asyncio.wait_for(other.get(), 30))["event"] for _ in range(2)]
        check("the other client heard the same", names == ["DEVICE_SUSPENDED", "DEVICE_RESUMED"])
    await second.disconnect()


asyncio.run(talk(sys.argv[1]))
