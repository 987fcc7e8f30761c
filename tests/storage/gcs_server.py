"""A small server of Google Cloud Storage's JSON API, in memory and on loopback, for tests.

It knows what Google's client, gcsfs and TensorStore ask of it: reading (also a range), listing, media,
multipart and resumable uploads, deleting (also in batches), rewriting and composing; generations and
the preconditions on them. ``Server.objects`` maps (bucket, name) to ``Stored``; ``Server.requests``
holds the method and path of every request; ``Server.status`` is what all are answered with, if not
0, and ``Server.forget`` how many writes it does and answers with 503 all the same.
"""

import base64
import contextlib
import dataclasses
import hashlib
import http.server
import itertools
import json
import re
import sys
import threading
import urllib.parse

import google_crc32c

OBJECT = re.compile(r"^(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)$")
LIST = re.compile(r"^/storage/v1/b/([^/]+)/o$")
BUCKET = re.compile(r"^/storage/v1/b/([^/]+)$")
UPLOAD = re.compile(r"^/upload/storage/v1/b/([^/]+)/o$")
COMPOSE = re.compile(r"^/storage/v1/b/([^/]+)/o/([^/]+)/compose$")
COPY = re.compile(r"^/storage/v1/b/([^/]+)/o/([^/]+)/(rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)$")
BATCH = re.compile(r"^/batch(?:/storage/v1)?$")
TIME = "2026-01-01T00:00:00.000Z"


class AnswerError(Exception):
    """An HTTP status other than 200, and what it says."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


@dataclasses.dataclass
class Stored:
    data: bytes
    generation: int
    kind: str = "application/octet-stream"


class Server:
    """``with Server("bucket") as server:`` serves at ``server.url``."""

    def __init__(self, *buckets):
        self.buckets, self.objects = set(buckets), {}
        self.requests, self.uploads = [], {}
        self.status, self.forget = 0, 0
        self.lock, self.numbers = threading.RLock(), itertools.count(1000)

    def __enter__(self):
        owner = self

        class Handler(Request):
            server_state = owner

        self.http = Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    def names(self, bucket):
        with self.lock:
            return sorted(name for b, name in self.objects if b == bucket)

    def check(self, key, query, prefix=""):
        """AnswerError 412 (or 304) unless the preconditions in ``query`` hold."""
        there = self.objects.get(key)
        now = there.generation if there else 0
        match = query.get(f"if{prefix}GenerationMatch")
        other = query.get(f"if{prefix}GenerationNotMatch")
        if match is not None and int(match) != now:
            raise AnswerError(412, "conditionNotMet")
        if other is not None and int(other) == now:
            raise AnswerError(304, "conditionNotMet")

    def get(self, key):
        if key[0] not in self.buckets:
            raise AnswerError(404, "The specified bucket does not exist.")
        if key not in self.objects:
            raise AnswerError(404, f"No such object: {key[0]}/{key[1]}")
        return self.objects[key]

    def put(self, key, data, query, kind="application/octet-stream"):
        if key[0] not in self.buckets:
            raise AnswerError(404, "The specified bucket does not exist.")
        self.check(key, query)
        self.objects[key] = Stored(data, next(self.numbers), kind)
        return self.describe(key)

    def describe(self, key):
        stored = self.objects[key]
        crc = google_crc32c.value(stored.data).to_bytes(4, "big")
        return {
            "kind": "storage#object",
            "id": f"{key[0]}/{key[1]}/{stored.generation}",
            "bucket": key[0],
            "name": key[1],
            "generation": str(stored.generation),
            "metageneration": "1",
            "size": str(len(stored.data)),
            "contentType": stored.kind,
            "timeCreated": TIME,
            "updated": TIME,
            "etag": str(stored.generation),
            "crc32c": base64.b64encode(crc).decode(),
            "md5Hash": base64.b64encode(hashlib.md5(stored.data).digest()).decode(),
        }

    def listed(self, bucket, query):
        if bucket not in self.buckets:
            raise AnswerError(404, "The specified bucket does not exist.")
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        low, high = query.get("startOffset", ""), query.get("endOffset")
        most, after = int(query.get("maxResults", 1000)), query.get("pageToken", "")
        items, prefixes, last = [], [], None
        for name in self.names(bucket):
            if not name.startswith(prefix) or name < low or (high and name >= high):
                continue
            rest = name[len(prefix) :]
            group = delimiter and delimiter in rest
            entry = prefix + rest.split(delimiter)[0] + delimiter if group else name
            if entry <= after or entry == last:
                continue
            if len(items) + len(prefixes) == most:
                return {"items": items, "prefixes": prefixes, "nextPageToken": last}
            last = entry
            prefixes.append(entry) if group else items.append(self.describe((bucket, name)))
        return {"kind": "storage#objects", "items": items, "prefixes": prefixes}


class Http(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_):
        """A client that hangs up is none of ours."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*_)


