"""Follows a job from its first to its last event with QEMU's client library (qemu.qmp).

    qmp_job.py SOCKET

For a monitor that has a device `disk0` and lets a snapshot of it be made; its merge must take
long enough to be paused. The order of states is that of QEMU's jobs (qapi/job.json).
"""

import asyncio
import sys
import tempfile

from qemu.qmp import ExecuteError, QMPClient


def check(what, holds):
    """Ends the program where something does not hold."""
    if not holds:
        sys.exit(f"FAILED: {what}")
    print(f"ok: {what}")


async def state(listener, job, wanted):
    """Reads events up to this state of the job; returns all states on the way."""
    seen = []
    while not seen or seen[-1] != wanted:
        event = await asyncio.wait_for(listener.get(), 30)
        if event["event"] == "JOB_STATUS_CHANGE" and event["data"]["id"] == job:
            seen.append(event["data"]["status"])
        elif event["event"] != "JOB_STATUS_CHANGE":
            seen.append(event["event"])
    return seen


async def merge(qmp, cow):
    """A merge that is paused, resumed, and dismissed by hand."""
    await qmp.execute("snapshot-create", {"device": "disk0", "name": "snap0", "cow": cow})
    names = ("JOB_STATUS_CHANGE", "BLOCK_JOB_COMPLETED", "MERGE_COMPLETED")
    with qmp.listener(names) as listener:
        await qmp.execute("snapshot-merge", {
            "device": "disk0", "snapshot": "snap0", "job-id": "job0", "auto-dismiss": False})
        check("created, running", await state(listener, "job0", "running")
              == ["created", "running"])
        await qmp.execute("job-pause", {"id": "job0"})
        check("paused", await state(listener, "job0", "paused") == ["paused"])
        info = (await qmp.execute("query-jobs"))[0]
        check(f"query-jobs shows it: {info}",
              info["id"] == "job0" and info["status"] == "paused"
              and {"type", "current-progress", "total-progress"} <= set(info)
              and "error" not in info)
        try:
            await qmp.execute("job-pause", {"id": "job0"})
            check("a second pause is refused", False)
        except ExecuteError as error:
            check(f"a second pause is refused: {error}",
                  "already paused" in error.received['error']['desc'])
        await qmp.execute("job-resume", {"id": "job0"})
        seen = await state(listener, "job0", "concluded")
        check(f"to its end: {seen}", seen == [
            "running", "MERGE_COMPLETED", "waiting", "pending", "BLOCK_JOB_COMPLETED",
            "concluded"])
        await qmp.execute("job-dismiss", {"id": "job0"})
        check("null", await state(listener, "job0", "null") == ["null"])
        check("gone", await qmp.execute("query-jobs") == [])


async def main(path):
    """Connects, and cleans up."""
    qmp = QMPClient("job")
    await qmp.connect(path)
    with tempfile.TemporaryDirectory() as directory:
        await merge(qmp, f"{directory}/snap0.cow")
    await qmp.disconnect()


asyncio.run(main(sys.argv[1]))
