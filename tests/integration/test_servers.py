"""OpenAI-compatible servers as engines: two real `vllm serve`, faults and all."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from dasd_megatron.config.sampling import EngineConfig, ServerConfig
from dasd_megatron.sampling.engines.engine import Request, generate_all
from dasd_megatron.sampling.engines.engine_process import EngineProcess
from dasd_megatron.sampling.engines.registry import load_engine
from dasd_megatron.sampling.engines.server_engine import ServerEngine
from dasd_megatron.sampling.seeds import sample_seed
from dasd_megatron.tokenization.tokenizer import ChatTokenizer
from dasd_megatron.utils.errors import UserError
from tests.conftest import TOY
from tests.helpers.servers import FaultProxy, VllmServer, free_port
from tests.helpers.small_run import finish, small_run

pytestmark = pytest.mark.full
MODEL = TOY / "teacher"
KEY, KEY_VARIABLE = "a-secret-of-the-servers", "TEST_SERVER_KEY"
PROBLEMS = [json.loads(line)["input"] for line in (TOY / "validation.jsonl").read_text().splitlines()[:100]]
# JSON has all digits of a float; kernels sum in another order in a batch of other size.
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[VllmServer]]:
    """Two, which the last test leaves one of."""
    folder = tmp_path_factory.mktemp("servers")
    started = [VllmServer(MODEL, folder, "--served-model-name", "toy", key=KEY) for _ in range(2)]
    for server in started:
        server.wait()
    yield started
    for server in started:
        server.kill()


def engine(*urls: str, folder: Path = MODEL, max_batch: int = 16, **settings: Any) -> ServerEngine:
    server = ServerConfig(**{"endpoints": list(urls), "api_key_variable": KEY_VARIABLE, "patience": 5, **settings})
    return ServerEngine(folder, EngineConfig(name="server", dtype="float32", max_batch=max_batch, server=server))


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer(MODEL)


def requests(tokenizer: ChatTokenizer, temperature: float) -> list[Request]:
    return [
        Request(tokenizer.prompt_ids(text), sample_seed("test", n), 96, temperature, 1.0, tokenizer.stop_ids)
        for n, text in enumerate(PROBLEMS)
    ]


@pytest.fixture(scope="module")
def in_process() -> Any:
    return load_engine(MODEL, EngineConfig(name="vllm", dtype="float32", max_batch=32))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_server_gives_what_vllm_in_process_gives(
    servers: list[VllmServer], in_process: Any, tokenizer: ChatTokenizer, temperature: float
) -> None:
    asked = requests(tokenizer, temperature)
    expected = generate_all(in_process, asked)
    found = generate_all(engine(servers[0].url), asked)
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        assert one.finish_reason == other.finish_reason
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=TOLERANCE, rtol=0)


def test_a_prefix_is_continued(servers: list[VllmServer], in_process: Any, tokenizer: ChatTokenizer) -> None:
    (whole,) = generate_all(in_process, requests(tokenizer, 0.0)[:1])
    first = requests(tokenizer, 0.0)[0]
    prefixed = replace(first, prompt_ids=[*first.prompt_ids, *whole.token_ids[:10].tolist()])
    (rest,) = generate_all(engine(servers[0].url), [prefixed])
    assert rest.token_ids.tolist() == whole.token_ids[10:].tolist()


def test_a_server_scores(servers: list[VllmServer], in_process: Any, tokenizer: ChatTokenizer) -> None:
    asked = requests(tokenizer, 1.0)[:20]
    samples = generate_all(in_process, asked)
    sequences = [[*request.prompt_ids, *sample.token_ids] for request, sample in zip(asked, samples, strict=True)]
    scored = engine(servers[0].url, servers[1].url).score(sequences)
    for one, other in zip(scored, in_process.score(sequences), strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=TOLERANCE, rtol=0)
        assert one.ranks.tolist() == other.ranks.tolist()
    with pytest.raises(UserError, match=r"servers don't give .* set engine\.scorer\.name=vllm"):
        engine(servers[0].url).score(sequences, brier=True)


def test_prompts_without_room_and_long_ones(servers: list[VllmServer], tokenizer: ChatTokenizer) -> None:
    found = engine(servers[0].url)
    (first,) = requests(tokenizer, 0.0)[:1]
    near = replace(first, prompt_ids=[first.prompt_ids[0]] * (found.max_length - 3))
    none = replace(first, prompt_ids=[first.prompt_ids[0]] * found.max_length)
    samples = generate_all(found, [near, none])
    assert len(samples[0].token_ids) <= 3
    assert len(samples[1].token_ids) == 0


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>Welcome to nginx!</html>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web_page() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_what_is_wrong_is_said_once(
    servers: list[VllmServer], web_page: str, monkeypatch: pytest.MonkeyPatch, tokenizer: ChatTokenizer
) -> None:
    url = servers[0].url
    cases = [
        (
            partial(engine, web_page),
            r"no JSON object came back, so http://.* is no OpenAI-compatible server; .* ends in /v1",
        ),
        (partial(engine, url.removesuffix("/v1")), r"404 Not Found.*address mostly ends in /v1"),
        (partial(engine, url, api_key_variable=None), r"401 Unauthorized.*engine\.server\.api_key_variable names"),
        (partial(engine, url, model="gpt-5"), r"engine\.server\.model=gpt-5: not served by http://.*, which has toy"),
        (
            partial(engine, url, folder=TOY / "student"),
            r"different tokenizers; name the folder of the model that is served",
        ),
        (partial(engine, f"http://127.0.0.1:{free_port()}/v1"), r"no server has answered for 5 s .*no connection"),
        (
            partial(engine, url, api_key_variable="NO_SUCH_VARIABLE"),
            r"api_key_variable=NO_SUCH_VARIABLE: the environment has no such variable",
        ),
        (partial(engine, FaultProxy(url, strip=("token_ids",)).url), r"without token ids \(return_token_ids\)"),
        (partial(engine, FaultProxy(url, strip=("logprobs",)).url), r"without log-probabilities \(logprobs\)"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message):
            call()
    monkeypatch.setenv(KEY_VARIABLE, "wrong")
    with pytest.raises(UserError, match=r"401 Unauthorized") as refused:
        engine(url)
    assert "wrong" not in str(refused.value)


class _TextAlone(http.server.BaseHTTPRequestHandler):
    """Answers with text, as many servers do; under another name than the others."""

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "other"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer({"choices": [{"text": "hello", "logprobs": None, "finish_reason": "stop"}]})

    def _answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_each_server_of_a_pool_is_checked(servers: list[VllmServer], tmp_path: Path) -> None:
    other = VllmServer(TOY / "student", tmp_path, "--served-model-name", "toy", key=KEY)
    page = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _TextAlone)
    threading.Thread(target=page.serve_forever, daemon=True).start()
    text_alone = f"http://127.0.0.1:{page.server_port}"
    try:
        with pytest.raises(UserError, match=rf"^{text_alone}: a response came without token ids \(return_token_ids\)"):
            engine(text_alone)
        # They are asked at the same time: what is seen first is said.
        differ = r"serves (?:toy|other), and http://.* serves (?:toy|other)"
        with pytest.raises(UserError, match=rf"{differ}|^{text_alone}: .* without token ids"):
            engine(servers[0].url, text_alone)
        other.wait()
        with pytest.raises(UserError, match=r"different tokenizers|serve different models as toy"):
            engine(servers[0].url, other.url)
    finally:
        page.shutdown()
        other.kill()


def test_keys(servers: list[VllmServer], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(KEY_VARIABLE, f" {KEY}\n")
    assert engine(servers[0].url).max_length > 0
    for value in (f"{KEY}\nand more", f"{KEY}\xc9"):
        monkeypatch.setenv(KEY_VARIABLE, value)
        with pytest.raises(UserError, match=rf"api_key_variable={KEY_VARIABLE}: its value can't be a key") as refused:
            engine(servers[0].url)
        assert KEY not in str(refused.value)
    assert KEY not in capfd.readouterr().err


def own_server(*arguments: str) -> EngineConfig:
    server = ServerConfig(arguments=list(arguments))
    return EngineConfig(name="server", dtype="float32", max_batch=32, server=server)


def test_a_replica_starts_a_server_of_its_own(in_process: Any, tokenizer: ChatTokenizer) -> None:
    asked = requests(tokenizer, 1.0)
    # In a process of its own, killed in the middle: nothing that it started is left.
    process = EngineProcess(MODEL, own_server())
    process.ask(asked)
    found: dict[int, Any] = {}
    while len(found) < len(asked):
        found.update(process.ended())
    for number, expected in enumerate(generate_all(in_process, asked)):
        assert found[number].token_ids.tolist() == expected.token_ids.tolist()
        np.testing.assert_allclose(found[number].logprobs, expected.logprobs, atol=TOLERANCE, rtol=0)
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) > 2  # the server and its engine
    psutil.Process(process.pid).kill()
    assert psutil.wait_procs(started, timeout=20)[1] == []


def test_a_server_that_cannot_start_or_ends_is_said_once(tokenizer: ChatTokenizer) -> None:
    with pytest.raises(UserError, match=r"vLLM's server ended: .*unrecognized arguments: --no-such-option"):
        ServerEngine(MODEL, own_server("--no-such-option"))
    with pytest.raises(
        UserError, match=r"log-probabilities at the sampling temperature, .* --logprobs-mode raw_logprobs"
    ):
        ServerEngine(MODEL, own_server("--logprobs-mode", "processed_logprobs"))
    found = ServerEngine(MODEL, own_server())
    group = max(psutil.Process().children(), key=psutil.Process.create_time)
    ended = found.generate(requests(tokenizer, 1.0) * 20)
    next(ended)
    group.terminate()
    with pytest.raises(UserError, match=r"vLLM's server ended: exit code -9; its log is .*\.log"):
        list(ended)


def test_a_run_has_a_server_as_its_teacher(servers: list[VllmServer], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    pool = f"{{endpoints: [{servers[0].url}, {servers[1].url}], api_key_variable: {KEY_VARIABLE}}}"
    stages = "stages=[{name: low_temperature, kind: sampled, temperature: 0.6}]"
    options = [option for option in small_run(folder) if "stages." not in option]
    code, out, errors = finish(*options, stages, f"engine.teacher={{name: server, server: {pool}}}")
    assert code == 0, out[-3000:] + errors[-3000:]
    summary = json.loads((folder / "summary.json").read_text())
    facts = summary["benchmarks"]["arithmetic"]
    assert facts["problems"] == 40
    assert facts["measures"]["teacher"]["greedy"]["accuracy"]["mean"] > 0.9
    texts = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert all(KEY.encode() not in text for text in texts)


def test_every_response_arrives_once_through_faults_and_a_dead_server(
    servers: list[VllmServer], in_process: Any, tokenizer: ChatTokenizer, capfd: pytest.CaptureFixture[str]
) -> None:
    proxies = [FaultProxy(server.url, faults=0.05) for server in servers]
    asked = [replace(request, seed=n) for n, request in enumerate(requests(tokenizer, 0.0) * 4)]
    expected = generate_all(in_process, asked[: len(PROBLEMS)])
    pool = engine(*(proxy.url for proxy in proxies), timeout=5, patience=60)
    found: dict[int, Any] = {}
    for ended in pool.generate(iter(asked)):
        for number, sample in ended:
            assert number not in found
            found[number] = sample
        if len(found) > len(asked) // 3:
            servers[1].kill()
    assert sorted(found) == list(range(len(asked)))
    for number, sample in found.items():
        other = expected[number % len(PROBLEMS)]
        assert sample.token_ids.tolist() == other.token_ids.tolist()
        np.testing.assert_allclose(sample.logprobs, other.logprobs, atol=TOLERANCE, rtol=0)
    seen = proxies[0].seen + proxies[1].seen
    assert set(seen) == {"none", "429", "500", "silence", "cut"}
    assert f"{proxies[1].url} is down" in capfd.readouterr().err
