"""The chat of OpenAI's API, for models that go on from a text and have learned no roles: contents of messages are that text.

Contents stand one below the other, in their order; nothing is written in between that the model was not trained on. Without
``max_tokens`` it is as many as `generate` writes, not 16. What is not here is refused, as in `tasks.serving.completions`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tasks.serving import completions, schemas
from tasks.serving.completions import Form
from tasks.serving.models import BadInput, shown
from tasks.serving.schemas import Schema

if TYPE_CHECKING:
    from tasks.serving.server import Server

ROLES = ("system", "developer", "user", "assistant")
REPLACED = ("prompt", "echo", "suffix", "best_of", "logprobs")
"""Settings of completions that a chat has not, or has another one of that name."""


def as_completion(found: dict[str, Any]) -> dict[str, Any]:
    """Errors: `BadInput`."""
    rest = dict(found)
    messages = rest.pop("messages", None)
    if not isinstance(messages, list) or not messages:
        raise BadInput('messages must be a list of {"role": ..., "content": ...}, one or more')
    if wrong := sorted({*rest} & {*REPLACED} - {"logprobs"}):
        raise BadInput(f"{wrong[0]!r} is no setting of a chat")
    if rest.pop("logprobs", False) is not False:
        raise BadInput("logprobs is not supported: leave it out")
    if "max_completion_tokens" in rest:
        if "max_tokens" in rest:
            raise BadInput("max_tokens and max_completion_tokens are the same: give one")
        rest["max_tokens"] = rest.pop("max_completion_tokens")
    return rest | {"prompt": "\n".join(map(content, messages))}


def content(message: Any) -> str:
    """Errors: `BadInput`."""
    right = isinstance(message, dict) and {*message} <= {"role", "content", "name"} and isinstance(message.get("name", ""), str)
    if not right or message.get("role") not in ROLES:
        raise BadInput(f"a message must have a role, one of {', '.join(ROLES)}, and content, got {shown(message)}")
    found = message.get("content")
    if isinstance(found, list) and found and all(map(is_text, found)):
        return "\n".join(one["text"] for one in found)
    if not isinstance(found, str):
        raise BadInput(f'the content of a message must be a string, or [{{"type": "text", "text": ...}}], got {shown(found)}')
    return found


def is_text(part: Any) -> bool:
    return isinstance(part, dict) and {*part} == {"type", "text"} and part["type"] == "text" and isinstance(part["text"], str)


def message(text: str, reason: str | None, index: int) -> dict[str, Any]:
    said = {"role": "assistant", "content": text}
    return {"index": index, "message": said, "logprobs": None, "finish_reason": reason}


def delta(text: str, reason: str | None) -> dict[str, Any]:
    """The last one is empty, with the reason."""
    said = {} if reason else {"role": "assistant", "content": text}
    return {"index": 0, "delta": said, "logprobs": None, "finish_reason": reason}


CHAT = Form("chat.completion", "chat.completion.chunk", "chatcmpl", as_completion, message, delta)


def described(server: Server) -> tuple[Schema, Schema]:
    """The schemas of a request and of an answer that is not streamed."""
    asks = {name: one for name, one in completions.settings_of(server).items() if name not in REPLACED}
    part = schemas.made_of({"type": schemas.one_of("text"), "text": schemas.text()})
    said = schemas.either(schemas.text(), schemas.listed(part, 1))
    message = schemas.made_of({"role": schemas.one_of(*ROLES), "content": said, "name": schemas.text()}, ["name"])
    tokens = {key: value for key, value in asks["max_tokens"].items() if key != "default"}
    asks |= {
        "max_tokens": tokens,
        "max_completion_tokens": tokens,
        "messages": schemas.listed(message, 1),
        "logprobs": {"const": False},
    }
    answer = {"message": schemas.made_of({"role": schemas.one_of("assistant"), "content": schemas.text()})}
    return completions.request_of(asks, ["model", "messages"]), completions.answer_of(CHAT.kind, answer)
