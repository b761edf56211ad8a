"""A kernel that tells where it listens, and is answered by somebody else: it fails in time."""

from __future__ import annotations

import pytest
import trio
import zmq

from trio_subshells.kernel import RegistrationFailed
from trio_subshells.kernel._registration import register
from trio_subshells.sockets import open_context
from trio_subshells.testing import explore_schedules
from trio_subshells.wire import RegistrationInfo

PATIENCE = 2


@pytest.mark.parametrize("interval", [0.5, PATIENCE, 100])
@explore_schedules(30)
async def test_answers_that_are_none_give_it_no_more_time(interval: float) -> None:
    with open_context() as context, context.socket(zmq.ROUTER) as service:
        port = int(service.bind("tcp://127.0.0.1:0").rpartition(":")[2])
        registration = RegistrationInfo(
            registration_ip="127.0.0.1", registration_port=port, key=b"a key"
        )

        async def answer() -> None:
            identity, *_ = await service.receive()
            while True:
                await service.send([identity, b"<IDS|MSG>", b"no signature", b"ACK"])
                await trio.sleep(interval)

        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            with pytest.raises(RegistrationFailed), trio.move_on_after(60):
                await register(registration, registration.connection(), timeout=PATIENCE)
            nursery.cancel_scope.cancel()
        assert trio.current_time() < begun + 2 * PATIENCE
