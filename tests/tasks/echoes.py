"""A server of models that compute nothing, for what is about the server; as a program it listens at a free port."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from tasks.serving.models import Served
from tasks.serving.server import Limits, Server
from tasks.serving.writing import Generations, Writing


class Echo(Generations):
    """Writes the characters of its prompt again and again, up to max_new_tokens; "!" is a fault."""

    def load(self):
        self.precise, self.most_together = contextlib.nullcontext(), 1
        self.tokenizer = SimpleNamespace(encode=list)
        self.closed = []

    def read(self, value):
        value = value if isinstance(value, dict) else {"prompt": value}
        prompt = self.string(value.get("prompt", ""), "prompt")
        return Writing(prompt, self.pieces(prompt, value.get("max_new_tokens", 4)))

    def pieces(self, prompt, most):
        try:
            for n in range(most):
                if prompt[n % len(prompt)] == "!":
                    raise ValueError("a fault")
                if prompt[n % len(prompt)] == ".":
                    return n, True
                yield prompt[n % len(prompt)]
            return most, False
        finally:
            self.closed.append(prompt)


class Other(Served):
    def load(self):
        pass

    def schemas(self):
        return {}, {}


def server(**limits):
    made = [kind(Path(), "cpu", "fp32", 500, 4) for kind in (Echo, Other)]
    return Server(dict(zip(("echo", "other"), made, strict=True)), Limits(**limits))


if __name__ == "__main__":
    from tasks import serve

    with mock.patch.object(serve, "server_of", return_value=server()):
        sys.exit(serve.main(["here", "--port", "0"]))
