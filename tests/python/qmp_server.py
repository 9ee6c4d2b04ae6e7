"""Drives a real server through each of its commands with QEMU's client library (qemu.qmp).

    qmp_server.py SOCKET DIRECTORY

The server serves a plain disk `disk0`, an overlay `disk1`, and has a snapshot `kept` of disk0 that
holds so much that its merge, at 1 MiB a second, can be paused. Files are made in DIRECTORY. Forms
of answers and events are those of QEMU's schema (qapi/block-export.json, qapi/job.json).
"""

import asyncio
import sys

from qemu.qmp import ExecuteError, QMPClient


def check(what, holds):
    """Ends the program where something does not hold."""
    if not holds:
        sys.exit(f"FAILED: {what}")
    print(f"ok: {what}")


async def refused(qmp, error_class, command, **arguments):
    """The command is refused with this class."""
    try:
        await qmp.execute(command, arguments)
    except ExecuteError as error:
        check(f"{command} is refused: {error}", error.received['error']['class'] == error_class)
        return
    check(f"{command} {arguments} is refused", False)


async def schema(qmp):
    """Each name that the schema mentions is in it, and of the right kind."""
    infos = {info["name"]: info for info in await qmp.execute("query-qmp-schema")}
    kinds = {info["meta-type"] for info in infos.values()}
    check(f"kinds of the schema: {sorted(kinds)}",
          kinds <= {"builtin", "enum", "array", "object", "alternate", "command", "event"})
    for info in infos.values():
        mentioned = {
            "command": lambda i: [i["arg-type"], i["ret-type"]],
            "event": lambda i: [i["arg-type"]],
            "array": lambda i: [i["element-type"]],
            "object": lambda i: [m["type"] for m in i["members"]]
                                + [v["type"] for v in i.get("variants", [])],
            "alternate": lambda i: [m["type"] for m in i["members"]],
        }.get(info["meta-type"], lambda i: [])(info)
        missing = [name for name in mentioned if name not in infos]
        if missing:
            check(f"{info['name']} mentions {missing}, which the schema has not", False)
        if info["meta-type"] in ("command", "event"):
            if infos[info["arg-type"]]["meta-type"] != "object":
                check(f"the arguments of {info['name']} are an object", False)
    check("whatever the schema mentions is in it", True)
    commands = {info["name"] for info in await qmp.execute("query-commands")}
    described = {name for name, info in infos.items() if info["meta-type"] == "command"}
    check("the schema describes the commands", commands == described)


async def devices(qmp):
    """The verbs of device-mapper."""
    await qmp.execute("device-create", {"name": "d", "uuid": "u"})
    await qmp.execute("table-load", {"name": "d", "table": ["0 8 zero"], "read-only": True})
    await qmp.execute("table-clear", {"name": "d"})
    await refused(qmp, "DeviceNotActive", "device-resume", name="d")
    await qmp.execute("table-load", {"name": "d", "table": ["0 8 zero", "8 8 error"]})
    await qmp.execute("device-resume", {"name": "d"})
    info = (await qmp.execute("query-devices", {"name": "d"}))[0]
    check(f"a device: {info}", info == {
        "name": "d", "uuid": "u", "state": "active", "size": 8192, "has-inactive-table": False,
        "open-count": 0, "table": ["0 8 zero", "8 8 error"], "status": ["0 8 zero", "8 8 error"],
        "targets": [{"start": 0, "length": 4096, "type": "zero"},
                    {"start": 4096, "length": 4096, "type": "error"}]})
    await refused(qmp, "GenericError", "device-message", name="d", message="hello")
    await qmp.execute("device-suspend", {"name": "d", "noflush": True, "skip-lockfs": True})
    await qmp.execute("device-resume", {"name": "d"})
    await qmp.execute("device-remove", {"name": "d"})
    await refused(qmp, "DeviceNotFound", "device-remove", name="d")


