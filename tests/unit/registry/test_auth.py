import io
import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import InvalidError, PuzzlefsError, UnavailableError
from snapshotter.registry.auth import TOKEN_MARGIN, Challenge, parse_challenges
from snapshotter.registry.client import RegistryStore
from snapshotter.registry.connections import CONNECTIONS
from snapshotter.registry.credentials import Credentials
from snapshotter.registry.failures import DeniedError, RegistryUnavailableError
from snapshotter.registry.hosts import RegistryConfig
from snapshotter.registry.session import RegistrySession
from snapshotter.registry.transport import Response, Transport
from tests.support.registry import BasicAuth, FakeRegistry, Fault, TokenAuth

PASSWORD = "hunter2-secret"


@dataclass
class Wallet:
    """Credentials that a test may change; counts how often it is asked."""

    credentials: Credentials | None = field(default_factory=lambda: Credentials("ann", PASSWORD))
    asked: int = 0

    def find(self, host: str, repository: str = "", *, refused: Sequence[Credentials] = ()) -> Credentials | None:
        self.asked += 1
        return self.credentials


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Set:
    registry: FakeRegistry
    wallet: Wallet
    clock: Clock
    store: RegistryStore

    def token_requests(self) -> int:
        return len(self.registry.matching("^/token"))


@contextmanager
def serving(auth: BasicAuth | TokenAuth | None, wallet: Wallet | None = None) -> Iterator[Set]:
    wallet = wallet or Wallet()
    with FakeRegistry(auth=auth) as registry:
        clock = Clock()
        session = RegistrySession(Transport(registry.host, RegistryConfig(plain_http=True)), wallet, clock)
        yield Set(registry, wallet, clock, RegistryStore(session, "a/b"))
        session.close()


DATA = b"chunk" * 100


@pytest.mark.parametrize("auth", [None, BasicAuth("ann", PASSWORD), TokenAuth("ann", PASSWORD), TokenAuth()])
def test_each_kind_of_authentication_reads_and_writes(auth: BasicAuth | TokenAuth | None) -> None:
    with serving(auth) as at:
        blob = at.registry.put_blob("a/b", DATA)
        assert at.store.read_range(blob.digest, 5, 10) == DATA[5:15]
        other = at.registry.put_blob("elsewhere", b"other")
        assert at.store.put_blob(other, io.BytesIO(b"other"))


def test_an_anonymous_user_of_a_public_registry_needs_no_credentials() -> None:
    with serving(TokenAuth("ann", PASSWORD, anonymous_pull=True), Wallet(None)) as at:
        blob = at.registry.put_blob("a/b", DATA)
        assert at.store.has_blob(blob.digest)
        with pytest.raises(DeniedError, match="docker login"):
            at.store.put_blob(at.registry.put_blob("elsewhere", b"x"), io.BytesIO(b"x"))


def test_a_token_serves_until_shortly_before_it_expires() -> None:
    with serving(TokenAuth("ann", PASSWORD, expires_in=300)) as at:
        blob = at.registry.put_blob("a/b", DATA)
        at.store.has_blob(blob.digest)
        at.clock.now += 300 - TOKEN_MARGIN - 1
        at.store.has_blob(blob.digest)
        assert at.token_requests() == 1
        at.clock.now += 2
        at.store.has_blob(blob.digest)
        assert at.token_requests() == 2


def test_a_token_that_does_not_say_lives_a_minute() -> None:
    with serving(TokenAuth("ann", PASSWORD, expires_in=None)) as at:
        blob = at.registry.put_blob("a/b", DATA)
        at.store.has_blob(blob.digest)
        at.clock.now += 49
        at.store.has_blob(blob.digest)
        assert at.token_requests() == 1
        at.clock.now += 2
        at.store.has_blob(blob.digest)
        assert at.token_requests() == 2


def test_a_token_refused_early_is_renewed_with_credentials_read_again() -> None:
    with serving(TokenAuth("ann", PASSWORD)) as at:
        blob = at.registry.put_blob("a/b", DATA)
        at.store.has_blob(blob.digest)
        at.registry.revoke_tokens()
        assert at.store.read_range(blob.digest, 0, 4) == DATA[:4]
        assert (at.token_requests(), at.wallet.asked) == (2, 2)


