"""A target for atheris: whatever comes, the wire protocol raises `MalformedMessage` or nothing.

    pip install atheris
    python tests/wire/fuzz_atheris.py -max_total_time=300 -max_len=600

pytest doesn't collect this: atheris isn't there for every Python, and has no end of its own. What
it prints is told in libFuzzer's documentation.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["trio_subshells.wire"]):
    from trio_subshells import wire

SIGNED = wire.WireSession(b"key")
UNSIGNED = wire.WireSession(b"")
KINDS = (str, int, float, bool, list, dict)


def text_from(data: atheris.FuzzedDataProvider, fields: bytes) -> bytes:
    """Bytes, or an object with these fields and perhaps something else."""
    junk = data.ConsumeBytes(data.ConsumeIntInRange(0, 60))
    match data.ConsumeIntInRange(0, 3):
        case 0:
            return junk
        case 1:
            return b"{" + fields + (b", " if fields else b"") + b'"x": ' + junk + b"}"
        case 2:
            return b"{" + fields + (b", " if fields else b"") + b'"subshell_id": "' + junk + b'"}'
        case _:
            return b"{" + fields + b"}"


def frames_from(data: atheris.FuzzedDataProvider) -> list[bytes]:
    """Anything; and often enough something that is nearly a message."""
    texts = [text_from(data, b"") for _ in range(4)]
    if data.ConsumeIntInRange(0, 3):
        texts[0] = text_from(data, b'"msg_id": "a", "msg_type": "b"')
    frames = [wire.DELIMITER, b"", *texts]
    for _ in range(data.ConsumeIntInRange(0, 3)):
        match data.ConsumeIntInRange(0, 3):
            case 0:
                frames.insert(data.ConsumeIntInRange(0, len(frames)), data.ConsumeBytes(20))
            case 1 if frames:
                del frames[data.ConsumeIntInRange(0, len(frames) - 1)]
            case 2 if frames:
                frames[data.ConsumeIntInRange(0, len(frames) - 1)] = data.ConsumeBytes(40)
            case _:
                frames.append(data.ConsumeBytes(20))
    return frames


def check(raw: bytes) -> None:
    """Receive, open, read fields, and answer."""
    data = atheris.FuzzedDataProvider(raw)
    frames = frames_from(data)
    try:
        SIGNED.receiver().receive(frames)
        raise AssertionError("something that nobody has signed was taken")
    except wire.MalformedMessage as error:
        if error.header is not None:
            raise AssertionError("a signature was guessed") from error
    try:
        envelope = UNSIGNED.receiver().receive(frames)
        message = envelope.open()
        for kind in KINDS:
            message.field(data.PickValueInList([*message.content, "x"]), kind, None)
    except wire.MalformedMessage as error:
        str(error)
        return
    # What was read can be written, as the parent of an answer as well, and is the same again.
    again = UNSIGNED.receiver().receive(UNSIGNED.serialize_message(message)).open()
    assert again.header == message.header
    reply = UNSIGNED.serialize("reply", {}, parent=envelope, idents=envelope.idents)
    answered = UNSIGNED.receiver().receive(reply).open()
    assert answered.parent_header == message.header or wire.DELIMITER in envelope.idents


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