async def exports(qmp, directory):
    """An export from its beginning to its end."""
    path = f"{directory}/e.sock"
    await qmp.execute("block-export-add", {
        "type": "vhost-user-blk", "id": "e", "node-name": "disk1", "writable": True,
        "addr": {"type": "unix", "path": path}, "num-queues": 2, "logical-block-size": 512})
    shown = [export for export in await qmp.execute("query-block-exports") if export["id"] == "e"]
    check(f"an export: {shown}", shown == [
        {"id": "e", "type": "vhost-user-blk", "node-name": "disk1", "shutting-down": False,
         "connected": False}])
    await refused(qmp, "GenericError", "block-export-add", type="nbd", id="n", **{
        "node-name": "disk1"})
    with qmp.listener("BLOCK_EXPORT_DELETED") as listener:
        await qmp.execute("block-export-del", {"id": "e"})
        event = await asyncio.wait_for(listener.get(), 30)
        check("BLOCK_EXPORT_DELETED", event["data"] == {"id": "e"})


async def snapshots(qmp, directory):
    """Snapshots come and go."""
    await qmp.execute("snapshot-create", {
        "device": "disk0", "name": "s", "cow": f"{directory}/s.cow", "chunk-size": 8192,
        "size": 1 << 20, "persistent": "P"})
    target = (await qmp.execute("query-devices", {"name": "s"}))[0]["targets"][0]
    wanted = {"type": "snapshot", "origin": "disk0", "cow": f"{directory}/s.cow",
              "persistent": "P", "chunk-size": 8192, "state": "valid", "allocated": 16384,
              "total": 1 << 20, "metadata": 16384}
    check(f"a snapshot: {target}", wanted.items() <= target.items())
    await qmp.execute("snapshot-delete", {"device": "disk0", "snapshot": "s",
                                          "delete-store": True})
    await refused(qmp, "GenericError", "snapshot-create", device="disk1", name="s",
                  cow=f"{directory}/s.cow")
    await qmp.execute("blockdev-snapshot-sync", {
        "device": "disk1", "snapshot-file": f"{directory}/layer.cow",
        "snapshot-node-name": "lower", "mode": "absolute-paths"})
    names = {device["name"] for device in await qmp.execute("query-devices")}
    check(f"devices: {names}", {"disk0", "disk0-real", "disk1", "kept", "lower"} <= names)


async def state(listener, wanted):
    """Reads events up to this state of the job; returns what there was on the way."""
    seen = []
    while not seen or seen[-1] != wanted:
        event = await asyncio.wait_for(listener.get(), 60)
        name = event["event"]
        seen.append(event["data"]["status"] if name == "JOB_STATUS_CHANGE" else name)
    return seen


async def rollback(qmp):
    """A merge, slow enough to be paused."""
    for command in ("job-pause", "job-resume", "job-cancel", "job-complete", "job-finalize",
                    "job-dismiss"):
        await refused(qmp, "GenericError", command, id="none")
    names = ("JOB_STATUS_CHANGE", "BLOCK_JOB_COMPLETED", "MERGE_COMPLETED")
    with qmp.listener(names) as listener:
        await qmp.execute("snapshot-merge", {
            "device": "disk0", "snapshot": "kept", "job-id": "job0", "speed": 1 << 20,
            "auto-dismiss": False})
        check("begun", await state(listener, "running") == ["created", "running"])
        await qmp.execute("job-pause", {"id": "job0"})
        check("paused", await state(listener, "paused") == ["paused"])
        info = (await qmp.execute("query-jobs"))[0]
        check(f"the job: {info}", info["id"] == "job0" and info["status"] == "paused"
              and info["current-progress"] <= info["total-progress"])
        await qmp.execute("job-resume", {"id": "job0"})
        check("goes on", await state(listener, "running") == ["running"])
        seen = await state(listener, "concluded")
        check(f"its end: {seen}", sorted(seen) == sorted(
            ["waiting", "pending", "MERGE_COMPLETED", "BLOCK_JOB_COMPLETED", "concluded"]))
        await qmp.execute("job-dismiss", {"id": "job0"})
        check("dismissed", await state(listener, "null") == ["null"])
    check("no job is left", await qmp.execute("query-jobs") == [])
    names = {device["name"] for device in await qmp.execute("query-devices")}
    check(f"the snapshot is gone: {names}", "kept" not in names)


async def main(path, directory):
    """Everything, over one connection, and a second one that hears the events."""
    qmp = QMPClient("server")
    await qmp.connect(path)
    await schema(qmp)
    await devices(qmp)
    await exports(qmp, directory)
    await snapshots(qmp, directory)
    await rollback(qmp)
    await qmp.disconnect()


asyncio.run(main(*sys.argv[1:]))