def test_a_changed_password_needs_no_restart() -> None:
    auth = BasicAuth("ann", PASSWORD)
    with serving(auth) as at:
        blob = at.registry.put_blob("a/b", DATA)
        at.store.has_blob(blob.digest)
        at.registry.auth = BasicAuth("ann", "changed")
        at.wallet.credentials = Credentials("ann", "changed")
        assert at.store.has_blob(blob.digest)


def test_a_token_is_asked_for_once_by_many_threads() -> None:
    with serving(TokenAuth("ann", PASSWORD)) as at:
        blob = at.registry.put_blob("a/b", DATA)
        threads = [threading.Thread(target=at.store.has_blob, args=(blob.digest,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert at.token_requests() == 1


def test_reading_asks_for_reading_alone() -> None:
    with serving(TokenAuth("ann", PASSWORD)) as at:
        at.store.has_blob(at.registry.put_blob("a/b", DATA).digest)
        assert [exchange.query["scope"] for exchange in at.registry.matching("^/token")] == ["repository:a/b:pull"]


def test_an_identity_token_is_exchanged() -> None:
    auth = TokenAuth("nobody", "nothing", identity_token="refresh-secret")
    with serving(auth, Wallet(Credentials(identity_token="refresh-secret"))) as at:
        assert at.store.has_blob(at.registry.put_blob("a/b", DATA).digest)
        assert [exchange.method for exchange in at.registry.matching("^/token")] == ["POST"]


@pytest.mark.parametrize("auth", [BasicAuth("ann", "other"), TokenAuth("ann", "other")])
@pytest.mark.parametrize("credentials", [Credentials("ann", PASSWORD), None])
def test_denial_says_what_to_do_and_shows_no_secret(
    auth: BasicAuth | TokenAuth, credentials: Credentials | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(auth, Wallet(credentials)) as at:
        blob = at.registry.put_blob("a/b", DATA)
        with pytest.raises(DeniedError, match=r"log ?in") as caught:
            at.store.read_range(blob.digest, 0, 1)
        assert at.registry.host in str(caught.value)
        assert len(at.registry.matching("blobs")) <= 2
    shown = caplog.text + str(caught.value) + repr(caught.value)
    assert PASSWORD not in shown


def test_a_refused_fresh_token_is_not_renewed_again_and_again() -> None:
    with serving(TokenAuth("ann", PASSWORD)) as at:
        blob = at.registry.put_blob("a/b", DATA)
        at.registry.inject(
            Fault(status=401, headers={"WWW-Authenticate": f'Bearer realm="{at.registry.url}/token"'}), path="blobs", times=9
        )
        with pytest.raises(DeniedError, match=r"401"):
            at.store.read_range(blob.digest, 0, 1)
        assert (len(at.registry.matching("blobs")), at.token_requests()) == (2, 1)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_token_server_in_trouble_is_worth_a_retry(status: int) -> None:
    with serving(TokenAuth("ann", PASSWORD)) as at:
        blob = at.registry.put_blob("a/b", DATA)
        at.registry.inject(Fault(status=status, headers={"Retry-After": "7"}), path="^/token")
        with pytest.raises(RegistryUnavailableError) as caught:
            at.store.has_blob(blob.digest)
        assert (caught.value.retryable, caught.value.retry_after) == (True, 7)
        assert at.store.has_blob(blob.digest)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"token": 1}', b'{"token": "a\\r\\nX: y"}', b'{"token": ""}', b"x" * (2 << 20)]
)
def test_a_token_that_is_none_is_refused(body: bytes) -> None:
    with serving(TokenAuth("ann", PASSWORD)) as at:
        blob = at.registry.put_blob("a/b", DATA)
        at.registry.inject(Fault(status=200, body=body), path="^/token")
        with pytest.raises(PuzzlefsError, match="token"):
            at.store.has_blob(blob.digest)


@pytest.mark.parametrize("life", [b"-1", b'"x"', b"null", b"1" + b"0" * 400, b"NaN", b"Infinity", b"1e300"])
def test_a_strange_life_of_a_token_does_no_harm(life: bytes) -> None:
    with serving(TokenAuth("ann", PASSWORD)) as at:
        blob = at.registry.put_blob("a/b", DATA)
        at.registry.tokens["given"] = "pull"
        at.registry.inject(Fault(status=200, body=b'{"token": "given", "expires_in": ' + life + b"}"), path="^/token")
        assert at.store.has_blob(blob.digest)


@pytest.mark.parametrize(
    "challenge", ["", "Negotiate", "Digest realm=x", "Bearer", 'Bearer realm="ftp://x/"', 'Bearer realm="https://u:p@x/"']
)
def test_an_authentication_that_we_do_not_do_is_said(challenge: str) -> None:
    with serving(None) as at:
        blob = at.registry.put_blob("a/b", DATA)
        at.registry.inject(Fault(status=401, headers={"WWW-Authenticate": challenge} if challenge else {}))
        with pytest.raises(InvalidError, match=at.registry.host):
            at.store.has_blob(blob.digest)


def test_a_failing_source_of_credentials_is_the_failure() -> None:
    class Broken(Wallet):
        def find(self, host: str, repository: str = "", *, refused: Sequence[Credentials] = ()) -> Credentials | None:
            raise UnavailableError("the helper does not answer")

    with serving(BasicAuth("ann", PASSWORD), Broken()) as at, pytest.raises(UnavailableError, match="helper"):
        at.store.has_blob(at.registry.put_blob("a/b", DATA).digest)


@pytest.mark.parametrize(
    ("header", "challenges"),
    [
        ("", []),
        ("Basic", [Challenge("basic")]),
        ('Basic realm="x"', [Challenge("basic", {"realm": "x"})]),
        ("BEARER Realm=x", [Challenge("bearer", {"realm": "x"})]),
        (
            'Bearer realm="https://a/t?x=1,2",service="s",scope="repository:a/b:pull,push"',
            [Challenge("bearer", {"realm": "https://a/t?x=1,2", "service": "s", "scope": "repository:a/b:pull,push"})],
        ),
        (
            'Basic realm="a", Bearer realm="b" , service=c',
            [Challenge("basic", {"realm": "a"}), Challenge("bearer", {"realm": "b", "service": "c"})],
        ),
        (r'Basic realm="a \"b\" \\"', [Challenge("basic", {"realm": r'a "b" \ '.strip()})]),
        ("Negotiate, Basic realm=x", [Challenge("negotiate"), Challenge("basic", {"realm": "x"})]),
        ('Bearer realm="unfinished', [Challenge("bearer")]),
    ],
)
def test_challenges(header: str, challenges: list[Challenge]) -> None:
    found = parse_challenges(header)
    assert found[: len(challenges)] == challenges
    assert "unfinished" in header or len(found) == len(challenges)


@given(st.text(alphabet='Basic realm="\\, =\t\n;x', max_size=200))
def test_any_header_is_parsed(header: str) -> None:
    for challenge in parse_challenges(header):
        assert challenge.scheme == challenge.scheme.lower()


def test_a_long_header_takes_no_long_time() -> None:
    for header in (" " * 100_000, "," * 100_000, 'a="' * 50_000, "a " * 50_000, "a=" * 50_000, 'a b="' + "\\" * 100_000):
        parse_challenges(header)


def test_a_token_can_be_had_while_every_connection_was_answered_401(monkeypatch: pytest.MonkeyPatch) -> None:
    """The token server is the registry itself here: a request that waits for a token must not keep its connection."""
    with FakeRegistry(auth=TokenAuth()) as registry:
        blob = registry.put_blob("app", b"content")
        config = RegistryConfig(plain_http=True, answer_timeout=5)
        session = RegistrySession(Transport(registry.host, config), Wallet())
        store = RegistryStore(session, "app")
        refused = threading.Barrier(CONNECTIONS)
        renew = session._authorizer.renew

        def renew_when_all_are_refused(response: Response, scope: str, rejected: str | None) -> str:
            refused.wait(30)
            return renew(response, scope, rejected)

        monkeypatch.setattr(session._authorizer, "renew", renew_when_all_are_refused)
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            reads = [pool.submit(store.read_range, blob.digest, 0, 7) for _ in range(CONNECTIONS)]
        assert [read.result() for read in reads] == [b"content"] * CONNECTIONS
        session.close()
