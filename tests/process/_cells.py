"""What a cell may be doing when it is to be ended. Each prints ``in`` once it is at it."""

from __future__ import annotations

#: These end at the first `KeyboardInterrupt`, or when they are cancelled.
GENTLE = {
    "loop": "print('in')\nwhile True: pass",
    "await": "import trio; print('in'); await trio.sleep_forever()",
    "sleep": "import time; print('in'); time.sleep(3600)",
    "from time import sleep": "from time import sleep; print('in'); sleep(3600)",
    "input": "print('in'); input()",
    "nursery": (
        "import trio\n"
        "async with trio.open_nursery() as nursery:\n"
        "    for _ in range(5):\n"
        "        nursery.start_soon(trio.sleep_forever)\n"
        "    print('in')"
    ),
    "a task that loops": (
        "import trio\n"
        "async def spin():\n"
        "    print('in')\n"
        "    while True: pass\n"
        "async with trio.open_nursery() as nursery:\n"
        "    nursery.start_soon(spin)"
    ),
    "catches Exception": (
        "import time\n"
        "print('in')\n"
        "while True:\n"
        "    try:\n"
        "        time.sleep(0.1)\n"
        "    except Exception:\n"
        "        print('not this one')"
    ),
    "finally with awaits": (
        "import trio\n"
        "try:\n"
        "    print('in')\n"
        "    await trio.sleep_forever()\n"
        "finally:\n"
        "    await trio.sleep(3600)"
    ),
    "a task in the background": (
        "import trio\n"
        "trio.lowlevel.spawn_system_task(trio.sleep_forever)\n"
        "print('in')\n"
        "await trio.sleep_forever()"
    ),
    "starts threads": (
        "import threading\n"
        "print('in')\n"
        "while True:\n"
        "    thread = threading.Thread(target=int)\n"
        "    thread.start()\n"
        "    thread.join()"
    ),
    "a worker that loops": (
        "import trio\n"
        "def spin():\n"
        "    print('in')\n"
        "    while True: pass\n"
        "await trio.to_thread.run_sync(spin)"
    ),
    "a worker that sleeps": (
        "import time, trio\n"
        "def sleep():\n"
        "    print('in')\n"
        "    time.sleep(3600)\n"
        "await trio.to_thread.run_sync(sleep)"
    ),
}

#: These don't.
STUBBORN = {
    "catches BaseException": (
        "print('in')\n"
        "while True:\n"
        "    try:\n"
        "        while True: pass\n"
        "    except BaseException:\n"
        "        pass"
    ),
    "catches BaseException, sleeps": (
        "import time\n"
        "print('in')\n"
        "while True:\n"
        "    try:\n"
        "        time.sleep(3600)\n"
        "    except BaseException:\n"
        "        pass"
    ),
    "catches BaseException, awaits": (
        "import trio\n"
        "print('in')\n"
        "while True:\n"
        "    try:\n"
        "        await trio.sleep(3600)\n"
        "    except BaseException:\n"
        "        pass"
    ),
    "shields itself": (
        "import trio\n"
        "print('in')\n"
        "with trio.CancelScope(shield=True):\n"
        "    await trio.sleep_forever()"
    ),
    "shields its cleaning up": (
        "import trio\n"
        "try:\n"
        "    print('in')\n"
        "    await trio.sleep_forever()\n"
        "finally:\n"
        "    with trio.CancelScope(shield=True):\n"
        "        await trio.sleep(3600)"
    ),
    "cleans up for ever": (
        "try:\n    print('in')\n    while True: pass\nfinally:\n    while True: pass"
    ),
}

ENDLESS = GENTLE | STUBBORN

#: Nothing ends this one: it is in a call into C that doesn't return, for days, without the GIL.
CALL = "import hashlib; print('in'); hashlib.pbkdf2_hmac('sha256', b'x', b'x', 10**9)"
