"""Talks to a running app.py as its page does, without a browser: for load and for hostile files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
API = "/gradio_api"


@dataclass
class Server:
    """A running app.py."""

    url: str
    folder: Path  # in which it was started
    process: subprocess.Popen
    log: list[str] = field(default_factory=list)

    @property
    def memory(self) -> int:
        """Its resident memory in bytes."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024

    @property
    def cpu_seconds(self) -> float:
        """The time that the cores have worked for it, which does not depend on what else they do."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def tracebacks(self) -> str:
        """What it logged, if there is a traceback in it."""
        text = "".join(self.log)
        return text if "Traceback" in text else ""


@contextmanager
def serve(folder: Path, *arguments: str) -> Iterator[Server]:
    """Starts app.py in a folder, at a free port of 127.0.0.1."""
    command = [sys.executable, str(ROOT / "app.py"), "--no-browser", "--port", "0", *arguments]
    env = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, env=env, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        log: list[str] = []
        reader = threading.Thread(target=lambda: log.extend(process.stderr or []), daemon=True)
        reader.start()
        url = process.stdout.readline().strip()
        try:
            if not url.startswith("http"):
                raise RuntimeError("".join(log))
            yield Server(url.rstrip("/"), folder, process, log)
        finally:
            process.terminate()
            process.wait(20)
            reader.join(5)


class Refused(Exception):
    """The page's sentence about what is wrong, or the status of a refused request."""


class Client:
    """One page: a session of its own."""

    def __init__(self, url: str, timeout: float = 120):
        self.http = httpx.Client(base_url=url, timeout=timeout)
        self.session = uuid.uuid4().hex[:12]
        config = self.http.get("/config").raise_for_status().json()
        self.values = {each["id"]: each["props"].get("value") for each in config["components"]}
        self.ids = {each["props"].get("elem_id"): each["id"] for each in config["components"]}
        self.events = config["dependencies"]
        self.ranks: list[int] = []  # places in the queue that were told

    def call(self, name: str, event: str, **values: Any) -> list[Any]:
        """The outputs of what an event of the element `name` starts; `values` are those of other elements.

        Elements are named by their ids, with _ for -. Raises Refused.
        """
        output = self.follow(self.start(name, event, **values))
        if not output["success"]:
            raise Refused(str(output["output"].get("error")))
        return output["output"]["data"]

    def start(self, name: str, event: str, **values: Any) -> str:
        """Starts what `call` waits for; the number of the event."""
        first = next(
            each for each in self.events if each["backend_fn"] and [self.ids[name], event] in map(list, each["targets"])
        )
        if not first["inputs"]:  # it notes when the button was pressed, and work that may have to wait comes after it
            self.follow(self.join(first, name))
            first = next(each for each in self.events if each["trigger_after"] == first["id"])
        return self.join(first, name, **values)

    def join(self, dependency: dict[str, Any], name: str, **values: Any) -> str:
        given = {self.ids[key.replace("_", "-")]: value for key, value in values.items()}
        data = [given.get(number, self.values[number]) for number in dependency["inputs"]]
        body = {"data": data, "fn_index": dependency["id"], "session_hash": self.session, "trigger_id": self.ids[name]}
        joined = self.http.post(f"{API}/queue/join", json=body)
        if joined.status_code != 200:
            raise Refused(f"{joined.status_code}: {joined.text[:200]}")
        return joined.json()["event_id"]

    def follow(self, event_id: str) -> dict[str, Any]:
        """The last message about an event."""
        last: dict[str, Any] = {}
        with self.http.stream("GET", f"{API}/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                if not line.startswith("data:"):
                    continue
                message = json.loads(line.removeprefix("data:"))
                if message.get("event_id") == event_id:
                    if message["msg"] == "estimation":
                        self.ranks.append(message["rank"])
                    if message["msg"] == "process_completed":
                        last = message
        if not last:
            raise Refused("the connection ended before there was a result")
        return last

    def upload(self, name: str, data: bytes) -> dict[str, Any]:
        """Uploads a file, and gives what an event takes for it. Raises Refused."""
        response = self.http.post(f"{API}/upload", files={"files": (name, data)})
        if response.status_code != 200:
            raise Refused(f"{response.status_code}: {response.text[:200]}")
        return {"path": response.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    def fetch(self, file: dict[str, Any]) -> bytes:
        """The bytes of a file among the outputs."""
        return self.http.get(f"{API}/file={file['path']}").raise_for_status().content