class Request(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # a header and its body in one packet: no waiting for an acknowledgement
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def handle_any(self):
        parts = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        body, state = self.body(), self.server_state
        state.requests.append((self.command, urllib.parse.unquote(parts.path)))
        try:
            if state.status:
                raise AnswerError(state.status, "not for you")
            with state.lock:
                status, headers, answer = self.answer(parts.path, query, body)
                if state.forget and self.command != "GET":
                    state.forget -= 1
                    raise AnswerError(503, "the answer is lost")
        except AnswerError as error:
            told = {"error": {"code": error.status, "message": str(error)}}
            status, headers, answer = error.status, {}, told
        if not isinstance(answer, bytes):
            answer = json.dumps(answer).encode()
            headers = {"Content-Type": "application/json; charset=UTF-8", **headers}
        if status in (204, 304):
            answer = b""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(answer)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = handle_any  # noqa: N815 (http.server's)

    def answer(self, path, query, body):
        """Status, headers, and bytes or JSON."""
        state = self.server_state
        for pattern, handle in (
            (BATCH, self.batch),
            (UPLOAD, self.upload),
            (COMPOSE, self.compose),
            (COPY, self.copy),
            (OBJECT, self.one),
            (LIST, lambda _, query, __, bucket: (200, {}, state.listed(bucket, query))),
            (BUCKET, lambda _, __, ___, name: (200, {}, self.bucket(name))),
        ):
            found = pattern.match(path)
            if found:
                return handle(path, query, body, *map(urllib.parse.unquote, found.groups()))
        raise AnswerError(404, f"not known here: {self.command} {path}")

    def bucket(self, name):
        if name not in self.server_state.buckets:
            raise AnswerError(404, "The specified bucket does not exist.")
        return {"kind": "storage#bucket", "name": name, "id": name, "location": "US"}

    def one(self, path, query, body, bucket, name):
        state, key = self.server_state, (bucket, name)
        stored = state.get(key)
        state.check(key, query)
        if self.command == "DELETE":
            del state.objects[key]
            return 204, {}, b""
        if query.get("alt") != "media":
            return 200, {}, state.describe(key)
        crc = base64.b64encode(google_crc32c.value(stored.data).to_bytes(4, "big")).decode()
        headers = {
            "Content-Type": stored.kind,
            "x-goog-generation": str(stored.generation),
            "x-goog-metageneration": "1",
            "x-goog-stored-content-length": str(len(stored.data)),
            "x-goog-stored-content-encoding": "identity",
            "x-goog-hash": f"crc32c={crc}",
        }
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return 200, headers, stored.data
        size = len(stored.data)
        first, last = wanted[1], wanted[2]
        start = int(first) if first else max(0, size - int(last))
        end = min(int(last), size - 1) if first and last else size - 1
        if start >= size:
            raise AnswerError(416, "range not satisfiable")
        headers["Content-Range"] = f"bytes {start}-{end}/{size}"
        return 206, headers, stored.data[start : end + 1]

    def upload(self, path, query, body, bucket):
        state = self.server_state
        if "upload_id" in query:
            return self.go_on(query["upload_id"], body)
        how = query.get("uploadType")
        if how == "media":
            return 200, {}, state.put((bucket, query["name"]), body, query)
        if how == "multipart":
            mark = b"--" + self.headers.get_param("boundary", header="Content-Type").encode()
            about, data = (
                re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in body.split(mark)[1:3]
            )
            about, data = json.loads(about), re.sub(rb"\r?\n\Z", b"", data)
            name = about.get("name") or query["name"]
            return 200, {}, state.put((bucket, name), data, query)
        if how == "resumable":
            about = json.loads(body or b"{}")
            name, number = about.get("name") or query.get("name"), str(next(state.numbers))
            state.check((bucket, name), query)
            state.uploads[number] = ((bucket, name), query, bytearray())
            where = f"{state.url}/upload/storage/v1/b/{bucket}/o?upload_id={number}"
            return 200, {"Location": where}, {}
        raise AnswerError(400, f"uploadType {how!r}")

    def go_on(self, number, body):
        state = self.server_state
        key, query, sofar = state.uploads[number]
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", self.headers.get("Content-Range", ""))
        if span:
            del sofar[int(span[1]) :]
        sofar += body
        total = span[2] if span else str(len(sofar))
        if total == "*" or len(sofar) < int(total):
            return 308, {"Range": f"bytes=0-{len(sofar) - 1}"}, b""
        del state.uploads[number]
        return 200, {}, state.put(key, bytes(sofar), query)

    def compose(self, path, query, body, bucket, name):
        state = self.server_state
        sources = [s["name"] for s in json.loads(body)["sourceObjects"]]
        if len(sources) > 32:
            raise AnswerError(400, "at most 32 objects")
        data = b"".join(state.get((bucket, source)).data for source in sources)
        return 200, {}, state.put((bucket, name), data, query)

    def copy(self, path, query, body, bucket, name, how, bucket2, name2):
        state = self.server_state
        stored = state.get((bucket, name))
        state.check((bucket, name), query, "Source")
        made = state.put((bucket2, name2), stored.data, query, stored.kind)
        if how == "copyTo":
            return 200, {}, made
        size = str(len(stored.data))
        done = {"done": True, "objectSize": size, "totalBytesRewritten": size, "resource": made}
        return 200, {}, done

    def batch(self, path, query, body):
        """Several requests in one: of them only the deletions that gcsfs sends."""
        mark = self.headers.get_param("boundary", header="Content-Type")
        answers = []
        for number, part in enumerate(re.findall(rb"DELETE (\S+) HTTP", body), 1):
            inner = urllib.parse.urlsplit(part.decode()).path
            bucket, name = map(urllib.parse.unquote, OBJECT.match(inner).groups())
            there = self.server_state.objects.pop((bucket, name), None)
            status = "204 No Content" if there else "404 Not Found"
            answers.append(
                f"--{mark}\r\nContent-Type: application/http\r\nContent-ID: <response-{number}>\r\n\r\n"
                f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n\r\n"
            )
        text = "".join(answers) + f"--{mark}--\r\n"
        return 200, {"Content-Type": f"multipart/mixed; boundary={mark}"}, text.encode()
